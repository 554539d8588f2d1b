"""The history from which the next training set is taken: the last lines and session ends, in a ring buffer of columns.

A row is a line (its template, time and flags) or the end of a session. Rows of one session have the same serial;
`closed_sessions` gathers them into sessions. A session whose beginning has been overwritten, or that is still open, is
not learned from: half a session would teach that sessions begin in the middle.

State: the columns of `_COLUMNS`, in the order of the buffer's slots; `written`, the number of rows since the state
began (row n is in slot n modulo ROWS); `mark`, the row from which on sessions that close are fresh.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.columns.state_columns import Columns, State, scalar_column
from detection.members.fitted_member_view import CLOSING
from detection.members.registry import ONLINE_NAMES
from detection.models.training_set import ClosedSessions

ROWS = 1 << 18

BEGINS = 1  # first line of its session
STARTS = 2  # ... and no line of the same key came just before: the session really starts here
ERROR = 4
TAINTED = 8  # a rule matched the line
ENDS = 16  # closing row: the session ended by silence
SPLITS = 32  # closing row: the session was cut because it was long
FLAGGED = 64  # closing row: the ensemble flagged the session
VOUCHED = 128  # closing row: the operator says that the session is normal

_CLOSING = ENDS | SPLITS


_COLUMNS = {
    "serials": np.int64,
    "templates": np.int32,
    "times": np.float64,
    "flags": np.uint8,
    **dict.fromkeys(ONLINE_NAMES, np.float32),  # each online member's score of the line
    "about": np.uint64,  # of closing rows the cause, of lines a hash of the session's key
}


class History:
    """The last ROWS lines and session ends. `append` and `close` add to it, `closed_sessions` reads it."""

    def __init__(self) -> None:
        self._column: dict[str, NDArray[Any]] = {name: np.zeros(ROWS, dtype=dtype) for name, dtype in _COLUMNS.items()}
        self._written = 0
        self._mark = 0
        self.closed = 0  # session ends in the buffer

    def append(
        self,
        serials: NDArray[np.int64],
        templates: NDArray[np.int32],
        times: NDArray[np.float64],
        flags: NDArray[np.uint8],
        online: NDArray[np.float64],
        keys: NDArray[np.uint64],
    ) -> None:
        """Add n <= ROWS lines in the order of their arrival. `online` [n, K] are the online members' scores, `keys`
        hashes of session keys."""
        scores = dict(zip(ONLINE_NAMES, online.T, strict=True))
        self._write_rows(serials=serials, templates=templates, times=times, flags=flags, **scores, about=keys)

    def close(
        self,
        serials: NDArray[np.int64],
        times: NDArray[np.float64],
        flags: NDArray[np.uint8],
        causes: NDArray[np.uint64],
    ) -> None:
        """Add the ends of m <= ROWS sessions; `causes` are 0 for sessions that were not flagged."""
        nothing = dict.fromkeys(ONLINE_NAMES, np.zeros(len(serials)))
        templates = np.full(len(serials), CLOSING, dtype=np.int32)
        self._write_rows(serials=serials, templates=templates, times=times, flags=flags, **nothing, about=causes)

    def _write_rows(self, **columns: NDArray[Any]) -> None:
        count = len(columns["serials"])
        slots = np.arange(self._written, self._written + count) % ROWS
        flags, before = columns["flags"], self._column["flags"][slots]
        self.closed += int(np.count_nonzero(flags & _CLOSING)) - int(np.count_nonzero(before & _CLOSING))
        for name, column in columns.items():
            self._column[name][slots] = column
        self._written += count

    def set_mark(self) -> None:
        """Make sessions that close from now on fresh."""
        self._mark = self._written

    def __len__(self) -> int:
        return min(self._written, ROWS)

    def closed_sessions(self) -> ClosedSessions:
        """The complete sessions in the buffer, ordered by serial; fresh are those that closed after the mark. Takes
        some tens of milliseconds."""
        held = len(self)
        order = np.arange(self._written - held, self._written) % ROWS
        number = np.arange(self._written - held, self._written)
        by_serial = np.argsort(self._column["serials"][order], kind="stable")
        order, number = order[by_serial], number[by_serial]
        serials, flags = self._column["serials"][order], self._column["flags"][order]
        heads = np.flatnonzero(np.concatenate(([True], serials[1:] != serials[:-1]))) if held else order
        sizes = np.diff(np.append(heads, held))
        any_flag = np.bitwise_or.reduceat(flags, heads) if held else flags
        closing = flags & _CLOSING > 0
        # One closing row, the last: of a state that somebody made up it may be another one.
        ends = np.add.reduceat(closing, heads, dtype=np.int64) if held else flags
        whole = (any_flag & BEGINS > 0) & (ends == 1) & closing[heads + sizes - 1] & (sizes > 1)
        rows = np.repeat(whole, sizes) & ~closing
        first, last = heads[whole], (heads + sizes - 1)[whole]
        found = any_flag[whole]
        return ClosedSessions(
            errors=flags[rows] & ERROR > 0,
            tokens=self._column["templates"][order][rows],
            times=self._column["times"][order][rows],
            online=np.stack([self._column[name][order][rows] for name in ONLINE_NAMES], axis=1),
            online_members=ONLINE_NAMES,
            offsets=np.concatenate(([0], np.cumsum((sizes - 1)[whole]))).astype(np.int64),
            starts=found & STARTS > 0,
            ends=found & ENDS > 0,
            tainted=found & TAINTED > 0,
            flagged=found & FLAGGED > 0,
            vouched=found & VOUCHED > 0,
            fresh=number[last] >= self._mark,
            keys=self._column["about"][order][first],
            causes=self._column["about"][order][last],
        )

    def export(self) -> State:
        held = len(self)
        columns = {name: column[:held].copy() for name, column in self._column.items()}
        return {**columns, "written": self._written, "mark": self._mark}

    @classmethod
    def load(cls, columns: Columns) -> "History":
        history = cls()
        history._written = scalar_column(columns, "written", int)
        history._mark = scalar_column(columns, "mark", int)
        held = len(history)
        for name, column in history._column.items():
            column[:held] = columns[name]
        history.closed = int(np.count_nonzero(history._column["flags"] & _CLOSING))
        return history
