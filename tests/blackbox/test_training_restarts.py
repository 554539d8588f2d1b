"""The real daemon, killed while its trainer works: the training resumes, to the same model."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.running import Vigild, sample_lines, vigild
from persistence.training_files import PartialError, read_partial_result

pytestmark = pytest.mark.timeout(1500)  # the trainer yields to everyone

SECONDS = 600.0
KILLS = 2
UP_TO = 0.85  # a training that is nearly over may be over before it is looked at again


def training(daemon: Vigild) -> dict[str, Any]:
    found: dict[str, Any] = daemon.status()["training"]
    return found


def noted(source: Path) -> float:
    """The fraction in the partial result of the run on `source`, 0 without one."""
    try:
        notes = read_partial_result(source, None)
    except PartialError:
        return 0.0
    return notes.fraction if notes is not None else 0.0


def kept(daemon: Vigild) -> Path:
    (source,) = (daemon.state / "training").glob("training-*.msgpack")
    return source


def begin(daemon: Vigild) -> Path:
    """Start a training, and return its training set once there is a partial result."""
    daemon.start()
    daemon.send_lines(sample_lines()[:2500])
    daemon.wait(lambda: any((daemon.state / "training").glob("*.part")), SECONDS)
    return kept(daemon)


def test_a_training_interrupted_by_kills_resumes_and_gives_the_model_of_an_uninterrupted_one(tmp_path: Path) -> None:
    with vigild(tmp_path, warmup=2000) as daemon:
        source = begin(daemon)
        shutil.copy(source, copy := tmp_path / "training-1.msgpack")
        reached, resumed = 0.0, 0
        while resumed < KILLS:
            daemon.wait(lambda reached=reached: noted(source) > reached, SECONDS)  # type: ignore[misc]
            daemon.kill()
            reached = noted(source)
            if reached > UP_TO:
                break
            daemon.start()
            daemon.wait(lambda: training(daemon)["resumed_from"] is not None, SECONDS)
            assert training(daemon)["resumed_from"] >= round(reached, 4)
            resumed += 1
        assert resumed > 0
        if daemon.process is not None and daemon.process.poll() is not None:
            daemon.start()
        daemon.wait_for_model()
        after = training(daemon)
        assert (after["error"], after["failures_total"], after["attempts"]) == (None, 0, 0)
        # Removed one after the other, once the model is in force.
        daemon.wait(lambda: not list((daemon.state / "training").iterdir()), SECONDS)
        models = {path.name for path in daemon.state.glob("model-*.pt")}
    command = [sys.executable, "-m", "daemon.trainer", str(copy), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as trainer:
        try:
            assert trainer.wait(SECONDS) == 0
        finally:
            trainer.kill()
    (undisturbed,) = (path.name for path in tmp_path.glob("model-*.pt"))
    assert undisturbed in models, "the name holds the hash of its bytes"


def test_without_its_partial_result_a_training_starts_over_and_a_stop_does_not_wait_for_it(tmp_path: Path) -> None:
    """The control of the test above; and a clean stop, for once."""
    with vigild(tmp_path, warmup=2000) as daemon:
        source = begin(daemon)
        assert noted(source) > 0.0
        assert daemon.stop() == 0
        source.with_suffix(".part").unlink()
        daemon.start()
        daemon.wait(lambda: training(daemon)["stage"] not in (None, "starting"), SECONDS)
        assert training(daemon)["resumed_from"] is None
        assert kept(daemon) == source
