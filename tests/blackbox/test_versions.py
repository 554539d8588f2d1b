"""Files that another version of the program wrote: of an older one, upgraded; of a later one, or of none that is
known, refused in one line and left as they are."""

import hashlib
import io
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from benchmarks.running import sample_lines, vigild
from detection.columns.layout_upgrades import STATES
from detection.frames import ModelFrame
from persistence import journal_segment, model_file, snapshot_file
from persistence.format_preamble import SIZE, pack_preamble
from tests.faults.altered import BRIEF_TRAINING, alter, restore

GOLDEN = Path(__file__).parent.parent / "golden" / "state-1.tar.xz"
LINES = 1701  # in it

# A program of the next layout: its state has a part more.
NEXT = """
import detection.columns.layout_upgrades as upgrades
from detection.detector import Detector
from detection.columns.state_columns import layout_hash
newest, export = upgrades.STATES.newest, Detector.export
upgrades.LAYOUTS[newest + 1] = {**upgrades.LAYOUTS[newest], "later": layout_hash({"members": b""})}
upgrades.UPGRADES[newest] = lambda state: {**state, "later.members": b"[]"}
Detector.export = lambda self: {**export(self), "later.members": b"[]"}
"""
# A program whose models have another layout, without an upgrade for older ones.
OTHER_MODELS = """
import detection.columns.layout_upgrades as upgrades
newest = upgrades.MODELS.newest
upgrades.MODEL_LAYOUTS[newest + 1] = {**upgrades.MODEL_LAYOUTS[newest], "ngram": "00000000"}
"""


def newer_snapshot(state: Path) -> Path:
    path = sorted(state.glob("snapshot-*"))[-1]
    path.write_bytes(pack_preamble(snapshot_file.MAGIC, snapshot_file.VERSION + 1) + path.read_bytes()[SIZE:])
    return path


def newer_journal(state: Path) -> Path:
    path = sorted(state.glob("journal-*"))[-1]
    path.write_bytes(pack_preamble(journal_segment.MAGIC, journal_segment.VERSION + 1) + path.read_bytes()[SIZE:])
    return path


def newer_state(state: Path) -> Path:
    """A file of today's format with contents of a later version."""
    path = sorted(state.glob("snapshot-*"))[-1]
    seq, line, columns = snapshot_file.read_snapshot(path)
    _, models = snapshot_file.check_snapshot(path)
    snapshot_file.write_snapshot(path, seq, line, {**columns, "format": STATES.newest + 1}, models=models)
    return path


def newer_model(state: Path) -> Path:
    """Only a model of a later version is there: without a state it would be used."""
    for path in state.iterdir():
        path.unlink()
    buffer = io.BytesIO()
    torch.save({"format": model_file.FORMAT + 1, "columns": {}}, buffer)
    path = state / f"model-1-{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.pt"
    path.write_bytes(buffer.getvalue())
    return path


def other_state(state: Path) -> Path:
    """A column is missing, as between two versions that gave their states the same number."""
    path = sorted(state.glob("snapshot-*"))[-1]
    seq, line, columns = snapshot_file.read_snapshot(path)
    _, models = snapshot_file.check_snapshot(path)
    del columns["sessions.last_time"]
    snapshot_file.write_snapshot(path, seq, line, columns, models=models)
    return path


def other_model(state: Path) -> Path:
    """The one that the newest snapshot names, with a layer more."""
    [path] = state.glob("model-*.pt")
    columns = model_file.read_model(path)
    path.unlink()
    columns["parts.transformer/2.mix.bias"] = columns["parts.transformer/1.mix.bias"]
    written = model_file.write_model(state, columns)
    newest = sorted(state.glob("snapshot-*"))[-1]
    seq, line, columns = snapshot_file.read_snapshot(newest)
    in_force = msgspec.json.decode(columns["model"], type=ModelFrame)  # type: ignore[arg-type]
    columns["model"] = msgspec.json.encode(ModelFrame(in_force.generation, written.name, written.sha256))
    snapshot_file.write_snapshot(newest, seq, line, columns, models=[written.name])
    return state / written.name


def unpacked(home: Path) -> Path:
    """The state directory of version 1, in `home`."""
    state = home / "state"
    state.mkdir(mode=0o700)
    with tarfile.open(GOLDEN) as archive:
        archive.extractall(state, filter="data")
    return state


def contents(state: Path) -> dict[str, bytes]:
    files = (path for path in state.iterdir() if path.is_file() and path.name != "lock")
    return {path.name: path.read_bytes() for path in files if path.stat().st_size}


LATER = r"has format \d+, this program knows formats up to \d+; use a newer vigild$"
OTHER = r"the columns of its \w+ are not .*; use the vigild that wrote it, or another state directory$"


@pytest.mark.parametrize(
    ("make_other", "reason"),
    [
        (newer_snapshot, LATER),
        (newer_journal, LATER),
        (newer_state, LATER),
        (newer_model, LATER),
        (other_state, OTHER),
    ],
)
def test_what_another_version_wrote_is_refused_and_left_untouched(
    tmp_path: Path, make_other: Callable[[Path], Path], reason: str
) -> None:
    state = unpacked(tmp_path)
    shutil.copytree(state, tmp_path / "before" / "state")
    with vigild(tmp_path) as daemon:
        other = make_other(state)
        before = contents(state)
        daemon.launch()
        assert daemon.process is not None
        assert daemon.process.wait(60.0) == 1
        said = daemon.log.splitlines()[-1]
        assert said.startswith("vigild: ") and "Traceback" not in daemon.log
        assert re.search(reason, said) and str(other) in said
        assert contents(state) == before
    # The control: what was not changed is loaded.
    with vigild(tmp_path / "before") as daemon:
        assert daemon.start().status()["recovery"]["tier"] == "full"


def test_a_directory_is_upgraded_by_the_next_version_and_refused_by_the_previous_one(tmp_path: Path) -> None:
    state = unpacked(tmp_path)
    early = min(path.name for path in state.glob("snapshot-*"))
    with vigild(tmp_path) as daemon:
        alter(daemon, NEXT)
        status = daemon.start().status()
        assert (status["recovery"]["tier"], status["recovery"]["notes"]) == ("full", [])
        assert (status["logs_processed"], status["transformer_ready"]) == (LINES, True)
        # An old snapshot is restored, and the restore is replayed; line numbers go on.
        assert daemon.api.post(f"/snapshots/{early}/restore").status_code == 200
        max(state.glob("snapshot-*")).unlink()
        daemon.send_lines(sample_lines()[LINES : LINES + 10])
        daemon.applied(LINES + 10)
        daemon.kill()
        status = daemon.start().status()
        assert (status["recovery"]["tier"], status["logs_processed"]) == ("full", LINES + 10)
        assert not status["transformer_ready"]  # of the early snapshot
        taken = daemon.post("/checkpoint")["path"]
        assert snapshot_file.read_snapshot(Path(taken))[2]["format"] == STATES.newest + 1
        assert daemon.stop() == 0

        before = contents(state)
        restore(daemon)
        daemon.launch()
        assert daemon.process is not None and daemon.process.wait(60.0) == 1
        assert re.search(LATER, daemon.log.splitlines()[-1]) and "Traceback" not in daemon.log
        assert contents(state) == before

        alter(daemon, NEXT)
        assert daemon.start().status()["recovery"]["tier"] == "full"


@pytest.mark.parametrize(
    ("make_other", "code", "why"),
    [
        (other_model, "", "the columns of its transformer are not those that this program keeps"),
        (lambda state: next(state.glob("model-*")), OTHER_MODELS, "nothing brings format"),
    ],
)
def test_a_model_that_cannot_be_upgraded_is_set_aside_and_everything_else_is_kept(
    tmp_path: Path, make_other: Callable[[Path], Path], code: str, why: str
) -> None:
    state = unpacked(tmp_path)
    shutil.copytree(state, tmp_path / "before" / "state")
    model = make_other(state)
    arrays = model.read_bytes()
    with vigild(tmp_path) as daemon:
        alter(daemon, code)
        status = daemon.start().status()
        recovery = status["recovery"]
        assert (recovery["tier"], recovery["lost_lines"], recovery["set_aside"]) == ("partial", 0, [model.name])
        [aside, without] = recovery["notes"]
        assert aside.startswith(f"{model.name}: ") and why in aside and aside.endswith(f"as {model.name}.bad")
        assert without == "model generation 1 cannot be used by this version, only rules judge until retrained"
        assert (state / f"{model.name}.bad").read_bytes() == arrays and not model.exists()
        assert (status["logs_processed"], status["transformer_ready"]) == (LINES, False)
        came_along = known(status)
        daemon.send_lines(sample_lines()[LINES : LINES + 10])
        daemon.applied(LINES + 10)
        assert daemon.stop() == 0
        recovery = daemon.start().status()["recovery"]  # it is reported once, and the state goes on from there
        assert (recovery["tier"], recovery["set_aside"], recovery["notes"]) == ("full", [], [])
    # The control: with the model as it was, which this program can use, it judges, and all else is the same.
    with vigild(tmp_path / "before") as daemon:
        status = daemon.start().status()
        assert (status["recovery"]["tier"], status["transformer_ready"]) == ("full", True)
        assert known(status) == came_along


def known(status: dict[str, Any]) -> dict[str, Any]:
    """What came along besides the model."""
    templates = {**status["templates"], "in_model": None}
    return {**{name: status[name] for name in ("logs_processed", "sessions")}, "templates": templates}


def test_a_model_that_could_not_be_upgraded_is_trained_again(tmp_path: Path) -> None:
    state = unpacked(tmp_path)
    other_model(state)
    with vigild(tmp_path, warmup=1500) as daemon:
        alter(daemon, BRIEF_TRAINING)
        daemon.start()
        daemon.wait_for_model()
        [path] = state.glob("model-*.pt")
        assert path.name.startswith("model-2-")
