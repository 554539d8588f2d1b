"""Failures while lines are taken and judged: /health answers 200 and names them until their cause is gone."""

import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from actors.connection_places import SILENT_SECONDS
from actors.ingest import MAX_CONNECTIONS
from benchmarks.running import Vigild, sample_lines, vigild
from daemon.control.degraded_reasons import CODES
from tests.faults.altered import BRIEF_TRAINING, alter
from tests.faults.service_manager import SETTINGS, Managed

pytestmark = pytest.mark.timeout(900)  # one waits for a trainer, which yields to everyone

NOBODY_GIVES_WAY = """
import actors.connection_places
actors.connection_places.Places._shut_down_connection = lambda self, place: False
"""
TAKES_EVERY_FILE = """
import daemon.lifecycle
daemon.lifecycle.share_descriptors = lambda most, sockets: most
"""
FILES, FEWER_PLACES = 200, 63
NO_SNAPSHOTS = SETTINGS.replace("every_lines = 5000", "every_lines = 10000000")
VIGILCTL = [sys.executable, "-m", "daemon.vigilctl"]


@contextmanager
def mounted(source: str, place: Path, *options: str) -> Iterator[None]:
    command = ["mount", *options, source, str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def degraded(daemon: Vigild) -> dict[str, str]:
    """The reasons by code; checks that the daemon serves and that every other interface shows the same."""
    answer = daemon.api.get("/health")
    health: dict[str, Any] = answer.json()
    assert answer.status_code == 200 and health["serving"], health
    found = {reason["code"]: reason["text"] for reason in health["reasons"]}
    assert health["status"] == ("degraded" if found else "serving")
    return found


def metrics(daemon: Vigild) -> dict[str, float]:
    lines = daemon.api.get("/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def by_metrics(daemon: Vigild) -> set[str]:
    found = metrics(daemon)
    assert found["vigild_serving"] == 1.0
    return {code for code in CODES if found[f'vigild_degraded{{reason="{code}"}}']}


def test_a_training_that_fails_is_a_reason_until_one_succeeds(tmp_path: Path) -> None:
    """The disk with the training set is full."""
    with vigild(tmp_path, warmup=1500) as daemon:
        alter(daemon, BRIEF_TRAINING)
        daemon.start()
        with mounted("tmpfs", daemon.state / "training", "-t", "tmpfs", "-o", "size=4096,mode=0700"):
            daemon.send_lines(sample_lines()[:1500])
            daemon.wait(lambda: "training" in degraded(daemon))
            assert "No space left" in degraded(daemon)["training"]
            assert by_metrics(daemon) == {"training"}
            assert metrics(daemon)["vigild_training_failures_total"] >= 1.0
            assert daemon.status()["reasons"] == daemon.health()["reasons"]
            daemon.send_lines(sample_lines()[1500:1600])
            daemon.applied(1600)
        daemon.wait_for_model()
        daemon.wait(lambda: degraded(daemon) == {})
        assert by_metrics(daemon) == set() and metrics(daemon)["vigild_training_failures_total"] >= 1.0


def test_alerts_that_cannot_be_written_are_a_reason_until_they_are(tmp_path: Path) -> None:
    attack = b'192.0.2.7 - - [01/Jan/2026:00:00:00 +0000] "GET /?q=union+select+1 HTTP/1.1" 200 5 "-" "x"'
    full = tmp_path / "full"
    full.mkdir()
    with vigild(tmp_path) as daemon, mounted("tmpfs", full, "-t", "tmpfs", "-o", "size=4096"):
        daemon.start()
        (full / "alerts.jsonl").write_bytes(b"")
        (full / "filler").write_bytes(bytes(4096))
        with mounted(str(full / "alerts.jsonl"), daemon.state / "alerts.jsonl", "--bind"):
            daemon.send_lines([attack])
            daemon.wait(lambda: "alerts" in degraded(daemon))
            assert "1 records wait" in degraded(daemon)["alerts"] and "No space left" in degraded(daemon)["alerts"]
            assert by_metrics(daemon) == {"alerts"} and metrics(daemon)["vigild_records_waiting"] == 1.0
            assert daemon.api.post("/checkpoint").status_code == 503
            assert by_metrics(daemon) == {"alerts", "checkpoint"}, "no snapshot goes beyond what alerts say"
        daemon.wait(lambda: degraded(daemon).keys() <= {"checkpoint"})
        daemon.post("/checkpoint")
        assert degraded(daemon) == {} and b"union" in (daemon.state / "alerts.jsonl").read_bytes()


@contextmanager
def all_places_taken(daemon: Vigild, places: int = MAX_CONNECTIONS) -> Iterator[list[socket.socket]]:
    """By connections that send nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("too few files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    try:
        with ExitStack() as stack:
            idle = [stack.enter_context(daemon.connect()) for _ in range(places)]
            daemon.wait(lambda: daemon.status()["ingest"]["connections"] == places)
            yield idle
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def confirmed(daemon: Vigild, seconds: float) -> bool:
    with daemon.connect() as connection:
        connection.settimeout(seconds)
        connection.sendall(b"at last\n")
        connection.shutdown(socket.SHUT_WR)
        try:
            return connection.recv(1) == b""
        except TimeoutError:
            return False


def ended(connections: list[socket.socket]) -> int:
    poll = select.poll()
    for connection in connections:
        poll.register(connection, select.POLLIN)
    return len(poll.poll(0))


def test_connections_that_never_sent_a_byte_give_way_and_it_is_said_once(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        daemon.start()
        with all_places_taken(daemon) as idle, ExitStack() as stack:
            idle[0].sendall(b"the oldest has spoken, half a line")
            daemon.wait(lambda: daemon.status()["ingest"]["bytes"] > 0)
            assert degraded(daemon) == {}, "full is not yet too full"
            came = [stack.enter_context(daemon.connect()) for _ in range(3)]
            for newcomer in came:
                newcomer.sendall(b"at last\n")
            daemon.wait(lambda: daemon.status()["ingest"]["lines"] == len(came), 2 * SILENT_SECONDS)
            assert "1,024 connections" in degraded(daemon)["limits"] and by_metrics(daemon) == {"limits"}
            assert metrics(daemon)["vigild_connections_waiting"] == 1.0
            assert metrics(daemon)["vigild_connections_gave_way_total"] == ended(idle) == 3
            assert ended(idle[:1]) == 0 and ended(idle[1:4]) == 3, "the oldest of those that sent nothing"
            for closed in idle[1:4]:
                with pytest.raises(BrokenPipeError):
                    closed.sendall(b"too late")
            idle[0].sendall(b" and the rest\n")
            daemon.applied(4)
            assert daemon.log.count("connections for log lines are taken") == 1
        daemon.wait(lambda: degraded(daemon) == {})
        assert "3 gave way, 0 were refused" in daemon.log


def test_without_closing_silent_connections_nobody_else_is_served(tmp_path: Path) -> None:
    """The control."""
    with vigild(tmp_path) as daemon:
        alter(daemon, NOBODY_GIVES_WAY)
        daemon.start()
        with all_places_taken(daemon):
            assert not confirmed(daemon, 2 * SILENT_SECONDS)
            assert set(degraded(daemon)) == {"limits"}, "it is seen all the same"


def with_few_files(daemon: Vigild) -> None:
    """So many that may be open, from its next start on."""
    daemon.command[:0] = ["prlimit", f"--nofile={FILES}:{FILES}", "--"]


def test_where_few_files_may_be_open_connections_leave_room_for_the_rest(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        with_few_files(daemon)
        daemon.start()
        assert f"room for {FEWER_PLACES} connections" in daemon.log
        with all_places_taken(daemon, FEWER_PLACES) as idle, ExitStack() as stack:
            for _ in range(FILES):
                stack.enter_context(daemon.connect())  # these wait
            idle[0].sendall(b"one\n")
            daemon.applied(1)
            daemon.post("/checkpoint")
            daemon.wait(lambda: set(degraded(daemon)) == {"limits"})
        daemon.send_lines([b"two"])


def test_without_that_room_it_cannot_even_save(tmp_path: Path) -> None:
    """The control."""
    with vigild(tmp_path) as daemon:
        alter(daemon, TAKES_EVERY_FILE)
        with_few_files(daemon)
        daemon.start()
        daemon.send_lines([b"one"])
        with ExitStack() as stack:
            for _ in range(2 * FILES):
                stack.enter_context(daemon.connect())
            daemon.wait(lambda: "Too many open files" in daemon.log)
            try:
                assert daemon.api.post("/checkpoint").status_code == 503
            except httpx.TransportError:  # nor answer
                assert "Too many open files" in daemon.log


def test_signals_that_rotation_sends_do_nothing_but_are_said(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        daemon.launch()
        assert daemon.process is not None
        daemon.wait(lambda: bool(daemon.health()))
        for _ in range(2):
            for number in (signal.SIGUSR1, signal.SIGUSR2):
                daemon.process.send_signal(number)
            daemon.wait(lambda: bool(daemon.health().get("serving")))
            daemon.wait(lambda: all(f"SIGUSR{number}: nothing to do" in daemon.log for number in (1, 2)))
        daemon.send_lines([b"as ever"])
        assert daemon.stop() == 0


def test_a_start_says_how_far_reading_the_state_has_come(tmp_path: Path) -> None:
    lines = 4 * sample_lines()
    with closing(Managed(tmp_path, settings=NO_SNAPSHOTS)) as daemon:
        daemon.start()
        daemon.send_lines(lines)
        daemon.kill()
        daemon.launch()
        seen: list[dict[str, Any]] = []
        daemon.wait(lambda: bool(daemon.health()))
        while (answer := daemon.api.get("/health")).json()["status"] == "starting":
            assert answer.status_code == 503 and not answer.json()["serving"]
            seen.append(answer.json())
            said = subprocess.run(
                [*VIGILCTL, "--admin", f"unix:{daemon.runtime}/admin.sock", "status"], capture_output=True, text=True
            ).stdout
            if "starting" in said and "reading the state:" in said:
                assert f"{len(lines):,}" in said and "warm-up" not in said and "learning" not in said
                seen[-1]["said"] = said
            time.sleep(0.05)
        assert answer.json()["logs_processed"] == len(lines)
        read = [health for health in seen if health["reading"] is not None]
        assert {health["logs_processed"] for health in read} == {len(lines)}, "never as if all were forgotten"
        left = [health["reading"]["lines_to_replay"] for health in read]
        assert left == sorted(left, reverse=True) and any(0 < number < len(lines) for number in left)
        assert any(0.0 < health["reading"]["percent"] < 100.0 for health in read)
        assert any("said" in health for health in read)
        assert any(line.startswith("starting, reading the state: ") and " to replay" in line for line in daemon.said)
        assert daemon.said[-1] == f"serving, warmup, {len(lines):,} lines"
