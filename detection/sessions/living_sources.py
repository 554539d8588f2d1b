"""The sources that have not ended, and the position of each: part of the state.

A segment may begin and end in the middle of a line, so the bytes after a source's last newline are here. So is
what a later process must know to go on reading a connection that outlived this one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detection.columns.state_columns import Columns, State, array_column
from detection.frames import Segment


@dataclass(frozen=True, slots=True)
class LivingSource:
    """A source as its last segment left it; `kind`, `full` and `parity` are that segment's.

    `tail` holds its bytes after the last newline, `lines` how many lines it has completed.
    """

    name: str
    kind: str
    tail: bytes
    full: bool
    parity: int
    lines: int


class LivingSources:
    """The sources that have not ended, by name, each as of its last segment."""

    def __init__(self) -> None:
        self._living: dict[str, LivingSource] = {}

    def sources(self) -> list[LivingSource]:
        """By name."""
        return [self._living[name] for name in sorted(self._living)]

    def complete_lines(self, segment: Segment) -> tuple[list[bytes], bool]:
        """The lines that `segment` completes, and whether the last one had no newline.

        Raises ValueError when it completes another number of lines than it says; what is remembered of the
        source is as if it did not.
        """
        before = self._living.pop(segment.source, None)
        data = before.tail + segment.data if before else segment.data
        if segment.last and not segment.data and bool(data) != bool(segment.lines):
            # What came between is lost: the unfinished line had its end there, or its beginning. Then it is judged by
            # what is left of it, which is nothing.
            data = b"\n" if segment.lines else b""
        unterminated = segment.last and data != b"" and not data.endswith(b"\n")
        if unterminated:
            data += b"\n"
        lines = data.replace(b"\r\n", b"\n").split(b"\n")
        lines.pop()
        if not segment.last:
            self._living[segment.source] = LivingSource(
                name=segment.source,
                kind=segment.kind,
                # From the untouched bytes: a \r that ends the tail may be half of a \r\n.
                tail=data[data.rfind(b"\n") + 1 :],
                full=segment.full,
                parity=segment.parity,
                lines=len(lines) + (before.lines if before else 0),
            )
        if len(lines) != segment.lines:
            raise ValueError(f"segment of {segment.source} says {segment.lines} lines and holds {len(lines)}")
        return lines, unterminated

    def pass_over(self, segments: Sequence[Segment]) -> None:
        """Remember where `segments` leave their sources, and nothing of their lines."""
        for segment in segments:
            try:
                self.complete_lines(segment)
            except ValueError:
                # A wrong count may be why they are passed over; the source is known all the same.
                continue

    def export(self) -> State:
        living = self.sources()
        return {
            "names": "\n".join(each.name for each in living),
            "kinds": "\n".join(each.kind for each in living),
            "full": np.array([each.full for each in living], dtype=np.bool_),
            "parity": np.array([each.parity for each in living], dtype=np.uint8),
            "lines": np.array([each.lines for each in living], dtype=np.int64),
            "sizes": np.array([len(each.tail) for each in living], dtype=np.int64),
            "tails": np.frombuffer(b"".join(each.tail for each in living), dtype=np.uint8).copy(),
        }

    @classmethod
    def load(cls, columns: Columns) -> "LivingSources":
        loaded = cls()
        full, parity, lines, sizes = (
            array_column(columns, name).tolist() for name in ("full", "parity", "lines", "sizes")
        )
        tails, at = array_column(columns, "tails").tobytes(), 0
        names, kinds = str(columns["names"]).split("\n"), str(columns["kinds"]).split("\n")
        for number, size in enumerate(sizes):
            loaded._living[names[number]] = LivingSource(
                name=names[number],
                kind=kinds[number],
                tail=tails[at : at + size],
                full=full[number],
                parity=parity[number],
                lines=lines[number],
            )
            at += size
        return loaded
