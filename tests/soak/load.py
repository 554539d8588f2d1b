"""Lines as real as they get, from many connections in every manner; among them attacks, each with its own number."""

import itertools
import random
import re
import socket
import threading
import time
from pathlib import Path

from benchmarks.running import sample_lines
from tests.faults.senders import Senders, Sending

MAX_LINE_BYTES = 65_536  # as the settings have it by default
ATTACK_EVERY = 60
GARBAGE_BYTES = (10, 500, 5000, 50_000)
ENDLESS_BYTES = 1_500_000  # of one line
FILL_LINES = 2000
_TRICKLE_SECONDS = 0.05
_REQUEST = re.compile(rb'"(?:GET|POST|HEAD) \S+')
_ATTACK = re.compile(rb"/search\.php\?mark=(\d{8})&q=%27\+UNION\+SELECT")


class Load(Senders):
    """Senders of four kinds of logs, and one of garbage. What they sent is in `sendings`, as with those."""

    pause_seconds = 1.0

    def __init__(self, path: Path, rng: random.Random) -> None:
        super().__init__(path, rng)
        self._real = itertools.cycle([line for line in sample_lines() if _REQUEST.search(line)])
        self._threads.append(threading.Thread(target=self._send, args=(self._trickling, random.Random(rng.random()))))
        self._threads.append(threading.Thread(target=self._send_garbage, args=(random.Random(rng.random()),)))

    def fill(self, lines: int, rng: random.Random) -> None:
        """Send so many, beside what the others send, as fast as they are taken; every one is confirmed."""
        for _ in range(0, lines, FILL_LINES):
            sending = self._of(FILL_LINES, "access", rng)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(300.0)
                connection.connect(str(self._path))
                sending.confirmed = self._confirmed(connection, sending.data, rng)
            assert sending.confirmed

    def _next(self, rng: random.Random) -> Sending:
        kind = rng.choice(("access", "access", "syslog", "json", "logfmt"))
        return self._of(rng.choice((1, 5, 20, 40)), kind, rng)

    def _of(self, size: int, kind: str, rng: random.Random) -> Sending:
        """One connection carries one kind of log; its first line is like no other's."""
        with self._turn:
            lines = [self._of_kind(kind, rng, first=number == 0) for number in range(size)]
            sending = Sending(b"\n".join(lines) + rng.choice((b"\n", b"\n", b"")))
            self.sendings.append(sending)
        return sending

    def _of_kind(self, kind: str, rng: random.Random, *, first: bool) -> bytes:
        number, second = next(self._numbers), next(self._clock)
        if kind == "access":
            line = next(self._real)
            target = b"/index.html?n=%08d" % number
            if number % ATTACK_EVERY == 0:
                target = b"/search.php?mark=%08d&q=%%27+UNION+SELECT+password+FROM+users--" % number
            elif not first:
                return line
            return _REQUEST.sub(lambda _match: b'"GET ' + target, line, count=1)
        host, took = rng.choice(("web", "db", "mail")), rng.randint(1, 400)
        at = time.gmtime(second)
        if kind == "syslog":
            who = f"deploy from 192.0.2.{took % 40} port 4{took:04d} ssh2"
            text = f"{time.strftime('%b %d %H:%M:%S', at)} {host} sshd[{number}]: Accepted publickey for {who}"
        elif kind == "json":
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", at)
            said = f'"host":"{host}","msg":"order {number} was shipped","took_ms":{took}'
            text = f'{{"time":"{stamp}","level":"info",{said}}}'
        else:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", at)
            text = f'time="{stamp}" level=info msg="backup of {host} is done" id={number} took={took}ms'
        return text.encode()

    def _trickling(self, connection: socket.socket, data: bytes, rng: random.Random) -> bool:
        """A client so slow that it is hardly there: its lines come a few bytes at a time."""
        first = data.find(b"\n") + 1 or len(data)
        connection.sendall(data[:first])
        for at in range(first, min(len(data), first + 600), 3):
            connection.sendall(data[at : at + 3])
            if self.over.wait(_TRICKLE_SECONDS):
                break
        else:
            connection.sendall(data[first + 600 :])
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(1) == b""
        return False

    def _send_garbage(self, rng: random.Random) -> None:
        """Bytes that mean nothing, and lines of megabytes; of those, too, every byte that counts is there once."""
        while not self.over.is_set():
            garbage = rng.randbytes(rng.choice(GARBAGE_BYTES))
            if rng.random() < 0.05:
                garbage = b"\0\x1b[31m\xff\r" * (ENDLESS_BYTES // 8)
            with self._turn:
                sending = Sending(b"garbage %08d\n" % next(self._numbers) + garbage)
                self.sendings.append(sending)
            try:
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.settimeout(60.0)
                    connection.connect(str(self._path))
                    sending.confirmed = self._confirmed(connection, sending.data, rng)
            except (ConnectionError, FileNotFoundError, BlockingIOError):
                self.over.wait(0.2)
            self.over.wait(rng.uniform(1.0, 4.0))


def attacks_in(data: bytes) -> list[str]:
    """The numbers of the attacks among the lines of `data`."""
    return [match.decode() for match in _ATTACK.findall(data)]


def as_journaled(data: bytes) -> bytes:
    """`data` without what its lines hold beyond the limit."""
    return b"\n".join(line[:MAX_LINE_BYTES] for line in data.split(b"\n"))
