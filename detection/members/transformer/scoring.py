"""How surprising each template is after those before it in its session: the causal transformer's scoring.

A session is a sequence of templates, and optionally its end. The network reads *windows* of it: a marker
(START where the session truly begins, CONTINUED elsewhere) and up to 63 templates. Windows begin at 0, 32,
64...; token number n of a session is predicted in the window that begins at `window_start(n)`, where it has
at least 31 templates before it (or all there are). So prefixes recur, and one causal pass over a window
scores all its new positions.

Two memos spare work: surprises of whole windows, for the short ones that keep coming, and the keys and values
of blocks of 16 tokens, for the windows that grow. They are invisible (see `network` beside this, on bits): a
surprise depends on the model, the window up to the token and the token, never on what else was asked, in
which batch, or before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from detection.columns.memo import Keys, Places, folded, mixed
from detection.members.transformer.network import BLOCK, advance, hidden, logits, new_pages

CONTEXT = 64  # inputs per window: a marker and up to 63 templates
STRIDE = 32
LARGEST_VOCABULARY = 1020  # templates; the rest is UNSEEN. With the four tokens below, 10 bits a token

# Tokens. Token FIRST + i stands for vocabulary[i].
START, CONTINUED, END, UNSEEN, FIRST = range(5)

_ROWS_MULTIPLE = 16  # bits are equal at every multiple of it
_WINDOWS_AT_ONCE = 8192
_WALKED_AT_ONCE = 192  # more keys and values fall out of the second-level cache
_ANSWERS_AT_ONCE = 1024
_MEMO_WINDOWS = 1 << 15

# A window and the range asked for, as 64-bit words of four tokens. No key is all zeros: `size` is at least 2.
_WINDOW_WORDS = (CONTEXT + 4) // 4
_BLOCK_WORDS = BLOCK // 4
_BLOCKS = CONTEXT // BLOCK
_FULL_BLOCKS = _BLOCKS - 1  # the last one never is: the 64th entry is only predicted


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

    def only(self, chosen: NDArray[np.int64]) -> "Windows":
        """The windows whose numbers are `chosen`, in that order."""
        return Windows(self.rows[chosen], self.first[chosen], self.size[chosen])


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
    """Scores with one model generation. Not for two threads at once: the memos are filled while scoring.

    `blocks` (a power of two) says how many blocks of 16 tokens are remembered, 16 KB each and taken at once. It
    decides how fast long sessions are scored (4096 suffice for about 2000 at a time), never what comes out.
    """

    def __init__(
        self, weights: Mapping[str, NDArray[Any]], vocabulary: NDArray[np.int32], *, blocks: int = 4096
    ) -> None:
        torch.set_num_threads(1)  # two were slower, and the count changes bits
        self._vocabulary = vocabulary
        self._weights = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
        self._windows = Places(_MEMO_WINDOWS, _WINDOW_WORDS)
        self._values = np.zeros((_MEMO_WINDOWS, CONTEXT), dtype=np.float32)
        self._blocks = Places(blocks, _FULL_BLOCKS * _BLOCK_WORDS)
        # A page for each block that is remembered, and behind them for each of the windows being walked.
        self._pages = new_pages(blocks + _WALKED_AT_ONCE * _BLOCKS)
        self._walked_pages = np.arange(blocks, self._pages.shape[1]).reshape(-1, _BLOCKS)

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

    def likely(self, context: NDArray[np.int32], starts: bool) -> NDArray[np.float64]:
        """P of every token after `context` (template ids of a session, or of the end of one): float64 [tokens].

        `starts`: the context begins where the session begins.
        """
        begin = int(window_start(np.array([len(context)]))[0])
        tokens = tokenised(context[begin:], self._vocabulary) if len(context) > begin else np.zeros(0, np.int16)
        marker = START if starts and begin == 0 else CONTINUED
        inputs = np.concatenate(([marker], tokens)).astype(np.int64)
        with torch.inference_mode():
            state = hidden(self._weights, torch.from_numpy(inputs)[None, :])[:, -1]
            p = torch.softmax(logits(self._weights, state)[0].double(), dim=0)
        return p.numpy()

    def _scored(self, windows: Windows) -> NDArray[np.float32]:
        """Surprises of the entries asked for, row by row."""
        keys = _keys(windows)
        hashes = folded(mixed(keys).sum(axis=1))
        place, found = self._windows.find(keys, hashes)
        values = self._values[place]
        missing = np.flatnonzero(~found)
        if len(missing):
            alone, where = _distinct(keys[missing], hashes[missing])
            rows = missing[alone]
            fresh = self._computed(windows.only(rows))
            claimed, chosen = self._windows.claim(keys[rows], hashes[rows])
            self._values[claimed] = fresh[chosen]
            values[missing] = fresh[where]
        entry = np.arange(1, CONTEXT + 1)
        return values[(entry >= windows.first[:, None]) & (entry < windows.size[:, None])]

    def _computed(self, windows: Windows) -> NDArray[np.float32]:
        """Surprises by entry - 1: float32 [n, 64], of no meaning where not asked for."""
        values = np.zeros((len(windows), CONTEXT), dtype=np.float32)
        order = np.argsort(windows.size, kind="stable")
        for start in range(0, len(order), _WALKED_AT_ONCE):
            chosen = order[start : start + _WALKED_AT_ONCE]
            values[chosen] = self._walked(windows.only(chosen))
        return values

    def _walked(self, windows: Windows) -> NDArray[np.float32]:
        """As `_computed`, all windows side by side."""
        keys, hashes = _prefixes(windows.rows)
        place, known = self._blocks.find(keys, hashes)
        # A walk begins at the first block asked for, or where the blocks before it are not all known.
        begin = np.minimum(np.cumprod(known, axis=1).sum(axis=1), (windows.first - 1) // BLOCK)
        number = np.arange(_FULL_BLOCKS)
        behind = number < begin[:, None]
        table = self._walked_pages[: len(windows)].copy()
        table[:, :-1][behind] = place[behind]
        values = np.zeros((len(windows), CONTEXT), dtype=np.float32)
        with torch.inference_mode():
            states, asked = self._states(windows, begin, table)
            values.reshape(-1)[asked] = self._nats(states, windows.rows.reshape(-1)[asked + 1])
            # New are the full blocks walked through; a block is full if an entry follows it, the last being no input.
            new = ~behind & ((number + 1) * BLOCK < windows.size[:, None])
            claimed, chosen = self._blocks.claim(keys[new], hashes[new])
            source = table[:, :-1][new][chosen]
            self._pages[:, torch.from_numpy(claimed)] = self._pages[:, torch.from_numpy(source)]
        return values

    def _states(
        self, windows: Windows, begin: NDArray[np.int64], table: NDArray[np.int64]
    ) -> tuple[Tensor, NDArray[np.int64]]:
        """What the network makes of the positions asked for, walking each window from its block `begin`.

        Float32 [m, 64], and which positions these are of the flattened rows, int64 [m]. Some come twice.
        """
        last = (windows.size - 2) // BLOCK
        states, asked = [], []
        for block in range(_BLOCKS):
            position = np.arange(block * BLOCK, (block + 1) * BLOCK)
            rows = np.flatnonzero((begin <= block) & (block <= last))
            # Blocks that are only context behind those with positions asked for.
            rows = rows[np.argsort(windows.first[rows] - 1 > position[-1], kind="stable")]
            if not len(rows):
                continue
            wanted = (position >= windows.first[rows, None] - 1) & (position < windows.size[rows, None] - 1)
            places = _filled_up(np.flatnonzero(wanted))
            states.append(
                advance(
                    self._weights,
                    torch.from_numpy(windows.rows[rows[:, None], position].astype(np.int64)),
                    self._pages,
                    torch.from_numpy(table[rows, : block + 1]),
                    torch.from_numpy(places),
                )
            )
            asked.append(rows[places // BLOCK] * CONTEXT + position[places % BLOCK])
        return torch.cat(states), np.concatenate(asked)

    def _nats(self, states: Tensor, target: NDArray[np.int16]) -> NDArray[np.float32]:
        """-ln p of each target."""
        nats = np.empty(len(target), dtype=np.float32)
        for start in range(0, len(target), _ANSWERS_AT_ONCE):
            some = slice(start, start + _ANSWERS_AT_ONCE)
            answers = torch.from_numpy(target[some].astype(np.int64))
            nats[some] = F.cross_entropy(logits(self._weights, states[some]), answers, reduction="none").numpy()
        return np.maximum(nats, 0.0)


def tokenised(templates: NDArray[np.int32], vocabulary: NDArray[np.int32]) -> NDArray[np.int16]:
    """Tokens for template ids; `vocabulary` ascending and not empty."""
    place = np.minimum(np.searchsorted(vocabulary, templates), len(vocabulary) - 1)
    return np.where(vocabulary[place] == templates, place + FIRST, UNSEEN).astype(np.int16)


def _keys(windows: Windows) -> Keys:
    keys = np.zeros((len(windows), _WINDOW_WORDS * 4), dtype=np.int16)
    keys[:, :CONTEXT] = windows.rows
    keys[:, CONTEXT] = windows.first
    keys[:, CONTEXT + 1] = windows.size
    return keys.view(np.uint64)


def _prefixes(rows: NDArray[np.int16]) -> tuple[Keys, Keys]:
    """Keys [n, 3, words] of what rows hold up to the end of each block, and their hashes [n, 3].

    The rest of a key is zeros, which no full block holds behind the marker.
    """
    words = np.ascontiguousarray(rows[:, : _FULL_BLOCKS * BLOCK]).view(np.uint64)
    sums = mixed(words).reshape(len(rows), _FULL_BLOCKS, _BLOCK_WORDS).sum(axis=2).cumsum(axis=1)
    return words[:, None, :] * _UP_TO_BLOCK, folded(sums)


_UP_TO_BLOCK = np.repeat(np.tri(_FULL_BLOCKS, dtype=np.uint64), _BLOCK_WORDS, axis=1)


def _distinct(keys: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One row for each different key, and for each row which of those it is."""
    _, alone, where = np.unique(hashes, return_index=True, return_inverse=True)
    if (keys[alone[where]] != keys).any():  # two different keys with one hash: let each row stand for itself
        return np.arange(len(keys)), np.arange(len(keys))
    return alone, where


def _filled_up(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """`numbers`, repeated from the start up to a multiple of _ROWS_MULTIPLE."""
    return np.resize(numbers, -(-len(numbers) // _ROWS_MULTIPLE) * _ROWS_MULTIPLE)
