"""State directories of released layouts load for ever; `make.py` makes them, each once."""

import hashlib
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.startup.detector_recovery import load_knowledge, recover_detector
from daemon.startup.startup_scan import scan_directory
from detection.columns.layout_upgrades import MODELS, STATES
from detection.columns.state_columns import Value, digest
from detection.detector import Detector
from detection.frames import RestoreFrame, Sequenced
from persistence.model_file import read_model
from persistence.snapshot_file import read_snapshot
from persistence.store import open_store
from tests.golden import make

GOLDEN = sorted(Path(__file__).parent.glob("*.json"))
# Each as it was released. A line is added here for a new one, none is ever changed.
SHA256 = {
    "state-1": "cd22146752519a286c15c32bff1b3619dc18622ab6b36cfefa4ae97cbde03ae8",
    "state-2": "62bd2f9b4d2af467b22953184f748bbfb9bda1385b9dfb0c27f2c8d060130589",
    "state-3": "212f4849f80e9de43f9d135aabaee295c24d62437678d8be7f300d00974cffd5",
}
# Columns that exist before and after, and to which a step gives another meaning (its docstring says which).
REWRITTEN = {"format"}


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """The directory and what is in it."""
    expected: Path = request.param
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    with tarfile.open(expected.with_suffix(".tar.xz")) as archive:
        archive.extractall(directory, filter="data")
    return directory, json.loads(expected.read_bytes())


def test_each_released_one_is_there_as_it_was_released() -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in make.HERE.glob("*.tar.xz")}
    assert found == {f"{name}.tar.xz": sha256 for name, sha256 in SHA256.items()}
    assert SHA256.keys() == {path.stem for path in GOLDEN}
    # That of today's layout comes with its release; without it nothing keeps the layout from being changed.
    assert {f"state-{number}" for number in range(1, STATES.newest)} <= SHA256.keys()


def test_none_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "HERE", tmp_path)
    shutil.copy(GOLDEN[0].with_suffix(".tar.xz"), tmp_path)
    before = (tmp_path / "state-1.tar.xz").read_bytes()
    with pytest.raises(FileExistsError, match="state-1"):
        make.make("state-1")
    assert (tmp_path / "state-1.tar.xz").read_bytes() == before


def test_it_recovers_in_full(golden: tuple[Path, dict[str, Any]]) -> None:
    directory, expected = golden
    models = list(directory.glob("model-*.pt"))
    with open_store(directory) as store:
        found = scan_directory(store)
        recovered = recover_detector(store, found, lambda _: None, lambda: None)
        report = recovered.report
        # A model need not come along; all else must.
        tier, aside = ("full", []) if has_model(expected) else ("partial", [path.name for path in models])
        assert (report.tier, report.lost_lines, report.set_aside) == (tier, 0, aside)
        assert bool(report.notes) == bool(aside)
        assert (report.snapshot_line, found.line) == (expected["line"], expected["last_line"])
        assert recovered.detector.summary().generation == int(has_model(expected))
        assert all(error is None for _, error in store.verify_snapshots()) == has_model(expected)
        store.start_journal(found.seq, found.line)
        assert found.living == recovered.detector.living_sources()


def test_its_layouts_are_those_of_its_number(golden: tuple[Path, dict[str, Any]]) -> None:
    directory, expected = golden
    _, _, late = read_snapshot(max(directory.glob("snapshot-*")))
    assert late["format"] == expected["state"]["format"]
    assert STATES.differing_parts(late, expected["state"]["format"]) == []
    [path] = directory.glob("model-*.pt")
    assert MODELS.differing_parts(read_model(path), expected["model"]["format"]) == []


def test_its_state_is_brought_to_todays_layout_and_nothing_in_it_is_lost(golden: tuple[Path, dict[str, Any]]) -> None:
    """To the bit. What is replayed after it need not be: another processor may round a score otherwise."""
    directory, expected = golden
    _, _, late = read_snapshot(max(directory.glob("snapshot-*")))
    assert digest(late) == expected["digest"]  # what that version exported
    today = STATES.upgraded(late)
    assert today["format"] == STATES.newest
    lost = [name for name in late if name not in REWRITTEN and not same(late[name], today.get(name))]
    assert lost == []  # a step that drops or changes a column on purpose names it in REWRITTEN
    released = {str(expected["state"]["format"]): expected["digest"], **expected["upgraded"]}
    # A step is as little changed after its release as a layout. Under "upgraded" goes, for a new one:
    assert (STATES.newest, digest(today)) == (STATES.newest, released.get(str(STATES.newest)))


def test_its_snapshots_can_be_loaded_and_gone_back_to(golden: tuple[Path, dict[str, Any]]) -> None:
    directory, expected = golden
    with open_store(directory) as store:
        store.recover()
        early, late = sorted(info.name for info in store.snapshots())
        assert early == expected["early"]
        columns = store.load_snapshot(late)[1]
        model = load_knowledge(store, late)[1].model if has_model(expected) else None
        detector = Detector.load(columns, model)
        assert digest(detector.export()) == digest(STATES.upgraded(columns))
        sha256, knowledge = load_knowledge(store, early)
        assert knowledge.model is None
        seq = detector.seq + 1
        detector.apply(Sequenced(seq, detector.line, RestoreFrame(early, sha256), knowledge=knowledge))
        assert detector.summary().restored == seq and detector.summary().generation == 0


def has_model(expected: dict[str, Any]) -> bool:
    """Whether the model comes along."""
    return MODELS.steps.keys() >= set(range(expected["model"]["format"], MODELS.newest))


def same(one: Value, other: Value) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return digest({"": one}) == digest({"": other})
    return type(one) is type(other) and repr(one) == repr(other)
