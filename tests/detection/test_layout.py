"""The numbered layouts of states and models: none changes without a step, and what has other columns is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest

from detection.columns.layout_upgrades import MODELS, STATES, Versions
from detection.columns.state_columns import (
    Columns,
    NewerVersionError,
    OtherVersionError,
    State,
    layout_hash,
    layouts_of_parts,
)
from detection.detector import Detector
from detection.frames import VouchedFrame
from detection.members.isolation_forest.fitting import forest_columns
from detection.models.model import Model, from_columns, to_columns
from tests.detection.journal import RECEIVED, segment, started

GOLDEN = Path(__file__).parent.parent / "golden"
LAYOUT = STATES.layouts[STATES.newest]


@pytest.fixture(scope="module")
def state(lines: list[bytes]) -> State:
    """Of a detector that has seen something of everything, a vouched file being under way."""
    journal = started()
    journal.feed(lines[:500])
    journal.apply(VouchedFrame(RECEIVED, segment(lines[500:600], "vouched"), done=False))
    return journal.detector.export()


def complaints(versions: Versions, columns: Columns, released: dict[int, dict[str, str]]) -> list[str]:
    """What keeps `versions` from being what writes `columns` and reads all that was `released`, in plain words."""
    newest, digests = versions.newest, versions.parts(columns)
    found = [
        f"{versions.kind}'s layout {number} was released as it was and is edited; add layout {newest + 1} instead"
        for number, as_it_was in released.items()
        if versions.layouts.get(number) != as_it_was
    ]
    found += [
        f"{versions.kind}'s {name} is not as in layout {newest} but {digests.get(name)}"
        + ("; add a layout and a step" if newest in released else "")
        for name in versions.differing_parts(columns, newest)
    ]
    if versions.layouts.keys() != set(range(1, newest + 1)):
        found.append(f"{versions.kind}'s layouts are not numbered 1, 2, 3")
    return found


def stepless(versions: Versions) -> list[int]:
    """The formats from which no step leads on."""
    return sorted(set(range(1, versions.newest)) - versions.steps.keys())


def released(what: str) -> dict[int, dict[str, str]]:
    """The layouts of the golden states: those are in the hands of users."""
    facts = [json.loads(path.read_bytes()) for path in GOLDEN.glob("*.json")]
    return {each[what]["format"]: each[what]["layout"] for each in facts}


def test_no_layout_changes_without_a_number_and_a_step(state: State, model: Model) -> None:
    """After a change of columns `columns.layout_upgrades` says what to do, and this which digests to put there."""
    assert complaints(STATES, state, released("state")) == []
    assert complaints(MODELS, to_columns(model), released("model")) == []
    assert STATES.parts(state).keys() == STATES.layouts[STATES.newest].keys()
    assert stepless(STATES) == []
    with_arrays = {name for name, each in MODELS.layouts[MODELS.newest].items() if each != layout_hash({})}
    assert with_arrays <= MODELS.parts(to_columns(model)).keys()
    # A model need not come along. But its templates are the state's: a change of those is one of the model, too.
    assert MODELS.steps.keys() <= set(range(1, MODELS.newest))
    assert MODELS.layouts[MODELS.newest]["templates"] == STATES.layouts[STATES.newest]["templates"]


def test_a_change_that_forgets_something_is_noticed(state: State, model: Model) -> None:
    """The control of the test above, with made-up changes of a part that is in users' hands."""
    frozen = {1: dict(LAYOUT)}
    versions = replace(STATES, layouts=frozen, steps={})
    changed = {**{name: each for name, each in state.items() if name != "clock.wound"}, "clock.wound": b""}
    assert "clock.wound" not in state and complaints(versions, state, frozen) == [] == stepless(versions)

    [said] = complaints(versions, changed, frozen)  # nothing but the columns
    assert said.startswith("the state's clock is not as in layout 1 but ") and said.endswith("add a layout and a step")
    [said] = complaints(versions, {**state, "more.of_it": 1}, frozen)  # a new part
    assert said.startswith("the state's more is not as in layout 1 but ")

    today = layouts_of_parts(changed)
    edited = replace(versions, layouts={1: today})  # the released table was made to fit
    assert [said] != complaints(edited, changed, frozen) != []
    numbered = replace(versions, layouts={**frozen, 2: today})  # a number, and no step
    assert complaints(numbered, changed, frozen) == [] and stepless(numbered) == [1]
    assert stepless(replace(numbered, steps={1: lambda columns: columns})) == []  # all there
    assert complaints(replace(numbered, layouts={1: frozen[1], 3: today}), changed, frozen) != []

    columns = to_columns(model)
    columns["vocabulary"] = columns["vocabulary"].astype(np.int64)  # type: ignore[union-attr]
    assert complaints(MODELS, columns, {})[0].startswith("the model's model is not as in layout")


def test_what_is_empty_has_the_same_layout(state: State) -> None:
    expected = {name: each for name, each in LAYOUT.items() if name != "vouching"}
    assert layouts_of_parts(Detector().export()) == expected
    Detector.load(Detector().export(), None)
    assert Detector.load(state, None).export().keys() == state.keys()


def test_a_state_or_a_model_of_a_later_version_is_refused(state: State, model: Model) -> None:
    later = {"format": STATES.newest + 1}
    with pytest.raises(NewerVersionError, match=f"the state has format {STATES.newest + 1}, this program knows"):
        Detector.load({**state, **later}, None)
    with pytest.raises(NewerVersionError, match=f"the model has format {MODELS.newest + 1}, this program knows"):
        from_columns({**to_columns(model), "format": MODELS.newest + 1})


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
        ("vocabulary", np.zeros(4)),
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
    with pytest.raises(OtherVersionError, match="are not those that this program keeps"):
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
            assert (
                layouts_of_parts({**state, name: np.float64(value)}) == layouts_of_parts({**state, name: 1}) == LAYOUT
            )
