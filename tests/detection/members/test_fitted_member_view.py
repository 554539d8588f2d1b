"""What members see of sessions: against a plain reading, and the same bits however a session is cut into batches."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detection.members.fitted_member_view import CLOSING, Carry, Standing, View, view_of_whole_sessions
from tests.detection.streams import stream
from tests.detection.views import Growing, Line, Session, sessions, whole

NAMES = ("one", "other")
MUTED = (7, 400)

lines = st.builds(Line, st.integers(0, 500), st.floats(0, 40, width=32), st.booleans())
drawn_sessions = st.lists(st.builds(Session, st.lists(lines, max_size=30), ends=st.booleans()), min_size=1, max_size=6)
scores_drawn = st.lists(st.floats(0, 50, width=32), min_size=2 * 31 * 6, max_size=2 * 31 * 6)


def said(view: View, rows: NDArray[np.int64], scores: NDArray[np.float64]) -> Standing:
    standing = Standing(view, NAMES)
    for name, said_of_all in zip(NAMES, scores, strict=True):
        standing.put(name, said_of_all[rows])
    return standing


def in_piece(view: View, of: list[Session], done: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places of the rows of `view` when all sessions lie one after another, whole."""
    begin = np.concatenate(([0], np.cumsum([session.rows for session in of])[:-1])) + done
    sizes = np.diff(view.offsets)
    return np.arange(sizes.sum()) - np.repeat(view.offsets[:-1], sizes) + np.repeat(begin, sizes)


def table(numbers: list[float]) -> NDArray[np.float64]:
    return np.array(numbers).reshape(2, -1)


@given(drawn_sessions, scores_drawn)
@settings(max_examples=40, deadline=None)
def test_the_standing_of_sessions_is_that_of_a_plain_implementation(drawn: list[Session], numbers: list[float]) -> None:
    view, scores = whole(drawn, 2, MUTED), table(numbers)
    standing = said(view, np.arange(len(view)), scores)
    for s, session in enumerate(drawn):
        begin, stop = int(view.offsets[s]), int(view.offsets[s + 1])
        for row in range(begin, stop):
            seen = session.lines[: row + 1 - begin]
            elapsed = sum(line.gap for line in session.lines[1 : row + 1 - begin])
            assert standing.log_length[row] == np.log1p(len(seen))
            assert standing.error_share[row] == sum(line.error for line in seen) / len(seen)
            assert math.isclose(standing.rate[row], math.log1p(len(seen) / max(elapsed, 1.0)), rel_tol=1e-9)
            assert standing.muted[row] == sum(line.template in MUTED for line in seen)
            different = len({line.template for line in seen})
            assert min(different, 1) <= standing.distinct[row] <= min(different, 64)
            for column in (0, 1):
                assert standing.reached[row, column] == scores[column, begin : row + 1].max()


@pytest.mark.slow
@given(drawn_sessions, scores_drawn, st.data())
@settings(max_examples=40, deadline=None)
def test_a_session_in_batches_has_the_bits_of_one_in_one_go(
    drawn: list[Session], numbers: list[float], data: st.DataObject
) -> None:
    scores = table(numbers)
    at_once = whole(drawn, 2, MUTED)
    expected = said(at_once, np.arange(len(at_once)), scores)
    growing = Growing(drawn, 2, MUTED)
    done = np.zeros(len(drawn), dtype=np.int64)
    found = {name: np.full_like(getattr(expected, name), -1.0) for name in COLUMNS}
    muted, behind = np.ones(len(at_once), np.bool_), np.ones(len(at_once), np.bool_)
    for last in (False, False, True):
        cut = [data.draw(st.integers(0, session.rows)) for session in drawn]
        view = growing.see(None if last else cut)
        rows = in_piece(view, drawn, done)
        standing = said(view, rows, scores)
        for name, column in found.items():
            column[rows] = getattr(standing, name)
        muted[rows], behind[rows] = view.muted_rows(), view.behind_muted_rows()
        done += np.diff(view.offsets)
        growing.carry = standing.after()
    for name, column in found.items():
        np.testing.assert_array_equal(column, getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(muted, at_once.muted_rows())
    np.testing.assert_array_equal(behind, at_once.behind_muted_rows())
    np.testing.assert_array_equal(view.counts, at_once.counts)
    for name in Carry.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(growing.carry, name), getattr(expected.after(), name), err_msg=name)


COLUMNS = ("reached", "log_length", "distinct", "error_share", "rate", "muted")


def test_distinct_counts_different_templates_and_not_their_repetitions() -> None:
    standing = Standing(whole(sessions([3, 3, 3, 9, 9, 3])), [])
    assert standing.distinct.tolist() == [1, 1, 1, 2, 2, 2, 2]


def test_many_different_templates_fill_the_map_evenly() -> None:
    assert Standing(whole(sessions(range(40))), []).distinct[-1] >= 25


def test_a_session_without_rows_carries_on_unchanged() -> None:
    growing = Growing(sessions([1, 2, 3]), 2)
    view = growing.see([2])
    growing.carry = said(view, np.arange(2), np.ones((2, 2))).after()
    after = said(growing.see([0]), np.arange(0), np.ones((2, 2))).after()
    for name in Carry.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(after, name), getattr(growing.carry, name))


def test_counts_stop_at_255_and_ids_64_apart_share_one() -> None:
    view = whole(sessions([5] * 300 + [69, 6]))
    assert (view.counts[0, 5], view.counts[0, 6], view.counts.sum()) == (255, 1, 256)


def test_the_trainer_sees_whole_sessions_as_the_scorer_sees_pieces() -> None:
    templates = [[1, 2, 3], [4, 4], [9]]
    trained = view_of_whole_sessions(stream(templates, times=np.array([1.0, 2, 3, 1, 2, 1])), 2)
    scored = whole(sessions(*templates), 2)
    for name in View.__dataclass_fields__.keys() - {"carry"}:
        np.testing.assert_array_equal(getattr(trained, name), getattr(scored, name), err_msg=name)
    assert (trained.templates == CLOSING).sum() == 3
    assert trained.final_rows().tolist() == [3, 6, 8]


def test_the_chosen_rows_of_a_standing_are_a_copy_to_look_at() -> None:
    standing = said(whole(sessions([1, 2], [3]), 2), np.arange(5), np.arange(10.0).reshape(2, 5))
    some = standing.only(np.array([False, True, False, False, True]))
    np.testing.assert_array_equal(some.reached, standing.reached[[1, 4]])
    assert len(standing.reached) == 5 and len(some.rate) == 2
