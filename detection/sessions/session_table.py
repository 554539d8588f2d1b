"""Open sessions as columns, and how a batch of lines is cut into sessions.

A session is what one key did until it fell silent for `idle_seconds`: of the log clock, or between the
times of two of its own lines, which tells sessions apart in an old file that is fed to a clock far ahead
of it. A jump back of more than an hour ends a session, too. A stream without keys is cut every `window`
lines instead, and so is a keyed session that never ends, after `LONGEST_SESSION` lines; what follows is a
session of its own that does not begin with a start. The table is bounded: the sessions silent the longest
make room.

Slots are an accident of history, so nothing that leaves this module depends on them: sessions are
numbered by `serial`, in the order in which they began, and exported in that order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.columns.runs import rank_in_run
from detection.columns.state_columns import Columns, State, array_column, scalar_column
from detection.members.fitted_member_view import COUNT_BUCKETS
from detection.members.registry import NAMES
from detection.sessions.log_clock import LEAP_SECONDS_ALLOWED

CAPACITY = 1 << 16
KEY_BYTES = 65
LONGEST_SESSION = 1000
WINDOW_TOKENS = 63  # what a model's context holds beside its start marker

_COLUMNS: dict[str, tuple[str, int]] = {
    "key": (f"S{KEY_BYTES}", 1),
    "windowed": ("?", 1),  # cut by count, not by silence
    "serial": ("<i8", 1),
    "last_time": ("<f8", 1),  # the log clock at the last line
    "last_event": ("<f8", 1),  # the last line's own time
    "began": ("<f8", 1),  # ... and at the first
    "first_line": ("<i8", 1),
    "last_line": ("<i8", 1),
    "lines": ("<i8", 1),  # 0 after a cut by count: the next line begins a new session
    "held": ("<i8", 1),  # templates in `tokens`
    "tokens": ("<i4", WINDOW_TOKENS),
    "opened": ("?", 1),  # `tokens` begins where the session truly began
    "muted": ("<i8", 1),  # lines of templates that were admitted since the model was made
    "reached": ("<f8", len(NAMES)),  # what each member has come to
    "worst_line": ("<i8", 1),  # the line that made the session strangest
    "errors": ("<i8", 1),
    "shape": ("<u8", 1),  # 64-bit map of the templates seen
    "counts": ("|u1", COUNT_BUCKETS),  # how often each template came, by id modulo 64; stops at 255
    "strangeness": ("<f8", 1),  # the members' combined statistic
    "p": ("<f8", 1),
    "excused": ("<f8", 1),  # the p that a known cause explains: only a smaller one is a reason to flag; 0: none
    "novel": ("<i4", 1),  # the first template that the model in force does not know, plus 1; 0: none
    "hit": ("<f8", 1),  # confidence of the surest rule that matched, 0: none
    "verdict": ("|u1", 1),  # what the session was flagged as (`verdict_and_score`), 0: not flagged
    "cause": ("<u8", 1),  # of that (`causes`)
}
# What is not 0 of a session without lines: it begins with the first, and there is no silence before that.
_FRESH = {"opened": True, "last_time": np.inf, "last_event": np.nan}


class SessionTable:
    """The open sessions. `column["name"][slot]` is one session's value; slots are reused."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.column: dict[str, NDArray[Any]] = {
            name: np.zeros(capacity if width == 1 else (capacity, width), dtype=dtype)
            for name, (dtype, width) in _COLUMNS.items()
        }
        self.open = np.zeros(capacity, dtype=np.bool_)
        self._slots: dict[bytes, int] = {}
        self._free: list[int] = list(range(capacity - 1, -1, -1))
        self._used = 0  # no slot at or beyond it was ever taken
        self.next_serial = 1
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._slots)

    def find(self, key: bytes) -> int | None:
        return self._slots.get(key)

    def sessions_crowded_out_by(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """The slots that must be closed before `keys` fit, longest silent first; none of `keys` is among them."""
        arriving = set(keys)
        known = [self._slots[key] for key in arriving if key in self._slots]
        needed = len(arriving) - len(known) - len(self._free)
        if needed <= 0:
            return np.zeros(0, dtype=np.int64)
        candidates = self.open.copy()
        candidates[known] = False
        slots = np.flatnonzero(candidates)
        by_silence = np.lexsort((self.column["serial"][slots], self.column["last_time"][slots]))
        return slots[by_silence[: max(needed, min(self.capacity // 64, len(slots)))]]

    def slots_for(self, keys: Sequence[bytes], windowed: Sequence[bool]) -> NDArray[np.int64]:
        """The slot of each line's session, taking free ones for keys not seen yet (fewer than are free)."""
        table = self._slots
        found = [table.get(key, -1) for key in keys]
        if -1 in found:
            for i, slot in enumerate(found):
                if slot < 0:
                    found[i] = self._slot_of(keys[i], windowed[i])
        return np.array(found, dtype=np.int64)

    def _slot_of(self, key: bytes, windowed: bool) -> int:
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = self._free.pop()
            self._used = max(self._used, slot + 1)
            for name, column in self.column.items():
                column[slot] = _FRESH.get(name, 0)
            self.column["key"][slot] = key
            self.column["windowed"][slot] = windowed
            self.open[slot] = True
        return slot

    def copies_of_session(self, slot: int | None, keys: Sequence[bytes], windowed: Sequence[bool]) -> "SessionTable":
        """A table with a row for each of `keys`, in their order: a copy of the session in `slot`, or without one a
        session of that key that has no lines yet. To be judged on and thrown away: no key is found in it."""
        rows = len(keys)
        table = SessionTable(rows)
        for name, column in table.column.items():
            if slot is not None:
                column[:] = self.column[name][slot]
            elif name in _FRESH:
                column[:] = _FRESH[name]
        if slot is None:
            table.column["key"][:] = keys
            table.column["windowed"][:] = windowed
        table.open[:] = True
        table._used, table._free = rows, []
        table.next_serial = self.next_serial
        return table

    def new_serials(self, begins: NDArray[np.int64]) -> NDArray[np.int64]:
        """Serials for new sessions, in the order of their first lines `begins` [m], which all differ."""
        serials = np.empty(len(begins), dtype=np.int64)
        serials[np.argsort(begins)] = np.arange(self.next_serial, self.next_serial + len(begins))
        self.next_serial += len(begins)
        return serials

    def bring_back_to_time(self, to: float) -> None:
        """The clock goes back `to` a time: later times in the table become that time, so that no session stays
        open until the old time comes again."""
        for name in ("last_time", "last_event", "began"):
            np.minimum(self.column[name], to, out=self.column[name], where=self.open)

    def evict(self, slots: NDArray[np.int64]) -> None:
        """Forget these sessions to make room, and count them."""
        self.evicted += len(slots)
        self.release(slots)

    def release(self, slots: NDArray[np.int64]) -> None:
        """Forget these sessions."""
        for slot, key in zip(slots.tolist(), self.column["key"][slots].tolist(), strict=True):
            del self._slots[key]
            self._free.append(slot)
        self.open[slots] = False

    def silent_sessions(self, horizon: NDArray[np.float64] | float, idle_seconds: float) -> NDArray[np.int64]:
        """The open keyed sessions silent for more than `idle_seconds` at `horizon` (one time, or [capacity])."""
        used = slice(0, self._used)
        last, windowed = self.column["last_time"][used], self.column["windowed"][used]
        limit = horizon[used] if isinstance(horizon, np.ndarray) else horizon
        return np.flatnonzero(self.open[used] & ~windowed & (last + idle_seconds < limit))

    def all_open(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.open)

    def export(self) -> State:
        slots = self.all_open()
        slots = slots[np.argsort(self.column["serial"][slots])]
        # Those cut by count and not begun again have no serial (0) and come first: their keys decide.
        waiting = int(np.count_nonzero(self.column["serial"][slots] == 0))
        slots[:waiting] = slots[:waiting][np.argsort(self.column["key"][slots[:waiting]])]
        state: State = {name: np.take(column, slots, axis=0) for name, column in self.column.items()}
        state["next_serial"] = self.next_serial
        state["evicted"] = self.evicted
        return state

    @classmethod
    def load(cls, columns: Columns, capacity: int = CAPACITY) -> "SessionTable":
        table = cls(capacity)
        count = len(array_column(columns, "serial"))
        for name, column in table.column.items():
            column[:count] = columns[name]
        table.open[:count] = True
        table._slots = {key: slot for slot, key in enumerate(table.column["key"][:count].tolist())}
        table._free = list(range(capacity - 1, count - 1, -1))
        table._used = count
        table.next_serial = scalar_column(columns, "next_serial", int)
        table.evicted = scalar_column(columns, "evicted", int)
        return table


@dataclass(frozen=True, slots=True)
class Cut:
    """A batch of n lines cut into pieces: the part of one session that lies in this batch.

    Rows are the lines of each piece in order and, where silence ended the session, one closing row.
    Pieces with lines come first, ordered by slot; then those that are only a closing.
    """

    order: NDArray[np.int64]  # [n] the lines by piece
    slot: NDArray[np.int64]  # [P]
    line_offsets: NDArray[np.int64]  # [P+1] over `order`
    offsets: NDArray[np.int64]  # [P+1] over rows
    goes_on: NDArray[np.bool_]  # [P] continues a session of the table
    starts: NDArray[np.bool_]  # [P] what is held of the session begins at its true beginning
    ends: NDArray[np.bool_]  # [P] ended by silence: its last row is a closing row
    split: NDArray[np.bool_]  # [P] cut by count at its last line
    row_line: NDArray[np.int64]  # [rows] index of the line; of the line that showed the silence, on closing rows
    row_closing: NDArray[np.bool_]  # [rows]
    row_time: NDArray[np.float64]  # [rows] the log clock at the line; at the session's last line, on closing rows
    row_event: NDArray[np.float64]  # [rows] the line's own time; the session's last one, on closing rows
    vacated: NDArray[np.int64]  # slots without a session after this batch


def cut_into_pieces(
    table: SessionTable,
    slots: NDArray[np.int64],
    clock: NDArray[np.float64],
    events: NDArray[np.float64],
    *,
    idle_seconds: float,
    window: int,
    ending: NDArray[np.int64] | None = None,
) -> Cut:
    """Cut lines with these session `slots`, log `clock` (non-decreasing) and own times `events` into sessions.

    `ending`: slots to end now, whatever the clock says, when there are no lines (a flush); by default
    the sessions that the clock, at the end of the batch or at their next line, shows to be silent.

    Four lines of two keys that are new, with `idle_seconds` 60. A row is a line, or "end" and the line that showed it:

        line    key  clock        piece  key  rows       row_time  starts  ends   split
        0       a    0            0      a    0 2 end@3  0 2 2     True    True   False
        1       b    1            1      a    3          90        True    False  False
        2       a    2            2      b    1 end@3    1 1       True    True   False
        3       a    90
    """
    n = len(slots)
    table_time, table_event = table.column["last_time"], table.column["last_event"]
    order = np.argsort(slots, kind="stable")
    s, c, e = slots[order], clock[order], events[order]
    windowed = table.column["windowed"][s]
    idle = np.where(windowed, np.inf, idle_seconds)
    new_slot = np.ones(n, dtype=np.bool_)
    new_slot[1:] = s[1:] != s[:-1]
    gap = c > _values_of_line_before(c, table_time[s], new_slot) + idle
    before = _values_of_line_before(e, table_event[s], new_slot)
    gap |= (e > before + idle) | (e < before - np.where(windowed, np.inf, LEAP_SECONDS_ALLOWED))

    first_line = np.full(table.capacity, n)  # of each slot, in this batch
    first_line[s[new_slot]] = order[new_slot]
    touched = first_line < n
    if ending is None:
        horizon = np.full(table.capacity, clock[-1] if n else -np.inf)
        horizon[s[new_slot]] = c[new_slot]
        ending = np.union1d(table.silent_sessions(horizon, idle_seconds), s[new_slot & gap])
    has_lines = table.column["lines"][ending] > 0
    lapsed = ending[~has_lines & ~touched[ending]]  # silent since they were cut by count: they have no closing
    ending = ending[has_lines]
    ending = ending[np.argsort(table.column["serial"][ending], kind="stable")]

    # Count each session's lines through the batch; a new one begins after silence and at the limit.
    silence = new_slot | gap
    carried = np.where(new_slot & ~gap, table.column["lines"][s], 0)
    stretch = np.cumsum(silence) - 1
    number = carried[silence][stretch] + rank_in_run(np.append(np.flatnonzero(silence), n)) if n else order
    limit = np.where(windowed, window, LONGEST_SESSION)
    head = np.flatnonzero(silence | (number % limit == 0))
    line_offsets = np.append(head, n)
    tail = line_offsets[1:] - 1
    slot = s[head]
    from_table = new_slot[head] & ~gap[head]
    split = (number[tail] + 1) % limit[tail] == 0
    followed = np.zeros(len(head), dtype=np.bool_)  # by another session of the same key
    followed[:-1] = ~new_slot[head[1:]]
    silenced = c[tail] + idle[tail] < (clock[-1] if n else -np.inf)
    silenced[followed] = gap[head[1:]][followed[:-1]]
    ends = silenced & ~split
    until = np.full(len(head), n)  # the line at which the next session of the key begins
    until[:-1][followed[:-1]] = order[head[1:]][followed[:-1]]

    offsets = np.concatenate(([0], np.cumsum(np.diff(line_offsets) + ends))).astype(np.int64)
    rows, extra = int(offsets[-1]), len(ending)
    row_closing = np.ones(rows + extra, dtype=np.bool_)
    row_closing[np.arange(n) + np.repeat(np.cumsum(ends) - ends, np.diff(line_offsets))] = False
    lines, closings = np.flatnonzero(~row_closing), np.flatnonzero(row_closing)
    row_line = np.empty(rows + extra, dtype=np.int64)
    row_time, row_event = np.empty(rows + extra), np.empty(rows + extra)
    row_line[lines], row_time[lines], row_event[lines] = order, c, e
    row_time[closings] = np.concatenate((c[tail[ends]], table_time[ending]))
    row_event[closings] = np.concatenate((e[tail[ends]], table_event[ending]))
    shown = _first_line_past(clock, row_time[closings] + idle_seconds)
    row_line[closings] = np.minimum(shown, np.concatenate((until[ends], first_line[ending])))

    none, all_of_them = np.zeros(extra, dtype=np.bool_), np.ones(extra, dtype=np.bool_)
    opened = table.column["opened"]
    return Cut(
        order=order,
        slot=np.concatenate((slot, ending)),
        line_offsets=np.concatenate((line_offsets, np.full(extra, n))),
        offsets=np.concatenate((offsets, rows + 1 + np.arange(extra))),
        goes_on=np.concatenate((from_table & (carried[head] > 0), all_of_them)),
        starts=np.concatenate((np.where(from_table, opened[slot], gap[head]), opened[ending])),
        ends=np.concatenate((ends, all_of_them)),
        split=np.concatenate((split, none)),
        row_line=row_line,
        row_closing=row_closing,
        row_time=row_time,
        row_event=row_event,
        vacated=np.concatenate((ending[~touched[ending]], slot[ends & ~followed], lapsed)),
    )


def _values_of_line_before(
    column: NDArray[np.float64], held: NDArray[np.float64], new_slot: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """For each line, ordered by slot, the value at the line before of its slot: `held` where it is the first."""
    before = np.empty(len(column))
    before[1:] = column[:-1]
    before[new_slot] = held[new_slot]
    return before


def _first_line_past(clock: NDArray[np.float64], deadlines: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the first line at which `clock` is past each deadline (0 in an empty batch)."""
    found = np.searchsorted(clock, deadlines, side="right").astype(np.int64)
    return np.minimum(found, max(len(clock) - 1, 0))
