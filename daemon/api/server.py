"""Serves the admin API on sockets that are already bound and listening.

hypercorn speaks HTTP on each connection. Accepting, limiting and ending connections is done here, because
its own `serve` has these gaps (hypercorn 0.18, quart-trio 0.12; pinned by tests):

- Finished connections stay open for ever. hypercorn signals the end to the application (http.disconnect)
  from inside the send of the last body part, *before* it closes the connection or arms its idle timer.
  quart-trio then cancels its nursery, and with it that send. `_Application` shields it.
- A client that stops reading blocks the stop for ever: hypercorn shields its socket writes. `Connection`
  gives every write a deadline, and at the stop, sockets still open after the grace are closed.
- A connection whose client hung up between requests is kept until its idle timer runs out. `_Protocol`
  stops the timer, so that such connections do not use up the limit below.
- An upgrade to HTTP/2 with bad settings never ends. `_Protocol` speaks HTTP/1 only.
- Connections are not limited, and one that sends nothing counts as much as any. `daemon/api/http_connections.py` sees
  to who is served.
- A client that pipelines requests and leaves is never noticed: the failed write of a response ends the request,
  but the reader goes on waiting for the end of that response, with the idle timer stopped. `Connection` sets
  `broken`, and `_serve_connection` then ends the connection's tasks.
- Nothing bounds how long a connection may go without a byte in either direction while a request is under way.
  `_serve_connection` does: after `STALL_SECONDS` it ends.
"""

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    ConnectionState,
    LifespanState,
    Scope,
)
from hypercorn.utils import wrap_app

from daemon.api.http_connections import Connection, Room
from daemon.api.peers import peer_of
from daemon.control.condition import AdminCounters

IDLE_SECONDS = 5.0  # a connection between two requests, and to the end of the next one's head
STALL_SECONDS = 300.0  # without a byte read or written; event streams write more often, and answers take less
GRACE_SECONDS = 1.0  # for requests under way at the stop

log = logging.getLogger(__name__)


async def run_server(
    app: ASGIFramework,
    sockets: Sequence[socket.socket],
    shutdown: Callable[[], Awaitable[None]],
    *,
    counters: AdminCounters | None = None,
    max_connections: int | None = None,
    max_waiting: int | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until `shutdown` returns, then give requests under way `GRACE_SECONDS` and cut the rest.

    Takes ownership of `sockets` and closes them; their files are the caller's. The application's
    lifespan events are not sent, as the daemon starts and stops the actors. A request's scope says in
    `scope["state"]["peer"]` who sent it, as a `Peer`; "giving_way" there is `Connection.giving_way`.
    """
    context = WorkerContext(None)
    config = _hypercorn_config()
    still_open: set[Connection] = set()
    listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]
    rooms = [Room(listener, counters or AdminCounters(), max_connections, max_waiting) for listener in listeners]

    async with trio.open_nursery() as reaper:
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                for room in rooms:
                    serve = partial(_serve_connection, app, config, context, still_open, room)
                    accepting.start_soon(partial(trio.serve_listeners, serve, [room], handler_nursery=connections))
                task_status.started()
                await shutdown()
                accepting.cancel_scope.cancel()
            for room in rooms:
                room.close_waiting_connections()
            await context.terminated.set()
            # `connections` closes before `reaper` does; cancelling it after that is harmless.
            reaper.start_soon(_cut_connections_after_grace, still_open, connections)  # noqa: ASYNC111
        reaper.cancel_scope.cancel()


async def _cut_connections_after_grace(still_open: set[Connection], connections: trio.Nursery) -> None:
    await trio.sleep(GRACE_SECONDS)
    for connection in still_open:
        connection.socket.close()  # cancelling alone would not reach a shielded write
    connections.cancel_scope.cancel()


async def _serve_connection(
    app: ASGIFramework,
    config: Config,
    context: WorkerContext,
    still_open: set[Connection],
    room: Room,
    connection: Connection,
) -> None:
    still_open.add(connection)
    state = ConnectionState(LifespanState({"peer": peer_of(connection.socket), "giving_way": connection.giving_way}))
    wrapped = wrap_app(_Application(app, connection), 0, "asgi")
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_when_stuck, connection, nursery.cancel_scope)
            if await room.admit_connection(connection):
                # hypercorn's annotation is an SSL stream; it uses only what `Connection` has.
                await _Protocol(wrapped, config, context, state, connection)  # type: ignore[arg-type]
            nursery.cancel_scope.cancel()
    except* Exception as group:
        # One client's protocol error ends that connection, not the daemon. Cancelled is not caught.
        for error in _leaves_of_exception_group(group):
            log.error("admin connection dropped: %s: %s", type(error).__name__, error)
    finally:
        still_open.discard(connection)
        connection.socket.close()
        room.leave_place(connection)


async def _end_when_stuck(connection: Connection, scope: trio.CancelScope) -> None:
    """Cancel `scope` once the connection is broken or has made no progress for `STALL_SECONDS`."""
    while not connection.broken.is_set():
        deadline = connection.progress_time + STALL_SECONDS
        if trio.current_time() >= deadline:
            break
        with trio.move_on_at(deadline):
            await connection.broken.wait()
    scope.cancel()


def _leaves_of_exception_group(group: BaseExceptionGroup[Exception]) -> list[Exception]:
    leaves: list[Exception] = []
    for error in group.exceptions:
        leaves += _leaves_of_exception_group(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


def _hypercorn_config() -> Config:
    config = Config()
    config.keep_alive_timeout = IDLE_SECONDS
    config.include_server_header = False
    config.errorlog = log
    config.accesslog = None
    return config


class _Application:
    """The ASGI application of one connection, with the send of the last body part shielded; websockets are refused."""

    def __init__(self, app: ASGIFramework, connection: Connection) -> None:
        self._app = app
        self._connection = connection

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000, "reason": None})
            return

        async def receive_and_note() -> ASGIReceiveEvent:
            event = await receive()
            if event["type"] == "http.request" and not event.get("more_body", False):
                self._connection.note_whole_request()
            return event

        async def send_to_the_end(event: ASGISendEvent) -> None:
            if event["type"] == "http.response.start":
                self._connection.begin_answer()
            last = event["type"] == "http.response.body" and not event.get("more_body", False)
            with trio.CancelScope(shield=last):  # bounded: see `Connection.send_all`
                await send(event)

        request = self._connection.note_request_head()
        try:
            if scope["type"] == "http" and not scope["path"].startswith("/"):
                # "*" or a whole URL, on which the framework may trip
                await _refuse_bad_request(send_to_the_end, "bad_target", "the request target is not a path")
            elif scope["type"] == "http" and _LENGTHS <= {name for name, _ in scope["headers"]}:
                # A proxy in front may have gone by the other one, and where the next request begins is anybody's guess.
                message = "a request has Content-Length or Transfer-Encoding, not both"
                await _refuse_bad_request(send_to_the_end, "two_lengths", message)
            else:
                await self._app(scope, receive_and_note, send_to_the_end)
        finally:
            self._connection.end_answer()
            self._connection.note_request_answered(request)


# RFC 9112, 6.3: with both of them a request may be an attempt at smuggling another one.
_LENGTHS = frozenset({b"content-length", b"transfer-encoding"})


async def _refuse_bad_request(send: ASGISendCallable, code: str, message: str) -> None:
    """Answer 400 and close the connection: what it holds beyond this request is not read."""
    body = b'{"error":{"code":"%s","message":"%s"}}\n' % (code.encode(), message.encode())
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class _Protocol(TCPServer):
    """hypercorn's connection handler, without HTTP/2; it ends when its client has hung up."""

    stream: Connection  # type: ignore[assignment]

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Closed):
            # Its reader closes as soon as an answer with "Connection: close" has begun and more has come in.
            await self.stream.wait_for_answer()
        await super().protocol_send(event)

    async def _read_data(self) -> None:
        async def stay_with_http_1(_: h11.Request) -> None:
            """In place of hypercorn's check for an upgrade, which a server may ignore."""

        self.protocol.protocol._check_protocol = stay_with_http_1  # type: ignore[union-attr, method-assign]
        await super()._read_data()
        await self.idle_task.stop()
