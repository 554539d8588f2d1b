"""What another user may do with a file: a child process takes on that user's ids and tries.

Deciding by modes and groups would miss access lists, read-only mounts and the directories on the way.
"""

import grp
import os
import pwd
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from daemon.default_directories import SYSTEM_STATE

SERVICE_USER = "vigild"  # systemd/vigild.sysusers


@dataclass(frozen=True, slots=True)
class User:
    """A user, with the groups that its processes have."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def named(cls, name: str) -> "User | None":
        """The user called `name`, None when there is none. A number counts as a name, as in systemd's User=."""
        try:
            entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
        except KeyError:
            return None
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))

    @classmethod
    def member_of(cls, group: str) -> "User | None":
        """An otherwise unprivileged member of `group` alone. None when there is no such group."""
        try:
            gid = grp.getgrnam(group).gr_gid
        except KeyError:
            return None
        nobody = 65534
        return cls(f"a member of {group}", nobody, gid, (gid,))


def service_user(state: Path) -> User | None:
    """Who runs the daemon with the state directory `state`: the directory's owner. If it does not exist, the service's
    user for a directory of the service, else None."""
    try:
        owner = state.stat().st_uid
    except OSError:
        return User.named(SERVICE_USER) if SYSTEM_STATE in (state, *state.parents) else None
    return User.named(str(owner))


def as_user(user: User, attempt: Callable[[], str | None]) -> str | None:
    """The result of `attempt`, run as `user` in a child process. Needs root; raises OSError when the ids cannot be set.

    `attempt` returns None or a reason, and must start no thread. An OSError that it raises becomes the reason.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"!the ids could not be set"
        try:
            os.close(reading)
            os.setgroups(user.groups)
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            answer = _attempt_answer_bytes(attempt)
        finally:
            # Not sys.exit: buffers and exit handlers belong to the parent.
            os.write(writing, answer)
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if answer.startswith(b"!"):
        raise OSError(0, answer[1:].decode())
    return answer[1:].decode() if answer.startswith(b"=") else None


def _attempt_answer_bytes(attempt: Callable[[], str | None]) -> bytes:
    try:
        answer = attempt()
    except OSError as exc:
        answer = (exc.strerror or str(exc)).lower()
    return b"-" if answer is None else b"=" + answer.encode(errors="backslashreplace")


def why_unreadable(user: User, paths: Iterable[Path]) -> tuple[Path, str] | None:
    """The first of `paths` that `user` cannot read, and why; None when all can be read. Needs root."""

    def read(path: Path) -> str | None:
        if path.is_dir():
            os.listdir(path)
        else:
            with open(path, "rb") as file:
                file.read(1)
        return None

    for path in paths:
        if reason := as_user(user, lambda path=path: read(path)):  # type: ignore[misc]
            return path, reason
    return None


def why_unusable(user: User, path: Path, mode: int) -> str | None:
    """Why `user` may not access `path` in `mode` (os.R_OK | W_OK | X_OK), None when it may. Needs root."""

    def try_access() -> str | None:
        os.stat(path)  # its error names the reason; access() does not
        return None if os.access(path, mode) else "permission denied"

    return as_user(user, try_access)
