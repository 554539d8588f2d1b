"""Progress of the replay at a start: what is left, in lines and as a share of the bytes."""

from array import array
from bisect import bisect_right
from typing import Any

from persistence.journal_segment import Entry


class ReplayProgress:
    """The frames to replay, and how many of them have been.

    `seq` and `line` are the last frame and the last line that are durable, applied yet or not. The thread that replays
    calls `note_replayed`; other threads may read everything else meanwhile.
    """

    def __init__(self) -> None:
        self.seq = 0
        self.line = 0
        self._seqs = array("q")
        self._lines = array("q", [0])
        self._bytes = array("q", [0])
        self._replayed = 0

    def add(self, entry: Entry) -> None:
        """`entry` is to be replayed, after those that were added before."""
        self._seqs.append(entry.seq)
        self._lines.append(self._lines[-1] + entry.count)
        self._bytes.append(self._bytes[-1] + len(entry.payload))

    @property
    def bytes(self) -> int:
        """The payload bytes of all frames to replay."""
        return self._bytes[-1]

    def note_replayed(self, seq: int) -> None:
        """Frame `seq` has been applied. It may be an earlier one again, when the replay has to start over."""
        self._replayed = bisect_right(self._seqs, seq)

    @property
    def percent(self) -> float:
        """0 to 100, by payload bytes; 0 when there is nothing to replay."""
        return round(100.0 * self._bytes[self._replayed] / self.bytes, 1) if self.bytes else 0.0

    @property
    def lines_to_replay(self) -> int:
        return self._lines[-1] - self._lines[self._replayed]

    def as_dict(self) -> dict[str, Any]:
        """The object `reading` of `GET /status`."""
        return {"percent": self.percent, "lines_to_replay": self.lines_to_replay}

    def replay_sentence(self) -> str:
        """For people, without a full stop."""
        if not self._lines[-1]:  # nothing, or only frames without lines: a model, feedback
            return "reading the state"
        lines = self.lines_to_replay
        return f"reading the state: {self.percent:.0f} %, {lines:,} {'line' if lines == 1 else 'lines'} to replay"
