"""Lines that the operator vouches for: learned from, and nothing else.

They have a clock, open sessions and counters of their own, so that a file of last month does not close today's
sessions. What they share with the stream is what they are there for: templates, the model of parameter values and
the history that the next model is trained on. They exist from the first vouched line to the end of the file.
"""

from detection.columns.state import Columns, State, joined, part, scalar
from detection.members.origins.counters import SourceCounters
from detection.sessions.connections import LivingSources
from detection.sessions.log_clock import LogClock
from detection.sessions.table import SessionTable

CAPACITY = 1 << 14
_FIRST_SERIAL = -(1 << 62)  # apart from those of the stream's sessions


class VouchedLines:
    """A part of the state: the vouched file that is on its way, if one is."""

    def __init__(self) -> None:
        self.file: VouchedFile | None = None

    def export(self) -> State:
        return self.file.export() if self.file is not None else {}

    @classmethod
    def load(cls, columns: Columns) -> "VouchedLines":
        vouched = cls()
        vouched.file = VouchedFile.load(columns) if columns else None
        return vouched


class VouchedFile:
    """`before`: how many vouched sessions there were before, so that serials are never given twice."""

    def __init__(self, before: int) -> None:
        self.living = LivingSources()
        self.clock = LogClock()
        self.sessions = SessionTable(CAPACITY)
        self.sessions.next_serial = _FIRST_SERIAL + before
        self.counters = SourceCounters()
        self.at_line = 0  # the stream's line when the last vouched lines came

    @property
    def begun(self) -> int:
        """Vouched sessions so far, those before included."""
        return self.sessions.next_serial - _FIRST_SERIAL

    def export(self) -> State:
        return {
            "at_line": self.at_line,
            **joined("living", self.living.export()),
            **joined("clock", self.clock.export()),
            **joined("sessions", self.sessions.export()),
            **joined("counters", self.counters.export()),
        }

    @classmethod
    def load(cls, columns: Columns) -> "VouchedFile":
        file = cls(0)
        file.at_line = scalar(columns, "at_line", int)
        file.living = LivingSources.load(part("living", columns))
        file.clock = LogClock.load(part("clock", columns))
        file.sessions = SessionTable.load(part("sessions", columns), CAPACITY)
        file.counters = SourceCounters.load(part("counters", columns))
        return file
