"""Which alerts are recorded in full, what stands for the others, and that nothing is missing or there twice."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.causes.fingerprints import NEW, RULE, WHAT_BYTES
from detection.columns.state_columns import digest
from detection.detector import Detector
from detection.frames import FlushFrame, Frame, LinesFrame, TickFrame
from detection.verdicts import counted_alerts
from detection.verdicts.counted_alerts import FULL_FIRST, MAX_CAUSES, MAX_RUNS, recorded_in_full
from detection.verdicts.incidents import WINDOW_SECONDS, Incidents
from tests.detection.journal import ATTACK, RECEIVED, Journal, segment, started

Id = tuple[int, int]


@dataclass(frozen=True)
class Alert:
    line: int
    k: int
    cause: int
    source: int = 0
    shape: int = 0
    time: float = 1000.0


class Stream:
    """Feeds alerts to a table, and keeps what is recorded of them: ids in full, and counting records."""

    def __init__(self, capacity: int = 4096) -> None:
        self.incidents = Incidents(capacity)
        self.capacity = capacity
        self.fed: list[Alert] = []
        self.full: list[Id] = []
        self.records: list[dict[str, Any]] = []

    def feed(self, alerts: Sequence[Alert]) -> None:
        self.fed += alerts
        grouped = self.incidents.assign(
            np.array([each.cause for each in alerts], dtype=np.uint64),
            np.array([each.source for each in alerts], dtype=np.uint64),
            np.full(len(alerts), NEW, dtype=np.uint8),
            np.zeros(len(alerts), dtype=np.bool_),
            np.array([each.time for each in alerts], dtype=np.float64),
            np.array([each.line for each in alerts], dtype=np.int64),
            np.array([each.k for each in alerts], dtype=np.int64),
            about=np.array([each.cause for each in alerts], dtype=np.int32),
            shapes=np.array([[each.shape, 0] for each in alerts], dtype=np.uint64).reshape(-1, 2),
            verdicts=np.full(len(alerts), 2, dtype=np.uint8),
            per_day=20.0,
            what=lambda row: f"cause {alerts[row].cause}",
        )
        self.full += [(alerts[row].line, alerts[row].k) for row in np.flatnonzero(grouped.in_full).tolist()]

    def end_frame(self, *, everything: bool = False) -> None:
        for counted in self.incidents.take_counts(np.nan, everything=everything):
            self.records.append(counted.record(f"{len(self.records)}", 0))

    def restart(self) -> None:
        self.incidents = Incidents.load(self.incidents.export(), self.capacity)

    def counted(self) -> list[tuple[Id, int]]:
        """Ids with their causes, of all counting records."""
        return [(one, int(group["cause"], 16)) for r in self.records for group in r["alerts"] for one in ids(group)]


def ids(group: dict[str, Any]) -> list[Id]:
    """What a reader makes of the field `ids`."""
    found: list[Id] = []
    for run in group["ids"].split(","):
        ends = re.fullmatch(r"(\d+)(?:\.(\d+))?(?:-(\d+)(?:\.(\d+))?)?", run)
        assert ends is not None, run
        line, k, last_line, last_k = (int(each) if each else 0 for each in ends.groups())
        if not last_line:
            found.append((line, k))
        elif k:
            assert line == last_line
            found += [(line, each) for each in range(k, last_k + 1)]
        else:
            found += [(each, 0) for each in range(line, last_line + 1)]
    return found


@st.composite
def alerts(draw: st.DrawFn) -> list[Alert]:
    """With ids that ascend: lines in a row or with gaps, and sessions that closed at a line."""
    found, line, k, time = [], 0, 0, 1000.0
    for _ in range(draw(st.integers(1, 150))):
        step = draw(st.sampled_from(["next", "next", "next", "gap", "closing"]))
        if step == "closing" and line:
            k += draw(st.integers(1, 2))
        else:
            line, k = line + (draw(st.integers(2, 9)) if step == "gap" else 1), 0
        time += draw(st.sampled_from([0.0, 1.0, 1.0, WINDOW_SECONDS]))
        cause, source = draw(st.integers(1, 4)), draw(st.integers(0, 3))
        found.append(Alert(line, k, cause, source, draw(st.integers(0, 1)), time))
    return found


@settings(max_examples=200, deadline=None)
@given(alerts(), st.lists(st.integers(1, 40), min_size=1), st.integers(2, 5))
def test_every_alert_is_in_exactly_one_record_or_count_and_the_sum_is_exact(
    stream: list[Alert], sizes: list[int], capacity: int
) -> None:
    table, at = Stream(capacity), 0
    while at < len(stream):
        size = sizes[at % len(sizes)]
        table.feed(stream[at : at + size])
        table.end_frame()
        table.restart()
        at += size
        under_way = sum(table.incidents.under_way((each.line, each.k)) is not None for each in table.fed)
        assert table.incidents.waiting == under_way
        found = table.incidents
        assert (found.recorded, found.counts) == (len(table.full), len(table.records))
        assert found.recorded + found.counted + found.waiting == len(table.fed)
        assert found.counted == sum(record["stands_for"] for record in table.records) == len(table.counted())
    table.end_frame(everything=True)
    assert table.incidents.waiting == 0
    causes = {(each.line, each.k): each.cause for each in stream}
    counted = table.counted()
    assert Counter(table.full) + Counter(one for one, _ in counted) == Counter(list(causes))
    assert all(causes[one] == cause for one, cause in counted)


@settings(max_examples=50, deadline=None)
@given(alerts(), st.integers(1, 40))
def test_how_alerts_are_cut_into_frames_changes_neither_the_state_nor_what_is_counted(
    stream: list[Alert], size: int
) -> None:
    whole, cut = Stream(3), Stream(3)
    whole.feed(stream)
    for start in range(0, len(stream), size):
        cut.feed(stream[start : start + size])
    assert digest(whole.incidents.export()) == digest(cut.incidents.export())
    assert whole.full == cut.full
    whole.end_frame()
    cut.end_frame()
    assert whole.records == cut.records


def test_a_count_that_an_eviction_forgot_would_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the above: the same sum without what keeps it."""

    def counted(table: Stream) -> int:
        for cause in range(1, 5):
            table.feed([Alert(100 * cause + n, 0, cause) for n in range(20)])
        table.end_frame(everything=True)
        return table.incidents.recorded + table.incidents.counted

    assert counted(Stream(capacity=2)) == 80
    end_count = Incidents._end_count_under_way

    def forgetful(table: Incidents, incident: Any) -> None:
        if (incident.line, incident.k) in table._table:
            end_count(table, incident)
        else:
            table._counting.pop((incident.line, incident.k), None)

    monkeypatch.setattr(Incidents, "_end_count_under_way", forgetful)
    assert counted(Stream(capacity=2)) == 60


def test_the_first_ten_and_the_powers_of_ten_are_recorded_in_full() -> None:
    numbers = np.arange(1, 100_001)
    assert numbers[recorded_in_full(numbers)].tolist() == [*range(1, 11), 100, 1000, 10_000, 100_000]


def test_a_count_ends_before_the_next_alert_in_full_and_says_what_it_stands_for() -> None:
    table = Stream()
    table.feed([Alert(line, 0, cause=7) for line in range(1, 100)])
    table.end_frame()
    assert table.records == [] and table.incidents.waiting == 89
    table.feed([Alert(100, 0, cause=7)])
    table.end_frame()
    [record] = table.records
    said = ("stands_for", "first_id", "last_id", "incident", "incident_count", "verdict", "cause_kind", "what")
    assert [record[name] for name in said] == [89, "11", "99", "1", 99, "anomaly", "new", "cause 7"]
    assert [group["ids"] for group in record["alerts"]] == ["11-99"]
    assert record["alerts"][0]["cause_shapes"] == ["0" * 16] * 2


def test_a_count_ends_when_its_incident_is_over() -> None:
    table = Stream()
    table.feed([Alert(line, 0, cause=1) for line in range(1, 20)])
    table.feed([Alert(20, 0, cause=2, time=1000.0 + WINDOW_SECONDS - 1)])
    table.end_frame()
    assert table.records == []
    table.feed([Alert(21, 0, cause=2, time=1000.0 + WINDOW_SECONDS)])
    table.end_frame()
    assert [record["stands_for"] for record in table.records] == [9]


def test_alternating_causes_of_one_source_are_one_count_that_knows_them_apart() -> None:
    table = Stream()
    table.feed([Alert(line, 0, cause=1 + line % 2, source=5) for line in range(1, 31)])
    table.end_frame(everything=True)
    [record] = table.records
    assert [len(ids(group)) for group in record["alerts"]] == [10, 10]


def test_a_counting_record_is_bounded_in_causes_runs_and_bytes() -> None:
    table = Stream()
    table.feed([Alert(2 * line, 0, cause=1) for line in range(10**17, 10**17 + 500)])
    table.feed([Alert(10**18 + line, 0, cause=line, source=3) for line in range(1, 200)])
    table.end_frame(everything=True)
    runs = [sum(len(group["ids"].split(",")) for group in record["alerts"]) for record in table.records]
    assert max(runs) == MAX_RUNS
    assert max(len(record["alerts"]) for record in table.records) == MAX_CAUSES
    worst = counted_alerts.CountUnderWay()
    for cause in range(MAX_CAUSES):
        group = counted_alerts.CountedGroup(cause, NEW, 2**31 - 1, 2**64 - 1, 2**64 - 1, 3, "\x01" * WHAT_BYTES)
        for run in range(MAX_RUNS // MAX_CAUSES):
            group.runs.append(((2**62 + 9 * run, 0), (2**62 + 9 * run + 5, 0)))
        worst.groups[group.key] = group
    record = counted_alerts.CountedRecord((2**62, 9), 1, NEW, "\x01" * WHAT_BYTES, True, worst).record(
        f"{2**62}.9.9", 9
    )
    assert len(msgspec.json.encode(record)) < 16_384


def flood(lines: int) -> LinesFrame:
    return LinesFrame(RECEIVED, (segment([ATTACK] * lines),))


def accounted(journal: Journal) -> bool:
    summary = journal.detector.summary()
    return summary.alerts_recorded + summary.alerts_counted + summary.alerts_waiting == summary.flagged


def test_what_is_recorded_of_a_flood_grows_with_its_logarithm_and_nothing_is_missing() -> None:
    journal = started()
    said = [journal.apply(flood(700)) for _ in range(3)]
    assert sum(each.alerts for each in said) == 2100 and accounted(journal)
    last = journal.apply(FlushFrame(RECEIVED))
    records = [record for each in (*said, last) for record in each.recorded()]
    assert len(records) == 10 + 2 + 3
    assert sum(record.get("stands_for", 1) for record in records) == journal.detector.summary().flagged
    assert (journal.detector.summary().alerts_waiting, journal.detector.summary().counting_records) == (0, 3)
    # The control: every flagged row is still there for whoever wants each.
    assert sum(len(each.flagged()) for each in said) == 2100


def test_a_replay_records_the_same_wherever_it_begins() -> None:
    journal = started()
    frames: list[Frame] = [flood(30), flood(90), TickFrame(RECEIVED + 60.0), flood(1000), FlushFrame(RECEIVED)]
    said = [journal.apply(frame).recorded() for frame in frames]
    for begin in range(1, len(frames)):
        before = Journal()
        for item in journal.items[: 1 + begin]:
            before.detector.apply(item)
        again = Detector.load(before.detector.export(), None)
        assert [again.apply(item).recorded() for item in journal.items[1 + begin :]] == said[begin:]


def test_ids_of_counting_records_are_behind_those_of_all_alerts_of_their_frame() -> None:
    journal = started()
    records = [record for size in (150, 900) for record in journal.apply(flood(size)).recorded()]
    counts = [record["id"] for record in records if "stands_for" in record]
    assert counts == ["150.0.1", "1050.0.2"]
    assert journal.apply(FlushFrame(RECEIVED)).recorded()[-1]["id"].endswith(".3")


def test_an_alert_in_the_count_under_way_can_be_asked_for() -> None:
    journal = started()
    journal.apply(flood(50))
    record = journal.detector.counting_record(37, 0)
    assert record is not None and (record["id"], record["first_id"], record["stands_for"]) == (None, "11", 40)
    assert [journal.detector.counting_record(*other) for other in ((5, 0), (37, 1), (51, 0))] == [None] * 3


@pytest.mark.parametrize("kind", [RULE, NEW])
def test_a_group_knows_lines_from_closings(kind: int) -> None:
    group = counted_alerts.CountedGroup(1, kind, 1, 0, 0, 3, "")
    for first, last in (((1, 0), (3, 0)), ((3, 1), (3, 4))):
        group.add(first, last, 3)
    assert group.as_dict()["ids"] == "1-3,3.1-3.4"
    assert [group.holds(one) for one in ((2, 0), (2, 1), (3, 4), (3, 5), (4, 0))] == [True, False, True, False, False]


def test_one_count_is_under_way_at_most_and_its_record_names_one_incident() -> None:
    table = Stream()
    table.feed([Alert(line, 0, cause=1 + line % 3) for line in range(1, 200)])
    table.end_frame(everything=True)
    assert len({record["incident"] for record in table.records}) == len(table.incidents)
    assert sorted(one for one, _ in table.counted()) == sorted({(a.line, a.k) for a in table.fed} - set(table.full))


assert FULL_FIRST == 10, "the tests above count on it"
