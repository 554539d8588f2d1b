"""Ingest: owns the log sockets. Peek, have it made durable, consume, read on.

A chunk is only peeked at until it is durable, so its bytes are still the kernel's while the daemon may die:
a sender whose bytes were not accepted sees a reset (the kernel resets a connection that is closed with unread
bytes), and a clean end of file says that everything sent is durable. There is no other acknowledgement.
Every byte peeked at is consumed afterwards, half lines too: one left in the queue would keep it readable
and spin. By then the half line is part of the source's state.

Where a service manager keeps our connections (`actors/journaled_mark.py`) they outlive us: nothing is reset or closed
when we die or stop, and the process after us goes on where we were, under the same names of sources, every byte once.

A connection has at most one chunk under way, and takes turns with the others (`actors/connection_turns.py`), so fast
clients cannot starve a slow one; neither can idle ones, for they give way (`actors/connection_places.py`). Both go by
the user at the other end (SO_PEERCRED). A client that resets, hangs or dies ends its own source only, and its
unfinished line counts as a line.
"""

import errno
import logging
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from actors.connection_places import Place, Places, Said, Shortage
from actors.connection_turns import Flow, Turns
from actors.descriptor_store import StoredConnections
from actors.journaled_mark import Keeper, clear_peek_mark, journaled_bytes, set_peek_mark
from actors.sequencer import Chunk
from actors.source_lines import Recognise, Source
from detection.frames import Segment
from detection.sessions.living_sources import LivingSource

MAX_CONNECTIONS = 1024
ACCEPT_PAUSE_SECONDS = 0.1

# Out of descriptors or memory: the connection stays in the backlog, so accepting at once would spin.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# The connection died in the backlog, the listener is well.
_GONE = {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counters:
    """What ingest did since its start; lines and bytes are counted when they are durable.

    `exactly_once` says whether connections outlive the process; if not, the reason is beside it.
    `connections_unkept` are those that may not, for want of room in the store.
    `connections_resumed` came from an earlier process; `chunks_recognised` of them had a chunk under way that
    was found in the journal, so it was not read again.
    `connections_waiting` says whether others have to wait for a place; if so, the reason is beside it.
    `connections_gave_way` were idle or of the user with most connections, and were closed for those that waited;
    `connections_refused` found too many waiting.
    """

    lines: int = 0
    lines_under_way: int = 0  # read, not durable and not confirmed yet
    bytes: int = 0
    lines_truncated: int = 0
    connections_open: int = 0
    connections_total: int = 0
    accept_errors: int = 0
    exactly_once: bool = False
    exactly_once_reason: str | None = None
    connections_unkept: int = 0
    connections_resumed: int = 0
    chunks_recognised: int = 0
    connections_waiting: bool = False
    connections_waiting_reason: str | None = None
    connections_gave_way: int = 0
    connections_refused: int = 0


@dataclass(frozen=True, slots=True)
class IngestSettings:
    """Sources are called "<salt>-<n>": `salt` must differ between starts. `kind` is the format of every line, or "auto"
    for what `recognise` makes of a source's first lines. Beyond `max_connections` new ones wait until others
    have ended or give way (`actors.connection_places`)."""

    salt: str
    recognise: Recognise
    kind: str = "auto"
    max_line_bytes: int = 65536
    max_connections: int = MAX_CONNECTIONS


@dataclass(frozen=True, slots=True)
class Inherited:
    """What an earlier process leaves: `living` are the sources that have not ended as of the last journaled frame,
    `stored` the connections that the service manager kept, by the names of their sources."""

    living: Sequence[LivingSource] = ()
    stored: Mapping[str, socket.socket] = field(default_factory=dict)


async def run_ingest(
    listeners: Sequence[socket.socket],
    chunks: trio.MemorySendChannel[Chunk],
    settings: IngestSettings,
    *,
    stop: trio.Event,
    inherited: Inherited | None = None,
    keeper: Keeper | None = None,
    counters: Counters | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Turn what senders write into durable chunks until `stop`; then close `chunks`, which is ours.

    The listeners are bound, listening, non-blocking, and stay the caller's. `inherited` connections go on where they
    were. An inherited source without its connection ends before we serve, its unfinished line becoming a line. With a
    `keeper` every connection is kept from its first moment to its end, and needs
    `actors.journaled_mark.peek_marks_work`.

    At `stop` no more is read and what is under way becomes durable. Then connections close, which resets those
    with unread bytes, unless they are kept: those wait for the process after us.
    """
    with chunks:
        inherited = inherited or Inherited()
        ingest = _Ingest(chunks, settings, keeper, counters or Counters())
        await ingest.close_orphaned_sources(
            [source for source in inherited.living if source.name not in inherited.stored]
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ingest.stop_reading_at_stop, stop)
            nursery.start_soon(ingest.watch_descriptor_store)
            nursery.start_soon(ingest.watch_connection_places)
            known = {source.name: source for source in inherited.living}
            for name, connection in inherited.stored.items():
                nursery.start_soon(ingest.resume_connection, connection, name, known.get(name))
            for listener in listeners:
                nursery.start_soon(ingest.accept_connections_from, listener, nursery)
            task_status.started()


class _Ingest:
    def __init__(
        self,
        chunks: trio.MemorySendChannel[Chunk],
        settings: IngestSettings,
        keeper: Keeper | None,
        counters: Counters,
    ) -> None:
        self._chunks = chunks
        self._settings = settings
        self._places = Places(settings.max_connections, self._count_waiting_connections)
        self._turns = Turns()
        self._counters = counters
        self._lasting_reason = counters.exactly_once_reason
        self._stored = None if keeper is None else StoredConnections(keeper, self._count_unkept_connections)
        self._stopped = False
        self._waits: set[trio.CancelScope] = set()

    async def watch_descriptor_store(self) -> None:
        """Test what the service manager holds, until `stop`."""
        if self._stored is not None:
            with self._cancelled_by_stop():
                await self._stored.watch_room()

    async def watch_connection_places(self) -> None:
        """Log when connections wait, until `stop`."""
        with self._cancelled_by_stop():
            await self._places.log_shortages()

    def _count_waiting_connections(self, shortage: Shortage) -> None:
        counters = self._counters
        counters.connections_waiting = shortage.waiting is not None
        counters.connections_waiting_reason = shortage.waiting
        counters.connections_gave_way, counters.connections_refused = shortage.gave_way, shortage.refused

    def _count_unkept_connections(self, connections: int) -> None:
        counters = self._counters
        counters.connections_unkept = connections
        counters.exactly_once_reason = (
            f"the service manager's store has no room for {connections} connections (FileDescriptorStoreMax)"
            if connections
            else self._lasting_reason
        )
        counters.exactly_once = counters.exactly_once_reason is None

    async def stop_reading_at_stop(self, stop: trio.Event) -> None:
        await stop.wait()
        self._stopped = True
        for scope in self._waits:
            scope.cancel()

    @contextmanager
    def _cancelled_by_stop(self) -> Iterator[trio.CancelScope]:
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

    async def close_orphaned_sources(self, orphans: Sequence[LivingSource]) -> None:
        async with trio.open_nursery() as nursery:
            for orphan in orphans:
                nursery.start_soon(self._commit_segment, self._make_source(orphan.name, orphan).finish())
        if unfinished := sum(orphan.tail != b"" for orphan in orphans):
            log.info("%d unfinished lines of an earlier process became lines", unfinished)

    async def resume_connection(self, connection: socket.socket, name: str, before: LivingSource | None) -> None:
        """Go on with a connection that an earlier process had; `before` is where the journal leaves its source."""
        stream = trio.socket.from_stdlib_socket(connection)
        place: Place | None = None
        with self._cancelled_by_stop():
            said = Said.NOTHING if before is None else Said.LINES if before.lines else Said.BYTES
            place = await self._places.take_place(stream, _connection_peer_uid(connection), said=said, may_refuse=False)
        if place is None:
            return  # it stays with the service manager
        self._counters.connections_resumed += 1
        journaled = journaled_bytes(connection, before)
        self._counters.chunks_recognised += journaled > 0
        await self._serve_connection(place, self._make_source(name, before), journaled)

    async def accept_connections_from(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        while not self._stopped:
            with self._cancelled_by_stop() as scope:
                await trio.lowlevel.wait_readable(listener)
            if scope.cancelled_caught:
                return
            connection = await self._accept_connection(listener)
            if connection is None:
                continue
            self._counters.connections_total += 1
            name = f"{self._settings.salt}-{self._counters.connections_total}"
            if self._stored is not None:
                self._stored.keep(name, connection.fileno())
            nursery.start_soon(self._serve_new_connection, connection, name)

    async def _serve_new_connection(self, connection: socket.socket, name: str) -> None:
        """Serve a new connection as soon as it has a place."""
        with trio.socket.from_stdlib_socket(connection) as stream:
            place: Place | None = None
            with self._cancelled_by_stop() as scope:
                place = await self._places.take_place(stream, _connection_peer_uid(connection))
            if place is not None:
                await self._serve_connection(place, self._make_source(name, None))
                return
            if self._stored is not None:
                if not scope.cancelled_caught:
                    self._stored.forget(name)
                self._stored.note_closed(name)

    async def _accept_connection(self, listener: socket.socket) -> socket.socket | None:
        """The connection that waits, or None when there is none for us after all, or an error to live with."""
        connection: socket.socket | None = None
        with self._cancelled_by_stop():
            try:
                # Not trio's accept: it lets other tasks run before it returns.
                connection, _ = listener.accept()
            except BlockingIOError:
                log.debug("a connection was gone before it was accepted")
            except OSError as exc:
                if exc.errno not in _EXHAUSTED | _GONE:
                    raise
                self._counters.accept_errors += 1
                if exc.errno in _EXHAUSTED:
                    self._places.note_shortage(f"connections for log lines cannot be accepted: {exc.strerror}")
                    self._places.end_idle_connection()
                    await trio.sleep(ACCEPT_PAUSE_SECONDS)
                else:
                    log.warning("connection not accepted: %s", exc)
        return connection

    def _make_source(self, name: str, before: LivingSource | None) -> Source:
        settings = self._settings
        return Source(name, settings.kind, settings.recognise, settings.max_line_bytes, before)

    async def _serve_connection(self, place: Place, source: Source, journaled: int = 0) -> None:
        """Read the connection from its byte `journaled` on to its end, or to ours."""
        connection = place.connection
        self._counters.connections_open += 1
        flow = self._turns.join_connection(place.uid)
        try:
            with connection:
                await _consume_peeked_bytes(connection, journaled)
                if self._stored is not None:
                    # Not before: killed in the middle, what is left of the mark says how many bytes are left.
                    clear_peek_mark(connection)
                if await self._read_source_to_end(place, source, flow):
                    # Durable before the close, which the sender takes as the acknowledgement.
                    await self._commit_segment(source.finish())
                    if self._stored is not None:
                        # The sender need not wait until the manager has closed its end, too.
                        connection.shutdown(socket.SHUT_RDWR)
                        self._stored.forget(source.name)
                if self._stored is not None:
                    self._stored.note_closed(source.name)
        finally:
            self._turns.leave_connection(flow)
            self._counters.connections_open -= 1
            self._places.give_place_back(place)

    async def _read_source_to_end(self, place: Place, source: Source, flow: Flow) -> bool:
        """True at the end of the source, False when we stop before."""
        while not self._stopped:
            with self._cancelled_by_stop() as scope:
                await trio.lowlevel.wait_readable(place.connection)
            if scope.cancelled_caught:
                return False
            most = await self._turns.wait_for_turn(flow)
            try:
                if self._stopped:
                    return False
                if not await self._journal_next_chunk(place, source, flow, most):
                    return True
            finally:
                self._turns.end_turn(flow)
        return False

    async def _journal_next_chunk(self, place: Place, source: Source, flow: Flow, most: int) -> bool:
        """Have at most `most` bytes of what waits made durable, and consume them; False when nothing will come."""
        connection = place.connection
        try:
            data = await connection.recv(most, socket.MSG_PEEK)
            if not data:
                return False
            self._turns.use_turn(flow, len(data))
            segment = source.feed(data)
            if self._stored is not None and segment is not None:
                set_peek_mark(connection, len(data), segment.parity)
            with self._places.marked_busy(place):
                await self._commit_segment(segment)
            place.said = max(place.said, Said.LINES if segment is not None and segment.lines else Said.BYTES)
            self._counters.bytes += len(data)
            await _consume_peeked_bytes(connection, len(data))
            if self._stored is not None:
                clear_peek_mark(connection)
        except OSError as exc:
            log.info("source %s ended: %s", source.name, exc)
            return False
        return True

    async def _commit_segment(self, segment: Segment | None) -> None:
        if segment is None:
            return
        chunk = Chunk(segment)
        self._counters.lines_under_way += segment.lines
        try:
            await self._chunks.send(chunk)
            await chunk.committed.wait()
        finally:
            self._counters.lines_under_way -= segment.lines
        self._counters.lines += segment.lines
        self._counters.lines_truncated += len(segment.cut)


async def _consume_peeked_bytes(connection: trio.socket.SocketType, size: int) -> None:
    """Take `size` bytes, which are known to wait there."""
    while size:
        size -= len(await connection.recv(size))


def _connection_peer_uid(connection: socket.socket) -> int:
    """The user at the other end, as the kernel noted it when the connection was made."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid
