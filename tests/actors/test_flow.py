"""All the way from real sockets into a real store, with the stop flowing through."""

import socket
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import trio

from actors.ingest import IngestSettings, run_ingest
from detection.columns.state_columns import Columns
from detection.frames import LinesFrame, decode_frame
from persistence.journal_segment import Entry
from persistence.store import SnapshotInfo, Store, open_store
from tests.actors.fakes import FakeStore
from tests.actors.test_checkpoint import Flow


class Durable(FakeStore):
    """Keeps what it is given on disk as well."""

    def __init__(self, store: Store) -> None:
        super().__init__(directory=store.directory)
        for _ in store.recover().entries:
            raise AssertionError("a fresh directory has no entries")
        store.start_journal(0, 0)
        self.real = store

    def append(self, entries: Sequence[Entry]) -> None:
        self.real.append(entries)
        super().append(entries)

    def rotate(self) -> None:
        self.real.rotate()
        super().rotate()

    def write_snapshot(
        self, seq: int, line: int, columns: Columns, models: Collection[str] = (), *, extra: bool = False
    ) -> SnapshotInfo:
        super().write_snapshot(seq, line, columns, models, extra=extra)
        return self.real.write_snapshot(seq, line, columns, models, extra=extra)


def plain(lines: Sequence[bytes]) -> str:
    return "plain"


async def test_every_confirmed_line_is_in_the_store_once_in_its_senders_order_after_a_stop(tmp_path: Path) -> None:
    senders, lines_each = 20, 3000
    path = str(tmp_path / "log.sock")
    stop = trio.Event()
    with open_store(tmp_path / "state") as store, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1024)
        listener.setblocking(False)
        flow = Flow(Durable(store), every_lines=10_000)

        async def send(number: int) -> None:
            async with await trio.open_unix_socket(path) as stream:
                data = b"".join(b"sender %d line %d\n" % (number, n) for n in range(lines_each))
                for start in range(0, len(data), 7919):
                    await stream.send_all(data[start : start + 7919])
                await stream.send_eof()
                assert await stream.receive_some(1) == b"", "a clean end says that everything is durable"

        async with trio.open_nursery() as nursery:
            await flow.run(nursery)
            await nursery.start(partial(run_ingest, [listener], flow.requests, IngestSettings("t", plain), stop=stop))
            async with trio.open_nursery() as sending:
                for number in range(senders):
                    sending.start_soon(send, number)
            stop.set()

    total = senders * lines_each
    assert flow.store.snapshots[-1][1] == total
    with open_store(tmp_path / "state") as store:
        recovery = store.recover()
        assert recovery.snapshot is not None
        _, line, columns = recovery.snapshot
        assert (line, list(recovery.entries), recovery.last_line) == (total, [], total)
    text = columns["text"]
    assert isinstance(text, bytes)
    by_sender: dict[bytes, list[bytes]] = {}
    for each in text.splitlines():
        by_sender.setdefault(each.split()[1], []).append(each.split()[3])
    assert len(by_sender) == senders
    assert all(found == [b"%d" % n for n in range(lines_each)] for found in by_sender.values())


async def test_a_thousand_slow_clients_share_frames_and_syncs(tmp_path: Path) -> None:
    store = FakeStore()
    stop = trio.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "log.sock"))
        listener.listen(1024)
        listener.setblocking(False)
        flow = Flow(store)
        async with trio.open_nursery() as nursery:
            await flow.run(nursery)
            await nursery.start(partial(run_ingest, [listener], flow.requests, IngestSettings("t", plain), stop=stop))
            clients = [trio.socket.socket(socket.AF_UNIX) for _ in range(1000)]
            for client in clients:
                await client.connect(str(tmp_path / "log.sock"))
            for n, client in enumerate(clients):
                await client.send(b"client %d\n" % n)
            while flow.sequencer.line < 1000:
                await trio.lowlevel.checkpoint()
            stop.set()
            for client in clients:
                assert await client.recv(1) == b""
                client.close()
    frames = [decode_frame(entry.payload) for entry in store.entries]
    assert sum(len(frame.segments) for frame in frames if isinstance(frame, LinesFrame)) == 1000
    assert len(store.appends) < 250
