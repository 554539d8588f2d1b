"""The member `counts`: the distance of a finished session's template counts from those of the nearest normal session.

The distance of two count vectors is Bray and Curtis's: sum |a - b| / sum (a + b), in [0, 1]. A session's score is its
distance to the nearest reference (the "event count vector" baselines of Du and Li and of later benchmarks compare the
same vectors). References are the vectors that occurred at least twice. A session with templates that were admitted
after the references were made is not compared. Vectors have 64 buckets, by template id modulo 64.

Its part of a model: `vectors` uint8 [n, 64], the most frequent first, at most MOST_REFERENCES.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from detection.columns.memo_cache import CacheSlots
from detection.columns.row_hashing import folded_hashes, mixed_words
from detection.members.fitted_member_view import COUNT_BUCKETS, Floats, Standing, View, view_of_whole_sessions
from detection.members.member_interfaces import FitData, FittedMember, Part

MOST_REFERENCES = 512
FEWEST_SESSIONS_OF_A_KIND = 2
_MEMO = 1 << 13
_AT_ONCE = 64
_WORDS = COUNT_BUCKETS // 8


class Counts(FittedMember):
    name: ClassVar[str] = "counts"
    folds: ClassVar[int] = 5
    family: ClassVar[str] = "sequence"
    early: ClassVar[bool] = True

    def __init__(self, part: Part, vocabulary: NDArray[np.int32]) -> None:
        self._references = part["vectors"].astype(np.int16)
        self._sizes = self._references.sum(axis=1, dtype=np.int32)
        self._slots = CacheSlots(_MEMO, _WORDS)
        self._known = np.zeros(_MEMO)

    def score(self, view: View, standing: Standing) -> Floats:
        """The distance at the last row of each complete session, 0 elsewhere: float64 [R]."""
        scores = np.zeros(len(view))
        last = view.final_rows()
        vectors = view.counts[view.complete & (np.diff(view.offsets) > 0)]
        if len(last):
            scores[last] = np.where(standing.muted[last] > 0, 0.0, self.distances(vectors))
        return scores

    def distances(self, vectors: NDArray[np.uint8]) -> Floats:
        """The distance of each vector (uint8 [n, 64], none all zeros) to the nearest reference: float64 [n]; 1 without
        references."""
        keys = np.ascontiguousarray(vectors).view(np.uint64)
        hashes = folded_hashes(mixed_words(keys).sum(axis=1))
        slot, known = self._slots.find(keys, hashes)
        values = self._known[slot]
        missing = np.flatnonzero(~known)
        if len(missing):
            distinct, first, where = np.unique(vectors[missing], axis=0, return_index=True, return_inverse=True)
            fresh = self._compute_distances(distinct)
            rows = missing[first]
            claimed, chosen = self._slots.claim(keys[rows], hashes[rows])
            self._known[claimed] = fresh[chosen]
            values[missing] = fresh[where.reshape(-1)]
        return values

    def _compute_distances(self, vectors: NDArray[np.uint8]) -> Floats:
        nearest = np.ones(len(vectors))
        if not len(self._references):
            return nearest
        for start in range(0, len(vectors), _AT_ONCE):
            some = vectors[start : start + _AT_ONCE].astype(np.int16)
            apart = np.abs(some[:, None, :] - self._references).sum(axis=2, dtype=np.int32)
            nearest[start : start + _AT_ONCE] = (apart / (some.sum(axis=1)[:, None] + self._sizes)).min(axis=1)
        return nearest

    @classmethod
    def fit(cls, fit_data: FitData) -> dict[str, NDArray[Any]]:
        vectors, mass = np.unique(view_of_whole_sessions(fit_data.data, 0).counts, axis=0, return_counts=True)
        common = np.argsort(-mass, kind="stable")
        common = common[mass[common] >= FEWEST_SESSIONS_OF_A_KIND][:MOST_REFERENCES]
        return {"vectors": np.ascontiguousarray(vectors[common])}
