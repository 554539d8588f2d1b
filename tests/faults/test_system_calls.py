"""A kill, an error or a short write at every system call by which a worker touches its directory: what it said is
durable is there afterwards, and nothing comes out of it but what it knew.

The worker recovers a directory with a torn journal and a torn alerts file, then saves two snapshots and installs
two models. VIGILD_SYSTEM_CALLS=all takes every point (`make faults`), a number that many, spread over all calls.
"""

import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.promises import ROOT, Promises, live, worker_command
from tests.faults.shim import built_shim
from tests.faults.worker import APPENDS, FAILED

POINTS = os.environ.get("VIGILD_SYSTEM_CALLS", "40")
ROUNDS = 2
# What changes a directory or makes it durable; reading is damaged in test_corruption.
CALLS = ("openat", "write", "pwrite64", "ftruncate", "fsync", "fdatasync", "rename", "unlink", "mkdir")
FAULTS = ("signal=KILL", "error=EIO", "error=ENOSPC")
_CALL = re.compile(r"\d+ +(\w+)\(")

pytestmark = pytest.mark.timeout(3600 if POINTS == "all" else 300)


@dataclass(frozen=True)
class Point:
    """`call` number `nth` (from 1, of this name) is the one to disturb; `is_new` if it would create a file."""

    call: str
    nth: int
    line: str

    @property
    def can_fail(self) -> bool:
        """An error on opening for reading is rot, and told as a loss: not what is asked here."""
        return self.call != "openat" or "O_CREAT" in self.line


@dataclass
class Prepared:
    """A directory with a past, and what was promised about it. Each test lives in a copy at `place`."""

    original: Path
    place: Path
    promises: Promises = field(repr=False)

    def copy(self) -> Promises:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.original, self.place)
        return Promises(dict(self.promises.states), self.promises.durable)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    home = tmp_path_factory.mktemp("calls")
    promises = Promises()
    live(promises, worker_command(home / "original", "past", 1))
    assert promises.ended
    with open(max((home / "original").glob("journal-*.log")), "ab") as journal:
        journal.write(b"VJF\xf1 a write that was cut")
    with open(home / "original" / "alerts.jsonl", "ab") as alerts:
        alerts.write(b'{"id": 1')
    return Prepared(home / "original", home / "state", promises)


def traced(place: Path, log: Path, options: list[str], sabotage: str = "") -> list[str]:
    calls = ",".join(CALLS)
    tracer = ["strace", "-f", "-y", "-o", str(log), "-e", f"trace={calls}", *options]
    return [*tracer, *worker_command(place, "present", ROUNDS, sabotage)]


@pytest.fixture(scope="module")
def points(prepared: Prepared) -> list[Point]:
    """Every system call of an undisturbed life that concerns the directory."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here")
    log = prepared.place.with_name("trace")
    promises = prepared.copy()
    done = live(promises, traced(prepared.place, log, []), env=quiet())
    assert done.returncode == 0 and promises.ended, done.stderr
    assert promises.broken_in(prepared.place) == []
    return list(found_in(log, prepared.place))


def found_in(log: Path, place: Path) -> Iterator[Point]:
    seen = dict.fromkeys(CALLS, 0)
    main_thread = log.read_text().split(maxsplit=1)[0]
    for line in log.read_text().splitlines():
        match = _CALL.match(line)
        if match is None or not line.startswith(main_thread + " "):
            continue
        seen[match[1]] += 1
        if str(place) in line:
            yield Point(match[1], seen[match[1]], line)


def quiet() -> dict[str, str]:
    """An environment in which two runs make the same system calls."""
    return {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}


def chosen(points: list[Point], fault: str) -> list[Point]:
    """All of them, or some of each call, the first and the last among them."""
    points = [point for point in points if fault == "signal=KILL" or point.can_fail]
    if POINTS == "all":
        return points
    kept = []
    for call in CALLS:
        of_call = [point for point in points if point.call == call]
        share = max(round(int(POINTS) / len(FAULTS) * len(of_call) / max(len(points), 1)), 1)
        kept += of_call[:: max(len(of_call) // share, 1)]
    return kept


def disturbed(prepared: Prepared, point: Point, fault: str, sabotage: str = "") -> list[str]:
    """One life with `fault` at `point`; what is wrong afterwards."""
    log = prepared.place.with_name("trace")
    promises = prepared.copy()
    inject = ["-e", f"inject={point.call}:{fault}:when={point.nth}"]
    command = traced(prepared.place, log, inject, sabotage)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=quiet())
    wrong = promises.hear(done.stdout.splitlines())
    # A line of its own may be cut in two by the kill: pytest must not take the harness's miss for a pass.
    hit = [line for line in log.read_text().splitlines() if "INJECTED" in line]
    if fault == "signal=KILL":
        assert done.returncode == -signal.SIGKILL, (point, done.returncode, done.stderr)
    else:
        assert len(hit) == 1 and str(prepared.place) in hit[0], (point, hit)
        if done.returncode not in (0, FAILED):
            wrong.append(f"the worker ended with {done.returncode}: {done.stderr}")
        # Only at its start may one error be too much.
        if done.returncode == FAILED and "durable" in done.stdout and "ended" not in done.stdout:
            wrong.append(f"one error ended it: {done.stdout.splitlines()[-1]}")
    return [f"{fault} at {point.nth}. {point.line}: {what}" for what in wrong + promises.broken_in(prepared.place)]


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_at_any_system_call_loses_nothing(prepared: Prepared, points: list[Point], fault: str) -> None:
    assert {point.call for point in points} == set(CALLS)
    assert [what for point in chosen(points, fault) for what in disturbed(prepared, point, fault)] == []


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EROFS", "EDQUOT"])
def test_a_disk_that_fails_for_good_loses_nothing(prepared: Prepared, points: list[Point], error: str) -> None:
    syncs = [point for point in points if point.call == "fdatasync" and "/journal-" in point.line]
    syncs = syncs[:-APPENDS]  # before the last frames, so that there are some to fail
    for point in syncs if POINTS == "all" else syncs[:: len(syncs) // 2]:
        log = prepared.place.with_name("trace")
        promises = prepared.copy()
        options = ["-e", f"inject=fdatasync:error={error}:when={point.nth}+"]
        done = live(promises, traced(prepared.place, log, options), env=quiet())
        assert done.returncode == FAILED, (point, done.stdout, done.stderr)
        assert promises.broken_in(prepared.place) == [], point


@pytest.mark.parametrize("kib", [8, 16, 24])
def test_a_file_that_may_not_grow_loses_nothing(prepared: Prepared, kib: int) -> None:
    """The kernel writes what fits (a real short write), then says EFBIG: the journal goes on in a new file."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (kib << 10, kib << 10))

    promises = prepared.copy()
    done = live(promises, worker_command(prepared.place, "present", 6), preexec_fn=limited)
    assert done.returncode in (0, FAILED), done.stderr
    assert promises.durable > prepared.promises.durable + 20
    assert promises.broken_in(prepared.place) == []


def test_short_writes_lose_nothing(prepared: Prepared, tmp_path: Path) -> None:
    """Every write writes half of what it was given."""
    shim = built_shim(tmp_path)
    promises = prepared.copy()
    env = {**quiet(), "LD_PRELOAD": str(shim), "VIGILD_FAULT": "short", "VIGILD_FAULT_IN": str(prepared.place)}
    done = live(promises, worker_command(prepared.place, "present", ROUNDS), env=env)
    assert done.returncode == 0 and promises.ended, done.stderr
    assert "short writes" in done.stderr  # the shim was there
    assert promises.broken_in(prepared.place) == []


def test_a_kill_in_the_middle_of_any_write_loses_nothing(prepared: Prepared, tmp_path: Path) -> None:
    """Half of a write is there, then the process dies."""
    shim = built_shim(tmp_path)

    def life(nth: int) -> Promises | None:
        promises = prepared.copy()
        fault = {"VIGILD_FAULT": f"half:{nth}", "VIGILD_FAULT_IN": str(prepared.place), "LD_PRELOAD": str(shim)}
        done = live(promises, worker_command(prepared.place, "present", ROUNDS), env={**quiet(), **fault})
        if done.returncode == 0:
            return None
        assert done.returncode == -signal.SIGKILL, done.stderr
        return promises

    every = 1 if POINTS == "all" else 8
    nth = 1
    while (promises := life(nth)) is not None:
        assert promises.broken_in(prepared.place) == [], nth
        nth += every
    assert nth > 40


def test_a_worker_that_confirms_before_it_appends_is_caught(prepared: Prepared, points: list[Point]) -> None:
    """The control: the same kills must find a promise that is not kept."""
    journal = [point for point in points if point.call == "write" and "/journal-" in point.line]
    wrong = [what for point in journal[4:20:4] for what in disturbed(prepared, point, "signal=KILL", "early")]
    assert any("durable was" in what for what in wrong)
