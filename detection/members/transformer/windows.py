"""Tokens and windows: how the transformer reads a session. Needs no torch, so that what only counts tokens does not.

A session is a sequence of templates, optionally with its end. The network reads it in *windows*: a marker (START
where the session really begins, CONTINUED elsewhere) and up to 63 templates. Windows begin at 0, 32, 64...; token
number n of a session is predicted in the window that begins at `window_start(n)`, where at least 31 templates (or all
there are) precede it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONTEXT = 64  # inputs per window: a marker and up to 63 templates
STRIDE = 32
LARGEST_VOCABULARY = 1020  # templates; the rest is UNSEEN. With the four tokens below, 10 bits a token

# Tokens. Token FIRST + i stands for vocabulary[i].
START, CONTINUED, END, UNSEEN, FIRST = range(5)


def tokens_of_templates(templates: NDArray[np.int32], vocabulary: NDArray[np.int32]) -> NDArray[np.int16]:
    """The token of each template id, int16; `vocabulary` is ascending and not empty."""
    place = np.minimum(np.searchsorted(vocabulary, templates), len(vocabulary) - 1)
    return np.where(vocabulary[place] == templates, place + FIRST, UNSEEN).astype(np.int16)


def window_start(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The start of the window that predicts token number `counts` (int64, from 0) of a session: int64."""
    return np.where(counts < CONTEXT - 1, 0, ((counts - CONTEXT + 1) // STRIDE + 1) * STRIDE)


@dataclass(frozen=True)
class TokenWindows:
    """Windows as rows, in the order of sessions and of positions.

    rows   int16 [n, 64]: marker, templates, and as the last entry the last token to predict (END included);
           zeros after it. Entry i + 1 is predicted from entries 0..i.
    first  int64 [n]: the first entry to predict, counted from 1
    size   int64 [n]: entries in the row; those to predict are first..size - 1
    """

    rows: NDArray[np.int16]
    first: NDArray[np.int64]
    size: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, chosen: NDArray[np.int64]) -> "TokenWindows":
        """The windows with the indices `chosen`, in that order."""
        return TokenWindows(self.rows[chosen], self.first[chosen], self.size[chosen])


class WindowPlan:
    """The windows that together score the new positions of segments; for the arguments see
    `scoring.SequenceModel.surprises`, with `tokens` instead of template ids."""

    def __init__(
        self,
        tokens: NDArray[np.int16],
        offsets: NDArray[np.int64],
        known: NDArray[np.int64],
        starts: NDArray[np.bool_],
        ends: NDArray[np.bool_],
    ) -> None:
        self._tokens = tokens
        # The last position to predict; END follows the segment's last template.
        last = np.diff(offsets) - 1 + ends
        first_window = window_start(known)
        count = np.where(last >= known, (window_start(last) - first_window) // STRIDE + 1, 0)
        segment = np.repeat(np.arange(len(count)), count)
        ordinal = np.arange(len(segment)) - np.repeat(np.cumsum(count) - count, count)
        begin = first_window[segment] + ordinal * STRIDE
        self._marker = np.where((begin == 0) & starts[segment], START, CONTINUED).astype(np.int16)
        # A later window begins to predict where the one before it is full: at its entry number STRIDE.
        self.first = np.where(ordinal == 0, known[segment] - begin, STRIDE - 1) + 1
        self.size = np.where(ordinal == count[segment] - 1, last[segment] - begin, CONTEXT - 2) + 2
        self._place = offsets[:-1][segment] + begin
        self._stop = offsets[1:][segment]

    def __len__(self) -> int:
        return len(self.size)

    def windows(self, start: int, stop: int) -> TokenWindows:
        """The windows start..stop - 1."""
        size, marker = self.size[start:stop], self._marker[start:stop]
        place = self._place[start:stop, None] + np.arange(CONTEXT - 1)
        rows = np.zeros((len(size), CONTEXT), dtype=np.int16)
        rows[:, 0] = marker
        if len(self._tokens):
            rows[:, 1:] = self._tokens.take(place, mode="clip")
        rows[:, 1:][place == self._stop[start:stop, None]] = END
        rows[np.arange(CONTEXT) >= size[:, None]] = 0
        return TokenWindows(rows, self.first[start:stop], size)
