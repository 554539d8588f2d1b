"""Plain senders to a daemon that is being killed; each knows which of its lines were confirmed."""

import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.threads import running

ATTACK_EVERY = 97
LINES = (1, 10, 50, 150)
PAUSE_SECONDS = 0.4
_RETRY_SECONDS = 0.05
_LOOK_SECONDS = 0.2
Manner = Callable[[socket.socket, bytes, random.Random], bool]
_PATHS = ("/", "/index.html", "/about.html", "/style.css", "/logo.png", "/cart.php", "/search.php")


@dataclass
class Sending:
    """What one connection carried: `data`, of which `confirmed` says that the daemon has all of it."""

    data: bytes
    confirmed: bool = False

    @property
    def key(self) -> bytes:
        """Its first line, which no other connection begins with."""
        return self.data.partition(b"\n")[0]


class Senders:
    """Threads that connect, send and hang up in various ways until `over`; `sendings` records what they did."""

    pause_seconds = PAUSE_SECONDS  # at most, between two connections of a sender

    def __init__(self, path: Path, rng: random.Random) -> None:
        self.sendings: list[Sending] = []
        self.over = threading.Event()
        self._path = path
        self._numbers = itertools.count()
        self._clock = itertools.count(1_700_000_000)
        self._turn = threading.Lock()
        manners = (self._confirmed, self._confirmed, self._slow, self._gone, self._staying)
        self._threads = [
            threading.Thread(target=self._send, args=(manner, random.Random(rng.random()))) for manner in manners
        ]

    @contextmanager
    def at_work(self) -> Iterator["Senders"]:
        """At the end no sender has a connection any more; what it last sent may be unconfirmed."""
        with running(self._threads, self.over):
            yield self

    @property
    def confirmed(self) -> int:
        return sum(sending.confirmed for sending in self.sendings)

    def _send(self, manner: Manner, rng: random.Random) -> None:
        while not self.over.is_set():
            sending = self._next(rng)
            try:
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.settimeout(60.0)
                    connection.connect(str(self._path))
                    sending.confirmed = manner(connection, sending.data, rng)
            except (ConnectionError, FileNotFoundError, BlockingIOError):
                # Nobody listens, or the daemon died on us: not confirmed.
                self.over.wait(_RETRY_SECONDS)
            self.over.wait(rng.uniform(0.0, self.pause_seconds))

    def _next(self, rng: random.Random) -> Sending:
        size = rng.choice(LINES)
        end = rng.choice((b"\n", b"\n", b""))
        with self._turn:
            sending = Sending(b"\n".join(self._line(rng) for _ in range(size)) + end)
            self.sendings.append(sending)
        return sending

    def _line(self, rng: random.Random) -> bytes:
        number = next(self._numbers)
        at = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(next(self._clock)))
        path = rng.choice(_PATHS)
        if number % ATTACK_EVERY == ATTACK_EVERY - 1:
            path = "/search.php?q=%3Cscript%3Ealert(1)%3C/script%3E&of=1"
        mark = "&" if "?" in path else "?"
        request = f'"GET {path}{mark}n={number:08d} HTTP/1.1" {rng.choice((200, 200, 200, 304, 404))} 1234'
        return f'192.0.2.{number // 7 % 40} - - [{at}] {request} "-" "Mozilla/5.0"'.encode()

    def _confirmed(self, connection: socket.socket, data: bytes, _rng: random.Random) -> bool:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(1) == b""

    def _slow(self, connection: socket.socket, data: bytes, rng: random.Random) -> bool:
        """In pieces that end anywhere but in the first line, by which we know whose they are."""
        cuts = sorted(rng.randint(_first_line(data), len(data)) for _ in range(4))
        for start, stop in itertools.pairwise((0, *cuts, len(data))):
            connection.sendall(data[start:stop])
            self.over.wait(0.05)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(1) == b""

    def _gone(self, connection: socket.socket, data: bytes, _rng: random.Random) -> bool:
        """Closed at once: what was sent lies in the kernel, and nobody is there any more."""
        connection.sendall(data)
        return False

    def _staying(self, connection: socket.socket, data: bytes, rng: random.Random) -> bool:
        """Still connected when the daemon dies, in the middle of a line."""
        connection.sendall(data[: rng.randint(_first_line(data), len(data))])
        connection.settimeout(_LOOK_SECONDS)
        for _ in range(20):
            try:
                connection.recv(1)
            except TimeoutError:
                if self.over.is_set():
                    break
            else:
                break
        return False


def _first_line(data: bytes) -> int:
    """How long it is."""
    return data.find(b"\n") + 1 or len(data)
