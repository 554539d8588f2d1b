"""The member `ngram`: how unusual a template is after the two before it, by an interpolated 3-gram model.

Orders 1 to 3 are interpolated with Witten-Bell smoothing (Witten and Bell, 1991, their method C). After a history h
that was followed by c(h) templates, T(h) of them different,

    P(w | h) = (c(h, w) + T(h) P(w | h')) / (c(h) + T(h))        h' is h without its oldest template

down to the uniform distribution. The end of a session is a token like any other. A session is preceded by START tokens,
or by CONTINUED tokens if it was cut there. A 6-gram in addition, by its mean or by its largest score, made the ensemble
worse (measured: PR-AUC -.04 and -.05 on raw HDFS, -.01 on clean sessions).

Its part of a model holds, for each order k, the k-grams and their histories as sorted keys with counts. A token takes
10 bits, so three of them are one exact key:

    grams.k    uint64 [n] ascending    counts.k   int64 [n]
    after.k    uint64 [m] ascending    total.k, kinds.k   int64 [m]     c(h) and T(h) of each history of k - 1 templates
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from detection.columns.memo_cache import CacheSlots
from detection.columns.row_hashing import folded_hashes, mixed_words
from detection.columns.runs import repeat_per_row
from detection.members.fitted_member_view import CLOSING, Floats, Standing, View, view_of_whole_sessions
from detection.members.member_interfaces import FitData, Part, Predictor
from detection.members.transformer.windows import CONTINUED, END, FIRST, START, tokens_of_templates
from detection.models.training_set import TrainingSet

ORDERS = 3
_TOKEN_BITS = np.uint64(10)
_MEMO = 1 << 16

Keys = NDArray[np.uint64]


class NgramModel:
    """The probability of every row of a view. Not thread-safe: scoring fills the memo."""

    def __init__(self, part: Part, vocabulary: NDArray[np.int32]) -> None:
        self._vocabulary = vocabulary
        self._orders = [
            (part[f"grams.{k}"], part[f"counts.{k}"], part[f"after.{k}"], part[f"total.{k}"], part[f"kinds.{k}"])
            for k in range(1, ORDERS + 1)
        ]
        self._uniform = 1.0 / (len(vocabulary) + 2)  # UNSEEN and END are outcomes, too
        self._slots = CacheSlots(_MEMO, 1)
        self._known = np.zeros(_MEMO)

    def nats(self, view: View) -> Floats:
        """-ln P of each row: float64 [R].

        Muted rows and the row after each are 0: what follows a template that the model does not know is unknown, too.
        """
        found = self._surprises_of_keys(ngram_row_keys(view, self._vocabulary))
        found[view.muted_rows() | view.behind_muted_rows()] = 0.0
        return found

    def likely(self, context: NDArray[np.int32], starts: bool) -> Floats:
        """As `Predictor.likely`."""
        tokens = tokens_of_templates(context[1 - ORDERS :], self._vocabulary).tolist() if len(context) else []
        tokens = [START if starts else CONTINUED] * (ORDERS - 1 - len(tokens)) + tokens
        history = 0
        for token in tokens:
            history = history << int(_TOKEN_BITS) | token
        every = np.arange(FIRST + len(self._vocabulary), dtype=np.uint64)
        return np.exp(-self._compute_surprises(np.uint64(history << int(_TOKEN_BITS)) | every))

    def _surprises_of_keys(self, keys: Keys) -> Floats:
        """As `nats`, by key: float64 [n]."""
        words = (keys + np.uint64(1))[:, None]  # no key of a memo is all zeros
        hashes = folded_hashes(mixed_words(words).sum(axis=1))
        slot, known = self._slots.find(words, hashes)
        values = self._known[slot]
        missing = np.flatnonzero(~known)
        if len(missing):
            distinct, first, where = np.unique(keys[missing], return_index=True, return_inverse=True)
            fresh = self._compute_surprises(distinct)
            rows = missing[first]
            claimed, chosen = self._slots.claim(words[rows], hashes[rows])
            self._known[claimed] = fresh[chosen]
            values[missing] = fresh[where]
        return values

    def _compute_surprises(self, keys: Keys) -> Floats:
        p = np.full(len(keys), self._uniform)
        for k, (grams, counts, after, total, kinds) in enumerate(self._orders, 1):
            gram = keys & np.uint64((1 << (10 * k)) - 1)
            history = gram >> _TOKEN_BITS
            followed, different = _values_of_keys(after, history, total), _values_of_keys(after, history, kinds)
            seen = _values_of_keys(grams, gram, counts)
            weight = followed + different
            p = np.where(weight > 0, (seen + different * p) / np.maximum(weight, 1), p)
        nats: Floats = -np.log(p)
        return nats


class Ngram(Predictor):
    """Scores each row by its surprise, in nats; the session's running maximum includes its end."""

    name: ClassVar[str] = "ngram"
    folds: ClassVar[int] = 5
    family: ClassVar[str] = "sequence"
    early: ClassVar[bool] = True

    def __init__(self, part: Part, vocabulary: NDArray[np.int32]) -> None:
        self._model = NgramModel(part, vocabulary)

    def score(self, view: View, standing: Standing) -> Floats:
        return self._model.nats(view)

    def likely(self, context: NDArray[np.int32], starts: bool) -> Floats:
        """As `Predictor.likely`."""
        return self._model.likely(context, starts)

    @classmethod
    def fit(cls, fit_data: FitData) -> dict[str, NDArray[Any]]:
        return count_ngrams(fit_data.data, fit_data.vocabulary)


def ngram_row_keys(view: View, vocabulary: NDArray[np.int32]) -> Keys:
    """The three tokens up to and including each row as one key, the last in the lowest bits: uint64 [R]."""
    tokens = tokens_of_templates(view.tokens, vocabulary).astype(np.uint64)
    piece, place = repeat_per_row(view.offsets), view.token_places()
    own = np.full(len(piece), END, dtype=np.uint64)
    is_line = view.templates != CLOSING
    own[is_line] = tokens[place[is_line]]
    keys: Keys = own
    begin, before = view.token_offsets[:-1][piece], np.where(view.starts, START, CONTINUED)[piece].astype(np.uint64)
    for back in range(1, ORDERS):
        at = place - back
        inside = at >= begin
        token = before.copy()
        token[inside] = tokens[at[inside]]
        keys = keys | token << (_TOKEN_BITS * np.uint64(back))
    return keys


def count_ngrams(data: TrainingSet, vocabulary: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
    """The arrays (see the module) that counting the rows of `data` gives."""
    keys = ngram_row_keys(view_of_whole_sessions(data, 0), vocabulary)
    part: dict[str, NDArray[Any]] = {}
    for k in range(1, ORDERS + 1):
        grams, counts = np.unique(keys & np.uint64((1 << (10 * k)) - 1), return_counts=True)
        after, first = np.unique(grams >> _TOKEN_BITS, return_index=True)
        # Grams are sorted, so those of one history lie together.
        part |= {f"grams.{k}": grams, f"counts.{k}": counts.astype(np.int64), f"after.{k}": after}
        part[f"total.{k}"] = np.add.reduceat(counts, first).astype(np.int64) if len(first) else counts.astype(np.int64)
        part[f"kinds.{k}"] = np.diff(np.append(first, len(grams))).astype(np.int64)
    return part


def _values_of_keys(table: Keys, keys: Keys, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """values[i] where table[i] is the key, 0 where none is."""
    if not len(table):
        return np.zeros(len(keys), dtype=np.int64)
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[at] == keys, values[at], 0)
