"""`vigilctl send`: send a file or standard input to log.sock, and wait until every line is durable.

There is no protocol beyond the socket's own: the client sends bytes and shuts down its half, and the daemon
closes its half once everything is durable. A clean end of file is the acknowledgement; a reset or a broken
pipe means "not confirmed".
"""

import fcntl
import io
import os
import select
import socket
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from daemon.client.admin_client import Failure, os_error_reason
from daemon.client.unpacking import unpacked_chunks
from daemon.default_directories import SYSTEM_RUNTIME, runtime_directory

STARTING_SECONDS = 3.0  # a starting daemon listens within half a second, on a busy machine within two
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Sent:
    """What was confirmed as durable. `lines` counts a last line without a newline, too."""

    lines: int
    bytes: int
    seconds: float


# Called with the bytes of the source read so far (compressed, if it is), the lines sent, and whether
# everything is sent and only the confirmation is missing.
Progress = Callable[[int, int, bool], None]


def log_sockets(given: str | None, env: Mapping[str, str]) -> list[Path]:
    """The paths to try for the daemon's log socket, in order."""
    if given:
        return [Path(given)]
    return [directory / "log.sock" for directory in dict.fromkeys([runtime_directory(env), SYSTEM_RUNTIME])]


def send_lines(source: str, sockets: list[Path], *, show: bool) -> Sent:
    """Send `source` (a path, or "-" for standard input; unpacked if need be) to the first socket that listens.

    Waits up to STARTING_SECONDS for a daemon that is starting, and without limit for its confirmation. Raises
    `Failure`: then nothing is confirmed, though some of it may be durable.
    """
    with open_file_or_stdin(source) as raw, _connect_to_log_socket(sockets) as sock:
        if not show:
            return _stream_to_log_socket(raw, sock, lambda read, lines, waiting: None)
        with sending_progress_bar(os.fstat(raw.fileno()).st_size or None) as progress:
            return _stream_to_log_socket(raw, sock, progress)


def _stream_to_log_socket(raw: io.BufferedReader, sock: socket.socket, progress: Progress) -> Sent:
    started = time.monotonic()
    lines = total = read = 0
    last = b"\n"
    durable = _DurableLines(sock)
    try:
        for read, chunk in unpacked_chunks(raw):
            sock.sendall(chunk)
            total += len(chunk)
            lines += chunk.count(b"\n")
            last = chunk[-1:]
            durable.note_sent(total, lines)
            progress(read, lines, False)
        lines += last != b"\n"
        sock.shutdown(socket.SHUT_WR)
        progress(read, lines, True)
        while sock.recv(4096):
            pass  # the daemon sends nothing before it closes; anything else is ignored
    except KeyboardInterrupt:
        raise Failure(
            f"interrupted; not confirmed: {_lines_and_bytes_text(lines, total)} handed over, {durable}"
        ) from None
    except (OSError, Failure) as exc:
        if not total and isinstance(exc, Failure):
            raise Failure(f"nothing is sent: {exc}") from exc
        raise Failure(
            f"not confirmed: {os_error_reason(exc)} after {_lines_and_bytes_text(lines, total)} handed over, {durable}"
        ) from exc
    return Sent(lines, total, time.monotonic() - started)


class _DurableLines:
    """How many of the lines sent are known to be durable: the daemon takes bytes from the socket only then.

    The kernel tells how much of what we sent is still queued (SIOCOUTQ, a little more than the bytes). It also tells
    0 when the reader died with everything unread, so the answer counts only while the connection is up.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._alive = select.poll()
        self._alive.register(sock, 0)  # hang-ups and errors are always reported
        self._sent: deque[tuple[int, int]] = deque()
        self.lines = 0

    def note_sent(self, total: int, lines: int) -> None:
        """`lines` whole lines end within the first `total` bytes, all of which were handed to the kernel."""
        self._sent.append((total, lines))
        queued = struct.unpack("i", fcntl.ioctl(self._sock, termios.TIOCOUTQ, struct.pack("i", 0)))[0]
        if self._alive.poll(0):
            return
        while self._sent and self._sent[0][0] <= total - queued:
            self.lines = self._sent.popleft()[1]

    def __str__(self) -> str:
        return f"at least {self.lines:,} lines of it durable"


@contextmanager
def open_file_or_stdin(source: str) -> Iterator[io.BufferedReader]:
    """The file `source`, or standard input for "-". Raises Failure."""
    if source == "-":
        # A reader of our own: closing it must not close the interpreter's standard input.
        with open(sys.stdin.fileno(), "rb", closefd=False) as raw:
            yield raw
        return
    try:
        raw = open(source, "rb")
    except OSError as exc:
        raise Failure(f"cannot read {source}: {os_error_reason(exc)}") from exc
    with raw:
        yield raw


def _connect_to_log_socket(sockets: list[Path]) -> socket.socket:
    deadline = time.monotonic() + STARTING_SECONDS
    while True:
        refusals = []
        may_come = False
        for path in sockets:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(os.fspath(path))
            except OSError as exc:
                sock.close()
                refusals.append(f"{path} ({os_error_reason(exc)})")
                # Refused: a socket that a killed daemon left, or one that is bound and does not listen yet.
                may_come |= isinstance(exc, FileNotFoundError | ConnectionRefusedError)
            else:
                return sock
        if not may_come or time.monotonic() >= deadline:
            raise Failure(f"no daemon takes log lines; tried {', '.join(refusals)}")
        time.sleep(LOOK_SECONDS)


@contextmanager
def sending_progress_bar(size: int | None) -> Iterator[Progress]:
    """A progress bar on standard error. `size` is in bytes, None for a pipe."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    left = [BarColumn(), TimeRemainingColumn()] if size else [TimeElapsedColumn()]
    columns = [TextColumn("{task.fields[lines]:,} lines"), TextColumn("{task.fields[rate]:,.0f}/s")]
    with Bar(*columns, DownloadColumn(), *left, TextColumn("{task.description}"), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=size, lines=0, rate=0.0)
        started = time.monotonic()

        def show(read: int, lines: int, waiting: bool) -> None:
            bar.update(
                task,
                completed=read,
                lines=lines,
                rate=lines / max(time.monotonic() - started, 1e-3),
                description="waiting until all is durable" if waiting else "",
            )

        yield show


def _lines_and_bytes_text(lines: int, total: int) -> str:
    return f"{lines:,} lines ({total:,} bytes)"
