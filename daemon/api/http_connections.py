"""Which connections are served on a listening socket of the admin API, so that idle clients keep out no others.

A connection costs little until the head of a request has come whole. Until then it waits in the hall, for HEAD_SECONDS
at most; when the hall is full, the one that has been there for longest is closed for the next. With its head it gets
one of MAX_CONNECTIONS places, and keeps it over its requests. When all are taken, one is closed that is between two
requests, or that the daemon has waited for (for the rest of a body, or until it reads) for PATIENCE_SECONDS, or that
the daemon only lets wait (`daemon/api/waiting.py`). One that waits for an answer in the making never is.

Each listening socket has a hall and places of its own: clients on TCP cannot lock out the Unix socket. There are fewer
where few files may be open (`daemon/host/process_limits.py`).
"""

import errno
import logging
import re
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from daemon.control.condition import AdminCounters

MAX_CONNECTIONS = 64  # on each listening socket
MAX_WAITING = 96  # on each, without a place
HEAD_SECONDS = 5.0  # from the connection to the end of its first request's head
PATIENCE_SECONDS = 0.5
SEND_SECONDS = 10.0  # one write to a client that does not read
# More than that is no head: hypercorn refuses it.
MAX_HEAD_BYTES = 16 * 1024

# Out of descriptors or memory: the connection stays in the backlog, so accepting at once would spin.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
EXHAUSTED_SECONDS = 0.1

log = logging.getLogger(__name__)

_RECEIVE_BYTES = 16 * 1024
_HEAD_END = re.compile(rb"\n\r?\n")


class Connection(trio.abc.HalfCloseableStream):
    """A socket stream on which one write takes at most `SEND_SECONDS`.

    `broken` is set when nothing more can be sent: a write has failed, or another connection takes the place.
    `progress_time` is when a byte was last read or written, by trio's clock.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._head = b""  # read and not given out yet
        self._until: float | None = None  # how long the daemon waits for the rest of a request, or for the next
        self._sending_until: float | None = None
        self._gives_way_since: float | None = None
        self._requests = 0
        self._answering: tuple[trio.lowlevel.Task, trio.Event] | None = None
        self.socket = stream.socket
        self.broken = trio.Event()
        self.progress_time = trio.current_time()

    @property
    def unix(self) -> bool:
        return self.socket.family == socket.AF_UNIX

    def note_request_head(self) -> int:
        """The head of a request has come. Returns its number, for `note_request_answered`."""
        self._until = trio.current_time() + PATIENCE_SECONDS
        self._requests += 1
        return self._requests

    def note_whole_request(self) -> None:
        """The request has come whole: the client waits for us."""
        self._until = None

    def note_request_answered(self, request: int) -> None:
        """It is between two requests, unless the next one is there already."""
        if request == self._requests:
            self._until = trio.current_time()

    def begin_answer(self) -> None:
        """The task that calls this sends an answer from here on."""
        self._answering = trio.lowlevel.current_task(), trio.Event()

    def end_answer(self) -> None:
        if self._answering is not None:
            self._answering[1].set()
            self._answering = None

    async def wait_for_answer(self) -> None:
        """Return once the answer that another task sends is out, or cannot be sent in time."""
        if self._answering is not None and self._answering[0] is not trio.lowlevel.current_task():
            with trio.move_on_after(SEND_SECONDS):
                await self._answering[1].wait()

    def waited_for_until(self) -> float | None:
        """How long the daemon waits for this client if others want its place; None while the client waits for us."""
        if self._sending_until is not None:
            return self._sending_until
        return self._until if self._gives_way_since is None else self._gives_way_since

    @contextmanager
    def giving_way(self) -> Iterator[None]:
        """While it is held the daemon only lets the client wait: others that want its place get it."""
        self._gives_way_since = trio.current_time()
        try:
            yield
        finally:
            self._gives_way_since = None

    def give_up_place(self) -> None:
        # Closed as well, for cancelling alone would not reach a shielded write.
        self.socket.close()
        self.broken.set()

    async def read_head(self) -> bool:
        """True when the first request's head is there, or what cannot be one; False when the client left before."""
        while len(self._head) < MAX_HEAD_BYTES and not _HEAD_END.search(self._head):
            try:
                data = await self._stream.receive_some(_RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return False
            if not data:
                return self._head != b""
            self._head += data
        return True

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._sending_until = trio.current_time() + PATIENCE_SECONDS
        try:
            with trio.move_on_after(SEND_SECONDS):
                await self._stream.send_all(data)
                self.progress_time = trio.current_time()
                return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.broken.set()
            raise
        finally:
            self._sending_until = None
        # Later writes must fail at once, too: this one broke off in the middle.
        self.socket.close()
        self.broken.set()
        raise trio.BrokenResourceError("the client does not read")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data: bytes | bytearray
        if self._head:
            data, self._head = self._head[:max_bytes], self._head[max_bytes or len(self._head) :]
            await trio.lowlevel.checkpoint()
        else:
            data = await self._stream.receive_some(max_bytes)
        self.progress_time = trio.current_time()
        return data

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Room(trio.abc.Listener[Connection]):
    """Accepts connections of one listening socket; each is to be let go by `leave_place`."""

    def __init__(
        self,
        listener: trio.SocketListener,
        counters: AdminCounters,
        max_connections: int | None = None,
        max_waiting: int | None = None,
    ) -> None:
        self._max_connections = max_connections or MAX_CONNECTIONS
        self._max_waiting = max_waiting or MAX_WAITING
        self._exhausted = False
        self._listener = listener
        self._counters = counters
        self._hall: dict[Connection, None] = {}  # without a whole head, the oldest first
        self._queue: deque[tuple[Connection, trio.Event]] = deque()  # with one, for a place
        self._served: set[Connection] = set()
        self._moved = trio.Event()

    async def accept(self) -> Connection:
        # The rest is for the hall: who has just come must have time to say what it wants.
        while len(self._queue) >= max(1, self._max_waiting // 2):
            await self._moved.wait()
        connection = Connection(await self._accept_when_possible())
        self._hall[connection] = None
        self._counters.connections += 1
        if len(self._hall) + len(self._queue) > self._max_waiting:
            self._counters.gave_way += 1
            next(iter(self._hall)).give_up_place()
            del self._hall[next(iter(self._hall))]
        return connection

    async def _accept_when_possible(self) -> trio.SocketStream:
        while True:
            try:
                stream = await self._listener.accept()
            except OSError as exc:
                if exc.errno not in EXHAUSTED:
                    raise
                # Here, for trio logs a traceback each time.
                self._counters.accept_errors += 1
                if not self._exhausted:
                    log.warning("no connection to the admin API can be accepted for now: %s", exc.strerror)
                self._exhausted = True
                await trio.sleep(EXHAUSTED_SECONDS)
            else:
                self._exhausted = False
                return stream

    async def admit_connection(self, connection: Connection) -> bool:
        """True when it has sent a request's head and has a place; False when it is to be closed."""
        came = False
        with trio.move_on_after(HEAD_SECONDS) as waited:
            came = await connection.read_head()
        self._counters.too_slow += waited.cancelled_caught
        self._hall.pop(connection, None)
        if not came:
            return False
        if len(self._served) < self._max_connections and not self._queue:
            self._give_place(connection)
            return True
        turn = (connection, trio.Event())
        self._queue.append(turn)
        try:
            while not turn[1].is_set():
                with trio.move_on_at(self._make_way()):
                    await turn[1].wait()
        finally:
            if turn in self._queue:
                self._queue.remove(turn)
                self._wake_waiting_accept()
        return True

    def leave_place(self, connection: Connection) -> None:
        self._counters.connections -= 1
        self._hall.pop(connection, None)
        self._served.discard(connection)
        while self._queue and len(self._served) < self._max_connections:
            following, turn = self._queue.popleft()
            self._give_place(following)
            turn.set()
        self._wake_waiting_accept()

    def close_waiting_connections(self) -> None:
        """Close connections from which no request has come."""
        for connection in self._hall:
            connection.broken.set()

    def _give_place(self, connection: Connection) -> None:
        connection.note_request_head()
        self._served.add(connection)

    def _make_way(self) -> float:
        """Close those that are waited for too long, as many as wait for a place. Returns when to try again."""
        now = trio.current_time()
        waits = [(until, each) for each in self._served if (until := each.waited_for_until()) is not None]
        leaving = sum(each.broken.is_set() for each in self._served)
        for until, connection in sorted(waits, key=lambda wait: wait[0]):
            if leaving >= len(self._queue) or now < until:
                break
            if not connection.broken.is_set():
                self._counters.gave_way += 1
                connection.give_up_place()
                leaving += 1
        return now + PATIENCE_SECONDS / 5

    def _wake_waiting_accept(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    async def aclose(self) -> None:
        await self._listener.aclose()
