"""The columnar cutting of lines into sessions against a per-line one that is plain to read."""

from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.causes.known_causes import KnownCauses
from detection.members.registry import ONLINE_NAMES
from detection.scoring.batch import Batch, Closings
from detection.scoring.judging import Recording, closed_as_they_are, judge_batch
from detection.sessions import session_table as sessions_module
from detection.sessions.history import History
from detection.sessions.session_table import SessionTable, cut_into_pieces

IDLE = 60.0
WINDOW = 5


@dataclass
class PlainSession:
    serial: int
    first_line: int
    lines: list[int] = field(default_factory=list)
    last_time: float = 0.0
    last_event: float = 0.0
    starts: bool = True


class PlainSessions:
    """One line at a time, dicts and lists: what the columns must come to."""

    def __init__(self) -> None:
        self.open: dict[str, PlainSession] = {}
        self.closed: list[tuple[int, int, int, int, int]] = []  # shown at, serial, first, last, lines
        self.learned: list[tuple[list[int], bool, bool]] = []  # lines, starts, ends
        self.after_cut: dict[str, PlainSession] = {}  # the session that was cut by count just before
        self.serial = 0

    def line(self, number: int, key: str, time: float, event: float) -> None:
        silent = [k for k, s in self.open.items() if not k.startswith("w") and s.last_time + IDLE < time]
        for k in silent:
            self._close(k, number)
        session = self.open.get(key)
        if session is not None and not key.startswith("w"):
            if event > session.last_event + IDLE or event < session.last_event - 3600.0:
                self._close(key, number)
                session = None
        if session is None:
            self.serial += 1
            session = self.open[key] = PlainSession(self.serial, number)
            before = self.after_cut.pop(key, None)
            session.starts = before is None or (
                not key.startswith("w")
                and (
                    before.last_time + IDLE < time
                    or event > before.last_event + IDLE
                    or event < before.last_event - 3600.0
                )
            )
        session.lines.append(number)
        session.last_time, session.last_event = time, event
        limit = WINDOW if key.startswith("w") else sessions_module.LONGEST_SESSION
        if len(session.lines) == limit:
            self.after_cut[key] = session
            self._close(key, number, ends=False)

    def _close(self, key: str, number: int, ends: bool = True) -> None:
        s = self.open.pop(key)
        self.learned.append((s.lines, s.starts, ends))
        self.closed.append((number, s.serial, s.first_line, s.lines[-1], len(s.lines)))


def feed(
    table: SessionTable,
    history: History,
    first: int,
    keys: list[str],
    clock: list[float],
    events: list[float] | None = None,
) -> Closings:
    names = [key.encode() for key in keys]
    slots = table.slots_for(names, [key.startswith("w") for key in keys])
    times = np.array(clock, dtype=np.float64)
    own = times if events is None else np.array(events)
    pieces = cut_into_pieces(table, slots, times, own, idle_seconds=IDLE, window=WINDOW)
    n = len(keys)
    ids = np.arange(first, first + n, dtype=np.int32)  # each line is its own template: sequences can be told
    nothing = np.zeros((n, len(ONLINE_NAMES)))
    batch = Batch(first, ids, np.zeros(n, dtype=np.bool_), times, np.zeros(n), nothing, [b""] * n)
    return judge_batch(table, None, KnownCauses(), 0.0, batch, pieces, Recording(history)).closings


steps = st.lists(
    st.tuples(
        st.sampled_from(["ka", "kb", "kc", "wx", "wy"]),
        st.sampled_from([0.0, 1.0, 20.0, 59.0, 61.0]),  # since the line before, by the log clock
        st.sampled_from([0.0, 0.0, 0.0, 30.0, 65.0, 5000.0]),  # behind the log clock, by the line's own time
    ),
    min_size=1,
    max_size=80,
)


@settings(max_examples=100, deadline=None)
@given(steps, st.lists(st.integers(1, 20), min_size=1, max_size=20))
def test_columns_cut_lines_into_the_sessions_that_a_line_by_line_reading_gives(
    lines: list[tuple[str, float, float]], batches: list[int]
) -> None:
    plain, table, history = PlainSessions(), SessionTable(), History()
    found: list[tuple[int, int, int, int]] = []
    clock, number, at = 1000.0, 0, 0
    for size in batches * len(lines):
        chunk = lines[at : at + size]
        if not chunk:
            break
        keys, times, events = [], [], []
        for key, gap, behind in chunk:
            clock += gap
            number += 1
            plain.line(number, key, clock, clock - behind)
            keys.append(key)
            times.append(clock)
            events.append(clock - behind)
        c = feed(table, history, number - len(chunk) + 1, keys, times, events)
        found += zip(c.line.tolist(), c.serial.tolist(), c.first_line.tolist(), c.last_line.tolist(), strict=True)
        at += size
    assert sorted(found) == sorted(row[:4] for row in plain.closed)
    still_open = {k: s for k, s in plain.open.items()}
    held = {
        key.decode(): (int(table.column["first_line"][slot]), int(table.column["lines"][slot]))
        for key, slot in table._slots.items()
        if table.column["lines"][slot]
    }
    assert held == {k: (s.first_line, len(s.lines)) for k, s in still_open.items()}

    # What is recording for training are the same sessions, whole and in order.
    sequences = history.closed_sessions()
    learned = zip(sequences.offsets[:-1], sequences.offsets[1:], sequences.starts, sequences.ends, strict=True)
    assert sorted(
        (sequences.tokens[a:b].tolist(), bool(starts), bool(ends)) for a, b, starts, ends in learned
    ) == sorted(plain.learned)


def test_a_session_that_never_ends_is_cut_by_count_and_the_next_one_does_not_begin_with_a_start() -> None:
    table, history = SessionTable(), History()
    n = sessions_module.LONGEST_SESSION + 7
    closings = feed(table, history, 1, ["ka"] * n, [0.0] * n)
    assert closings.last_line.tolist() == [sessions_module.LONGEST_SESSION]
    slot = table.find(b"ka")
    assert slot is not None
    assert table.column["lines"][slot] == 7
    held = int(table.column["held"][slot])
    assert table.column["tokens"][slot, :held].tolist() == list(range(n - 6, n + 1))
    assert not table.column["opened"][slot]


def test_the_table_is_full_and_the_longest_silent_make_room() -> None:
    table, history = SessionTable(), History()
    capacity = sessions_module.CAPACITY
    names = [f"k{i}" for i in range(capacity)]
    feed(table, history, 1, names, [float(i) * 1e-4 for i in range(capacity)])
    newcomers = [b"knew1", b"k0", b"knew2"]
    crowded = table.sessions_crowded_out_by(newcomers)
    assert table.find(b"k0") not in crowded.tolist()
    assert table.column["key"][crowded[:2]].tolist() == [b"k1", b"k2"]
    closings = closed_as_they_are(table, crowded, capacity + 1)
    assert set(closings.line.tolist()) == {capacity + 1}
    table.evict(crowded)
    assert table.evicted == len(crowded)
    slots = table.slots_for(newcomers, [False] * 3)
    assert len(set(slots.tolist())) == 3


@settings(max_examples=50, deadline=None)
@given(steps)
def test_a_table_that_was_exported_and_loaded_goes_on_as_if_nothing_had_been(
    lines: list[tuple[str, float, float]],
) -> None:
    clock = np.cumsum([gap for _, gap, _ in lines]) + 1000.0
    keys = [key for key, _, _ in lines]
    half = len(lines) // 2
    straight, broken = (SessionTable(), History()), (SessionTable(), History())
    feed(*straight, 1, keys[:half], clock[:half].tolist())
    feed(*broken, 1, keys[:half], clock[:half].tolist())
    reloaded = (SessionTable.load(broken[0].export()), History.load(broken[1].export()))
    feed(*straight, half + 1, keys[half:], clock[half:].tolist())
    feed(*reloaded, half + 1, keys[half:], clock[half:].tolist())
    for part in (0, 1):
        ours, theirs = straight[part].export(), reloaded[part].export()
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(theirs[name]), err_msg=name)


def test_the_example_of_cut_is_what_it_does() -> None:
    keys, clock = [b"a", b"b", b"a", b"a"], np.array([0.0, 1.0, 2.0, 90.0])
    table = SessionTable(8)
    pieces = cut_into_pieces(table, table.slots_for(keys, [False] * 4), clock, clock, idle_seconds=IDLE, window=WINDOW)
    given = [
        f"{line:<7} {key.decode():<4} {time:<5.0f}" for line, (key, time) in enumerate(zip(keys, clock, strict=True))
    ]
    found = []
    for piece, slot in enumerate(pieces.slot.tolist()):
        rows = range(*pieces.offsets[piece : piece + 2].tolist())
        lines = " ".join(f"{'end@' if pieces.row_closing[row] else ''}{pieces.row_line[row]}" for row in rows)
        times = " ".join(f"{pieces.row_time[row]:.0f}" for row in rows)
        state = f"{pieces.starts[piece]!s:<7} {pieces.ends[piece]!s:<6} {pieces.split[piece]}"
        found.append(f"{piece:<6} {table.column['key'][slot].decode():<4} {lines:<10} {times:<9} {state}")
    told = (cut_into_pieces.__doc__ or "").splitlines()[-len(given) - 1 : -1]
    assert [line.rstrip() for line in told] == [
        f"        {line}        {row}".rstrip() for line, row in zip_longest(given, found, fillvalue="")
    ]
