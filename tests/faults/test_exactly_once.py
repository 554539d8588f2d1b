"""Plain senders and a daemon that is killed again and again: every line is counted once."""

import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from benchmarks.running import Vigild
from persistence.jsonl import record_files
from tests.faults.service_manager import Managed, managed

KILLS = int(os.environ.get("VIGILD_FAULTS", "500")) // 50
STEADY_SENDERS = 3
SENT_AT_ONCE = 200

# The critical moment prolonged, so that kills hit it; and what each control leaves out then.
CONSUMES_LATE = """
import actors.ingest, trio
consume = actors.ingest._consume_peeked_bytes
async def late(connection, size):
    await trio.sleep(0.5)
    await consume(connection, size)
actors.ingest._consume_peeked_bytes = late
"""
NEVER_RECOGNISES = f"""{CONSUMES_LATE}
actors.ingest.journaled_bytes = lambda connection, source: 0
"""
TRUSTS_EVERY_MARK = """
import actors.ingest, trio
from actors.journaled_mark import SO_PEEK_OFF
commit = actors.ingest._Ingest._commit_segment
async def late(self, segment):
    await trio.sleep(0.1)
    await commit(self, segment)
actors.ingest._Ingest._commit_segment = late
actors.ingest.journaled_bytes = lambda c, source: max(c.getsockopt(1, SO_PEEK_OFF), 0) & ((1 << 30) - 1)
"""
RUN = "\nfrom daemon.main import main\nraise SystemExit(main())\n"


class Connects(Protocol):
    def connect(self) -> socket.socket:
        """A connection that the daemon has accepted and stored."""


class Senders:
    """Connections that write numbered lines, in pieces that end anywhere; `sent` is what must arrive."""

    def __init__(self, daemon: Connects, seed: int) -> None:
        self._daemon = daemon
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self.sent: list[str] = []
        self.errors: list[OSError] = []
        self._threads = [threading.Thread(target=self._send_steadily, args=(n,)) for n in range(STEADY_SENDERS)]
        for thread in self._threads:
            thread.start()

    def text(self, name: str, numbers: range) -> bytes:
        lines = [f"{name} says {n:06d} of many" for n in numbers]
        self.sent += lines
        return "".join(line + "\n" for line in lines).encode()

    def send_and_close(self, name: str, connection: socket.socket) -> None:
        """All at once, no newline at the end, and gone."""
        with connection:
            connection.sendall(self.text(name, range(30))[:-1])

    def finish(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120.0)
            assert not thread.is_alive()

    def _send_steadily(self, number: int) -> None:
        """Send until the test stops it, then half-close, and wait for the end of file that confirms everything."""
        try:
            with self._daemon.connect() as connection:
                connection.settimeout(120.0)
                first = 0
                while not self._stop.is_set():
                    data = self.text(f"steady-{number}", range(first, first + SENT_AT_ONCE))
                    cut = self._random.randrange(len(data))
                    connection.sendall(data[:cut])
                    connection.sendall(data[cut:])
                    first += SENT_AT_ONCE
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(1) == b""
        except OSError as exc:
            self.errors.append(exc)


def verdicts(state: Path) -> list[str]:
    """The texts of all lines, as judged, in the order of their numbers."""
    path = state / "verdicts.jsonl"  # a fast machine fills several
    records = [json.loads(line) for part in record_files(path) for line in part.read_bytes().splitlines()]
    lines = [record for record in records if not record["closed"]]
    assert [record["line"] for record in lines] == list(range(1, len(lines) + 1))
    return [record["text"] for record in lines]


def journal_grows(state: Path) -> None:
    """Return when a write to the journal was just made: its sync is under way, or the bytes are being consumed."""

    def size() -> tuple[str, int]:
        newest = max(state.glob("journal-*.log"))
        return newest.name, newest.stat().st_size

    before, deadline = size(), time.monotonic() + 30.0
    while size() == before:
        assert time.monotonic() < deadline, "nothing is journaled"


def chunks_recognised(daemon: Managed) -> int:
    """By the process that runs now."""
    count: int = daemon.status()["ingest"]["chunks_recognised"]
    return count


def torment(
    daemon: Managed, rounds: int, end: Callable[[int], int], *, program_after: str = "", rounds_after: int = 0
) -> tuple[Senders, list[str], int]:
    """Start, kill with `end`, start again; returns the senders, the judged lines, and how many chunks were recognised.

    On a busy machine a kill seldom comes in time to leave one. `rounds_after` more follow then, of `program_after`,
    until one did: each kills while something is journaled, and the very next start is asked.
    """
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    recognised = 0
    daemon.start()
    assert daemon.status()["ingest"]["exactly_once"] is True
    assert daemon.status()["places"]["log_socket_of"] == "service manager"
    senders = Senders(daemon, seed)
    for number in range(rounds + rounds_after):
        if number >= rounds and recognised:
            break
        in_time = number >= rounds
        if number == rounds:
            daemon.use_program(program_after)
        # Whenever it comes: mostly something is being journaled, consumed or saved then.
        threading.Event().wait(chance.uniform(0.05, 0.4))
        senders.send_and_close(f"hasty-{number}", daemon.connect())
        # Not at once after the start: a busy machine takes a moment until inherited connections are read again.
        recognised += chunks_recognised(daemon)
        with daemon.connect() as absent:
            number_of_signal = signal.SIGKILL if in_time else end(number)
            if in_time or number % 2:
                journal_grows(daemon.state)
            status = daemon.signal(number_of_signal)
            assert status == (0 if number_of_signal == signal.SIGTERM else -signal.SIGKILL), daemon.log
            senders.send_and_close(f"absent-{number}", absent)
        if number % 3 == 2 and not in_time:
            # Once more before the state is there: lines are taken then, and connections stored.
            daemon.launch()
            threading.Event().wait(chance.uniform(0.3, 1.5))
            daemon.signal(signal.SIGKILL)
        daemon.start()
    senders.finish()
    daemon.wait(lambda: daemon.status()["ingest"]["connections"] == 0)
    recognised += chunks_recognised(daemon)
    assert daemon.stop() == 0
    return senders, verdicts(daemon.state), recognised


def differences(sent: list[str], judged: list[str]) -> tuple[int, int]:
    """How many lines are missing, and how many are there too often."""
    wanted, found = Counter(sent), Counter(judged)
    return (wanted - found).total(), (found - wanted).total()


def test_every_line_of_every_sender_once_over_kills_and_restarts(tmp_path: Path) -> None:
    with managed(tmp_path) as daemon:
        senders, judged, recognised = torment(
            daemon,
            KILLS,
            lambda number: signal.SIGTERM if number % 4 == 3 else signal.SIGKILL,
            # All that is promised by the daemon itself; then the same one with its critical moment prolonged.
            program_after=CONSUMES_LATE + RUN,
            rounds_after=10,
        )
        print(f"at least {KILLS} ends, {len(judged):,} lines, {recognised} chunks recognised")
        assert senders.errors == []
        assert differences(senders.sent, judged) == (0, 0)
        for name in {text.split()[0] for text in judged}:
            own = [text for text in judged if text.startswith(name + " ")]
            assert own == sorted(own), "in the order in which it was sent"
        assert recognised > 0, "no kill met a chunk that was journaled and not consumed; this proved little"
        assert daemon.stored == {}
        assert "Traceback" not in daemon.log


def test_without_recognising_what_is_journaled_lines_are_counted_twice(tmp_path: Path) -> None:
    with managed(tmp_path, program=NEVER_RECOGNISES + RUN) as daemon:
        senders, judged, _ = torment(daemon, 8, lambda number: signal.SIGKILL)
        missing, unexpected = differences(senders.sent, judged)
        assert missing == 0 and unexpected > 0


def test_with_a_mark_but_without_its_parity_lines_are_lost(tmp_path: Path) -> None:
    with managed(tmp_path, program=TRUSTS_EVERY_MARK + RUN) as daemon:
        senders, judged, _ = torment(daemon, 8, lambda number: signal.SIGKILL)
        missing, _ = differences(senders.sent, judged)
        assert missing > 0


def test_without_a_store_the_sender_sees_a_reset_and_the_status_says_why(tmp_path: Path) -> None:
    with managed(tmp_path, places=0) as daemon:
        daemon.start()
        ingest = daemon.status()["ingest"]
        assert ingest["exactly_once"] is False and "FileDescriptorStoreMax" in ingest["exactly_once_reason"]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(daemon.runtime / "log.sock"))
            client.sendall(b"accepted\nhalf a line")
            daemon.wait(lambda: daemon.status()["ingest"]["bytes"] == 20)
            daemon.kill()
            with pytest.raises(BrokenPipeError):
                client.sendall(b", and its end\n")
        daemon.start()
        daemon.applied(2)
        assert daemon.stop() == 0
        assert verdicts(daemon.state) == ["accepted", "half a line"]


def test_a_daemon_that_had_to_open_its_own_log_socket_promises_nothing_and_still_keeps_connections(
    tmp_path: Path,
) -> None:
    with managed(tmp_path, listen=False) as daemon:
        daemon.start()
        status = daemon.status()
        assert status["ingest"]["exactly_once"] is False
        assert "log.sock is the daemon's own" in status["ingest"]["exactly_once_reason"]
        assert status["places"]["log_socket_of"] == "vigild"
        with daemon.connect() as client:
            client.sendall(b"before\n")
            daemon.kill()
            client.sendall(b"after\n")
            daemon.start()
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        assert daemon.status()["ingest"]["exactly_once"] is False
        assert daemon.stop() == 0
        assert verdicts(daemon.state) == ["before", "after"]


def test_a_store_that_is_full_is_noticed_and_costs_only_those_it_has_no_room_for(tmp_path: Path) -> None:
    with managed(tmp_path, places=3) as daemon:
        daemon.start()
        two = [daemon.connect() for _ in range(2)]
        daemon.wait(lambda: daemon.status()["ingest"]["connections"] == 2)
        time.sleep(1.0)  # longer than it takes to ask
        assert daemon.status()["ingest"]["exactly_once"] is True
        more = [Vigild.connect(daemon) for _ in range(3)]
        daemon.wait(lambda: daemon.status()["ingest"]["connections_unkept"] > 0)
        ingest = daemon.status()["ingest"]
        assert ingest["exactly_once"] is False and "FileDescriptorStoreMax" in ingest["exactly_once_reason"]
        assert ingest["connections_unkept"] >= 5 - 3
        for n, connection in enumerate(two + more):
            connection.sendall(b"from %d\n" % n)
        daemon.wait(lambda: daemon.status()["ingest"]["lines"] == 5)
        daemon.kill()
        daemon.start()
        for connection in two:
            connection.sendall(b"kept\n")
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            more[-1].sendall(b"gone\n")
        daemon.wait(lambda: daemon.status()["ingest"]["exactly_once"])
        assert daemon.stop() == 0
        assert sorted(verdicts(daemon.state)) == sorted([*(f"from {n}" for n in range(5)), "kept", "kept"])
        for connection in two + more:
            connection.close()


def test_without_the_probe_a_daemon_would_promise_exactly_once_falsely(tmp_path: Path) -> None:
    """The control of the one above."""
    never_asks = "import daemon.host.notify\ndaemon.host.notify.Notifier.has_room = lambda self: True\n"
    with managed(tmp_path, places=1, program=never_asks + RUN) as daemon:
        daemon.start()
        connections = [Vigild.connect(daemon) for _ in range(3)]
        daemon.wait(lambda: daemon.status()["ingest"]["connections"] == 3)
        time.sleep(1.0)  # longer than it takes to ask
        assert daemon.status()["ingest"]["exactly_once"] is True and len(daemon.stored) == 1
        for connection in connections:
            connection.close()
