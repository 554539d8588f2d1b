"""Lines are taken before the state is read: what happens to them, and how many are taken."""

import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

from benchmarks.running import Vigild, sample_lines, vigild
from daemon.lifecycle import DRAIN_SECONDS
from tests.faults.altered import alter, restore, waiting

LINES = 300
ELEPHANT = """
[[rule]]
name = "elephant"
type = "probe"
severity = "medium"
confidence = 0.9
field = "line"
pattern = "purple elephant"
tests.match = ["a purple elephant"]
"""
# Nothing is taken before the state is there, as it used to be.
TAKES_LATE = """
import daemon.lifecycle
daemon.lifecycle.MAX_EARLY_REPLAY_BYTES = -1
"""


def confirmed_within(daemon: Vigild, data: bytes, seconds: float) -> bool:
    """Whether all of `data` is, from a sender that comes as soon as anybody listens and stays no longer."""
    deadline = time.monotonic() + seconds
    while True:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(daemon.runtime / "log.sock"))
            except (ConnectionRefusedError, FileNotFoundError):
                assert time.monotonic() < deadline, daemon.log
                time.sleep(0.02)
                continue
            connection.settimeout(deadline - time.monotonic())
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            try:
                return connection.recv(1) == b""
            except TimeoutError:
                return False


def joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def test_lines_are_durable_before_the_state_is_there_and_outlive_a_kill(tmp_path: Path) -> None:
    lines = sample_lines()
    gate = tmp_path / "gate"
    with vigild(tmp_path, verdicts="all") as daemon:
        daemon.start()
        daemon.send_lines(lines[:LINES])
        daemon.kill()
        for number in (1, 2):
            alter(daemon, waiting(gate))
            daemon.launch()
            assert confirmed_within(daemon, joined(lines[number * LINES : (number + 1) * LINES]), 30.0)
            assert daemon.health()["status"] == "starting"
            daemon.kill()
        daemon.launch()
        assert confirmed_within(daemon, joined(lines[3 * LINES : 4 * LINES]), 30.0)
        gate.touch()
        daemon.wait(lambda: daemon.health()["status"] == "serving")
        status = daemon.status()
        assert status["recovery"]["replayed_lines"] == 3 * LINES and status["recovery"]["tier"] == "full"
        daemon.applied(4 * LINES)
        early = daemon.post("/checkpoint")["digest"]
        assert daemon.stop() == 0
        texts = [record["text"].encode() for record in records(daemon, "verdicts") if not record["closed"]]
        assert texts == lines[: 4 * LINES]
        restore(daemon)
        daemon.start()
        assert daemon.status()["state_digest"] == early


def test_a_stop_before_the_state_is_there_applies_and_saves_what_was_taken(tmp_path: Path) -> None:
    lines = sample_lines()
    gate = tmp_path / "gate"
    with vigild(tmp_path) as daemon:
        alter(daemon, waiting(gate))
        daemon.launch()
        assert confirmed_within(daemon, joined(lines[:LINES]), 30.0)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait(lambda: "stopping" in daemon.log)
        gate.touch()
        assert daemon.process.wait(30.0) == 0, daemon.log
        restore(daemon)
        daemon.start()
        recovery = daemon.status()["recovery"]
        assert (recovery["snapshot_line"], recovery["replayed_lines"]) == (LINES, 0)


def test_a_stop_before_lines_are_taken_does_not_wait_for_those_who_would_take_them(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with vigild(tmp_path) as daemon:
        daemon.start()
        daemon.kill()
        alter(daemon, TAKES_LATE + waiting(gate))
        daemon.launch()
        daemon.wait(lambda: daemon.health().get("status") == "starting")
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait(lambda: "stopping" in daemon.log)
        gate.touch()
        began = time.monotonic()
        assert daemon.process.wait(60.0) == 0, daemon.log
        assert time.monotonic() - began < DRAIN_SECONDS / 2


def test_settings_of_this_start_judge_the_first_line_that_it_takes(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    rules = tmp_path / "mine.toml"
    with vigild(tmp_path, more=f'[rules]\npaths = ["{rules}"]\n') as daemon:
        rules.write_text("")
        daemon.start()
        daemon.send_lines([b"all is well", b"a purple elephant"])
        daemon.kill()
        rules.write_text(ELEPHANT)
        alter(daemon, waiting(gate))
        daemon.launch()
        assert confirmed_within(daemon, b"another purple elephant\n", 30.0)
        gate.touch()
        daemon.wait(lambda: daemon.health()["status"] == "serving")
        daemon.applied(3)
        daemon.post("/checkpoint")
        assert [record["text"] for record in records(daemon, "alerts")] == ["another purple elephant"]


def test_no_more_is_taken_than_there_is_room_for(tmp_path: Path) -> None:
    """A daemon whose start never ends must neither use up memory nor fill the disk."""
    gate = tmp_path / "gate"
    with vigild(tmp_path) as daemon:
        alter(daemon, waiting(gate))
        daemon.launch()
        daemon.wait(lambda: "taking lines" in daemon.log)
        much = b"0123456789abcdef\n" * 1_000_000
        with daemon.connect() as connection:
            connection.settimeout(2.0)
            sent = 0
            try:
                while sent < len(much):
                    sent += connection.send(much[sent : sent + 65536])
            except TimeoutError:
                pass
            journaled = sum(path.stat().st_size for path in daemon.state.glob("journal-*.log"))
            assert 500_000 < journaled < 4_000_000
            gate.touch()
            daemon.wait(lambda: daemon.health()["status"] == "serving")
            connection.settimeout(60.0)
            connection.sendall(much[sent:])
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
        daemon.applied(1_000_000)


def test_with_too_much_to_replay_nothing_is_taken_before(tmp_path: Path) -> None:
    """The control, too: without taking lines early the first test fails where it asks for confirmation."""
    lines = sample_lines()
    gate = tmp_path / "gate"
    with vigild(tmp_path) as daemon:
        alter(daemon, TAKES_LATE + waiting(gate))
        daemon.launch()
        assert not confirmed_within(daemon, joined(lines[:LINES]), 4.0)
        gate.touch()
        daemon.wait(lambda: daemon.health()["status"] == "serving")
        assert confirmed_within(daemon, joined(lines[:LINES]), 30.0)


def records(daemon: Vigild, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (daemon.state / f"{name}.jsonl").read_bytes().splitlines()]
