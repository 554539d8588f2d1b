"""The journal, a write-ahead log: a sequence of segments (`journal_segment.py`) with one writer, read at recovery.

    writer = JournalWriter(directory, seq=0, line=0)
    writer.append([Entry(seq=1, line=2, count=2, payload=b"...")])      # durable when it returns
    writer.close()

    reader = JournalReader(directory, seq=0, line=0, set_aside=rename_damaged)
    entries = list(reader)                                              # then reader.lost_lines, .notes, .tail
    writer = JournalWriter(directory, reader.last_seq, reader.last_line, tail=reader.tail)

A segment is closed after SEGMENT_BYTES, or by `rotate`. What holds at every instant:

- An entry whose `append` returned is durable. One whose `append` raised may or may not be found later.
- A segment gets its name once its header is durable: a crash before that leaves `<name>.tmp`, which never held a frame.
- A segment ends before the first seq of the next one. So whatever a failed write left in an old segment is
  superseded by the segment that was opened after it, even when that one is damaged.
- A segment is durable before its predecessor is closed by a frame that announces it. So a segment that is
  announced and missing has been lost.
- After a write error a segment is never written again, except for that closing frame after a restart.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from persistence.disk import REAL, Disk, File, discard_file, os_error_text, read_with_patience, unlink_if_there
from persistence.journal_segment import (
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    NAME,
    Entry,
    Header,
    Scan,
    pack_closing_frame,
    pack_segment_entries,
    pack_segment_header,
    scan_segment,
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
    """The last segment, not closed, as the reader found it: `end` is the offset at which its trusted part ends."""

    path: Path
    header: Header
    end: int


@dataclass
class _OpenSegment:
    path: Path
    file: File
    header: Header
    size: int
    announced: bool = False


class JournalWriter:
    """Appends entries after `seq` and `line`, always to a segment of its own; every call blocks.

    `tail` is the segment before. It is closed when this writer opens its first segment: at `rotate`, or at the first
    `append`. Not for use by two threads at once.
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
        self._segment: _OpenSegment | None = None
        # A tail that begins where we do holds nothing; what is before it was closed when it was opened.
        self._tail = tail if tail is not None and tail.header.first_seq <= seq else None

    def append(self, entries: Sequence[Entry]) -> None:
        """Write `entries` with one write and one sync; they are durable when this returns.

        After a write error the same entries go to a new segment, once. When that fails too,
        `JournalError` is raised, none of `entries` counts as written, and the next call tries a new
        segment again. Raises ValueError when `entries` do not continue what was appended before, or one is
        larger than MAX_PAYLOAD_BYTES.
        """
        if not entries:
            return
        self._check_entries_continue(entries)
        if self._segment is not None and self._segment.size >= SEGMENT_BYTES:
            self.rotate()
        in_use = self._segment
        try:
            self._write_journal_entries(entries)
        except OSError as exc:
            if in_use is not None:  # else the caller has had the error before, and is retrying
                log.warning("journal: %s; the same frames go to a new segment", exc)
            self._abandon_segment()
            try:
                self._write_journal_entries(entries)
            except OSError as again:
                self._abandon_segment()
                raise JournalError(f"journal not written: {os_error_text(again, self._directory)}") from again
        self.seq, self.line = entries[-1].seq, entries[-1].line

    def rotate(self) -> None:
        """Continue in a new segment, unless the current one is empty. After `JournalError` the old one stays in use."""
        old = self._segment
        if old is not None and old.size == HEADER_BYTES:
            return
        try:
            self._segment = self._open_next_segment()
        except OSError as exc:
            raise JournalError(f"no new journal segment: {os_error_text(exc, self._directory)}") from exc
        if old is None:
            return
        self._segment.announced = True
        try:
            old.file.write(pack_closing_frame(old.header, old.size, old.size, self.seq, self.line))
            old.file.sync()
        except OSError as exc:
            # Every entry is durable and the next segment is too: only the announcement is missing.
            log.warning("journal: %s not closed: %s", old.path.name, exc)
        _close_segment_file(old.file)

    def close(self) -> None:
        """Close the file. Everything appended is durable already."""
        if self._segment is not None:
            _close_segment_file(self._segment.file)
            self._segment = None

    def _check_entries_continue(self, entries: Sequence[Entry]) -> None:
        seq, line = self.seq, self.line
        for entry in entries:
            seq, line = seq + 1, line + entry.count
            if (entry.seq, entry.line) != (seq, line) or entry.count < 0:
                raise ValueError(
                    f"frame {entry.seq} through line {entry.line}, where frame {seq} through line {line} is next"
                )
            if len(entry.payload) > MAX_PAYLOAD_BYTES:
                raise ValueError(f"frame {seq} has {len(entry.payload)} bytes, at most {MAX_PAYLOAD_BYTES} fit")

    def _write_journal_entries(self, entries: Sequence[Entry]) -> None:
        if self._segment is None:
            self._segment = self._open_next_segment()
        segment = self._segment
        data = pack_segment_entries(segment.header, segment.size, entries)
        segment.file.write(data)
        segment.file.sync()
        segment.size += len(data)

    def _open_next_segment(self) -> _OpenSegment:
        first = self.seq + 1
        siblings = [name for name in _segment_names(self._directory) if name.first == first]
        attempt = max((name.attempt for name in siblings), default=-1) + 1
        path = self._directory / segment_name(first, attempt)
        header = Header(self._new_salt(), first, self.line)
        file = self._create_segment(path, header)
        for name in siblings:
            # Starts that journaled nothing must not pile up files.
            if not name.bad and name.path.stat().st_size <= HEADER_BYTES:
                discard_file(self._disk, name.path)
        opened = _OpenSegment(path, file, header, HEADER_BYTES)
        if self._tail is not None:
            opened.announced = True
            tail, self._tail = self._tail, None
            self._close_tail_segment(tail)
        return opened

    def _create_segment(self, path: Path, header: Header) -> File:
        """Create a segment at `path`, durably. It gets its name once its header is whole, so a file with a segment's
        name and less than a header is damaged."""
        temp = path.with_name(path.name + ".tmp")
        unlink_if_there(self._disk, temp)
        file = self._disk.create(temp)
        try:
            file.write(pack_segment_header(header))
            file.sync()
            self._disk.rename(temp, path)
        except BaseException:
            _close_segment_file(file)
            discard_file(self._disk, temp)
            raise
        try:
            self._disk.sync(self._directory)
        except BaseException:
            _close_segment_file(file)
            discard_file(self._disk, path)
            raise
        return file

    def _abandon_segment(self) -> None:
        segment, self._segment = self._segment, None
        if segment is None:
            return
        _close_segment_file(segment.file)
        # Nothing in it was ever accepted. While the disk is full this runs every few seconds, and its attempts
        # must not fill the disk. An announced segment stays, or it would be reported as lost.
        if segment.size == HEADER_BYTES and not segment.announced:
            discard_file(self._disk, segment.path)

    def _close_tail_segment(self, tail: Tail) -> None:
        try:
            file = self._disk.append(tail.path)
            try:
                # Behind whatever a crash left there: `durable` in the closing frame tells where the trusted part ended.
                offset = file.stat().st_size
                file.write(pack_closing_frame(tail.header, offset, tail.end, self.seq, self.line))
                file.sync()
            finally:
                _close_segment_file(file)
        except OSError as exc:
            log.warning("journal: %s not closed: %s", tail.path.name, exc)


class JournalReader:
    """Yields the entries after `seq` and `line`, in order. Iterate it once, to the end; blocking.

    With `before`, only the entries before that seq; segments that begin there or later may be written meanwhile.

    Each segment is synced before its entries are yielded. A segment of which nothing can be trusted is passed to
    `set_aside` with the reason. A gap is skipped and the lines in it are counted. These attributes are final once the
    iteration has ended:

        lost_lines      how many lines lie in gaps
        frames_missing  whether any frame is missing, with or without lines
        last_seq, last_line  the highest numbers seen anywhere; new frames must follow them
        notes           one sentence for each fault found
        tail            the last segment if it was not closed, for the writer
        finished        True

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
        self.finished = False
        self._last_yielded = (seq, line)
        self._directory = directory
        self._before = before
        self._set_aside = set_aside
        self._disk = disk

    def note_position(self, seq: int, line: int) -> None:
        """Numbers known from elsewhere: if no entry reaches them, whatever lies between is lost."""
        self.last_seq, self.last_line = max(self.last_seq, seq), max(self.last_line, line)

    def __iter__(self) -> Iterator[Entry]:
        names = [name for name in _segment_names(self._directory) if self._before is None or name.first < self._before]
        present = [name for name in names if not name.bad]
        begins = {name.first for name in present}
        for name in names:
            self.note_position(name.first - 1, 0)
        for position, name in enumerate(present):
            later = (other.first for other in names if (other.first, other.attempt) > (name.first, name.attempt))
            stop = min(later, default=self._before)
            is_last = position == len(present) - 1
            if stop is not None and stop <= self._last_yielded[0] + 1 and not is_last:
                continue
            found = self._scan_segment_file(name)
            if found is None:
                continue
            self._note_segment_damage(name, found, is_last)
            yield from self._skip_known_entries(entry for entry in found.entries if stop is None or entry.seq < stop)
            self.note_position(found.header.first_seq - 1, found.header.line)
            if found.closing is not None:
                self.note_position(found.closing.seq, found.closing.line)
                if found.closing.seq + 1 not in begins:
                    self.frames_missing = True
                    self.notes.append(
                        f"{name.path.name}: the segment after it, from frame {found.closing.seq + 1} "
                        f"and line {found.closing.line + 1} on, is missing; how much it held is not known"
                    )
            elif is_last:
                self.tail = Tail(name.path, found.header, found.end)
        self._note_lost_frames(self.last_seq + 1, self.last_line)
        self.finished = True

    def _scan_segment_file(self, name: "_SegmentName") -> Scan | None:
        """What the segment holds, made durable first; None when nothing can be trusted and it was set aside."""
        try:
            # A killed process may have left frames in the page cache only: what is replayed now must
            # still be there after a power cut.
            self._disk.sync(name.path)
        except OSError as exc:
            # Not damage: setting the segment aside would lose intact frames. The next start tries again.
            raise JournalError(f"{name.path}: {exc.strerror}") from exc

        def read_segment() -> bytes:
            with self._disk.read(name.path) as file:
                return file.read(_MAX_SEGMENT_BYTES + 1)

        try:
            data = read_with_patience(name.path, read_segment)
        except OSError as exc:
            raise JournalError(f"{name.path}: {exc.strerror}") from exc
        try:
            if len(data) > _MAX_SEGMENT_BYTES:
                raise ValueError(f"is larger than {_MAX_SEGMENT_BYTES} bytes")
            found = scan_segment(data, name.path)
            if found.header.first_seq != name.first:
                raise ValueError(f"begins with frame {found.header.first_seq}")
        except ValueError as exc:
            self._set_aside(name.path, str(exc))
            return None
        return found

    def _note_segment_damage(self, name: "_SegmentName", found: Scan, is_last: bool) -> None:
        if found.rotten:
            self.notes.append(f"{name.path.name}: {found.rotten} bytes are damaged")
        # In an older segment this is what a write error left, which was logged at the time.
        if found.torn and found.closing is None and is_last:
            self.notes.append(
                f"{name.path.name}: the last {found.torn} bytes are a write that was never confirmed; dropped"
            )

    def _skip_known_entries(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        for entry in entries:
            if entry.seq <= self._last_yielded[0]:
                continue
            self._note_lost_frames(entry.seq, entry.line - entry.count)
            self._last_yielded = (entry.seq, entry.line)
            self.note_position(entry.seq, entry.line)
            yield entry

    def _note_lost_frames(self, next_seq: int, line: int) -> None:
        seq, last_line = self._last_yielded
        lost = max(line - last_line, 0)
        if next_seq > seq + 1 or lost:
            self.lost_lines += lost
            self.frames_missing = True
            self.notes.append(f"frames {seq + 1} to {next_seq - 1} are lost, {lost} lines with them")


@dataclass(frozen=True)
class _SegmentName:
    first: int
    attempt: int
    path: Path
    bad: bool


def segment_paths(directory: Path) -> list[tuple[int, Path]]:
    """The segments in `directory` that are not set aside, oldest first, with their first seq."""
    return [(name.first, name.path) for name in _segment_names(directory) if not name.bad]


def _segment_names(directory: Path) -> list[_SegmentName]:
    names = []
    for path in directory.iterdir():
        match = NAME.fullmatch(path.name.removesuffix(".bad"))
        if match is not None and int(match[1]) < 1 << 63:
            names.append(_SegmentName(int(match[1]), int(match[2] or 0), path, path.name.endswith(".bad")))
    return sorted(names, key=lambda name: (name.first, name.attempt))


def _close_segment_file(file: File) -> None:
    try:
        file.close()
    except OSError as exc:
        # The descriptor is gone either way, and whatever had to be durable was synced before.
        log.warning("journal: close: %s", exc)
