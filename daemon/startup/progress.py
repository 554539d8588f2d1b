"""How far reading the state has come at a start: what is left to replay, in lines and as a share of the bytes."""

from array import array
from bisect import bisect_right
from typing import Any

from persistence.segment import Entry


class Reading:
    """What there is to replay, frame by frame, and the last frame that was.

    `line` is the last line that is known, `seq` the last frame: both are durable, and most of it not applied yet.
    `replayed` is called by the thread that replays, everything else may be asked meanwhile.
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
        """How many there are to replay in all."""
        return self._bytes[-1]

    def replayed(self, seq: int) -> None:
        """Frame `seq` has been applied. It may lie before others that were, when replaying has to begin again."""
        self._replayed = bisect_right(self._seqs, seq)

    @property
    def percent(self) -> float:
        return round(100.0 * self._bytes[self._replayed] / self.bytes, 1) if self.bytes else 0.0

    @property
    def lines_to_replay(self) -> int:
        return self._lines[-1] - self._lines[self._replayed]

    def as_dict(self) -> dict[str, Any]:
        return {"percent": self.percent, "lines_to_replay": self.lines_to_replay}

    def sentence(self) -> str:
        if not self._lines[-1]:  # nothing, or frames without lines: a model, an answer
            return "reading the state"
        lines = self.lines_to_replay
        return f"reading the state: {self.percent:.0f} %, {lines:,} {'line' if lines == 1 else 'lines'} to replay"
