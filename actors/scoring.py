"""Scoring: the one owner of the detector. Frames and questions take turns at it, in a worker thread.

Turns are first come, first served, so a question waits for at most one frame (and for questions before it).

A frame on which the detector raises has spoilt it. Another one is made in the same turn, so nobody sees the spoilt
one, and what it says of the frame takes the place of what the spoilt one would have said: it may have judged without
a part of itself, or have left the frame out. Whoever makes it has journaled that before it comes here.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

import trio

from actors.latest_summary import Published, S, Summary
from detection.columns.state import State
from detection.frames import Sequenced

HEARTBEAT_SECONDS = 1.0

T = TypeVar("T")
SummaryT = TypeVar("SummaryT", bound=Summary, covariant=True)
TrainingSetT = TypeVar("TrainingSetT", covariant=True)


class Verdicts(Protocol):
    """What one frame led to. Ids ("123", "123.2") ascend within it and from frame to frame."""

    @property
    def seq(self) -> int: ...

    @property
    def line(self) -> int: ...

    @property
    def lines(self) -> int: ...

    def flagged(self) -> list[dict[str, Any]]: ...

    def records(self) -> Iterator[dict[str, Any]]: ...


class Detector(Protocol[SummaryT, TrainingSetT]):
    """What scoring asks of a detector: blocking, never two calls at a time."""

    def apply(self, item: Sequenced) -> Verdicts: ...

    def ask(self, lines: Sequence[bytes], session: str | None, explain: bool = False) -> list[dict[str, Any]]: ...

    def incidents(self, limit: int) -> list[dict[str, Any]]: ...

    def answers(self) -> list[dict[str, Any]]: ...

    def has_template(self, template: int) -> bool: ...

    def generations(self) -> list[dict[str, Any]]: ...

    def export(self) -> State: ...

    def training_set(self) -> TrainingSetT: ...

    def summary(self) -> SummaryT: ...


class StateAbandoned(Exception):
    """A frame was applied half-way, so the state in memory is no state of any frame."""


class Scoring(Generic[S, TrainingSetT]):
    """Turns at the detector, and `published`: its summary after the last frame.

    `read_back` gets a frame on which the detector raised, and the error; it returns a detector that has seen that
    frame, or left it out, and the verdicts, or raises. Blocking, called in the worker thread; no state that was
    exported before is on its way then, see `exporting`.
    """

    def __init__(
        self,
        detector: Detector[S, TrainingSetT],
        read_back: Callable[[Sequenced, Exception], tuple[Detector[S, TrainingSetT], Verdicts]] | None = None,
    ) -> None:
        self._detector = detector
        self._read_back = read_back
        self._turn = trio.Lock()
        self._saving = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)
        self._applying: int | None = None
        self.published: Published[S] = Published(detector.summary())

    async def apply(self, item: Sequenced) -> Verdicts:
        """Apply and publish. After an error the state is abandoned: nothing is answered or exported."""

        def apply() -> tuple[Verdicts, S] | Exception:
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

        def read_back(error: Exception) -> tuple[Verdicts, S]:
            assert self._read_back is not None
            self._detector, verdicts = self._read_back(item, error)
            self._applying = None
            return verdicts, self._detector.summary()

        async with self._turn:
            self._refuse_abandoned()
            outcome = await self._in_thread(apply)
            if isinstance(outcome, Exception):
                error = outcome
                # A snapshot under way is written first: frames before this one may come to be judged otherwise, and
                # none may be written then that does not know of it.
                async with self._saving:
                    outcome = await self._in_thread(lambda: read_back(error))
            verdicts, summary = outcome
            self.published.publish(summary)
        return verdicts

    async def ask(self, lines: Sequence[bytes], session: str | None, explain: bool = False) -> list[dict[str, Any]]:
        """What the detector would say of each line now, and with `explain` why. Changes nothing."""
        return await self._turn_for(lambda: self._detector.ask(lines, session, explain))

    async def incidents(self, limit: int) -> list[dict[str, Any]]:
        """The last `limit` incidents, newest first."""
        return await self._turn_for(lambda: self._detector.incidents(limit))

    async def answers(self) -> list[dict[str, Any]]:
        """The operator's answers that are in force, oldest first."""
        return await self._turn_for(lambda: self._detector.answers())

    async def has_template(self, template: int) -> bool:
        """Whether a line can still be of that template."""
        return await self._turn_for(lambda: self._detector.has_template(template))

    async def generations(self) -> list[dict[str, Any]]:
        """What became of each generation of models, newest first."""
        return await self._turn_for(lambda: self._detector.generations())

    @asynccontextmanager
    async def exporting(self) -> AsyncIterator[tuple[S, State]]:
        """A copy of the state, and the summary of the same moment; for one at a time. Frames go on being applied,
        but until this is left none is read back: what is written in here is never of a state that was taken back."""
        async with self._turn:
            self._refuse_abandoned()
            exported = await self._in_thread(self._export)
            # In this turn, before the next frame can fail; who holds it waits for no turn.
            await self._saving.acquire()
        try:
            yield exported
        finally:
            self._saving.release()

    async def export(self) -> tuple[S, State]:
        """A copy of the state, and the summary of the same moment."""
        return await self._turn_for(self._export)

    def _export(self) -> tuple[S, State]:
        return self._detector.summary(), self._detector.export()

    async def training_set(self) -> TrainingSetT:
        return await self._turn_for(lambda: self._detector.training_set())

    async def beat(self, heartbeat: Callable[[], None]) -> None:
        """Call `heartbeat` every HEARTBEAT_SECONDS, in a turn of its own: a hung detector stops it."""
        while True:
            async with self._turn:
                heartbeat()
            await trio.sleep(HEARTBEAT_SECONDS)

    async def _turn_for(self, call: Callable[[], T]) -> T:
        """`call` looks for the detector when its turn has come: the frame before may have put another in its place."""
        async with self._turn:
            self._refuse_abandoned()
            return await self._in_thread(call)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._limiter)

    def _refuse_abandoned(self) -> None:
        if self._applying is not None:
            raise StateAbandoned(f"frame {self._applying} was not applied to its end")


async def run_scoring(
    scoring: Scoring[S, TrainingSetT],
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
                nursery.start_soon(scoring.beat, heartbeat)
                task_status.started()
                async for item in frames:
                    await verdicts.send(await scoring.apply(item))
                nursery.cancel_scope.cancel()
        finally:
            scoring.published.close()
