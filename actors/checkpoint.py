"""Checkpoints: when to save, and saving.

    export (state as of frame seq) -> alerts durable through seq -> digest, snapshot -> new journal segment

In this order a snapshot never says more than the files beside it hold, whatever is killed between two steps.
One save answers every request that came before it began. Periodic saves take at most BUDGET of one processor:
their own work counts, not what they wait for, since what comes between two of them is what a start has to replay.
Requested saves always run, and so do two others: after a restore, which a restart would otherwise repeat, and when
the disk can be written again. A failed save is logged, counted and tried again; the old snapshot stays. A request
with nothing new since the last snapshot is answered with that one.

An *extra* save is for a client that may query but not change anything. It takes nothing from the periodic ones:
neither their time, for it does not put them off, nor their places (`Store.write_snapshot`). Extra saves together take
at most BUDGET, too: requests that come sooner wait, and share one.
"""

import logging
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import trio

from actors.alerts import Alerts
from actors.scoring import Scoring
from actors.sequencer import Sequencer
from detection.columns.state_columns import Columns, State, digest
from persistence.disk import os_error_text
from persistence.journal import JournalError
from persistence.store import SnapshotInfo

BUDGET = 0.05
EXTRA_SECONDS = 1.0  # from the beginning of one extra save to the next, at least
# What a save is given once the process is to end; a stop must not hang on a dead disk.
FINAL_SAVE_SECONDS = 20.0
# A failed periodic save is not tried again with every frame.
FAILED_PAUSE_SECONDS = 5.0

log = logging.getLogger(__name__)


class CheckpointError(Exception):
    """No snapshot was written; the message says why. The one before is still there."""


class SnapshotWriter(Protocol):
    """The part of `persistence.store.Store` that checkpoints need; blocking."""

    @property
    def directory(self) -> Path: ...

    def write_snapshot(
        self, seq: int, line: int, columns: Columns, models: Collection[str] = (), *, extra: bool = False
    ) -> SnapshotInfo: ...

    def has_snapshot(self, name: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Saved:
    """A durable snapshot. `seconds` it took from the export on, `time` is when (since the epoch)."""

    seq: int
    line: int
    path: Path
    bytes: int
    seconds: float
    digest: str
    time: float

    def reply(self) -> dict[str, Any]:
        """The reply to the requester, as `POST /checkpoint` gives it."""
        return {
            "line": self.line,
            "path": str(self.path),
            "bytes": self.bytes,
            "seconds": round(self.seconds, 6),
            "digest": self.digest,
        }


@dataclass(eq=False, slots=True)
class _CheckpointRequest:
    through: int
    extra: bool
    done: trio.Event = field(default_factory=trio.Event)
    outcome: Saved | CheckpointError | None = None


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """When periodic saves are due. `now` is the wall clock in seconds since the epoch, for `Saved.time` only; `worked`
    the seconds of a processor that the calling thread has used so far."""

    every_lines: int = 10_000
    every_seconds: float = 300.0
    now: Callable[[], float] = time.time
    worked: Callable[[], float] = time.thread_time


class Checkpoints:
    """Where a save is requested, and what is known of the last one: `seq` and `line` are those of its snapshot.

    `after` are those of the snapshot that the process started from, (0, 0) without one. `models` names the model files
    that a state refers to.
    """

    def __init__(
        self,
        store: SnapshotWriter,
        sequencer: Sequencer,
        scoring: Scoring,
        alerts: Alerts,
        settings: CheckpointSettings,
        *,
        models: Callable[[State], Collection[str]],
        after: tuple[int, int] = (0, 0),
    ) -> None:
        self.last: Saved | None = None
        self.seq, self.line = after
        self._counted_seq, self._counted_line = after  # of the last one that was not extra
        self.error: str | None = None
        self.failures = 0
        self._store = store
        self._sequencer = sequencer
        self._scoring = scoring
        self._alerts = alerts
        self._models = models
        self._settings = settings
        self._requests: list[_CheckpointRequest] = []
        self._wake = trio.Event()
        self._ended = False
        self._earliest = -math.inf
        self._earliest_extra = -math.inf
        self._cost = 0.0  # of the last save, in seconds of a processor
        self._retry_at = -math.inf
        self._heals_saved = 0
        self._last_time = trio.current_time()
        self._limiter = trio.CapacityLimiter(1)

    async def request_snapshot(self, *, extra: bool = False) -> Saved:
        """Save now, an `extra` one as soon as it may; the snapshot covers every frame that was durable when this was
        called.

        The save runs to its end even when the caller is cancelled. Raises CheckpointError.
        """
        if self._ended:
            raise CheckpointError("no snapshot: the daemon is stopping")
        # Not `seq`: the frames that recovery had to leave out are never applied.
        request = _CheckpointRequest(self._sequencer.handed_on, extra)
        self._requests.append(request)
        self._wake.set()
        await request.done.wait()
        if isinstance(request.outcome, Saved):
            return request.outcome
        raise CheckpointError(str(request.outcome)) from request.outcome

    def status(self) -> dict[str, Any]:
        return {
            "last_line": self.line,
            "last_time": self.last.time if self.last else None,
            "seconds": self.last.seconds if self.last else None,
            "digest": self.last.digest if self.last else None,
            "error": self.error,
            "failures": self.failures,
        }

    async def save_when_due(self) -> None:
        """Save whenever it is due, until scoring has ended and every request is answered."""
        published = self._scoring.published
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_summaries)
            while not self._ended:
                with trio.move_on_at(min(self._next_periodic_save(), self._next_requested_save())):
                    await self._wake.wait()
                self._wake = trio.Event()
                periodic = trio.current_time() >= self._next_periodic_save()
                if periodic or trio.current_time() >= self._next_requested_save():
                    await self._save_for_all_requests(published.summary.seq, periodic)
            nursery.cancel_scope.cancel()

    async def _watch_summaries(self) -> None:
        published = self._scoring.published
        summary = published.summary
        try:
            while True:
                summary = await published.newer_summary(summary)
                self._wake.set()
        except trio.EndOfChannel:
            self._ended = True
            self._wake.set()

    def _next_requested_save(self) -> float:
        if not self._requests:
            return math.inf
        return self._earliest_extra if all(request.extra for request in self._requests) else -math.inf

    def _next_periodic_save(self) -> float:
        """When the next periodic save is due."""
        summary = self._scoring.published.summary
        if summary.seq == self._counted_seq:
            return math.inf
        if summary.restored > self._counted_seq or self._sequencer.heals != self._heals_saved:
            return self._retry_at
        if summary.line - self._counted_line >= self._settings.every_lines:
            return self._earliest
        return max(self._earliest, self._last_time + self._settings.every_seconds)

    async def _save_for_all_requests(self, seq: int, periodic: bool) -> None:
        requests, self._requests = self._requests, []
        extra = not periodic and all(request.extra for request in requests)
        began = trio.current_time()
        outcome: Saved | CheckpointError | None
        try:
            # A frame is durable before it is applied: wait until everything accepted is, too.
            await self._scoring.published.wait_for_frame(max([seq, *(request.through for request in requests)]))
            outcome = None if periodic else await self._last_snapshot_if_nothing_is_new(extra)
            if outcome is None:
                outcome = await self.save_snapshot(extra=extra)
        except (CheckpointError, trio.EndOfChannel) as exc:
            outcome = exc if isinstance(exc, CheckpointError) else CheckpointError("scoring has ended")
        pause = FAILED_PAUSE_SECONDS if isinstance(outcome, CheckpointError) else 0.0
        if extra:
            self._earliest_extra = began + max(EXTRA_SECONDS, pause, self._cost / BUDGET)
        else:
            self._last_time = trio.current_time()
            self._retry_at = self._last_time + pause
            self._earliest = max(self._retry_at, began + self._cost / BUDGET)
        for request in requests:
            request.outcome = outcome
            request.done.set()

    async def _last_snapshot_if_nothing_is_new(self, extra: bool) -> Saved | None:
        """The last snapshot if it is of the state as it is, and there."""
        last, newest, sequencer = self.last, self._scoring.published.summary.seq, self._sequencer
        if last is None or last.seq != newest or not (extra or self._counted_seq == newest):
            return None
        if self.error or sequencer.failure is not None or sequencer.heals != self._heals_saved:
            return None  # while the disk fails, a request finds out whether it can be written
        return last if await trio.to_thread.run_sync(self._store.has_snapshot, last.path.name) else None

    async def save_snapshot(self, *, extra: bool = False) -> Saved:
        """One snapshot of the state as it is. Raises CheckpointError, logged and counted."""
        began, heals = trio.current_time(), self._sequencer.heals
        try:
            async with self._scoring.exported_state() as (summary, columns):
                await self._alerts.sync_through(summary.seq)
                info, sha = await trio.to_thread.run_sync(
                    self._write_state_snapshot,
                    summary.seq,
                    summary.line,
                    columns,
                    extra,
                    limiter=self._limiter,
                    abandon_on_cancel=True,
                )
        except Exception as exc:
            # Whatever it was, it cost one snapshot; the journal holds what the snapshot would have.
            self.failures += 1
            why = (
                os_error_text(exc, self._store.directory)
                if isinstance(exc, OSError)
                else str(exc) or type(exc).__name__
            )
            known, self.error = self.error, f"no snapshot: {why}"
            if self.error != known:  # a disk may be full for hours
                log.error("%s", self.error, exc_info=None if isinstance(exc, OSError) else exc)
            raise CheckpointError(self.error) from exc
        if self.error is not None:
            log.warning("snapshots are written again")
        self.seq, self.line, self.error = summary.seq, summary.line, None
        if not extra:
            self._counted_seq, self._counted_line = summary.seq, summary.line
        self._heals_saved = heals
        seconds = trio.current_time() - began
        path = self._store.directory / info.name
        self.last = Saved(summary.seq, summary.line, path, info.bytes, seconds, sha, self._settings.now())
        try:
            await self._sequencer.rotate_journal()
        except (JournalError, OSError) as exc:
            # The snapshot is durable; the next append opens a segment of its own.
            log.warning("journal: no new segment after %s: %s", info.name, exc)
        return self.last

    def _write_state_snapshot(self, seq: int, line: int, columns: State, extra: bool) -> tuple[SnapshotInfo, str]:
        # The copy that scoring made before is the smaller part of the work, and not counted.
        began = self._settings.worked()
        try:
            sha = digest(columns)
            models = self._models(columns)
            return self._store.write_snapshot(seq, line, columns, models=models, extra=extra), sha
        finally:
            self._cost = self._settings.worked() - began

    def last_save_wanted(self) -> bool:
        """Whether a last save has anything to do."""
        return bool(self._requests) or self._scoring.published.summary.seq != self.seq

    def end_requests(self, outcome: Saved | None, why: str) -> None:
        """Answer the requests that still wait, and refuse those that come from now on."""
        self._ended = True
        for request in self._requests:
            covered = outcome is not None and outcome.seq >= request.through
            request.outcome = outcome if covered else CheckpointError(why)
            request.done.set()
        self._requests = []


async def run_checkpoint(
    checkpoints: Checkpoints,
    *,
    final_seconds: float = FINAL_SAVE_SECONDS,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Save when it is due; when scoring has ended, or we are cancelled, save what is unsaved once more.

    Raises CheckpointError when that last save failed or took longer than `final_seconds`: a failed stop.
    """
    task_status.started()
    try:
        await checkpoints.save_when_due()
    finally:
        # We may be being cancelled: shield the last save, but never hang the stop.
        with trio.move_on_after(final_seconds, shield=True) as deadline:
            try:
                if checkpoints.last_save_wanted():
                    await checkpoints.save_snapshot()
            finally:
                checkpoints.end_requests(checkpoints.last, checkpoints.error or "no snapshot: the daemon is stopping")
        if deadline.cancelled_caught:
            raise CheckpointError(f"no snapshot: not written within {final_seconds:g} s of the stop")
