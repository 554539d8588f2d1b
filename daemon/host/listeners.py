"""The listening sockets: `log.sock` for lines, `admin.sock` and TCP for the admin API.

They are opened before anything heavy is imported, so that a sender can connect within milliseconds of the start;
what it sends waits in the kernel. A service manager may have opened them even earlier (sd_listen_fds(3)):
sockets named "log" and "admin" take the place of the Unix sockets that we would bind, and are not ours to
remove. Connections that the service manager stored for us are in `InheritedSockets.stored`.

A Unix socket file left by a killed process is replaced. One on which another process listens is an error.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from daemon.host.notify import PROBE_NAME

BACKLOG = 1024
SOCKET_MODE = 0o660
PATH_BYTES = 107  # sockaddr_un.sun_path, less its closing NUL

_FIRST_FD = 3


class ListenError(Exception):
    """One line: the address that could not be listened on, and why."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A relative `path` is relative to the runtime directory."""

    path: Path


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str
    port: int

    @property
    def loopback(self) -> bool:
        return ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> UnixAddress | TcpAddress:
    """Parse unix:PATH, 127.0.0.1:8765, [::1]:8765 or localhost:8765. Raises ValueError that says what is wrong."""
    if text.startswith("unix:"):
        if text == "unix:" or "\0" in text:
            raise ValueError(f"{text!r} names no socket; write unix:admin.sock")
        return UnixAddress(Path(text.removeprefix("unix:")))
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is neither unix:PATH nor ADDRESS:PORT, such as 127.0.0.1:8765")
    host = {"localhost": "127.0.0.1"}.get(host, host.removeprefix("[").removesuffix("]"))
    try:
        ip_address(host)
    except ValueError:
        raise ValueError(f"{text!r}: {host!r} is not an IP address") from None
    return TcpAddress(host, int(port))


@dataclass(slots=True)
class InheritedSockets:
    """What the service manager passed: listening sockets by purpose, stored connections by name."""

    log: list[socket.socket] = field(default_factory=list)
    admin: list[socket.socket] = field(default_factory=list)
    stored: dict[str, socket.socket] = field(default_factory=dict)


def inherit_sockets(env: MutableMapping[str, str] = os.environ) -> InheritedSockets:
    """Take over the sockets passed to this process, and remove their variables from `env`, so that no child sees them.

    Raises ListenError for a listening socket that is not named "log" or "admin".
    """
    pid, count = env.pop("LISTEN_PID", None), env.pop("LISTEN_FDS", None)
    names = env.pop("LISTEN_FDNAMES", "").split(":")
    found = InheritedSockets()
    if pid != str(os.getpid()) or count is None:
        return found
    for index in range(int(count)):
        fd = _FIRST_FD + index
        os.set_inheritable(fd, False)
        taken = socket.socket(fileno=fd)
        name = names[index] if index < len(names) else ""
        if name == PROBE_NAME:
            taken.close()  # left by a process that was killed during `Notifier.has_room`
        elif not taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            found.stored[name] = taken
        elif name == "log":
            found.log.append(taken)
        elif name == "admin":
            found.admin.append(taken)
        else:
            taken.close()
            raise ListenError(f"passed a listening socket named {name!r}; FileDescriptorName= must be log or admin")
    return found


@dataclass(frozen=True, slots=True)
class Listeners:
    """Bound, listening, non-blocking sockets. `places` are their addresses for people: paths and ADDRESS:PORT.

    `log_is_ours`: this process opened the log socket, and removes it at the end.
    """

    log: Sequence[socket.socket]
    admin: Sequence[socket.socket]
    stored: dict[str, socket.socket]
    log_is_ours: bool = True

    @property
    def tcp(self) -> bool:
        """Whether the admin API is served over TCP."""
        return any(each.family != socket.AF_UNIX for each in self.admin)

    @property
    def places(self) -> list[str]:
        return [_listening_address_text(each) for each in (*self.log, *self.admin)]


@contextlib.contextmanager
def open_listeners(
    directory: Path, log: str, admin: Sequence[str], inherited: InheritedSockets | None = None
) -> Iterator[Listeners]:
    """Listen on `log` (a path) and on every address of `admin`; relative paths are in `directory`.

    Leaving the context closes all sockets and removes the socket files that it created, unless they were replaced
    since. Raises ListenError; nothing stays bound then. Unix sockets have mode 0660.
    """
    given = inherited or InheritedSockets()
    with contextlib.ExitStack() as stack:
        for each in (*given.log, *given.admin, *given.stored.values()):
            stack.callback(each.close)
        logs = given.log or [stack.enter_context(_listen_on_unix_socket(directory / log))]
        admins = list(given.admin)
        for address in map(parse_address, admin):
            if isinstance(address, TcpAddress):
                admins.append(stack.enter_context(_listen_on_tcp(address)))
            elif not given.admin:
                admins.append(stack.enter_context(_listen_on_unix_socket(directory / address.path)))
        for each in (*logs, *admins):
            each.setblocking(False)
        yield Listeners(logs, admins, given.stored, log_is_ours=not given.log)


@contextlib.contextmanager
def _listen_on_unix_socket(path: Path) -> Iterator[socket.socket]:
    size = len(os.fsencode(path))
    if size > PATH_BYTES:
        raise ListenError(
            f"{path}: a Unix socket's path holds at most {PATH_BYTES} bytes, this one has {size}; "
            "choose a shorter runtime directory"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            identity = _bind_unix_socket_under_lock(listener, path)
        except OSError as exc:
            raise ListenError(f"{path}: cannot listen: {exc.strerror or exc}") from exc
        try:
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):  # removed by somebody else
                if _socket_file_identity(path) == identity:
                    path.unlink()


def _bind_unix_socket_under_lock(listener: socket.socket, path: Path) -> tuple[int, int]:
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Without the lock, two daemons that find the same stale file would each remove the other's new
        # socket.
        fcntl.flock(directory, fcntl.LOCK_EX)
        _remove_stale_socket(path)
        # By umask, so that the mode is right from the first moment; no other thread runs yet.
        before = os.umask(0o777 & ~SOCKET_MODE)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(before)
        # Under the lock: a socket that is bound and does not listen looks stale to the other daemon.
        listener.listen(BACKLOG)
        return _socket_file_identity(path)
    finally:
        os.close(directory)


def _remove_stale_socket(path: Path) -> None:
    """Leave no file at `path`. Raises ListenError when it is in use or is not a socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"{path}: is in the way and is not a socket; remove it or choose another name")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # its backlog is full, so it is alive
            raise ListenError(f"{path}: another process listens there") from None
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, _, _ = struct.unpack("3i", credentials)
        raise ListenError(f"{path}: process {pid} listens there")


@contextlib.contextmanager
def _listen_on_tcp(address: TcpAddress) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        # Connections of the previous process may linger (TIME_WAIT); they must not block its successor.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address.host, address.port))
            listener.listen(BACKLOG)
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise ListenError(f"{address}: is taken; choose another in [admin] bind") from exc
            raise ListenError(f"{address}: cannot listen: {exc.strerror or exc}") from exc
        yield listener


def _socket_file_identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _listening_address_text(listener: socket.socket) -> str:
    name = listener.getsockname()
    return name if isinstance(name, str) else str(TcpAddress(name[0], name[1]))
