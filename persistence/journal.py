"""The journal: a row of segments (`persistence/segment.py`), written by one writer, read at recovery.

What holds at every instant:

- An entry whose `append` returned is durable. One whose `append` raised may or may not be found later.
- A segment has its name from when its header is durable: a crash before leaves `<name>.tmp`, which never held a frame.
- A segment holds nothing from the first seq of the next one on. So whatever a failed write left in an
  old segment is superseded by the segment that was opened after it, even when that one is damaged.
- A segment exists durably before its predecessor is closed by a frame that announces it, so a segment
  that is announced and not there has vanished.
- After a write error a file is never written again, except for that closing frame after a restart.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from persistence.disk import REAL, Disk, File, discard, failure, read_with_patience, unlink_if_there
from persistence.segment import (
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    NAME,
    Entry,
    Header,
    Scan,
    pack_closing,
    pack_entries,
    pack_header,
    scan,
    segment_name,
)

SEGMENT_BYTES = 64 << 20

# A segment is read as a whole; nothing we write comes near this.
_MAX_SEGMENT_BYTES = 1 << 30

log = logging.getLogger(__name__)


class JournalError(Exception):
    """The journal could not be written or made durable; the OSError is the cause."""


@dataclass(frozen=True)
class Tail:
    """The last segment as recovery found it, not closed: `end` is where its trusted part ends."""

    path: Path
    header: Header
    end: int


@dataclass
class _Open:
    path: Path
    file: File
    header: Header
    size: int
    announced: bool = False


class JournalWriter:
    """Appends entries after `seq` and `line`, always to a segment of its own.

    `tail` is the segment before, closed when the first of ours is opened: by `rotate`, or the first `append`.
    Not for use by two threads at once.
    """

    def __init__(
        self,
        directory: Path,
        seq: int,
        line: int,
        *,
        tail: Tail | None = None,
        disk: Disk = REAL,
        new_salt: Callable[[], bytes] = lambda: os.urandom(16),
    ) -> None:
        self.seq = seq
        self.line = line
        self._directory = directory
        self._disk = disk
        self._new_salt = new_salt
        self._segment: _Open | None = None
        # A tail that begins where we do holds nothing; what is before it was closed when it was opened.
        self._tail = tail if tail is not None and tail.header.first_seq <= seq else None

    def append(self, entries: Sequence[Entry]) -> None:
        """Make `entries` durable with one write and one sync; they are when this returns.

        After a write error the same entries go to a new segment, once. When that fails too,
        `JournalError` is raised, none of `entries` counts as written, and the next call tries a new
        segment again. ValueError when `entries` do not follow on what was appended before.
        """
        if not entries:
            return
        self._check(entries)
        if self._segment is not None and self._segment.size >= SEGMENT_BYTES:
            self.rotate()
        in_use = self._segment
        try:
            self._write(entries)
        except OSError as exc:
            if in_use is not None:  # else the caller was told already, and is trying again and again
                log.warning("journal: %s; the same frames go to a new segment", exc)
            self._abandon()
            try:
                self._write(entries)
            except OSError as again:
                self._abandon()
                raise JournalError(f"journal not written: {failure(again, self._directory)}") from again
        self.seq, self.line = entries[-1].seq, entries[-1].line

    def rotate(self) -> None:
        """Go on in a new segment, unless nothing is in this one. JournalError leaves the old one in use."""
        old = self._segment
        if old is not None and old.size == HEADER_BYTES:
            return
        try:
            self._segment = self._opened()
        except OSError as exc:
            raise JournalError(f"no new journal segment: {failure(exc, self._directory)}") from exc
        if old is None:
            return
        self._segment.announced = True
        try:
            old.file.write(pack_closing(old.header, old.size, old.size, self.seq, self.line))
            old.file.sync()
        except OSError as exc:
            # Every entry is durable and the next segment is too: only the announcement is missing.
            log.warning("journal: %s not closed: %s", old.path.name, exc)
        _close(old.file)

    def close(self) -> None:
        """Let go of the file. Everything appended is durable already."""
        if self._segment is not None:
            _close(self._segment.file)
            self._segment = None

    def _check(self, entries: Sequence[Entry]) -> None:
        seq, line = self.seq, self.line
        for entry in entries:
            seq, line = seq + 1, line + entry.count
            if (entry.seq, entry.line) != (seq, line) or entry.count < 0:
                raise ValueError(f"frame {entry.seq} to line {entry.line} is not frame {seq} to {line}")
            if len(entry.payload) > MAX_PAYLOAD_BYTES:
                raise ValueError(f"frame {seq} has {len(entry.payload)} bytes")

    def _write(self, entries: Sequence[Entry]) -> None:
        if self._segment is None:
            self._segment = self._opened()
        segment = self._segment
        data = pack_entries(segment.header, segment.size, entries)
        segment.file.write(data)
        segment.file.sync()
        segment.size += len(data)

    def _opened(self) -> _Open:
        first = self.seq + 1
        siblings = [name for name in _names(self._directory) if name.first == first]
        attempt = max((name.attempt for name in siblings), default=-1) + 1
        path = self._directory / segment_name(first, attempt)
        header = Header(self._new_salt(), first, self.line)
        file = self._born(path, header)
        for name in siblings:
            # Starts that brought nothing must not pile up files.
            if not name.bad and name.path.stat().st_size <= HEADER_BYTES:
                discard(self._disk, name.path)
        opened = _Open(path, file, header, HEADER_BYTES)
        if self._tail is not None:
            opened.announced = True
            tail, self._tail = self._tail, None
            self._close_tail(tail)
        return opened

    def _born(self, path: Path, header: Header) -> File:
        """A new segment at `path`, durably. It gets its name when its header is whole: under a segment's name there
        never was less, so less is damage."""
        temp = path.with_name(path.name + ".tmp")
        unlink_if_there(self._disk, temp)
        file = self._disk.create(temp)
        try:
            file.write(pack_header(header))
            file.sync()
            self._disk.rename(temp, path)
        except BaseException:
            _close(file)
            discard(self._disk, temp)
            raise
        try:
            self._disk.sync(self._directory)
        except BaseException:
            _close(file)
            discard(self._disk, path)
            raise
        return file

    def _abandon(self) -> None:
        segment, self._segment = self._segment, None
        if segment is None:
            return
        _close(segment.file)
        # Nothing in it was ever accepted. While the disk is full we come here every few seconds, and
        # must not fill it with our attempts. An announced one stays, or it would seem to have vanished.
        if segment.size == HEADER_BYTES and not segment.announced:
            discard(self._disk, segment.path)

    def _close_tail(self, tail: Tail) -> None:
        try:
            file = self._disk.append(tail.path)
            try:
                # Behind whatever a crash left there; `durable` says from where on it does not count.
                offset = file.stat().st_size
                file.write(pack_closing(tail.header, offset, tail.end, self.seq, self.line))
                file.sync()
            finally:
                _close(file)
        except OSError as exc:
            log.warning("journal: %s not closed: %s", tail.path.name, exc)


class JournalReading:
    """The entries after `seq` and `line`, in order: iterate it once, to the end.

    With `before` only those before that seq; segments that begin there or later may be written meanwhile.

    Only what was made durable first is given. What is damaged throughout is passed to `set_aside` with the
    reason; a hole is passed over and its lines are counted. The attributes are settled at the end:
    `lost_lines`; `frames_missing`, whether any frame is, be there lines in it or not; `last_seq` and
    `last_line`, the highest numbers seen anywhere, which new frames must follow; `notes`, one sentence for
    each thing that was not as it should be; `tail` for the writer.
    Iterating raises `JournalError` when the disk fails, `NewerFormatError` for a later format.
    """

    def __init__(
        self,
        directory: Path,
        seq: int,
        line: int,
        *,
        before: int | None = None,
        set_aside: Callable[[Path, str], None],
        disk: Disk = REAL,
    ) -> None:
        self.lost_lines = 0
        self.frames_missing = False
        self.last_seq = seq
        self.last_line = line
        self.notes: list[str] = []
        self.tail: Tail | None = None
        self.done = False
        self._given = (seq, line)
        self._directory = directory
        self._before = before
        self._set_aside = set_aside
        self._disk = disk

    def saw(self, seq: int, line: int) -> None:
        """Numbers known from elsewhere: if no entry reaches them, what is between is lost."""
        self.last_seq, self.last_line = max(self.last_seq, seq), max(self.last_line, line)

    def __iter__(self) -> Iterator[Entry]:
        names = [name for name in _names(self._directory) if self._before is None or name.first < self._before]
        present = [name for name in names if not name.bad]
        begins = {name.first for name in present}
        for name in names:
            self.saw(name.first - 1, 0)
        for position, name in enumerate(present):
            later = (other.first for other in names if (other.first, other.attempt) > (name.first, name.attempt))
            stop = min(later, default=self._before)
            is_last = position == len(present) - 1
            if stop is not None and stop <= self._given[0] + 1 and not is_last:
                continue
            found = self._scan(name)
            if found is None:
                continue
            self._note_damage(name, found, is_last)
            yield from self._continued(entry for entry in found.entries if stop is None or entry.seq < stop)
            self.saw(found.header.first_seq - 1, found.header.line)
            if found.closing is not None:
                self.saw(found.closing.seq, found.closing.line)
                if found.closing.seq + 1 not in begins:
                    self.frames_missing = True
                    self.notes.append(
                        f"{name.path.name}: the segment after it, from frame {found.closing.seq + 1} "
                        f"and line {found.closing.line + 1} on, is missing; how much it held is not known"
                    )
            elif is_last:
                self.tail = Tail(name.path, found.header, found.end)
        self._note_hole(self.last_seq + 1, self.last_line)
        self.done = True

    def _scan(self, name: "_Name") -> Scan | None:
        try:
            # A process that was killed may have left frames that never reached the disk: what is
            # replayed now must still be there after a power cut.
            self._disk.sync(name.path)
        except OSError as exc:
            # Not damage: set aside, frames that are there would be lost. The next start tries again.
            raise JournalError(f"{name.path}: {exc.strerror}") from exc

        def read() -> bytes:
            with self._disk.read(name.path) as file:
                return file.read(_MAX_SEGMENT_BYTES + 1)

        try:
            data = read_with_patience(name.path, read)
        except OSError as exc:
            raise JournalError(f"{name.path}: {exc.strerror}") from exc
        try:
            if len(data) > _MAX_SEGMENT_BYTES:
                raise ValueError(f"is larger than {_MAX_SEGMENT_BYTES} bytes")
            found = scan(data, name.path)
            if found.header.first_seq != name.first:
                raise ValueError(f"begins with frame {found.header.first_seq}")
        except ValueError as exc:
            self._set_aside(name.path, str(exc))
            return None
        return found

    def _note_damage(self, name: "_Name", found: Scan, is_last: bool) -> None:
        if found.rotten:
            self.notes.append(f"{name.path.name}: {found.rotten} bytes are damaged")
        # In an older segment that is what a write error left, and the log said so then.
        if found.torn and found.closing is None and is_last:
            self.notes.append(
                f"{name.path.name}: the last {found.torn} bytes are a write that was never confirmed; dropped"
            )

    def _continued(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        for entry in entries:
            if entry.seq <= self._given[0]:
                continue
            self._note_hole(entry.seq, entry.line - entry.count)
            self._given = (entry.seq, entry.line)
            self.saw(entry.seq, entry.line)
            yield entry

    def _note_hole(self, next_seq: int, line: int) -> None:
        seq, given_line = self._given
        lost = max(line - given_line, 0)
        if next_seq > seq + 1 or lost:
            self.lost_lines += lost
            self.frames_missing = True
            self.notes.append(f"frames {seq + 1} to {next_seq - 1} are lost, {lost} lines with them")


@dataclass(frozen=True)
class _Name:
    first: int
    attempt: int
    path: Path
    bad: bool


def segments(directory: Path) -> list[tuple[int, Path]]:
    """The segments in `directory` that are not set aside, oldest first, with their first seq."""
    return [(name.first, name.path) for name in _names(directory) if not name.bad]


def _names(directory: Path) -> list[_Name]:
    names = []
    for path in directory.iterdir():
        match = NAME.fullmatch(path.name.removesuffix(".bad"))
        if match is not None and int(match[1]) < 1 << 63:
            names.append(_Name(int(match[1]), int(match[2] or 0), path, path.name.endswith(".bad")))
    return sorted(names, key=lambda name: (name.first, name.attempt))


def _close(file: File) -> None:
    try:
        file.close()
    except OSError as exc:
        # The descriptor is gone either way, and whatever had to be durable was synced before.
        log.warning("journal: close: %s", exc)
