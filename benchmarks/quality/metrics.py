"""Figures of detection quality as plain functions of arrays: [n] units (sessions, blocks, lines), one row each.

`truth` is bool, True for what should be found; `strangeness` is float, larger is stranger; `flagged` is bool.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

BOOTSTRAP_ROUNDS = 300
_TAIL = 2.5  # per cent outside the interval on either side


class Interval(NamedTuple):
    """A figure and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class Found(NamedTuple):
    precision: float
    recall: float
    f1: float


def average_precision(truth: Bools, strangeness: Floats, weights: Floats | None = None) -> float:
    """Area under the precision-recall curve, step-wise, ties taken together; nan where nothing is to be found."""
    return _Curve(truth, strangeness).area(np.ones(len(truth)) if weights is None else weights)


class _Curve:
    """Sorted once, so that a bootstrap only has to weigh again."""

    def __init__(self, truth: Bools, strangeness: Floats) -> None:
        self._order = np.argsort(-strangeness, kind="stable")
        self._truth = truth[self._order]
        ordered = strangeness[self._order]
        self._ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(ordered) else self._order

    def area(self, weights: Floats) -> float:
        weights = weights[self._order]
        found = np.cumsum(weights * self._truth)[self._ends]
        taken = np.cumsum(weights)[self._ends]
        if not len(found) or found[-1] <= 0.0:
            return float("nan")
        precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0.0)
        return float((np.diff(found, prepend=0.0) * precision).sum() / found[-1])


def found(truth: Bools, flagged: Bools, weights: Floats | None = None) -> Found:
    """Precision, recall and F1 of flags; 0 where nothing was flagged or nothing is to be found."""
    weights = np.ones(len(truth)) if weights is None else weights
    hits = float(weights[truth & flagged].sum())
    precision = hits / max(float(weights[flagged].sum()), 1e-300)
    recall = hits / max(float(weights[truth].sum()), 1e-300)
    return Found(precision, recall, 2 * precision * recall / max(precision + recall, 1e-300))


def best_f1(truth: Bools, strangeness: Floats) -> float:
    """The F1 of the best threshold that labels can choose: what a perfect threshold would reach."""
    order = np.argsort(-strangeness, kind="stable")
    ordered = strangeness[order]
    if not len(ordered) or not truth.any():
        return 0.0
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    hits = np.cumsum(truth[order])[ends]
    return float((2 * hits / (ends + 1 + truth.sum())).max())


def ap_interval(truth: Bools, strangeness: Floats, seed: int = 0) -> Interval:
    curve = _Curve(truth, strangeness)
    return interval(curve.area, len(truth), seed)


def ap_difference(truth: Bools, strangeness: Floats, other: Floats, seed: int = 0) -> Interval:
    """By how much the one order is better than the other, over the same draws of units."""
    one, two = _Curve(truth, strangeness), _Curve(truth, other)
    return interval(lambda weights: one.area(weights) - two.area(weights), len(truth), seed)


def best_order(groups: Sequence[object], truth: Bools) -> Floats:
    """The strangeness by which nobody does better who can tell units apart only by their group: labels known."""
    of: dict[object, list[int]] = {}
    for i, group in enumerate(groups):
        of.setdefault(group, []).append(i)
    strangeness = np.zeros(len(truth))
    for members in of.values():
        strangeness[members] = truth[members].mean()
    return strangeness


def f1_interval(truth: Bools, flagged: Bools, seed: int = 0) -> Interval:
    return interval(lambda weights: found(truth, flagged, weights).f1, len(truth), seed)


def share_interval(of: Bools, seed: int = 0) -> Interval:
    """The share of True, with its interval."""
    if not len(of):
        return Interval(float("nan"), float("nan"), float("nan"))
    return interval(lambda weights: float(weights[of].sum() / weights.sum()), len(of), seed)


def interval(statistic: Callable[[Floats], float], n: int, seed: int = 0) -> Interval:
    """`statistic` of weights [n], all 1, and what it comes to when the n units are drawn with replacement.

    The percentile bootstrap (Efron, 1979), written as integer weights; the same `seed`, the same interval.
    """
    value = statistic(np.ones(n))
    chance = np.random.default_rng(seed)
    drawn = [
        statistic(np.bincount(chance.integers(0, n, n), minlength=n).astype(np.float64))
        for _ in range(BOOTSTRAP_ROUNDS if n else 0)
    ]
    known = np.array([figure for figure in drawn if not np.isnan(figure)])
    if not len(known):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(known, (_TAIL, 100.0 - _TAIL))
    return Interval(value, float(low), float(high))


def recall_at(truth: Bools, strangeness: Floats, false_alarms: float) -> float:
    """The share found at the strictest threshold that lets through at most `false_alarms` of what is harmless.

    A harmless unit counts as let through when it is at least as strange as the threshold; ties never help.
    """
    harmless = np.sort(strangeness[~truth])[::-1]
    if not truth.any():
        return float("nan")
    allowed = int(len(harmless) * false_alarms)
    limit = harmless[allowed] if allowed < len(harmless) else -np.inf
    return float((strangeness[truth] > limit).mean())


def ranked(p: Floats, score: Floats) -> Floats:
    """Strangeness as a rank: smaller p first, among equal p the larger score; equal pairs share a rank."""
    pairs = np.stack((-p, score), axis=1)
    _, rank = np.unique(pairs, axis=0, return_inverse=True)
    return rank.reshape(-1).astype(np.float64)
