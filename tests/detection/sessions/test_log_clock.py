import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detection.sessions.log_clock import AGREEING_LINES, AHEAD_SECONDS_ALLOWED, LogClock, from_the_future

RECEIVED = 1_790_000_000.0


def advanced(clock: LogClock, *times: float) -> list[float]:
    return list(clock.advance(np.array(times, dtype=np.float64), RECEIVED).tolist())


def test_the_clock_is_the_largest_time_seen_and_never_goes_back() -> None:
    assert advanced(LogClock(), 10, 12, 11, 15, -1e9) == [10, 12, 12, 15, 15]


def test_one_line_from_the_future_does_not_move_it() -> None:
    clock = LogClock()
    assert advanced(clock, 10, 1e9, 11) == [10, 10, 11]
    assert advanced(clock, *[1e9] * (AGREEING_LINES - 1), 12) == [11] * (AGREEING_LINES - 1) + [12]
    assert clock.now == 12


def test_twenty_lines_that_agree_do() -> None:
    clock = LogClock()
    advanced(clock, 10)
    jumped = advanced(clock, *[1e6 + i for i in range(AGREEING_LINES)])
    assert jumped[:-1] == [10] * (AGREEING_LINES - 1)
    assert jumped[-1] == 1e6 + AGREEING_LINES - 1


def test_a_log_of_a_few_lines_a_day_is_followed_and_one_wrong_year_in_it_is_not() -> None:
    clock, gap = LogClock(), 4 * 3600.0
    sparse = [1e9 + n * gap for n in range(200)]
    sparse[50] = 1.7e9
    lag = np.array(sparse) - np.array(advanced(clock, *sparse))
    assert np.delete(lag, 50).max() <= 2 * AGREEING_LINES * gap and clock.now >= sparse[-1] - AGREEING_LINES * gap
    assert lag[50] > 6e8


def test_lines_without_a_time_leave_it_where_it_is() -> None:
    assert advanced(LogClock(), 5, math.nan, 7, math.nan) == [5, 5, 7, 7]


def test_before_the_first_time_it_is_when_lines_were_received_and_that_gives_way_to_any_time_of_the_log() -> None:
    for first in (5.0, RECEIVED + 1e6):
        clock = LogClock()
        assert advanced(clock, math.nan, math.nan) == [RECEIVED, RECEIVED]
        assert advanced(clock, math.nan, first, math.nan) == [first] * 3
        assert advanced(clock, math.nan) == [first]


def test_a_time_of_any_zone_is_believed_and_one_further_ahead_is_not() -> None:
    ahead = RECEIVED + AHEAD_SECONDS_ALLOWED
    asked = np.array([ahead - 1, ahead, ahead + 1, 1e12, math.nan, 0.0])
    assert from_the_future(asked, RECEIVED).tolist() == [False, False, True, True, False, False]


times = st.one_of(st.just(math.nan), st.floats(0, 20_000), st.floats(0, 1e9))


@given(st.lists(times, max_size=120), st.lists(st.integers(1, 30), min_size=1))
def test_it_does_not_matter_how_lines_are_batched(lines: list[float], sizes: list[int]) -> None:
    whole, parts = LogClock(), LogClock()
    for clock in (whole, parts):
        advanced(clock, 1e4)  # before it the moment of receipt counts, which is one of a batch
    expected = advanced(whole, *lines)
    got: list[float] = []
    for size in sizes * len(lines):
        got += advanced(parts, *lines[len(got) : len(got) + size])
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_equal(parts.export(), whole.export())
    np.testing.assert_equal(LogClock.load(whole.export()).export(), whole.export())
