"""Scoring: the one owner of the detector. Frames and queries take turns at it, in a worker thread.

Turns are first come, first served, so a query waits for at most one frame (and for queries before it).

A detector that raised on a frame cannot be used any further. `read_back` makes another one in the same turn, so no
query sees the old one, and the verdicts of the new one are those of the frame: it may have judged without one of its
members, or have left the frame out. That decision is journaled before `read_back` returns.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import trio

from actors.latest_summary import LatestSummary
from detection.columns.state_columns import State
from detection.frames import Sequenced
from detection.summary import Summary

if TYPE_CHECKING:  # heavy imports come with it, and lines are journaled before those are done
    from detection.detector import Detector
    from detection.verdicts.verdict_records import Verdicts

HEARTBEAT_SECONDS = 1.0

T = TypeVar("T")


class StateAbandoned(Exception):
    """A frame was applied half-way, so the state in memory is no state of any frame."""


class Scoring:
    """Turns at the detector, and `published`: its summary after the last frame.

    `read_back` gets a frame on which the detector raised, and the error; it returns a detector that has applied that
    frame, or left it out, and the verdicts, or raises. Blocking, called in the worker thread; no state that was
    exported before is being written then, see `exported_state`.
    """

    def __init__(
        self,
        detector: "Detector",
        read_back: "Callable[[Sequenced, Exception], tuple[Detector, Verdicts]] | None" = None,
    ) -> None:
        self._detector = detector
        self._read_back = read_back
        self._turn = trio.Lock()
        self._saving = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)
        self._applying: int | None = None
        self.published = LatestSummary(detector.summary())

    async def apply_frame(self, item: Sequenced) -> "Verdicts":
        """Apply and publish. After an error the state is abandoned: no query or export is served."""

        def apply_to_detector() -> "tuple[Verdicts, Summary] | Exception":
            # Marked in the thread: a cancellation before it starts must not cost the state.
            self._applying = item.seq
            try:
                verdicts = self._detector.apply(item)
                summary = self._detector.summary()
            except Exception as exc:  # whatever it is, it must not cost the daemon
                if self._read_back is None:
                    raise
                return exc
            self._applying = None
            return verdicts, summary

        def read_back_detector(error: Exception) -> "tuple[Verdicts, Summary]":
            assert self._read_back is not None
            self._detector, verdicts = self._read_back(item, error)
            self._applying = None
            return verdicts, self._detector.summary()

        async with self._turn:
            self._refuse_abandoned_state()
            outcome = await self._run_in_worker_thread(apply_to_detector)
            if isinstance(outcome, Exception):
                error = outcome
                # A snapshot being written is finished first: earlier frames may now be judged differently, and after
                # that no snapshot of the old judgement may be written.
                async with self._saving:
                    outcome = await self._run_in_worker_thread(lambda: read_back_detector(error))
            verdicts, summary = outcome
            self.published.publish_summary(summary)
        return verdicts

    async def query(self, question: "Callable[[Detector], T]") -> T:
        """The answer of `question`, which only reads the detector it is given, in the worker thread.

        It gets the detector of the moment when its turn comes: the frame before may have replaced it.
        Raises StateAbandoned, and what `question` raises. Cancelled, it still runs to its end if it has begun.
        """
        async with self._turn:
            self._refuse_abandoned_state()
            return await self._run_in_worker_thread(lambda: question(self._detector))

    @asynccontextmanager
    async def exported_state(self) -> AsyncIterator[tuple[Summary, State]]:
        """A copy of the state, and the summary of the same moment; for one caller at a time.

        Frames are applied meanwhile, but none is read back until this is left, so nothing is written in here of a state
        that was abandoned. Raises StateAbandoned.
        """
        async with self._turn:
            self._refuse_abandoned_state()
            exported = await self._run_in_worker_thread(lambda: (self._detector.summary(), self._detector.export()))
            # In this turn, before the next frame can fail. No task waits for a turn while it holds this lock.
            await self._saving.acquire()
        try:
            yield exported
        finally:
            self._saving.release()

    async def call_heartbeat(self, heartbeat: Callable[[], None]) -> None:
        """Call `heartbeat` every HEARTBEAT_SECONDS, in a turn of its own: a hung detector stops it."""
        while True:
            async with self._turn:
                heartbeat()
            await trio.sleep(HEARTBEAT_SECONDS)

    async def _run_in_worker_thread(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._limiter)

    def _refuse_abandoned_state(self) -> None:
        if self._applying is not None:
            raise StateAbandoned(f"frame {self._applying} was not applied to its end")


async def run_scoring(
    scoring: Scoring,
    frames: trio.MemoryReceiveChannel[Sequenced],
    verdicts: "trio.MemorySendChannel[Verdicts]",
    heartbeat: Callable[[], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Apply frames until the sequencer is gone, then close `verdicts` and `scoring.published`.

    Takes ownership of both channel ends. `heartbeat` is called about once a second, on the event loop, as
    long as turns come to an end. An exception of the detector propagates: the state is abandoned.
    """
    with frames, verdicts:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scoring.call_heartbeat, heartbeat)
                task_status.started()
                async for item in frames:
                    await verdicts.send(await scoring.apply_frame(item))
                nursery.cancel_scope.cancel()
        finally:
            scoring.published.close()
