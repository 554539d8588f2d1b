"""Training with a real child process: a small script that speaks the trainer's protocol."""

import errno
import logging
import math
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from actors.sequencer import submit_frame
from actors.trainer_process import SILENT_SECONDS
from actors.training import MAX_RETRY_SECONDS, RETRY_SECONDS, Trainer, run_training
from actors.training_status import TrainingStatus
from detection.frames import ModelFrame, RefusedFrame, decode_frame
from detection.models.model import Model
from detection.models.training_set import TrainingCutoff
from persistence.snapshot_file import read_snapshot
from persistence.training_files import read_training_attempts, write_training_input
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
        self.resume_through = 0
        self.program = "this program"
        self.silent_seconds = SILENT_SECONDS
        self.command = [sys.executable, "-S", str(directory / "pick.py")]
        for name in ("training", "models"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        for n, script in enumerate(scripts):
            (directory / f"trainer-{n}.py").write_text(script)
        (directory / "pick.py").write_text(
            "import pathlib, sys, runpy\n"
            f"sys.path[:0] = {sys.path!r}\n"
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
                Trainer(
                    self.command,
                    scratch=self.directory / "training",
                    models=self.directory / "models",
                    load=self.load,
                    program=self.program,
                    silent_seconds=self.silent_seconds,
                ),
                self.status,
                pause_seconds=self.pause_seconds,
                resume_through=self.resume_through,
                task_status=task_status,
            )

    def model_frames(self) -> list[ModelFrame]:
        frames = [decode_frame(entry.payload) for entry in self.flow.store.entries]
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

        assert case.model_frames() == [ModelFrame(1, "model-1-0123456789abcdef.pt", "ab" * 32, TrainingCutoff(2, 2))]
        assert case.flow.detector.model == "model-1-0123456789abcdef.pt"
        assert case.flow.store.snapshots[-1][3] == ("model-1-0123456789abcdef.pt",)
        seq, line, columns = read_snapshot(tmp_path / "models" / "input")
        about = columns.pop("about")
        assert (seq, line, columns) == (2, 2, {"generation": 1, "line": 2}) and "studied" in str(about)
        assert (case.status.in_progress, case.status.error, case.status.attempts) == (False, None, 0)
        assert list((tmp_path / "training").iterdir()) == []
    told = [record.message for record in caplog.records if "%" in record.message]
    assert len(told) == 11, "the log hears of it every ten per cent"


@pytest.mark.slow
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
        seq, _ = await submit_frame(case.flow.requests, older)
        await case.flow.scoring.published.wait_for_frame(seq)
        (tmp_path / "models" / "go").touch()
        await until(lambda: not case.status.in_progress)
        assert (case.model_frames(), case.flow.detector.model) == ([older], "older.pt")
        refused = decode_frame(case.flow.store.entries[-1].payload)
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


RESUMES = """
import hashlib, json, os, pathlib, signal, sys, time
source, models = map(pathlib.Path, sys.argv[1:])
from persistence.training_files import read_partial_result, write_partial_result
notes = read_partial_result(source, "this program")
begun = notes.fraction if notes else 0.0
if notes:
    print(json.dumps({"resumed": begun}), flush=True)
with open(models / "begun", "a") as file:
    file.write(f"{begun}\\n")
write_partial_result(source, "this program", begun + 0.25, {})
print(json.dumps({"stage": "transformer", "fraction": begun + 0.25}), flush=True)
if begun + 0.25 >= 1.0:
    print(json.dumps({"done": {"name": "model-1-0123456789abcdef.pt", "sha256": "ab" * 32}}))
elif (models / "die").exists():
    os.kill(os.getpid(), signal.SIGKILL)
else:
    sys.stdin.read()
"""
NOT_THERE = ["/nowhere/python"]


@asynccontextmanager
async def lives(
    directory: Path, *scripts: str, through: int = 2, clock: MockClock | None = None, **changes: Any
) -> AsyncIterator[Training]:
    """A daemon that finds what the one before left in `directory`, and two lines known."""
    if clock is not None:
        # It jumps while a thread is at work: a wait that begins before the test looks would be over by then.
        clock.rate, clock.autojump_threshold = 0.0, math.inf
    case = Training(directory, *scripts)
    case.resume_through = through
    case.program = changes.pop("program", "this program")
    case.status.now = changes.pop("now", time.time)
    case.silent_seconds = changes.pop("silent_seconds", SILENT_SECONDS)
    for name, value in changes.items():
        setattr(case.flow.detector, name, value)
    case.flow.scoring.published.publish_summary(case.flow.detector.summary())
    async with training(case):
        await case.flow.log(b"one", b"two")
        if clock is not None:
            clock.autojump_threshold = 0.0
        try:
            yield case
        finally:
            if clock is not None:
                # It jumps while a thread is at work, and the stop waits for its snapshot only so long.
                clock.autojump_threshold, clock.rate = math.inf, 1.0


def begun(directory: Path) -> list[float]:
    path = directory / "models" / "begun"
    return [float(line) for line in path.read_text().split()] if path.exists() else []


async def test_a_run_that_a_restart_interrupted_goes_on_from_what_it_had_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "actors.training")
    for life in range(3):
        async with lives(tmp_path, RESUMES) as case:
            while (case.status.fraction or 0.0) < 0.25 * (life + 1):  # noqa: ASYNC110
                await trio.sleep(0.01)
            assert case.status.resumed_from == (0.25 * life or None)
            assert case.status.as_dict()["attempts"] == 1
    async with lives(tmp_path, RESUMES) as case:
        await installed(case)
        (frame,) = case.model_frames()
        assert frame.studied == TrainingCutoff(2, 2), "it counts from where the first of these lives began it"
        await until(lambda: not case.status.in_progress)
        assert list((tmp_path / "training").iterdir()) == []
        assert case.status.resumed_from is None
    assert begun(tmp_path) == [0.0, 0.25, 0.5, 0.75]
    assert "training generation 1: resumed at 75 %" in [record.message for record in caplog.records]


@pytest.mark.parametrize(
    "changed",
    [
        {"through": 1},  # the journal has lost the frame that the set was taken at
        {"through": 0},  # something of the state is lost
        {"program": "a later program"},
        {"restored": 1},
        {"generation": 7},
        {"full": False},
    ],
)
async def test_what_was_begun_on_another_state_is_begun_anew(tmp_path: Path, changed: dict[str, Any]) -> None:
    async with lives(tmp_path, RESUMES) as case:
        await until(lambda: case.status.fraction == 0.25)
    through = changed.pop("through", 2)
    async with lives(tmp_path, RESUMES, through=through, **changed) as case:
        await until(lambda: len(begun(tmp_path)) == 2)
        await until(lambda: case.status.fraction == 0.25)
        assert case.status.resumed_from is None
    assert begun(tmp_path) == [0.0, 0.0]


@pytest.mark.parametrize("damage", ["input", "no notes"])  # damaged notes: tests/daemon/test_trainer.py
async def test_damage_to_what_was_kept_costs_what_was_done_and_is_no_failure(tmp_path: Path, damage: str) -> None:
    async with lives(tmp_path, RESUMES) as case:
        await until(lambda: case.status.fraction == 0.25)
    (path,) = (tmp_path / "training").glob("*.msgpack" if damage == "input" else "*.part")
    if damage == "no notes":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    async with lives(tmp_path, RESUMES) as case:
        await until(lambda: len(begun(tmp_path)) == 2)
        assert case.status.error is None and case.status.failures_total == 0
    assert begun(tmp_path) == [0.0, 0.0]


@pytest.mark.slow
async def test_a_child_that_is_killed_but_gets_further_each_time_comes_to_its_end(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with lives(tmp_path, RESUMES, clock=autojump_clock) as case:
        (tmp_path / "models" / "die").touch()
        await installed(case)
        assert begun(tmp_path) == [0.0, 0.25, 0.5, 0.75]
        assert case.status.failures_total == 3
        assert (case.status.attempts, case.status.error) == (0, None)


@pytest.mark.slow
async def test_a_child_that_says_nothing_for_long_is_killed_and_counts_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.trainer_process.SILENT_TIMES", 1.0)
    monkeypatch.setattr("actors.training.RETRY_SECONDS", 0.1)
    async with lives(tmp_path, HANGS, TRAINS, silent_seconds=3.0) as case:
        await until(lambda: case.status.error is not None)
        assert case.status.error == "trainer hung: it said nothing for 3 s, and was killed"
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "models" / "pid").read_text()), 0)
        await installed(case)
        assert case.status.error is None and case.status.failures_total == 1


@pytest.mark.slow
async def test_a_child_on_a_slow_machine_may_be_silent_for_longer(tmp_path: Path) -> None:
    slow = "import time\ntime.sleep(1.0)\n" + TRAINS.replace('print("a library', 'time.sleep(3.0)\nprint("a library')
    slow = slow.replace("source, models", 'print("hello", flush=True)\nsource, models', 1)
    async with lives(tmp_path, slow, silent_seconds=2.0) as case:
        await installed(case)
        assert case.status.failures_total == 0


async def test_failures_pause_for_longer_each_time_up_to_a_bound_and_are_there_to_be_seen(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with lives(tmp_path, SAYS_NO, clock=autojump_clock) as case:
        case.status.now = trio.current_time
        for failures in range(1, 10):
            while case.status.failures_total < failures:  # noqa: ASYNC110
                await trio.sleep(0.05)
            pause = min(RETRY_SECONDS * 2 ** (failures - 1), MAX_RETRY_SECONDS)
            told = case.status.as_dict()
            assert (told["attempts"], told["error"]) == (failures, "3 sessions are too few")
            assert told["retry_in_seconds"] == pytest.approx(pause, abs=1.0)
            assert told["retry_at"] == pytest.approx(trio.current_time() + pause, abs=1.0)
            await trio.sleep(pause - 2.0)
            assert not case.status.in_progress and case.status.failures_total == failures
    assert sum(record.levelname == "ERROR" for record in caplog.records) == 9, "each failure once"


async def test_a_restart_does_not_try_at_once_what_has_failed_before(tmp_path: Path, autojump_clock: MockClock) -> None:
    clock = 1_000_000.0
    async with lives(tmp_path, SAYS_NO, clock=autojump_clock) as case:
        case.status.now = lambda: clock
        while read_training_attempts(tmp_path / "training").failures < 4:  # noqa: ASYNC110
            await trio.sleep(0.05)
    for since, expected in ((10.0, 70.0), (-1000.0, 80.0), (100.0, 0.0)):
        (tmp_path / "count").unlink(missing_ok=True)
        async with lives(tmp_path, TRAINS, clock=autojump_clock, now=partial(float, clock + since)) as case:
            began = trio.current_time()
            await until(lambda: case.status.failures_total == 4)
            assert case.status.error == "3 sessions are too few"
            if not expected:
                await installed(case)
                assert case.status.error is None
                break
            assert case.status.as_dict()["retry_in_seconds"] == pytest.approx(expected, abs=1.0)
            await trio.sleep(expected - 5.0)
            assert not case.status.in_progress and trio.current_time() - began < expected


@pytest.mark.parametrize("further", [True, False])
async def test_a_daemon_that_ends_each_time_it_trains_pauses_unless_it_gets_further(
    tmp_path: Path, further: bool
) -> None:
    """The kernel may kill the daemon along with the trainer, and the service manager starts it again."""
    script = RESUMES.replace("+ 0.25", "+ 0.01") if further else HANGS
    for _ in range(3):
        async with lives(tmp_path, script) as case:
            await until(lambda: case.status.in_progress and bool(case.status.fraction))
            assert case.status.error is None
    async with lives(tmp_path, script) as case:
        await until(lambda: case.status.in_progress or case.status.retry_at is not None)
        assert case.status.in_progress == further
        if not further:
            assert case.status.error == "the daemon ended 3 times while it trained, and it got no further"
            assert case.status.as_dict()["retry_in_seconds"] == pytest.approx(RETRY_SECONDS, abs=2.0)


async def test_a_trainer_that_cannot_be_run_at_all_is_a_failure_in_words(tmp_path: Path) -> None:
    case = Training(tmp_path, TRAINS)
    case.command = NOT_THERE
    async with training(case):
        await case.flow.log(b"one", b"two")
        await until(lambda: case.status.error is not None)
        assert case.status.error == "/nowhere/python: No such file or directory"


async def test_a_disk_too_full_for_what_is_learned_from_is_a_failure_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    full = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/state/training/training-1.msgpack.tmp")]

    def no_room(*arguments: Any) -> Path:
        if full:
            raise full.pop()
        return write_training_input(*arguments)

    monkeypatch.setattr("actors.training.write_training_input", no_room)
    async with lives(tmp_path, TRAINS, clock=autojump_clock) as case:
        while case.status.error is None:  # noqa: ASYNC110
            await trio.sleep(0.05)
        assert case.status.error == (
            "/state/training/training-1.msgpack.tmp: No space left on device; free some space there"
        )
        await installed(case)


async def test_a_start_with_a_model_that_lacks_a_member_trains_once_and_no_more(tmp_path: Path) -> None:
    """It could not be fitted, and what was the matter may be over; if it is not, the next start tries again."""
    model, unfitted = "model-1-0123456789abcdef.pt", (("transformer", "no"),)
    async with lives(tmp_path, TRAINS, model=model, unfitted=unfitted) as case:
        await installed(case)
        await until(lambda: not case.status.in_progress)
        await case.flow.log(b"three")
        await until(lambda: case.flow.detector.line == 3)
        assert (tmp_path / "count").read_text() == "1" and not case.status.in_progress
    async with lives(tmp_path / "well", TRAINS, model=model) as case:
        await until(lambda: case.flow.detector.line == 2)
        assert not case.status.in_progress and not case.model_frames()
