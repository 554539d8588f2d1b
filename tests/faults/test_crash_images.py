"""Simulated power cuts: every disk image that a cut could leave must recover to what was durable."""

import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from persistence.store import open_store
from tests.faults.simulated_disk import Killed, SimulatedDisk
from tests.persistence.ledger import Ledger, State, recovered, work

IMAGES = int(os.environ.get("VIGILD_FAULTS", "500"))
STEPS = 25


@dataclass
class _DatedLedger(Ledger):
    """Knows what was durable after a given number of operations."""

    disk: SimulatedDisk | None = None
    dates: list[tuple[int, State]] = field(default_factory=list)

    def accept(self, state: State) -> None:
        super().accept(state)
        assert self.disk is not None
        self.dates.append((len(self.disk.operations), state))

    def promised(self, operations: int) -> State:
        return max((date for date in self.dates if date[0] <= operations), default=(0, State()), key=_date)[1]


def _date(date: tuple[int, State]) -> int:
    return date[0]


def _recorded(root: Path, rng: random.Random, sabotage: str) -> tuple[SimulatedDisk, _DatedLedger]:
    """Three processes in one directory, the first two killed at a random operation."""
    disk = SimulatedDisk(root, sabotage)
    ledger = _DatedLedger(disk=disk)
    for life in range(3):
        disk.kill_at = len(disk.operations) + rng.randint(10, 150) if life < 2 else -1
        try:
            with open_store(root, keep=2, disk=disk) as store:
                work(store, disk, ledger, rng, STEPS)
        except Killed:
            continue
    return disk, ledger


def _failures(directory: Path, images: int, sabotage: str, seed: int = 7) -> list[str]:
    """What went wrong in `images` random images, one line each."""
    rng = random.Random(seed)
    failures: list[str] = []
    done = run = 0
    while done < images:
        root = directory / f"run-{run}"
        run += 1
        disk, ledger = _recorded(root, rng, sabotage)
        for _ in range(min(50, images - done)):
            done += 1
            # Half of the cuts come at the worst moment: right after something was reported durable.
            dates = [date for date, _ in ledger.dates]
            cut = rng.choice(dates) if rng.random() < 0.5 else rng.randint(0, len(disk.operations))
            target = directory / "image"
            target.mkdir(mode=0o700)
            disk.image(cut, rng, target)
            failures += _wrong_in(target, ledger, ledger.promised(cut), f"run {run} cut {cut}")
            shutil.rmtree(target)
        shutil.rmtree(root)
    return failures


def _failures_of_kill_then_cut(directory: Path, sabotage: str) -> list[str]:
    """Killed between the write of the last frames and their sync, recovered, then the power goes."""
    rng = random.Random(3)
    failures: list[str] = []
    for run in range(10):
        root = directory / f"run-{run}"
        disk = SimulatedDisk(root, sabotage)
        ledger = Ledger()
        with open_store(root, disk=disk) as store:
            state = work(store, disk, ledger, rng, 10)
            store.rotate()
            disk.kill_at = len(disk.operations) + 1
            with pytest.raises(Killed):
                store.append(ledger.next_entries(rng, state))
        with open_store(root, disk=disk) as store:
            state, _ = recovered(store)
            for image in range(4):
                target = directory / f"image-{run}-{image}"
                target.mkdir(mode=0o700)
                disk.image(len(disk.operations), rng, target)
                failures += _wrong_in(target, ledger, state, f"run {run} image {image}")
    return failures


def _wrong_in(image: Path, ledger: Ledger, promised: State, where: str) -> list[str]:
    with open_store(image, keep=2) as store:
        state, found = recovered(store)
        if found.lost_lines or not ledger.descends(state, promised):
            return [f"{where}: {state.seq} instead of {promised.seq}, lost {found.lost_lines}, {found.notes}"]
        store.start_journal(found.last_seq, found.last_line)
        entries = Ledger().next_entries(random.Random(where), state)
        store.append(entries)
    with open_store(image, keep=2) as store:
        again, found = recovered(store)
    expected = state
    for entry in entries:
        expected = expected.after(entry)
    if again != expected or found.lost_lines:
        return [f"{where}: life after it ends at {again.seq} instead of {expected.seq}: {found.notes}"]
    return []


def test_every_image_of_a_power_cut_recovers_to_what_was_promised(tmp_path: Path) -> None:
    assert _failures(tmp_path, IMAGES, sabotage="") == []


def test_what_was_replayed_after_a_kill_survives_a_power_cut(tmp_path: Path) -> None:
    assert _failures_of_kill_then_cut(tmp_path, sabotage="") == []


def test_leaving_out_the_sync_at_recovery_is_caught(tmp_path: Path) -> None:
    assert _failures_of_kill_then_cut(tmp_path, sabotage="recovery sync")


@pytest.mark.parametrize("sabotage", ["directory sync", "file sync", "journal sync"])
def test_leaving_out_a_sync_is_caught(tmp_path: Path, sabotage: str) -> None:
    assert _failures(tmp_path, 300, sabotage)
