"""The sequencer: numbers every frame, makes it durable, confirms it to its sources, passes it on.

Order of events for a frame: numbered, appended to the journal (durable on return), `committed` set for its
sources, sent to scoring. So what scoring has applied is in the journal, and a source whose chunk is committed
may forget its bytes. Chunks of many sources share a frame, and everything that waits shares one append.

The decision about a frame that cannot be applied is a frame, too. Scoring journals it in the middle of applying, while
everything else may be waiting for scoring: `interject_frame` neither queues behind requests nor waits until frames are
passed on.

A journal that cannot be written degrades the daemon, it does not stop it: nothing is confirmed, so sources wait,
and the same frames are tried again every `RETRY_SECONDS` until the disk is back. Then `heals` counts one up, and
a snapshot is due.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from detection.frames import Frame, Knowledge, LinesFrame, Segment, Sequenced, TickFrame, count_lines, encode_frame
from detection.models.model import Model
from persistence.journal import JournalError
from persistence.journal_segment import Entry

FRAME_BYTES = 256 * 1024  # of line data in one frame: what scoring does in one turn
GATHER_BYTES = 512 * 1024  # in one append: it may be accepted ahead of scoring, and be left to replay
RETRY_SECONDS = 1.0
# A tick comes a little after the idle time, so that a log clock slightly ahead of ours is past it, too.
TICK_GRACE_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Chunk:
    """What ingest hands over; `committed` is set once `segment` is durable."""

    segment: Segment
    committed: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False, slots=True)
class FrameRequest:
    """A frame other than lines. `seq` and `line` are its place once `committed` is set."""

    frame: Frame
    model: Model | None = None
    knowledge: Knowledge | None = None
    committed: trio.Event = field(default_factory=trio.Event)
    seq: int = 0
    line: int = 0


Request = Chunk | FrameRequest


async def submit_frame(
    requests: "trio.MemorySendChannel[Request]",
    frame: Frame,
    model: Model | None = None,
    knowledge: Knowledge | None = None,
) -> tuple[int, int]:
    """Have `frame` journaled; its (seq, line) once it is durable, applied a little later.

    The frame takes its place even when the caller is cancelled while waiting for the answer.
    """
    request = FrameRequest(frame, model, knowledge)
    await requests.send(request)
    await request.committed.wait()
    return request.seq, request.line


@dataclass(frozen=True, slots=True)
class JournalFailure:
    """Why the journal cannot be written, and since when (seconds since the epoch)."""

    error: str
    since: float


class Sequencer:
    """The number of the last durable frame, and the only writer of the journal.

    `handed_on` is the last frame that is on its way to scoring or there, 0 as long as this process had none.
    `append` and `rotate` are the store's: blocking, run in one worker thread, one at a time.
    `now` is the wall clock in seconds since the epoch; it stamps frames and is read nowhere else.
    """

    def __init__(
        self,
        append: Callable[[Sequence[Entry]], None],
        rotate: Callable[[], None],
        *,
        seq: int,
        line: int,
        now: Callable[[], float],
    ) -> None:
        self.seq = seq
        self.line = line
        self.handed_on = 0
        self.failure: JournalFailure | None = None
        self.heals = 0
        self._append = append
        self._rotate = rotate
        self._now = now
        self._placing = trio.Lock()  # from giving numbers out to their being durable
        self._turn = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)
        self._onward: deque[Sequenced] = deque()  # durable, in order, not passed on yet
        self._moved = trio.Event()

    async def rotate_journal(self) -> None:
        """Begin a new journal segment, between two appends. Raises JournalError or OSError.

        Also works when `run_sequencer` has ended, for the last checkpoint.
        """
        async with self._turn:
            await trio.to_thread.run_sync(self._rotate, limiter=self._limiter)

    async def interject_frame(self, frame: Frame) -> int:
        """Have `frame` journaled now, and return its seq when it is durable; it is passed on in its place.

        For scoring in the middle of applying another frame, which holds up everything else: this does not wait for it.
        Also works when `run_sequencer` has ended; then this process does not apply it any more.
        """
        request = FrameRequest(frame)
        await self.commit_requests([request])
        return request.seq

    async def commit_requests(self, requests: Sequence[Request]) -> None:
        """Number and append `requests`, however often the journal fails, and set `committed` of each. After that they
        are passed on by `pass_frames_on`."""
        async with self._placing:
            placed = self._number_frames(requests)
            await self._journal_frames([item for item, _ in placed])
            for item, members in placed:
                self.seq, self.line = item.seq, item.line
                self.handed_on = item.seq
                self._onward.append(item)
                for request in members:
                    if isinstance(request, FrameRequest):
                        request.seq, request.line = item.seq, item.line
                    request.committed.set()
        self._wake_passing_on()

    async def pass_frames_on(self, frames: trio.MemorySendChannel[Sequenced]) -> None:
        """Until cancelled, send on what is durable, one after the other."""
        while True:
            while self._onward:
                await frames.send(self._onward[0])
                self._onward.popleft()
                self._wake_passing_on()
            await self._moved.wait()

    async def all_passed_on(self) -> None:
        """Return when everything durable has been passed on."""
        while self._onward:
            await self._moved.wait()

    def _wake_passing_on(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    def _number_frames(self, requests: Sequence[Request]) -> list[tuple[Sequenced, list[Request]]]:
        """The frames that come next, numbered, each with the requests that it is made of."""
        placed: list[tuple[Sequenced, list[Request]]] = []
        seq, line, received = self.seq, self.line, self._now()
        for members in _group_requests_into_frames(requests):
            first = members[0]
            seq += 1
            if isinstance(first, FrameRequest):
                placed.append((Sequenced(seq, line, first.frame, first.model, first.knowledge), members))
                continue
            frame = LinesFrame(received, tuple(chunk.segment for chunk in members if isinstance(chunk, Chunk)))
            line += count_lines(frame)
            placed.append((Sequenced(seq, line, frame), members))
        return placed

    async def _journal_frames(self, items: Sequence[Sequenced]) -> None:
        """Append `items` to the journal, trying again as long as that fails."""
        while True:
            # The turn is given up between tries: a checkpoint that rotates may be what heals the journal.
            async with self._turn:
                try:
                    await trio.to_thread.run_sync(self._append_to_journal, items, limiter=self._limiter)
                    break
                except JournalError as exc:
                    self._note_journal_failure(exc)
            await trio.sleep(RETRY_SECONDS)
        if self.failure is not None:
            log.warning("journal: written again after %.1f s", self._now() - self.failure.since)
            self.failure = None
            self.heals += 1

    def _note_journal_failure(self, exc: JournalError) -> None:
        if self.failure is None:
            log.error("journal: not written, sources wait, retrying: %s", exc)
        self.failure = JournalFailure(str(exc), self.failure.since if self.failure else self._now())

    def _append_to_journal(self, items: Sequence[Sequenced]) -> None:
        self._append([Entry(item.seq, item.line, count_lines(item.frame), encode_frame(item.frame)) for item in items])

    def tick_request(self) -> FrameRequest:
        return FrameRequest(TickFrame(self._now()))


def _group_requests_into_frames(requests: Sequence[Request]) -> list[list[Request]]:
    """`requests` in order, chunks together up to FRAME_BYTES, every other frame on its own."""
    groups: list[list[Request]] = []
    room = 0
    for request in requests:
        size = len(request.segment.data) if isinstance(request, Chunk) else 0
        if isinstance(request, Chunk) and groups and isinstance(groups[-1][0], Chunk) and size <= room:
            groups[-1].append(request)
        else:
            groups.append([request])
            room = FRAME_BYTES
        room -= size
    return groups


async def run_sequencer(
    sequencer: Sequencer,
    requests: "trio.MemoryReceiveChannel[Request]",
    frames: trio.MemorySendChannel[Sequenced],
    *,
    idle_seconds: float,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Commit requests and pass the frames on until every requester is gone, then close `frames`.

    Takes ownership of both channel ends. When scoring is slow the send waits, so requests wait, so sources
    wait. After `idle_seconds` without lines one tick is journaled, and no other until lines come again.
    Cancelled: `committed` is never set for what was not durable yet.
    """
    silence = idle_seconds + TICK_GRACE_SECONDS
    with requests, frames:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sequencer.pass_frames_on, frames)
            task_status.started()
            # From the start: sessions that were open before a restart end by silence, too.
            tick_at = trio.current_time() + silence
            while True:
                try:
                    gathered = await _gather_requests(requests, tick_at)
                except trio.EndOfChannel:
                    break
                if not gathered:
                    gathered, tick_at = [sequencer.tick_request()], math.inf
                elif any(isinstance(request, Chunk) for request in gathered):
                    tick_at = trio.current_time() + silence
                await sequencer.commit_requests(gathered)
                await sequencer.all_passed_on()
            nursery.cancel_scope.cancel()


async def _gather_requests(requests: "trio.MemoryReceiveChannel[Request]", deadline: float) -> list[Request]:
    """The next request and all that wait behind it, about GATHER_BYTES at most; empty at the deadline.

    A source has one chunk under way, so one gathering takes at most one chunk of each: that is all the
    fairness needs.
    """
    gathered: list[Request] = []
    size = 0
    with trio.CancelScope(deadline=deadline):
        gathered.append(await requests.receive())
    while gathered and size < GATHER_BYTES:
        size += len(gathered[-1].segment.data) if isinstance(gathered[-1], Chunk) else 0
        try:
            gathered.append(requests.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            # The next receive meets the end of the channel again.
            break
    return gathered
