"""The file operations of this package, as an interface small enough for tests to replace.

Everything that must survive a crash goes through a `Disk`, so that tests can make the n-th call fail and
rebuild what a power cut would have left. `REAL` is the real one. New files have mode 0600 and are not
inherited by child processes; symbolic links are never followed.
"""

import errno
import io
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

Buffer = bytes | bytearray | memoryview

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Errors of a medium that cannot return what was written to it.
_UNREADABLE = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN})
_READ_TRIES = 4
_READ_PAUSE_SECONDS = 0.1

_BATCH_BYTES = 1 << 20
T = TypeVar("T")


class UnreadableError(OSError):
    """A file exists, and reading it failed each time it was tried.

    That is not damage: a controller, a cable or network storage may recover within a minute, and then every byte is
    there. So the file stays as it is, under its name.
    """

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


def os_error_text(exc: OSError, path: Path) -> str:
    """`exc` as a line for people: the file (`path` if `exc` names none), the error, what to do about a full disk."""
    full = exc.errno in FULL
    return f"{exc.filename or path}: {exc.strerror or exc}{'; free some space there' if full else ''}"


def read_with_patience(path: Path, read: Callable[[], T]) -> T:
    """The result of `read`, which reads `path`; while the medium fails it is called up to 4 times, .1 s apart.

    Raises UnreadableError when the medium fails each time, and whatever else `read` raises.
    """
    for tries_left in reversed(range(_READ_TRIES)):
        try:
            return read()
        except OSError as exc:
            if exc.errno not in _UNREADABLE:
                raise
            if not tries_left:
                why = f"cannot be read: {os.strerror(exc.errno or 0)}; it was left as it is"
                raise UnreadableError(exc.errno, why, str(path)) from exc
            time.sleep(_READ_PAUSE_SECONDS)
    raise AssertionError("unreachable")


class File(Protocol):
    """A file open for writing at its end. Every method may raise OSError."""

    def write(self, data: Buffer) -> None:
        """Write all of `data`; after OSError any part of it may have been written."""

    def sync(self) -> None:
        """Return once everything written, and the size, would survive a power cut."""

    def truncate(self, size: int) -> None: ...

    def stat(self) -> os.stat_result: ...

    def close(self) -> None: ...


class Disk(Protocol):
    """Every method may raise OSError."""

    def create(self, path: Path) -> File:
        """A new file, opened as by `append`. Raises FileExistsError when `path` exists."""

    def append(self, path: Path) -> File:
        """An existing file, open for writing (O_APPEND): each write goes to the end of the file at that moment."""

    def read(self, path: Path) -> BinaryIO:
        """A regular file, open for reading. Raises OSError for anything else."""

    def rename(self, source: Path, target: Path) -> None: ...

    def unlink(self, path: Path) -> None: ...

    def sync(self, path: Path) -> None:
        """Make a file's contents, or a directory's names, durable."""


class _RealFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: Buffer) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def sync(self) -> None:
        # fdatasync also flushes the size and the block map, which is all the metadata we read back.
        os.fdatasync(self._descriptor)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def stat(self) -> os.stat_result:
        return os.fstat(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class _RealDisk:
    def create(self, path: Path) -> File:
        return _RealFile(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | _SAFE, 0o600))

    def append(self, path: Path) -> File:
        return _RealFile(os.open(path, os.O_WRONLY | os.O_APPEND | _SAFE))

    def read(self, path: Path) -> BinaryIO:
        # O_NONBLOCK: a FIFO planted under one of our names must not hang the start.
        raw = io.FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | _SAFE), "rb")
        return io.BufferedReader(raw)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def sync(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | _SAFE)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


_SAFE = os.O_NOFOLLOW | os.O_CLOEXEC
REAL: Disk = _RealDisk()


def replace_file(disk: Disk, path: Path, chunks: Iterable[Buffer]) -> int:
    """Replace the file at `path` with `chunks`; after a crash either the old or the new one is there, whole.

    Returns the number of bytes. After OSError the old file is still there, unless only the sync of the
    directory failed: then the new one is there, not yet durable. A crash may leave `<name>.tmp`.
    """
    temp = path.with_name(path.name + ".tmp")
    unlink_if_there(disk, temp)
    try:
        size = _write_new_file(disk, temp, chunks)
        disk.rename(temp, path)
    except BaseException:
        discard_file(disk, temp)
        raise
    disk.sync(path.parent)  # the contents were durable before the name was; now the name must be, too
    return size


def unlink_if_there(disk: Disk, path: Path) -> None:
    """Remove `path`; no error when there is no such file. Raises OSError."""
    try:
        disk.unlink(path)
    except FileNotFoundError:
        return


def discard_file(disk: Disk, path: Path) -> None:
    """Remove a file if possible, while a more important error is being raised."""
    try:
        disk.unlink(path)
    except OSError:
        # Gone already, or the disk is failing: the caller raises that error, and the next start recognises
        # the leftover by its name or its contents.
        return


def _write_new_file(disk: Disk, path: Path, chunks: Iterable[Buffer]) -> int:
    file = disk.create(path)
    try:
        size = 0
        waiting = bytearray()
        for chunk in chunks:
            size += len(chunk)
            waiting += chunk
            if len(waiting) >= _BATCH_BYTES:
                file.write(waiting)
                waiting = bytearray()
        file.write(waiting)
        file.sync()
    finally:
        file.close()
    return size
