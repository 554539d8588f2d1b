"""Segmented scans: a column holds S runs one after another, run s being rows offsets[s]:offsets[s+1] (int64 [S+1])."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Offsets = NDArray[np.int64]
_Number = TypeVar("_Number", np.int64, np.float64)


def repeat_per_row(offsets: Offsets) -> NDArray[np.int64]:
    """The index of each row's run: int64 [rows]."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def rank_in_run(offsets: Offsets) -> NDArray[np.int64]:
    """The position of each row in its run, from 0: int64 [rows]."""
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))


def running_max(values: NDArray[_Number], offsets: Offsets) -> NDArray[_Number]:
    """The maximum of the run up to and including each row, in log2(longest run) passes."""
    result = values.copy()
    if not len(result):
        return result
    rank = rank_in_run(offsets)
    longest = int(np.diff(offsets).max())
    step = 1
    while step < longest:
        reach = np.flatnonzero(rank >= step)
        result[reach] = np.maximum(result[reach], result[reach - step])
        step *= 2
    return result


def running_sum(values: NDArray[np.int64], offsets: Offsets) -> NDArray[np.int64]:
    """The sum of the run up to and including each row. It is exact, so a run can be split anywhere and continued."""
    if not len(values):
        return values.copy()
    sums = np.cumsum(values)
    first = offsets[:-1][repeat_per_row(offsets)]
    within: NDArray[np.int64] = sums - (sums[first] - values[first])
    return within


def running_or(values: NDArray[np.uint64], offsets: Offsets) -> NDArray[np.uint64]:
    """The bitwise OR of the run up to and including each row, by doubling (Hillis and Steele, 1986)."""
    result, rank = values.copy(), rank_in_run(offsets)
    rows, step = np.flatnonzero(rank >= 1), 1
    while len(rows):
        result[rows] |= result[rows - step]
        step *= 2
        rows = rows[rank[rows] >= step]
    return result


def first_true(marks: NDArray[np.bool_], offsets: Offsets) -> NDArray[np.bool_]:
    """`marks` (bool [rows]) with all but the first True of each run cleared."""
    rows = np.flatnonzero(marks)
    result = np.zeros(len(marks), dtype=np.bool_)
    runs = repeat_per_row(offsets)[rows]
    result[rows[np.concatenate(([True], runs[1:] != runs[:-1]))] if len(rows) else rows] = True
    return result
