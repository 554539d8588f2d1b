"""How surprising each template is after those before it in its session: the causal transformer's scoring.

A session is a sequence of templates, and optionally its end. The network reads *windows* of it: a marker
(START where the session truly begins, CONTINUED elsewhere) and up to 63 templates. Windows begin at 0, 32,
64...; token number n of a session is predicted in the window that begins at `window_start(n)`, where it has
at least 31 templates before it (or all there are). So prefixes recur, and one causal pass over a window
scores all its new positions.

Caches are invisible (see `detection.network` on bits): a surprise depends on the model, the window up to the
token and the token, never on what else was asked, in which batch, or before.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from detection.model import Model
from detection.network import hidden, logits

CONTEXT = 64  # inputs per window: a marker and up to 63 templates
STRIDE = 32
LARGEST_VOCABULARY = 1024  # templates; the rest is UNSEEN

# Tokens. Token FIRST + i stands for vocabulary[i].
START, CONTINUED, END, UNSEEN, FIRST = range(5)

_LENGTHS = np.array([4, 8, 16, 32, 48, 64])  # a row is padded to the shortest of these that holds it
_TOKENS_AT_ONCE = 4096  # larger batches fall out of the second-level cache
_ROWS_MULTIPLE = 16  # bits are equal at every multiple of it
_WINDOWS_AT_ONCE = 8192
_MEMO_ROWS = 1 << 15


def window_start(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the window begins that predicts token number `counts` (from 0) of a session."""
    return np.where(counts < CONTEXT - 1, 0, ((counts - CONTEXT + 1) // STRIDE + 1) * STRIDE)


@dataclass(frozen=True)
class Windows:
    """Windows as rows, in the order of sessions and of positions.

    rows   int16 [n, 64]: marker, templates, and as the last entry the last token to predict (END included);
           zeros after it. Entry i + 1 is predicted from entries 0..i.
    first  int64 [n]: the first entry asked for, counted from 1
    size   int64 [n]: entries in the row; those asked for are first..size - 1
    """

    rows: NDArray[np.int16]
    first: NDArray[np.int64]
    size: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


class Plan:
    """Which windows score which positions of segments; for the arguments see `SequenceModel.surprises`."""

    def __init__(
        self,
        tokens: NDArray[np.int16],
        offsets: NDArray[np.int64],
        known: NDArray[np.int64],
        starts: NDArray[np.bool_],
        ends: NDArray[np.bool_],
    ) -> None:
        self._tokens = tokens
        # The last position asked for; END sits just behind the segment's templates.
        last = np.diff(offsets) - 1 + ends
        first_window = window_start(known)
        count = np.where(last >= known, (window_start(last) - first_window) // STRIDE + 1, 0)
        segment = np.repeat(np.arange(len(count)), count)
        ordinal = np.arange(len(segment)) - np.repeat(np.cumsum(count) - count, count)
        begin = first_window[segment] + ordinal * STRIDE
        self._marker = np.where((begin == 0) & starts[segment], START, CONTINUED).astype(np.int16)
        # A later window takes over where the one before it is full: at its entry number STRIDE.
        self.first = np.where(ordinal == 0, known[segment] - begin, STRIDE - 1) + 1
        self.size = np.where(ordinal == count[segment] - 1, last[segment] - begin, CONTEXT - 2) + 2
        self._place = offsets[:-1][segment] + begin
        self._stop = offsets[1:][segment]

    def __len__(self) -> int:
        return len(self.size)

    def windows(self, start: int, stop: int) -> Windows:
        """Windows start..stop - 1."""
        size, marker = self.size[start:stop], self._marker[start:stop]
        place = self._place[start:stop, None] + np.arange(CONTEXT - 1)
        rows = np.zeros((len(size), CONTEXT), dtype=np.int16)
        rows[:, 0] = marker
        if len(self._tokens):
            rows[:, 1:] = self._tokens.take(place, mode="clip")
        rows[:, 1:][place == self._stop[start:stop, None]] = END
        rows[np.arange(CONTEXT) >= size[:, None]] = 0
        return Windows(rows, self.first[start:stop], size)


class SequenceModel:
    """Scores with one model generation. Not for two threads at once: the memo is filled while scoring."""

    def __init__(self, model: Model) -> None:
        torch.set_num_threads(1)  # two were slower, and the count changes bits
        self._vocabulary = model.vocabulary
        self._weights = {name: torch.from_numpy(array.copy()) for name, array in model.weights.items()}
        self._memo = _Memo()

    def surprises(
        self,
        tokens: NDArray[np.int32],
        offsets: NDArray[np.int64],
        known: NDArray[np.int64],
        starts: NDArray[np.bool_],
        ends: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """-ln p of every new template of S segments, in nats, >= 0: segment by segment, in order.

        Segment s is tokens[offsets[s]:offsets[s+1]] (template ids): a session's current window followed by
        its new templates. The first known[s] <= 63 of them are context only. `starts` marks segments that
        begin where their session begins. Where `ends` is set, the surprise of the session ending there
        follows the last template's. Templates outside the vocabulary all count as one, UNSEEN.
        """
        plan = Plan(tokenised(tokens, self._vocabulary), offsets, known, starts, ends)
        parts = [np.empty(0, np.float32)]
        for start in range(0, len(plan), _WINDOWS_AT_ONCE):
            parts.append(self._scored(plan.windows(start, start + _WINDOWS_AT_ONCE)))
        return np.concatenate(parts)

    # To say what was expected instead, `expected` would cut windows with the same Plan, ask `_pass` for the
    # log-probabilities of the one position in question and keep the three largest.

    def _scored(self, windows: Windows) -> NDArray[np.float32]:
        """Surprises of the entries asked for, row by row."""
        keys = _keys(windows)
        hashes = _hashes(keys)
        values, missing = self._memo.get(keys, hashes)
        if len(missing):
            alone, where = _distinct(keys[missing], hashes[missing])
            rows = missing[alone]
            fresh = self._computed(Windows(windows.rows[rows], windows.first[rows], windows.size[rows]))
            self._memo.put(keys[rows], hashes[rows], fresh)
            values[missing] = fresh[where]
        entry = np.arange(1, CONTEXT + 1)
        return values[(entry >= windows.first[:, None]) & (entry < windows.size[:, None])]

    def _computed(self, windows: Windows) -> NDArray[np.float32]:
        """Surprises by entry - 1: float32 [n, 64], zero where not asked for."""
        values = np.zeros((len(windows), CONTEXT), dtype=np.float32)
        fits = np.searchsorted(_LENGTHS, windows.size - 1)
        for kind in np.unique(fits):
            rows = np.flatnonzero(fits == kind)
            length = int(_LENGTHS[kind])
            step = _TOKENS_AT_ONCE // length // _ROWS_MULTIPLE * _ROWS_MULTIPLE
            for start in range(0, len(rows), step):
                chosen = rows[start : start + step]
                values[chosen, :length] = self._pass(
                    windows.rows[chosen], windows.first[chosen], windows.size[chosen], length
                )
        return values

    def _pass(
        self,
        rows: NDArray[np.int16],
        first: NDArray[np.int64],
        size: NDArray[np.int64],
        length: int,
    ) -> NDArray[np.float32]:
        """One pass over rows of one padded length: float32 [n, length]."""
        entry = np.arange(1, length + 1)
        row, position = np.nonzero((entry >= first[:, None]) & (entry < size[:, None]))
        inputs = np.zeros((_rounded_up(len(rows)), length), dtype=np.int64)
        inputs[: len(rows)] = rows[:, :length]
        asked = np.zeros(_rounded_up(len(row)), dtype=np.int64)
        asked[: len(row)] = row * length + position
        target = np.zeros(len(asked), dtype=np.int64)
        target[: len(row)] = rows[row, position + 1]
        with torch.inference_mode():
            states = hidden(self._weights, torch.from_numpy(inputs))
            scores = logits(self._weights, states.flatten(0, 1)[torch.from_numpy(asked)])
            nats = F.cross_entropy(scores, torch.from_numpy(target), reduction="none").clamp_min_(0.0)
        values = np.zeros((len(rows), length), dtype=np.float32)
        values[row, position] = nats.numpy()[: len(row)]
        return values


def tokenised(templates: NDArray[np.int32], vocabulary: NDArray[np.int32]) -> NDArray[np.int16]:
    """Tokens for template ids; `vocabulary` ascending and not empty."""
    place = np.minimum(np.searchsorted(vocabulary, templates), len(vocabulary) - 1)
    return np.where(vocabulary[place] == templates, place + FIRST, UNSEEN).astype(np.int16)


class _Memo:
    """Surprises of exact windows: a table of `_MEMO_ROWS` places, where the newer window takes the place."""

    def __init__(self) -> None:
        self._keys = np.zeros((_MEMO_ROWS, _KEY_WORDS), dtype=np.uint64)
        self._values = np.zeros((_MEMO_ROWS, CONTEXT), dtype=np.float32)

    def get(
        self, keys: NDArray[np.uint64], hashes: NDArray[np.uint64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The values of `keys`, and which of them are not known (whose values mean nothing)."""
        place = hashes % np.uint64(_MEMO_ROWS)
        return self._values[place], np.flatnonzero((self._keys[place] != keys).any(axis=1))

    def put(self, keys: NDArray[np.uint64], hashes: NDArray[np.uint64], values: NDArray[np.float32]) -> None:
        # Two keys of one batch may want one place: the same one must win in both tables.
        place, chosen = np.unique(hashes % np.uint64(_MEMO_ROWS), return_index=True)
        self._keys[place] = keys[chosen]
        self._values[place] = values[chosen]


# A window and the range asked for, as 64-bit words. No key is all zeros: `size` is at least 2.
_KEY_WORDS = (CONTEXT + 4) // 4
_MULTIPLIERS = np.array(
    [pow(0x9E3779B97F4A7C15, power, 1 << 64) for power in range(1, _KEY_WORDS + 1)], dtype=np.uint64
)


def _keys(windows: Windows) -> NDArray[np.uint64]:
    keys = np.zeros((len(windows), _KEY_WORDS * 4), dtype=np.int16)
    keys[:, :CONTEXT] = windows.rows
    keys[:, CONTEXT] = windows.first
    keys[:, CONTEXT + 1] = windows.size
    return keys.view(np.uint64)


def _hashes(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed: NDArray[np.uint64] = ((keys ^ (keys >> np.uint64(29))) * _MULTIPLIERS).sum(axis=1, dtype=np.uint64)
    return mixed ^ (mixed >> np.uint64(32))


def _distinct(keys: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One row for each different key, and for each row which of those it is."""
    _, alone, where = np.unique(hashes, return_index=True, return_inverse=True)
    if (keys[alone[where]] != keys).any():  # two different keys with one hash: let each row stand for itself
        return np.arange(len(keys)), np.arange(len(keys))
    return alone, where


def _rounded_up(count: int) -> int:
    return -(-count // _ROWS_MULTIPLE) * _ROWS_MULTIPLE
