"""A disk that cannot be written, under the real daemon: confirmed lines are there, and it recovers by itself.

`VIGILD_DISK_SECONDS` is how long the disk stays full (2 by default, 60 in the long form).
"""

import errno
import os
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from benchmarks.running import Vigild, sample_lines, vigild
from daemon.host.disk_room import LOOK_SECONDS
from tests.faults.altered import alter, restore, waiting

FULL_SECONDS = float(os.environ.get("VIGILD_DISK_SECONDS", "2"))
HEALED_SECONDS = 10.0
# A stop while the disk cannot be written: see `daemon.lifecycle.DEGRADED_DRAIN_SECONDS`.
STOPPED_SECONDS = 15.0
DISK_BYTES = 48 << 20

NO_RETRY = """
import actors.sequencer
actors.sequencer.RETRY_SECONDS = 1e6
"""
CONFIRMS_WHAT_IS_NOT_WRITTEN = """
from persistence.journal import JournalError
from persistence.store import Store
append = Store.append
def lying(self, entries):
    try:
        append(self, entries)
    except JournalError:
        self._journal.seq, self._journal.line = entries[-1].seq, entries[-1].line
Store.append = lying
"""

NOTHING_GIVES_WAY = """
from persistence.record_space import RecordSpace
RecordSpace._remove_oldest_part = lambda self, why: False
"""


@contextmanager
def small_disk(home: Path) -> Iterator[Path]:
    """`home` with its state on a disk of its own."""
    state = home / "state"
    state.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(state)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield home
    finally:
        subprocess.run(["umount", "--lazy", str(state)], check=True)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path) as home:
        yield home


def fill(daemon: Vigild) -> None:
    """Leave not a byte."""
    with open(daemon.state / "filler", "ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as exc:
                assert exc.errno == errno.ENOSPC


def free(daemon: Vigild) -> None:
    (daemon.state / "filler").unlink()


class Sender(threading.Thread):
    """Sends batches one after the other, each on a connection of its own; `confirmed` counts lines."""

    def __init__(self, daemon: Vigild, lines: int = 100) -> None:
        super().__init__(daemon=True)
        self.confirmed = 0
        self.error: Exception | None = None
        self._daemon = daemon
        self._batch = sample_lines()[:lines]
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            while not self._over.is_set():
                with self._daemon.connect() as connection:
                    connection.settimeout(FULL_SECONDS + 60.0)
                    connection.sendall(b"".join(line + b"\n" for line in self._batch))
                    connection.shutdown(socket.SHUT_WR)
                    assert connection.recv(1) == b"", "a clean end says that everything is durable"
                self.confirmed += len(self._batch)
        except (OSError, AssertionError) as exc:  # a reset: this batch is not confirmed
            self.error = exc

    def finish(self) -> int:
        """Stop after the batch under way; the number of lines confirmed in all."""
        self._over.set()
        self.join(60.0)
        assert not self.is_alive()
        return self.confirmed


def degraded(daemon: Vigild) -> bool:
    """Lines wait."""
    health = daemon.health()
    return bool(health["status"] == "degraded" and not health["serving"])


def healed(daemon: Vigild, began: float) -> None:
    """Lines flow again, and a snapshot was taken at once."""
    daemon.wait(lambda: daemon.health()["status"] == "serving", HEALED_SECONDS)
    daemon.wait(lambda: (daemon.status()["checkpoint"]["last_time"] or 0) > began, HEALED_SECONDS)
    assert time.time() - began < HEALED_SECONDS


def recovered_lines(daemon: Vigild) -> int:
    daemon.start()
    recovery = daemon.status()["recovery"]
    assert (recovery["lost_lines"], recovery["set_aside"]) == (0, [])
    lines: int = daemon.status()["logs_processed"]
    return lines


def test_a_full_disk_makes_lines_wait_and_nothing_else(home: Path) -> None:
    with vigild(home, every_lines=2000) as daemon:
        daemon.start()
        sender = Sender(daemon)
        daemon.wait(lambda: daemon.status()["checkpoint"]["last_line"] > 0)
        fill(daemon)
        began = time.time()
        daemon.wait(lambda: degraded(daemon))
        waiting = sender.confirmed
        until = time.monotonic() + FULL_SECONDS
        while time.monotonic() < until:
            answer = daemon.api.get("/health")
            assert (answer.status_code, answer.json()["status"]) == (503, "degraded")
            assert "No space left" in answer.json()["reason"]
            assert answer.json()["reasons"][0]["code"] == "journal"
            assert began - 1 < answer.json()["since"] < time.time()
            assert daemon.api.get("/").status_code == 200
            assert daemon.status()["reason"] == answer.json()["reason"]
            assert len(daemon.post("/detect/batch", {"log_lines": ["a", "b"]})["results"]) == 2
            assert daemon.api.get("/anomalies").status_code == daemon.api.get("/snapshots").status_code == 200
            assert daemon.api.post("/checkpoint").status_code == 503
            time.sleep(0.2)
        assert sender.confirmed == waiting
        assert "sources wait" in daemon.log and daemon.log.count("ERROR") < 5

        free(daemon)
        healed(daemon, time.time())
        total = sender.finish()
        daemon.applied(total)
        daemon.kill()
        assert sender.error is None and total > waiting
        assert recovered_lines(daemon) == total


def test_killed_and_started_while_the_disk_is_full_it_has_what_was_confirmed(home: Path) -> None:
    with vigild(home, every_lines=2000) as daemon:
        daemon.start()
        sender = Sender(daemon)
        daemon.wait(lambda: sender.confirmed > 2500)
        fill(daemon)
        daemon.wait(lambda: degraded(daemon))
        daemon.kill()
        total = sender.finish()
        assert sender.error is not None, "the batch under way is not confirmed"

        daemon.start()
        assert daemon.status()["logs_processed"] == total
        sender = Sender(daemon)
        daemon.wait(lambda: degraded(daemon))
        free(daemon)
        healed(daemon, time.time())
        total += sender.finish()
        daemon.kill()
        assert recovered_lines(daemon) == total


def full_with_a_frame_to_write(daemon: Vigild, home: Path) -> None:
    """100 lines taken, killed, and the disk full: the next start has a settings frame to write."""
    config = home / "vigild.toml"
    daemon.start()
    daemon.send_lines(sample_lines()[:100])
    daemon.kill()
    config.write_text(config.read_text() + "per_day = 7\n")
    fill(daemon)


def test_a_start_that_must_write_first_answers_heals_and_stops_while_the_disk_is_full(home: Path) -> None:
    with vigild(home) as daemon:
        full_with_a_frame_to_write(daemon, home)
        daemon.launch()
        daemon.wait(lambda: bool(daemon.health()) and degraded(daemon))
        assert len(daemon.post("/detect/batch", {"log_lines": ["a"]})["results"]) == 1
        began = time.monotonic()
        daemon.stop()
        assert time.monotonic() - began < STOPPED_SECONDS

        daemon.launch()
        daemon.wait(lambda: bool(daemon.health()) and degraded(daemon))
        free(daemon)
        healed(daemon, time.time())
        assert daemon.status()["alarms"]["per_day"] == 7
        assert daemon.status()["logs_processed"] == 100


def test_a_full_disk_is_reported_before_the_state_is_read(home: Path) -> None:
    gate = home / "gate"
    with vigild(home) as daemon:
        full_with_a_frame_to_write(daemon, home)
        alter(daemon, waiting(gate))
        daemon.launch()
        daemon.wait(lambda: "lines wait" in daemon.health().get("reason", ""))
        health = daemon.health()
        assert health["status"] == "starting"
        assert str(daemon.state) in health["reason"]
        by_code = {reason["code"]: reason["text"] for reason in health["reasons"]}
        assert by_code["journal"].endswith("No space left on device; free some space there")
        assert str(daemon.state) in by_code["disk"]
        free(daemon)
        daemon.wait(lambda: "lines wait" not in daemon.health()["reason"])
        daemon.wait(lambda: daemon.health()["reasons"] == [], 2 * LOOK_SECONDS)
        assert daemon.health()["reason"] == "reading the state: 0 %, 100 lines to replay"
        gate.touch()
        healed(daemon, time.time())


def test_a_stop_on_a_full_disk_does_not_hang_and_says_what_failed(home: Path) -> None:
    with vigild(home) as daemon:
        daemon.start()
        sender = Sender(daemon)
        daemon.wait(lambda: sender.confirmed > 500)
        fill(daemon)
        daemon.wait(lambda: degraded(daemon))
        began = time.monotonic()
        assert daemon.stop() == 1
        assert time.monotonic() - began < STOPPED_SECONDS
        last = daemon.log.splitlines()[-1]
        assert last.startswith(f"vigild: no snapshot: {daemon.state}")
        assert last.endswith("No space left on device; free some space there")
        assert "Traceback" not in daemon.log
        total = sender.finish()
        free(daemon)
        assert recovered_lines(daemon) == total


def test_files_that_may_not_grow_roll_on_and_the_rest_waits(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: the kernel cuts a write short and raises SIGXFSZ; journal and snapshot meet EFBIG."""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with vigild(tmp_path, every_lines=1000) as daemon:
        daemon.start()
        assert daemon.process is not None
        pid = daemon.process.pid
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
        for number in range(30):
            daemon.send_lines(sample_lines()[:50])
            assert daemon.health()["serving"], number
        daemon.wait(lambda: "File too large" in (daemon.status()["checkpoint"]["error"] or ""))
        answer = daemon.api.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert [reason["code"] for reason in answer.json()["reasons"]] == ["checkpoint"]
        assert "File too large" in answer.json()["reasons"][0]["text"]
        daemon.applied(1500)  # scoring goes on
        sender = Sender(daemon, lines=300)  # more than a segment may hold
        daemon.wait(lambda: degraded(daemon))
        assert "File too large" in daemon.health()["reason"]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
        healed(daemon, time.time())
        total = 1500 + sender.finish()
        assert sender.error is None
        daemon.kill()
        assert recovered_lines(daemon) == total


@contextmanager
def failing(pid: int, call: str, code: int) -> Iterator[None]:
    """Every `call` of the process fails with `code`."""
    inject = f"inject={call}:error={errno.errorcode[code]}"
    command = ["strace", "-f", "-p", str(pid), "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert tracer.stderr is not None
    try:
        said = tracer.stderr.readline()
        if b"attached" not in said:
            pytest.skip(f"strace may not trace here: {said.decode(errors='replace').strip()}")
        yield
    finally:
        tracer.send_signal(signal.SIGINT)  # it lets go of the process
        tracer.communicate(timeout=30.0)


def test_disks_that_fail_otherwise_degrade_and_heal_alike(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("there is no strace here to make system calls fail with")
    with vigild(tmp_path) as daemon:
        daemon.start()
        assert daemon.process is not None
        sender = Sender(daemon)
        for number, code in enumerate((errno.EIO, errno.EDQUOT, errno.EROFS), 1):
            with failing(daemon.process.pid, "fdatasync", code):
                daemon.wait(lambda: degraded(daemon))
                assert os.strerror(code) in daemon.health()["reason"]
                confirmed = sender.confirmed
                assert len(daemon.post("/detect/batch", {"log_lines": ["a"]})["results"]) == 1
                assert sender.confirmed == confirmed
            healed(daemon, time.time())
            assert daemon.log.count("journal: written again") == number
        total = sender.finish()
        assert sender.error is None
        daemon.kill()
        assert recovered_lines(daemon) == total


def test_without_trying_again_it_would_not_heal(home: Path) -> None:
    """The control of healing."""
    with vigild(home) as daemon:
        alter(daemon, NO_RETRY)
        daemon.start()
        sender = Sender(daemon)
        daemon.wait(lambda: sender.confirmed > 200)
        fill(daemon)
        daemon.wait(lambda: degraded(daemon))
        free(daemon)
        with pytest.raises(AssertionError, match="nothing for"):
            healed(daemon, time.time())


def test_lines_that_were_confirmed_and_not_written_are_missed(home: Path) -> None:
    """The control of the count."""
    with vigild(home) as daemon:
        alter(daemon, CONFIRMS_WHAT_IS_NOT_WRITTEN)
        daemon.start()
        sender = Sender(daemon)
        daemon.wait(lambda: sender.confirmed > 200)
        fill(daemon)
        before = sender.confirmed
        daemon.wait(lambda: sender.confirmed > before + 500)
        daemon.kill()
        total = sender.finish()
        free(daemon)
        restore(daemon)
        daemon.start()
        assert daemon.status()["logs_processed"] < total


def test_a_read_only_directory_is_refused_in_one_line(home: Path) -> None:
    with vigild(home) as daemon:
        subprocess.run(["mount", "-o", "remount,ro", str(daemon.state)], check=True)
        daemon.launch()
        assert daemon.process is not None
        assert daemon.process.wait(30.0) == 1
        (said,) = daemon.log.splitlines()
        assert said == f"vigild: {daemon.state}: is not writable"


MANY_LINES = b"one of many lines\n" * 5000  # more than a page that the journal may have left


def parts_of(daemon: Vigild) -> list[Path]:
    return list(daemon.state.glob("alerts.jsonl.0*"))


def fewer_parts(daemon: Vigild, than: int) -> bool:
    return len(parts_of(daemon)) < than


def test_records_give_way_to_lines_when_the_disk_is_full_and_without_that_lines_wait(home: Path) -> None:
    for number in range(1, 5):
        part = home / "state" / f"alerts.jsonl.{number:08d}"
        part.write_bytes(b'{"of": "earlier"}\n' * 200_000)
        part.chmod(0o600)
    with vigild(home) as daemon:
        daemon.start()
        fill(daemon)
        daemon.send(MANY_LINES)  # confirmed, so they are durable
        daemon.wait(lambda: daemon.status()["alarms"]["alerts.jsonl"]["parts_removed"] > 0)
        assert "journal" not in {each["code"] for each in daemon.health()["reasons"]}
        while parts := parts_of(daemon):
            fill(daemon)
            daemon.wait(partial(fewer_parts, daemon, len(parts)))
        fill(daemon)
        daemon.wait(lambda: "disk" in {each["code"] for each in daemon.health()["reasons"]})
        assert "kept for the journal" in str(daemon.health()["reasons"])
        records, metrics = daemon.status()["records"], daemon.api.get("/metrics").text
        assert records["disk_free"] < records["disk_kept_free"] == DISK_BYTES // 20
        assert sum(records["parts_removed"].values()) == 4 and records["max_bytes"] == 1 << 30
        for why, count in records["parts_removed"].items():
            assert f'vigild_records_parts_removed_total{{reason="{why}"}} {count:.1f}' in metrics
        (kept,) = (line.split()[1] for line in metrics.splitlines() if line.startswith("vigild_disk_kept_free_bytes "))
        assert float(kept) == records["disk_kept_free"]
        free(daemon)
        daemon.wait(lambda: not daemon.health()["reasons"])
        daemon.kill()

        part.write_bytes(b"{}\n")
        part.chmod(0o600)
        alter(daemon, NOTHING_GIVES_WAY)
        daemon.start()
        fill(daemon)
        with daemon.connect() as connection:
            connection.sendall(MANY_LINES)
            daemon.wait(lambda: "journal" in {each["code"] for each in daemon.health()["reasons"]})
        free(daemon)
        assert part.exists()
