"""The texts of the last lines, in one bounded ring: what an alert about a session can still quote."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detection.columns.state_columns import Columns, State, array_column, scalar_column

_RING_BYTES = 4 << 20
_RING_LINES = 1 << 16
_KEPT_OF_A_LINE = 2048


class RecentLines:
    """The first 2 KiB of each of the last lines: at most 65,536 lines and 4 MiB."""

    def __init__(self) -> None:
        self._bytes = np.zeros(_RING_BYTES, dtype=np.uint8)
        self._starts = np.zeros(_RING_LINES, dtype=np.int64)  # offsets in the endless stream of bytes
        self._sizes = np.zeros(_RING_LINES, dtype=np.int32)
        self._serials = np.zeros(_RING_LINES, dtype=np.int64)  # of the sessions they belong to
        self._written = 0
        self._last = 0

    def append(self, first_line: int, lines: Sequence[bytes], serials: NDArray[np.int64]) -> None:
        """Remember `lines` of sessions `serials`, numbered from `first_line`; numbers may jump forward, never back."""
        first_line += max(len(lines) - _RING_LINES, 0)
        lines, serials = lines[-_RING_LINES:], serials[-_RING_LINES:]
        kept = [line[:_KEPT_OF_A_LINE] for line in lines]
        sizes = np.fromiter(map(len, kept), dtype=np.int64, count=len(kept))
        starts = self._written + np.concatenate(([0], np.cumsum(sizes[:-1]))) if len(kept) else sizes
        skipped = np.arange(self._last + 1, min(first_line, self._last + 1 + _RING_LINES))
        self._sizes[skipped % _RING_LINES] = -1
        slots = np.arange(first_line, first_line + len(kept)) % _RING_LINES
        self._starts[slots] = starts
        self._sizes[slots] = sizes
        self._serials[slots] = serials
        self._write_text(b"".join(kept))
        self._last = first_line + len(kept) - 1

    def text(self, line: int) -> bytes | None:
        """The beginning of line number `line`, or None when it is gone."""
        if not 0 < line <= self._last or line <= self._last - _RING_LINES:
            return None
        slot = line % _RING_LINES
        start, size = int(self._starts[slot]), int(self._sizes[slot])
        if size < 0 or start < self._written - _RING_BYTES:
            return None
        at = start % _RING_BYTES
        head = self._bytes[at : at + size].tobytes()
        return head if len(head) == size else head + self._bytes[: size - len(head)].tobytes()

    def of_session(self, serial: int, through: int, count: int) -> list[int]:
        """The numbers of the last `count` lines of session `serial` up to line `through` that are still held."""
        numbers = np.arange(max(self._last - _RING_LINES, 0) + 1, min(through, self._last) + 1)
        mine = numbers[self._serials[numbers % _RING_LINES] == serial][-count:]
        return [int(number) for number in mine if self.text(int(number)) is not None]

    def _write_text(self, data: bytes) -> None:
        start = self._written
        self._written += len(data)
        array: NDArray[np.uint8] = np.frombuffer(data, dtype=np.uint8)
        if len(array) > _RING_BYTES:
            start += len(array) - _RING_BYTES
            array = array[-_RING_BYTES:]
        at = start % _RING_BYTES
        head = min(len(array), _RING_BYTES - at)
        self._bytes[at : at + head] = array[:head]
        self._bytes[: len(array) - head] = array[head:]

    def export(self) -> State:
        return {
            "bytes": self._bytes.copy(),
            "starts": self._starts.copy(),
            "sizes": self._sizes.copy(),
            "serials": self._serials.copy(),
            "written": self._written,
            "last": self._last,
        }

    @classmethod
    def load(cls, columns: Columns) -> "RecentLines":
        recent = cls()
        recent._bytes[:] = array_column(columns, "bytes")
        recent._starts[:] = array_column(columns, "starts")
        recent._sizes[:] = array_column(columns, "sizes")
        recent._serials[:] = array_column(columns, "serials")
        recent._written = scalar_column(columns, "written", int)
        recent._last = scalar_column(columns, "last", int)
        return recent
