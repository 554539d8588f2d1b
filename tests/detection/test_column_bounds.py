"""What a loaded state may hold: every column has a bound or needs none, and whatever breaks one is named."""

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection import column_bounds as bounds
from detection.column_bounds import BOUNDS, DamagedError, check_model, check_state
from detection.columns.state_columns import State
from detection.detector import Detector
from detection.frames import VouchedFrame
from detection.learning import vouched_lines as vouched
from detection.members.origins import source_counters as counters
from detection.members.origins.background import Background
from detection.members.parameter_values import character_model as values
from detection.members.registry import NAMES
from detection.members.transformer import network
from detection.members.transformer import windows as transformer
from detection.models.model import Model, to_columns
from detection.scoring.verdict_and_score import ANOMALY, ATTACK, NORMAL, NOVEL
from detection.sessions import log_clock, recent_lines
from detection.sessions import session_table as table
from detection.sessions.history import ROWS
from detection.verdicts import counted_alerts, incidents
from tests.detection.journal import RECEIVED, segment, started

# Texts, which are of as many rows as the part; and the number of the layout.
FREE = {"format", "sources.names", "sources.kinds"}
MAY_BE_NAN = {
    *("received", "rate.clock", "clock.now", "vouching.clock.now"),
    *(f"{part}.{name}" for part in ("sessions", "vouching.sessions") for name in ("p", "began", "last_event")),
}


@pytest.fixture(scope="module")
def state(lines: list[bytes]) -> State:
    """With a row at least in every column."""
    journal = started()
    journal.feed(lines[:500])
    journal.apply(VouchedFrame(RECEIVED, segment(lines[500:600], "vouched"), done=False))
    state = journal.detector.export()
    for name, value in state.items():
        # As if there were one incident, and so on: rows of the lowest values that may be.
        if isinstance(value, np.ndarray) and not value.size and not name.endswith((".tails", ".admitted")):
            bound = bounds._bound_of_column(name)
            state[name] = np.full((1, *value.shape[1:]), bound.low if bound else 0).astype(value.dtype)
    state["incidents.sample_line"] = np.array([[1, 0, 0, 0]])
    state["incidents.counted_causes"] = state["incidents.group_runs"] = np.array([1], dtype=np.int64)
    return state


def poisonous(name: str, value: Any) -> list[Any]:
    """Values just beyond and far beyond the bound of a column."""
    bound = bounds._bound_of_column(name)
    assert bound is not None
    kind = value.dtype if isinstance(value, np.ndarray) else np.dtype(type(value))
    if kind.kind == "f":
        high = bound.high if isinstance(bound.high, float) else 0.0
        wrong = [-np.inf, np.nextafter(kind.type(bound.low), -np.inf)]
        wrong += [np.inf, np.nextafter(kind.type(high), np.inf)] if np.isfinite(high) else []
        return wrong if name in MAY_BE_NAN else [*wrong, np.nan]
    if kind.kind in "Sb":
        return []
    limits = np.iinfo(kind)
    return [
        each for each in (limits.min, int(bound.low) - 1, limits.max) if limits.min <= each and not _fits(each, bound)
    ]


def _fits(value: int, bound: bounds.Bound) -> bool:
    return bound.low <= value <= (bounds.LARGEST if isinstance(bound.high, str) else bound.high)


def test_a_state_that_a_detector_exports_passes(state: State, model: Model) -> None:
    check_state(Detector().export())
    check_state(state)
    check_model(to_columns(model))


def test_every_column_has_a_bound_or_needs_none(state: State) -> None:
    names = {name for name in state if bounds._bound_of_column(name) is None}
    assert {bounds._like_of_stream(name) for name in names} - set(bounds._JSON) == FREE
    assert {name for name in state if name in bounds._JSON} == bounds._JSON.keys()
    assert BOUNDS.keys() <= state.keys(), "a bound of a column that there is not"


@pytest.mark.slow
def test_what_is_said_of_other_modules_is_true_and_none_of_them_is_heavy() -> None:
    assert (bounds.HISTORY_ROWS, bounds.VERDICTS) == (ROWS, max(NORMAL, NOVEL, ANOMALY, ATTACK))
    assert (bounds.SESSIONS, bounds.SESSION_KEY_BYTES) == (table.CAPACITY, table.KEY_BYTES)
    assert (bounds.LONGEST_SESSION, bounds.HELD_TOKENS) == (table.LONGEST_SESSION, table.WINDOW_TOKENS)
    assert (bounds.VOUCHED_SESSIONS, bounds.AGREEING_LINES) == (vouched.CAPACITY, log_clock.AGREEING_LINES)
    recent = recent_lines._RING_LINES, recent_lines._RING_BYTES, recent_lines._KEPT_OF_A_LINE
    assert (bounds.RECENT_LINES, bounds.RECENT_BYTES, bounds.RECENT_LINE_BYTES) == recent
    assert (bounds.SOURCES, bounds.SOURCE_KEY_BYTES) == (counters.CAPACITY, counters.KEY_BYTES)
    assert bounds.SHARE_UNIT == Background._SHARE_UNIT
    assert (bounds.INCIDENTS, bounds.SAMPLES) == (incidents.CAPACITY, incidents.SAMPLES)
    assert bounds.SHOWN == incidents.LARGEST_BUDGET
    assert (bounds.COUNTED_RUNS, bounds.COUNTED_CAUSES) == (counted_alerts.MAX_RUNS, counted_alerts.MAX_CAUSES)
    assert (bounds.VALUE_KINDS, *[bounds.VALUE_CLASSES] * 3) == values._SHAPE
    assert (bounds.LARGEST_VOCABULARY, bounds.FIRST_TOKEN) == (transformer.LARGEST_VOCABULARY, transformer.FIRST)
    assert bounds.MEMBERS == NAMES
    network_ = bounds.WIDTH, bounds.LAYERS, bounds.FEED, bounds.POSITIONS
    assert network_ == (network.WIDTH, network.LAYERS, network.FEED, network.POSITIONS)
    code = "import sys, daemon.lifecycle; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60.0).returncode == 0


def test_nan_is_refused_but_in_the_columns_that_may_hold_it(state: State) -> None:
    found = set()
    for name, value in state.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            poisoned: Any = value.copy()
            poisoned[-1] = np.nan
        elif isinstance(value, float):
            poisoned = np.nan
        else:
            continue
        try:
            check_state({**state, name: poisoned})
        except DamagedError:
            continue
        found.add(name)
    assert found == MAY_BE_NAN


@given(column=st.integers(0, 1 << 20), which=st.integers(0, 11), place=st.integers(0, 1 << 30))
def test_a_value_out_of_bounds_anywhere_is_found_and_its_column_named(
    state: State, column: int, which: int, place: int
) -> None:
    names = [
        name for name, value in state.items() if bounds._bound_of_column(name) is not None and poisonous(name, value)
    ]
    name = names[column % len(names)]
    value = state[name]
    wrong = poisonous(name, value)
    poison = wrong[which % len(wrong)]
    if isinstance(value, np.ndarray):
        poisoned: Any = value.copy()
        poisoned.reshape(-1)[place % value.size] = poison
    else:
        poisoned = float(poison) if isinstance(value, float) else int(poison)
    with pytest.raises(DamagedError, match=f"column {name} "):
        check_state({**state, name: poisoned})


@pytest.mark.parametrize("name", ["templates.id", "sessions.serial", "sessions.tokens", "history.templates"])
def test_an_id_beyond_those_that_were_given_is_refused(state: State, name: str) -> None:
    poisoned = np.array(state[name])
    poisoned.reshape(-1)[-1] = 1_000_000
    with pytest.raises(DamagedError, match=f"column {name} holds .* outside of"):
        check_state({**state, name: poisoned})


@pytest.mark.parametrize("name", ["templates.id", "sessions.serial"])
def test_what_rises_may_not_fall(state: State, name: str) -> None:
    with pytest.raises(DamagedError, match=f"column {name} falls"):
        check_state({**state, name: np.array(state[name])[::-1].copy()})


@pytest.mark.parametrize(
    "name", ["sessions.key", "history.times", "templates.tokens", "sources.sizes", "origins.lines", "incidents.what"]
)
def test_rows_that_do_not_belong_together_are_refused(state: State, name: str) -> None:
    value = np.array(state[name])
    with pytest.raises(DamagedError, match=r"column .* has \d+ rows and not \d+"):
        check_state({**state, name: np.concatenate([value, value + 1 if name == "sources.sizes" else value])})


@pytest.mark.parametrize("poison", [True, 1.5, None, "1"])
def test_a_scalar_that_is_no_whole_number_is_refused(state: State, poison: Any) -> None:
    with pytest.raises(DamagedError, match="column line is to be a number"):
        check_state({**state, "line": poison})


@pytest.mark.parametrize("name", ["settings", "known.answers"])
def test_text_that_is_no_json_is_refused(state: State, name: str) -> None:
    garbage: Any = b"\xff{" if isinstance(state[name], bytes) else np.frombuffer(b"\xff{", np.uint8)
    with pytest.raises(DamagedError, match=f"column {name} is not JSON"):
        check_state({**state, name: garbage})


def test_every_number_of_a_model_is_checked_and_only_a_threshold_may_be_infinite(model: Model) -> None:
    columns = to_columns(model)
    floats = [name for name, value in columns.items() if isinstance(value, np.ndarray) and value.dtype.kind == "f"]
    assert floats
    for name in floats:
        for poison in (np.nan, np.inf):
            poisoned = np.array(columns[name])
            poisoned.reshape(-1)[-1] = poison
            if name == "parts.isolation_forest/threshold" and poison == np.inf:
                check_model({**columns, name: poisoned})
                continue
            with pytest.raises(DamagedError, match=f"column {name} "):
                check_model({**columns, name: poisoned})


def test_offsets_of_a_model_rise_and_end_where_their_tokens_do(model: Model) -> None:
    columns = to_columns(model)
    offsets = np.array(columns["parts.anchor/offsets"])
    for poisoned in (offsets[::-1].copy(), offsets + 1):
        with pytest.raises(DamagedError, match=r"column parts\.anchor/offsets"):
            check_model({**columns, "parts.anchor/offsets": poisoned})


def test_the_check_costs_little_beside_loading(state: State) -> None:
    def best(act: Any) -> float:
        seconds = []
        for _ in range(25):  # a busy machine slows down some of them
            began = time.process_time()
            act()
            seconds.append(time.process_time() - began)
        return min(seconds)

    assert best(lambda: check_state(state)) < 0.05 * best(lambda: Detector.load(dict(state), None))
