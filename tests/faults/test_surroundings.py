"""Hostile surroundings: the clock jumps, the process is stopped for a while, somebody else owns
the state directory or puts things into it. The real daemon, each time. (A second instance: tests/blackbox.)

VIGILD_STOPPED_SECONDS is how long a stopped process stays so (`make faults`: 60).
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.running import QUICK, Vigild, sample_lines, vigild
from tests.faults.shim import built_shim

STOPPED_SECONDS = float(os.environ.get("VIGILD_STOPPED_SECONDS", "3"))
NOBODY = 65534
_YEAR = 365 * 86_400
JUMPS = (10 * _YEAR, -_YEAR, 0)

ATTACK = b'192.0.2.1 - - [17/May/2015:10:05:03 +0000] "GET /?q=<script>alert(1)</script> HTTP/1.1" 200 1 "-" "-"'
FROM_THE_FUTURE = b'192.0.2.2 - - [17/May/2035:10:05:03 +0000] "GET / HTTP/1.1" 200 1 "-" "-"'


@contextmanager
def with_a_clock(home: Path) -> Iterator[tuple[Vigild, Path]]:
    """A daemon, not started, whose wall clock is ahead by the seconds that `set_clock` put into a file."""
    clock = home / "clock"
    clock.write_bytes(bytes(8))
    env = {"LD_PRELOAD": str(built_shim(home)), "VIGILD_CLOCK": str(clock)}
    settings = QUICK.format(warmup=1_000_000, retrain=1_000_000, every_lines=100, verdicts="all")
    daemon = Vigild(home, settings=settings, env=env)
    try:
        yield daemon, clock
    finally:
        daemon.close()


def set_clock(clock: Path, ahead: int) -> None:
    with open(clock, "r+b") as file:  # in place: it is mapped
        file.write(ahead.to_bytes(8, sys.byteorder, signed=True))


def verdicts(daemon: Vigild) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (daemon.state / "verdicts.jsonl").read_bytes().splitlines()]


def pieces() -> list[list[bytes]]:
    lines = sample_lines()
    return [[*lines[start : start + 200], ATTACK] for start in range(0, 800, 200)]


def test_a_clock_that_jumps_changes_no_verdict_and_loses_nothing(tmp_path: Path) -> None:
    """The lines carry their own times; the wall clock goes ten years ahead and eleven back between them."""
    (tmp_path / "steady").mkdir()
    with vigild(tmp_path / "steady", every_lines=100, verdicts="all") as steady:
        steady.start()
        for piece in pieces():
            steady.send_lines(piece)
        assert steady.stop() == 0
    with with_a_clock(tmp_path) as (daemon, clock):
        daemon.start()
        times = []
        for piece, jump in zip(pieces(), (0, *JUMPS), strict=True):
            set_clock(clock, jump)
            daemon.send_lines(piece)
            daemon.post("/checkpoint")
            times.append(daemon.status()["checkpoint"]["last_time"] - time.time())
        # The daemon's clock did jump.
        assert [round(ahead / _YEAR) for ahead in times] == [0, 10, -1, 0]
        daemon.kill()
        set_clock(clock, -_YEAR)
        daemon.start()
        status = daemon.status()
        assert (status["recovery"]["tier"], status["recovery"]["notes"]) == ("full", [])
        assert status["logs_processed"] == sum(map(len, pieces()))
        assert daemon.stop() == 0
        assert verdicts(daemon) == verdicts(steady)


def test_lines_without_times_go_on_when_the_clock_is_set_back(tmp_path: Path) -> None:
    with with_a_clock(tmp_path) as (daemon, clock):
        daemon.start()
        for number, jump in enumerate(JUMPS):
            set_clock(clock, jump)
            daemon.send_lines([b"a line without a time %d" % line for line in range(100)])
            daemon.applied(100 * (number + 1))
        daemon.kill()
        daemon.start()
        assert daemon.status()["logs_processed"] == 300
        assert daemon.status()["recovery"]["tier"] == "full"
        assert "Traceback" not in daemon.log


def test_a_line_from_the_future_does_not_move_the_log_clock(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        daemon.start()
        daemon.send_lines(sample_lines()[:100])
        daemon.applied(100)
        before = daemon.status()["log_time"]
        daemon.send_lines([FROM_THE_FUTURE])
        daemon.applied(101)
        after = daemon.status()
        assert after["log_time"] == before and after["ingest"]["future_lines"] == 1


def test_a_stopped_process_goes_on_where_it_was(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        daemon.start()
        assert daemon.process is not None
        daemon.send_lines(sample_lines()[:100])
        daemon.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with daemon.connect() as connection:
            connection.sendall(b"".join(line + b"\n" for line in sample_lines()[100:300]))
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(STOPPED_SECONDS)
            with pytest.raises(TimeoutError):
                connection.recv(1)  # it waits without an answer
            connection.settimeout(60.0)
            daemon.process.send_signal(signal.SIGCONT)
            assert connection.recv(1) == b""
        assert time.monotonic() - began >= STOPPED_SECONDS
        daemon.applied(300)
        assert daemon.health()["status"] == "serving"
        assert daemon.stop() == 0


def own_by_nobody(state: Path) -> None:
    os.chown(state, NOBODY, NOBODY)


def own_a_snapshot_by_nobody(state: Path) -> None:
    os.chown(next(state.glob("snapshot-*")), NOBODY, NOBODY)


def turn_into_a_link(state: Path) -> None:
    state.rename(state.with_name("elsewhere"))
    state.symlink_to("elsewhere")


def plant_a_link(state: Path) -> None:
    victim = state.with_name("victim")
    victim.write_text("precious")
    (state / "alerts.jsonl").unlink()
    (state / "alerts.jsonl").symlink_to(victim)


def plant_a_pipe(state: Path) -> None:
    os.mkfifo(state / "snapshot-00000000000000000099.msgpack", 0o600)


def let_others_write(state: Path) -> None:
    state.chmod(0o777)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with everything in it."""
    home = tmp_path_factory.mktemp("kept")
    with vigild(home) as daemon:
        daemon.start()
        daemon.send_lines([*sample_lines()[:100], ATTACK])
        assert daemon.stop() == 0
    return daemon.state


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (own_by_nobody, "state: is owned by uid 65534, not 0"),
        (own_a_snapshot_by_nobody, ".msgpack: is owned by uid 65534, not 0"),
        (turn_into_a_link, "state: is a symbolic link; name the directory itself"),
        (plant_a_link, "alerts.jsonl: is a symbolic link"),
        (plant_a_pipe, ".msgpack: is not a regular file"),
        (let_others_write, "state: others may write in it (mode 0777); chmod 700"),
    ],
)
def test_a_directory_that_is_not_safely_ours_is_refused_in_one_line(
    kept: Path, tmp_path: Path, harm: Callable[[Path], None], words: str
) -> None:
    if os.geteuid():
        pytest.skip("only root may give files away")
    state = tmp_path / "state"
    copy = ["cp", "-a", str(kept), str(state)]
    assert os.spawnvp(os.P_WAIT, "cp", copy) == 0
    harm(state)
    before = everything_in(tmp_path)
    with vigild(tmp_path) as daemon:
        daemon.launch()
        assert daemon.process is not None
        assert daemon.process.wait(30.0) == 1
        assert daemon.log.count("\n") == 1 and words in daemon.log, daemon.log
    assert everything_in(tmp_path).items() >= before.items()


def everything_in(home: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
