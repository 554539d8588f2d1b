"""Counting the lines of a batch on top of their sources' counters, at once; `source_counters` explains the counters.

All counts are integers, so a source's lines may be cut into batches anywhere.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.columns.runs import repeat_per_row, running_max, running_or, running_sum
from detection.members.origins.background import COUNTERS, DAY, SHARE, Bins, count_bin, distinct_hashed_items, share_bin

MINUTE_SECONDS = 60.0
MINUTES = 30  # in the long window
DAY_MINUTES = 24 * 60
NEWS_BINS = 2  # growth of a day that counts, half an octave; with one, 1.4 times as many harmless sessions were flagged
LONGEST_PAST = (1 << 16) - 1  # half-hours
_HALF_HOURS_A_BIN = 8  # a record that is not reached again sinks by an octave in 16 hours of activity
_MOST = 2**31 - 1
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # Knuth's multiplicative hash: the high bits mix all the others

Ints = NDArray[np.int64]
Rows = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class LinesToCount:
    """n lines as columns."""

    minute: Ints  # since the epoch
    passed: NDArray[np.float64]  # of that minute, 0 to 1
    counted: Ints  # 1; 0 for mere silence
    failed: Ints  # 0 or 1
    bit: NDArray[np.uint64]  # of the resource, one of 64

    @classmethod
    def of(
        cls, clock: NDArray[np.float64], failures: NDArray[np.bool_], resources: NDArray[np.uint64]
    ) -> "LinesToCount":
        minutes = clock / MINUTE_SECONDS
        minute = np.clip(np.floor(minutes), -_MOST, _MOST)
        return cls(
            minute=minute.astype(np.int64),
            passed=np.clip(minutes - minute, 0.0, 1.0),
            counted=np.ones(len(clock), dtype=np.int64),
            failed=failures.astype(np.int64),
            bit=np.uint64(1) << ((resources * _SPREAD) >> np.uint64(58)),
        )

    @classmethod
    def silence(cls, clock: float) -> "LinesToCount":
        """One row that counts nothing, to read the counters at `clock`."""
        line = cls.of(np.array([clock]), np.zeros(1, dtype=np.bool_), np.zeros(1, dtype=np.uint64))
        return cls(line.minute, line.passed, line.failed, line.failed, np.zeros(1, dtype=np.uint64))

    def __getitem__(self, rows: Ints) -> "LinesToCount":
        return LinesToCount(self.minute[rows], self.passed[rows], self.counted[rows], self.failed[rows], self.bit[rows])


@dataclass(frozen=True, slots=True)
class Counted:
    """n lines of U sources, counted."""

    values: NDArray[np.float64]  # [n, counters] after each line
    bins: Bins  # [n, counters] of these values
    raised: NDArray[np.bool_]  # [n] whether the day grew by half an octave at this line
    record: Bins  # [n, DAY] of the line's source, before the half-hour of the line
    given: Ints  # [n] how many half-hours that past has
    after: Rows  # [U] the columns that change
    closed: tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]  # half-hours, for `Background.sample`
    closed_days: tuple[NDArray[Any], NDArray[Any]]  # for `Background.sample_days`


def count_lines_of_sources(held: Rows, offsets: Ints, lines: LinesToCount, usual_share: float) -> Counted:
    """Count the lines offsets[u]:offsets[u+1] of each source u on top of what is `held` of it, columns [U].

    Four lines of one source of which nothing is held, two of them failures, with a `usual_share` of .25. A minute's
    counters slide: halfway through a minute half of the one before still counts. Half-hours and days do not:

        second                                        0   30   90 1890
        failed                                       no  yes   no  yes
        thing                                         7    8    7    7
        lines a minute                              1.0  2.0  2.0  1.0
        failures a minute                           0.0  1.0  0.5  1.0
        distinct things a minute                    1.0  2.0  2.0  1.0
        lines in half an hour                       1.0  2.0  3.0  1.0
        failures in half an hour                    0.0  1.0  1.0  1.0
        distinct things in half an hour             1.0  2.0  2.0  1.0
        share of failures                           0.0  0.5  0.3  1.0
        failures in a day beyond the usual share    0.0  0.0  0.0  1.0

    The fourth line closes the first half-hour: one sample of three lines and a failure, and `after` has one `given`.
    """
    # The counters held are one more row, the head, before a source's lines: so a minute or a half-hour that continues
    # is a run like any other.
    units, n = len(offsets) - 1, len(lines.minute)
    head, end = offsets[:-1] + np.arange(units), offsets[1:] + np.arange(units)
    is_line = np.ones(n + units, dtype=np.bool_)
    is_line[head] = False
    is_head = ~is_line

    def column(before: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
        joint = np.empty(n + units, dtype=new.dtype)
        joint[head], joint[is_line] = before, new
        return joint

    minute = column(held["minute"], lines.minute)
    half_hour = minute // MINUTES
    short, long = _offsets_of_runs(minute, is_head), _offsets_of_runs(half_hour, is_head)

    count_now = running_sum(column(held["lines"][:, 0], lines.counted), short)
    failed_now = running_sum(column(held["failures"][:, 0], lines.failed), short)
    seen_now = running_or(column(held["things"][:, 0], lines.bit), short)
    first = is_head[short[:-1]]
    follows = np.zeros(len(first), dtype=np.bool_)  # directly on the minute of the run before
    follows[1:] = ~first[1:] & (minute[short[1:-1]] == minute[short[:-2]] + 1)
    row_run = repeat_per_row(short)

    def in_minute_before(now: NDArray[Any], before: NDArray[Any]) -> NDArray[Any]:
        whole = np.zeros(len(first), dtype=now.dtype)
        whole[1:] = np.where(follows[1:], now[short[1:-1] - 1], np.zeros(1, dtype=now.dtype))
        whole[first] = before
        rows: NDArray[Any] = whole[row_run]
        return rows

    count_before = in_minute_before(count_now, held["lines"][:, 1])
    failed_before = in_minute_before(failed_now, held["failures"][:, 1])
    seen_before = in_minute_before(seen_now, held["things"][:, 1])

    long_count = running_sum(column(held["long_lines"], lines.counted), long)
    long_failed = running_sum(column(held["long_failures"], lines.failed), long)
    long_seen = running_or(column(held["long_things"], lines.bit), long)

    day = _offsets_of_runs(minute // DAY_MINUTES, is_head)
    day_count = running_sum(column(held["day_lines"], lines.counted), day)
    day_failed = running_sum(column(held["day_failures"], lines.failed), day)

    left = 1.0 - lines.passed
    values = np.stack(
        (
            count_now[is_line] + left * count_before[is_line],
            failed_now[is_line] + left * failed_before[is_line],
            distinct_hashed_items((seen_now | seen_before)[is_line]),
            long_count[is_line],
            long_failed[is_line],
            distinct_hashed_items(long_seen[is_line]),
            long_failed[is_line] / np.maximum(long_count[is_line], 1),
            np.floor(np.maximum(day_failed - usual_share * day_count, 0.0))[is_line],
        ),
        axis=1,
    )
    bins = np.empty((n + units, len(COUNTERS)), dtype=np.int64)
    bins[head, :DAY], bins[head, DAY] = held["peak"], held["day_peak"]
    bins[is_line] = count_bin(values)
    bins[is_line, SHARE] = share_bin(values[:, SHARE], long_count[is_line], usual_share)
    day_peak = running_max(bins[:, DAY], day)
    lower = np.append(0, day_peak[:-1])
    lower[day[:-1]] = 0
    of_source, _, days, day_over = _ended_runs(held["days"], day_count, day, is_head)
    newest_day = of_source[1:] - 1
    peak, record, given, closed, newest = _past_of_half_hours(held, bins[:, :DAY], long_count, long, is_head)
    last = long[1:][closed] - 1
    row_long = repeat_per_row(long)[is_line]
    return Counted(
        values=values,
        bins=bins[is_line],
        raised=(bins[:, DAY] // NEWS_BINS > lower // NEWS_BINS)[is_line],
        record=record[row_long],
        given=given[row_long],
        after={
            "minute": minute[end],
            "lines": np.minimum(np.stack((count_now[end], count_before[end]), axis=1), _MOST),
            "failures": np.minimum(np.stack((failed_now[end], failed_before[end]), axis=1), _MOST),
            "things": np.stack((seen_now[end], seen_before[end]), axis=1),
            "long_lines": np.minimum(long_count[end], _MOST),
            "long_failures": np.minimum(long_failed[end], _MOST),
            "long_things": long_seen[end],
            "peak": peak[newest],
            "record": record[newest],
            "given": given[newest],
            "day_lines": np.minimum(day_count[end], _MOST),
            "day_failures": np.minimum(day_failed[end], _MOST),
            "day_peak": day_peak[end],
            "days": days[newest_day],
        },
        closed=(peak[closed], given[closed], long_failed[last], long_count[last]),
        closed_days=(day_peak[day[1:][day_over] - 1], days[day_over]),
    )


def _past_of_half_hours(
    held: Rows, bins: Bins, lines: Ints, long: Ints, is_head: NDArray[np.bool_]
) -> tuple[Bins, Bins, Ints, NDArray[np.bool_], Ints]:
    """For each half-hour of each source: its highest bins; the source's record and number of samples before it; whether
    it is over and a sample. And the index of the newest half-hour of each source."""
    of_source, before, given, closed = _ended_runs(held["given"], lines, long, is_head)
    peak = np.maximum.reduceat(bins, long[:-1], axis=0)
    # record_j = max(record_0, max over i < j of peak_i + sunk_i+1) - sunk_j
    base = bins_sunk(before)
    raised = np.zeros(peak.shape)
    raised[1:] = np.where(closed[:-1, None], peak[:-1] + (bins_sunk(given[:-1] + 1) - base[:-1])[:, None], 0)
    raised[of_source[:-1]] = held["record"]
    record = np.maximum(running_max(raised, of_source).astype(np.int64) - (bins_sunk(given) - base)[:, None], 0)
    return peak, record, given, closed, of_source[1:] - 1


def _ended_runs(
    held: NDArray[Any], lines: Ints, runs: Ints, is_head: NDArray[np.bool_]
) -> tuple[Ints, Ints, Ints, NDArray[np.bool_]]:
    """Which half-hours, or days (the `runs`), are over, and how many samples each source gave before each.

    `held` [U] are the samples that each source has given, `lines` the running counts by row. Returns the offsets of the
    sources in the runs, int64 [U+1]; and for each run the samples given before the batch, those given before the run,
    and whether it is over. The last run of a source is open; an empty run is not a sample.
    """
    of_source = np.append(np.flatnonzero(is_head[runs[:-1]]), len(runs) - 1)
    closed = lines[runs[1:] - 1] > 0
    closed[of_source[1:] - 1] = False
    so_far = running_sum(closed.astype(np.int64), of_source) - closed
    before = held.astype(np.int64)[repeat_per_row(of_source)]
    return of_source, before, np.minimum(before + so_far, LONGEST_PAST), closed


def bins_sunk(given: Ints) -> Ints:
    """The number of bins by which a source's record has sunk after it gave so many half-hours."""
    return np.minimum(given, LONGEST_PAST) // _HALF_HOURS_A_BIN


def _offsets_of_runs(values: Ints, is_head: NDArray[np.bool_]) -> Ints:
    """Offsets of the runs of equal values; a head begins a new run."""
    begins = is_head.copy()
    begins[1:] |= values[1:] != values[:-1]
    return np.append(np.flatnonzero(begins), len(values))
