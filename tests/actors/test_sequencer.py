import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.sequencer import (
    FRAME_BYTES,
    GATHER_BYTES,
    Chunk,
    FrameRequest,
    Request,
    Sequencer,
    run_sequencer,
    submit_frame,
)
from detection.frames import FlushFrame, LinesFrame, Segment, Sequenced, SkipFrame, TickFrame, decode_frame
from persistence.journal_segment import Entry
from tests.actors.fakes import FakeStore, wall_clock
from tests.actors.test_checkpoint import until


@dataclass
class Running:
    sequencer: Sequencer
    store: FakeStore
    requests: "trio.MemorySendChannel[Request]"
    frames: trio.MemoryReceiveChannel[Sequenced]


@asynccontextmanager
async def running(store: FakeStore, *, idle_seconds: float = 1e6, queue: int = 4) -> AsyncIterator[Running]:
    sequencer = Sequencer(store.append, store.rotate, seq=7, line=100, now=wall_clock)
    requests_in, requests = trio.open_memory_channel[Request](64)
    frames_in, frames = trio.open_memory_channel[Sequenced](queue)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(run_sequencer, sequencer, requests, frames_in, idle_seconds=idle_seconds))
        with requests_in, frames:
            yield Running(sequencer, store, requests_in, frames)
        nursery.cancel_scope.cancel()


async def trouble(run: Running) -> None:
    # A virtual clock jumps while a worker thread works, so a length of time says nothing about it.
    while run.sequencer.failure is None:  # noqa: ASYNC110
        await trio.sleep(0.1)


def chunk(source: str, data: bytes) -> Chunk:
    return Chunk(Segment(source, "plain", data, data.count(b"\n")))


async def test_what_waits_together_shares_a_frame_and_is_told_when_it_is_durable() -> None:
    async with running(FakeStore()) as run:
        chunks = [chunk(f"s{n}", b"a\nb\n") for n in range(3)]
        for waiting in chunks:
            run.requests.send_nowait(waiting)
        item = await run.frames.receive()

        assert (item.seq, item.line) == (8, 106)
        assert isinstance(item.frame, LinesFrame)
        assert [segment.source for segment in item.frame.segments] == ["s0", "s1", "s2"]
        assert all(c.committed.is_set() for c in chunks)
        assert (run.sequencer.seq, run.sequencer.line) == (8, 106)
        (entry,) = run.store.entries
        assert (entry.seq, entry.line, entry.count, decode_frame(entry.payload)) == (8, 106, 6, item.frame)


async def test_a_frame_holds_at_most_256_kb_and_one_append_takes_all_that_waits() -> None:
    async with running(FakeStore()) as run:
        sizes = [100_000, 100_000, 100_000, FRAME_BYTES, 10]
        for n, size in enumerate(sizes):
            run.requests.send_nowait(chunk(f"s{n}", b"x" * (size - 1) + b"\n"))
        items = [await run.frames.receive() for _ in range(4)]

        held = [[len(s.data) for s in i.frame.segments] for i in items if isinstance(i.frame, LinesFrame)]
        assert held == [[100_000, 100_000], [100_000], [FRAME_BYTES], [10]]
        assert [item.line for item in items] == [102, 103, 104, 105]
        assert run.store.appends == [4]


async def test_other_frames_keep_their_place_among_lines_and_are_told_it() -> None:
    async with running(FakeStore()) as run:
        flush = FrameRequest(FlushFrame(1.0))
        for request in (chunk("a", b"1\n"), flush, chunk("b", b"2\n")):
            run.requests.send_nowait(request)
        items = [await run.frames.receive() for _ in range(3)]

        assert [type(item.frame) for item in items] == [LinesFrame, FlushFrame, LinesFrame]
        assert (flush.seq, flush.line) == (9, 101)
        assert await submit_frame(run.requests, FlushFrame(2.0)) == (11, 102)


async def test_nothing_reaches_scoring_or_a_source_before_the_journal_has_it(
    autojump_clock: MockClock,
) -> None:
    store = FakeStore(full=True)
    async with running(store) as run:
        item = chunk("a", b"1\n")
        run.requests.send_nowait(item)
        await trouble(run)
        assert not item.committed.is_set() and run.sequencer.seq == 7
        with pytest.raises(trio.WouldBlock):
            run.frames.receive_nowait()


async def test_a_full_disk_holds_sources_back_and_the_same_frame_is_written_when_it_is_free(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    store = FakeStore(full=True)
    async with running(store) as run:
        item = chunk("a", b"1\n")
        run.requests.send_nowait(item)
        await trouble(run)
        assert run.sequencer.failure is not None
        began = run.sequencer.failure.since
        await trio.sleep(60)
        assert "no space left" in run.sequencer.failure.error
        assert run.sequencer.failure.since == began

        store.full = False
        began = trio.current_time()
        await item.committed.wait()
        assert trio.current_time() - began <= 10
        assert run.sequencer.failure is None
        assert run.sequencer.heals == 1
        assert [entry.seq for entry in store.entries] == [8]
        assert len(caplog.records) == 2, "one error when it begins, one word when it is over"


async def test_cancelled_with_a_full_disk_it_confirms_nothing(autojump_clock: MockClock) -> None:
    item = chunk("a", b"1\n")
    async with running(FakeStore(full=True)) as run:
        run.requests.send_nowait(item)
        await trouble(run)
    assert not item.committed.is_set()


async def test_slow_scoring_holds_the_sources_back() -> None:
    async with running(FakeStore(), queue=1) as run:
        chunks = [chunk(f"s{n}", b"x" * FRAME_BYTES) for n in range(40)]
        for item in chunks:
            run.requests.send_nowait(item)
        appended = GATHER_BYTES // FRAME_BYTES
        await chunks[appended - 1].committed.wait()
        await wait_all_tasks_blocked()
        durable = sum(item.committed.is_set() for item in chunks)
        assert appended <= durable <= appended + 1, "one append, waiting for room"
        for _ in chunks:
            await run.frames.receive()
        assert all(item.committed.is_set() for item in chunks)


async def test_rotation_falls_between_appends(autojump_clock: MockClock) -> None:
    overlaps: list[str] = []
    busy = trio.Event()

    class Watched(FakeStore):
        def append(self, entries: Sequence[Entry]) -> None:
            overlaps.append("append")
            trio.from_thread.run_sync(busy.set)
            trio.from_thread.run(trio.sleep, 1)
            super().append(entries)
            overlaps.append("done")

        def rotate(self) -> None:
            super().rotate()
            overlaps.append("rotate")

    async with running(Watched()) as run:
        run.requests.send_nowait(chunk("a", b"1\n"))
        await busy.wait()
        await run.sequencer.rotate_journal()
        assert overlaps == ["append", "done", "rotate"]
        assert run.store.rotations == [8]


async def test_after_silence_one_tick_is_journaled_and_none_until_lines_come_again(
    autojump_clock: MockClock,
) -> None:
    async with running(FakeStore(), idle_seconds=60) as run:
        run.requests.send_nowait(chunk("a", b"1\n"))
        await run.frames.receive()
        sent = trio.current_time()
        tick = await run.frames.receive()
        assert isinstance(tick.frame, TickFrame) and tick.frame.received == wall_clock()
        assert 60 < trio.current_time() - sent < 65

        await trio.sleep(3600)
        await submit_frame(run.requests, FlushFrame(0.0))
        await run.frames.receive()
        await trio.sleep(3600)
        assert run.sequencer.seq == 10, "a flush is no line"
        run.requests.send_nowait(chunk("a", b"2\n"))
        kinds = [type((await run.frames.receive()).frame) for _ in range(2)]
        assert kinds == [LinesFrame, TickFrame]
        await trio.sleep(3600)
        assert run.sequencer.seq == 12


async def test_a_frame_is_journaled_at_once_while_whoever_applies_frames_takes_none() -> None:
    """He waits for it, and everybody waits for him."""
    async with running(FakeStore(), queue=0) as run:
        for n in range(3):
            run.requests.send_nowait(FrameRequest(FlushFrame(n)))
            await wait_all_tasks_blocked()
            await until(lambda: bool(run.store.entries))  # a thread writes them, which nothing here waits for
        assert [entry.seq for entry in run.store.entries] == [8], "the others wait until this one is taken"
        with trio.fail_after(5):
            assert await run.sequencer.interject_frame(SkipFrame(8)) == 9
        assert [decode_frame(entry.payload) for entry in run.store.entries] == [FlushFrame(0), SkipFrame(8)]
        taken = [await run.frames.receive() for _ in range(4)]
        assert [(item.seq, item.frame) for item in taken] == [
            (8, FlushFrame(0)),
            (9, SkipFrame(8)),
            (10, FlushFrame(1)),
            (11, FlushFrame(2)),
        ]


async def test_a_frame_that_comes_when_all_is_quiet_is_passed_on_too() -> None:
    async with running(FakeStore()) as run:
        await wait_all_tasks_blocked()
        assert await run.sequencer.interject_frame(SkipFrame(8)) == 8
        assert (await run.frames.receive()).frame == SkipFrame(8)


async def test_it_ends_with_its_requesters_and_what_they_asked_for_is_passed_on() -> None:
    async with running(FakeStore()) as run:
        for n in range(3):
            run.requests.send_nowait(chunk(f"s{n}", b"1\n"))
        run.requests.close()
        assert [item.line async for item in run.frames] == [103]
        await wait_all_tasks_blocked()
        await run.sequencer.rotate_journal()
        assert run.store.rotations == [8]
