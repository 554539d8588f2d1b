"""Training with a real child process: a small script that speaks the trainer's protocol."""

import logging
import math
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from actors.sequencer import submit
from actors.training import TrainingStatus, run_training
from detection.frames import ModelFrame, RefusedFrame, Studied, decode
from detection.model import Model
from persistence.snapshot import read_snapshot
from tests.actors.fakes import FakeStore
from tests.actors.test_checkpoint import Flow, until

TRAINS = """
import json, sys, pathlib
source, models = map(pathlib.Path, sys.argv[1:])
(models / "input").write_bytes(source.read_bytes())
print("a library says hello")
for n in range(101):
    print(json.dumps({"stage": "transformer", "epoch": n // 50 + 1, "epochs": 3, "loss": 1 / (n + 1),
                      "fraction": n / 100, "seconds_left": 100.0 - n}), flush=True)
print("x" * 200_000, file=sys.stderr)
print(json.dumps({"done": {"name": "model-1-0123456789abcdef.pt", "sha256": "ab" * 32}}))
"""
HANGS = """
import json, os, pathlib, sys
print(json.dumps({"stage": "transformer", "fraction": 0.4}), flush=True)
pathlib.Path(sys.argv[2], "pid").write_text(str(os.getpid()))
sys.stdin.read()
"""
WAITS = """
import json, pathlib, sys, time
models = pathlib.Path(sys.argv[2])
while not (models / "go").exists():
    time.sleep(0.01)
print(json.dumps({"done": {"name": "model-1-0123456789abcdef.pt", "sha256": "ab" * 32}}))
"""
SAYS_NO = 'print(\'{"error": "3 sessions are too few"}\'); raise SystemExit(1)'
CRASHES = 'raise RuntimeError("out of cheese")'
DIES = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
SILENT = "pass"


class Training:
    """A flow with training, warm after two lines. `scripts` are the trainers of the runs; the last one stays."""

    def __init__(self, directory: Path, *scripts: str) -> None:
        self.flow = Flow(FakeStore())
        self.flow.detector.warmup_lines = 2
        self.status = TrainingStatus()
        self.directory = directory
        self.scope = trio.CancelScope()
        self.loaded: list[tuple[str, str]] = []
        self.bad_models = 0
        self.pause_seconds = 0.0
        for name in ("training", "models"):
            (directory / name).mkdir()
        for n, script in enumerate(scripts):
            (directory / f"trainer-{n}.py").write_text(script)
        (directory / "pick.py").write_text(
            "import pathlib, sys, runpy\n"
            f"here = pathlib.Path({str(directory)!r})\n"
            "count = here / 'count'\n"
            "n = int(count.read_text()) if count.exists() else 0\n"
            "count.write_text(str(n + 1))\n"
            f"runpy.run_path(str(here / f'trainer-{{min(n, {len(scripts) - 1})}}.py'))\n"
        )

    def load(self, name: str, sha256: str) -> Model:
        self.loaded.append((name, sha256))
        if self.bad_models:
            self.bad_models -= 1
            raise KeyError("weights")
        none = np.zeros(0)
        return Model(1, 2, none.astype(np.int32), {}, {}, {"ensemble": none}, {})

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            await run_training(
                self.flow.scoring,
                self.flow.requests.clone(),
                self.flow.checkpoints,
                command=[sys.executable, "-S", str(self.directory / "pick.py")],
                scratch=self.directory / "training",
                models=self.directory / "models",
                load=self.load,
                status=self.status,
                pause_seconds=self.pause_seconds,
                task_status=task_status,
            )

    def model_frames(self) -> list[ModelFrame]:
        frames = [decode(entry.payload) for entry in self.flow.store.entries]
        return [frame for frame in frames if isinstance(frame, ModelFrame)]


@asynccontextmanager
async def training(case: Training) -> AsyncIterator[Training]:
    async with trio.open_nursery() as nursery:
        await case.flow.run(nursery)
        with case.flow.requests:
            await nursery.start(case.run)
            yield case
            case.scope.cancel()


async def installed(case: Training) -> None:
    while not case.flow.store.snapshots:  # noqa: ASYNC110
        await trio.sleep(0.01)


async def test_a_model_is_trained_when_due_and_takes_effect_as_a_frame(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "actors.training")
    async with training(Training(tmp_path, TRAINS)) as case:
        await case.flow.log(b"one")
        await case.flow.applied()
        assert not case.status.in_progress
        await case.flow.log(b"two")
        await installed(case)

        assert case.model_frames() == [ModelFrame(1, "model-1-0123456789abcdef.pt", "ab" * 32, Studied(2, 2))]
        assert case.flow.detector.model == "model-1-0123456789abcdef.pt"
        assert case.flow.store.snapshots[-1][3] == ("model-1-0123456789abcdef.pt",)
        seq, line, columns = read_snapshot(tmp_path / "models" / "input")
        about = columns.pop("about")
        assert (seq, line, columns) == (2, 2, {"generation": 1, "line": 2}) and "studied" in str(about)
        assert (case.status.in_progress, case.status.error, case.status.attempts) == (False, None, 0)
        assert list((tmp_path / "training").iterdir()) == []
    told = [record.message for record in caplog.records if "%" in record.message]
    assert len(told) == 11, "the log hears of it every ten per cent"


@pytest.mark.parametrize("urgent", [True, False])
async def test_what_is_urgent_is_not_kept_waiting_by_the_rest_between_two_trainings(
    tmp_path: Path, autojump_clock: MockClock, urgent: bool
) -> None:
    case = Training(tmp_path, TRAINS, HANGS)
    case.pause_seconds = 36_000.0
    async with training(case):
        await case.flow.log(b"one", b"two")
        await installed(case)
        began = trio.current_time()
        case.flow.detector.due, case.flow.detector.urgent = True, urgent
        await case.flow.log(b"three")
        while not case.status.in_progress:  # noqa: ASYNC110
            await trio.sleep(0.5)
        waited = trio.current_time() - began
        # The clock also jumps while a child or a thread is at work; now the stop's snapshot is to be waited for.
        autojump_clock.autojump_threshold, autojump_clock.rate = math.inf, 1.0
        assert (waited > 30_000.0) == (not urgent)


async def test_progress_can_be_read_and_a_stop_kills_the_child_at_once(tmp_path: Path) -> None:
    async with training(Training(tmp_path, HANGS)) as case:
        await case.flow.log(b"one", b"two")
        pid = tmp_path / "models" / "pid"
        while not (case.status.fraction == 0.4 and pid.exists() and pid.read_text()):  # noqa: ASYNC110
            await trio.sleep(0.01)
        assert case.status.in_progress and case.status.stage == "transformer"
        assert case.status.as_dict()["generation"] == 1
        began = trio.current_time()
    assert trio.current_time() - began < 2
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not case.status.in_progress
    assert case.flow.store.snapshots[-1][1] == 2, "the stop saved what was known"


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        (SAYS_NO, "3 sessions are too few"),
        (CRASHES, "trainer exited with status 1: RuntimeError: out of cheese"),
        (DIES, "trainer was killed by signal 9, which the kernel sends when memory runs out"),
        (SILENT, "trainer exited with status 0"),
    ],
)
async def test_a_run_that_fails_is_logged_with_its_cause_and_begun_again(
    tmp_path: Path, script: str, cause: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with training(Training(tmp_path, script, TRAINS)) as case:
        await case.flow.log(b"one", b"two")
        while case.status.error is None:  # noqa: ASYNC110
            await trio.sleep(0.01)
        assert case.status.error == cause
        assert case.model_frames() == []
        await installed(case)
        assert len(case.model_frames()) == 1
        assert case.status.error is None
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        f"training generation 1: failed: {cause}"
    ]


async def test_a_model_that_does_not_load_is_never_journaled(tmp_path: Path, autojump_clock: MockClock) -> None:
    case = Training(tmp_path, TRAINS)
    case.bad_models = 1
    async with training(case):
        await case.flow.log(b"one", b"two")
        await installed(case)
        assert len(case.loaded) == 2
        assert len(case.model_frames()) == 1


async def test_a_model_does_not_undo_a_rollback_that_came_while_it_was_trained(tmp_path: Path) -> None:
    async with training(Training(tmp_path, WAITS)) as case:
        await case.flow.log(b"one", b"two")
        await until(lambda: case.status.in_progress)
        older = ModelFrame(7, "older.pt", "cd" * 32)
        seq, _ = await submit(case.flow.requests, older)
        await case.flow.scoring.published.wait_for(seq)
        (tmp_path / "models" / "go").touch()
        await until(lambda: not case.status.in_progress)
        assert (case.model_frames(), case.flow.detector.model) == ([older], "older.pt")
        refused = decode(case.flow.store.entries[-1].payload)
        assert isinstance(refused, RefusedFrame) and refused.name == "model-1-0123456789abcdef.pt"
        assert refused.reason == "another model was put in force while it was trained"


async def test_lines_go_on_being_scored_while_a_child_trains(tmp_path: Path) -> None:
    async with training(Training(tmp_path, HANGS)) as case:
        await case.flow.log(b"one", b"two")
        await until(lambda: case.status.in_progress)
        for n in range(100):
            await case.flow.log(b"line %d" % n)
        await case.flow.applied()
        assert case.status.in_progress
        assert case.flow.scoring.published.summary.line == 102
