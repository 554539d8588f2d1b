"""Append-only files of JSON records, one per line (alerts.jsonl, verdicts.jsonl), which may be rotated at any time.

    record := "{" ... "}" "\\n", without NUL bytes

At open, whatever follows the last whole record is a torn write: it is cut off, and kept beside the file
as `<name>.<offset>.bad` if the disk has room. Others may move, replace or truncate the file at any time:
the next append notices a new file under the name and writes to that. Records stay in memory until they
are synced; after a write error the file is reopened, cut back to its durable size, and they are written
again. So every record is there once, with one exception: when the file was moved away between an error
and the retry, its last records may be in both files.

The id of the last record is also kept in `<stem>.mark` (`persistence/high_water.py`). Without it, records in a file
that was rotated away while no daemon ran, or just before a kill, would be written again.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from persistence.disk import FULL, REAL, Disk, File, replace_file
from persistence.high_water import HighWaterMark

_BLOCK_BYTES = 1 << 16


@contextmanager
def open_jsonl(path: Path, *, disk: Disk = REAL, boot: str | None = None) -> Iterator["JsonlWriter"]:
    """Open `path` for appending, created if it is missing; synced and closed at the end. Raises OSError.

    `boot` is the kernel's boot id, None to ask for it.
    """
    writer = JsonlWriter(path, disk, boot)
    try:
        yield writer
        writer.sync()
    finally:
        writer.close()


def last_records(path: Path, limit_bytes: int) -> Iterator[bytes]:
    """The whole records that end within the last `limit_bytes` of the file at `path`, last first, without newlines.

    Blocking. The file may be appended to meanwhile. Raises OSError.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        for record, end in _records_backwards(file, size):
            if end <= size - limit_bytes:
                return
            yield record


class JsonlWriter:
    """`last` is the last whole record found at open (without its newline), None if there was none.

    `last_id` is the id that `append` was given with the last record, be that in this file or in one that was rotated
    away; None if unknown. Either of the two may be ahead of the other. `note` says what was cut off at open, None if
    nothing was. Every call blocks. Not for use by two threads at once.
    """

    def __init__(self, path: Path, disk: Disk, boot: str | None = None) -> None:
        self.path = path
        self._mark = HighWaterMark(path.with_suffix(".mark"), disk, boot)
        self.last_id = self._mark.last
        self.note: str | None = None
        self._disk = disk
        self._file: File | None = None
        self._inode: tuple[int, int] | None = None
        self._durable = 0
        self._unsynced = bytearray()
        self.last = self._cut_torn_tail()
        if self._mark.unsynced:
            self._sync_rotated()
        self._current()

    def append(self, records: Sequence[bytes], last_id: str | None = None) -> None:
        """Write `records`, which hold no newlines. After OSError none of them counts as written: try again.

        They are durable after the next `sync`. `last_id` is the id of the last of them, an ASCII word, for the mark.
        Raises ValueError for bytes that would not be read back as a record.
        """
        for record in records:
            if not _is_record(record):
                raise ValueError(f"not a record of JSON lines: {record[:80]!r}")
        data = b"".join(record + b"\n" for record in records)
        try:
            self._current().write(data)
        except OSError:
            self.close()
            raise
        self._unsynced += data
        if last_id is not None:
            self._mark.note_written(last_id)

    def sync(self) -> None:
        """Make everything appended so far durable. After OSError, call it again."""
        try:
            file = self._current()
            if self._unsynced:
                file.sync()
                self._durable = file.stat().st_size
                self._unsynced.clear()
            self._mark.note_synced()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file. Records that were not synced are written again by the next append."""
        self._mark.close()
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _current(self) -> File:
        if self._file is not None and not self._is_in_place(self._file):
            # Moved away: its records must be durable before it is closed.
            self._file.sync()
            self._unsynced.clear()
            self._mark.note_synced()
            self.close()
        if self._file is None:
            self._file = self._open_file()
        return self._file

    def _is_in_place(self, file: File) -> bool:
        try:
            return _inode(os.lstat(self.path)) == _inode(file.stat())
        except FileNotFoundError:
            return False

    def _open_file(self) -> File:
        try:
            file = self._disk.append(self.path)
        except FileNotFoundError:
            file = self._disk.create(self.path)
        try:
            last_id = self._mark.last
            if self._unsynced:
                self._mark.fall_back_to_durable()
            found = file.stat()
            if _inode(found) != self._inode:
                self._inode, self._durable = _inode(found), found.st_size
            elif found.st_size > self._durable:
                # The same file is reopened, so there was an error: what follows the durable part may be
                # damaged, and is still in memory.
                file.truncate(self._durable)
            file.write(self._unsynced)
            if self._unsynced and last_id is not None:
                self._mark.note_written(last_id)
            self._disk.sync(self.path.parent)
        except BaseException:
            file.close()
            raise
        return file

    def _cut_torn_tail(self) -> bytes | None:
        try:
            # A killed process may have left records in the page cache only, and readers of `last` rely on
            # them.
            self._disk.sync(self.path)
        except FileNotFoundError:
            return None
        with self._disk.read(self.path) as file:
            size = file.seek(0, os.SEEK_END)
            last, end = next(_records_backwards(file, size), (None, 0))
            if end < size:
                self._set_tail_aside(file, end, size)
        return last

    def _sync_rotated(self) -> None:
        """Sync the file and its rotations: the last process was killed with records unsynced, maybe rotated since."""
        for path in sorted(self.path.parent.glob(f"{self.path.name}*")):
            if path.is_file():
                self._disk.sync(path)

    def _set_tail_aside(self, file: BinaryIO, end: int, size: int) -> None:
        aside = self.path.with_name(f"{self.path.name}.{end}.bad")
        attempt = 0
        while os.path.lexists(aside):
            attempt += 1
            aside = self.path.with_name(f"{self.path.name}.{end}-{attempt}.bad")
        file.seek(end)
        try:
            replace_file(self._disk, aside, iter(lambda: file.read(_BLOCK_BYTES), b""))
            kept = f"kept as {aside.name}"
        except OSError as exc:
            if exc.errno not in FULL:
                raise
            # A full disk tears records, and must not keep the daemon from starting again.
            kept = f"and could not be kept: {exc.strerror}"
        own = self._disk.append(self.path)
        try:
            own.truncate(end)
            own.sync()
        finally:
            own.close()
        self.note = f"{self.path.name}: its last {size - end} bytes are no whole record; {kept}"


def _is_record(line: bytes) -> bool:
    return line.startswith(b"{") and line.endswith(b"}") and b"\0" not in line and b"\n" not in line


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _records_backwards(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """The whole records of `file`, last first, each with the offset after its newline."""
    step, at, rest = _BLOCK_BYTES, size, b""
    while at > 0:
        # Doubling keeps the work linear when there is one endless line.
        block = min(step, at)
        at, step = at - block, step * 2
        file.seek(at)
        data = file.read(block) + rest
        end = len(data)
        while (newline := data.rfind(b"\n", 0, end)) >= 0 or (at == 0 and end > 0):
            line = data[newline + 1 : end]
            # Bytes after the file's last newline are not terminated, so they are no record.
            if at + end < size and _is_record(line):
                yield line, at + end + 1
            end = max(newline, 0)
        rest = data[:end]
