"""State directories of released formats load for ever; `make.py` makes them."""

import json
import tarfile
from pathlib import Path

import pytest

from daemon.finding import find
from daemon.recovery import load_knowledge, recover
from detection.detector import Detector
from detection.state import digest
from persistence.store import open_store

GOLDEN = sorted(Path(__file__).parent.glob("*.json"))


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, object]]:
    """The directory and what is in it."""
    expected: Path = request.param
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    with tarfile.open(expected.with_suffix(".tar.xz")) as archive:
        archive.extractall(directory, filter="data")
    return directory, json.loads(expected.read_bytes())


def test_there_is_one() -> None:
    assert GOLDEN


def test_it_recovers_in_full(golden: tuple[Path, dict[str, object]]) -> None:
    directory, expected = golden
    with open_store(directory) as store:
        found = find(store)
        recovered = recover(store, found, lambda _: None, lambda: None)
        report = recovered.report
        assert (report.tier, report.lost_lines, report.set_aside, report.notes) == ("full", 0, [], [])
        assert (report.snapshot_line, found.line) == (expected["line"], expected["last_line"])
        assert recovered.detector.summary().generation == 1
        assert all(error is None for _, error in store.verify())
        store.start_journal(found.seq, found.line)
        assert found.living == recovered.detector.living_sources()


def test_its_snapshots_hold_the_state_they_were_made_of(golden: tuple[Path, dict[str, object]]) -> None:
    """To the bit. What is replayed after it need not be: another processor may round a score otherwise."""
    directory, expected = golden
    with open_store(directory) as store:
        store.recover()
        early, late = sorted(info.name for info in store.snapshots())
        assert early == expected["early"]
        knowledge = load_knowledge(store, late)[1]
        assert digest(Detector.load(knowledge.state, knowledge.model).export()) == expected["digest"]
        assert load_knowledge(store, early)[1].model is None
