"""Baselines for the daemon's verdicts: simple detectors on the same sessions.

Each takes sessions (tuples of event numbers) to learn from and sessions to judge, and returns a strangeness and a
flag for each of the latter. None of them sees a label.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import IsolationForest

from benchmarks.quality.metrics import Bools, Floats

Session = tuple[int, ...]
_CALIBRATION_SHARE = 0.2
_START, _END = -1, -2


@dataclass(frozen=True)
class Control:
    name: str
    strangeness: Floats
    flagged: Bools


def controls(known: Sequence[Session], judged: Sequence[Session], alpha: float, seed: int) -> list[Control]:
    """All baselines. `alpha` is the share of clean sessions that a baseline with a threshold may flag."""
    return [
        Control("flag everything", np.zeros(len(judged)), np.ones(len(judged), dtype=np.bool_)),
        event_or_length(known, judged),
        three_gram(known, judged, alpha, seed),
        raw_forest(known, judged, seed),
    ]


def event_or_length(known: Sequence[Session], judged: Sequence[Session]) -> Control:
    """An event never seen is strange, a length never seen less so."""
    events = {event for session in known for event in session}
    lengths = {len(session) for session in known}
    strangeness = np.array(
        [2.0 * (not events.issuperset(session)) + (len(session) not in lengths) for session in judged]
    )
    return Control("new event or odd length", strangeness, strangeness > 0.0)


def three_gram(known: Sequence[Session], judged: Sequence[Session], alpha: float, seed: int) -> Control:
    """The least likely next event, the end included, under an interpolated 3-gram model (Witten and Bell, 1991).

    Its threshold is the 1 - alpha quantile on a fifth of the clean sessions that it did not count.
    """
    order = np.random.default_rng(seed).permutation(len(known))
    held = max(int(len(known) * _CALIBRATION_SHARE), 1)
    model = _ThreeGram([known[i] for i in order[held:]])
    clean = np.array([model.worst(known[i]) for i in order[:held]])
    strangeness = np.array([model.worst(session) for session in judged])
    return Control("plain 3-gram", strangeness, strangeness > np.quantile(clean, 1.0 - alpha, method="higher"))


class _ThreeGram:
    def __init__(self, sessions: Sequence[Session]) -> None:
        self._next: dict[Session, Counter[int]] = defaultdict(Counter)
        for session, times in Counter(sessions).items():
            padded = (_START, _START, *session, _END)
            for i in range(2, len(padded)):
                for history in (padded[i - 2 : i], padded[i - 1 : i], ()):
                    self._next[history][padded[i]] += times
        self._size = len(self._next[()]) + 1  # and one that was never seen
        self._total = {history: sum(counts.values()) for history, counts in self._next.items()}

    def worst(self, session: Session) -> float:
        padded = (_START, _START, *session, _END)
        return max(-math.log(self._p(padded[i], padded[i - 2 : i])) for i in range(2, len(padded)))

    def _p(self, event: int, history: Session) -> float:
        shorter = 1.0 / self._size if not history else self._p(event, history[1:])
        counts = self._next.get(history)
        if counts is None:
            return shorter
        kinds = len(counts)
        return (counts[event] + kinds * shorter) / (self._total[history] + kinds)


def raw_forest(known: Sequence[Session], judged: Sequence[Session], seed: int) -> Control:
    """The style of the system that vigild replaces: an Isolation Forest on raw counts of events."""
    columns = {event: i for i, event in enumerate(sorted({event for session in known for event in session}))}
    forest = IsolationForest(n_estimators=100, random_state=seed).fit(_counts(known, columns))
    counts = _counts(judged, columns)
    strangeness = -np.asarray(forest.score_samples(counts), dtype=np.float64)
    return Control("Isolation Forest on raw counts (original)", strangeness, forest.predict(counts) == -1)


def _counts(sessions: Sequence[Session], columns: dict[int, int]) -> Floats:
    """float64 [sessions, events + 1]: the last column counts events that were never seen."""
    counts = np.zeros((len(sessions), len(columns) + 1))
    for row, session in enumerate(sessions):
        for event, times in Counter(session).items():
            counts[row, columns.get(event, len(columns))] += times
    return counts
