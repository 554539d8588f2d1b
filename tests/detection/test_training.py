"""A training run on small made-up streams with known habits."""

from dataclasses import replace

import numpy as np
import pytest

from detection import training
from detection.forest import Forest
from detection.model import Model, to_columns
from detection.state import digest
from detection.training import Progress, TrainingError, row_scores, train
from detection.training_set import TrainingSet, from_columns
from detection.transformer import SequenceModel


def stream(sessions: list[list[int]], *, seed: int = 1, ends: bool = True) -> TrainingSet:
    sizes = [len(session) for session in sessions]
    lines = sum(sizes)
    return TrainingSet(
        generation=3,
        line=lines,
        seed=seed,
        tokens=np.array([t for session in sessions for t in session], dtype=np.int32),
        errors=np.zeros(lines, dtype=np.bool_),
        times=np.arange(lines, dtype=np.float64),
        offsets=np.concatenate(([0], np.cumsum(sizes))).astype(np.int64),
        starts=np.full(len(sessions), ends),
        ends=np.full(len(sessions), ends),
        tainted=np.zeros(len(sessions), dtype=np.bool_),
        templates={"next": 9},
    )


def habits(count: int, seed: int) -> list[list[int]]:
    """Open (1), some reads (2 or 3), close (4); now and then a retry (5)."""
    rng = np.random.default_rng(seed)
    return [[1, *rng.choice([2, 3, 5], int(rng.integers(1, 6)), p=[0.6, 0.35, 0.05]).tolist(), 4] for _ in range(count)]


def quietly(step: Progress) -> None:
    assert 0.0 < step.fraction <= 1.0


@pytest.fixture(scope="module")
def model() -> Model:
    return train(stream(habits(300, 1)), progress=quietly)


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of few steps, for what does not depend on how well a model has learned."""
    monkeypatch.setattr(training, "FEWEST_STEPS", 30)


def worst(model: Model, sessions: list[list[int]]) -> list[float]:
    rows = row_scores(SequenceModel(model), stream(sessions))
    return [float(nats) for nats in rows.worst[rows.offsets[1:] - 1]]


def test_what_was_never_done_surprises_more_than_anything_habitual(model: Model) -> None:
    normal = max(worst(model, habits(50, 2)))
    stops_early, out_of_order, new = worst(model, [[1, 2, 3], [4, 2, 1], [1, 77, 4]])
    assert min(stops_early, out_of_order, new) > normal


def test_rings_hold_one_ascending_score_a_held_out_session(model: Model) -> None:
    assert set(model.rings) == {"transformer", "isolation_forest", "ensemble"}
    for ring in model.rings.values():
        assert ring.dtype == np.float64
        assert len(ring) == 60 == model.meta["held_out_sessions"]
        assert (np.diff(ring) >= 0).all()
    assert (model.generation, model.line, model.templates) == (3, model.meta["lines"], {"next": 9})


def test_the_forest_finds_a_flood_strange(model: Model) -> None:
    flood = [1] + [2] * 200 + [4]
    ordinary, strange = (
        Forest(model.forest).scores(row_scores(SequenceModel(model), stream([session])).features).max()
        for session in ([1, 2, 2, 3, 4], flood)
    )
    assert strange > ordinary


@pytest.mark.usefixtures("briefly")
def test_the_same_data_and_seed_give_the_same_bits_and_another_seed_does_not() -> None:
    data = stream(habits(60, 1))
    once, again = (digest(to_columns(train(data, progress=quietly))) for _ in range(2))
    assert once == again
    assert digest(to_columns(train(replace(data, seed=2), progress=quietly))) != once


@pytest.mark.usefixtures("briefly")
def test_sessions_a_rule_hit_in_teach_nothing() -> None:
    clean = habits(60, 1)
    data = stream([*clean, *([[66, 67, 68]] * 30)])
    data.tainted[60:] = True
    trained = train(data, progress=quietly)
    assert not np.isin([66, 67, 68], trained.vocabulary).any()
    assert trained.meta["fitted_sessions"] + trained.meta["held_out_sessions"] == 60  # type: ignore[operator]


def test_a_stream_without_keys_is_learned_without_closing_rows() -> None:
    data = stream([[1, 2, 3, 4] * 12 for _ in range(25)], ends=False)
    trained = train(data, progress=quietly)
    assert trained.rings["transformer"][-1] < 2.0
    rows = row_scores(SequenceModel(trained), data)
    assert len(rows.worst) == len(data.tokens)


@pytest.mark.usefixtures("briefly")
def test_one_template_alone_still_gives_a_model() -> None:
    trained = train(stream([[5]] * 40), progress=quietly)
    assert trained.vocabulary.tolist() == [5]
    assert all(np.isfinite(ring).all() for ring in trained.rings.values())
    assert worst(trained, [[6]])[0] > worst(trained, [[5]])[0]


def test_too_little_to_learn_from_is_said() -> None:
    with pytest.raises(TrainingError, match="7 clean sessions are too few"):
        train(stream(habits(7, 1)), progress=quietly)
    with pytest.raises(TrainingError, match="came twice"):
        train(stream([[n] for n in range(40)]), progress=quietly)


@pytest.mark.usefixtures("briefly")
def test_progress_goes_from_the_first_epoch_to_the_end() -> None:
    steps: list[Progress] = []
    train(stream(habits(40, 1)), progress=steps.append)
    assert [step.epoch for step in steps if step.stage == "transformer"] == list(range(1, 21))
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert steps[19].loss < steps[0].loss


def test_a_training_set_survives_its_columns() -> None:
    data = stream(habits(5, 1))
    again = from_columns(data.to_columns())
    assert digest(again.to_columns()) == digest(data.to_columns())
    with pytest.raises(TypeError, match="tokens"):
        from_columns({**data.to_columns(), "tokens": data.tokens.astype(np.int64)})
    with pytest.raises(ValueError, match="offsets"):
        from_columns({**data.to_columns(), "offsets": data.offsets[:-1]})
