"""A training run on small made-up streams with known habits."""

from dataclasses import replace

import numpy as np
import pytest

from detection.columns.state_columns import digest
from detection.learning.training_run import Progress, TrainingError, train
from detection.members.isolation_forest.features import forest_input
from detection.members.isolation_forest.scoring import Forest
from detection.members.registry import NAMES, ONLINE_NAMES
from detection.models.model import Model, to_columns
from detection.models.training_set import from_columns
from tests.detection.streams import TEMPLATES, habits, reached, standing, stream, trained

TRANSFORMER = NAMES.index("transformer")


def test_what_was_never_done_surprises_more_than_anything_habitual(habitual: Model) -> None:
    normal = reached(habitual, stream(habits(50, 2)))[:, TRANSFORMER].max()
    stops_early, out_of_order, new = reached(habitual, stream([[1, 2, 3], [4, 2, 1], [1, 77, 4]]))[:, TRANSFORMER]
    assert min(stops_early, out_of_order, new) > normal


def test_calibration_scores_hold_one_ascending_score_a_session_for_each_member_and_all_together(
    habitual: Model,
) -> None:
    spoke = set(NAMES) - {"values"}  # there were none to judge
    assert set(habitual.calibration) == {*spoke, "ensemble"}
    for ring in habitual.calibration.values():
        assert ring.dtype == np.float64
        assert len(ring) == 300 == habitual.meta["sessions"]
        assert (np.diff(ring) >= 0).all()
    assert (habitual.generation, habitual.line, habitual.templates) == (3, habitual.meta["lines"], TEMPLATES)


def test_the_forest_finds_a_flood_strange(habitual: Model) -> None:
    flood = [1] + [2] * 200 + [4]
    forest = Forest(habitual.parts["isolation_forest"])
    ordinary, strange = (
        forest.scores(forest_input(standing(habitual, stream([session])))).max() for session in ([1, 2, 2, 3, 4], flood)
    )
    assert strange > ordinary


@pytest.mark.slow
@pytest.mark.usefixtures("briefly")
def test_the_same_data_and_seed_give_the_same_bits_and_another_seed_does_not() -> None:
    data = stream(habits(60, 1))
    once, again = (digest(to_columns(trained(data))) for _ in range(2))
    assert once == again
    assert digest(to_columns(trained(replace(data, seed=2)))) != once


def test_sessions_in_which_a_rule_hit_are_not_learned_from() -> None:
    clean = habits(60, 1)
    data = stream([*clean, *([[66, 67, 68]] * 30)], full=False)
    assert np.isin([66, 67, 68], trained(data).vocabulary).all()
    data.tainted[60:] = True
    model = trained(data)
    assert not np.isin([66, 67, 68], model.vocabulary).any()
    assert len(model.calibration["ensemble"]) == 60


def test_a_stream_without_keys_is_learned_without_closing_rows() -> None:
    data = stream([[1, 2, 3, 4] * 12 for _ in range(25)], ends=False, full=False)
    model = trained(data)
    assert 0.0 < model.calibration["ngram"][-1] < 2.0
    assert len(standing(model, data).reached) == len(data.tokens)


@pytest.mark.usefixtures("briefly")
def test_one_template_alone_still_gives_a_model() -> None:
    model = trained(stream([[5]] * 40))
    assert model.vocabulary.tolist() == [5]
    assert all(np.isfinite(ring).all() for ring in model.calibration.values())
    unknown, known = reached(model, stream([[6], [5]]))[:, TRANSFORMER]
    assert unknown > known


def test_too_little_to_learn_from_is_an_error_that_says_so() -> None:
    with pytest.raises(TrainingError, match="7 clean sessions are too few"):
        trained(stream(habits(7, 1)))
    with pytest.raises(TrainingError, match="came twice"):
        trained(stream([[n] for n in range(40)]))


@pytest.mark.usefixtures("briefly")
def test_progress_goes_from_the_first_fit_to_the_end() -> None:
    steps: list[Progress] = []
    train(stream(habits(40, 1)), progress=steps.append)
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions) and 0.0 < fractions[0]
    assert fractions[-1] == 1.0
    of_transformer = [step for step in steps if step.stage == "transformer"]
    assert len(of_transformer) == 3 * 8, "two fits for calibration and the one that stays"
    assert of_transformer[7].loss < of_transformer[0].loss
    assert [step.stage for step in steps[-2:]] == ["calibration", "done"]


def test_a_training_set_survives_its_columns() -> None:
    data = stream(habits(5, 1))
    again = from_columns(data.to_columns(), ONLINE_NAMES)
    assert digest(again.to_columns()) == digest(data.to_columns())
    with pytest.raises(TypeError, match="tokens"):
        from_columns({**data.to_columns(), "tokens": data.tokens.astype(np.int64)}, ONLINE_NAMES)
    with pytest.raises(ValueError, match="offsets"):
        from_columns({**data.to_columns(), "offsets": data.offsets[:-1]}, ONLINE_NAMES)
    with pytest.raises(ValueError, match="keys holds 4, not 5"):
        from_columns({**data.to_columns(), "keys": data.keys[:-1]}, ONLINE_NAMES)


def test_a_training_set_takes_the_model_in_force_along() -> None:
    model = trained(stream(habits(60, 1), full=False))
    data = stream(habits(5, 1), previous=model)
    again = from_columns(data.to_columns(), ONLINE_NAMES)
    assert again.previous is not None
    assert digest(to_columns(again.previous)) == digest(to_columns(model))
