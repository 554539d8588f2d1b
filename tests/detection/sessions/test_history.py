"""The history: small examples, and any stream of sessions against plain lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection.models.training_set import ClosedSessions
from detection.sessions import history as module
from detection.sessions.history import (
    BEGINS,
    ENDS,
    ERROR,
    FLAGGED,
    SPLITS,
    STARTS,
    TAINTED,
    VOUCHED,
    History,
)


def line(history: History, serial: int, template: int, flags: int = 0, *, time: float = 0.0, key: int = 7) -> None:
    history.append(
        np.array([serial]),
        np.array([template], dtype=np.int32),
        np.array([time]),
        np.array([flags], dtype=np.uint8),
        np.array([[template / 2, template / 4]]),
        np.array([key], dtype=np.uint64),
    )


def close(history: History, serial: int, flags: int = ENDS, cause: int = 0) -> None:
    history.close(
        np.array([serial]), np.zeros(1), np.array([flags], dtype=np.uint8), np.array([cause], dtype=np.uint64)
    )


def sessions_of(found: ClosedSessions) -> list[list[int]]:
    return [part.tolist() for part in np.split(found.tokens, found.offsets[1:-1])] if len(found.starts) else []


def test_lines_that_came_mixed_are_gathered_by_session_in_the_order_in_which_those_began() -> None:
    history = History()
    line(history, 1, 10, BEGINS | STARTS, time=100.0, key=71)
    line(history, 2, 20, BEGINS, time=101.0, key=72)
    line(history, 1, 11, ERROR, time=102.0, key=71)
    line(history, 2, 21, TAINTED, time=103.0, key=72)
    line(history, 2, 22, time=104.0, key=72)
    close(history, 2, SPLITS)
    close(history, 1, ENDS | FLAGGED, cause=99)
    found = history.closed_sessions()
    assert found.tokens.tolist() == [10, 11, 20, 21, 22]
    assert found.offsets.tolist() == [0, 2, 5]
    assert found.times.tolist() == [100.0, 102.0, 101.0, 103.0, 104.0]
    assert found.errors.tolist() == [False, True, False, False, False]
    assert found.online_members == ("values", "sources")
    assert found.online[:, 0].tolist() == [5.0, 5.5, 10.0, 10.5, 11.0]
    assert found.online[:, 1].tolist() == [2.5, 2.75, 5.0, 5.25, 5.5]
    assert found.starts.tolist() == [True, False]
    assert found.ends.tolist() == [True, False], "one was cut, and did not end"
    assert found.tainted.tolist() == [False, True]
    assert found.flagged.tolist() == [True, False]
    assert found.vouched.tolist() == [False, False]
    assert found.keys.tolist() == [71, 72]
    assert found.causes.tolist() == [99, 0]


def test_vouched_sessions_are_marked() -> None:
    history = History()
    line(history, 1, 10, BEGINS | STARTS)
    close(history, 1, ENDS | VOUCHED)
    assert history.closed_sessions().vouched.tolist() == [True]


def test_a_session_that_is_still_open_is_not_learned_from() -> None:
    history = History()
    line(history, 1, 10, BEGINS | STARTS)
    line(history, 2, 20, BEGINS | STARTS)
    close(history, 2)
    assert sessions_of(history.closed_sessions()) == [[20]]
    assert history.closed == 1


def test_a_session_that_closed_without_a_line_is_not_learned_from() -> None:
    history = History()
    close(history, 1)
    assert sessions_of(history.closed_sessions()) == []


def test_an_empty_history_has_no_sessions() -> None:
    found = History().closed_sessions()
    assert len(found.tokens) == len(found.starts) == 0
    assert found.offsets.tolist() == [0]


def test_sessions_are_fresh_that_closed_after_the_mark_whenever_they_began() -> None:
    history = History()
    line(history, 1, 10, BEGINS | STARTS)
    line(history, 2, 20, BEGINS | STARTS)
    close(history, 1)
    history.set_mark()
    close(history, 2)
    assert history.closed_sessions().fresh.tolist() == [False, True]
    again = History.load(history.export())
    assert again.closed_sessions().fresh.tolist() == [False, True]


def test_a_session_whose_beginning_made_room_for_others_is_not_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 4)
    history = History()
    line(history, 1, 10, BEGINS | STARTS)
    line(history, 1, 11)
    line(history, 2, 20, BEGINS | STARTS)
    close(history, 2)
    assert (len(history), history.closed) == (4, 1)
    close(history, 1)  # pushes out the first line of session 1
    assert sessions_of(history.closed_sessions()) == [[20]]
    assert (len(history), history.closed) == (4, 2)
    line(history, 3, 30, BEGINS | STARTS)  # ... its second one
    line(history, 3, 31)  # ... and that of session 2
    assert sessions_of(history.closed_sessions()) == []
    close(history, 3)  # ... and its end
    assert sessions_of(history.closed_sessions()) == [[30, 31]]
    assert history.closed == 2, "of session 1 the end is left"


steps = st.lists(st.tuples(st.integers(1, 5), st.sampled_from(["line", "line", "line", "end", "cut"])), max_size=60)


@given(steps, st.integers(0, 60))
def test_any_stream_gives_the_sessions_that_lists_give_also_over_a_restart(
    drawn: list[tuple[int, str]], restart: int
) -> None:
    """In a ring of 16 rows: what is left of it is what the last 16 steps say."""
    serial_of: dict[int, int] = {}
    serials = 0
    rows: list[tuple[int, int, str]] = []  # serial, template, what
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS", 16)
        history = History()
        for number, (key, what) in enumerate(drawn):
            if number == restart:
                history = History.load(history.export())
            if what == "line":
                begins = key not in serial_of
                if begins:
                    serials += 1
                    serial_of[key] = serials
                line(history, serial_of[key], number, BEGINS | STARTS if begins else 0)
                rows.append((serial_of[key], number, "begins" if begins else "line"))
            elif key in serial_of:
                serial = serial_of.pop(key)
                close(history, serial, ENDS if what == "end" else SPLITS)
                rows.append((serial, -1, what))
        left = rows[-16:]
        found = history.closed_sessions()
    began = {serial for serial, _, what in left if what == "begins"}
    over = {serial: what for serial, _, what in left if what in ("end", "cut")}
    whole = sorted(began & over.keys())
    expected = [[number for serial, number, _ in left if serial == each and number >= 0] for each in whole]
    assert sessions_of(found) == expected
    assert found.ends.tolist() == [over[each] == "end" for each in whole]
    assert history.closed == len(over)
