"""When a training is due: as lines double, at the warm-up, at intervals; and what brings it forward or forbids it."""

from dataclasses import replace

import pytest

from detection.detection_settings import LearningSettings
from detection.learning.training_schedule import REFRESH_LINES, LearnedSoFar, Schedule
from detection.models.training_set import TrainingCutoff

LEARNING = LearningSettings(early_lines=5_000, warmup_lines=50_000, retrain_lines=20_000)
NOTHING = LearnedSoFar(learned=0, admissions=0, has_model=False, complete=False, uploading=False)
EARLY = replace(NOTHING, has_model=True)
FULL = replace(EARLY, complete=True)


def due_at(schedule: Schedule, now: LearnedSoFar, lines: range) -> list[int]:
    """Where trainings begin, each of which takes no time."""
    found = []
    for learned in lines:
        now = replace(now, learned=learned, complete=schedule.trained_at >= LEARNING.warmup_lines)
        if schedule.training_due(LEARNING, now):
            found.append(learned)
            schedule.note_training(TrainingCutoff(seq=learned, learned=learned, admissions=now.admissions), learned)
            now = replace(now, has_model=True)
    return found


def test_quick_models_come_as_the_lines_double_then_full_ones_at_intervals() -> None:
    assert due_at(Schedule(), NOTHING, range(0, 100_001, 1000)) == [5000, 10000, 20000, 40000, 50000, 70000, 90000]


def test_what_came_during_a_training_counts_towards_the_next() -> None:
    schedule = Schedule()
    schedule.note_training(TrainingCutoff(seq=1, learned=50_000, admissions=0), learned=58_000)
    assert not schedule.training_due(LEARNING, replace(FULL, learned=69_999))
    assert schedule.training_due(LEARNING, replace(FULL, learned=70_000))


def test_an_admission_brings_the_next_training_forward_but_not_at_every_step() -> None:
    schedule = Schedule(trained_at=50_000, admissions_at=3)
    admitted = replace(FULL, admissions=4, learned=50_000 + REFRESH_LINES)
    assert schedule.training_urgent(LEARNING, admitted) and schedule.training_due(LEARNING, admitted)
    assert not schedule.training_urgent(LEARNING, replace(admitted, learned=admitted.learned - 1))
    assert not schedule.training_urgent(LEARNING, replace(admitted, admissions=3))


def test_a_vouched_file_that_has_ended_is_learned_from_at_once_and_only_once() -> None:
    schedule = Schedule(vouched_at=77)
    assert schedule.training_due(LEARNING, NOTHING)
    schedule.note_training(TrainingCutoff(seq=76), learned=0)
    assert schedule.training_due(LEARNING, NOTHING), "the set was taken before the file ended"
    schedule.note_training(TrainingCutoff(seq=77), learned=0)
    assert not schedule.training_due(LEARNING, NOTHING)


def test_while_a_file_is_on_its_way_everything_else_waits() -> None:
    schedule = Schedule(trained_at=5_000)
    assert schedule.training_due(LEARNING, replace(EARLY, learned=10_000))
    assert not schedule.training_due(LEARNING, replace(EARLY, learned=10_000, uploading=True))


@pytest.mark.parametrize("now", [EARLY, FULL], ids=["rolled back to a quick model", "a full model in force"])
def test_with_no_retraining_nothing_is_due_after_the_first_full_training_but_a_vouched_file(now: LearnedSoFar) -> None:
    never = replace_retrain(0)
    schedule = Schedule(trained_at=50_000, fulfilled=True)
    later = replace(now, learned=10_000_000, admissions=9)
    assert (
        schedule.learning_ended(never)
        and not schedule.training_due(never, later)
        and not schedule.training_urgent(never, later)
    )
    assert not schedule.learning_ended(LEARNING) and schedule.training_due(LEARNING, later), "with it, it is"
    longer = replace_retrain(0, warmup_lines=100_000)
    assert not schedule.training_due(longer, replace(now, learned=100_000)), "nor when the warm-up is made longer"
    schedule.vouched_at = 1
    assert schedule.training_due(never, later)


def test_with_no_retraining_the_first_full_training_takes_place_all_the_same() -> None:
    never = replace_retrain(0)
    assert not Schedule(trained_at=40_000).learning_ended(never)
    assert Schedule(trained_at=40_000).training_due(never, replace(EARLY, learned=50_000))
    refused = Schedule(trained_at=50_000)
    assert not refused.training_due(never, replace(EARLY, learned=99_999))
    assert refused.training_due(never, replace(EARLY, learned=100_000)), "and is tried again when it was refused"
    assert Schedule(trained_at=50_000, fulfilled=True).training_due(never, replace(NOTHING, learned=60_000)), (
        "its model is lost"
    )


def replace_retrain(lines: int, warmup_lines: int = 50_000) -> LearningSettings:
    return LearningSettings(early_lines=5_000, warmup_lines=warmup_lines, retrain_lines=lines)
