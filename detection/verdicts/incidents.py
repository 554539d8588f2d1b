"""Incidents: alerts of one cause are reviewed together, as one incident, and the alarm budget counts incidents.

An alert joins the open incident with its source, else the one with its cause; where there is neither, it opens
one. An incident is open as long as its last alert is less than `WINDOW_SECONDS` of log time ago. Alerts join by the
source and the cause of the alert that opened it, and by nothing else: if an alert that joins by its cause added its
source, the next alerts of that source would add their causes, and a busy hour of unrelated alerts would soon be one
meaningless incident.

Of the incidents that open within a day, the first `per_day` are shown; those beyond wait in the digest: they are
recorded like any other, but not announced. An exempt alert (a rule's hit) is shown in any case and does not use up the
budget. It never joins an incident of the digest, where it would go unseen, but opens its own, which later alerts join
in place of the other.

Not every alert of an incident is recorded in full: `detection.verdicts.counted_alerts` defines which are, and what
stands for the others.

The table is bounded: the incidents quiet the longest make room. Columns of the state, a row an incident (k rows),
in the order of their last alerts:

    line, k             int64 [k]     id of the alert that opened it, which is the incident's id, too
    last_line, last_k   int64 [k]     id of its last alert
    first_time, last_time float64 [k] log time
    count               int64 [k]     its alerts
    kind                uint8 [k]     of its cause, see `detection.causes.fingerprints`
    cause, source       uint64 [k]    what it goes by; source 0: none
    by_cause, by_source bool [k]      whether it still does, or a later one took that over
    exempt, digest      bool [k]
    what                S160 [k]      its cause in words, UTF-8
    sample_line, sample_k int64 [k,4] its first alerts, 0 where there are fewer
    counted_causes      int64 [k]     the groups of its count under way, 0: there is none
    counted_number      int64 [k]     the number in the incident of the last alert in that count
    counted_time        float64 [k]   and its log time
    group_cause         uint64 [g]    the groups of all counts, in the order of their incidents
    group_kind, group_verdict uint8 [g]
    group_about         int32 [g]
    group_shape, group_open_shape uint64 [g]
    group_what          S160 [g]
    group_runs          int64 [g]     runs of ids in it
    runs                int64 [r,4]   line and k of the first and of the last id of each run
    shown               float64 [n]   log times at which incidents that use up the budget opened
    now                 float         the largest log time of an alert, 0 before the first
    opened, digested, evicted, evicted_open   int, since the state began
    recorded, counted, counts   int, since the state began: alerts in full, alerts in counting records, those records
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.causes.fingerprints import KINDS, WHAT_BYTES, cause_as_text, clipped_text
from detection.columns.state_columns import Columns, State, array_column, scalar_column
from detection.verdicts.counted_alerts import (
    AlertColumns,
    CountedGroup,
    CountedRecord,
    CountUnderWay,
    Id,
    alert_id,
    recorded_in_full,
)

CAPACITY = 4096
WINDOW_SECONDS = 6 * 3600.0
SAMPLES = 4  # the first ones; a listing adds the last
DAY_SECONDS = 86_400.0
# A budget of more incidents a day than this is none.
LARGEST_BUDGET = 1 << 16


@dataclass(frozen=True, slots=True)
class GroupedAlerts:
    """For each alert [m]: the incident it belongs to, and its number in it (from 1)."""

    first_line: NDArray[np.int64]
    first_k: NDArray[np.int64]
    count: NDArray[np.int64]
    opens: NDArray[np.bool_]
    digest: NDArray[np.bool_]

    @property
    def in_full(self) -> NDArray[np.bool_]:
        """Which of them get a record of their own."""
        return recorded_in_full(self.count)

    def fields(self, row: int) -> dict[str, Any]:
        """The fields about its incident in the record of alert `row`; the alert opens it when their ids are equal."""
        return {
            "incident": alert_id(int(self.first_line[row]), int(self.first_k[row])),
            "incident_count": int(self.count[row]),
            "digest": bool(self.digest[row]),
        }


@dataclass(slots=True)
class _Incident:
    line: int
    k: int
    kind: int
    cause: int
    source: int
    exempt: bool
    digest: bool
    what: str
    first_time: float
    last_time: float
    last_line: int
    last_k: int
    count: int = 0
    by_cause: bool = True
    by_source: bool = True
    samples: list[tuple[int, int]] = field(default_factory=list)
    counting: CountUnderWay | None = None


class Incidents:
    """The recent incidents, and what is left of the budget. `opened`, `digested` (of those), `evicted` and
    `evicted_open` (of those: their next alert opens another one) count since the state began; so do the alerts
    `recorded` in full, those `counted` in counting records, and those records, `counts`. `waiting` are the
    alerts in counts under way."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.opened = self.digested = self.evicted = self.evicted_open = 0
        self.recorded = self.counted = self.counts = 0
        self.waiting = 0
        self._capacity = capacity
        self._now = 0.0
        self._table: dict[tuple[int, int], _Incident] = {}  # in the order of their last alerts
        self._by_cause: dict[int, _Incident] = {}
        self._by_source: dict[int, _Incident] = {}
        # Those with a count under way, in the order of their last alerts.
        self._counting: dict[tuple[int, int], _Incident] = {}
        self._ended: list[CountedRecord] = []
        self._shown: deque[float] = deque(maxlen=LARGEST_BUDGET)

    def __len__(self) -> int:
        return len(self._table)

    def assign(
        self,
        causes: NDArray[np.uint64],
        sources: NDArray[np.uint64],
        kinds: NDArray[np.uint8],
        exempt: NDArray[np.bool_],
        times: NDArray[np.float64],
        lines: NDArray[np.int64],
        ks: NDArray[np.int64],
        *,
        about: NDArray[np.int32],
        shapes: NDArray[np.uint64],
        verdicts: NDArray[np.uint8],
        per_day: float,
        what: Callable[[int], str],
    ) -> GroupedAlerts:
        """Put alerts, in the order of their ids (`lines`, `ks`), into incidents; all columns [m], `shapes` [m, 2].

        `sources` 0 is no source. A time that is missing or goes back counts as the one before. `what(row)` is
        called for the alerts that open an incident or bring a count a cause that is not the incident's, and for no
        other. How alerts are cut into calls does not matter. Costs a few microseconds a run of alerts with equal keys
        and ids that follow each other, whatever its length. Afterwards `take_counts` has to be called.
        """
        clock = self._non_decreasing_times(times)
        heads = _heads_of_runs(causes, sources, exempt, clock)
        lengths = np.diff(heads, append=len(causes))
        columns = (causes, sources, exempt, clock, lines, ks)
        first: list[tuple[int, int, int, bool, bool]] = []
        alerts = AlertColumns(lines, ks, about, shapes, verdicts)
        runs = alerts.heads()
        for head, length, cause, source, is_exempt, time, line, k in zip(
            heads.tolist(), lengths.tolist(), *(column[heads].tolist() for column in columns), strict=True
        ):
            incident = self._find_open_incident(cause, source, is_exempt, time)
            opens = incident is None
            if incident is None:
                incident = self._open_incident(
                    _Incident(
                        line=line,
                        k=k,
                        kind=int(kinds[head]),
                        cause=cause,
                        source=source,
                        exempt=is_exempt,
                        digest=not is_exempt and not self._within_budget(per_day, time),
                        what=clipped_text(what(head)),
                        first_time=time,
                        last_time=time,
                        last_line=line,
                        last_k=k,
                    )
                )
            first.append((incident.line, incident.k, incident.count, opens, incident.digest))
            through = head + length
            within = runs[np.searchsorted(runs, head, side="right") : np.searchsorted(runs, through)].tolist()
            self._thin_alerts(incident, alerts, clock, [head, *within, through], cause, int(kinds[head]), what)
            self._count_alerts(incident, lines[head:through], ks[head:through], float(clock[through - 1]))
        return _grouped_alerts(first, heads, lengths)

    def take_counts(self, now: float, *, everything: bool = False) -> list[CountedRecord]:
        """The counts that ended since the last call, in that order; those of incidents that are over at log time `now`
        end here, with `everything` all of them."""
        limit = (self._now if math.isnan(now) else now) - WINDOW_SECONDS
        while self._counting:
            quietest = next(iter(self._counting.values()))
            if not everything and quietest.last_time > limit:
                break
            self._end_count_under_way(quietest)
        ended, self._ended = self._ended, []
        return ended

    def under_way(self, alert: Id) -> CountedRecord | None:
        """The count under way that has this alert."""
        for incident in self._counting.values():
            if _count_under_way(incident).group_of(alert) is not None:
                return _counted_alerts(incident)
        return None

    def bring_back_to_time(self, to: float) -> None:
        """The clock goes back `to` a time: later times in the table become that time, so that neither incidents nor the
        day of the budget last until the old time comes again."""
        self._now = min(self._now, to)
        for incident in self._table.values():
            incident.first_time, incident.last_time = min(incident.first_time, to), min(incident.last_time, to)
        self._shown = deque((min(time, to) for time in self._shown), maxlen=LARGEST_BUDGET)

    def open_count(self, now: float | None = None) -> int:
        """How many are open at log time `now`, by default that of the last alert."""
        return sum(1 for _ in self._open_incidents(now))

    def listing(self, limit: int, now: float | None = None) -> list[dict[str, Any]]:
        """The last `limit` incidents as the API gives them, newest first by their first alert."""
        is_open = {(incident.line, incident.k) for incident in self._open_incidents(now)}
        newest = sorted(self._table, reverse=True)[:limit]
        return [_incident_as_listed(self._table[key], key in is_open) for key in newest]

    def _open_incidents(self, now: float | None) -> Iterator[_Incident]:
        """The incidents that are open at log time `now`, the latest first."""
        limit = (self._now if now is None or math.isnan(now) else now) - WINDOW_SECONDS
        for incident in reversed(self._table.values()):
            if incident.last_time <= limit:
                return
            yield incident

    def _non_decreasing_times(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """`times` made to never go back, in this batch and behind the one before."""
        known = np.where(np.isfinite(times), times, self._now)
        clock: NDArray[np.float64] = np.maximum(np.maximum.accumulate(known), self._now)
        if len(clock):
            self._now = float(clock[-1])
        return clock

    def _find_open_incident(self, cause: int, source: int, exempt: bool, time: float) -> _Incident | None:
        horizon = time - WINDOW_SECONDS
        by_source = self._by_source.get(source) if source else None
        for incident in (by_source, self._by_cause.get(cause)):
            if incident is not None and incident.last_time > horizon and not (exempt and incident.digest):
                return incident
        return None

    def _within_budget(self, per_day: float, time: float) -> bool:
        """Whether one more may be shown; half a one a day is one in two days."""
        if per_day > LARGEST_BUDGET:
            return True
        whole = max(int(per_day), 1)
        return len(self._shown) < whole or self._shown[-whole] <= time - DAY_SECONDS * whole / per_day

    def _open_incident(self, incident: _Incident) -> _Incident:
        """Take a new incident into the table; the one that was silent longest is evicted if the table is full."""
        if len(self._table) >= self._capacity:
            self._evict_incident(incident.first_time)
        self.opened += 1
        self.digested += incident.digest
        if not incident.digest and not incident.exempt:
            self._shown.append(incident.first_time)
        if (before := self._by_cause.get(incident.cause)) is not None:
            before.by_cause = False
        self._by_cause[incident.cause] = incident
        incident.by_source = incident.source != 0
        if incident.by_source:
            if (before := self._by_source.get(incident.source)) is not None:
                before.by_source = False
            self._by_source[incident.source] = incident
        return incident

    def _evict_incident(self, time: float) -> None:
        quiet = self._table.pop(next(iter(self._table)))
        self._end_count_under_way(quiet)
        self.evicted += 1
        self.evicted_open += quiet.last_time > time - WINDOW_SECONDS
        if quiet.by_cause:
            del self._by_cause[quiet.cause]
        if quiet.by_source:
            del self._by_source[quiet.source]

    def _thin_alerts(
        self,
        incident: _Incident,
        alerts: AlertColumns,
        clock: NDArray[np.float64],
        runs: list[int],
        cause: int,
        kind: int,
        what: Callable[[int], str],
    ) -> None:
        """Record or count the alerts of `incident` from row `runs[0]` up to `runs[-1]`; `runs` are where runs begin."""
        begin, end, before = runs[0], runs[-1], incident.count
        full = begin + np.flatnonzero(recorded_in_full(np.arange(before + 1, before + end - begin + 1)))
        bounds = sorted({*runs, *full.tolist(), *(row + 1 for row in full.tolist())})
        written = set(full.tolist())
        for head, through in pairwise(bounds):
            if head in written:
                self._end_count_under_way(incident)
                self.recorded += 1
                continue
            first, last = alerts.id(head), alerts.id(through - 1)
            shape, open_shape = alerts.shapes[head].tolist()
            key = (cause, int(alerts.about[head]), shape, open_shape)
            if incident.counting is not None and not incident.counting.takes(key, first):
                self._end_count_under_way(incident)
            if incident.counting is None:
                incident.counting = CountUnderWay()
            self._counting.pop((incident.line, incident.k), None)
            self._counting[incident.line, incident.k] = incident
            count, verdict = incident.counting, int(alerts.verdicts[head])
            group = count.groups.get(key)
            if group is None:
                words = incident.what if cause == incident.cause else clipped_text(what(head))
                group = count.groups[key] = CountedGroup(cause, kind, key[1], shape, open_shape, verdict, words)
            group.add(first, last, verdict)
            self.waiting += through - head
            count.number, count.time = before + through - begin, float(clock[through - 1])

    def _end_count_under_way(self, incident: _Incident) -> None:
        if incident.counting is None:
            return
        del self._counting[incident.line, incident.k]
        self._ended.append(_counted_alerts(incident))
        self.counts += 1
        alerts = incident.counting.alerts()
        self.counted += alerts
        self.waiting -= alerts
        incident.counting = None

    def _count_alerts(self, incident: _Incident, lines: NDArray[np.int64], ks: NDArray[np.int64], time: float) -> None:
        """Count a run of alerts, the last of them at `time`."""
        room = SAMPLES - len(incident.samples)
        if room > 0:
            incident.samples += zip(lines[:room].tolist(), ks[:room].tolist(), strict=True)
        incident.count += len(lines)
        incident.last_time, incident.last_line, incident.last_k = time, int(lines[-1]), int(ks[-1])
        key = incident.line, incident.k
        self._table.pop(key, None)
        self._table[key] = incident  # behind all others

    # --- the state as columns -----------------------------------------------------------------------

    def export(self) -> State:
        rows = list(self._table.values())
        state: State = {name: np.array([getattr(row, name) for row in rows], dtype=_COLUMNS[name]) for name in _COLUMNS}
        state["what"] = np.array([row.what.encode() for row in rows], dtype=f"S{WHAT_BYTES}")
        samples = np.zeros((len(rows), SAMPLES, 2), dtype=np.int64)
        for number, row in enumerate(rows):
            samples[number, : len(row.samples)] = row.samples
        state["sample_line"], state["sample_k"] = samples[:, :, 0].copy(), samples[:, :, 1].copy()
        counts = [row.counting or CountUnderWay() for row in rows]
        state["counted_causes"] = np.array([len(count.groups) for count in counts], dtype=np.int64)
        state["counted_number"] = np.array([count.number for count in counts], dtype=np.int64)
        state["counted_time"] = np.array([count.time for count in counts], dtype=np.float64)
        groups = [group for count in counts for group in count.groups.values()]
        for name, kind in _GROUP_COLUMNS.items():
            state[f"group_{name}"] = np.array([getattr(group, name) for group in groups], dtype=kind)
        state["group_what"] = np.array([group.what.encode() for group in groups], dtype=f"S{WHAT_BYTES}")
        state["group_runs"] = np.array([len(group.runs) for group in groups], dtype=np.int64)
        runs = [(*first, *last) for group in groups for first, last in group.runs]
        state["runs"] = np.array(runs, dtype=np.int64).reshape(-1, 4)
        state["shown"] = np.array(self._shown, dtype=np.float64)
        state["now"] = self._now
        return {**state, **{name: getattr(self, name) for name in _COUNTERS}}

    @classmethod
    def load(cls, columns: Columns, capacity: int = CAPACITY) -> "Incidents":
        incidents = cls(capacity)
        lists = {name: array_column(columns, name).tolist() for name in (*_COLUMNS, "what", "sample_line", "sample_k")}
        counts = _loaded_counts(columns)
        for number, what in enumerate(lists["what"]):
            incident = _Incident(**{name: lists[name][number] for name in _COLUMNS}, what=what.decode())
            samples = zip(lists["sample_line"][number], lists["sample_k"][number], strict=True)
            incident.samples = [each for each in samples if each != (0, 0)]
            incidents._table[incident.line, incident.k] = incident
            if (count := counts[number]) is not None:
                incident.counting = count
                incidents.waiting += count.alerts()
                incidents._counting[incident.line, incident.k] = incident
            if incident.by_cause:
                incidents._by_cause[incident.cause] = incident
            if incident.by_source:
                incidents._by_source[incident.source] = incident
        incidents._shown.extend(array_column(columns, "shown").tolist())
        incidents._now = scalar_column(columns, "now", float)
        for name in _COUNTERS:
            setattr(incidents, name, scalar_column(columns, name, int))
        return incidents


_COUNTERS = ("opened", "digested", "evicted", "evicted_open", "recorded", "counted", "counts")
_GROUP_COLUMNS = {
    "cause": np.uint64,
    "kind": np.uint8,
    "about": np.int32,
    **dict.fromkeys(("shape", "open_shape"), np.uint64),
    "verdict": np.uint8,
}
_COLUMNS = {
    **dict.fromkeys(("line", "k", "last_line", "last_k", "count"), np.int64),
    **dict.fromkeys(("first_time", "last_time"), np.float64),
    "kind": np.uint8,
    **dict.fromkeys(("cause", "source"), np.uint64),
    **dict.fromkeys(("by_cause", "by_source", "exempt", "digest"), np.bool_),
}


def _loaded_counts(columns: Columns) -> list[CountUnderWay | None]:
    """The count under way of each incident, None where there is none."""
    kept = {name: array_column(columns, f"group_{name}").tolist() for name in (*_GROUP_COLUMNS, "what", "runs")}
    runs = iter(((a, b), (c, d)) for a, b, c, d in array_column(columns, "runs").tolist())
    groups = iter(
        CountedGroup(
            **{name: kept[name][number] for name in _GROUP_COLUMNS},
            what=what.decode(),
            runs=list(islice(runs, kept["runs"][number])),
        )
        for number, what in enumerate(kept["what"])
    )
    per_incident = zip(
        *(array_column(columns, f"counted_{name}").tolist() for name in ("causes", "number", "time")), strict=True
    )
    return [
        CountUnderWay({group.key: group for group in islice(groups, causes)}, number, time) if causes else None
        for causes, number, time in per_incident
    ]


def _count_under_way(incident: _Incident) -> CountUnderWay:
    assert incident.counting is not None, "it is among those that have one"
    return incident.counting


def _counted_alerts(incident: _Incident) -> CountedRecord:
    about = (incident.line, incident.k), incident.cause, incident.kind, incident.what, incident.digest
    return CountedRecord(*about, _count_under_way(incident))


def _heads_of_runs(
    causes: NDArray[np.uint64], sources: NDArray[np.uint64], exempt: NDArray[np.bool_], clock: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Where runs begin that go into one incident whatever the table holds: equal keys, no silence within."""
    begins = np.ones(len(causes), dtype=np.bool_)
    begins[1:] = (causes[1:] != causes[:-1]) | (sources[1:] != sources[:-1]) | (exempt[1:] != exempt[:-1])
    begins[1:] |= clock[:-1] <= clock[1:] - WINDOW_SECONDS
    return np.flatnonzero(begins)


def _grouped_alerts(
    first: list[tuple[int, int, int, bool, bool]], heads: NDArray[np.int64], lengths: NDArray[np.int64]
) -> GroupedAlerts:
    """`first`: id of the incident, its alerts before, whether it opens, its digest; for the first of each run."""
    rows = np.array(first, dtype=np.int64).reshape(-1, 5)
    line, k, before, opens, digest = (np.repeat(rows[:, column], lengths) for column in range(5))
    rank = np.arange(len(line)) - np.repeat(heads, lengths)
    return GroupedAlerts(line, k, before + rank + 1, (opens > 0) & (rank == 0), digest > 0)


def _incident_as_listed(incident: _Incident, is_open: bool) -> dict[str, Any]:
    return {
        "id": alert_id(incident.line, incident.k),
        "kind": KINDS[incident.kind],
        "cause": cause_as_text(incident.cause),
        "what": incident.what,
        "first_time": incident.first_time,
        "last_time": incident.last_time,
        "first_line": incident.line,
        "last_line": incident.last_line,
        "count": incident.count,
        "samples": _sample_alert_ids(incident),
        "digest": incident.digest,
        "open": is_open,
    }


def _sample_alert_ids(incident: _Incident) -> list[str]:
    last = incident.last_line, incident.last_k
    return [alert_id(*each) for each in (*incident.samples, *([last] if last not in incident.samples else []))]
