"""What the next model will be trained on: the last lines and session ends, in one ring of columns.

A row is a line (its template, time and flags) or the end of a session. Rows of one session share a
serial; `training_set` gathers them back into sequences. A session whose beginning has left the ring,
or that is still open, is not learned from: half a session would teach that sessions begin in the middle.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.state import Columns, State

ROWS = 1 << 18

BEGINS = 1  # first line of its session
STARTS = 2  # ... and nothing of the same key came just before: the session truly starts here
ERROR = 4
TAINTED = 8  # a rule matched the line
ENDS = 16  # closing row: the session ended by silence
SPLITS = 32  # closing row: the session was cut because it was long

_CLOSING = ENDS | SPLITS


@dataclass(frozen=True)
class Sequences:
    """Closed sessions as flat columns: session s is rows offsets[s]:offsets[s+1] of the per-line columns."""

    tokens: NDArray[np.int32]
    errors: NDArray[np.bool_]
    times: NDArray[np.float64]
    offsets: NDArray[np.int64]
    starts: NDArray[np.bool_]
    ends: NDArray[np.bool_]
    tainted: NDArray[np.bool_]


class History:
    def __init__(self) -> None:
        self._serials = np.zeros(ROWS, dtype=np.int64)
        self._templates = np.zeros(ROWS, dtype=np.int32)
        self._times = np.zeros(ROWS, dtype=np.float64)
        self._flags = np.zeros(ROWS, dtype=np.uint8)
        self._written = 0
        self.closed = 0  # session ends in the ring

    def append(
        self,
        serials: NDArray[np.int64],
        templates: NDArray[np.int32],
        times: NDArray[np.float64],
        flags: NDArray[np.uint8],
    ) -> None:
        """Add rows in the order in which they happened; all columns [n], n <= ROWS."""
        slots = np.arange(self._written, self._written + len(serials)) % ROWS
        self._serials[slots] = serials
        self._templates[slots] = templates
        self._times[slots] = times
        self.closed += int(np.count_nonzero(flags & _CLOSING)) - int(np.count_nonzero(self._flags[slots] & _CLOSING))
        self._flags[slots] = flags
        self._written += len(serials)

    def __len__(self) -> int:
        return min(self._written, ROWS)

    def sequences(self) -> Sequences:
        """The whole sessions in the ring, ordered by serial; costs some tens of milliseconds."""
        held = len(self)
        order = np.arange(self._written - held, self._written) % ROWS
        order = order[np.argsort(self._serials[order], kind="stable")]
        serials, flags = self._serials[order], self._flags[order]
        if not held:
            order = np.zeros(0, dtype=np.int64)
        heads = np.flatnonzero(np.concatenate(([True], serials[1:] != serials[:-1]))) if held else order
        sizes = np.diff(np.append(heads, held))
        any_flag = np.bitwise_or.reduceat(flags, heads) if held else flags
        whole = (any_flag & BEGINS > 0) & (any_flag & _CLOSING > 0) & (sizes > 1)
        rows = np.repeat(whole, sizes) & (flags & _CLOSING == 0)
        lengths = (sizes - 1)[whole]
        return Sequences(
            tokens=self._templates[order][rows],
            errors=flags[rows] & ERROR > 0,
            times=self._times[order][rows],
            offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
            starts=any_flag[whole] & STARTS > 0,
            ends=any_flag[whole] & ENDS > 0,
            tainted=any_flag[whole] & TAINTED > 0,
        )

    def export(self) -> State:
        held = len(self)
        return {
            "serials": self._serials[:held].copy(),
            "templates": self._templates[:held].copy(),
            "times": self._times[:held].copy(),
            "flags": self._flags[:held].copy(),
            "written": self._written,
        }

    @classmethod
    def load(cls, columns: Columns) -> "History":
        history = cls()
        history._written = int(columns["written"])  # type: ignore[arg-type]
        held = len(history)
        history._serials[:held] = columns["serials"]  # type: ignore[assignment]
        history._templates[:held] = columns["templates"]  # type: ignore[assignment]
        history._times[:held] = columns["times"]
        history._flags[:held] = columns["flags"]  # type: ignore[assignment]
        history.closed = int(np.count_nonzero(history._flags & _CLOSING))
        return history
