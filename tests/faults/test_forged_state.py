"""State with sound checksums that holds what cannot be, in the real daemon: set aside by name, and it starts."""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks.running import Vigild, vigild
from daemon.startup.detector_recovery import load_knowledge
from daemon.startup.startup_scan import check_snapshot_columns
from detection.columns.state_columns import OtherVersionError
from detection.detector_state import Parts
from persistence.journal_segment import Entry
from persistence.model_file import read_model, write_model
from persistence.snapshot_file import SnapshotError, check_snapshot, read_snapshot, write_snapshot
from persistence.store import open_store
from tests.faults.altered import alter

GOLDEN = Path(__file__).parents[1] / "golden" / "state-1.tar.xz"
LINES = 1701  # accepted, all in all

Columns = dict[str, Any]
UNCHECKED = """
import daemon.startup.detector_recovery, daemon.startup.startup_scan
daemon.startup.startup_scan.check_state = lambda state: None
daemon.startup.detector_recovery.check_model = lambda columns: None
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Vigild]:
    """Not started, on a state of two snapshots, a model and some frames."""
    with vigild(tmp_path) as daemon:
        daemon.state.mkdir(mode=0o700)
        with tarfile.open(GOLDEN) as archive:
            archive.extractall(daemon.state, filter="data")
        for path in daemon.state.iterdir():
            path.chmod(0o600)
        yield daemon


def append(daemon: Vigild, *frames: dict[str, Any]) -> None:
    with open_store(daemon.state) as store:
        found = store.recover()
        list(found.entries)
        seq, line = found.last_seq, found.last_line
        store.start_journal(seq, line)
        for number, frame in enumerate(frames, 1):
            store.append([Entry(seq + number, line, 0, msgspec.msgpack.encode(frame))])


def forge_snapshots(
    daemon: Vigild, change: Callable[[dict[str, Any]], None], *, only_newest: bool = False
) -> list[str]:
    paths = sorted(daemon.state.glob("snapshot-*.msgpack"))[-1 if only_newest else 0 :]
    for path in paths:
        seq, line, columns = read_snapshot(path)
        changed: dict[str, Any] = dict(columns)
        change(changed)
        write_snapshot(path, seq, line, changed, models=check_snapshot(path)[1])
    return [path.name for path in paths]


def fill(kind: str, value: float) -> Callable[[Columns], None]:
    """Every array of this kind of dtype becomes `value`, infinity being the largest whole number."""

    def change(columns: Columns) -> None:
        for name, column in columns.items():
            if isinstance(column, np.ndarray) and column.dtype.kind == kind:
                columns[name] = np.full_like(column, value if kind == "f" else np.iinfo(column.dtype).max)

    return change


def recovery(daemon: Vigild) -> dict[str, Any]:
    """Of the start that this makes; the daemon works, and its log holds no traceback."""
    daemon.start()
    found: dict[str, Any] = daemon.status()["recovery"]
    last = daemon.status()["logs_processed"]
    daemon.send_lines([b"one more"])
    daemon.applied(last + 1)
    daemon.post("/checkpoint")
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log, daemon.log
    return found


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "model", "generation": 10**17, "name": "../../x.pt", "sha256": ""},
        {"type": "model", "generation": 7, "name": "/etc/passwd", "sha256": "0" * 64},
        {"type": "exec", "cmd": "id"},
    ],
    ids=["model with a path", "model that is no model", "no frame"],
)
def test_a_frame_that_names_what_cannot_be_is_set_aside_and_counted(daemon: Vigild, frame: dict[str, Any]) -> None:
    append(daemon, frame, {"type": "tick", "received": 1.8e9})
    found = recovery(daemon)
    assert found["lost_lines"] == 0 and found["tier"] == "partial"
    [kept] = found["set_aside"]
    assert kept.startswith("frame-") and kept.endswith(".bad")
    assert (daemon.state / kept).read_bytes() == msgspec.msgpack.encode(frame)
    assert daemon.log.count("cannot be applied, it is set aside and skipped: ") == 1
    # The decision is journaled.
    assert recovery(daemon)["set_aside"] == []


def test_without_that_the_daemon_does_not_start(daemon: Vigild) -> None:
    append(daemon, {"type": "model", "generation": 10**17, "name": "../../x.pt", "sha256": ""})
    alter(
        daemon,
        "import daemon.startup.detector_recovery as module\nmodule.OSError = Exception\n",  # none is the frame's fault
    )
    daemon.launch()
    assert daemon.process is not None and daemon.process.wait(60.0) == 1
    assert "is not the name of a model file" in daemon.log


def test_a_restore_that_names_a_path_is_lost_knowledge_and_reads_nothing(daemon: Vigild) -> None:
    append(daemon, {"type": "restore", "name": "../../etc/passwd", "sha256": "0" * 64})
    found = recovery(daemon)
    assert found["tier"] == "partial" and found["lost_lines"] == 0
    assert any("is not the name of a snapshot" in note for note in found["notes"])


POISON = {
    "nan": fill("f", np.nan),
    "huge": fill("i", np.inf),
    "texts": lambda columns: columns.update({n: b"\xff" for n, v in columns.items() if type(v) is bytes}),
    "a row less": lambda columns: columns.update({"recent.starts": columns["recent.starts"][:-1].copy()}),
    "a column less": lambda columns: columns.update({"values.counts": columns["values.counts"][..., :1].copy()}),
    "JSON of another kind": lambda columns: columns.update({"known.answers": np.frombuffer(b"[5]", np.uint8).copy()}),
    "settings": lambda columns: columns.update(settings=b'{"session":{"window":0}}'),
    "rules": lambda columns: columns.update(rules=b'[{"name":"x","text":"[[rule"}]'),
    "a number for a truth": lambda columns: columns.update({"clock.timed": 5}),
    "model": lambda columns: columns.update(model=columns["model"].replace(b"model-1-", b"../../x-")),
}


@pytest.mark.parametrize("poison", POISON)
def test_a_snapshot_that_holds_what_cannot_be_is_set_aside_and_nothing_is_lost(daemon: Vigild, poison: str) -> None:
    [name] = forge_snapshots(daemon, POISON[poison], only_newest=True)
    found = recovery(daemon)
    assert (found["tier"], found["lost_lines"], found["set_aside"]) == ("full", 0, [name])
    assert found["snapshot_line"] == 500  # the older one, and the journal from there
    assert any(note.startswith(f"{name}: column ") for note in found["notes"])


def test_a_forged_snapshot_is_not_restored(daemon: Vigild) -> None:
    [name] = forge_snapshots(daemon, POISON["a row less"], only_newest=True)
    with open_store(daemon.state, check=check_snapshot_columns) as store:
        with pytest.raises(SnapshotError, match=r"column recent\.starts has 65535 rows and not 65536"):
            load_knowledge(store, name)
    with open_store(daemon.state) as store, pytest.raises(OtherVersionError):  # the control
        Parts.load(load_knowledge(store, name)[1].state)


def test_when_no_snapshot_is_sound_what_the_journal_holds_is_used_and_the_rest_counted_as_lost(daemon: Vigild) -> None:
    names = forge_snapshots(daemon, POISON["nan"])
    found = recovery(daemon)
    assert found["tier"] == "partial" and sorted(found["set_aside"]) == sorted(names)
    assert (found["lost_lines"], found["replayed_lines"]) == (500, LINES - 500)


def test_a_model_of_nan_is_set_aside_and_rules_judge(daemon: Vigild) -> None:
    [path] = daemon.state.glob("model-*.pt")
    columns: dict[str, Any] = read_model(path)
    fill("f", np.nan)(columns)
    path.unlink()
    forged = write_model(daemon.state, columns)

    def refer(columns: dict[str, Any]) -> None:
        old = msgspec.json.decode(columns["model"])
        columns["model"] = msgspec.json.encode({**old, "name": forged.name, "sha256": forged.sha256})

    forge_snapshots(daemon, refer, only_newest=True)
    found = recovery(daemon)
    assert found["tier"] == "partial" and found["set_aside"] == [forged.name]
    assert any("column parts." in note and "is lost, only rules judge" in note for note in found["notes"])


def test_unchecked_a_state_of_nan_loads_as_full_and_silently(daemon: Vigild) -> None:
    """The control."""
    forge_snapshots(daemon, POISON["nan"])
    alter(daemon, UNCHECKED)
    daemon.start()
    found = daemon.status()["recovery"]
    assert (found["tier"], found["set_aside"], found["notes"]) == ("full", [], [])
