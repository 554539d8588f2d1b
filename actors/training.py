"""Training: a child process per training run, its result a frame like any other.

    due -> training set -> input file -> child -> model file -> load -> model frame -> applied -> checkpoint

The child owns nothing and may die at any moment: until the model frame is journaled nothing has changed, and
what was in the training set is still in the state. A run that fails is logged with its cause and begun again
after a pause that doubles. A model that is worse than the one in force is refused, by a frame as well: then the
state knows that it was tried, and when the next one is due. So is one that was trained while somebody put another
in force, by a rollback or by restoring a snapshot. The child writes one JSON object a line on its standard
output:

    {"stage", "epoch", "epochs", "loss", "fraction", "seconds_left"}     progress
    {"done": {"name", "sha256"}}                                         the last line, exit status 0
    {"refused": "one sentence"}                                          the last line, exit status 0
    {"error": "one sentence"}                                            the last line, exit status 1

and ends when its standard input does, so it cannot outlive us.
"""

import logging
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import trio

from actors.checkpoint import CheckpointError, Checkpoints
from actors.published import Published
from actors.scoring import Scoring
from actors.sequencer import Request, submit
from detection.frames import ModelFrame, RefusedFrame, Studied
from detection.model import Model
from detection.state import State
from persistence.snapshot import write_snapshot

RETRY_SECONDS = 10.0
MAX_RETRY_SECONDS = 600.0
URGENT_PAUSE_SECONDS = 60.0
KILLED_WITHIN_SECONDS = 2.0
MAX_LINE_BYTES = 64 * 1024
STDERR_BYTES = 4096
LOG_STEP = 0.1

log = logging.getLogger(__name__)


class TrainingSet(Protocol):
    """What training asks of `detection.training_set.TrainingSet`."""

    @property
    def generation(self) -> int: ...

    @property
    def line(self) -> int: ...

    @property
    def full(self) -> bool: ...

    @property
    def studied(self) -> Studied: ...

    def to_columns(self) -> State: ...


class TrainingFailed(Exception):
    """A training run ended without a model; the message is its cause."""


class _Progress(msgspec.Struct):
    stage: str
    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None
    fraction: float | None = None
    seconds_left: float | None = None


class _Trained(msgspec.Struct):
    name: str
    sha256: str


class _Report(msgspec.Struct):
    """The child's last line."""

    done: _Trained | None = None
    refused: str | None = None
    error: str | None = None


@dataclass(slots=True)
class TrainingStatus:
    """For status: how far the run under way is; `attempts` and `error` of the runs since the last success."""

    in_progress: bool = False
    generation: int | None = None
    stage: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None
    fraction: float | None = None
    seconds_left: float | None = None
    attempts: int = 0
    error: str | None = None

    def begin(self, generation: int) -> None:
        self._move(_Progress(stage="starting", fraction=0.0))
        self.in_progress, self.generation = True, generation
        self.attempts += 1

    def progress(self, progress: _Progress) -> None:
        if _step(progress.fraction) > _step(self.fraction) or progress.stage != self.stage:
            log.info("training generation %s: %s", self.generation, _in_words(progress))
        self._move(progress)

    def end(self, error: str | None) -> None:
        self._move(_Progress(stage=""))
        self.in_progress, self.stage, self.error = False, None, error
        if error is None:
            self.attempts = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _move(self, progress: _Progress) -> None:
        for name in _Progress.__struct_fields__:
            setattr(self, name, getattr(progress, name))


def _step(fraction: float | None) -> int:
    return int((fraction or 0.0) / LOG_STEP + 1e-9)


def _in_words(progress: _Progress) -> str:
    words = [progress.stage]
    if progress.fraction is not None:
        words.append(f"{progress.fraction:.0%}")
    if progress.epoch is not None and progress.epochs is not None:
        words.append(f"epoch {progress.epoch} of {progress.epochs}")
    if progress.loss is not None:
        words.append(f"loss {progress.loss:.4f}")
    if progress.seconds_left is not None:
        words.append(f"{progress.seconds_left:.0f} s left")
    return ", ".join(words)


async def run_training(
    scoring: "Scoring[Any, TrainingSet]",
    requests: "trio.MemorySendChannel[Request]",
    checkpoints: Checkpoints,
    *,
    command: Sequence[str],
    scratch: Path,
    models: Path,
    load: Callable[[str, str], Model],
    status: TrainingStatus,
    pause_seconds: float = 0.0,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Train whenever the state says it is due, until cancelled or scoring has ended.

    Takes ownership of `requests`. `command` is run with the input file and `models`, the directory for its
    result, appended; the input lives in `scratch`. `load(name, sha256)` gives the model, blocking, and raises
    when it is not whole. Between the end of a run for all members and the next one lie at least `pause_seconds`, or
    URGENT_PAUSE_SECONDS when that is urgent.
    Cancelling kills the child at once.
    """
    with requests:
        task_status.started()
        published = scoring.published
        pause = RETRY_SECONDS
        summary = published.summary
        rested = trio.current_time()
        try:
            while True:
                while not summary.training_due:
                    summary = await published.newer(summary)
                if not summary.training_urgent and trio.current_time() < rested:
                    summary = await _rest(published, rested)
                    continue
                trained = await _attempt(scoring, command, scratch, models, load, status)
                if trained is None:
                    await trio.sleep(pause)
                    pause = min(2 * pause, MAX_RETRY_SECONDS)
                    summary = published.summary
                    continue
                pause = RETRY_SECONDS
                frame, model, full = trained
                seq, _ = await submit(requests, frame, model)
                summary = await published.wait_for(seq)
                status.end(None)
                if isinstance(frame, RefusedFrame):
                    log.warning("training generation %d: refused, the model stays: %s", frame.generation, frame.reason)
                else:
                    log.info("training generation %d: in effect from line %d", frame.generation, summary.line)
                    await _checkpoint(checkpoints)
                if full:
                    rested = trio.current_time() + pause_seconds
                    await trio.sleep(min(pause_seconds, URGENT_PAUSE_SECONDS))
                summary = published.summary
        except trio.EndOfChannel:
            # Scoring has ended before us; a model that came too late is trained again next time.
            return
        finally:
            if status.in_progress:
                status.end("stopped")


async def _rest(published: "Published[Any]", until: float) -> Any:
    """The summary at `until`, or before that the first one which says that training is urgent."""
    summary = published.summary
    with trio.move_on_at(until):
        while not summary.training_urgent:
            summary = await published.newer(summary)
    return summary


async def _checkpoint(checkpoints: Checkpoints) -> None:
    try:
        await checkpoints.request()
    except CheckpointError as exc:
        # Logged and retried by the checkpoint actor; the model frame is in the journal.
        log.warning("training: the new model is not in a snapshot yet: %s", exc)


async def _attempt(
    scoring: "Scoring[Any, TrainingSet]",
    command: Sequence[str],
    scratch: Path,
    models: Path,
    load: Callable[[str, str], Model],
    status: TrainingStatus,
) -> tuple[ModelFrame | RefusedFrame, Model | None, bool] | None:
    """One run: its frame, its model, and whether it was for all members.

    None when it failed, which is logged and kept in `status`.
    """
    published = scoring.published
    data = await scoring.training_set()
    in_force = published.summary.generation
    status.begin(data.generation)
    log.info("training generation %d: started, lines through %d", data.generation, data.line)
    source = scratch / f"training-{data.generation}.msgpack"
    seq = published.summary.seq

    def write() -> None:
        write_snapshot(source, seq, data.line, data.to_columns())

    try:
        await trio.to_thread.run_sync(write)
        trained = await _train([*command, str(source), str(models)], status)
        if isinstance(trained, str):
            refused = RefusedFrame(data.generation, f"model-{data.generation}", trained, data.studied)
            return refused, None, data.full
        model = await trio.to_thread.run_sync(load, trained.name, trained.sha256)
    except Exception as exc:
        # Whatever it was cost one run of a child process; the state it came from is untouched.
        cause = str(exc) or type(exc).__name__
        known = isinstance(exc, TrainingFailed | OSError)
        log.error("training generation %d: failed: %s", data.generation, cause, exc_info=not known)
        status.end(cause)
        return None
    finally:
        source.unlink(missing_ok=True)
    if published.summary.generation != in_force:
        # It goes on from a model that somebody has turned away from, and would undo that.
        reason = "another model was put in force while it was trained"
        return RefusedFrame(data.generation, trained.name, reason, data.studied), None, data.full
    return ModelFrame(model.generation, trained.name, trained.sha256, data.studied), model, data.full


async def _train(command: Sequence[str], status: TrainingStatus) -> _Trained | str:
    """Run the child to its end: its model, or why it refused it. It is dead and waited for when this ends."""
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None and process.stdin is not None
    stderr = _Tail(process.stderr)
    report = _Report()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stderr.read)
            async for line in _lines(process.stdout):
                report = _understood(line, status) or report
            await process.wait()
    finally:
        process.kill()
        # SIGKILL needs no grace: this bounds a child stuck in the kernel, it does not wait for manners.
        with trio.move_on_after(KILLED_WITHIN_SECONDS, shield=True):
            await process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                await pipe.aclose()
    if process.returncode == 0 and (report.done is not None or report.refused is not None):
        return report.done or report.refused or ""
    raise TrainingFailed(report.error or f"trainer {_ending(process.returncode)}{stderr.last_line()}")


def _understood(line: bytes, status: TrainingStatus) -> _Report | None:
    """Take one line of the child: progress into `status`, the result to the caller."""
    try:
        message: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
        if "stage" in message:
            status.progress(msgspec.convert(message, _Progress))
            return None
        return msgspec.convert(message, _Report)
    except msgspec.DecodeError as exc:
        # A library that prints must not cost a model.
        log.warning("training: the trainer wrote %r, which is no progress: %s", line[:200], exc)
        return None


def _ending(returncode: int | None) -> str:
    if returncode is None:
        return "cannot be killed"
    return f"was killed by signal {-returncode}" if returncode < 0 else f"exited with status {returncode}"


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    """Whole lines; one longer than MAX_LINE_BYTES comes in pieces."""
    rest = b""
    async for data in stream:
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield line
        if len(rest) > MAX_LINE_BYTES:
            yield rest
            rest = b""
    if rest:
        yield rest


class _Tail:
    """Reads a stream to its end and keeps the last of it, so that a chatty child never blocks."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._kept = b""

    async def read(self) -> None:
        async for data in self._stream:
            self._kept = (self._kept + data)[-STDERR_BYTES:]

    def last_line(self) -> str:
        lines = self._kept.decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""
