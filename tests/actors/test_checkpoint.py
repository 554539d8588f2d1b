import re
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.alerts import Alerts, Outlet, run_alerts
from actors.checkpoint import (
    EXTRA_SECONDS,
    FAILED_PAUSE_SECONDS,
    CheckpointError,
    Checkpoints,
    CheckpointSettings,
    run_checkpoint,
)
from actors.scoring import run_scoring
from actors.sequencer import Chunk, Request, Sequencer, run_sequencer
from detection.columns.state_columns import Columns, State, digest
from detection.frames import Segment, Sequenced
from detection.verdicts.verdict_records import Verdicts
from persistence.store import SnapshotInfo
from tests.actors.fakes import FakeDetector, FakeStore, FakeWriter, scoring_of, wall_clock


class Flow:
    """Sequencer, scoring, alerts and checkpoints, wired as the daemon does it."""

    def __init__(
        self,
        store: FakeStore,
        *,
        every_lines: int = 10**9,
        every_seconds: float = 1e9,
        final_seconds: float = 20.0,
        worked: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.store = store
        self.detector = FakeDetector()
        self.writer = FakeWriter()
        self.scoring = scoring_of(self.detector)
        self.sequencer = Sequencer(store.append, store.rotate, seq=0, line=0, now=wall_clock)
        self.alerts = Alerts(Outlet("alerts", self.writer), seq=0)
        self.checkpoints = Checkpoints(
            store,
            self.sequencer,
            self.scoring,
            self.alerts,
            CheckpointSettings(every_lines, every_seconds, now=wall_clock, worked=worked),
            models=_models,
        )
        self.final_seconds = final_seconds
        self.requests, self._requests = trio.open_memory_channel[Request](64)
        self._frames_in, self._frames = trio.open_memory_channel[Sequenced](4)
        self._verdicts_in, self._verdicts = trio.open_memory_channel[Verdicts](4)

    async def run(self, nursery: trio.Nursery) -> None:
        await nursery.start(run_alerts, self.alerts, self._verdicts)
        await nursery.start(partial(run_checkpoint, self.checkpoints, final_seconds=self.final_seconds))
        await nursery.start(run_scoring, self.scoring, self._frames, self._verdicts_in, lambda: None)
        await nursery.start(partial(run_sequencer, self.sequencer, self._requests, self._frames_in, idle_seconds=1e9))

    async def log(self, *lines: bytes) -> None:
        """Have lines accepted: durable, on their way to scoring."""
        data = b"".join(line + b"\n" for line in lines)
        chunk = Chunk(Segment("s", "plain", data, len(lines)))
        await self.requests.send(chunk)
        await chunk.committed.wait()

    async def applied(self) -> None:
        await self.scoring.published.wait_for_frame(self.sequencer.handed_on)
        await self.alerts.sync_through(self.sequencer.handed_on)


def _models(columns: State) -> Sequence[str]:
    return [str(columns["model"])] if columns["model"] else []


@asynccontextmanager
async def flowing(flow: Flow) -> AsyncIterator[Flow]:
    async with trio.open_nursery() as nursery:
        await flow.run(nursery)
        with flow.requests:
            yield flow


async def test_a_requested_snapshot_covers_every_line_accepted_before() -> None:
    async with flowing(Flow(FakeStore())) as flow:
        for n in range(20):
            await flow.log(b"line %d" % n, b"BAD %d" % n)
        saved = await flow.checkpoints.request_snapshot()

        seq, line, columns, models = flow.store.snapshots[-1]
        assert (seq, line, models) == (20, 40, ())
        assert saved.reply() == {
            "line": 40,
            "path": "/state/snapshot-20.msgpack",
            "bytes": 100,
            "seconds": saved.reply()["seconds"],
            "digest": digest(columns),
        }
        assert flow.writer.synced == 20, "alerts are durable before the snapshot says they were given"
        assert flow.store.rotations == [20]
        assert flow.checkpoints.status()["last_line"] == 40
    assert len(flow.store.snapshots) == 1, "nothing changed since, so the stop has nothing to save"


async def until(condition: Callable[[], bool]) -> None:
    """Spin: virtual time that jumps while a worker thread works would say nothing about lengths of time."""
    while not condition():
        await trio.lowlevel.checkpoint()


async def test_lines_seconds_and_the_stop_each_bring_a_snapshot(mock_clock: MockClock) -> None:
    async with flowing(Flow(FakeStore(), every_lines=10, every_seconds=300)) as flow:

        def lines() -> list[int]:
            return [line for _, line, _, _ in flow.store.snapshots]

        await flow.log(*[b"x"] * 9)
        await flow.applied()
        assert lines() == []
        await flow.log(b"x")
        await until(lambda: flow.checkpoints.line == 10)
        await flow.log(b"x")
        await flow.applied()
        mock_clock.jump(299)
        await wait_all_tasks_blocked()
        assert lines() == [10]
        mock_clock.jump(2)
        await until(lambda: flow.checkpoints.line == 11)
        mock_clock.jump(10_000)
        await wait_all_tasks_blocked()
        assert lines() == [10, 11], "nothing changed"
        await flow.log(b"x")
    assert lines() == [10, 11, 12]


async def test_periodic_snapshots_take_a_twentieth_of_a_processor_requested_ones_what_they_need(
    mock_clock: MockClock,
) -> None:
    class Slow(FakeStore):
        """Works for two seconds and waits for five: what it waits for costs nobody anything."""

        worked = 0.0

        def write_snapshot(
            self, seq: int, line: int, columns: Columns, models: Collection[str] = (), *, extra: bool = False
        ) -> SnapshotInfo:
            self.worked += 2.0
            trio.from_thread.run_sync(mock_clock.jump, 5)
            return super().write_snapshot(seq, line, columns, extra=extra)

    slow = Slow()
    async with flowing(Flow(slow, every_lines=1, worked=lambda: slow.worked)) as flow:
        await flow.log(b"x")
        await until(lambda: flow.store.rotations == [1])
        await flow.log(b"x")
        await flow.applied()
        for seconds in (0, 30, 4.9):
            mock_clock.jump(seconds)
            await wait_all_tasks_blocked()
        assert len(flow.store.snapshots) == 1, "2 s of 40, of which 5 are over when it is written"
        mock_clock.jump(0.2)
        await until(lambda: flow.store.rotations == [1, 2])
        for _ in range(2):
            await flow.log(b"x")
            await flow.checkpoints.request_snapshot()
        assert [line for _, line, _, _ in flow.store.snapshots] == [1, 2, 3, 4]


async def test_requests_that_wait_together_are_served_by_one_snapshot(nursery: trio.Nursery) -> None:
    async with flowing(Flow(FakeStore())) as flow:
        await flow.log(b"x")
        lines: list[int] = []

        async def ask() -> None:
            lines.append((await flow.checkpoints.request_snapshot()).line)

        async with trio.open_nursery() as asking:
            for _ in range(50):
                asking.start_soon(ask)
        assert lines == [1] * 50
        assert len(flow.store.snapshots) <= 2


async def test_a_request_with_nothing_new_is_answered_with_the_last_snapshot_if_that_is_there() -> None:
    async with flowing(Flow(FakeStore())) as flow:
        await flow.log(b"x")
        first = await flow.checkpoints.request_snapshot()
        assert await flow.checkpoints.request_snapshot() is first
        assert await flow.checkpoints.request_snapshot(extra=True) is first
        assert len(flow.store.snapshots) == 1

        flow.store.snapshots.clear()  # somebody removed it
        assert (await flow.checkpoints.request_snapshot()).line == 1
        await flow.log(b"y")
        assert (await flow.checkpoints.request_snapshot()).line == 2
        assert [line for _, line, _, _ in flow.store.snapshots] == [1, 2]


async def test_extra_requests_wait_for_each_other_and_share_a_snapshot(mock_clock: MockClock) -> None:
    async with flowing(Flow(FakeStore())) as flow:
        await flow.log(b"x")
        assert (await flow.checkpoints.request_snapshot(extra=True)).line == 1
        await flow.log(b"y")
        lines: list[int] = []

        async def ask() -> None:
            lines.append((await flow.checkpoints.request_snapshot(extra=True)).line)

        async with trio.open_nursery() as asking:
            for _ in range(10):
                asking.start_soon(ask)
            await wait_all_tasks_blocked()
            assert (lines, len(flow.store.snapshots)) == ([], 1), "too early"
            mock_clock.jump(EXTRA_SECONDS)
        assert lines == [2] * 10
        assert flow.store.extra == [True, True]

        await flow.log(b"z")
        assert (await flow.checkpoints.request_snapshot()).line == 3, "others never wait"
        assert flow.store.extra == [True, True, False]


async def test_extra_snapshots_take_a_twentieth_of_a_processor(mock_clock: MockClock) -> None:
    class Slow(FakeStore):
        worked = 0.0

        def write_snapshot(
            self, seq: int, line: int, columns: Columns, models: Collection[str] = (), *, extra: bool = False
        ) -> SnapshotInfo:
            self.worked += 2.0
            return super().write_snapshot(seq, line, columns, extra=extra)

    slow = Slow()
    async with flowing(Flow(slow, worked=lambda: slow.worked)) as flow:
        await flow.log(b"x")
        await flow.checkpoints.request_snapshot(extra=True)
        await flow.log(b"x")
        async with trio.open_nursery() as asking:
            asking.start_soon(partial(flow.checkpoints.request_snapshot, extra=True))
            for seconds in (0, 39.9):
                mock_clock.jump(seconds)
                await wait_all_tasks_blocked()
                assert len(slow.snapshots) == 1
            mock_clock.jump(0.2)


async def test_extra_requests_put_no_periodic_snapshot_off(mock_clock: MockClock) -> None:
    async with flowing(Flow(FakeStore(), every_seconds=30)) as flow:
        for _ in range(100):  # a second each, and a periodic one is at most a second late
            await flow.log(b"x")
            await flow.checkpoints.request_snapshot(extra=True)
            await flow.applied()
            mock_clock.jump(EXTRA_SECONDS)
            await until(lambda: flow.store.rotations[-1] == flow.checkpoints.seq)
            await wait_all_tasks_blocked()
        assert flow.store.extra.count(False) == 3

        await flow.log(b"x")
        await flow.checkpoints.request_snapshot(extra=True)
        mock_clock.jump(30)
        await until(lambda: flow.store.extra.count(False) == 4)
        assert [line for _, line, _, _ in flow.store.snapshots][-2:] == [101, 101], "also when nothing came since"


async def test_a_snapshot_outlives_whoever_asked_for_it() -> None:
    async with flowing(Flow(FakeStore())) as flow:
        await flow.log(b"x")
        with trio.CancelScope() as caller:
            caller.cancel()
            await flow.checkpoints.request_snapshot()
        await flow.checkpoints.request_snapshot()
        assert [line for _, line, _, _ in flow.store.snapshots][:1] == [1]


async def test_a_failed_periodic_snapshot_is_said_and_tried_again_scoring_goes_on(mock_clock: MockClock) -> None:
    async with flowing(Flow(FakeStore(snapshots_fail=True), every_lines=1)) as flow:
        await flow.log(b"x")
        await until(lambda: flow.checkpoints.failures == 1)
        assert "No space left" in flow.checkpoints.status()["error"]
        with pytest.raises(CheckpointError, match="No space left"):
            await flow.checkpoints.request_snapshot()
        await flow.log(b"y")
        await flow.applied()
        assert flow.checkpoints.failures == 2, "not with every frame"

        flow.store.snapshots_fail = False
        mock_clock.jump(FAILED_PAUSE_SECONDS)
        await until(lambda: flow.checkpoints.line == 2)
        assert flow.checkpoints.status()["error"] is None


async def test_no_snapshot_is_published_when_its_alerts_are_not_durable() -> None:
    async with flowing(Flow(FakeStore())) as flow:
        await flow.log(b"BAD")
        await flow.applied()
        flow.writer.full = True
        with pytest.raises(CheckpointError, match="No space left"):
            await flow.checkpoints.request_snapshot()
        assert flow.store.snapshots == []
        flow.writer.full = False


async def test_a_failed_last_snapshot_is_a_failed_stop() -> None:
    store = FakeStore(snapshots_fail=True)
    said = re.escape(f"no snapshot: {store.directory}: No space left on device; free some space there")
    with pytest.RaisesGroup(pytest.RaisesExc(CheckpointError, match=f"^{said}$")):
        async with flowing(Flow(store)) as flow:
            await flow.log(b"x")


async def test_the_last_snapshot_has_a_deadline(mock_clock: MockClock) -> None:
    released = threading.Event()

    class Hangs(FakeStore):
        def write_snapshot(
            self, seq: int, line: int, columns: Columns, models: Collection[str] = (), *, extra: bool = False
        ) -> SnapshotInfo:
            trio.from_thread.run_sync(mock_clock.jump, 4)
            assert released.wait(30)
            return super().write_snapshot(seq, line, columns, extra=extra)

    with pytest.RaisesGroup(pytest.RaisesExc(CheckpointError, match="within 3 s")):
        async with flowing(Flow(Hangs(), final_seconds=3)) as flow:
            await flow.log(b"x")
    released.set()


async def test_cancelled_it_still_saves_what_was_applied(nursery: trio.Nursery) -> None:
    flow = Flow(FakeStore())
    async with trio.open_nursery() as inner:
        await flow.run(inner)
        await flow.log(b"x")
        await flow.applied()
        inner.cancel_scope.cancel()
    assert [line for _, line, _, _ in flow.store.snapshots] == [1]


async def test_a_half_applied_state_is_never_saved() -> None:
    flow = Flow(FakeStore())
    with pytest.RaisesGroup(ValueError, CheckpointError, flatten_subgroups=True):
        async with flowing(flow):
            await flow.log(b"x")
            await flow.applied()
            await flow.log(b"POISON")
            await trio.sleep_forever()
    assert all(columns["text"] == b"x\n" for _, _, columns, _ in flow.store.snapshots)


async def test_who_asks_while_the_daemon_stops_is_told(tmp_path: Path) -> None:
    async with flowing(Flow(FakeStore())) as flow:
        await flow.log(b"x")
    await wait_all_tasks_blocked()
    with pytest.raises(CheckpointError, match="stopping"):
        await flow.checkpoints.request_snapshot()


async def test_a_snapshot_that_cannot_be_followed_by_a_new_segment_stands() -> None:
    class NoRotation(FakeStore):
        def rotate(self) -> None:
            raise OSError(28, "No space left on device")

    async with flowing(Flow(NoRotation())) as flow:
        await flow.log(b"x")
        assert (await flow.checkpoints.request_snapshot()).line == 1
        assert flow.checkpoints.status()["error"] is None


@pytest.mark.slow
async def test_when_the_disk_is_back_a_snapshot_is_written_at_once(mock_clock: MockClock) -> None:
    store = FakeStore()
    async with flowing(Flow(store)) as flow:
        await flow.log(b"x")
        await flow.applied()
        store.full = True
        mock_clock.autojump_threshold = 0.05
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flow.log, b"y")
            await until(lambda: flow.sequencer.failure is not None)
            await trio.sleep(60)
            assert store.snapshots == []
            store.full = False
        mock_clock.autojump_threshold = float("inf")
        # No time passes from here on: neither lines nor seconds bring it.
        await until(lambda: bool(store.snapshots))
        assert [line for _, line, _, _ in store.snapshots] == [2]


async def test_after_a_restore_a_snapshot_is_written_at_once_and_again_when_that_fails(mock_clock: MockClock) -> None:
    store = FakeStore(snapshots_fail=True)
    async with flowing(Flow(store)) as flow:
        await flow.log(b"x")
        await flow.applied()
        assert flow.checkpoints.failures == 0
        flow.detector.restored = 2
        await flow.log(b"y")
        await until(lambda: flow.checkpoints.failures == 1)
        store.snapshots_fail = False
        mock_clock.jump(FAILED_PAUSE_SECONDS)
        await until(lambda: bool(store.snapshots))
        assert [seq for seq, _, _, _ in store.snapshots] == [2]


async def test_a_disk_that_stays_full_is_said_once(mock_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    store = FakeStore(snapshots_fail=True)
    async with flowing(Flow(store)) as flow:
        await flow.log(b"x")
        for _ in range(5):
            with pytest.raises(CheckpointError, match="No space left"):
                await flow.checkpoints.request_snapshot()
        assert len(caplog.records) == 1
        store.snapshots_fail = False
        await flow.checkpoints.request_snapshot()
        assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
