"""A disk that records its operations, and rebuilds what a power cut could have left.

Nothing is durable before its sync: of the writes to a file since its last sync any 512-byte sectors may
be there, of the names changed since the directory's last sync any. `sabotage` names a sync to leave out.
"""

import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from persistence.disk import REAL, Buffer, File

_SECTOR = 512


class Killed(BaseException):
    """The process ends here: no later code is executed, and no handler of OSError catches it."""


@dataclass
class _Contents:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def settle(self) -> None:
        for offset, data in self.pending:
            _apply(self.durable, offset, data)
        self.pending.clear()


@dataclass
class SimulatedDisk:
    """Works in a real directory `root`; `operations` are what an image may be cut from.

    `kill_at` is the number of the operation at which the process dies.
    """

    root: Path
    sabotage: str = ""
    kill_at: int = -1
    operations: list[tuple[object, ...]] = field(default_factory=list)
    inodes: dict[str, int] = field(default_factory=dict)

    def note(self, *operation: object) -> None:
        if len(self.operations) == self.kill_at:
            self.kill_at = -1
            raise Killed
        self.operations.append(operation)

    def key(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def create(self, path: Path) -> File:
        inode = sum(1 for operation in self.operations if operation[0] == "create")
        self.note("create", self.key(path), inode)
        file = REAL.create(path)
        self.inodes[self.key(path)] = inode
        return _SimulatedFile(self, path.name, inode, file)

    def append(self, path: Path) -> File:
        return _SimulatedFile(self, path.name, self.inodes[self.key(path)], REAL.append(path))

    def read(self, path: Path) -> BinaryIO:
        return REAL.read(path)

    def rename(self, source: Path, target: Path) -> None:
        self.note("rename", self.key(source), self.key(target))
        REAL.rename(source, target)
        self.inodes[self.key(target)] = self.inodes.pop(self.key(source))

    def unlink(self, path: Path) -> None:
        if path.exists():
            self.note("unlink", self.key(path))
        REAL.unlink(path)
        self.inodes.pop(self.key(path), None)

    def sync(self, path: Path) -> None:
        if path.is_dir():
            if self.sabotage != "directory sync":
                self.note("sync names", "" if path == self.root else self.key(path))
        elif self.sabotage != "recovery sync":
            self.note("sync", self.inodes[self.key(path)])

    def image(self, cut: int, rng: random.Random, target: Path) -> None:
        """Write into `target` what a power cut after `cut` operations could have left."""
        names: dict[str, int] = {}
        waiting: list[tuple[str, dict[str, int | None]]] = []
        seen: dict[str, int] = {}
        files: dict[int, _Contents] = {}
        for operation in self.operations[:cut]:
            match operation:
                case ("create", str(name), int(inode)):
                    files[inode] = _Contents()
                    seen[name] = inode
                    waiting.append((_parent(name), {name: inode}))
                case ("rename", str(source), str(goal)):
                    seen[goal] = seen.pop(source)
                    waiting.append((_parent(goal), {source: None, goal: seen[goal]}))
                case ("unlink", str(name)):
                    seen.pop(name)
                    waiting.append((_parent(name), {name: None}))
                case ("write", int(inode), int(offset), bytes(data)):
                    files[inode].pending.append((offset, data))
                case ("truncate", int(inode), int(size)):
                    files[inode].pending.append((size, None))
                case ("sync", int(inode)):
                    files[inode].settle()
                case ("sync names", str(directory)):
                    for change in [change for parent, change in waiting if parent == directory]:
                        _rename(names, change)
                    waiting = [(parent, change) for parent, change in waiting if parent != directory]
        luck = rng.choice([0.0, 0.3, 0.7, 1.0])
        for _, change in waiting:
            if rng.random() < luck:
                _rename(names, change)
        for name, inode in names.items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_torn(files[inode], rng))


class _SimulatedFile:
    def __init__(self, disk: SimulatedDisk, name: str, inode: int, file: File) -> None:
        self._disk = disk
        self._name = name
        self._inode = inode
        self._file = file

    def write(self, data: Buffer) -> None:
        self._disk.note("write", self._inode, self._file.stat().st_size, bytes(data))
        self._file.write(data)

    def sync(self) -> None:
        is_journal = self._name.startswith("journal-")
        if self._disk.sabotage != ("journal sync" if is_journal else "file sync"):
            self._disk.note("sync", self._inode)

    def truncate(self, size: int) -> None:
        self._disk.note("truncate", self._inode, size)
        self._file.truncate(size)

    def stat(self) -> os.stat_result:
        return self._file.stat()

    def close(self) -> None:
        self._file.close()


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _rename(names: dict[str, int], change: dict[str, int | None]) -> None:
    for name, inode in change.items():
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def _apply(contents: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del contents[offset:]
        return
    contents.extend(bytes(max(offset + len(data) - len(contents), 0)))
    contents[offset : offset + len(data)] = data


def _torn(file: _Contents, rng: random.Random) -> bytes:
    contents = bytearray(file.durable)
    luck = rng.choice([0.0, 0.5, 0.9, 1.0])
    for offset, data in file.pending:
        if data is None:
            if rng.random() < luck:
                _apply(contents, offset, None)
            continue
        end = offset + len(data)
        at = offset
        while at < end:
            border = min((at // _SECTOR + 1) * _SECTOR, end)
            if rng.random() < luck:
                _apply(contents, at, data[at - offset : border - offset])
            at = border
    return bytes(contents)
