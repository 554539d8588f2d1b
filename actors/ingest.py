"""Ingest: owns the log sockets. Peek, have it made durable, consume, read on.

A chunk is only peeked at until it is durable, so its bytes are still the kernel's while the daemon may die:
a sender whose bytes were not accepted sees a reset (the kernel resets a connection that is closed with unread
bytes), and a clean end of file says that everything sent is durable. There is no other acknowledgement.
Every byte peeked at is consumed afterwards, half lines too: one left in the queue would keep it readable
and spin. The half line is state of the source by then.

A connection has at most one chunk under way, so a fast client cannot starve a slow one. A client that resets,
hangs or dies ends its own source only, and its unfinished line counts as a line.
"""

import errno
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from socket import MSG_PEEK

import trio

from actors.lines import Recognise, Source
from actors.sequencer import Chunk
from detection.frames import Segment

CHUNK_BYTES = 256 * 1024
MAX_CONNECTIONS = 1024
# Chunks between peeking and durable, over all connections: bounds what a thousand fast clients hold.
MAX_CHUNKS_UNDER_WAY = 64
ACCEPT_PAUSE_SECONDS = 0.1

# Out of descriptors or memory: the connection stays in the backlog, so accepting at once would spin.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# The connection died in the backlog, the listener is well.
_GONE = {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counters:
    """What ingest did since its start; lines and bytes are counted when they are durable."""

    lines: int = 0
    bytes: int = 0
    lines_truncated: int = 0
    connections_open: int = 0
    connections_total: int = 0
    accept_errors: int = 0


async def run_ingest(
    listeners: Sequence[trio.socket.SocketType],
    chunks: trio.MemorySendChannel[Chunk],
    *,
    stop: trio.Event,
    salt: str,
    recognise: Recognise,
    kind: str = "auto",
    max_line_bytes: int = 65536,
    max_connections: int = MAX_CONNECTIONS,
    orphans: Sequence[str] = (),
    counters: Counters | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Turn what senders write into durable chunks until `stop`; then close `chunks`, which is ours.

    The listeners are bound, listening, and stay the caller's. At `max_connections` nothing is accepted
    and the backlog waits. Sources are called "<salt>-<n>": `salt` must differ between starts. `orphans` are
    sources that an earlier process left with an unfinished line, which becomes a line before we serve.
    At `stop` no more is read; what is under way becomes durable, then connections close.
    """
    with chunks:
        ingest = _Ingest(chunks, salt, recognise, kind, max_line_bytes, max_connections, counters or Counters())
        await ingest.close_orphans(orphans)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ingest.stop_reading, stop)
            for listener in listeners:
                nursery.start_soon(ingest.accept_from, listener, nursery)
            task_status.started()


class _Ingest:
    def __init__(
        self,
        chunks: trio.MemorySendChannel[Chunk],
        salt: str,
        recognise: Recognise,
        kind: str,
        max_line_bytes: int,
        max_connections: int,
        counters: Counters,
    ) -> None:
        self._chunks = chunks
        self._salt = salt
        self._recognise = recognise
        self._kind = kind
        self._max_line_bytes = max_line_bytes
        self._places = trio.Semaphore(max_connections)
        self._under_way = trio.CapacityLimiter(MAX_CHUNKS_UNDER_WAY)
        self._counters = counters
        self._stopped = False
        self._waits: set[trio.CancelScope] = set()

    async def stop_reading(self, stop: trio.Event) -> None:
        await stop.wait()
        self._stopped = True
        for scope in self._waits:
            scope.cancel()

    @contextmanager
    def _until_stop(self) -> Iterator[trio.CancelScope]:
        """A scope around waiting for the outside world, and nothing else: stop cancels all of them."""
        scope = trio.CancelScope()
        self._waits.add(scope)
        if self._stopped:
            scope.cancel()
        try:
            with scope:
                yield scope
        finally:
            self._waits.discard(scope)

    async def close_orphans(self, orphans: Sequence[str]) -> None:
        kind = "plain" if self._kind == "auto" else self._kind
        async with trio.open_nursery() as nursery:
            for name in orphans:
                nursery.start_soon(self._commit, Segment(name, kind, b"", 1, last=True))
        if orphans:
            log.info("%d unfinished lines of an earlier process became lines", len(orphans))

    async def accept_from(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while not self._stopped:
            with self._until_stop() as scope:
                await self._places.acquire()
            if scope.cancelled_caught:
                return
            connection = await self._accepted(listener)
            if connection is None:
                self._places.release()
                continue
            self._counters.connections_total += 1
            self._counters.connections_open += 1
            nursery.start_soon(self._serve, connection, f"{self._salt}-{self._counters.connections_total}")

    async def _accepted(self, listener: trio.socket.SocketType) -> trio.socket.SocketType | None:
        """The next connection, or None when there is none for us: at stop, or after an error to live with."""
        connection: trio.socket.SocketType | None = None
        with self._until_stop():
            try:
                connection, _ = await listener.accept()
            except OSError as exc:
                if exc.errno not in _EXHAUSTED | _GONE:
                    raise
                self._counters.accept_errors += 1
                log.warning("connection not accepted: %s", exc)
                if exc.errno in _EXHAUSTED:
                    await trio.sleep(ACCEPT_PAUSE_SECONDS)
        return connection

    async def _serve(self, connection: trio.socket.SocketType, name: str) -> None:
        source = Source(name, self._kind, self._recognise, self._max_line_bytes)
        try:
            with connection:
                if await self._read_all(connection, source):
                    # Durable before the close that tells the sender so.
                    await self._commit(source.finish())
        finally:
            self._counters.connections_open -= 1
            self._places.release()

    async def _read_all(self, connection: trio.socket.SocketType, source: Source) -> bool:
        """True at the end of the source, False when we stop before."""
        while not self._stopped:
            with self._until_stop() as scope:
                await trio.lowlevel.wait_readable(connection)
            if scope.cancelled_caught:
                return False
            async with self._under_way:
                if self._stopped:
                    return False
                if not await self._take_chunk(connection, source):
                    return True
        return False

    async def _take_chunk(self, connection: trio.socket.SocketType, source: Source) -> bool:
        """Have what waits in `connection` made durable, and consume it; False when nothing will come."""
        try:
            data = await connection.recv(CHUNK_BYTES, MSG_PEEK)
            if not data:
                return False
            await self._commit(source.feed(data))
            self._counters.bytes += len(data)
            left = len(data)
            while left:
                left -= len(await connection.recv(left))
        except OSError as exc:
            log.info("source %s ended: %s", source.name, exc)
            return False
        return True

    async def _commit(self, segment: Segment | None) -> None:
        if segment is None:
            return
        chunk = Chunk(segment)
        await self._chunks.send(chunk)
        await chunk.committed.wait()
        self._counters.lines += segment.lines
        self._counters.lines_truncated += len(segment.cut)
