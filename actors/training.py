"""Training: a child process per training run, its result a frame like any other.

    due -> training set -> input file -> child -> model file -> load -> model frame -> applied -> checkpoint

The child owns nothing and may die at any moment: until the model frame is journaled nothing has changed, and
what was in the training set is still in the state. A run that fails is logged with its cause and begun again
after a pause that doubles, whether or not the daemon was restarted since; so is one whose child hangs. What a run
learns from stays in its file until the run has come to its end, and the child notes beside it how far it is
(`persistence.training_files`): after a restart the same run goes on from there. A model that is worse than the one
in force is refused, by a frame as well: then the state knows that it was tried, and when the next one is due. So is
one that was trained while somebody put another in force, by a rollback or by restoring a snapshot. The child writes
one JSON object a line on its standard output:

    {"resumed": fraction}                                                it goes on from there
    {"note": "one sentence"}                                             for the log
    {"stage", "epoch", "epochs", "loss", "fraction", "seconds_left"}     progress
    {"done": {"name", "sha256"}}                                         the last line, exit status 0
    {"refused": "one sentence"}                                          the last line, exit status 0
    {"error": "one sentence"}                                            the last line, exit status 1

and ends when its standard input does, so it cannot outlive us.
"""

import logging
import math
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec
import trio

from actors.checkpoint import CheckpointError, Checkpoints
from actors.latest_summary import Published
from actors.scoring import Scoring
from actors.sequencer import Request, submit
from detection.frames import ModelFrame, RefusedFrame, TrainingCutoff
from detection.models.model import Model
from detection.models.training_set import TrainingSet
from detection.summary import Summary
from persistence.disk import failure
from persistence.preamble import NewerFormatError
from persistence.snapshot import SnapshotError
from persistence.training_files import (
    Attempts,
    PartialError,
    find_input,
    forget_run,
    read_attempts,
    read_partial,
    write_attempts,
    write_input,
)

RETRY_SECONDS = 10.0
MAX_RETRY_SECONDS = 600.0
URGENT_PAUSE_SECONDS = 60.0
KILLED_WITHIN_SECONDS = 2.0
MAX_LINE_BYTES = 64 * 1024
STDERR_BYTES = 4096
LOG_STEP = 0.1
SILENT_SECONDS = 1800.0  # a busy machine gives a child of lowest priority little time
SILENT_TIMES = 20.0
INTERRUPTIONS_ALLOWED = 2  # in a row, of which none got any further

log = logging.getLogger(__name__)


class TrainingFailed(Exception):
    """A training run ended without a model; the message is its cause."""


class TrainingKilled(TrainingFailed):
    """From outside: it may have been none of its own doing."""


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
    """For status: how far the run under way is, and `resumed_from` which fraction, if an earlier one had begun it;
    `attempts` and `error` of the runs since the last success, `failures_total` those of all times, and when to try
    again (`retry_at`, epoch seconds) after a failure. `now` is the wall clock."""

    in_progress: bool = False
    generation: int | None = None
    stage: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None
    fraction: float | None = None
    seconds_left: float | None = None
    resumed_from: float | None = None
    attempts: int = 0
    error: str | None = None
    failures_total: int = 0
    retry_at: float | None = None
    now: Callable[[], float] = field(default=time.time, repr=False)

    def begin(self, generation: int) -> None:
        self._move(_Progress(stage="starting", fraction=0.0))
        self.in_progress, self.generation = True, generation
        self.attempts += 1
        self.retry_at = None

    def progress(self, progress: _Progress) -> None:
        if _step(progress.fraction) > _step(self.fraction) or progress.stage != self.stage:
            log.info("training generation %s: %s", self.generation, _in_words(progress))
        self._move(progress)

    def resume(self, fraction: float) -> None:
        """The run under way goes on from `fraction`."""
        self.resumed_from = self.fraction = fraction
        log.info("training generation %s: resumed at %.0f %%", self.generation, 100.0 * fraction)

    def failed(self, attempts: Attempts) -> None:
        """The last run failed, the last of `attempts`."""
        self.stopped()
        self.failed_before(attempts)

    def failed_before(self, attempts: Attempts) -> None:
        """No run is under way."""
        self.attempts, self.error, self.failures_total = attempts.failures, attempts.error, attempts.failures_total

    def succeeded(self) -> None:
        self.stopped()
        self.attempts, self.error = 0, None

    def stopped(self) -> None:
        """No run is under way any more."""
        self._move(_Progress(stage=""))
        self.in_progress, self.stage, self.resumed_from = False, None, None

    def as_dict(self) -> dict[str, Any]:
        shown = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "now"}
        left = None if self.retry_at is None else round(max(self.retry_at - self.now(), 0.0), 1)
        return {**shown, "retry_in_seconds": left}

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
    scoring: Scoring,
    requests: "trio.MemorySendChannel[Request]",
    checkpoints: Checkpoints,
    *,
    command: Sequence[str],
    scratch: Path,
    models: Path,
    load: Callable[[str, str], Model],
    status: TrainingStatus,
    pause_seconds: float = 0.0,
    resume_through: int = 0,
    program: str = "",
    silent_seconds: float = SILENT_SECONDS,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Train whenever the state says it is due, until cancelled or scoring has ended; and once at the start where the
    model in force was trained without a member that could not be fitted.

    Takes ownership of `requests`. `command` is run with the input file and `models`, the directory for its
    result, appended; the input lives in `scratch`. `load(name, sha256)` gives the model, blocking, and raises
    when it is not whole. Between the end of a run for all members and the next one lie at least `pause_seconds`, or
    URGENT_PAUSE_SECONDS when that is urgent. A run that was interrupted is gone on with if what it learns from was
    known at frame `resume_through` or before (0 where nothing was recovered, or not all of it), and if `program`,
    which names the code and its libraries, began it. A child that says nothing for `silent_seconds`, or SILENT_TIMES
    as long as it ever did before in its run, is killed.
    Cancelling kills the child at once.
    """
    runs = _Runs(scoring, command, scratch, models, load, status, silent_seconds, program)
    with requests:
        published = scoring.published
        task_status.started()
        await runs.look_back(resume_through)
        summary = published.summary
        rested = trio.current_time()
        lame = bool(summary.unfitted)  # what made a member fail may be over
        try:
            while True:
                while not summary.training_due and not lame:
                    summary = await published.newer(summary)
                if not summary.training_urgent and trio.current_time() < rested:
                    summary = await _rest(published, rested)
                    continue
                if trio.current_time() < runs.not_before:
                    await trio.sleep_until(runs.not_before)
                    summary = published.summary
                    continue
                trained = await runs.run()
                if trained is None:
                    continue
                frame, model, full = trained
                seq, _ = await submit(requests, frame, model)
                summary, lame = await published.wait_for(seq), False
                await runs.succeeded()
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
            # Scoring has ended before us; what the run has noted is gone on with next time.
            return
        finally:
            if status.in_progress:
                status.stopped()


async def _rest(published: Published, until: float) -> Summary:
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


class _About(msgspec.Struct):
    """What is written down with the input of a run, to decide later whether to go on with it."""

    generation: int
    full: bool
    in_force: int  # the generation it goes on from
    restored: int
    studied: TrainingCutoff
    program: str


class _Runs:
    """One run after the other, and what is known of those before: `not_before` (trio's clock) is when to try again."""

    def __init__(
        self,
        scoring: Scoring,
        command: Sequence[str],
        scratch: Path,
        models: Path,
        load: Callable[[str, str], Model],
        status: TrainingStatus,
        silent_seconds: float,
        program: str,
    ) -> None:
        self._program = program
        self._scoring = scoring
        self._command, self._scratch, self._models = command, scratch, models
        self._load = load
        self._status = status
        self._silent_seconds = silent_seconds
        self._attempts = Attempts()
        self._kept: tuple[Path, _About] | None = None  # a run to go on with
        self.not_before = -math.inf

    async def look_back(self, resume_through: int) -> None:
        """Find out how the runs of the life before went."""
        fraction = 0.0
        try:
            self._attempts = await trio.to_thread.run_sync(read_attempts, self._scratch)
            found = await trio.to_thread.run_sync(_find, self._scratch)
            if found is not None:
                source, about, fraction = found
                if about.studied.seq <= resume_through and about.program == self._program:
                    self._kept = source, about
                else:
                    log.warning(
                        "training generation %d: begun anew: state or program are not what they were then",
                        about.generation,
                    )
        except (SnapshotError, NewerFormatError, msgspec.DecodeError, OSError) as exc:
            log.warning("training: what was begun is begun anew: %s", exc)
        if self._kept is None:
            await self._forget()
        attempts = self._attempts
        if attempts.began_from is not None:
            attempts.no_further = attempts.no_further + 1 if fraction <= attempts.began_from else 0
            if attempts.no_further > INTERRUPTIONS_ALLOWED:
                self._count(f"the daemon ended {attempts.no_further} times while it trained, and it got no further")
            attempts.began_from = None
            await self._write()
        self._status.failed_before(attempts)
        if attempts.failures:
            # A clock that was set cannot make it wait for longer than after a failure just now.
            wait = min(max(attempts.failed_at + self._pause() - self._status.now(), 0.0), self._pause())
            self._wait(wait)
            if wait:
                log.warning("training: failed %d times in a row, next in %.0f s", attempts.failures, wait)

    async def run(self) -> tuple[ModelFrame | RefusedFrame, Model | None, bool] | None:
        """One run: its frame, its model, and whether it was for all members.

        None when it failed, which is logged and kept in `status`, and not to be tried again before `not_before`.
        """
        published, status = self._scoring.published, self._status
        data = await self._scoring.query(lambda detector: detector.training_set())
        summary = published.summary
        about = _About(data.generation, data.full, summary.generation, summary.restored, data.studied, self._program)
        began_from = 0.0
        status.begin(data.generation)
        try:
            kept, self._kept = self._kept, None
            if kept is not None and _same_but_later(kept[1], about):
                (source, about), began_from = kept, await trio.to_thread.run_sync(_fraction, kept[0])
                log.info("training generation %d: going on with what was begun", about.generation)
            else:
                log.info("training generation %d: started, lines through %d", data.generation, data.line)
                source = await trio.to_thread.run_sync(self._put_down, data, about)
            self._attempts.began_from = began_from
            await self._write()
            trained = await _train([*self._command, str(source), str(self._models)], status, self._silent_seconds)
            if isinstance(trained, str):
                refused = RefusedFrame(about.generation, f"model-{about.generation}", trained, about.studied)
                return refused, None, about.full
            model = await trio.to_thread.run_sync(self._load, trained.name, trained.sha256)
        except Exception as exc:
            # Whatever it was cost one run of a child process; the state it came from is untouched.
            cause = failure(exc, self._scratch) if isinstance(exc, OSError) else str(exc) or type(exc).__name__
            known = isinstance(exc, TrainingFailed | OSError)
            log.error("training generation %d: failed: %s", about.generation, cause, exc_info=not known)
            self._count(cause)
            self._wait(self._pause())
            # What was killed from outside may go on, as long as it gets further each time; else the input is suspect.
            if isinstance(exc, TrainingKilled) and await trio.to_thread.run_sync(_fraction, source) > began_from:
                self._kept = source, about
            else:
                await self._forget()
            await self._write()
            return None
        if published.summary.generation != about.in_force:
            # It goes on from a model that somebody has turned away from, and would undo that.
            reason = "another model was put in force while it was trained"
            return RefusedFrame(about.generation, trained.name, reason, about.studied), None, about.full
        return ModelFrame(model.generation, trained.name, trained.sha256, about.studied), model, about.full

    async def succeeded(self) -> None:
        """The frame is applied: nothing of the run is needed any more."""
        self._status.succeeded()
        self._attempts = Attempts(failures_total=self._attempts.failures_total)
        await self._write()
        await self._forget()

    def _put_down(self, data: TrainingSet, about: _About) -> Path:
        words = msgspec.json.encode(about).decode()
        return write_input(self._scratch, data.generation, data.studied.seq, data.line, data.to_columns(), words)

    def _count(self, cause: str) -> None:
        attempts = self._attempts
        attempts.failures += 1
        attempts.failures_total += 1
        attempts.failed_at, attempts.error = self._status.now(), cause
        attempts.began_from, attempts.no_further = None, 0
        self._status.failed(attempts)

    def _pause(self) -> float:
        return min(RETRY_SECONDS * 2.0 ** min(self._attempts.failures - 1, 30), MAX_RETRY_SECONDS)

    def _wait(self, seconds: float) -> None:
        self.not_before = trio.current_time() + seconds
        self._status.retry_at = self._status.now() + seconds

    async def _write(self) -> None:
        try:
            await trio.to_thread.run_sync(write_attempts, self._scratch, self._attempts)
        except OSError as exc:
            log.warning("training: a restart will not know how often it failed: %s", failure(exc, self._scratch))

    async def _forget(self) -> None:
        try:
            await trio.to_thread.run_sync(forget_run, self._scratch)
        except OSError as exc:
            log.warning("training: files that are of no use stay: %s", failure(exc, self._scratch))


def _find(scratch: Path) -> tuple[Path, _About, float] | None:
    """The run that did not come to its end, and how far it is. Blocks; raises as `find_input`, and DecodeError."""
    found = find_input(scratch)
    if found is None:
        return None
    source, about = found
    return source, msgspec.json.decode(about, type=_About), _fraction(source)


def _fraction(source: Path) -> float:
    """How far the run on `source` is that its child can go on with, as far as we can tell. Blocks."""
    try:
        notes = read_partial(source, None)
    except PartialError:
        return 0.0
    return 0.0 if notes is None else notes.fraction


def _same_but_later(then: _About, now: _About) -> bool:
    """Whether the run that began with `then` is the one that would begin now, but for the lines that came since."""
    return (then.generation, then.full, then.in_force, then.restored) == (
        now.generation,
        now.full,
        now.in_force,
        now.restored,
    )


async def _train(command: Sequence[str], status: TrainingStatus, silent_seconds: float) -> _Trained | str:
    """Run the child to its end: its model, or why it refused it. It is dead and waited for when this ends."""
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None and process.stdin is not None
    stderr = _Tail(process.stderr)
    report = _Report()
    allowed, heard = silent_seconds, trio.current_time()
    try:
        with trio.CancelScope(deadline=heard + allowed) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stderr.read)
                async for line in _lines(process.stdout):
                    report = _understood(line, status) or report
                    now = trio.current_time()
                    # A machine on which everything takes long is given longer.
                    allowed, heard = max(allowed, SILENT_TIMES * (now - heard)), now
                    patience.deadline = now + allowed
                await process.wait()
    finally:
        process.kill()
        # SIGKILL needs no grace: this bounds a child stuck in the kernel, it does not wait for manners.
        with trio.move_on_after(KILLED_WITHIN_SECONDS, shield=True):
            await process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                await pipe.aclose()
    if patience.cancelled_caught:
        raise TrainingKilled(f"trainer hung: it said nothing for {_long(allowed)}, and was killed")
    if process.returncode == 0 and (report.done is not None or report.refused is not None):
        return report.done or report.refused or ""
    killed = process.returncode is not None and process.returncode < 0
    raise (TrainingKilled if killed else TrainingFailed)(
        report.error or f"trainer {_ending(process.returncode)}{stderr.last_line()}"
    )


def _long(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120.0 else f"{seconds / 60.0:.0f} minutes"


def _understood(line: bytes, status: TrainingStatus) -> _Report | None:
    """Take one line of the child: progress into `status`, the result to the caller."""
    try:
        message: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
        if "stage" in message:
            status.progress(msgspec.convert(message, _Progress))
            return None
        if "resumed" in message:
            status.resume(msgspec.convert(message["resumed"], float))
            return None
        if "note" in message:
            log.warning("training generation %s: %s", status.generation, message["note"])
            return None
        return msgspec.convert(message, _Report)
    except msgspec.DecodeError as exc:
        # A library that prints must not cost a model.
        log.warning("training: the trainer wrote %r, which is no progress: %s", line[:200], exc)
        return None


def _ending(returncode: int | None) -> str:
    if returncode is None:
        return "cannot be killed"
    if returncode == -signal.SIGKILL:
        return "was killed by signal 9, which the kernel sends when memory runs out"
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
