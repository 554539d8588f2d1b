"""The usual activity of clients in this stream: how high their counters get. (The member calls clients sources.)

A count becomes a *bin*. When a source's half-hour ends (for the daily counter: its day), the highest bin of each
counter is one sample. The k-th sample of a source has weight 1/k^2, so the background is that of the sources, not of
the lines: a flood is a sample or two however long it lasts, and a machine that calls every minute does not dominate.
Bins that only one source reached do not count, or a flood would become usual after its first half-hour: the total
weight that one source can give is subtracted from the top. Beyond the *top* bin that is left a power law continues, so
that higher bins are more unusual:

    r(bin)      weight of samples in this bin or higher, less pi^2/6
    nats(bin) = -ln ((r(bin) + exp(-(bin - top)/2)) / (r(0) + 1))        exp(0) up to the top

times weight / (weight + 8), because few samples prove little. Weights are multiples of 1/65536, so sums do not depend
on their order.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.columns.state_columns import Columns, State, array_column

COUNTERS = (
    *("lines a minute", "failures a minute", "distinct things a minute"),
    *("lines in half an hour", "failures in half an hour", "distinct things in half an hour"),
    *("share of failures", "failures in a day beyond the usual share"),
)
DAY = len(COUNTERS) - 1
SHARE = DAY - 1
BINS = 128

Bins = NDArray[np.int64]

# Lower ends of the bins of counts: every whole number up to 8, then four an octave.
_EDGES = np.concatenate((np.arange(8.0), 8.0 * 2.0 ** (np.arange(BINS - 8) / 4.0)))
_NATS_BINS = 4.0  # bins a nat, of the share of failures
# By how many of 64 bits are occupied: linear counting (Whang et al., 1990). It ends at about 310.
_DISTINCT = 64.0 * -np.log(np.maximum(1.0 - np.arange(65) / 64.0, 1 / 128)) + 0.0  # and no -0.0


class Background:
    """A histogram over bins for each counter, in units of 1/65536 sample.

    nats   float64 [counters, bins]: how unusual each bin is, non-decreasing along the bins
    share  the usual share of failures: the mean over samples
    """

    _UNIT = 1 << 16
    _FULL = 1 << 14  # samples; then all are halved, so that old ones fade
    _TAIL = 0.5  # nats a bin beyond the top: two nats an octave
    _SHARE_UNIT = 1 << 10
    _FEW = 8.0  # samples
    _LONE = np.pi**2 / 6  # samples: the total weight that one source can give
    _SHARE_PRIOR = 0.2  # of failures, worth as many samples

    def __init__(self) -> None:
        self._counts = np.zeros((len(COUNTERS), BINS), dtype=np.int64)
        self._pending = np.zeros_like(self._counts)
        self._shares = np.zeros(4, dtype=np.int64)  # weighted shares, weights; the same of what is pending
        self._prepare_usual_values()

    def sample_half_hours(
        self, peak: NDArray[Any], given: NDArray[Any], failures: NDArray[Any], lines: NDArray[Any]
    ) -> None:
        """Add the half-hours of m sources; they count from the next `take_up_samples` on.

        `peak` [m, DAY] are the highest bins of all counters but the daily one, `given` [m] the number of samples that
        the source gave before; `failures` of its `lines` [m] in this half-hour failed.
        """
        weight = self._add_pending_samples(slice(0, DAY), peak, given)
        share = self._SHARE_UNIT * failures.astype(np.int64) // np.maximum(lines.astype(np.int64), 1)
        self._shares[2] += int((weight * share).sum())
        self._shares[3] += int(weight.sum())

    def sample_days(self, peak: NDArray[Any], given: NDArray[Any]) -> None:
        """Add the days of m sources: `peak` [m] is the highest bin, `given` [m] the number of days that they gave
        before."""
        self._add_pending_samples(slice(DAY, DAY + 1), peak[:, None], given)

    def _add_pending_samples(self, counters: slice, peak: NDArray[Any], given: NDArray[Any]) -> NDArray[np.int64]:
        weight: NDArray[np.int64] = self._UNIT // (1 + given.astype(np.int64)) ** 2
        for pending, bins in zip(self._pending[counters], peak.T, strict=True):
            # Exact: whole numbers far below 2^53.
            pending += np.bincount(bins.astype(np.int64), weights=weight, minlength=BINS).astype(np.int64)
        return weight

    def take_up_samples(self) -> None:
        """Let the samples count that were added since the last call."""
        if not self._pending.any():
            return
        self._counts += self._pending
        self._pending[:] = 0
        self._shares[:2] += self._shares[2:]
        self._shares[2:] = 0
        if self._shares[1] > self._FULL * self._UNIT:
            self._counts >>= 1
            self._shares[:2] >>= 1
        self._prepare_usual_values()

    def _prepare_usual_values(self) -> None:
        """Derive `nats` and the usual share of failures from the histograms."""
        reached = np.cumsum(self._counts[:, ::-1], axis=1)[:, ::-1] / self._UNIT
        believed = np.maximum(reached - self._LONE, 0.0)
        top = np.count_nonzero(believed > 0.0, axis=1) - 1  # `believed` falls along the bins; -1: nothing is
        imagined = np.exp(-self._TAIL * np.maximum(np.arange(BINS) - np.maximum(top, 0)[:, None], 0))
        total = reached[:, :1]
        self.nats = np.log((believed[:, :1] + 1.0) / (believed + imagined)) * (total / (total + self._FEW))
        weights = self._shares[1] / self._UNIT
        mean = self._shares[0] / (self._UNIT * self._SHARE_UNIT)
        self.share = float((mean + self._SHARE_PRIOR * self._FEW) / (weights + self._FEW))

    def usual(self) -> list[float]:
        """The usual value of each counter: the 99 % quantile of samples; of the share of failures, the mean."""
        counts = np.cumsum(self._counts, axis=1)
        usual = [bin_value(int(np.searchsorted(each, 0.99 * each[-1]))) for each in counts]
        usual[SHARE] = self.share
        return usual

    def export(self) -> State:
        return {"counts": self._counts.copy(), "pending": self._pending.copy(), "shares": self._shares.copy()}

    @classmethod
    def load(cls, columns: Columns) -> "Background":
        loaded = cls()
        loaded._counts[:] = array_column(columns, "counts")
        loaded._pending[:] = array_column(columns, "pending")
        loaded._shares[:] = array_column(columns, "shares")
        loaded._prepare_usual_values()
        return loaded


def distinct_hashed_items(seen: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The estimated number of distinct items in each bitmap of 64 hashed ones: float64 (linear counting)."""
    about: NDArray[np.float64] = _DISTINCT[np.bitwise_count(seen)]
    return about


def count_bin(counts: NDArray[Any]) -> Bins:
    """The bin of each count >= 0: int64."""
    return np.minimum(np.searchsorted(_EDGES, counts, side="right") - 1, BINS - 1)


def bin_value(bin_: int) -> float:
    """The lowest count in a bin."""
    return float(_EDGES[bin_])


def share_bin(share: NDArray[np.float64], lines: NDArray[np.int64], usual: float) -> Bins:
    """The bin, in quarters of a nat, of each `share` of failures among `lines` where `usual` is the usual share.

    n KL(share || usual), the Chernoff bound of the binomial tail; 0 if the share is not above the usual one.
    """
    failed, passed = np.maximum(share, 1e-12), np.maximum(1.0 - share, 1e-12)
    nats = lines * (share * np.log(failed / usual) + (1.0 - share) * np.log(passed / (1.0 - usual)))
    return np.clip(np.floor(np.where(share > usual, nats, 0.0) * _NATS_BINS), 0, BINS - 1).astype(np.int64)
