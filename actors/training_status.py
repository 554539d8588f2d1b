"""The progress of the training run under way and the failures of earlier ones: for /status, the phase and the log."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec

from persistence.training_files import Attempts

LOG_STEP = 0.1  # of a run, between two lines in the log

log = logging.getLogger("actors.training")


class RunProgress(msgspec.Struct):
    """The progress that the trainer's process reports."""

    stage: str
    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None
    fraction: float | None = None
    seconds_left: float | None = None


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

    def begin_run(self, generation: int) -> None:
        self._set_run_progress(RunProgress(stage="starting", fraction=0.0))
        self.in_progress, self.generation = True, generation
        self.attempts += 1
        self.retry_at = None

    def note_progress(self, progress: RunProgress) -> None:
        if (
            _log_step_of_fraction(progress.fraction) > _log_step_of_fraction(self.fraction)
            or progress.stage != self.stage
        ):
            log.info("training generation %s: %s", self.generation, _training_progress_text(progress))
        self._set_run_progress(progress)

    def note_resumed(self, fraction: float) -> None:
        """The run under way goes on from `fraction`."""
        self.resumed_from = self.fraction = fraction
        log.info("training generation %s: resumed at %.0f %%", self.generation, 100.0 * fraction)

    def note_failed(self, attempts: Attempts) -> None:
        """The last run failed, the last of `attempts`."""
        self.note_stopped()
        self.note_failed_before(attempts)

    def note_failed_before(self, attempts: Attempts) -> None:
        """No run is under way."""
        self.attempts, self.error, self.failures_total = attempts.failures, attempts.error, attempts.failures_total

    def note_succeeded(self) -> None:
        self.note_stopped()
        self.attempts, self.error = 0, None

    def note_stopped(self) -> None:
        """No run is under way any more."""
        self._set_run_progress(RunProgress(stage=""))
        self.in_progress, self.stage, self.resumed_from = False, None, None

    def as_dict(self) -> dict[str, Any]:
        shown = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "now"}
        left = None if self.retry_at is None else round(max(self.retry_at - self.now(), 0.0), 1)
        return {**shown, "retry_in_seconds": left}

    def _set_run_progress(self, progress: RunProgress) -> None:
        for name in RunProgress.__struct_fields__:
            setattr(self, name, getattr(progress, name))


def _log_step_of_fraction(fraction: float | None) -> int:
    """How many steps of LOG_STEP a run has behind it: each new one is logged."""
    return int((fraction or 0.0) / LOG_STEP + 1e-9)


def _training_progress_text(progress: RunProgress) -> str:
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
