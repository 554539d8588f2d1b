"""The steps from layout to layout, shown with made-up layouts 2 and 3 of a few columns and of a real state."""

from dataclasses import replace

import numpy as np
import pytest

from detection.columns.layout_upgrades import STATES, Versions
from detection.columns.state_columns import (
    Columns,
    NewerVersionError,
    OtherVersionError,
    State,
    digest,
    layouts_of_parts,
)
from detection.detector import Detector
from detection.members.registry import ONLINE_NAMES
from detection.models.training_set import from_columns
from tests.detection.journal import started

OLD: State = {"format": 1, "line": 7, "clock.now": 1.5, "clock.times": np.arange(3.0)}


def second(state: State) -> State:
    """A new part, "later"."""
    return {**state, "later.members": b"[]"}


def third(state: State) -> State:
    """`clock.now` goes into a column `clock.range`."""
    now = state["clock.now"]
    return {name: value for name, value in state.items() if name != "clock.now"} | {"clock.range": np.array([now, now])}


def versions(of: Columns) -> Versions:
    """Three layouts, of which `of` has the first."""
    columns = dict(of)
    tables = {1: layouts_of_parts(columns)}
    for number, step in ((2, second), (3, third)):
        columns = step(columns)
        tables[number] = layouts_of_parts(columns)
    return replace(STATES, layouts=tables, steps={1: second, 2: third}, optional=frozenset())


def test_every_older_layout_is_upgraded_to_the_newest_step_by_step() -> None:
    known = versions(OLD)
    today = known.upgraded(OLD)
    assert (today["format"], today["line"], today["later.members"]) == (3, 7, b"[]")
    assert "clock.now" not in today and np.array_equal(today["clock.range"], [1.5, 1.5])  # type: ignore[arg-type]
    assert digest(known.upgraded({**second(OLD), "format": 2})) == digest(today)
    assert digest(known.upgraded(today)) == digest(today)
    assert OLD.keys() == {"format", "line", "clock.now", "clock.times"} and OLD["format"] == 1  # untouched


def test_a_layout_newer_than_the_program_is_refused() -> None:
    known = versions(OLD)
    older = replace(known, layouts={1: known.layouts[1]}, steps={})
    with pytest.raises(NewerVersionError, match=r"^the state has format 3, this program knows formats up to 1$"):
        older.upgraded(known.upgraded(OLD))
    assert older.upgraded(OLD) == OLD


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({**OLD, "clock.more": 1}, "the columns of its clock are not those of format 1"),
        ({**OLD, "format": 2}, "the columns of its later are not those of format 2"),
        ({**OLD, "format": 0}, "the columns of its clock, detector are not those of format 0"),
        ({**OLD, "format": "1"}, "the state has format '1'"),
    ],
)
def test_columns_that_do_not_match_their_format_are_refused(columns: State, said: str) -> None:
    with pytest.raises(OtherVersionError, match=f"^{said}$") as refusal:
        versions(OLD).upgraded(columns)
    assert not isinstance(refusal.value, NewerVersionError)


def test_a_step_that_is_missing_fails_or_returns_wrong_columns_is_reported() -> None:
    known = versions(OLD)
    with pytest.raises(OtherVersionError, match=r"^the state has format 1, and nothing brings format 2 to 3$"):
        replace(known, steps={1: second}).upgraded(OLD)
    with pytest.raises(OtherVersionError, match="cannot load it: KeyError"):
        replace(known, steps={1: lambda state: {"line": state["nothing"]}, 2: third}).upgraded(OLD)
    with pytest.raises(OtherVersionError, match="the columns of its clock, later are not those that this program"):
        replace(known, steps={1: second, 2: lambda _: dict(OLD)}).upgraded(OLD)


def test_a_real_state_is_upgraded_completely(lines: list[bytes]) -> None:
    journal = started()
    journal.feed(lines[:300])
    state = journal.detector.export()
    known = versions({**state, "format": 1})
    known = replace(
        known, steps={1: second, 2: lambda columns: columns}, layouts={**known.layouts, 3: known.layouts[2]}
    )
    today = known.upgraded({**state, "format": 1})
    assert today.keys() - state.keys() == {"later.members"}
    assert digest({name: today[name] for name in state} | {"format": 0}) == digest({**state, "format": 0})


def test_a_training_set_of_another_version_is_refused() -> None:
    columns = Detector().training_set().to_columns()
    assert from_columns(columns, ONLINE_NAMES).generation == 1
    with pytest.raises(OtherVersionError, match="the training set has format 0, this program trains from format"):
        from_columns({**columns, "format": 0}, ONLINE_NAMES)
