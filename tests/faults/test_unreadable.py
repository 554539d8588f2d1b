"""A medium that cannot be read, for a moment or for longer: that is not treated as damage."""

import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.running import Vigild, sample_lines, vigild
from persistence.disk import REAL
from persistence.journal import JournalError
from persistence.journal_segment import HEADER_BYTES
from persistence.state_directory import StoreError
from persistence.store import open_store
from tests.faults.altered import BRIEF_TRAINING, alter, restore
from tests.persistence.disks import FaultyDisk
from tests.persistence.ledger import Ledger, State, fold, restored, save, toy_model

pytestmark = pytest.mark.timeout(900)  # some wait for a trainer, which yields to everyone
KINDS = ["snapshot-", "journal-", "model-"]
# Reading what `name` begins with fails, until `gate` exists.
UNREADABLE = """
import errno, os
from pathlib import Path
from persistence.disk import REAL
read = type(REAL).read
def fail(self, path):
    if path.name.startswith({name!r}) and not Path({gate!r}).exists():
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
    return read(self, path)
type(REAL).read = fail
"""


class Unwell:
    """Reading a file of which `name` is the beginning fails the next `times`."""

    def __init__(self, name: str, times: int) -> None:
        self.name = name
        self.times = times

    def __call__(self, _number: int, call: str, path: Path) -> int | None:
        if call != "read" or not path.name.startswith(self.name) or not self.times:
            return None
        self.times -= 1
        return errno.EIO


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, State]]:
    """A directory with two snapshots, a model that they name, and frames after them; and the state it holds."""
    monkeypatch.setattr("persistence.disk._READ_PAUSE_SECONDS", 0.0)
    directory, rng, state, ledger = tmp_path / "state", random.Random(3), State(), Ledger()
    with open_store(directory) as store:
        list(store.recover().entries)
        store.start_journal(0, 0)
        model = store.adopt_model(toy_model(REAL, store.training, 1, b"weights"))
        for step in range(6):
            entries = ledger.next_entries(rng, state)
            store.append(entries)
            for entry in entries:
                state = state.after(entry)
            if step in (1, 3):
                save(store, state, (model.name,))
    yield directory, state


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def in_full(directory: Path) -> State:
    with open_store(directory) as store:
        found = store.recover()
        state = fold(restored(found), list(found.entries))
        assert (found.lost_lines, found.set_aside, found.notes) == (0, [], [])
        assert len(found.models) == 1
    return state


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_that_fails_for_a_moment_is_repeated_without_a_note(kept: tuple[Path, State], kind: str) -> None:
    directory, state = kept
    with open_store(directory, disk=FaultyDisk(Unwell(kind, 2))) as store:
        found = store.recover()
        assert fold(restored(found), list(found.entries)) == state
        assert (found.lost_lines, found.set_aside, found.notes, len(found.models)) == (0, [], [], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_retry_that_read_would_fail(
    kept: tuple[Path, State], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the one above."""
    monkeypatch.setattr("persistence.disk._READ_TRIES", 1)
    # One of its reads is only for a hint, and may fail: where a snapshot's header says how far it reached.
    with open_store(kept[0], disk=FaultyDisk(Unwell(kind, 6))) as store:
        try:
            found = store.recover()
            list(found.entries)
            said = found.notes
        except (JournalError, StoreError) as exc:
            said = [str(exc)]
    assert any("cannot be read" in what for what in said)


def test_an_unreadable_segment_is_refused_and_nothing_changes(kept: tuple[Path, State]) -> None:
    directory, state = kept
    before = names(directory)
    with open_store(directory, disk=FaultyDisk(Unwell("journal-", 1000))) as store:
        with pytest.raises(JournalError, match=r"journal-\d+\.log: cannot be read: Input/output error; it was left"):
            list(store.recover().entries)
    assert names(directory) == before
    assert in_full(directory) == state


def test_an_older_snapshot_takes_the_place_of_one_that_cannot_be_read(kept: tuple[Path, State]) -> None:
    directory, state = kept
    newest = max(path.name for path in directory.glob("snapshot-*"))
    before = names(directory)
    with open_store(directory, disk=FaultyDisk(Unwell(newest, 1000))) as store:
        found = store.recover()
        assert fold(restored(found), list(found.entries)) == state
        assert (found.lost_lines, found.set_aside) == (0, [])
        assert found.notes == [f"{newest}: cannot be read: Input/output error; it was left as it is"]
    assert names(directory) == before
    assert in_full(directory) == state


def test_an_unreadable_snapshot_is_refused_if_the_journal_does_not_reach_back_to_an_older_one(
    kept: tuple[Path, State],
) -> None:
    directory, state = kept
    before = names(directory)
    with open_store(directory, disk=FaultyDisk(Unwell("snapshot-", 1000))) as store:
        with pytest.raises(StoreError, match="cannot be read"):
            store.recover()
    assert names(directory) == before
    newest = max(path.name for path in directory.glob("snapshot-*"))
    oldest_segment = min(directory.glob("journal-*"))
    oldest_segment.rename(directory / "elsewhere")
    with open_store(directory, disk=FaultyDisk(Unwell(newest, 1000))) as store:
        with pytest.raises(StoreError, match=f"{newest}: cannot be read"):
            store.recover()
    (directory / "elsewhere").rename(oldest_segment)
    assert in_full(directory) == state


@pytest.mark.parametrize("kind", ["journal-", "model-"])
def test_the_daemon_refuses_in_one_line_and_has_everything_when_the_disk_is_well(tmp_path: Path, kind: str) -> None:
    lines = sample_lines()
    gate = tmp_path / "gate"
    with vigild(tmp_path, warmup=1000) as daemon:
        alter(daemon, BRIEF_TRAINING)
        daemon.start()
        daemon.send_lines(lines[:1200])
        if kind == "model-":
            daemon.wait_for_model()
        daemon.send_lines(lines[1200:1300])
        daemon.applied(1300)
        daemon.kill()
        # A segment without a frame makes room for the next that begins there.
        # Nor is what a kill left of a snapshot under way.
        files = (path for path in daemon.state.iterdir() if path.suffix != ".tmp")
        before = {path.name for path in files if path.stat().st_size > HEADER_BYTES}
        alter(daemon, UNREADABLE.format(name=kind, gate=str(gate)))
        said = refused(daemon)
        assert said.startswith(f"vigild: {daemon.state}/{kind}") and "Input/output error" in said
        assert before <= set(names(daemon.state)) and not list(daemon.state.glob("*.bad"))
        restore(daemon)
        daemon.start()
        recovery = daemon.status()["recovery"]
        assert (recovery["tier"], recovery["lost_lines"], recovery["set_aside"]) == ("full", 0, [])
        assert daemon.status()["logs_processed"] == 1300


def refused(daemon: Vigild) -> str:
    """Its last line of output, after it ended by itself with status 1."""
    before = len(daemon.log)
    daemon.launch()
    assert daemon.process is not None and daemon.process.wait(60.0) == 1
    said = daemon.log[before:]
    assert "Traceback" not in said
    return said.splitlines()[-1]
