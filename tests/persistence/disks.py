"""Disks that fail: the n-th call raises, and a write that fails has written half."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from persistence.disk import REAL, Buffer, File

# The number of the call (from 0), its name and the file: an errno, or None to let it happen.
Fault = Callable[[int, str, Path], int | None]


def fail_nth(call: str, nth: int, errno_: int) -> Fault:
    """Only the `nth` (from 1) call named `call` fails."""
    seen = 0

    def fault(_number: int, name: str, _path: Path) -> int | None:
        nonlocal seen
        seen += name == call
        return errno_ if name == call and seen == nth else None

    return fault


def fail_at(number: int, errno_: int) -> Fault:
    """Only the call of this `number` fails."""
    return lambda found, _name, _path: errno_ if found == number else None


def fail_from(number: int, errno_: int) -> Fault:
    """The call of this `number` and every later one fail."""
    return lambda found, _name, _path: errno_ if found >= number else None


class FaultyDisk:
    """The real disk, with `fault` asked before every call. `calls` counts them."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.fault = fault
        self.calls: list[tuple[str, str]] = []

    def ask(self, name: str, path: Path) -> None:
        number = len(self.calls)
        self.calls.append((name, path.name))
        code = self.fault(number, name, path) if self.fault is not None else None
        if code is not None:
            raise OSError(code, os.strerror(code), str(path))

    def create(self, path: Path) -> File:
        self.ask("create", path)
        return FaultyFile(self, path, REAL.create(path))

    def append(self, path: Path) -> File:
        self.ask("append", path)
        return FaultyFile(self, path, REAL.append(path))

    def read(self, path: Path) -> BinaryIO:
        self.ask("read", path)
        return REAL.read(path)

    def rename(self, source: Path, target: Path) -> None:
        self.ask("rename", source)
        REAL.rename(source, target)

    def unlink(self, path: Path) -> None:
        self.ask("unlink", path)
        REAL.unlink(path)

    def sync(self, path: Path) -> None:
        self.ask("sync path", path)
        REAL.sync(path)


class FaultyFile:
    def __init__(self, disk: FaultyDisk, path: Path, file: File) -> None:
        self._disk = disk
        self._path = path
        self._file = file

    def write(self, data: Buffer) -> None:
        try:
            self._disk.ask("write", self._path)
        except OSError:
            self._file.write(memoryview(data)[: len(data) // 2])
            raise
        self._file.write(data)

    def sync(self) -> None:
        self._disk.ask("sync file", self._path)
        self._file.sync()

    def truncate(self, size: int) -> None:
        self._disk.ask("truncate", self._path)
        self._file.truncate(size)

    def stat(self) -> os.stat_result:
        return self._file.stat()

    def close(self) -> None:
        self._file.close()
