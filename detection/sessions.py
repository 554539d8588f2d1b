"""Open sessions as columns, and how a batch of lines is cut into sessions.

A session is what one key did until it fell silent for `idle_seconds`: of the log clock, or between the
times of two of its own lines, which tells sessions apart in an old file that is fed to a clock far ahead
of it. A jump back of more than an hour ends a session, too. A stream without
keys is cut every `window` lines instead (its context goes on), and so is a keyed session that never
ends, after `LONGEST_SESSION` lines. The table is bounded: the sessions silent the longest make room.

Slots are an accident of history, so nothing that leaves this module depends on them: sessions are
numbered by `serial`, in the order in which they began, and exported in that order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.clock import LEAP_SECONDS_ALLOWED
from detection.segments import rank_in_run
from detection.state import Columns, State

CAPACITY = 1 << 16
KEY_BYTES = 65
LONGEST_SESSION = 1000
WINDOW_TOKENS = 63  # what a model's context holds beside its start marker
_EVICTED_AT_ONCE = CAPACITY // 64

_COLUMNS: dict[str, tuple[str, int]] = {
    "key": (f"S{KEY_BYTES}", 1),
    "windowed": ("?", 1),  # cut by count, not by silence
    "serial": ("<i8", 1),
    "last_time": ("<f8", 1),  # the log clock at the last line
    "last_event": ("<f8", 1),  # the last line's own time
    "began": ("<f8", 1),  # ... and at the first
    "first_line": ("<i8", 1),
    "last_line": ("<i8", 1),
    "lines": ("<i8", 1),  # 0 after a cut by count: the next line begins a new session with the old context
    "held": ("<i8", 1),  # templates in `tokens`
    "tokens": ("<i4", WINDOW_TOKENS),
    "opened": ("?", 1),  # `tokens` begins where the session truly began
    "scored": ("<i8", 1),  # how many surprises went into `worst` and `total`
    "worst": ("<f8", 1),
    "total": ("<f8", 1),
    "worst_line": ("<i8", 1),
    "errors": ("<i8", 1),
    "shape": ("<u8", 1),  # 64-bit map of the templates seen
    "oddity": ("<f8", 1),  # running maximum of the forest's score
    "p": ("<f8", 1),
    "hit": ("<f8", 1),  # confidence of the surest rule that matched, 0: none
    "flagged": ("?", 1),
}


class SessionTable:
    """The open sessions. `column["name"][slot]` is one session's value; slots are reused."""

    def __init__(self) -> None:
        self.column: dict[str, NDArray[Any]] = {
            name: np.zeros(CAPACITY if width == 1 else (CAPACITY, width), dtype=dtype)
            for name, (dtype, width) in _COLUMNS.items()
        }
        self.open = np.zeros(CAPACITY, dtype=np.bool_)
        self._slots: dict[bytes, int] = {}
        self._free: list[int] = list(range(CAPACITY - 1, -1, -1))
        self._used = 0  # no slot at or beyond it was ever taken
        self.next_serial = 1
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._slots)

    def find(self, key: bytes) -> int | None:
        return self._slots.get(key)

    def crowded_out_by(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
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
        return slots[by_silence[: max(needed, min(_EVICTED_AT_ONCE, len(slots)))]]

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
            for column in self.column.values():
                column[slot] = 0
            self.column["key"][slot] = key
            self.column["windowed"][slot] = windowed
            self.column["opened"][slot] = True
            self.column["last_time"][slot] = np.inf  # no silence before the first line
            self.column["last_event"][slot] = np.nan
            self.open[slot] = True
        return slot

    def new_serials(self, begins: NDArray[np.int64]) -> NDArray[np.int64]:
        """Serials for new sessions, in the order of their first lines `begins` [m], which all differ."""
        serials = np.empty(len(begins), dtype=np.int64)
        serials[np.argsort(begins)] = np.arange(self.next_serial, self.next_serial + len(begins))
        self.next_serial += len(begins)
        return serials

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

    def silent(self, horizon: NDArray[np.float64] | float, idle_seconds: float) -> NDArray[np.int64]:
        """The open keyed sessions silent for more than `idle_seconds` at `horizon` (one time, or [CAPACITY])."""
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
    def load(cls, columns: Columns) -> "SessionTable":
        table = cls()
        count = len(columns["serial"])  # type: ignore[arg-type]
        for name, column in table.column.items():
            column[:count] = columns[name]
        table.open[:count] = True
        table._slots = {key: slot for slot, key in enumerate(table.column["key"][:count].tolist())}
        table._free = list(range(CAPACITY - 1, count - 1, -1))
        table._used = count
        table.next_serial = int(columns["next_serial"])  # type: ignore[arg-type]
        table.evicted = int(columns["evicted"])  # type: ignore[arg-type]
        return table


@dataclass(frozen=True, slots=True)
class Cut:
    """A batch of n lines cut into runs and pieces.

    A *run* is a stretch of one key without silence: what the sequence model sees as one sequence. A
    *piece* is the part of a session that lies in this batch; a run cut by count holds several. Rows are
    the lines of each piece in order, and after the last line of a run that ended in silence one closing
    row. Runs with lines come first, ordered by key's slot; then those that only end.
    """

    order: NDArray[np.int64]  # [n] the lines by run
    run_slot: NDArray[np.int64]  # [R]
    run_offsets: NDArray[np.int64]  # [R+1] over `order`
    run_goes_on: NDArray[np.bool_]  # [R] continues what the table holds
    run_ends: NDArray[np.bool_]  # [R] has a closing row
    piece_run: NDArray[np.int64]  # [P]
    piece_offsets: NDArray[np.int64]  # [P+1] over rows
    piece_goes_on: NDArray[np.bool_]  # [P] continues a session of the table
    piece_ends: NDArray[np.bool_]  # [P] its last row is a closing row
    piece_split: NDArray[np.bool_]  # [P] closed by count at its last line
    row_line: NDArray[np.int64]  # [rows] index of the line; of the line that showed the silence, on closing rows
    row_closing: NDArray[np.bool_]  # [rows]
    row_event: NDArray[np.float64]  # [rows] the line's own time; the session's last one, on closing rows
    row_time: NDArray[np.float64]  # [rows] the log clock at the line; at the session's last line, on closing rows
    vacated: NDArray[np.int64]  # slots that no session of this batch holds on to


def cut(
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
    """
    n = len(slots)
    table_time, table_event = table.column["last_time"], table.column["last_event"]
    order = np.argsort(slots, kind="stable")
    s, c, e = slots[order], clock[order], events[order]
    windowed = table.column["windowed"][s]
    idle = np.where(windowed, np.inf, idle_seconds)
    new_slot = np.ones(n, dtype=np.bool_)
    new_slot[1:] = s[1:] != s[:-1]
    gap = c > _before(c, table_time[s], new_slot) + idle
    before = _before(e, table_event[s], new_slot)
    gap |= (e > before + idle) | (e < before - np.where(windowed, np.inf, LEAP_SECONDS_ALLOWED))

    first_line = np.full(CAPACITY, n)  # of each slot, in this batch
    first_line[s[new_slot]] = order[new_slot]
    touched = first_line < n
    if ending is None:
        horizon = np.full(CAPACITY, clock[-1] if n else -np.inf)
        horizon[s[new_slot]] = c[new_slot]
        ending = np.union1d(table.silent(horizon, idle_seconds), s[new_slot & gap])
    has_lines = table.column["lines"][ending] > 0
    lapsed = ending[~has_lines & ~touched[ending]]
    ending = ending[has_lines]
    ending = ending[np.argsort(table.column["serial"][ending], kind="stable")]

    run_head = np.flatnonzero(new_slot | gap)
    run_offsets = np.append(run_head, n)
    run_slot, run_goes_on = s[run_head], ~gap[run_head]
    run_last = run_offsets[1:] - 1
    follows_gap = np.zeros(len(run_head), dtype=np.bool_)
    follows_gap[:-1] = gap[run_head[1:]] & ~new_slot[run_head[1:]]
    end_clock = clock[-1] if n else -np.inf
    run_ends = follows_gap | (c[run_last] + idle[run_last] < end_clock)
    run_until = np.full(len(run_head), n)  # the line at which the next session of the key begins
    run_until[:-1][follows_gap[:-1]] = order[run_head[1:]][follows_gap[:-1]]

    # Count each session's lines through the batch and cut where the limit is reached.
    limit = np.where(table.column["windowed"][run_slot], window, LONGEST_SESSION)
    carried = np.where(run_goes_on, table.column["lines"][run_slot], 0)
    run_of = np.repeat(np.arange(len(run_head)), np.diff(run_offsets))
    number = carried[run_of] + rank_in_run(run_offsets) if n else np.zeros(0, dtype=np.int64)
    piece_head = np.zeros(n, dtype=np.bool_)
    piece_head[run_head] = True
    piece_head |= number % limit[run_of] == 0
    heads = np.flatnonzero(piece_head)
    piece_run = run_of[heads]
    lines_in = np.diff(np.append(heads, n))
    tails = heads + lines_in - 1
    piece_split = (number[tails] + 1) % limit[piece_run] == 0
    last_of_run = np.ones(len(heads), dtype=np.bool_)
    last_of_run[:-1] = piece_run[1:] != piece_run[:-1]
    run_ends &= ~piece_split[last_of_run]  # an exact multiple: nothing is left open to end
    piece_ends = last_of_run & run_ends[piece_run]
    first_of_run = np.ones(len(heads), dtype=np.bool_)
    first_of_run[1:] = last_of_run[:-1]
    piece_goes_on = first_of_run & (carried[piece_run] > 0)

    sizes = lines_in + piece_ends
    piece_offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    rows = int(piece_offsets[-1])
    row_closing = np.zeros(rows, dtype=np.bool_)
    row_closing[piece_offsets[1:][piece_ends] - 1] = True
    row_line = np.empty(rows, dtype=np.int64)
    row_time, row_event = np.empty(rows), np.empty(rows)
    row_line[~row_closing], row_time[~row_closing], row_event[~row_closing] = order, c, e
    ended = tails[piece_ends]
    shown = np.minimum(_shown(clock, c[ended] + idle_seconds), run_until[piece_run[piece_ends]])
    row_line[row_closing], row_time[row_closing], row_event[row_closing] = shown, c[ended], e[ended]

    vacated = np.concatenate((ending[~touched[ending]], run_slot[run_ends & ~follows_gap], lapsed))
    times = table_time[ending]
    extra = len(ending)
    no_lines = np.full(extra, n)
    return Cut(
        order=order,
        run_slot=np.concatenate((run_slot, ending)),
        run_offsets=np.concatenate((run_offsets, no_lines)),
        run_goes_on=np.concatenate((run_goes_on, np.ones(extra, dtype=np.bool_))),
        run_ends=np.concatenate((run_ends, np.ones(extra, dtype=np.bool_))),
        piece_run=np.concatenate((piece_run, len(run_head) + np.arange(extra))),
        piece_offsets=np.concatenate((piece_offsets, rows + 1 + np.arange(extra))),
        piece_goes_on=np.concatenate((piece_goes_on, np.ones(extra, dtype=np.bool_))),
        piece_ends=np.concatenate((piece_ends, np.ones(extra, dtype=np.bool_))),
        piece_split=np.concatenate((piece_split, np.zeros(extra, dtype=np.bool_))),
        row_line=np.concatenate((row_line, np.minimum(_shown(clock, times + idle_seconds), first_line[ending]))),
        row_closing=np.concatenate((row_closing, np.ones(extra, dtype=np.bool_))),
        row_time=np.concatenate((row_time, times)),
        row_event=np.concatenate((row_event, table_event[ending])),
        vacated=vacated,
    )


def _before(column: NDArray[np.float64], held: NDArray[np.float64], new_slot: NDArray[np.bool_]) -> NDArray[np.float64]:
    """For each line, ordered by slot, the value at the line before of its slot: `held` where it is the first."""
    before = np.empty(len(column))
    before[1:] = column[:-1]
    before[new_slot] = held[new_slot]
    return before


def _shown(clock: NDArray[np.float64], deadlines: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the first line at which `clock` is past each deadline (0 in an empty batch)."""
    found = np.searchsorted(clock, deadlines, side="right").astype(np.int64)
    return np.minimum(found, max(len(clock) - 1, 0))
