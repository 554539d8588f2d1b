"""One source's bytes become segments: over-long lines cut, lines counted, the kind recognised. Pure.

What a source remembers between two reads is the length of its unfinished line, whether the rest of that
line is being skipped, and, until `SAMPLE_LINES` lines were seen, a sample of them to recognise the kind by.
All but the sample is in the state as well (`LivingSource`), so a later process can go on in the middle of a line.
"""

from collections.abc import Callable, Sequence

from detection.frames import Segment
from detection.sessions.living_sources import LivingSource

SAMPLE_LINES = 20
# Enough of a line to tell its kind; a thousand connections may each hold twenty of them.
SAMPLE_LINE_BYTES = 4096

Recognise = Callable[[Sequence[bytes]], str]


class Source:
    """`kind` is "auto" or the kind of every line; `recognise` decides it for "auto".

    `before` is the source as an earlier process left it, if it did. A kind that was decided by a whole sample
    stays; by less, a new sample is taken, and it is the earlier kind until that has a line.
    """

    def __init__(
        self, name: str, kind: str, recognise: Recognise, max_line_bytes: int, before: LivingSource | None = None
    ) -> None:
        self.name = name
        self._limit = max_line_bytes
        self._length = len(before.tail) if before else 0  # kept bytes of the unfinished line
        # The unfinished line is full: drop everything up to its newline.
        self._skipping = before.full if before else False
        self._parity = before.parity if before else 1
        self._begun = before is not None
        self._sample: _LineSample | None = None
        self._kind = kind
        if kind == "auto":
            self._kind = before.kind if before else "plain"
            if before is None or before.lines < SAMPLE_LINES:
                self._sample = _LineSample(recognise, before.tail if before else b"")

    @property
    def begun(self) -> bool:
        """Whether any of its bytes have come."""
        return self._begun

    def feed(self, data: bytes) -> Segment | None:
        """The segment for the next `data` of this source; None when it all belongs to a line already full."""
        was_full = self._skipping
        kept, lines, cut = self._cut_overlong_lines(data)
        if not kept and was_full:
            return None
        self._begun = True
        self._parity ^= 1
        kind = self._recognised_kind(kept)
        return Segment(self.name, kind, kept, lines, cut, full=self._skipping, parity=self._parity)

    def finish(self) -> Segment | None:
        """The closing segment: an unfinished line is a line now. None when nothing ever came."""
        if not self._begun:
            return None
        tail = self._length > 0
        cut = (0,) if self._skipping else ()
        return Segment(self.name, self._recognised_kind(b"\n" if tail else b""), b"", int(tail), cut, last=True)

    def _cut_overlong_lines(self, data: bytes) -> tuple[bytes, int, tuple[int, ...]]:
        """`data` without what exceeds the limit, the lines it completes, the ordinals of those cut.

        Whole runs of short lines are found with one backward search, so the usual chunk takes a
        handful of steps whatever its number of lines.
        """
        kept: list[bytes] = []
        cut: list[int] = []
        lines = at = 0
        while at < len(data):
            if self._skipping:
                newline = data.find(b"\n", at)
                if newline < 0:
                    break
                kept.append(b"\n")
                cut.append(lines)
                lines += 1
                self._skipping, self._length = False, 0
                at = newline + 1
                continue
            # An earlier process may have allowed longer lines than we do.
            room = max(self._limit - self._length, 0)
            newline = data.rfind(b"\n", at, at + room + 1)
            if newline >= 0:
                kept.append(data[at : newline + 1])
                lines += data.count(b"\n", at, newline + 1)
                self._length = 0
                at = newline + 1
            else:
                piece = data[at : at + room]
                kept.append(piece)
                self._length += len(piece)
                at += len(piece)
                self._skipping = at < len(data)
        return b"".join(kept), lines, tuple(cut)

    def _recognised_kind(self, kept: bytes) -> str:
        if self._sample is not None:
            self._kind = self._sample.recognise_kind(kept) or self._kind
            if self._sample.complete:
                self._sample = None
        return self._kind


class _LineSample:
    """The first lines of a source. The kind may change with each read until the sample is complete."""

    def __init__(self, recognise: Recognise, tail: bytes) -> None:
        self._recognise = recognise
        self._lines: list[bytes] = []
        self._tail = tail[:SAMPLE_LINE_BYTES]

    @property
    def complete(self) -> bool:
        return len(self._lines) == SAMPLE_LINES

    def recognise_kind(self, data: bytes) -> str | None:
        """The kind by all lines so far, or None as long as there is no whole line."""
        *whole, tail = (self._tail + data).split(b"\n", SAMPLE_LINES - len(self._lines))
        self._lines += [line.removesuffix(b"\r")[:SAMPLE_LINE_BYTES] for line in whole]
        self._tail = tail[:SAMPLE_LINE_BYTES]
        return self._recognise(self._lines) if self._lines else None
