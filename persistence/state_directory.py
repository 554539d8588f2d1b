"""The state directory's checks (owner, modes, symbolic links) and its lock, held for the life of the process.

    lock := pid "\\n" ["journal\\n"]    the pid padded to 10 characters

"journal" is added when the first journal is begun. A directory with that word and without snapshot and journal has
lost them.
"""

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from persistence import journal_segment, model_file
from persistence.disk import REAL
from persistence.record_space import PART_SUFFIX

SNAPSHOT = re.compile(r"snapshot-([0-9]{20})\.msgpack")
PIN_SUFFIX = ".pin"

_NAMES = ("lock", "training", "alerts.jsonl", "alerts.mark", "verdicts.jsonl", "verdicts.mark")
_PART = re.compile(r"(?:alerts|verdicts)\.jsonl" + PART_SUFFIX)
_JOURNALED = b"journal\n"


class StoreError(Exception):
    """The state directory cannot be used. The message is one clear line for the user."""


@dataclass
class Lock:
    """`was_journaled`: an earlier process began a journal in this directory."""

    descriptor: int
    was_journaled: bool

    def mark_journaled(self) -> None:
        """Note durably that a journal was begun. Raises OSError."""
        os.pwrite(self.descriptor, _lock_file_text(True), 0)
        os.fsync(self.descriptor)


@contextmanager
def open_state_directory(directory: Path) -> Iterator[Lock]:
    """Create `directory` if it is missing, check it, and hold its lock. Raises `StoreError`."""
    try:
        _make_state_directory(directory)
        _check_state_directory(directory)
        for path in directory.iterdir():
            if _is_state_file_name(path.name):
                _check_state_file(path)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as exc:
        raise StoreError(f"{directory}: is not a directory") from exc
    except OSError as exc:
        raise StoreError(f"{exc.filename or directory}: {exc.strerror}") from exc
    try:
        yield _lock_state_directory(directory, descriptor)
    finally:
        os.close(descriptor)


def _lock_state_directory(directory: Path, descriptor: int) -> Lock:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        holder = os.pread(descriptor, 32, 0).partition(b"\n")[0].strip()
        name = f"process {int(holder)}" if holder.isdigit() else "another process"
        raise StoreError(f"{directory}: in use by {name}; stop that one, or name another directory") from exc
    try:
        was_journaled = os.pread(descriptor, 64, 0).endswith(_JOURNALED)
        # Overwritten first, truncated second: a kill in between must not erase that a journal was begun.
        os.pwrite(descriptor, _lock_file_text(was_journaled), 0)
        os.ftruncate(descriptor, len(_lock_file_text(was_journaled)))
    except OSError as exc:
        raise StoreError(f"{directory}: is not writable: {exc.strerror}") from exc
    return Lock(descriptor, was_journaled)


def _lock_file_text(journaled: bool) -> bytes:
    return b"%-10d\n%s" % (os.getpid(), _JOURNALED if journaled else b"")


def _make_state_directory(directory: Path) -> None:
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in missing:
        REAL.sync(path.parent)  # or a power cut takes the new directory and everything in it


def _check_state_directory(directory: Path) -> None:
    found = directory.lstat()
    if stat.S_ISLNK(found.st_mode):
        # A link can be pointed elsewhere between two of our calls. Only a link of root's is trusted, and only
        # by other users: systemd's DynamicUser= gives the service such a link.
        if found.st_uid != 0 or os.geteuid() == 0:
            raise StoreError(f"{directory}: is a symbolic link; name the directory itself")
        found = directory.stat()
    if found.st_uid != os.geteuid():
        raise StoreError(f"{directory}: is owned by uid {found.st_uid}, not {os.geteuid()}")
    if found.st_mode & 0o022:
        raise StoreError(f"{directory}: others may write in it (mode {stat.S_IMODE(found.st_mode):04o}); chmod 700")
    if found.st_mode & 0o055:
        directory.chmod(0o700)
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise StoreError(f"{directory}: is not writable")


def _check_state_file(path: Path) -> None:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise StoreError(f"{path}: is a symbolic link")
    if found.st_uid != os.geteuid():
        raise StoreError(f"{path}: is owned by uid {found.st_uid}, not {os.geteuid()}")
    if not (stat.S_ISREG(found.st_mode) or (path.name == "training" and stat.S_ISDIR(found.st_mode))):
        raise StoreError(f"{path}: is not a regular file")
    if found.st_mode & 0o022:
        raise StoreError(f"{path}: others may write to it (mode {stat.S_IMODE(found.st_mode):04o})")


def _is_state_file_name(name: str) -> bool:
    base = name.removesuffix(".tmp").removesuffix(PIN_SUFFIX)
    return (
        base in _NAMES
        or _PART.fullmatch(name) is not None
        or any(pattern.fullmatch(base) for pattern in (SNAPSHOT, journal_segment.NAME, model_file.NAME))
    )
