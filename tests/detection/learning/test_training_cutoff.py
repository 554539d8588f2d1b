"""When the next training is due if something came while the last one ran."""

import pytest

from detection.detector import Detector
from detection.frames import Knowledge, ModelFrame, RefusedFrame, RestoreFrame, Sequenced, VouchedFrame
from detection.models.model import Model
from detection.models.training_set import TrainingCutoff
from tests.detection.journal import RECEIVED, Journal, segment, started


def ended(journal: Journal, studied: TrainingCutoff, model: Model, refused: bool) -> None:
    """The training that began at `studied` ends."""
    if refused:
        journal.apply(RefusedFrame(1, "model-1", "it is worse", studied))
    else:
        journal.apply(ModelFrame(1, "model-1", "sha", studied), model)


@pytest.mark.parametrize("refused", [False, True])
def test_a_vouched_file_that_ends_while_a_model_is_trained_is_learned_from_next(
    lines: list[bytes], model: Model, refused: bool
) -> None:
    journal = started()
    journal.feed(lines[:3000])
    ended(journal, journal.detector.training_set().studied, model, refused=False)
    begun = journal.detector.training_set().studied
    journal.apply(VouchedFrame(RECEIVED, segment(lines[3000:3100], "vouched", last=True), done=True))
    ended(journal, begun, model, refused)
    summary = journal.detector.summary()
    assert (summary.training_due, summary.training_urgent, summary.lines_since_training) == (True, True, 100)
    assert summary.vouched_waiting
    assert Detector.load(journal.detector.export(), None).summary().training_urgent

    ended(journal, journal.detector.training_set().studied, model, refused)
    summary = journal.detector.summary()
    assert (summary.training_due, summary.lines_since_training) == (False, 0)


def test_a_training_that_begins_inside_a_vouched_file_has_not_seen_how_it_ends(
    lines: list[bytes], model: Model
) -> None:
    journal = started()
    journal.feed(lines[:3000])
    journal.apply(VouchedFrame(RECEIVED, segment(lines[3000:3100], "vouched"), done=False))
    begun = journal.detector.training_set().studied
    journal.apply(VouchedFrame(RECEIVED, segment([], "vouched", last=True), done=True))
    ended(journal, begun, model, refused=False)
    assert journal.detector.summary().training_urgent, "its sessions were open until then"


def test_what_a_restored_snapshot_had_yet_to_learn_was_not_in_the_training_under_way(
    lines: list[bytes], model: Model
) -> None:
    journal = started()
    journal.feed(lines[:3000])
    journal.apply(VouchedFrame(RECEIVED, segment(lines[3000:3100], "vouched", last=True), done=True))
    then = journal.detector.export()
    begun = journal.detector.training_set().studied
    detector = journal.detector
    detector.apply(
        Sequenced(detector.seq + 1, detector.line, RestoreFrame("s", "sha"), knowledge=Knowledge(then, None))
    )
    ended(journal, begun, model, refused=False)
    assert detector.summary().training_urgent
