"""Incidents against a plain retelling of their rules, and the rules one by one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.causes.fingerprints import NEW, SOURCE, WHAT_BYTES
from detection.columns.state_columns import digest
from detection.verdicts import incidents as module
from detection.verdicts.incidents import DAY_SECONDS, WINDOW_SECONDS, GroupedAlerts, Incidents


@dataclass(frozen=True)
class Alert:
    cause: int
    source: int
    exempt: bool
    time: float


def an(cause: int, *, source: int = 0, time: float = 1000.0, exempt: bool = False) -> Alert:
    return Alert(cause, source, exempt, time)


def counted_as(alerts: int) -> Any:
    """Columns that only matter to what is counted (tests/detection/verdicts/test_counted_alerts.py)."""
    return {
        "about": np.ones(alerts, dtype=np.int32),
        "shapes": np.zeros((alerts, 2), dtype=np.uint64),
        "verdicts": np.full(alerts, 2, dtype=np.uint8),
    }


class Told:
    """Feeds alerts with ids "1", "2", ... and gives back what each was told: (incident, number, digest)."""

    def __init__(self, incidents: Incidents | None = None, per_day: float = 20.0) -> None:
        self.incidents = Incidents() if incidents is None else incidents
        self.per_day = per_day
        self.line = 0

    def __call__(self, *alerts: Alert) -> list[tuple[int, int, bool]]:
        grouped = self.assign(alerts)
        assert (grouped.opens == (grouped.count == 1)).all()
        rows = zip(grouped.first_line, grouped.count, grouped.digest, strict=True)
        return [(int(first), int(count), bool(waits)) for first, count, waits in rows]

    def assign(self, alerts: Sequence[Alert]) -> GroupedAlerts:
        first = self.line + 1
        self.line += len(alerts)
        return self.incidents.assign(
            np.array([each.cause for each in alerts], dtype=np.uint64),
            np.array([each.source for each in alerts], dtype=np.uint64),
            np.full(len(alerts), NEW, dtype=np.uint8),
            np.array([each.exempt for each in alerts], dtype=np.bool_),
            np.array([each.time for each in alerts], dtype=np.float64),
            np.arange(first, self.line + 1),
            np.zeros(len(alerts), dtype=np.int64),
            **counted_as(len(alerts)),
            per_day=self.per_day,
            what=lambda row: f"cause {alerts[row].cause}",
        )


def test_alerts_of_one_cause_are_one_incident_whose_count_grows() -> None:
    told = Told()
    assert told(an(1), an(1), an(2), an(1)) == [(1, 1, False), (1, 2, False), (3, 1, False), (1, 3, False)]
    assert told(an(2), an(1)) == [(3, 2, False), (1, 4, False)]


def test_the_source_comes_before_the_cause() -> None:
    told = Told()
    assert told(an(1, source=7), an(2, source=8)) == [(1, 1, False), (2, 1, False)]
    assert told(an(1, source=8), an(3, source=7)) == [(2, 2, False), (1, 2, False)]


def test_no_chains_an_alert_that_joins_brings_nothing_along() -> None:
    told = Told()
    told(an(1, source=7))
    assert told(an(1, source=8)) == [(1, 2, False)]  # by its cause
    assert told(an(2, source=8)) == [(3, 1, False)]  # its source was not taken up
    assert told(an(9, source=7)) == [(1, 3, False)]  # by its source
    assert told(an(9, source=5)) == [(5, 1, False)]  # nor was that one's cause


def test_when_the_clock_goes_back_incidents_and_budget_go_with_it() -> None:
    told = Told(per_day=1)
    told(an(1, time=1e9))
    told.incidents.bring_back_to_time(1000.0)
    again = 1000.0 + DAY_SECONDS
    assert told(an(1, time=1001.0), an(2, time=1002.0), an(1, time=again)) == [
        (1, 2, False),
        (3, 1, True),
        (4, 1, False),
    ]
    assert told.incidents.open_count(again + WINDOW_SECONDS) == 0


def test_alerts_without_a_source_are_not_of_one_source() -> None:
    assert Told()(an(1), an(2)) == [(1, 1, False), (2, 1, False)]


def test_an_incident_is_over_an_hour_of_log_time_after_its_last_alert() -> None:
    told = Told()
    almost = WINDOW_SECONDS - 0.5
    assert told(an(1, time=0.0), an(1, time=almost), an(1, time=2 * almost)) == [
        (1, 1, False), (1, 2, False), (1, 3, False),
    ]  # fmt: skip
    assert told.incidents.open_count() == 1
    assert told(an(1, time=2 * almost + WINDOW_SECONDS)) == [(4, 1, False)]
    assert told.incidents.open_count() == 1
    assert told.incidents.open_count(now=2 * almost + 2 * WINDOW_SECONDS) == 0


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, -5.0, 0.0])
def test_a_time_that_is_missing_or_goes_back_is_that_of_the_alert_before(odd: float) -> None:
    told = Told()
    told(an(1, time=10_000.0))
    assert told(an(1, time=odd), an(1, time=10_000.0 + WINDOW_SECONDS - 1)) == [(1, 2, False), (1, 3, False)]


def test_alerts_before_any_time_is_known_are_grouped_all_the_same() -> None:
    told = Told()
    assert told(an(1, time=math.nan), an(1, time=math.nan)) == [(1, 1, False), (1, 2, False)]


def test_incidents_beyond_the_budget_wait_in_the_digest_and_alerts_within_them_cost_nothing() -> None:
    told = Told(per_day=2)
    assert told(an(1), an(1), an(2), an(3), an(3), an(1)) == [
        (1, 1, False), (1, 2, False), (3, 1, False), (4, 1, True), (4, 2, True), (1, 3, False),
    ]  # fmt: skip
    assert (told.incidents.opened, told.incidents.digested) == (3, 1)


def test_the_budget_is_there_again_a_day_after_it_was_used_whatever_the_digest_held() -> None:
    told = Told(per_day=2)
    told(an(1, time=0.0), an(2, time=100.0), an(3, time=200.0), an(4, time=DAY_SECONDS - 1))
    assert told(an(5, time=DAY_SECONDS), an(6, time=DAY_SECONDS + 1)) == [(5, 1, False), (6, 1, True)]
    assert told(an(7, time=DAY_SECONDS + 100.0)) == [(7, 1, False)]


def test_half_an_incident_a_day_is_one_in_two_days() -> None:
    told = Told(per_day=0.5)
    times = [0.0, DAY_SECONDS, 2 * DAY_SECONDS - 1, 2 * DAY_SECONDS]
    assert [waits for _, _, waits in told(*(an(n, time=time) for n, time in enumerate(times, 1)))] == [
        False, True, True, False,
    ]  # fmt: skip


def test_without_a_limit_nothing_waits() -> None:
    told = Told(per_day=math.inf)
    assert not any(waits for _, _, waits in told(*(an(n) for n in range(1, 300))))


def test_a_rules_hit_is_shown_beyond_the_budget_and_uses_none_of_it() -> None:
    told = Told(per_day=1)
    assert told(an(1, exempt=True), an(2, exempt=True), an(3), an(4), an(5, exempt=True)) == [
        (1, 1, False), (2, 1, False), (3, 1, False), (4, 1, True), (5, 1, False),
    ]  # fmt: skip


def test_a_rules_hit_does_not_vanish_in_an_incident_of_the_digest() -> None:
    told = Told(per_day=1)
    assert told(an(1), an(2, source=7)) == [(1, 1, False), (2, 1, True)]
    assert told(an(3, source=7, exempt=True)) == [(3, 1, False)]
    assert told(an(4, source=7)) == [(3, 2, False)]  # what goes on of that source is seen from now on
    assert told(an(2)) == [(2, 2, True)]  # what the other one still goes by


def test_the_quietest_make_room_and_are_counted() -> None:
    told = Told(Incidents(capacity=3))
    told(an(1), an(2), an(3), an(1))
    assert told(an(4), an(1), an(3)) == [(5, 1, False), (1, 3, False), (3, 2, False)]
    assert (told.incidents.evicted, told.incidents.evicted_open, len(told.incidents)) == (1, 1, 3)
    told(an(9, time=1e6), an(2, time=1e6))
    assert (told.incidents.evicted, told.incidents.evicted_open, len(told.incidents)) == (3, 1, 3)


def test_the_listing_is_newest_first_with_samples_and_what_it_is_about() -> None:
    told = Told(per_day=1)
    told(an(1, time=10.0), *(an(1, time=20.0) for _ in range(8)), an(2, source=3, time=30.0))
    newest, oldest = told.incidents.listing(10)
    assert oldest == {
        "id": "1", "kind": "new", "cause": "0000000000000001", "what": "cause 1", "first_time": 10.0,
        "last_time": 20.0, "first_line": 1, "last_line": 9, "count": 9, "samples": ["1", "2", "3", "4", "9"],
        "digest": False, "open": True,
    }  # fmt: skip
    assert (newest["id"], newest["samples"], newest["digest"]) == ("10", ["10"], True)
    assert told.incidents.listing(1) == [newest]
    assert [one["open"] for one in told.incidents.listing(10, now=20.0 + WINDOW_SECONDS)] == [True, False]


def test_ids_of_closed_sessions_keep_their_number() -> None:
    incidents = Incidents()
    one = np.ones(2, dtype=np.uint64)
    grouped = incidents.assign(
        one, one, np.full(2, SOURCE, dtype=np.uint8), one > 1, np.zeros(2), np.array([5, 5]), np.array([2, 3]),
        **counted_as(2), per_day=20, what=lambda row: "x" * 500,
    )  # fmt: skip
    assert [grouped.fields(row) for row in (0, 1)] == [
        {"incident": "5.2", "incident_count": 1, "digest": False},
        {"incident": "5.2", "incident_count": 2, "digest": False},
    ]
    [only] = incidents.listing(10)
    assert (only["id"], only["samples"], len(only["what"])) == ("5.2", ["5.2", "5.3"], WHAT_BYTES)


def test_no_alerts_change_nothing() -> None:
    told = Told()
    before = digest(told.incidents.export())
    assert told() == [] and digest(told.incidents.export()) == before


def test_only_alerts_that_open_an_incident_are_asked_what_they_are() -> None:
    asked: list[int] = []

    def ask(row: int) -> str:
        asked.append(row)
        return "it"

    many = np.repeat(np.array([1, 2, 1], dtype=np.uint64), 1000)
    Incidents().assign(
        many, many * 0, np.ones(3000, dtype=np.uint8), many > 9, np.zeros(3000), np.arange(1, 3001),
        np.zeros(3000, dtype=np.int64), **counted_as(3000), per_day=20, what=ask,
    )  # fmt: skip
    assert asked == [0, 1000]


class Plain:
    """The rules, an alert at a time, without a bound and with nothing remembered but the alerts."""

    def __init__(self, per_day: float) -> None:
        self.per_day = per_day
        self.now = 0.0
        self.found: list[dict[str, float]] = []

    def __call__(self, line: int, alert: Alert) -> tuple[int, int, bool]:
        self.now = max(self.now, alert.time)
        for key, value in (("source", alert.source), ("cause", alert.cause)):
            latest = [one for one in self.found if value and one[key] == value][-1:]
            for one in latest:
                if self.now - one["last"] < WINDOW_SECONDS and not (alert.exempt and one["digest"]):
                    one["count"] += 1
                    one["last"] = self.now
                    return int(one["line"]), int(one["count"]), bool(one["digest"])
        shown = [
            one for one in self.found
            if not one["exempt"] and not one["digest"] and self.now - one["first"] < DAY_SECONDS
        ]  # fmt: skip
        opened = {
            "line": line, "cause": alert.cause, "source": alert.source, "exempt": alert.exempt, "count": 1,
            "first": self.now, "last": self.now, "digest": not alert.exempt and len(shown) >= self.per_day,
        }  # fmt: skip
        self.found.append(opened)
        return line, 1, bool(opened["digest"])


alerts = st.builds(
    Alert,
    cause=st.integers(1, 4),
    source=st.integers(0, 3),
    exempt=st.booleans(),
    time=st.sampled_from([0.0, 1.0, 1800.0, 3600.0, 3601.0, 7199.0, 20_000.0, 86_400.0, 90_000.0, 200_000.0]),
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(alerts, max_size=8), max_size=10), st.integers(1, 4), st.booleans())
def test_incidents_follow_the_rules_however_alerts_are_cut_and_however_often_it_restarts(
    batches: list[list[Alert]], per_day: int, restarts: bool
) -> None:
    told, plain, line = Told(per_day=per_day), Plain(per_day), 0
    for batch in batches:
        expected = [plain(line + number, alert) for number, alert in enumerate(batch, 1)]
        line += len(batch)
        assert told(*batch) == expected
        if restarts:
            told.incidents = Incidents.load(told.incidents.export())
    together = Told(per_day=per_day)
    together(*(alert for batch in batches for alert in batch))
    assert digest(together.incidents.export()) == digest(told.incidents.export())
    assert together.incidents.listing(100) == told.incidents.listing(100)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(alerts, max_size=8), max_size=12), st.integers(1, 3))
def test_a_small_table_stays_small_and_goes_on_after_a_restart_as_without(
    batches: list[list[Alert]], capacity: int
) -> None:
    lasting, restarted = Told(Incidents(capacity), per_day=2), Told(Incidents(capacity), per_day=2)
    for batch in batches:
        assert lasting(*batch) == restarted(*batch)
        state = restarted.incidents.export()
        restarted.incidents = Incidents.load(state, capacity)
        assert digest(restarted.incidents.export()) == digest(state) == digest(lasting.incidents.export())
        assert len(lasting.incidents) <= capacity


def test_the_budget_remembers_a_bounded_number_of_incidents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_BUDGET", 50)
    told = Told(per_day=40)
    waits = [waiting for _, _, waiting in told(*(an(n) for n in range(1, 101)))]
    assert waits == [False] * 40 + [True] * 60
    unlimited = Told(per_day=51)
    assert not any(waiting for _, _, waiting in unlimited(*(an(n) for n in range(1, 101))))
    assert len(unlimited.incidents.export()["shown"]) == 50  # type: ignore[arg-type]
