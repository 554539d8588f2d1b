"""The activity of each source, counted over log time: detects scans, floods and brute force.

A rule sees one line of a scan; counts by address see all of it. A *source* is here the client that a line names
(`line_features.sources_of`). For each source we count lines, failures and distinct requested resources in a sliding
minute and in the half-hour, and the failures beyond the usual share in the half-hour and in the day:

    minute      the count in this minute + the count in the last one * the rest of this one, as rate limiters do;
                distinct resources over both
    half-hour   from one full half-hour of the clock to the next
    day         from midnight to midnight, UTC: only the failures beyond the usual share of lines
    distinct    estimated from a bitmap of 64 hashed resources

`background` says how unusual each counter's value is among the sources of this stream, in nats. What the source's own
past explains is subtracted: the nats of its *record* (its highest bin so far), times k/(k+12) after k half-hours. So a
proxy, a crawler or a backup becomes unusual only beyond its own past, and one half-hour of an attack does not excuse
the next. The record sinks by a bin every eighth half-hour. It does not explain the share of failures, or a source that
turns bad slowly would be excused by its own yesterday: a proxy may have many failures, but most of its lines succeed.

Nor does it explain the day, which finds a source that does little in each half-hour but never stops. Once unusual, a
day stays so until midnight, which would make each further session of the source unusual; so it counts only at a line
at which it has grown by half an octave. Then

    score = highest of the four counters of failures + half the highest of the four of lines and resources

Failures have full weight and activity half, because busy clients are many. The two are added, because a busy client
seldom fails and a failing one is seldom busy. The score is 0 for usual activity; it is not a log probability.

Counts are integers, and samples enter the background only after every 1,024th line of the stream, when the sources
that have been silent longest are evicted, too. So a score does not depend on how the stream was cut into batches.

State: a column for each of `_COLUMNS`, one row a source, the longest silent first; `background.*`; `line`, `evicted`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.columns.state_columns import Columns, State, array_column, columns_under, scalar_column, with_prefix
from detection.members.origins.background import COUNTERS, DAY, SHARE, Background
from detection.members.origins.batch_counting import (
    DAY_MINUTES,
    LONGEST_PAST,
    MINUTE_SECONDS,
    MINUTES,
    Counted,
    LinesToCount,
    Rows,
    bins_sunk,
    count_lines_of_sources,
)

CAPACITY = 1 << 14
BLOCK_LINES = 1024
KEY_BYTES = 24
_ROOM = 2 * BLOCK_LINES  # slots that are free after an eviction; a block needs BLOCK_LINES at most
_TRUST_SAMPLES = 12.0  # a quarter of a day's half-hours
_FAILING, _BUSY = (1, 4, SHARE, DAY), (0, 2, 3, 5)  # among COUNTERS
_BUSY_WEIGHT = 0.5
_EXCUSED = np.arange(DAY) != SHARE

_COLUMNS: dict[str, tuple[str, int]] = {
    "key": (f"S{KEY_BYTES}", 1),
    "last_line": ("<i8", 1),
    "minute": ("<i4", 1),  # since the epoch, of the last line
    "lines": ("<i4", 2),  # in it, and in the one before
    "failures": ("<i4", 2),
    "things": ("<u8", 2),
    "long_lines": ("<i4", 1),  # 0: the half-hour is over and was taken as a sample
    "long_failures": ("<i4", 1),
    "long_things": ("<u8", 1),
    "peak": ("u1", DAY),  # the highest bins of this half-hour
    "record": ("u1", DAY),  # ... and of those before
    "given": ("<u2", 1),  # how many half-hours were taken as samples, at most LONGEST_PAST
    "day_lines": ("<i4", 1),  # 0: the day is over and was taken as a sample
    "day_failures": ("<i4", 1),
    "day_peak": ("u1", 1),
    "days": ("<u2", 1),  # as `given`
}


@dataclass(frozen=True, slots=True)
class Standout:
    """One counter of a source: its value; what all but 1 % of samples stay below (of the share of failures: the mean);
    and how unusual the value is in nats, less what the source's own past explains."""

    name: str
    value: float
    usual: float
    nats: float


class SourceCounters:
    """The counters of the most recent sources, at most 16,384, and their background. Not thread-safe."""

    def __init__(self) -> None:
        self._column = _zero_counters(CAPACITY)
        self._slots: dict[bytes, int] = {}
        self._free = list(range(CAPACITY - 1, -1, -1))
        self._background = Background()
        self._line = 0  # lines observed, those without a source too
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._slots)

    def observe(
        self,
        sources: Sequence[bytes],
        clock: NDArray[np.float64],
        failures: NDArray[np.bool_],
        resources: NDArray[np.uint64],
    ) -> NDArray[np.float64]:
        """Count n lines. Returns the score of each line's source after it: float64 [n]; 0.0 where the source is b"".

        `clock` is the log clock at each line, in seconds; `failures` are the lines that report one; `resources` are
        hashes of the requested resources. If the clock goes back, a new minute begins.
        """
        n = len(sources)
        nats = np.zeros(n)
        lines = LinesToCount.of(clock, failures, resources)
        start = 0
        while start < n:
            stop = min(n, start + BLOCK_LINES - self._line % BLOCK_LINES)
            named = [i for i in range(start, stop) if sources[i]]
            if named:
                slots = self._slots_of([sources[i] for i in named], lines.minute[named])
                order = np.argsort(slots, kind="stable")
                at = np.array(named, dtype=np.int64)[order]
                nats[at] = self._count_lines_by_slot(slots[order], lines[at], self._line + at - start)
            self._line += stop - start
            start = stop
            if self._line % BLOCK_LINES == 0:
                self._end_block(int(lines.minute[stop - 1]))
        return nats

    def peek(
        self,
        sources: Sequence[bytes],
        clock: NDArray[np.float64],
        failures: NDArray[np.bool_],
        resources: NDArray[np.uint64],
    ) -> NDArray[np.float64]:
        """The score that `observe` would give each of n lines as the next line: float64 [n]. Changes nothing."""
        nats = np.zeros(len(sources))
        named = [i for i, source in enumerate(sources) if source]
        if named:
            lines = LinesToCount.of(clock, failures, resources)[np.array(named)]
            nats[named] = _combined_counter_score(
                self._surprises_where_grown(self._count_each_line_alone([sources[i] for i in named], lines))
            )
        return nats

    def explain(self, source: bytes, clock: float | None = None) -> list[Standout]:
        """The counters of `source` at `clock`, by default in the minute of its last line; the most unusual first.

        Empty if the source is not in the table.
        """
        slot = self._slots.get(_bounded_source_name(source))
        if slot is None:
            return []
        if clock is None:
            clock = float(self._column["minute"][slot]) * MINUTE_SECONDS
        counted = self._count_each_line_alone([source], LinesToCount.silence(clock))
        columns = (counted.values[0].tolist(), self._background.usual(), self._counter_surprises(counted)[0].tolist())
        found = [Standout(name, *each) for name, *each in zip(COUNTERS, *columns, strict=True)]
        return sorted(found, key=lambda each: -each.nats)

    def _slots_of(self, sources: list[bytes], minutes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The slot of each source; a new one gets a free slot, whose columns are all zero."""
        table = self._slots
        found = [table.get(source, -1) for source in sources]
        if -1 in found:
            for i, slot in enumerate(found):
                if slot < 0:
                    found[i] = self._slot_of(_bounded_source_name(sources[i]), int(minutes[i]))
        return np.array(found, dtype=np.int64)

    def _slot_of(self, key: bytes, minute: int) -> int:
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = self._free.pop()
            self._column["key"][slot] = key
            self._column["minute"][slot] = minute
        return slot

    def _count_lines_by_slot(
        self, slots: NDArray[np.int64], lines: LinesToCount, numbers: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Count lines, which are sorted by slot, and return the score of each line's source after it: float64 [n]."""
        first = np.flatnonzero(np.concatenate(([True], slots[1:] != slots[:-1])))
        offsets = np.append(first, len(slots))
        slot = slots[first]
        held = {name: column[slot] for name, column in self._column.items()}
        counted = count_lines_of_sources(held, offsets, lines, self._background.share)
        for name, values in counted.after.items():
            self._column[name][slot] = values
        self._column["last_line"][slot] = numbers[offsets[1:] - 1]
        self._background.sample_half_hours(*counted.closed)
        self._background.sample_days(*counted.closed_days)
        return _combined_counter_score(self._surprises_where_grown(counted))

    def _count_each_line_alone(self, sources: Sequence[bytes], lines: LinesToCount) -> Counted:
        """Each line counted alone on top of its source's counters, or of zeros if it is not in the table."""
        slots = np.array([self._slots.get(_bounded_source_name(source), -1) for source in sources], dtype=np.int64)
        held = {name: column[slots] for name, column in self._column.items()}
        unknown = slots < 0
        for column in held.values():
            column[unknown] = np.zeros(1, dtype=column.dtype)
        held["minute"][unknown] = lines.minute[unknown]
        return count_lines_of_sources(held, np.arange(len(sources) + 1), lines, self._background.share)

    def _counter_surprises(self, counted: Counted) -> NDArray[np.float64]:
        """How unusual each counter is after each line, less what the past explains: float64 [n, counters], in nats."""
        nats, counter = self._background.nats, np.arange(len(COUNTERS))
        beyond: NDArray[np.float64] = nats[counter, counted.bins]
        trust = (counted.given / (counted.given + _TRUST_SAMPLES))[:, None]
        own = nats[counter[:DAY], np.minimum(counted.bins[:, :DAY], counted.record)] * _EXCUSED
        beyond[:, :DAY] -= trust * own
        return beyond

    def _surprises_where_grown(self, counted: Counted) -> NDArray[np.float64]:
        """The same, but the day counts only at lines at which it has grown: float64 [n, counters]."""
        nats = self._counter_surprises(counted)
        nats[~counted.raised, DAY] = 0.0
        return nats

    def _end_block(self, minute: int) -> None:
        """End a block of lines: close the half-hours and days that are over, evict sources, let the samples count."""
        column = self._column
        over = (column["long_lines"] > 0) & (column["minute"] // MINUTES != minute // MINUTES)
        self._close_half_hours(np.flatnonzero(over))
        over = (column["day_lines"] > 0) & (column["minute"] // DAY_MINUTES != minute // DAY_MINUTES)
        self._close_days(np.flatnonzero(over))
        crowded = len(self._slots) + _ROOM - CAPACITY
        if crowded > 0:
            self._evict_silent_sources(crowded)
        self._background.take_up_samples()

    def _close_half_hours(self, slots: NDArray[np.int64]) -> None:
        """Take the half-hours of these sources as samples, and begin new ones."""
        column = self._column
        peak, given = column["peak"][slots], column["given"][slots].astype(np.int64)
        self._background.sample_half_hours(peak, given, column["long_failures"][slots], column["long_lines"][slots])
        record = column["record"][slots].astype(np.int64) - (bins_sunk(given + 1) - bins_sunk(given))[:, None]
        column["record"][slots] = np.maximum(peak, record)
        column["given"][slots] = given + (given < LONGEST_PAST)
        for name in ("long_lines", "long_failures", "long_things", "peak"):
            column[name][slots] = 0

    def _close_days(self, slots: NDArray[np.int64]) -> None:
        column = self._column
        days = column["days"][slots].astype(np.int64)
        self._background.sample_days(column["day_peak"][slots], days)
        column["days"][slots] = days + (days < LONGEST_PAST)
        for name in ("day_lines", "day_failures", "day_peak"):
            column[name][slots] = 0

    def _evict_silent_sources(self, how_many: int) -> None:
        """Evict the `how_many` sources that have been silent longest, after taking their open half-hours as samples."""
        silent = self._slots_in_use()[:how_many]
        self._close_half_hours(silent[self._column["long_lines"][silent] > 0])
        self._close_days(silent[self._column["day_lines"][silent] > 0])
        for slot, key in zip(silent.tolist(), self._column["key"][silent].tolist(), strict=True):
            del self._slots[key]
            self._free.append(slot)
        for column in self._column.values():
            column[silent] = 0
        self.evicted += how_many

    def _slots_in_use(self) -> NDArray[np.int64]:
        """The slots in use, longest silent first."""
        used = np.fromiter(self._slots.values(), dtype=np.int64, count=len(self._slots))
        return used[np.argsort(self._column["last_line"][used])]

    def export(self) -> State:
        """The sources, longest silent first, and the background."""
        slots = self._slots_in_use()
        state: State = {name: np.take(column, slots, axis=0) for name, column in self._column.items()}
        state["line"], state["evicted"] = self._line, self.evicted
        return {**state, **with_prefix("background", self._background.export())}

    @classmethod
    def load(cls, columns: Columns) -> "SourceCounters":
        loaded = cls()
        held = len(array_column(columns, "key"))
        for name, column in loaded._column.items():
            column[:held] = columns[name]
        loaded._slots = {key: slot for slot, key in enumerate(loaded._column["key"][:held].tolist())}
        loaded._free = list(range(CAPACITY - 1, held - 1, -1))
        loaded._background = Background.load(columns_under("background", dict(columns)))
        loaded._line = scalar_column(columns, "line", int)
        loaded.evicted = scalar_column(columns, "evicted", int)
        return loaded


def _combined_counter_score(nats: NDArray[np.float64]) -> NDArray[np.float64]:
    """The score of each row of [n, counters], float64 [n]: failures with full weight, activity with half."""
    together: NDArray[np.float64] = nats[:, _FAILING].max(axis=1) + _BUSY_WEIGHT * nats[:, _BUSY].max(axis=1)
    return together


def _zero_counters(rows: int) -> Rows:
    """The columns of so many sources that have sent nothing."""
    return {
        name: np.zeros(rows if width == 1 else (rows, width), dtype=dtype) for name, (dtype, width) in _COLUMNS.items()
    }


def _bounded_source_name(source: bytes) -> bytes:
    """`source` as it fits the fixed-width column; a long one is replaced by its hash."""
    if len(source) <= KEY_BYTES and b"\0" not in source:
        return source
    return hashlib.blake2b(source, digest_size=KEY_BYTES // 2).hexdigest().encode()
