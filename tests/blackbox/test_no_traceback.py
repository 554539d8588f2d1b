"""No request leaves a traceback in the log, whatever its moment and however its client behaves."""

import itertools
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.running import Vigild, sample_lines, vigild
from daemon.api.app import create_app
from tests.daemon.fake_control import FakeControl
from tests.faults.altered import alter, waiting
from tests.faults.threads import running

CLIENTS = 4
BODIES = {
    "/detect": b'{"log_line": "GET /?id=1%27%20UNION%20SELECT"}',
    "/detect/batch": b'{"log_lines": ["one", "two"]}',
    "/feedback": b'{"id": "1", "answer": "normal"}',
    "/train-from": b"clean lines\n" * 100,
}
NAMES = {"<alert>": "1", "<generation>": "1", "<name>": "snapshot-00000000000000000001.msgpack"}
# As if it were not known yet whether there is anything to subscribe to, when the response begins.
LATE_SUBSCRIPTION = """
import daemon.api.event_streams as events
from contextlib import asynccontextmanager
def late(control, everything):
    @asynccontextmanager
    async def subscription():
        async with control.events(everything=everything) as records:
            yield records
    return subscription()
def open_late(self, *, everything, unix):
    return events.EventStream(self._open[unix], late(self._control, everything))
assert events.Streams.open_stream
events.Streams.open_stream = open_late
"""


def requests() -> list[bytes]:
    """One for every method of every path that the daemon answers."""
    found = [b"GET /events?all=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"]
    for rule in create_app(FakeControl(), hosts=(), token=None).url_map.iter_rules():
        path = rule.rule
        for placeholder, name in NAMES.items():
            path = path.replace(placeholder, name)
        body = BODIES.get(rule.rule.removeprefix("/anomaly"), b"")
        query = "?source=file&last=1" if path.endswith("train-from") else ""
        for method in sorted((rule.methods or set()) - {"OPTIONS"}):
            head = f"{method} {path}{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            found.append(head.encode() + body)
    return found


class Clients:
    """Threads that send requests and read their answers, or leave at any moment."""

    def __init__(self, daemon: Vigild) -> None:
        self._path = str(daemon.runtime / "admin.sock")
        self._over = threading.Event()
        # Here, not in the threads: making an app parses code, which Python 3.11 cannot do in several at once.
        self._requests = requests()
        self.sent = [0] * CLIENTS
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(CLIENTS)]

    @contextmanager
    def at_work(self) -> Iterator["Clients"]:
        with running(self._threads, self._over, 30.0):
            yield self

    def _work(self, number: int) -> None:
        chance = random.Random(number)
        all_of_them = list(self._requests)
        chance.shuffle(all_of_them)
        for request in itertools.cycle(all_of_them):
            if self._over.is_set():
                return
            try:
                self._send(request, chance)
            except OSError:
                time.sleep(0.01)  # not there yet, or no longer
            else:
                self.sent[number] += 1

    def _send(self, request: bytes, chance: random.Random) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(0.2)
            connection.connect(self._path)
            behaviour = chance.choice(["reads", "reads", "leaves", "resets", "is cut off", "reads a little"])
            if behaviour == "resets":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if behaviour == "is cut off":
                connection.sendall(request[: chance.randrange(1, len(request))])
                return
            connection.sendall(request)
            if behaviour == "reads a little":
                connection.recv(20)
            elif behaviour == "reads":
                while (answer := connection.recv(65536)) and b"\r\n\r\n" not in answer:
                    pass


def one_of_each(it: Clients) -> None:
    """Wait until every client has sent every request once more."""
    wanted = [sent + len(requests()) for sent in it.sent]
    deadline = time.monotonic() + 120.0
    while any(sent < want for sent, want in zip(it.sent, wanted, strict=True)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_every_request_while_it_starts_serves_and_stops(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with vigild(tmp_path) as daemon:
        daemon.start().send_lines(sample_lines()[:200])
        assert daemon.stop() == 0
        alter(daemon, waiting(gate))
        with Clients(daemon).at_work() as it:
            daemon.launch()
            one_of_each(it)
            gate.touch()
            daemon.wait(lambda: bool(daemon.health().get("serving")))
            daemon.send_lines(sample_lines()[200:1000])  # for the streams
            one_of_each(it)
            assert daemon.stop() == 0
        assert "Traceback" not in daemon.log, daemon.log
        assert "Error in ASGI Framework" not in daemon.log and " failed\n" not in daemon.log
        for _ in range(3):  # and at whatever moment the stop comes
            with Clients(daemon).at_work():
                daemon.launch()
                daemon.wait(lambda: bool(daemon.health()))
                assert daemon.stop() == 0
        assert "Traceback" not in daemon.log, daemon.log


@pytest.mark.parametrize("code", [LATE_SUBSCRIPTION])
def test_a_stream_that_subscribes_after_its_response_began_would_leave_one(tmp_path: Path, code: str) -> None:
    """The control."""
    with vigild(tmp_path) as daemon:
        alter(daemon, code + waiting(tmp_path / "gate"))
        daemon.launch()
        daemon.wait(lambda: bool(daemon.health()))
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(daemon.runtime / "admin.sock"))
            connection.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            connection.settimeout(30.0)
            while connection.recv(65536):
                pass
        daemon.wait(lambda: "Traceback" in daemon.log)
