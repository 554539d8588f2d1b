"""The trainer as the daemon meets it: a process with a pipe at either end."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daemon.trainer import ORPHANED
from detection.model import from_columns
from persistence.model_file import read_model
from persistence.snapshot import write_snapshot
from tests.detection.streams import stream

SECONDS = 120


def _input(path: Path, sessions: int, *, full: bool = False) -> Path:
    data = stream([[1, 2, 3]] * sessions, full=full)
    write_snapshot(path, 1, data.line, data.to_columns())
    return path


@contextmanager
def _trainer(source: Path, target: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "daemon.trainer", str(source), str(target)]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_reports_progress_and_ends_with_the_model_it_wrote(tmp_path: Path) -> None:
    with _trainer(_input(tmp_path / "set", 40), tmp_path) as process:
        assert process.stdout is not None
        messages = [json.loads(line) for line in process.stdout]
        assert process.wait(SECONDS) == 0
    *progress, last = messages
    assert [step["fraction"] for step in progress] == sorted(step["fraction"] for step in progress)
    assert all(set(step) == {"stage", "epoch", "epochs", "loss", "fraction", "seconds_left"} for step in progress)
    model = from_columns(read_model(tmp_path / last["done"]["name"], last["done"]["sha256"]))
    assert model.vocabulary.tolist() == [1, 2, 3]


def test_too_little_data_is_an_error_in_one_line(tmp_path: Path) -> None:
    with _trainer(_input(tmp_path / "set", 3), tmp_path) as process:
        assert process.stdout is not None
        (line,) = process.stdout.read().splitlines()
        assert process.wait(SECONDS) == 1
    assert json.loads(line)["error"].startswith("3 clean sessions are too few")


def test_a_damaged_input_is_an_error_in_one_line(tmp_path: Path) -> None:
    damaged = _input(tmp_path / "set", 40)
    damaged.write_bytes(damaged.read_bytes()[:-7])
    with _trainer(damaged, tmp_path) as process:
        assert process.stdout is not None
        (line,) = process.stdout.read().splitlines()
        assert process.wait(SECONDS) == 1
    assert str(damaged) in json.loads(line)["error"]


def test_it_dies_when_its_parent_lets_go(tmp_path: Path) -> None:
    with _trainer(_input(tmp_path / "set", 2000, full=True), tmp_path) as process:
        assert process.stdin is not None and process.stdout is not None
        while "transformer" not in process.stdout.readline():  # until it is in the middle of the work
            assert process.poll() is None
        process.stdin.close()
        assert process.wait(10) == ORPHANED
    assert not list(tmp_path.glob("model-*"))
