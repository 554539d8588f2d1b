"""How many sessions a day: by the log's clock, of about the past week."""

import pytest

from detection.sessions.session_rate import SessionRate

HOUR, DAY = 3_600.0, 86_400.0


def test_sessions_are_counted_by_the_day_of_log_time() -> None:
    rate = SessionRate()
    for hour in range(49):
        rate.observe(5, hour * HOUR)
    assert rate.days == pytest.approx(2.0)
    assert rate.per_day() == pytest.approx(5 * 49 / 2)


def test_the_first_hour_counts_as_a_whole_one() -> None:
    rate = SessionRate()
    assert rate.per_day() == 0.0
    rate.observe(3, 1_000.0)
    rate.observe(4, 1_060.0)
    assert rate.per_day() == 7 * 24


def test_a_clock_that_goes_back_takes_no_time_away_and_the_next_hour_counts() -> None:
    rate = SessionRate()
    for now in (0.0, DAY, 0.0, HOUR):
        rate.observe(1, now)
    assert rate.days == pytest.approx(1 + 1 / 24)


def test_an_older_rate_fades_and_a_new_one_is_reached_within_weeks() -> None:
    rate = SessionRate()
    for hour in range(24 * 14):
        rate.observe(10, hour * HOUR)
    assert rate.per_day() == pytest.approx(240, rel=0.01) and rate.days <= 7.0
    for hour in range(24 * 14, 24 * 42):
        rate.observe(1, hour * HOUR)
    assert rate.per_day() == pytest.approx(24, rel=0.15)


def test_it_goes_on_after_a_restart_as_without_one() -> None:
    whole, before = SessionRate(), SessionRate()
    for hour in range(100):
        whole.observe(hour % 7, hour * HOUR)
    for hour in range(60):
        before.observe(hour % 7, hour * HOUR)
    after = SessionRate.load(before.export())
    for hour in range(60, 100):
        after.observe(hour % 7, hour * HOUR)
    assert after == whole
