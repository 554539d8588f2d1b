"""Files that another version of the program wrote: refused in one line, and left as they are."""

import hashlib
import io
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from benchmarks.running import vigild
from detection.frames import ModelFrame
from detection.state import FORMAT
from persistence import model_file, segment, snapshot
from persistence.preamble import SIZE, pack_preamble

GOLDEN = Path(__file__).parent.parent / "golden" / "state-1.tar.xz"


def newer_snapshot(state: Path) -> Path:
    path = sorted(state.glob("snapshot-*"))[-1]
    path.write_bytes(pack_preamble(snapshot.MAGIC, snapshot.VERSION + 1) + path.read_bytes()[SIZE:])
    return path


def newer_journal(state: Path) -> Path:
    path = sorted(state.glob("journal-*"))[-1]
    path.write_bytes(pack_preamble(segment.MAGIC, segment.VERSION + 1) + path.read_bytes()[SIZE:])
    return path


def newer_state(state: Path) -> Path:
    """The file is one of today's, what is in it is not."""
    path = sorted(state.glob("snapshot-*"))[-1]
    seq, line, columns = snapshot.read_snapshot(path)
    _, models = snapshot.check_snapshot(path)
    snapshot.write_snapshot(path, seq, line, {**columns, "format": FORMAT + 1}, models=models)
    return path


def newer_model(state: Path) -> Path:
    """Nothing but a model of a later version is there: it would be used for want of a state."""
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
    seq, line, columns = snapshot.read_snapshot(path)
    _, models = snapshot.check_snapshot(path)
    del columns["sessions.last_time"]
    snapshot.write_snapshot(path, seq, line, columns, models=models)
    return path


def other_model(state: Path) -> Path:
    """The one that the newest snapshot names, with a layer more."""
    [path] = state.glob("model-*.pt")
    columns = model_file.read_model(path)
    path.unlink()
    columns["parts.transformer/2.mix.bias"] = columns["parts.transformer/1.mix.bias"]
    written = model_file.write_model(state, columns)
    newest = sorted(state.glob("snapshot-*"))[-1]
    seq, line, columns = snapshot.read_snapshot(newest)
    in_force = msgspec.json.decode(columns["model"], type=ModelFrame)  # type: ignore[arg-type]
    columns["model"] = msgspec.json.encode(ModelFrame(in_force.generation, written.name, written.sha256))
    snapshot.write_snapshot(newest, seq, line, columns, models=[written.name])
    return state / written.name


def contents(state: Path) -> dict[str, bytes]:
    files = (path for path in state.iterdir() if path.is_file() and path.name != "lock")
    return {path.name: path.read_bytes() for path in files if path.stat().st_size}


LATER = r"has format \d+, this program knows formats up to \d+; use a newer vigild$"
OTHER = r"its \w+ are not .*; use the vigild that wrote it, or another state directory$"


@pytest.mark.parametrize(
    ("make_other", "reason"),
    [
        (newer_snapshot, LATER),
        (newer_journal, LATER),
        (newer_state, LATER),
        (newer_model, LATER),
        (other_state, OTHER),
        (other_model, OTHER),
    ],
)
def test_what_another_version_wrote_is_refused_and_left_untouched(
    tmp_path: Path, make_other: Callable[[Path], Path], reason: str
) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    with tarfile.open(GOLDEN) as archive:
        archive.extractall(state, filter="data")
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
        left = contents(state)
        if make_other is other_model:
            # It is loaded while lines are taken already, which stay: the journal has only grown.
            assert all(left.get(name, b"").startswith(data) for name, data in before.items())
            assert not list(state.glob("*.bad"))
        else:
            assert left == before
    # The control: what was not changed is loaded.
    with vigild(tmp_path / "before") as daemon:
        assert daemon.start().status()["recovery"]["tier"] == "full"
