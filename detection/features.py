"""What the Isolation Forest sees of a session: six numbers after every line of it.

The trainer and the scorer call the same function, so a forest meets the features it was fitted on. The
running sums are exact: surprises are first rounded to multiples of 2^-24, so that any order of adding and
any cut of a session into batches gives the same bits (up to 5e8 nats).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.segments import rank_in_run, repeat_per_row, running_max, running_or

FEATURES = ("worst", "mean", "log_length", "distinct", "error_share", "rate")
CLOSING = -1  # the template of a row that is a session's end and not a line
_GRAIN = 2.0**24
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # Knuth's multiplicative hash: the high bits mix all the others


@dataclass(frozen=True)
class Carry:
    """What each of S sessions brings along from earlier rows; all zero for a new one.

    lines, errors int64 [S]; scored int64 [S]: surprises in `total`; worst, total float64 [S] in nats;
    shape uint64 [S]: map of hashed templates; began float64 [S]: time of the first line in seconds.
    """

    lines: NDArray[np.int64]
    scored: NDArray[np.int64]
    worst: NDArray[np.float64]
    total: NDArray[np.float64]
    errors: NDArray[np.int64]
    shape: NDArray[np.uint64]
    began: NDArray[np.float64]

    @staticmethod
    def new(sessions: int) -> "Carry":
        """The carry of `sessions` sessions that have no line yet."""
        whole, real = np.zeros(sessions, np.int64), np.zeros(sessions)
        return Carry(whole, whole, real, real, whole, np.zeros(sessions, np.uint64), real)

    @staticmethod
    def brought(column: Callable[[str], NDArray[Any]], began: NDArray[np.float64]) -> "Carry":
        """The carry whose columns `column` gives by name, but for `began`."""
        shape = column("shape").astype(np.uint64)
        whole = {name: column(name) for name in ("lines", "scored", "worst", "total", "errors")}
        return Carry(**whole, shape=shape, began=began)


def running(
    surprise: NDArray[np.floating[Any]],
    errors: NDArray[np.bool_],
    templates: NDArray[np.int32],
    times: NDArray[np.float64],
    offsets: NDArray[np.int64],
    carry: Carry,
) -> tuple[NDArray[np.float64], Carry]:
    """The features float64 [n, 6] after each of n rows, and what the sessions carry on.

    Rows offsets[s]:offsets[s+1] are session s's, in order; a session may have none. `surprise` is >= 0, in
    nats. A closing row (template -1) counts in "worst" and "mean" but is no line and no error; its time
    should be that of the session's last line. "distinct" counts occupied bits of 64, so it saturates.
    """
    sizes, session, rank = np.diff(offsets), repeat_per_row(offsets), rank_in_run(offsets)
    first = offsets[:-1][session]
    is_line = templates != CLOSING
    exact = np.rint(surprise.astype(np.float64) * _GRAIN) / _GRAIN

    began = carry.began.copy()
    # A session begins with its first row here unless it has lines already.
    fresh = (carry.lines == 0) & (sizes > 0)
    began[fresh] = times[offsets[:-1][fresh]]

    bit = np.uint64(1) << ((templates.astype(np.uint64) * _SPREAD) >> np.uint64(58))
    worst = np.maximum(running_max(surprise.astype(np.float64), offsets), carry.worst[session])
    shape = running_or(np.where(is_line, bit, np.uint64(0)), offsets) | carry.shape[session]
    total = _sums(exact, first) + carry.total[session]
    scored = rank + 1 + carry.scored[session]
    lines = _sums(is_line.astype(np.int64), first) + carry.lines[session]
    failed = _sums((errors & is_line).astype(np.int64), first) + carry.errors[session]

    features = np.empty((len(rank), len(FEATURES)))
    features[:, 0] = worst
    features[:, 1] = total / scored
    features[:, 2] = np.log1p(lines)
    features[:, 3] = np.bitwise_count(shape)
    features[:, 4] = failed / np.maximum(lines, 1)
    features[:, 5] = np.log1p(lines / np.maximum(times - began[session], 1.0))

    last = offsets[1:] - 1

    def after(column: NDArray[Any], before: NDArray[Any]) -> NDArray[Any]:
        result = before.copy()
        result[sizes > 0] = column[last[sizes > 0]]
        return result

    return features, Carry(
        lines=after(lines, carry.lines),
        scored=after(scored, carry.scored),
        worst=after(worst, carry.worst),
        total=after(total, carry.total),
        errors=after(failed, carry.errors),
        shape=after(shape, carry.shape),
        began=began,
    )


def _sums(values: NDArray[Any], first: NDArray[np.int64]) -> NDArray[Any]:
    """Running sums within sessions. `values` add up without rounding, so a difference of sums is the sum."""
    if not len(values):
        return values
    sums = np.cumsum(values)
    within: NDArray[Any] = sums - (sums[first] - values[first])
    return within
