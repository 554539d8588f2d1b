"""The trainer as the daemon runs it: a process with pipes at standard input and output."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.trainer import ORPHANED, Notebook, training_program
from detection.models.model import from_columns
from persistence.model_file import read_model
from persistence.snapshot_file import write_snapshot
from persistence.training_files import partial_result_path, read_partial_result, write_partial_result
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


def test_it_dies_when_its_parent_closes_its_standard_input(tmp_path: Path) -> None:
    with _trainer(_input(tmp_path / "set", 2000, full=True), tmp_path) as process:
        assert process.stdin is not None and process.stdout is not None
        while "transformer" not in process.stdout.readline():  # until it is in the middle of the work
            assert process.poll() is None
        process.stdin.close()
        assert process.wait(10) == ORPHANED
    assert not list(tmp_path.glob("model-*"))


def _killed_in_the_middle(source: Path, target: Path) -> float:
    """Run it until it has written a partial result, and kill it; returns the fraction of that."""
    with _trainer(source, target) as process:
        assert process.stdout is not None
        while not partial_result_path(source).exists():
            assert process.stdout.readline()
    notes = read_partial_result(source, None)
    assert notes is not None
    return notes.fraction


def _resumed(source: Path, target: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What it says first: that it goes on, or why not; and its first progress."""
    with _trainer(source, target) as process:
        assert process.stdout is not None
        said: list[dict[str, Any]] = []
        while "stage" not in (said[-1] if said else {}):
            said.append(json.loads(process.stdout.readline()))
    return [message for message in said if "stage" not in message], [each for each in said if "stage" in each]


def test_a_killed_run_resumes_at_its_partial_result_and_reports_it(tmp_path: Path) -> None:
    source = _input(tmp_path / "training-3.msgpack", 2000, full=True)
    fraction = _killed_in_the_middle(source, tmp_path)
    first, progress = _resumed(source, tmp_path)
    assert first == [{"resumed": round(fraction, 4)}]
    assert progress[0]["fraction"] >= first[0]["resumed"] > 0.0


@pytest.mark.parametrize("damage", ["rot", "cut off", "another input", "another program", "nothing there"])
def test_an_unusable_partial_result_is_reported_and_costs_only_the_work(tmp_path: Path, damage: str) -> None:
    source = _input(tmp_path / "training-3.msgpack", 400, full=True)
    write_partial_result(source, training_program(), 0.4, {"loss": 1.0})
    path, expected = partial_result_path(source), []
    match damage:
        case "rot":
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
            expected = [{"note": f"beginning anew: {path}: checksum mismatch over {len(data) - 76} bytes"}]
        case "cut off":
            path.write_bytes(path.read_bytes()[:50])
            expected = [{"note": f"beginning anew: {path}: cut off in its header"}]
        case "another input":
            _input(source, 401, full=True)
            expected = [{"note": f"beginning anew: {path}: is of another training set"}]
        case "another program":
            write_partial_result(source, training_program().replace("torch 2", "torch 1"), 0.4, {"loss": 1.0})
            what = "was begun by another version of the program or of its libraries"
            expected = [{"note": f"beginning anew: {path}: {what}"}]
        case _:
            path.unlink()
    first, progress = _resumed(source, tmp_path)
    assert first == expected
    assert progress[0]["fraction"] < 0.4


def test_a_disk_too_full_for_the_partial_result_costs_only_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _input(tmp_path / "training-3.msgpack", 40)
    monkeypatch.setattr("daemon.trainer.NOTES_SECONDS", 0.0)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/state/training/training-3.part.tmp")

    notebook = Notebook(source)
    monkeypatch.setattr("persistence.training_files.write_partial_result", full)
    for fraction in (0.1, 0.2):
        notebook.note(fraction, lambda: {})
    (said,) = capsys.readouterr().out.splitlines()
    assert json.loads(said)["note"] == (
        "a restart will resume at 0%, which was written last: "
        "/state/training/training-3.part.tmp: No space left on device; free some space there"
    )
    assert not partial_result_path(source).exists()


def test_a_partial_result_is_whole_or_the_previous_one(tmp_path: Path) -> None:
    source = _input(tmp_path / "training-3.msgpack", 40)
    write_partial_result(source, "us", 0.25, {"kept": 1})
    unfinished = partial_result_path(source).with_name(partial_result_path(source).name + ".tmp")
    unfinished.write_bytes(partial_result_path(source).read_bytes()[:100])  # as a kill leaves it
    notes = read_partial_result(source, "us")
    assert notes is not None and (notes.fraction, notes.work) == (0.25, {"kept": 1})
    write_partial_result(source, "us", 0.5, {"kept": 2})
    notes = read_partial_result(source, "us")
    assert notes is not None and (notes.fraction, notes.work) == (0.5, {"kept": 2})
    assert not unfinished.exists()


def test_a_partial_result_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _input(tmp_path / "training-3.msgpack", 40)
    monkeypatch.setattr("persistence.training_files.MAX_PARTIAL_BYTES", 1000)
    write_partial_result(source, "us", 0.25, {"kept": np.zeros(125)})
    with pytest.raises(ValueError, match="1008 bytes"):
        write_partial_result(source, "us", 0.5, {"kept": np.zeros(126)})
    notes = read_partial_result(source, "us")
    assert notes is not None and notes.fraction == 0.25


def test_signals_for_the_daemon_that_reach_it_do_not_end_it(tmp_path: Path) -> None:
    with _trainer(_input(tmp_path / "set", 2000, full=True), tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            process.send_signal(number)
        for _ in range(2):
            assert "stage" in json.loads(process.stdout.readline())
