"""Files that a later version of the program wrote: refused in one line, and left as they are."""

import hashlib
import io
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.running import vigild
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


def contents(state: Path) -> dict[str, bytes]:
    files = (path for path in state.iterdir() if path.is_file() and path.name != "lock")
    return {path.name: path.read_bytes() for path in files if path.stat().st_size}


@pytest.mark.parametrize("make_newer", [newer_snapshot, newer_journal, newer_state, newer_model])
def test_a_later_format_is_refused_and_left_untouched(tmp_path: Path, make_newer: Callable[[Path], Path]) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    with tarfile.open(GOLDEN) as archive:
        archive.extractall(state, filter="data")
    shutil.copytree(state, tmp_path / "before" / "state")
    with vigild(tmp_path) as daemon:
        newer = make_newer(state)
        before = contents(state)
        daemon.launch()
        assert daemon.process is not None
        assert daemon.process.wait(60.0) == 1
        said = daemon.log.splitlines()[-1]
        assert said.startswith("vigild: ") and "Traceback" not in daemon.log
        assert re.search(r"has format \d+, this program knows formats up to \d+; use a newer vigild$", said)
        assert newer.name in said or make_newer is newer_state
        assert contents(state) == before
    # The control: what was not made newer is loaded.
    with vigild(tmp_path / "before") as daemon:
        assert daemon.start().status()["recovery"]["tier"] == "full"
