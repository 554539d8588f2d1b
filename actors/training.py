"""Training: a child process per training run, its result a frame like any other.

    due -> training set -> input file -> child -> model file -> load -> model frame -> applied -> checkpoint

The child owns nothing and may die at any moment: until the model frame is journaled nothing has changed, and
what was in the training set is still in the state. A run that fails is logged with its cause and begun again
after a pause that doubles, whether or not the daemon was restarted since; so is one whose child hangs. The training
set stays in its file until the run has ended, and the child keeps its partial result beside it
(`persistence.training_files`): after a restart the run resumes from there. A model that is worse than the one in force
is refused, by a frame as well: then the state knows that it was tried, and when the next one is due. So is a model
during whose training another was put in force, by a rollback or by restoring a snapshot.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from actors.checkpoint import CheckpointError, Checkpoints
from actors.latest_summary import LatestSummary
from actors.scoring import Scoring
from actors.sequencer import Request, submit_frame
from actors.trainer_process import SILENT_SECONDS, TrainingFailed, TrainingKilled, train_in_child
from actors.training_status import TrainingStatus
from detection.frames import ModelFrame, RefusedFrame
from detection.models.model import Model
from detection.models.training_set import TrainingCutoff, TrainingSet
from detection.summary import Summary
from persistence.disk import os_error_text
from persistence.format_preamble import NewerFormatError
from persistence.snapshot_file import SnapshotError
from persistence.training_files import (
    Attempts,
    PartialError,
    find_training_input,
    forget_training_run,
    read_partial_result,
    read_training_attempts,
    write_training_attempts,
    write_training_input,
)

RETRY_SECONDS = 10.0
MAX_RETRY_SECONDS = 600.0
URGENT_PAUSE_SECONDS = 60.0
INTERRUPTIONS_ALLOWED = 2  # in a row, of which none got any further

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trainer:
    """How a run is made.

    `command` is run with the input file and `models`, the directory for its result, appended; the input lives in
    `scratch`. `load(name, sha256)` gives the model, blocking, and raises when it is not whole. `program` names the code
    and its libraries. A child that says nothing for `silent_seconds`, or SILENT_TIMES as long as it ever did before in
    its run, is killed.
    """

    command: Sequence[str]
    scratch: Path
    models: Path
    load: Callable[[str, str], Model]
    program: str = ""
    silent_seconds: float = SILENT_SECONDS


async def run_training(
    scoring: Scoring,
    requests: "trio.MemorySendChannel[Request]",
    checkpoints: Checkpoints,
    trainer: Trainer,
    status: TrainingStatus,
    *,
    pause_seconds: float = 0.0,
    resume_through: int = 0,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Train whenever the state says it is due, until cancelled or scoring has ended; and once at the start where the
    model in force was trained without a member that could not be fitted.

    Takes ownership of `requests`. Between the end of a run for all members and the next one lie at least
    `pause_seconds`, or URGENT_PAUSE_SECONDS when that is urgent. An interrupted run is resumed if its training set was
    taken at frame `resume_through` or before (0 where nothing was recovered, or not all of it), and if
    `trainer.training_program` began it. Cancelling kills the child at once.
    """
    runs = _TrainingRuns(scoring, trainer, status)
    with requests:
        published = scoring.published
        task_status.started()
        await runs.read_earlier_runs(resume_through)
        summary = published.summary
        rested = trio.current_time()
        retry_unfitted = bool(summary.unfitted)  # the cause may be gone
        try:
            while True:
                while not summary.training_due and not retry_unfitted:
                    summary = await published.newer_summary(summary)
                if not summary.training_urgent and trio.current_time() < rested:
                    summary = await _rest_between_trainings(published, rested)
                    continue
                if trio.current_time() < runs.not_before:
                    await trio.sleep_until(runs.not_before)
                    summary = published.summary
                    continue
                result = await runs.run_training_once()
                if result is None:
                    continue
                frame = result.frame
                seq, _ = await submit_frame(requests, frame, result.model)
                summary, retry_unfitted = await published.wait_for_frame(seq), False
                await runs.note_training_succeeded()
                if isinstance(frame, RefusedFrame):
                    log.warning("training generation %d: refused, the model stays: %s", frame.generation, frame.reason)
                else:
                    log.info("training generation %d: in effect from line %d", frame.generation, summary.line)
                    await _checkpoint_new_model(checkpoints)
                if result.full:
                    rested = trio.current_time() + pause_seconds
                    await trio.sleep(min(pause_seconds, URGENT_PAUSE_SECONDS))
                summary = published.summary
        except trio.EndOfChannel:
            # Scoring has ended before us; the next start resumes the run from its partial result.
            return
        finally:
            if status.in_progress:
                status.note_stopped()


async def _rest_between_trainings(published: LatestSummary, until: float) -> Summary:
    """The summary at `until`, or before that the first one which says that training is urgent."""
    summary = published.summary
    with trio.move_on_at(until):
        while not summary.training_urgent:
            summary = await published.newer_summary(summary)
    return summary


async def _checkpoint_new_model(checkpoints: Checkpoints) -> None:
    try:
        await checkpoints.request_snapshot()
    except CheckpointError as exc:
        # Logged and retried by the checkpoint actor; the model frame is in the journal.
        log.warning("training: the new model is not in a snapshot yet: %s", exc)


class _RunIdentity(msgspec.Struct):
    """Which run it is: written into its input file, to decide after a restart whether to resume it."""

    generation: int
    full: bool
    in_force: int  # the generation that it continues
    restored: int
    studied: TrainingCutoff
    program: str


@dataclass(frozen=True, slots=True)
class _TrainingResult:
    """The frame to journal, its model unless it was refused, and whether the run was for all members."""

    frame: ModelFrame | RefusedFrame
    model: Model | None
    full: bool


class _TrainingRuns:
    """One run after the other, and the failures of earlier ones: `not_before` (trio's clock) is when to try again."""

    def __init__(self, scoring: Scoring, trainer: Trainer, status: TrainingStatus) -> None:
        self._scoring = scoring
        self._trainer = trainer
        self._scratch = trainer.scratch
        self._status = status
        self._attempts = Attempts()
        self._interrupted: tuple[Path, _RunIdentity] | None = None  # a run to resume
        self.not_before = -math.inf

    async def read_earlier_runs(self, resume_through: int) -> None:
        """Take up the runs of the process before this one."""
        fraction = 0.0
        try:
            self._attempts = await trio.to_thread.run_sync(read_training_attempts, self._scratch)
            found = await trio.to_thread.run_sync(_find_interrupted_run, self._scratch)
            if found is not None:
                source, about, fraction = found
                if about.studied.seq <= resume_through and about.program == self._trainer.program:
                    self._interrupted = source, about
                else:
                    log.warning(
                        "training generation %d: starting over: the state or the program has changed since",
                        about.generation,
                    )
        except (SnapshotError, NewerFormatError, msgspec.DecodeError, OSError) as exc:
            log.warning("training: an interrupted run starts over: %s", exc)
        if self._interrupted is None:
            await self._forget_training_run()
        attempts = self._attempts
        if attempts.began_from is not None:
            attempts.no_further = attempts.no_further + 1 if fraction <= attempts.began_from else 0
            if attempts.no_further > INTERRUPTIONS_ALLOWED:
                self._count_failed_training(
                    f"the daemon ended {attempts.no_further} times while it trained, and it got no further"
                )
            attempts.began_from = None
            await self._write_training_attempts()
        self._status.note_failed_before(attempts)
        if attempts.failures:
            # A clock that was set cannot make it wait for longer than after a failure just now.
            wait = min(
                max(attempts.failed_at + self._pause_before_retry() - self._status.now(), 0.0),
                self._pause_before_retry(),
            )
            self._retry_training_in(wait)
            if wait:
                log.warning("training: failed %d times in a row, next in %.0f s", attempts.failures, wait)

    async def run_training_once(self) -> _TrainingResult | None:
        """One run. None when it failed, which is logged and kept in the status, and not to be tried again before
        `not_before`."""
        published, status, trainer = self._scoring.published, self._status, self._trainer
        data = await self._scoring.query(lambda detector: detector.training_set())
        summary = published.summary
        begun_by = _RunIdentity(
            data.generation, data.full, summary.generation, summary.restored, data.studied, trainer.program
        )
        began_from = 0.0
        status.begin_run(data.generation)
        try:
            interrupted, self._interrupted = self._interrupted, None
            if interrupted is not None and _same_run_but_later(interrupted[1], begun_by):
                source, begun_by = interrupted
                began_from = await trio.to_thread.run_sync(_partial_result_fraction, source)
                log.info("training generation %d: resuming an interrupted run", begun_by.generation)
            else:
                log.info("training generation %d: started, lines through %d", data.generation, data.line)
                source = await trio.to_thread.run_sync(self._write_training_set, data, begun_by)
            self._attempts.began_from = began_from
            await self._write_training_attempts()
            command = [*trainer.command, str(source), str(trainer.models)]
            trained = await train_in_child(command, status, trainer.silent_seconds)
            if isinstance(trained, str):
                name = f"model-{begun_by.generation}"
                refused = RefusedFrame(begun_by.generation, name, trained, begun_by.studied)
                return _TrainingResult(refused, None, begun_by.full)
            model = await trio.to_thread.run_sync(trainer.load, trained.name, trained.sha256)
        except Exception as exc:
            # Whatever it was cost one run of a child process; the state it came from is untouched.
            cause = os_error_text(exc, trainer.scratch) if isinstance(exc, OSError) else str(exc) or type(exc).__name__
            known = isinstance(exc, TrainingFailed | OSError)
            log.error("training generation %d: failed: %s", begun_by.generation, cause, exc_info=not known)
            self._count_failed_training(cause)
            self._retry_training_in(self._pause_before_retry())
            # A run killed from outside is resumed as long as it gets further each time; else its input is suspect.
            if (
                isinstance(exc, TrainingKilled)
                and await trio.to_thread.run_sync(_partial_result_fraction, source) > began_from
            ):
                self._interrupted = source, begun_by
            else:
                await self._forget_training_run()
            await self._write_training_attempts()
            return None
        if published.summary.generation != begun_by.in_force:
            # It continues a model that has been replaced, and would undo the replacement.
            reason = "another model was put in force while it was trained"
            refused = RefusedFrame(begun_by.generation, trained.name, reason, begun_by.studied)
            return _TrainingResult(refused, None, begun_by.full)
        frame = ModelFrame(model.generation, trained.name, trained.sha256, begun_by.studied)
        return _TrainingResult(frame, model, begun_by.full)

    async def note_training_succeeded(self) -> None:
        """The frame is applied: nothing of the run is needed any more."""
        self._status.note_succeeded()
        self._attempts = Attempts(failures_total=self._attempts.failures_total)
        await self._write_training_attempts()
        await self._forget_training_run()

    def _write_training_set(self, data: TrainingSet, run: _RunIdentity) -> Path:
        words = msgspec.json.encode(run).decode()
        return write_training_input(
            self._scratch, data.generation, data.studied.seq, data.line, data.to_columns(), words
        )

    def _count_failed_training(self, cause: str) -> None:
        attempts = self._attempts
        attempts.failures += 1
        attempts.failures_total += 1
        attempts.failed_at, attempts.error = self._status.now(), cause
        attempts.began_from, attempts.no_further = None, 0
        self._status.note_failed(attempts)

    def _pause_before_retry(self) -> float:
        return min(RETRY_SECONDS * 2.0 ** min(self._attempts.failures - 1, 30), MAX_RETRY_SECONDS)

    def _retry_training_in(self, seconds: float) -> None:
        self.not_before = trio.current_time() + seconds
        self._status.retry_at = self._status.now() + seconds

    async def _write_training_attempts(self) -> None:
        try:
            await trio.to_thread.run_sync(write_training_attempts, self._scratch, self._attempts)
        except OSError as exc:
            log.warning(
                "training: the number of failures will not outlive a restart: %s", os_error_text(exc, self._scratch)
            )

    async def _forget_training_run(self) -> None:
        try:
            await trio.to_thread.run_sync(forget_training_run, self._scratch)
        except OSError as exc:
            log.warning("training: files of an ended run were not removed: %s", os_error_text(exc, self._scratch))


def _find_interrupted_run(scratch: Path) -> tuple[Path, _RunIdentity, float] | None:
    """The interrupted run, and the fraction of it that is done. Blocks.

    Raises as `find_training_input`, and DecodeError."""
    found = find_training_input(scratch)
    if found is None:
        return None
    source, about = found
    return source, msgspec.json.decode(about, type=_RunIdentity), _partial_result_fraction(source)


def _partial_result_fraction(source: Path) -> float:
    """The fraction of the run on `source` from which its child can resume, as far as we can tell. Blocks."""
    try:
        notes = read_partial_result(source, None)
    except PartialError:
        return 0.0
    return 0.0 if notes is None else notes.fraction


def _same_run_but_later(then: _RunIdentity, now: _RunIdentity) -> bool:
    """Whether the run that began with `then` is the one that would begin now, except for the lines since."""
    return (then.generation, then.full, then.in_force, then.restored) == (
        now.generation,
        now.full,
        now.in_force,
        now.restored,
    )
