"""Scoring with the causal transformer: the surprise of each template after those before it in its session.

The network reads a session in windows (see `windows`). Their prefixes recur, and one causal pass over a window scores
all its new positions.

Two memos save work: one of the surprises of whole windows, for short windows that recur, and one of the keys and
values of blocks of 16 tokens, for windows that grow. They cannot change a result (see "Exact bits" in `network`): a
surprise depends on the model, the window up to the token and the token, not on the batch or on earlier calls.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from detection.columns.memo_cache import CacheSlots
from detection.columns.row_hashing import Keys, folded_hashes, mixed_words
from detection.members.transformer.network import (
    BLOCK,
    hidden_states,
    hidden_states_of_block,
    new_key_value_pages,
    next_token_logits,
)
from detection.members.transformer.windows import (
    CONTEXT,
    CONTINUED,
    START,
    TokenWindows,
    WindowPlan,
    tokens_of_templates,
    window_start,
)

_ROWS_MULTIPLE = 16  # bits are equal at every multiple of it
_WINDOWS_AT_ONCE = 8192
_WALKED_AT_ONCE = 192  # more keys and values fall out of the second-level cache
_ANSWERS_AT_ONCE = 1024
_MEMO_WINDOWS = 1 << 15

# A window and the wanted range, as 64-bit words of four tokens. No key is all zeros: `size` is at least 2.
_WINDOW_WORDS = (CONTEXT + 4) // 4
_BLOCK_WORDS = BLOCK // 4
_BLOCKS = CONTEXT // BLOCK
_FULL_BLOCKS = _BLOCKS - 1  # the last one never is: the 64th entry is only predicted


class SequenceModel:
    """Scores with one model generation. Not thread-safe: scoring fills the memos. Sets torch to one thread.

    `blocks` (a power of two) is the number of blocks of 16 tokens in the memo, 16 KB each, allocated at once. It
    decides how fast long sessions are scored (4096 suffice for about 2000 at a time) and does not change any score.
    """

    def __init__(
        self, weights: Mapping[str, NDArray[Any]], vocabulary: NDArray[np.int32], *, blocks: int = 4096
    ) -> None:
        torch.set_num_threads(1)  # two were slower, and the count changes bits
        self._vocabulary = vocabulary
        self._weights = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
        self._windows = CacheSlots(_MEMO_WINDOWS, _WINDOW_WORDS)
        self._values = np.zeros((_MEMO_WINDOWS, CONTEXT), dtype=np.float32)
        self._blocks = CacheSlots(blocks, _FULL_BLOCKS * _BLOCK_WORDS)
        # A page for each block in the memo, followed by those of the windows that are being computed.
        self._pages = new_key_value_pages(blocks + _WALKED_AT_ONCE * _BLOCKS)
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
        begin where their session begins. Where `ends` is set, the surprise of the session's end follows that of
        the last template. All templates outside the vocabulary are the token UNSEEN.
        """
        plan = WindowPlan(tokens_of_templates(tokens, self._vocabulary), offsets, known, starts, ends)
        parts = [np.empty(0, np.float32)]
        for start in range(0, len(plan), _WINDOWS_AT_ONCE):
            parts.append(self._score_windows(plan.windows(start, start + _WINDOWS_AT_ONCE)))
        return np.concatenate(parts)

    def likely(self, context: NDArray[np.int32], starts: bool) -> NDArray[np.float64]:
        """As `Predictor.likely`; `context` may be the last templates of a session only."""
        begin = int(window_start(np.array([len(context)]))[0])
        tokens = (
            tokens_of_templates(context[begin:], self._vocabulary) if len(context) > begin else np.zeros(0, np.int16)
        )
        marker = START if starts and begin == 0 else CONTINUED
        inputs = np.concatenate(([marker], tokens)).astype(np.int64)
        with torch.inference_mode():
            state = hidden_states(self._weights, torch.from_numpy(inputs)[None, :])[:, -1]
            p = torch.softmax(next_token_logits(self._weights, state)[0].double(), dim=0)
        return p.numpy()

    def _score_windows(self, windows: TokenWindows) -> NDArray[np.float32]:
        """Surprises of the entries to predict, row by row: float32."""
        keys = _keys_of_windows(windows)
        hashes = folded_hashes(mixed_words(keys).sum(axis=1))
        slot, found = self._windows.find(keys, hashes)
        values = self._values[slot]
        missing = np.flatnonzero(~found)
        if len(missing):
            alone, where = _distinct_keys(keys[missing], hashes[missing])
            rows = missing[alone]
            fresh = self._compute_windows(windows.only(rows))
            claimed, chosen = self._windows.claim(keys[rows], hashes[rows])
            self._values[claimed] = fresh[chosen]
            values[missing] = fresh[where]
        entry = np.arange(1, CONTEXT + 1)
        return values[(entry >= windows.first[:, None]) & (entry < windows.size[:, None])]

    def _compute_windows(self, windows: TokenWindows) -> NDArray[np.float32]:
        """Surprises by entry - 1: float32 [n, 64], undefined for entries that are not to be predicted."""
        values = np.zeros((len(windows), CONTEXT), dtype=np.float32)
        order = np.argsort(windows.size, kind="stable")
        for start in range(0, len(order), _WALKED_AT_ONCE):
            chosen = order[start : start + _WALKED_AT_ONCE]
            values[chosen] = self._walk_windows(windows.only(chosen))
        return values

    def _walk_windows(self, windows: TokenWindows) -> NDArray[np.float32]:
        """As `_compute_windows`, for at most _WALKED_AT_ONCE windows."""
        keys, hashes = _prefixes_of_windows(windows.rows)
        place, known = self._blocks.find(keys, hashes)
        # A window is computed from the first block with an entry to predict, or from the first one not in the memo.
        begin = np.minimum(np.cumprod(known, axis=1).sum(axis=1), (windows.first - 1) // BLOCK)
        number = np.arange(_FULL_BLOCKS)
        behind = number < begin[:, None]
        table = self._walked_pages[: len(windows)].copy()
        table[:, :-1][behind] = place[behind]
        values = np.zeros((len(windows), CONTEXT), dtype=np.float32)
        with torch.inference_mode():
            states, positions = self._hidden_states_from_block(windows, begin, table)
            values.reshape(-1)[positions] = self._target_surprises(states, windows.rows.reshape(-1)[positions + 1])
            # Store the full blocks that were computed. A block is full if an entry follows it.
            new = ~behind & ((number + 1) * BLOCK < windows.size[:, None])
            claimed, chosen = self._blocks.claim(keys[new], hashes[new])
            source = table[:, :-1][new][chosen]
            self._pages[:, torch.from_numpy(claimed)] = self._pages[:, torch.from_numpy(source)]
        return values

    def _hidden_states_from_block(
        self, windows: TokenWindows, begin: NDArray[np.int64], table: NDArray[np.int64]
    ) -> tuple[Tensor, NDArray[np.int64]]:
        """The hidden states of the wanted positions, computing each window from its block `begin`.

        Float32 [m, 64], and these positions in the flattened rows, int64 [m]; some occur twice.
        """
        last = (windows.size - 2) // BLOCK
        states, positions = [], []
        for block in range(_BLOCKS):
            position = np.arange(block * BLOCK, (block + 1) * BLOCK)
            rows = np.flatnonzero((begin <= block) & (block <= last))
            # Rows whose block is only context come after those with wanted positions.
            rows = rows[np.argsort(windows.first[rows] - 1 > position[-1], kind="stable")]
            if not len(rows):
                continue
            wanted = (position >= windows.first[rows, None] - 1) & (position < windows.size[rows, None] - 1)
            places = _filled_up_to_multiple(np.flatnonzero(wanted))
            states.append(
                hidden_states_of_block(
                    self._weights,
                    torch.from_numpy(windows.rows[rows[:, None], position].astype(np.int64)),
                    self._pages,
                    torch.from_numpy(table[rows, : block + 1]),
                    torch.from_numpy(places),
                )
            )
            positions.append(rows[places // BLOCK] * CONTEXT + position[places % BLOCK])
        return torch.cat(states), np.concatenate(positions)

    def _target_surprises(self, states: Tensor, target: NDArray[np.int16]) -> NDArray[np.float32]:
        """-ln p of each target, >= 0: float32 [n]."""
        nats = np.empty(len(target), dtype=np.float32)
        for start in range(0, len(target), _ANSWERS_AT_ONCE):
            some = slice(start, start + _ANSWERS_AT_ONCE)
            answers = torch.from_numpy(target[some].astype(np.int64))
            nats[some] = F.cross_entropy(
                next_token_logits(self._weights, states[some]), answers, reduction="none"
            ).numpy()
        return np.maximum(nats, 0.0)


def _keys_of_windows(windows: TokenWindows) -> Keys:
    keys = np.zeros((len(windows), _WINDOW_WORDS * 4), dtype=np.int16)
    keys[:, :CONTEXT] = windows.rows
    keys[:, CONTEXT] = windows.first
    keys[:, CONTEXT + 1] = windows.size
    return keys.view(np.uint64)


def _prefixes_of_windows(rows: NDArray[np.int16]) -> tuple[Keys, Keys]:
    """The keys [n, 3, words] of the prefixes of rows up to the end of each block, and their hashes [n, 3].

    The rest of a key is zeros, which do not occur in a full block after the marker.
    """
    words = np.ascontiguousarray(rows[:, : _FULL_BLOCKS * BLOCK]).view(np.uint64)
    sums = mixed_words(words).reshape(len(rows), _FULL_BLOCKS, _BLOCK_WORDS).sum(axis=2).cumsum(axis=1)
    return words[:, None, :] * _UP_TO_BLOCK, folded_hashes(sums)


_UP_TO_BLOCK = np.repeat(np.tri(_FULL_BLOCKS, dtype=np.uint64), _BLOCK_WORDS, axis=1)


def _distinct_keys(keys: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One row of each distinct key, and the index of each row's key among these."""
    _, alone, where = np.unique(hashes, return_index=True, return_inverse=True)
    if (keys[alone[where]] != keys).any():  # two different keys with one hash: let each row stand for itself
        return np.arange(len(keys)), np.arange(len(keys))
    return alone, where


def _filled_up_to_multiple(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """`numbers`, continued with its own beginning up to a multiple of _ROWS_MULTIPLE."""
    return np.resize(numbers, -(-len(numbers) // _ROWS_MULTIPLE) * _ROWS_MULTIPLE)
