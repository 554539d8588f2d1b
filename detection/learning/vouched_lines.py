"""Vouched lines: lines that the operator says are clean. They are learned from and count for nothing else.

They have a log clock, open sessions and counters of their own, so that a file of last month does not close today's
sessions. With the stream they share what is learned: templates, online members that do not depend on the clock, and the
history from which the next model is trained. The clock, sessions and counters are discarded when the file ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.causes.known_causes import KnownCauses
from detection.columns.state_columns import Columns, State, columns_under, scalar_column, with_prefix
from detection.detection_settings import SessionSettings
from detection.members.all_online_members import OnlineMembers
from detection.scoring.batch import Batch
from detection.scoring.judging import Recording, judge_batch
from detection.sessions.history import VOUCHED, History
from detection.sessions.living_sources import LivingSources
from detection.sessions.log_clock import LogClock
from detection.sessions.session_table import SessionTable, cut_into_pieces

CAPACITY = 1 << 14
_FIRST_SERIAL = -(1 << 62)  # distinct from serials of the stream's sessions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Taught:
    """The parts of the state that vouched lines are added to, and the settings by which they are cut into sessions."""

    history: History
    known: KnownCauses
    settings: SessionSettings


class VouchedLines:
    """A part of the state: the vouched file that has begun and not ended, if there is one."""

    def __init__(self) -> None:
        self.file: VouchedFile | None = None

    def open_file(self, line: int, begun: int) -> "VouchedFile":
        """The current file, a new one if there is none; its lines come when the stream is at `line`. `begun` is the
        number of vouched sessions so far, so that serials are never reused."""
        if self.file is None:
            self.file = VouchedFile(begun)
        self.file.at_line = line
        return self.file

    def export(self) -> State:
        return self.file.export() if self.file is not None else {}

    @classmethod
    def load(cls, columns: Columns) -> "VouchedLines":
        vouched = cls()
        vouched.file = VouchedFile.load(columns) if columns else None
        return vouched


class VouchedFile:
    """`before`: the number of vouched sessions before this file."""

    def __init__(self, before: int) -> None:
        self.living = LivingSources()
        self.clock = LogClock()
        self.sessions = SessionTable(CAPACITY)
        self.sessions.next_serial = _FIRST_SERIAL + before
        self.online = OnlineMembers.by_time()
        self.at_line = 0  # the stream's line when the last vouched lines came

    @property
    def begun(self) -> int:
        """The number of vouched sessions so far, including those before this file."""
        return self.sessions.next_serial - _FIRST_SERIAL

    def advance(self, times: Floats, received: float) -> Floats:
        """Advance the file's log clock by lines with these `times` (NaN: none); returns the clock at each: float64
        [n]."""
        before = self.clock.now
        clock = self.clock.advance(times, received)
        if clock[0] < before:
            self.sessions.bring_back_to_time(float(clock[0]))
        return clock

    def learn(self, lines: Batch, keys: Sequence[bytes], windowed: Sequence[bool], times: Floats, into: Taught) -> None:
        """Add these lines, and the sessions that close with them, to the history. If the table is full, the sessions
        that have been silent longest are evicted and not learned from."""
        self.sessions.evict(self.sessions.sessions_crowded_out_by(keys))
        self._judge_vouched_lines(lines, self.sessions.slots_for(keys, windowed), np.fmin(times, lines.clock), into)

    def end(self, into: Taught) -> None:
        """Close all open sessions except windows, which are no real sessions."""
        ending = self.sessions.all_open()
        ending = ending[~self.sessions.column["windowed"][ending]]
        self._judge_vouched_lines(Batch.empty(1), np.zeros(0, dtype=np.int64), np.zeros(0), into, ending)

    def _judge_vouched_lines(
        self,
        lines: Batch,
        slots: NDArray[np.int64],
        events: Floats,
        into: Taught,
        ending: NDArray[np.int64] | None = None,
    ) -> None:
        idle, window = into.settings.idle_seconds, into.settings.window
        pieces = cut_into_pieces(
            self.sessions, slots, lines.clock, events, idle_seconds=idle, window=window, ending=ending
        )
        recording = Recording(into.history, closing_flags=VOUCHED)
        judge_batch(self.sessions, None, into.known, 0.0, lines, pieces, recording)

    def export(self) -> State:
        return {
            "at_line": self.at_line,
            **with_prefix("living", self.living.export()),
            **with_prefix("clock", self.clock.export()),
            **with_prefix("sessions", self.sessions.export()),
            **with_prefix("online", self.online.export()),
        }

    @classmethod
    def load(cls, columns: Columns) -> "VouchedFile":
        file = cls(0)
        file.at_line = scalar_column(columns, "at_line", int)
        file.living = LivingSources.load(columns_under("living", columns))
        file.clock = LogClock.load(columns_under("clock", columns))
        file.sessions = SessionTable.load(columns_under("sessions", columns), CAPACITY)
        file.online = OnlineMembers.load(columns_under("online", columns))
        return file
