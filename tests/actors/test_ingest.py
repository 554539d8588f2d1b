"""Ingest over real Unix sockets; the sequencer's part is played by the test where order matters."""

import errno
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.connection_places import CALM_SECONDS, IDLE_SECONDS, SILENT_SECONDS
from actors.connection_turns import CHUNK_BYTES
from actors.ingest import ACCEPT_PAUSE_SECONDS, Counters, IngestSettings, Inherited, run_ingest
from actors.journaled_mark import SO_PEEK_OFF, Keeper, peek_marks_work, set_peek_mark
from actors.sequencer import Chunk
from detection.frames import Segment
from detection.sessions.living_sources import LivingSource, LivingSources


@dataclass
class Ingest:
    path: Path
    chunks: trio.MemoryReceiveChannel[Chunk]
    stop: trio.Event
    cancel: trio.CancelScope
    counters: Counters = field(default_factory=Counters)

    async def connect(self) -> trio.SocketStream:
        stream: trio.SocketStream = await trio.open_unix_socket(self.path)
        return stream

    async def commit(self) -> Segment:
        """The next chunk, made durable."""
        chunk = await self.chunks.receive()
        chunk.committed.set()
        return chunk.segment

    async def commit_all(self, into: list[Segment], *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        async for chunk in self.chunks:
            into.append(chunk.segment)
            chunk.committed.set()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():
            await trio.lowlevel.checkpoint()


def recognise(lines: Sequence[bytes]) -> str:
    return "json" if lines[0].startswith(b"{") else "plain"


@asynccontextmanager
async def ingesting(
    path: Path,
    *,
    max_connections: int = 1024,
    max_line_bytes: int = 65536,
    living: Sequence[LivingSource] = (),
    stored: Mapping[str, socket.socket] | None = None,
    keeper: Keeper | None = None,
) -> AsyncIterator[Ingest]:
    send, receive = trio.open_memory_channel[Chunk](64)
    (path / "log.sock").unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path / "log.sock"))
        listener.listen(1024)
        listener.setblocking(False)
        async with trio.open_nursery() as nursery:
            running = Ingest(path / "log.sock", receive, trio.Event(), nursery.cancel_scope)

            async def run() -> None:
                await run_ingest(
                    [listener],
                    send,
                    IngestSettings("salt", recognise, max_line_bytes=max_line_bytes, max_connections=max_connections),
                    stop=running.stop,
                    inherited=Inherited(living, stored or {}),
                    keeper=keeper,
                    counters=running.counters,
                )

            nursery.start_soon(run)
            yield running
            nursery.cancel_scope.cancel()


async def test_bytes_come_through_as_they_are_and_a_clean_end_says_durable(tmp_path: Path) -> None:
    text = b"\x00\xff\xfe\r\n\n\xe2\x80\xa8one\rtwo\x1b[31m\n{}\nlast"
    async with ingesting(tmp_path) as ingest, await ingest.connect() as client:
        await client.send_all(text)
        await client.send_eof()

        first = await ingest.commit()
        assert (first.source, first.kind, first.data, first.lines) == ("salt-1", "plain", text, 4)
        last = await ingest.chunks.receive()
        assert (last.segment.data, last.segment.lines, last.segment.last) == (b"", 1, True)

        with trio.move_on_after(0.05) as early:
            await client.receive_some(1)
        assert early.cancelled_caught, "no end of file before the last line is durable"
        last.committed.set()
        assert await client.receive_some(1) == b""
        assert ingest.counters == Counters(lines=5, bytes=len(text), connections_total=1)


async def test_a_chunk_is_in_flight_alone_and_reading_waits_until_it_is_durable(tmp_path: Path) -> None:
    async with ingesting(tmp_path) as ingest, await ingest.connect() as client:
        await client.send_all(b"one\n")
        first = await ingest.chunks.receive()
        await client.send_all(b"two\n")
        await wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            ingest.chunks.receive_nowait()
        first.committed.set()
        assert (await ingest.commit()).data == b"two\n"


async def test_a_sender_faster_than_the_journal_waits(tmp_path: Path) -> None:
    async with ingesting(tmp_path) as ingest, await ingest.connect() as client:
        with trio.move_on_after(0.2) as waited:
            await client.send_all(b"x" * 99 + b"\n" + b"y" * 10_000_000)
        assert waited.cancelled_caught
        chunk = await ingest.chunks.receive()
        assert len(chunk.segment.data) <= CHUNK_BYTES


@pytest.mark.parametrize("durable", [False, True])
async def test_dying_with_a_chunk_under_way_resets_the_sender_never_a_clean_end(tmp_path: Path, durable: bool) -> None:
    async with ingesting(tmp_path) as ingest:
        client = await ingest.connect()
        await client.send_all(b"one\n")
        await client.send_eof()
        chunk = await ingest.chunks.receive()
        if durable:
            chunk.committed.set()
            (await ingest.chunks.receive()).committed.set()
            assert await client.receive_some(1) == b""
        ingest.cancel.cancel()
    if not durable:
        with pytest.raises(trio.BrokenResourceError) as reset:
            await client.receive_some(1)
        assert isinstance(reset.value.__cause__, ConnectionResetError)
    await client.aclose()


async def test_stop_confirms_what_is_under_way_reads_nothing_more_and_ends(tmp_path: Path) -> None:
    async with ingesting(tmp_path) as ingest:
        idle, busy = await ingest.connect(), await ingest.connect()
        await busy.send_all(b"one\n")
        chunk = await ingest.chunks.receive()
        await busy.send_all(b"two\n")
        ingest.stop.set()
        await wait_all_tasks_blocked()
        assert await idle.receive_some(1) == b"", "everything it sent is durable"

        chunk.committed.set()
        assert [c.segment async for c in ingest.chunks] == []
        assert ingest.counters.lines == 1
        with pytest.raises(trio.BrokenResourceError):
            await busy.receive_some(1)
        await idle.aclose()
        await busy.aclose()


async def test_a_hundred_clients_that_die_hang_or_dribble_harm_nobody(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with ingesting(tmp_path) as ingest:
        segments: list[Segment] = []
        await nursery.start(ingest.commit_all, segments)
        silent = [await ingest.connect() for _ in range(30)]
        for n in range(40):
            client = await ingest.connect()
            await client.send_all(b"killed %d" % n)
            await client.aclose()
        dribbling = await ingest.connect()

        def moved(seen: int) -> bool:
            return ingest.counters.bytes > seen

        async def dribble() -> None:
            for byte in b"dribble\n":
                seen = ingest.counters.bytes
                await dribbling.send_all(bytes([byte]))
                await until(partial(moved, seen))

        nursery.start_soon(dribble)
        good = await ingest.connect()
        await good.send_all(b"good line\n" * 50_000)
        await good.send_eof()
        assert await good.receive_some(1) == b""
        await until(lambda: ingest.counters.connections_open == 31 and ingest.counters.lines == 50_041)

        by_source: dict[str, int] = {}
        for segment in segments:
            by_source[segment.source] = by_source.get(segment.source, 0) + segment.lines
        assert sorted(by_source.values()) == [1] * 41 + [50_000]
        for client in [*silent, dribbling, good]:
            await client.aclose()


async def test_a_hundred_megabytes_without_newline_are_one_cut_line_in_flat_memory(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with ingesting(tmp_path, max_line_bytes=65536) as ingest:
        segments: list[Segment] = []
        await nursery.start(ingest.commit_all, segments)
        block = bytes(1_000_000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with await ingest.connect() as client:
            for _ in range(100):
                await client.send_all(block)
            await client.send_all(b"\nnext\n")
            await client.send_eof()
            assert await client.receive_some(1) == b""
        assert b"".join(segment.data for segment in segments) == bytes(65536) + b"\nnext\n"
        assert ingest.counters.lines == 2 and ingest.counters.lines_truncated == 1
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8_000, "kilobytes"


async def test_at_the_cap_connections_wait_in_the_backlog(tmp_path: Path) -> None:
    async with ingesting(tmp_path, max_connections=2) as ingest:
        first, second = await ingest.connect(), await ingest.connect()
        async with await ingest.connect() as third:
            await third.send_all(b"patience\n")
            await wait_all_tasks_blocked()
            assert ingest.counters.connections_open == 2
            await first.aclose()
            assert (await ingest.commit()).data == b"patience\n"
        await second.aclose()


async def test_who_never_spoke_gives_way_the_oldest_first_and_who_has_to_wait_is_told(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with ingesting(tmp_path, max_connections=3) as ingest:
        counters = ingest.counters
        speaker, *silent = [await ingest.connect() for _ in range(3)]
        await speaker.send_all(b"half a line")
        assert (await ingest.commit()).data == b"half a line"
        newcomer = await ingest.connect()
        await newcomer.send_all(b"at last\n")
        await trio.sleep(SILENT_SECONDS / 2)
        assert counters.connections_open == 3 and counters.connections_waiting and counters.connections_gave_way == 0
        assert (await ingest.commit()).data == b"at last\n"
        assert await silent[0].receive_some(1) == b"" and counters.connections_gave_way == 1
        with pytest.raises(trio.BrokenResourceError):
            await silent[0].send_all(b"too late\n")
        await silent[1].send_all(b"in time\n")
        assert (await ingest.commit()).data == b"in time\n"
        await speaker.send_all(b", and its end\n")
        assert (await ingest.commit()).data == b", and its end\n"
        await trio.sleep(CALM_SECONDS + 1.0)
        assert not counters.connections_waiting and counters.connections_waiting_reason is None
        await speaker.send_all(b"still here\n")
        assert (await ingest.commit()).data == b"still here\n"
        last = await ingest.connect()  # all have sent a line, and none has been idle for long: it waits
        await trio.sleep(IDLE_SECONDS - CALM_SECONDS - 5.0)
        assert counters.connections_open == 3 and counters.connections_gave_way == 1 and counters.connections_waiting
        await speaker.aclose()
        assert (await ingest.commit()).last
        await trio.sleep(CALM_SECONDS + 1.0)
        assert not counters.connections_waiting and counters.connections_open == 3
        for stream in (last, newcomer, *silent):
            await stream.aclose()
    assert sum("are taken, and others wait" in message for message in caplog.messages) == 2


async def test_what_one_that_gives_way_says_at_that_very_moment_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with ingesting(tmp_path, max_connections=1) as ingest:
        silent = await ingest.connect()

        def has_said_nothing(connection: object) -> bool:
            monkeypatch.undo()
            silent.socket._sock.send(b"just in time\n")  # type: ignore[attr-defined]
            return False

        monkeypatch.setattr("actors.connection_places._connection_readable", has_said_nothing)
        newcomer = await ingest.connect()
        assert (await ingest.commit()).data == b"just in time\n"
        assert (await ingest.commit()).last
        assert await silent.receive_some(1) == b"", "a clean end: all it sent is durable"
        await silent.aclose()
        await newcomer.aclose()


async def test_a_connection_that_sent_one_byte_and_idles_gives_way_too(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with ingesting(tmp_path, max_connections=2) as ingest:
        idle = [await ingest.connect() for _ in range(2)]
        for stream in idle:
            await stream.send_all(b"x")
            assert (await ingest.commit()).data == b"x"
        async with await ingest.connect() as newcomer:
            await newcomer.send_all(b"at last\n")
            with trio.fail_after(SILENT_SECONDS + 2.0):
                assert [(await ingest.commit()).lines for _ in range(2)] == [1, 1], "its half a line, and the other's"
            assert ingest.counters.connections_gave_way == 1
        for stream in idle:
            await stream.aclose()


@asynccontextmanager
async def places_of(ingest: Ingest, monkeypatch: pytest.MonkeyPatch, uid: int, places: int) -> AsyncIterator[None]:
    """Taken by connections of that user, each of which has just sent a line."""
    monkeypatch.setattr("actors.ingest._connection_peer_uid", lambda connection: uid)
    streams = [await ingest.connect() for _ in range(places)]
    for stream in streams:
        await stream.send_all(b"busy\n")
        assert (await ingest.commit()).data == b"busy\n"
    yield
    for stream in streams:
        await stream.aclose()


async def test_users_share_the_places_equally_however_busy_the_one_is_that_came_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with ingesting(tmp_path, max_connections=4) as ingest, places_of(ingest, monkeypatch, 1000, 4):
        monkeypatch.setattr("actors.ingest._connection_peer_uid", lambda connection: 1001)
        others: list[trio.SocketStream] = []
        segments: list[Segment] = []
        async with trio.open_nursery() as nursery:
            await nursery.start(ingest.commit_all, segments)
            for _ in range(3):
                others.append(await ingest.connect())
                await others[-1].send_all(b"of another\n")
                await trio.sleep(2.0)
            assert [each.data for each in segments if each.data] == [b"of another\n"] * 2, "half of the places"
            assert ingest.counters.connections_gave_way == 2 and ingest.counters.connections_waiting
            for stream in others:
                await stream.aclose()
            await until(lambda: sum(each.lines for each in segments) == 3)
            nursery.cancel_scope.cancel()


async def test_among_connections_of_one_user_the_busy_ones_keep_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """The control of the test above: it is the other user that makes them give way."""
    async with ingesting(tmp_path, max_connections=4) as ingest, places_of(ingest, monkeypatch, 1000, 4):
        async with await ingest.connect() as other:
            await other.send_all(b"of the same\n")
            await trio.sleep(2.0)
            assert ingest.counters.connections_gave_way == 0 and ingest.counters.connections_waiting


async def test_who_fills_the_door_is_refused_and_others_come_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with ingesting(tmp_path, max_connections=2) as ingest, places_of(ingest, monkeypatch, 1000, 2):
        crowd = [await ingest.connect() for _ in range(20)]
        for stream in crowd:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(b"let me in\n")
        await until(lambda: ingest.counters.connections_refused == 19)  # at the door is room for one
        monkeypatch.setattr("actors.ingest._connection_peer_uid", lambda connection: 1001)
        async with await ingest.connect() as other:
            await other.send_all(b"of another\n")
            await other.send_eof()
            segments: list[Segment] = []
            async with trio.open_nursery() as nursery:
                await nursery.start(ingest.commit_all, segments)
                with trio.fail_after(2.0):
                    assert await other.receive_some(1) == b""
                nursery.cancel_scope.cancel()
        assert b"of another\n" in {each.data for each in segments}
        with pytest.raises(trio.BrokenResourceError):
            await crowd[0].receive_some(1)  # reset, as what it sent was not read
            await crowd[-1].receive_some(1)
        for stream in crowd:
            await stream.aclose()


async def test_at_the_door_those_that_hung_up_make_room_for_one_that_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with ingesting(tmp_path, max_connections=1) as ingest, places_of(ingest, monkeypatch, 1000, 1):
        left = await ingest.connect()
        await wait_all_tasks_blocked()
        await left.aclose()
        async with await ingest.connect() as other:
            await other.send_all(b"of the same\n")
            await until(lambda: ingest.counters.connections_refused == 1)
            with trio.move_on_after(2.0) as waits:
                await other.receive_some(1)
            assert waits.cancelled_caught, "it was not the one that was refused"


async def test_out_of_descriptors_accepting_pauses_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    accepted: list[float] = []
    original = socket.socket.accept

    def flaky(self: socket.socket) -> object:
        accepted.append(trio.current_time())
        if len(accepted) <= 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return original(self)

    monkeypatch.setattr(socket.socket, "accept", flaky)
    async with ingesting(tmp_path) as ingest, await ingest.connect() as client:
        await client.send_all(b"in the end\n")
        assert (await ingest.commit()).data == b"in the end\n"
        assert ingest.counters.accept_errors == 3
        assert "Too many open files" in (ingest.counters.connections_waiting_reason or "")
        gaps = [later - earlier for earlier, later in pairwise(accepted[:4])]
        assert gaps == pytest.approx([ACCEPT_PAUSE_SECONDS] * 3)


def left(name: str, tail: bytes, *, kind: str = "plain", full: bool = False, parity: int = 0) -> LivingSource:
    return LivingSource(name, kind, tail, full, parity, lines=0)


async def test_sources_whose_connections_died_end_before_anyone_is_served(tmp_path: Path) -> None:
    living = [left("old-1", b"half a li"), left("old-7", b"{", kind="json", full=True), left("old-8", b"")]
    async with ingesting(tmp_path, living=living) as ingest:
        async with await ingest.connect() as client:
            await client.send_all(b"new\n")
            orphans = [await ingest.chunks.receive() for _ in range(3)]
            found = {c.segment.source: (c.segment.lines, c.segment.cut, c.segment.kind) for c in orphans}
            assert found == {"old-1": (1, (), "plain"), "old-7": (1, (0,), "json"), "old-8": (0, (), "plain")}
            assert all(c.segment.last and not c.segment.data for c in orphans)
            assert ingest.counters.connections_total == 0
            for chunk in orphans:
                chunk.committed.set()
            assert (await ingest.commit()).data == b"new\n"


class Store:
    """A service manager's: a second reference to each connection, for as long as it is kept; `places` at most."""

    def __init__(self) -> None:
        self.kept: dict[str, socket.socket] = {}
        self.places = 1000

    def keep(self, name: str, descriptor: int) -> None:
        if name not in self.kept and len(self.kept) < self.places:
            self.kept[name] = socket.socket(fileno=os.dup(descriptor))

    def forget(self, name: str) -> None:
        if name in self.kept:
            self.kept.pop(name).close()

    def has_room(self) -> bool | None:
        return len(self.kept) < self.places

    def pass_on(self) -> dict[str, socket.socket]:
        """The connections for the next process, which are still kept."""
        return {name: socket.socket(fileno=os.dup(each.fileno())) for name, each in self.kept.items()}


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    yield store
    for each in store.kept.values():
        each.close()


class Killed:
    """An ingest that dies while its chunk is being journaled, and what it leaves behind."""

    def __init__(self, segments: list[Segment], store: Store, state: LivingSources) -> None:
        for segment in segments:
            state.complete_lines(segment)
        self.living, self.stored = state.sources(), store.pass_on()


@pytest.mark.parametrize("durable", [False, True])
async def test_a_kept_connection_goes_on_with_every_byte_once_whether_or_not_its_chunk_was_durable(
    tmp_path: Path, store: Store, durable: bool
) -> None:
    state, journal = LivingSources(), []
    data = b"".join(b"line %d\n" % n for n in range(10))
    client = socket.socket(socket.AF_UNIX)
    async with ingesting(tmp_path, keeper=store) as ingest:
        client.connect(str(ingest.path))
        client.sendall(data[:25])
        journal.append(await ingest.commit())
        await until(lambda: ingest.counters.bytes == 25)
        await wait_all_tasks_blocked()
        client.sendall(data[25:50])
        chunk = await ingest.chunks.receive()
        assert chunk.segment.parity != journal[0].parity
        if durable:
            journal.append(chunk.segment)
        ingest.cancel.cancel()
    client.sendall(data[50:])
    client.shutdown(socket.SHUT_WR)

    killed = Killed(journal, store, state)
    assert [source.tail for source in killed.living] == ([b"l"] if durable else [b"line"])
    async with ingesting(tmp_path, keeper=store, living=killed.living, stored=killed.stored) as ingest:
        following: list[Segment] = []
        async with trio.open_nursery() as nursery:
            await nursery.start(ingest.commit_all, following)
            await until(lambda: store.kept == {})
            nursery.cancel_scope.cancel()
        assert ingest.counters.chunks_recognised == durable and ingest.counters.connections_resumed == 1
    lines = [line for segment in following for line in state.complete_lines(segment)[0]]
    assert b"".join(segment.data for segment in [*journal, *following]) == data
    assert {segment.source for segment in following} == {journal[0].source}
    assert lines[-1] == b"line 9" and state.sources() == [] and store.kept == {}
    assert client.recv(1) == b"", "the sender is told that everything is durable"
    client.close()


async def test_killed_between_two_bytes_of_consuming_the_rest_is_consumed(tmp_path: Path, store: Store) -> None:
    reader, writer = socket.socketpair()
    writer.sendall(b"journaled\nnew\n")
    set_peek_mark(reader, 10, 1)
    assert reader.recv(4) == b"jour"
    store.keep("a-1", reader.fileno())
    living = [left("a-1", b"", parity=1)]
    async with ingesting(tmp_path, keeper=store, living=living, stored={"a-1": reader}) as ingest:
        assert (await ingest.commit()).data == b"new\n"
    writer.close()


async def test_the_kernel_never_makes_a_mark_by_itself(tmp_path: Path, store: Store) -> None:
    async with ingesting(tmp_path, keeper=store) as ingest, await ingest.connect() as client:
        for parity in (0, 1, 0, 1):
            await client.send_all(b"one\n")
            chunk = await ingest.chunks.receive()
            (kept,) = store.kept.values()
            mark = kept.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)
            assert (chunk.segment.parity, mark) == (parity, 4 | parity << 30)
            chunk.committed.set()
            await wait_all_tasks_blocked()
            assert kept.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) == -1, "so a peek does not move it"


async def test_a_source_that_ended_but_was_not_forgotten_is_not_ended_twice(tmp_path: Path, store: Store) -> None:
    reader, writer = socket.socketpair()
    writer.close()
    store.keep("a-1", reader.fileno())
    async with ingesting(tmp_path, keeper=store, stored={"a-1": reader}) as ingest:
        await until(lambda: store.kept == {})
        with pytest.raises(trio.WouldBlock):
            ingest.chunks.receive_nowait()


async def test_a_stop_leaves_kept_connections_as_they_are(tmp_path: Path, store: Store) -> None:
    async with ingesting(tmp_path, keeper=store) as ingest:
        client = await ingest.connect()
        await client.send_all(b"half a ")
        first = await ingest.commit()
        await wait_all_tasks_blocked()
        ingest.stop.set()
        assert [c.segment async for c in ingest.chunks] == []
        await client.send_all(b"line\n")
        with trio.move_on_after(0.05) as still_open:
            await client.receive_some(1)
        assert still_open.cancelled_caught
    state = LivingSources()
    killed = Killed([first], store, state)
    async with ingesting(tmp_path, keeper=store, living=killed.living, stored=killed.stored) as ingest:
        assert state.complete_lines(await ingest.commit()) == ([b"half a line"], False)
    await client.aclose()


async def test_more_kept_connections_than_places_wait_for_one(tmp_path: Path, store: Store) -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    stored = {f"a-{n}": reader for n, (reader, _) in enumerate(pairs)}
    for name, reader in stored.items():
        store.keep(name, reader.fileno())
    for n, (_, writer) in enumerate(pairs):
        writer.sendall(b"%d\n" % n)
    async with ingesting(tmp_path, keeper=store, stored=stored, max_connections=2) as ingest:
        first = {(await ingest.commit()).data for _ in range(2)}
        await wait_all_tasks_blocked()
        assert ingest.counters.connections_open == 2
        for _, writer in pairs:
            writer.close()
        rest = [await ingest.commit() for _ in range(4)]
        assert first | {segment.data for segment in rest} == {b"0\n", b"1\n", b"2\n", b""}


async def test_a_kept_connection_that_never_spoke_gives_way_like_any_other(
    tmp_path: Path, store: Store, autojump_clock: MockClock
) -> None:
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    with writer:
        async with ingesting(tmp_path, stored={"0123abcd-1": reader}, keeper=store, max_connections=1) as ingest:
            newcomer = await ingest.connect()
            await newcomer.send_all(b"at last\n")
            assert (await ingest.commit()).data == b"at last\n"
            assert writer.recv(1) == b"" and ingest.counters.connections_gave_way == 1
            await newcomer.aclose()


async def test_connections_that_found_no_room_in_the_store_are_told_of_and_kept_when_there_is(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.descriptor_store.PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("actors.descriptor_store.RETRY_SECONDS", 0.01)
    store.places = 3
    async with ingesting(tmp_path, keeper=store) as ingest:
        counters = ingest.counters
        first, second, third = [await ingest.connect() for _ in range(3)]
        await until(lambda: counters.connections_unkept > 0)
        # The question needs a place, too.
        unkept = counters.connections_unkept
        assert unkept <= 3 and len(store.kept) == 3
        fourth = await ingest.connect()
        await fourth.send_all(b"all the same\n")
        assert (await ingest.commit()).data == b"all the same\n"
        await until(lambda: counters.connections_unkept == unkept + 1)
        assert not counters.exactly_once and "no room" in str(counters.exactly_once_reason)
        store.places = 5
        await until(lambda: counters.connections_unkept == 0)
        assert counters.exactly_once and counters.exactly_once_reason is None and len(store.kept) == 4
        for each in (first, second, third, fourth):
            await each.aclose()


def test_this_kernel_keeps_marks() -> None:
    assert peek_marks_work()
