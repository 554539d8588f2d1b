"""Power cuts on real file systems: a worker writes to a loop-mounted one, which forgets at a random moment whatever it
did not have on its medium (`FS_IOC_SHUTDOWN` without flushing the log). What was said to be durable is there after
the next mount. VIGILD_POWER_CUTS is how many cuts, both file systems together (`make faults`: 100 and 20).
"""

import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.promises import ROOT, Promises, live, worker_command
from tests.faults.shim import built_shim

CUTS = int(os.environ.get("VIGILD_POWER_CUTS", "6"))
KILLS_THEN_CUTS = max(CUTS // 5, 2)
KINDS = ("ext4", "xfs")
IMAGE_BYTES = 320 << 20  # the smallest xfs
ENDLESS = 100_000
_SHUTDOWN, _WITHOUT_FLUSH = 0x8004587D, 2

pytestmark = [pytest.mark.timeout(300 + 30 * CUTS), pytest.mark.parametrize("kind", KINDS)]


@dataclass
class Machine:
    """A file system on a file, mounted at `mount`."""

    image: Path
    mount: Path

    @property
    def state(self) -> Path:
        return self.mount / "state"

    def switch_on(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.mount)], check=True, capture_output=True)

    def cut(self) -> None:
        descriptor = os.open(self.mount, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _WITHOUT_FLUSH))
        finally:
            os.close(descriptor)

    def switch_off(self) -> None:
        subprocess.run(["umount", str(self.mount)], check=True, capture_output=True)


@pytest.fixture
def machine(kind: str, tmp_path: Path) -> Iterator[Machine]:
    if os.geteuid():
        pytest.skip("only root may mount")
    if shutil.which(f"mkfs.{kind}", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip(f"mkfs.{kind} is not installed (packages e2fsprogs, xfsprogs)")
    machine = Machine(tmp_path / "image", tmp_path / "mount")
    machine.mount.mkdir()
    with open(machine.image, "wb") as image:
        image.truncate(IMAGE_BYTES)
    subprocess.run([f"mkfs.{kind}", "-q", str(machine.image)], check=True)
    try:
        machine.switch_on()
    except subprocess.CalledProcessError as exc:
        pytest.skip(f"mounting is refused: {exc.stderr.decode().strip()}")
    try:
        yield machine
    finally:
        # Also when a test failed between two mounts.
        if machine.mount.is_mount():
            machine.switch_off()


def cut_at_work(machine: Machine, promises: Promises, life: str, said: int, **env: str) -> list[str]:
    """Let a worker live until it has promised `said` frames, and cut; what it said contradicting earlier lives.

    It goes on meanwhile, so the cut is somewhere in its next steps. What it promises while the file system goes down
    does not count: there, unlike at a power cut, a sync may still be told that it succeeded.
    """
    command = worker_command(machine.state, life, ENDLESS)
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        heard = b""
        while heard.count(b"\ndurable") < said or not heard.endswith(b"\n"):
            heard += (more := os.read(worker.stdout.fileno(), 1 << 16))
            assert more, f"the worker ended by itself: {heard[-200:]!r}"
        machine.cut()
        worker.kill()
        later = worker.stdout.read()
    machine.switch_off()
    machine.switch_on()
    wrong = promises.hear(heard.decode().splitlines())
    unpromised = later[: later.rfind(b"\n") + 1].decode().splitlines()
    return wrong + promises.hear(line for line in unpromised if not line.startswith("durable"))


def after_a_kill_and_a_cut(machine: Machine, promises: Promises, shim: Path, life: str, sabotage: str) -> list[str]:
    """Killed instead of a sync, recovered by another process, which tells others; then the cut."""
    nth = random.Random(life).randint(4, 40)
    fault = {"LD_PRELOAD": str(shim), "VIGILD_FAULT": f"before:{nth}"}
    killed = live(promises, worker_command(machine.state, life, ENDLESS), env={**os.environ, **fault})
    assert killed.returncode == -signal.SIGKILL
    recovered = live(promises, worker_command(machine.state, life, 0, sabotage))
    assert recovered.returncode == 0, recovered.stderr
    machine.cut()
    machine.switch_off()
    machine.switch_on()
    return promises.broken_in(machine.state)


def test_a_power_cut_at_any_moment_loses_nothing(machine: Machine, kind: str) -> None:
    promises, rng = Promises(), random.Random(kind)
    for number in range(max(CUTS // len(KINDS), 1)):
        wrong = cut_at_work(machine, promises, f"{kind} {number}", rng.randint(1, 60))
        assert wrong + promises.broken_in(machine.state) == [], f"cut {number}"


def test_a_kill_and_then_a_power_cut_lose_nothing(machine: Machine, kind: str, tmp_path: Path) -> None:
    promises, shim = Promises(), built_shim(tmp_path)
    for number in range(KILLS_THEN_CUTS // len(KINDS)):
        wrong = after_a_kill_and_a_cut(machine, promises, shim, f"{kind} {number}", sabotage="")
        assert wrong == [], f"cut {number}"


def test_without_syncs_a_power_cut_is_seen_to_lose(machine: Machine, kind: str, tmp_path: Path) -> None:
    """The control: the same cut, with fsync and fdatasync doing nothing."""
    promises, shim = Promises(), built_shim(tmp_path)
    cut_at_work(machine, promises, kind, 30, LD_PRELOAD=str(shim), VIGILD_FAULT="no syncs")
    assert promises.durable >= 30
    assert any("durable was" in wrong for wrong in promises.broken_in(machine.state))


def test_without_the_sync_at_recovery_a_kill_and_a_cut_are_seen_to_lose(
    machine: Machine, kind: str, tmp_path: Path
) -> None:
    """The control: what a killed process wrote and did not sync is replayed, and then gone."""
    shim = built_shim(tmp_path)
    wrong: list[str] = []
    for number in range(6):
        wrong += after_a_kill_and_a_cut(machine, Promises(), shim, f"control {number}", "no recovery sync")
        shutil.rmtree(machine.state)
    assert any("durable was" in what for what in wrong)
