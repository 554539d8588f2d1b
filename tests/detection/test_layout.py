"""States and models of another version: told from today's by what columns they have, and refused."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest

from detection.detector import Detector
from detection.frames import VouchedFrame
from detection.model import LAYOUT as MODEL_LAYOUT
from detection.model import Model, from_columns, to_columns
from detection.state import FORMAT, LAYOUT, OtherVersionError, State, layout, layouts
from detection.training.forest import forest_columns
from tests.detection.journal import RECEIVED, segment, started


@pytest.fixture(scope="module")
def state(lines: list[bytes]) -> State:
    """Of a detector that has seen something of everything, a vouched file being under way."""
    journal = started()
    journal.feed(lines[:500])
    journal.apply(VouchedFrame(RECEIVED, segment(lines[500:600], "vouched"), done=False))
    return journal.detector.export()


def test_the_layouts_named_are_those_of_what_is_exported(state: State, model: Model) -> None:
    """After a change of columns: put these digests into `LAYOUT`; once there was a release, raise `FORMAT`, too."""
    assert layouts(state) == LAYOUT
    assert {name: layout(model.parts.get(name, {})) for name in MODEL_LAYOUT} == MODEL_LAYOUT
    assert model.parts.keys() <= MODEL_LAYOUT.keys() and model.rings.keys() <= {*MODEL_LAYOUT, "ensemble"}


def test_what_is_empty_has_the_same_layout(state: State) -> None:
    assert layouts(Detector().export()) == {name: each for name, each in LAYOUT.items() if name != "vouching"}
    Detector.load(Detector().export(), None)
    assert Detector.load(state, None).export().keys() == state.keys()


def test_a_state_of_a_later_version_is_refused(state: State) -> None:
    with pytest.raises(OtherVersionError, match=f"format {FORMAT + 1}"):
        Detector.load({**state, "format": FORMAT + 1}, None)


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("sessions.last_time", None, "sessions"),
        ("history.more", np.zeros(1), "history"),
        ("values.counts", np.zeros((2, 40, 40, 40), np.int16), "values"),
        ("templates.id", np.zeros(1, np.int64), "templates"),
        ("counters.flagged", b"1", "counters"),
        ("vouching.at_line", None, "vouching"),
        ("restored", None, "detector"),
        ("more.of_it", 1, "more"),
    ],
)
def test_a_state_with_other_columns_is_refused(name: str, value: object, part: str, state: State) -> None:
    other: State = {key: each for key, each in state.items() if key != name}
    if value is not None:
        other[name] = value  # type: ignore[assignment]
    with pytest.raises(OtherVersionError, match=f"the columns of its {part} are not those"):
        Detector.load(other, None)


@pytest.mark.parametrize("name", ["history.times", "recent.starts", "settings", "models.entries"])
def test_a_state_whose_columns_do_not_fit_together_is_refused(name: str, state: State) -> None:
    value = state[name]
    short = value[:-1] if isinstance(value, np.ndarray) else b"{"
    with pytest.raises(OtherVersionError, match="this program cannot load it"):
        Detector.load({**state, name: short}, None)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("parts.transformer/0.mix.bias", None),
        ("parts.transformer/2.mix.bias", np.zeros(64, np.float32)),
        ("parts.counts/vectors", np.zeros((5, 64), np.int64)),
        ("parts.later/weight", np.zeros(4)),
        ("rings.later", np.zeros(4)),
        ("templates.used", None),
    ],
)
def test_a_model_with_other_columns_is_refused(column: str, value: object, model: Model) -> None:
    columns = {name: each for name, each in to_columns(model).items() if name != column}
    if value is not None:
        columns[column] = value  # type: ignore[assignment]
    with pytest.raises(OtherVersionError, match="not as this program keeps"):
        from_columns(columns)
    assert from_columns(to_columns(model)).generation == model.generation


def test_what_the_stream_decides_is_no_other_version(state: State, model: Model) -> None:
    """Where all sessions look alike, every tree of the forest is a leaf, and its columns have no width."""
    alike = forest_columns(IsolationForest(n_estimators=5).fit(np.zeros((50, 3))))
    assert alike["feature"].shape == (5, 0)
    forest = {**model.parts["isolation_forest"], **alike}
    of_leaves = replace(model, parts={**model.parts, "isolation_forest": forest})
    assert from_columns(to_columns(of_leaves)).parts["isolation_forest"]["feature"].shape == (5, 0)
    for name, value in state.items():  # what comes from a computation may be of NumPy's types, or whole
        if isinstance(value, float):
            assert layouts({**state, name: np.float64(value)}) == layouts({**state, name: 1}) == LAYOUT
