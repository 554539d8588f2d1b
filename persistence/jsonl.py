"""Append-only files of JSON records, one per line (alerts.jsonl, verdicts.jsonl), which may be rotated at any time.

    record := "{" ... "}" "\\n", without NUL bytes

    with open_jsonl(path) as writer:
        writer.append([b'{"id":"7"}'], "7")     # may be lost with the machine's power until
        writer.sync()
    for record in last_records(path, 1 << 20): ...          # the last one first
    for record in records_from(path, is_before): ...        # found without reading those before it

At open, whatever follows the last whole record is a torn write: it is cut off, and kept beside the file
as `<name>.<offset>.bad` if the disk has room. Others may move, replace or truncate the file at any time:
the next append notices a new file under the name and writes to that. Records stay in memory until they
are synced; after a write error the file is reopened, cut back to its durable size, and they are written
again. So every record is there once, with one exception: when the file was moved away between an error
and the retry, its last records may be in both files.

Where its `RecordSpace` has a bound the file is rotated here, without logrotate: when it holds an eighth of that, it is
made durable and renamed to its newest part. A kill or power cut at any moment of it leaves each record there once.
What is torn off is kept beside the file, of the last TORN_KEPT times.

The id of the last record is also kept in `<stem>.mark` (`persistence/high_water_mark.py`). Without it, records in a
file that was rotated away while no daemon ran, or just before a kill, would be written again.
"""

import errno
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from persistence.disk import FULL, REAL, Disk, File, replace_file
from persistence.high_water_mark import HighWaterMark
from persistence.record_space import KEEP_FREE_BYTES, RecordSpace, rotated_parts

TORN_KEPT = 8
_BLOCK_BYTES = 1 << 16
# Far beyond any record of ours. A longer line is passed over, and never in memory as a whole.
MAX_RECORD_BYTES = 1 << 20

log = logging.getLogger(__name__)


@contextmanager
def open_jsonl(
    path: Path,
    *,
    space: RecordSpace | None = None,
    keep_free: int = KEEP_FREE_BYTES,
    disk: Disk = REAL,
    boot: str | None = None,
) -> Iterator["JsonlWriter"]:
    """Open `path` for appending, created if it is missing; synced and closed at the end. Raises OSError.

    `space` is what the files of its directory share; without one others rotate it. `boot` is the kernel's boot id,
    None to ask for it.
    """
    writer = JsonlWriter(path, disk, boot, space=space, keep_free=keep_free)
    try:
        yield writer
        writer.sync()
    finally:
        writer.close()


def last_records(path: Path, limit_bytes: int) -> Iterator[bytes]:
    """The whole records that end within the last `limit_bytes` of the file at `path` and of its parts, last first,
    without newlines.

    Blocking. The file may be appended to and rotated meanwhile. Raises OSError; FileNotFoundError where there is
    neither the file nor a part.
    """
    with ExitStack() as stack:
        for file in _open_record_files(path, stack):
            size = file.seek(0, os.SEEK_END)
            for record, end in _records_backwards(file, size):
                if end <= size - limit_bytes:
                    return
                yield record
            limit_bytes -= size


def records_from(
    path: Path,
    is_before: Callable[[bytes], bool | None],
    then_holding: bytes = b"",
    check: Callable[[], None] = lambda: None,
) -> Iterator[bytes]:
    """The records of the file at `path` and of its parts, oldest first, without newlines: from the first that
    `is_before` is false of, and after it those that hold `then_holding`.

    `is_before` is true of all records up to some point, false of all after it, and None of what is no record of ours;
    the point is found by bisection. `check` is called often, with the file open: what it raises ends the search.
    Blocking, as `last_records`, and raises the same.
    """
    with ExitStack() as stack:
        found = False
        for file in reversed(_open_record_files(path, stack)):
            at = 0
            if not found:
                first = _first_record_not_before(file, is_before, check)
                if first is None:
                    continue
                found = True
                line, at = first
                yield line
            yield from _records_holding(file, at, then_holding, check)


def _open_record_files(path: Path, stack: ExitStack) -> list[BinaryIO]:
    """The file at `path` and its parts, newest first, each once. Raises FileNotFoundError where there is neither."""
    files: dict[tuple[int, int], BinaryIO] = {}
    # The file before its parts: what is renamed in between is found twice, not never.
    for each in (path, *reversed(rotated_parts(path))) if path.exists() else reversed(rotated_parts(path)):
        try:
            file = stack.enter_context(open(each, "rb"))
        except FileNotFoundError:
            continue  # rotated, or removed as the oldest
        files.setdefault(_device_and_inode(os.fstat(file.fileno())), file)
    if not files:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return list(files.values())


def record_files(path: Path) -> list[Path]:
    """The parts of the file at `path` and, unless it was just rotated, itself: together all records, oldest first.

    For files that nobody writes meanwhile. Raises FileNotFoundError where there is neither.
    """
    files = [*rotated_parts(path), *([path] if path.exists() else [])]
    if not files:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return files


class JsonlWriter:
    """`last` is the last whole record found at open (without its newline), None if there was none.

    `last_id` is the id that `append` was given with the last record, which may be in a file that was rotated away;
    None if unknown. Either of the two may be ahead of the other. `note` says what was cut off at open, None if nothing
    was. Every call but `usage` blocks. Not for use by two threads at once.
    """

    def __init__(
        self,
        path: Path,
        disk: Disk,
        boot: str | None = None,
        *,
        space: RecordSpace | None = None,
        keep_free: int = KEEP_FREE_BYTES,
    ) -> None:
        self.path = path
        self._space = space or RecordSpace(path.parent, [path.name], disk=disk)
        self._keep_free = keep_free
        self._bytes = self._rotations = 0
        self._mark = HighWaterMark(path.with_suffix(".mark"), disk, boot)
        self.last_id = self._mark.last
        self.note: str | None = None
        self._disk = disk
        self._file: File | None = None
        self._inode: tuple[int, int] | None = None
        self._durable = 0
        self._unsynced = bytearray()
        self.last = self._cut_torn_record() or self._last_record_of_newest_part()
        if self._mark.unsynced:
            self._sync_rotated_parts()
        self._bytes = self._current_records_file().stat().st_size

    def append(self, records: Sequence[bytes], last_id: str | None = None) -> None:
        """Write `records`, which hold no newlines. After OSError none of them counts as written: try again.

        They are durable after the next `sync`. `last_id` is the id of the last of them, an ASCII word, for the mark.
        Raises ValueError for bytes that would not be read back as a record.
        """
        for record in records:
            if not _is_json_record(record):
                raise ValueError(f"not a record of JSON lines: {record[:80]!r}")
        data = b"".join(record + b"\n" for record in records)
        try:
            self._make_room_for_records(len(data))
            file = self._current_records_file()
            file.write(data)
            self._bytes = file.stat().st_size
        except OSError:
            self.close()
            raise
        self._unsynced += data
        if last_id is not None:
            self._mark.note_written(last_id)

    def sync(self) -> None:
        """Make everything appended so far durable. After OSError, call it again."""
        try:
            file = self._current_records_file()
            if self._unsynced:
                file.sync()
                self._durable = file.stat().st_size
                self._unsynced.clear()
            self._mark.note_synced()
        except OSError:
            self.close()
            raise

    def usage(self) -> dict[str, int]:
        """Bytes in the file and its parts as of the last `append`; rotations, and parts and bytes removed since it
        was opened."""
        use = self._space.use(self.path)
        size = self._bytes + use.pop("bytes_in_parts")
        return {"bytes": size, "rotations": self._rotations, **use}

    def _make_room_for_records(self, size: int) -> None:
        """Before `size` bytes are appended: rotate the file when it is large, and keep `keep_free` bytes free."""
        if part_bytes := self._space.part_bytes:
            held = self._current_records_file().stat().st_size
            if held and held + size > part_bytes:
                self.sync()  # nothing is written twice, whatever a power cut leaves of the names
                self._leave_file()
                self._space.rotate(self.path)
                self._rotations += 1
        kept = self._space.make_room(self._keep_free, size)
        if kept is not None:
            why = f"less than {kept >> 20} MB are free, which are kept for the journal"
            raise OSError(errno.ENOSPC, why, str(self.path))

    def close(self) -> None:
        """Close the file. Records that were not synced are written again by the next append."""
        self._mark.close()
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _current_records_file(self) -> File:
        if self._file is not None and not self._is_file_in_place(self._file):
            # Moved away: its records must be durable before it is closed.
            self._file.sync()
            self._unsynced.clear()
            self._mark.note_synced()
            self._leave_file()
        if self._file is None:
            self._file = self._open_records_file()
        return self._file

    def _leave_file(self) -> None:
        """Close the file, which has or gets another name. Once it is removed, a new one may have its inode's number."""
        self.close()
        self._inode = None

    def _is_file_in_place(self, file: File) -> bool:
        try:
            return _device_and_inode(os.lstat(self.path)) == _device_and_inode(file.stat())
        except FileNotFoundError:
            return False

    def _open_records_file(self) -> File:
        try:
            file = self._disk.append(self.path)
        except FileNotFoundError:
            file = self._disk.create(self.path)
        try:
            last_id = self._mark.last
            if self._unsynced:
                self._mark.fall_back_to_durable()
            found = file.stat()
            if _device_and_inode(found) != self._inode:
                self._inode, self._durable = _device_and_inode(found), found.st_size
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

    def _cut_torn_record(self) -> bytes | None:
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
                self._set_torn_record_aside(file, end, size)
        return last

    def _last_record_of_newest_part(self) -> bytes | None:
        """The last record where the file is empty or missing, as just after a rotation."""
        for part in reversed(rotated_parts(self.path)):
            with self._disk.read(part) as file:
                return next(_records_backwards(file, file.seek(0, os.SEEK_END)), (None, 0))[0]
        return None

    def _sync_rotated_parts(self) -> None:
        """Sync the file and its rotations: the last process was killed with records unsynced, maybe rotated since."""
        for path in sorted(self.path.parent.glob(f"{self.path.name}*")):
            if path.is_file():
                self._disk.sync(path)

    def _set_torn_record_aside(self, file: BinaryIO, end: int, size: int) -> None:
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
            # A full disk tears records, and must not prevent the next start.
            kept = f"and could not be kept: {exc.strerror}"
        own = self._disk.append(self.path)
        try:
            own.truncate(end)
            own.sync()
        finally:
            own.close()
        self.note = f"{self.path.name}: its last {size - end} bytes are no whole record; {kept}"
        self._remove_old_torn_records()

    def _remove_old_torn_records(self) -> None:
        name = re.compile(re.escape(self.path.name) + r"\.[0-9]+(-[0-9]+)?\.bad")
        torn = [each for each in self.path.parent.iterdir() if name.fullmatch(each.name)]
        for each in sorted(torn, key=lambda path: path.stat().st_mtime_ns)[:-TORN_KEPT]:
            self._disk.unlink(each)
            log.warning("%s is removed: the last %d such pieces are kept", each.name, TORN_KEPT)


def _is_json_record(line: bytes) -> bool:
    if len(line) >= MAX_RECORD_BYTES:
        return False
    return line.startswith(b"{") and line.endswith(b"}") and b"\0" not in line and b"\n" not in line


def _device_and_inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _records_backwards(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """The whole records of `file`, last first, each with the offset after its newline."""
    at, rest, too_long = size, b"", False
    while at > 0:
        block = min(_BLOCK_BYTES, at)
        at -= block
        file.seek(at)
        data = file.read(block) + rest
        end = len(data)
        while (newline := data.rfind(b"\n", 0, end)) >= 0 or (at == 0 and end > 0):
            line = data[newline + 1 : end]
            # Bytes after the file's last newline are not terminated, so they are no record.
            if at + end < size and not too_long and _is_json_record(line):
                yield line, at + end + 1
            end, too_long = max(newline, 0), False
        rest = data[:end]
        if len(rest) > MAX_RECORD_BYTES:
            # Of a line of any length only the end is remembered: where it is.
            rest, too_long = b"", True


def _first_record_not_before(
    file: BinaryIO, is_before: Callable[[bytes], bool | None], check: Callable[[], None]
) -> tuple[bytes, int] | None:
    """The record and the offset after its newline; None where there is none."""
    low, high = 0, file.seek(0, os.SEEK_END)
    # The lines that begin before `low` are before, or no records; none that begins at `high` or later is.
    while low < high:
        middle = (low + high) // 2
        found = None
        for begin, line, end in _lines_from(file, _begin_of_line(file, middle, check), check):
            if begin >= high:
                break
            if (before := is_before(line)) is not None:
                found = before, end
                break
        if found is not None and found[0]:
            low = found[1]
        else:
            high = middle
    for _, line, end in _lines_from(file, low, check):
        if is_before(line) is False:
            return line, end
    return None


def _begin_of_line(file: BinaryIO, at: int, check: Callable[[], None]) -> int:
    """The offset of the first line that begins at `at` or later."""
    if at == 0:
        return 0
    file.seek(at - 1)
    while (piece := file.readline(MAX_RECORD_BYTES)) and not piece.endswith(b"\n"):
        check()
    return file.tell()


def _lines_from(file: BinaryIO, at: int, check: Callable[[], None]) -> Iterator[tuple[int, bytes, int]]:
    """The lines from offset `at`, where one begins, each with its offset and that of the next; without those that are
    too long, or not terminated."""
    while True:
        check()
        file.seek(at)
        line = file.readline(MAX_RECORD_BYTES)
        if not line:
            return
        begin, at = at, at + len(line)
        if line.endswith(b"\n"):
            yield begin, line[:-1], at
        else:
            at = _begin_of_line(file, at, check)


def _records_holding(file: BinaryIO, at: int, holding: bytes, check: Callable[[], None]) -> Iterator[bytes]:
    """The records from offset `at`, where a line begins, that hold `holding`."""
    file.seek(at)
    rest, too_long = b"", False
    while block := file.read(_BLOCK_BYTES):
        check()
        lines, newline, tail = block.rpartition(b"\n")
        if not newline:
            rest += block
            if len(rest) > MAX_RECORD_BYTES:
                rest, too_long = b"", True
            continue
        lines = lines.partition(b"\n")[2] if too_long else rest + lines
        rest, too_long = tail, False
        if holding in lines:
            yield from (line for line in lines.split(b"\n") if holding in line and _is_json_record(line))
