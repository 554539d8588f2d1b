"""The one way this package changes a disk: small enough to be replaced by one that fails or records.

Everything that must survive a crash goes through a `Disk`, so that tests can make the n-th call fail and
can rebuild what a power cut would have left. `REAL` is the real one. New files are 0600 and never
inherited by children; symbolic links are never followed.
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
# What a medium says when it cannot give back what it was given.
_UNREADABLE = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN})
_READ_TRIES = 4
_READ_PAUSE_SECONDS = 0.1

_BATCH_BYTES = 1 << 20
T = TypeVar("T")


class UnreadableError(OSError):
    """The medium did not give back a file that is there, however often it was asked.

    That is no damage: a controller, a cable or the storage behind a network may be well again in a minute, and then
    every byte is there. So nothing is decided on it: the file stays as it is, under its name.
    """

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


def failure(exc: OSError, path: Path) -> str:
    """For people: where (in `path`, unless `exc` names a file), what happened, and what to do about a full disk."""
    full = exc.errno in FULL
    return f"{exc.filename or path}: {exc.strerror or exc}{'; free some space there' if full else ''}"


def read_with_patience(path: Path, read: Callable[[], T]) -> T:
    """What `read`, which reads `path`, returns; a failing medium is asked again a few times. Blocks for that long.

    Raises UnreadableError when it goes on failing, and what else `read` raises.
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
        """Write all of `data`; after OSError any part of it may be there."""

    def sync(self) -> None:
        """Return when everything written, and the size, would survive a power cut."""

    def truncate(self, size: int) -> None: ...

    def stat(self) -> os.stat_result: ...

    def close(self) -> None: ...


class Disk(Protocol):
    """Every method may raise OSError."""

    def create(self, path: Path) -> File:
        """A new file, open as by `append`; FileExistsError when `path` is there already."""

    def append(self, path: Path) -> File:
        """An existing file, open at its end wherever that is at each write."""

    def read(self, path: Path) -> BinaryIO:
        """A regular file for reading; anything else is an OSError."""

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
    """Put a file at `path` that holds `chunks`; after a crash the old or the new one is there, whole.

    Returns the number of bytes. After OSError the old file is still there, except when only the last
    sync of the directory failed: then the new one is, not yet durable. A crash may leave `<name>.tmp`.
    """
    temp = path.with_name(path.name + ".tmp")
    unlink_if_there(disk, temp)
    try:
        size = _write_new(disk, temp, chunks)
        disk.rename(temp, path)
    except BaseException:
        discard(disk, temp)
        raise
    disk.sync(path.parent)  # the bytes were down before the name; now the name must survive too
    return size


def unlink_if_there(disk: Disk, path: Path) -> None:
    try:
        disk.unlink(path)
    except FileNotFoundError:
        return


def discard(disk: Disk, path: Path) -> None:
    """Remove a file that is of no use, on the way out of an error that matters more."""
    try:
        disk.unlink(path)
    except OSError:
        # Gone already, or the disk is in trouble: the caller is raising that very trouble, and what
        # stays behind is recognised by its name or its contents at the next start.
        return


def _write_new(disk: Disk, path: Path, chunks: Iterable[Buffer]) -> int:
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
