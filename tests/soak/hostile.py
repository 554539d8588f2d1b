"""Clients of the admin API that nobody would want: hasty, silent, half-way, unreading; and one that only asks.

All but `Asking` come over TCP, as whoever is on the machine may. Each is a thread that goes on until `over`. Errors of
the connection are what they ask for; an answer that says that something is wrong with the daemon is kept in `wrong`.
"""

import contextlib
import http.client
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.running import sample_lines
from tests.faults.threads import running

_HOLD_SECONDS = 15.0
_PAUSE_SECONDS = 0.5
_TIMEOUT_SECONDS = 20.0


class Hostile:
    def __init__(self, port: int, admin: Path, rng: random.Random) -> None:
        self.over = threading.Event()
        self.wrong: list[str] = []
        self.answers = 0
        self._port, self._admin = port, admin
        manners: tuple[Callable[[random.Random], None], ...] = (
            self._pipelines_and_leaves,
            self._sends_half_a_request,
            self._never_reads_events,
            self._speaks_no_http,
            self._reads_slowly,
            self._asks,
            self._asks,
        )
        self._threads = [
            threading.Thread(target=self._goes_on, args=(manner, random.Random(rng.random()))) for manner in manners
        ]

    @contextmanager
    def at_work(self) -> Iterator["Hostile"]:
        with running(self._threads, self.over):
            yield self

    def _goes_on(self, manner: Callable[[random.Random], None], rng: random.Random) -> None:
        while not self.over.is_set():
            # Nobody listens, or the daemon dies, or it has had enough of us.
            with contextlib.suppress(OSError, http.client.HTTPException):
                manner(rng)
            self.over.wait(rng.uniform(0.0, _PAUSE_SECONDS))

    def _connected(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), timeout=_TIMEOUT_SECONDS)

    def _pipelines_and_leaves(self, rng: random.Random) -> None:
        with self._connected() as connection:
            connection.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n" * rng.choice((3, 20, 100)))

    def _sends_half_a_request(self, rng: random.Random) -> None:
        whole = b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n" + b'{"log_line": "a'
        with self._connected() as connection:
            connection.sendall(whole[: rng.randrange(len(whole))])
            self.over.wait(rng.uniform(0.0, _HOLD_SECONDS))

    def _never_reads_events(self, rng: random.Random) -> None:
        with self._connected() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.over.wait(rng.uniform(0.0, 2 * _HOLD_SECONDS))

    def _speaks_no_http(self, rng: random.Random) -> None:
        with self._connected() as connection:
            connection.sendall(
                rng.choice((rng.randbytes(3000), b"GET " + b"/" * 100_000, b"\x16\x03\x01" + bytes(500)))
            )
            connection.recv(1000)

    def _reads_slowly(self, rng: random.Random) -> None:
        with self._connected() as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            for _ in range(100):
                if not connection.recv(50) or self.over.wait(0.1):
                    break

    def _asks(self, rng: random.Random) -> None:
        """As an operator's page, tools and scripts would, over both doors."""
        line = rng.choice(_lines())
        method, path, body = rng.choice(
            (
                ("GET", "/status", None),
                ("GET", "/health", None),
                ("GET", "/metrics", None),
                ("GET", "/incidents?limit=20", None),
                ("GET", "/anomalies?limit=50", None),
                ("POST", "/detect", {"log_line": line}),
                ("POST", "/detect/batch", {"log_lines": [line] * 100}),
                ("POST", "/checkpoint", None),
            )
        )
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_SECONDS)
        try:
            if rng.random() < 0.5:
                connection.sock = socket.socket(socket.AF_UNIX)
                connection.sock.settimeout(_TIMEOUT_SECONDS)
                connection.sock.connect(str(self._admin))
            sent = None if body is None else json.dumps(body).encode()
            connection.request(method, path, sent, {"Host": "localhost", "Connection": "close"})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        self.answers += 1
        # 503: it starts, stops or is busy, and says so. 429: too many at once.
        if answer.status not in (200, 429, 503):
            self.wrong.append(f"{method} {path}: {answer.status} {content[:200]!r}")


def _lines() -> list[str]:
    return [line.decode("latin-1") for line in sample_lines()[:50]]
