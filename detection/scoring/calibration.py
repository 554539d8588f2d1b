"""From scores to p-values to one statistic, with no assumption about what a score looks like.

A member's score becomes a conformal p-value: its rank among the scores of held-out clean sessions (the
*calibration scores* of the model generation), so that under normal traffic P(p <= a) is about a, whatever the member.
Beyond the largest score ever seen a rank says nothing, so the tail is continued by a generalised Pareto
distribution fitted to the exceedances over the 95 % quantile by probability-weighted moments (Hosking
and Wallis, 1987), scaled to meet the rank at the highest of them.

The members' p-values become one statistic (`combined_p_values`), which has calibration scores of its own.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from detection.detection_settings import AlarmSettings

SMALLEST_P = 1e-12
# A p near 1 would weigh as much *against* an alarm as a p near 0 does for it; no member may veto.
LARGEST_P = 0.9
_TAIL_SHARE = 0.05
_MIN_EXCEEDANCES = 10
_LARGEST_SHAPE = 0.5
_NO_SHAPE = 1e-6  # below it the tail is exponential


@dataclass(frozen=True)
class CalibrationScores:
    """Scores of held-out sessions, float64 [n] ascending, as a map from score to p-value."""

    scores: NDArray[np.float64]
    _shape: float = field(init=False, default=0.0)
    _scale: float = field(init=False, default=0.0)
    _threshold: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        n = len(self.scores)
        count = int(n * _TAIL_SHARE)
        if count < _MIN_EXCEEDANCES:
            return
        threshold = float(self.scores[n - count - 1])
        shape, scale = _fit_tail(self.scores[n - count :] - threshold)
        object.__setattr__(self, "_shape", shape)
        object.__setattr__(self, "_scale", scale)
        object.__setattr__(self, "_threshold", threshold)

    def __len__(self) -> int:
        return len(self.scores)

    def p(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """p-values of `values` (float64, any shape): non-increasing in the value, within [1e-12, 1]."""
        n = len(self.scores)
        below = np.searchsorted(self.scores, values, side="left")
        p = np.asarray((1.0 + n - below) / (n + 1.0), dtype=np.float64)
        if n and self._scale > 0.0:
            top = float(self.scores[-1])
            beyond = values > top
            if beyond.any():
                p[beyond] *= self._tail_survival(values[beyond]) / self._tail_survival(np.array([top]))
        return np.clip(p, SMALLEST_P, 1.0)

    def score_at(self, alpha: float) -> float | None:
        """The score up to which p-values are at least `alpha`, and beyond which they are less; None where none is."""
        n = len(self.scores)
        # The ranks that `p` takes fall from 1 to 1/(n + 1): how many of them reach `alpha`.
        reaching = bisect_left(range(n + 1), True, key=lambda below: (1.0 + n - below) / (n + 1.0) < alpha)
        if 0 < reaching <= n:
            return float(self.scores[reaching - 1])
        if not reaching or not n or self._scale <= 0.0 or alpha <= SMALLEST_P:
            return None
        top = float(self.scores[-1])
        left = alpha * (n + 1.0) * float(self._tail_survival(np.array([top]))[0])
        excess = -np.log(left) if self._shape < _NO_SHAPE else (left**-self._shape - 1.0) / self._shape
        return self._threshold + float(excess) * self._scale

    def _tail_survival(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The fitted tail's P(score > value | score > threshold)."""
        excess = (values - self._threshold) / self._scale
        if self._shape < _NO_SHAPE:
            return np.exp(-np.minimum(excess, 700.0))
        return np.power(1.0 + self._shape * excess, -1.0 / self._shape)


def _fit_tail(excess: NDArray[np.float64]) -> tuple[float, float]:
    """Shape and scale of a generalised Pareto distribution from ascending exceedances.

    A negative shape (a finite end) is refused: it would call anything a little larger impossible.
    """
    n = len(excess)
    mean = float(excess.mean())
    weighted = float((excess * (n - 1 - np.arange(n))).sum() / (n * (n - 1)))
    if mean <= 0.0:
        return 0.0, 0.0
    spread = mean - 2.0 * weighted
    shape = 2.0 - mean / spread if spread > 0.0 else 0.0
    if shape <= 0.0:
        return 0.0, mean
    shape = min(shape, _LARGEST_SHAPE)
    return shape, mean * (1.0 - shape)


def combined_p_values(p_values: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """One statistic of the p-values [n, k], -log10 of their Cauchy combination (Liu and Xie, 2020): float64 [n].

    `shares` [k] are the weights, 1 together.
    It holds under any dependence, and one sure member is enough however many are indifferent. Fisher's, which wants
    them to agree, is worse where normal sessions drift: members that look at the same thing agree about those as well
    (measured on raw HDFS: PR-AUC .83 with Cauchy's and .72 with Fisher's; on clean sessions both exceed .99).
    """
    # Not `@`: how a library multiplies matrices may depend on how many rows there are, and bits must not.
    statistic = (shares / np.tan(np.clip(p_values, SMALLEST_P, LARGEST_P) * np.pi)).sum(axis=1)
    # atan2(1, t)/pi is 1/2 - atan(t)/pi without the cancellation that would round small p to 0.
    together: NDArray[np.float64] = -np.log10(np.arctan2(1.0, statistic) / np.pi)
    return together


def level_of(alarms: AlarmSettings, sessions_per_day: float, calibration: int) -> tuple[float, bool]:
    """The level a session is tested at, and whether the floor binds: `alarms.alpha` if it is set, else `alpha_for`."""
    if alarms.alpha is None:
        return alpha_for(alarms.per_day, sessions_per_day, calibration)
    floor = _lowest_level(calibration)
    return max(alarms.alpha, floor), alarms.alpha < floor


def alpha_for(per_day: float, sessions_per_day: float, calibration: int) -> tuple[float, bool]:
    """The level a session is tested at for `per_day` false alarms, and whether the floor binds.

    Never below 5/n, which n calibration scores cannot resolve, and never above .2 %: a quiet stream
    shall not spend its budget on every session it has.
    """
    floor = _lowest_level(calibration)
    wanted = min(per_day / max(sessions_per_day, 1e-9), _LARGEST_ALPHA)
    return (floor, True) if wanted < floor else (wanted, False)


def _lowest_level(calibration: int) -> float:
    """The lowest level: five of so many calibration scores lie beyond it."""
    return 5.0 / max(calibration, 5)


_LARGEST_ALPHA = 0.002
