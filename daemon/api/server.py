"""Serves the admin API on sockets that are already bound and listening.

hypercorn speaks HTTP on each connection. Accepting, limiting and ending connections is done here, because
its own `serve` has these gaps (hypercorn 0.18, quart-trio 0.12; pinned by tests):

- Finished connections stay open for ever. hypercorn signals the end to the application (http.disconnect)
  from inside the send of the last body part, *before* it closes the connection or arms its idle timer.
  quart-trio then cancels its nursery, and with it that send. `_Application` shields it.
- A client that stops reading blocks the stop for ever: hypercorn shields its socket writes. `_Connection`
  gives every write a deadline, and at the stop, sockets still open after the grace are closed.
- A connection whose client hung up between requests is kept until its idle timer runs out. `_Protocol`
  stops the timer, so that such connections do not use up the limit below.
- An upgrade to HTTP/2 with bad settings never ends. `_Protocol` speaks HTTP/1 only.
- Connections are not limited. `_Listener` stops accepting at its limit; the rest wait in the kernel's
  backlog. Each socket has a limit of its own, so that clients on TCP cannot lock out the Unix socket.
- A client that pipelines requests and leaves is never noticed: the failed write of a response ends the request,
  but the reader goes on waiting for the end of that response, with the idle timer stopped. `_Connection` sets
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
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    ConnectionState,
    LifespanState,
    Scope,
)
from hypercorn.utils import wrap_app

from daemon.api.peers import peer_of

MAX_CONNECTIONS = 64  # on each listening socket
IDLE_SECONDS = 5.0  # a connection without a request, or between two
SEND_SECONDS = 10.0  # one write to a client that does not read
STALL_SECONDS = 300.0  # without a byte read or written; event streams write more often, and answers take less
GRACE_SECONDS = 1.0  # for requests under way at the stop

log = logging.getLogger(__name__)


async def run_server(
    app: ASGIFramework,
    sockets: Sequence[socket.socket],
    shutdown: Callable[[], Awaitable[None]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until `shutdown` returns, then give requests under way `GRACE_SECONDS` and cut the rest.

    Takes ownership of `sockets` and closes them; their files are the caller's. The application's
    lifespan events are not sent, as the daemon starts and stops the actors. A request's scope says in
    `scope["state"]["peer"]` who sent it, as a `Peer`.
    """
    context = WorkerContext(None)
    wrapped = wrap_app(_Application(app), 0, "asgi")
    config = _config()
    still_open: set[_Connection] = set()

    async with trio.open_nursery() as reaper:
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                serve = partial(_serve_connection, wrapped, config, context, still_open)
                for sock in sockets:
                    listener = _Listener(trio.SocketListener(trio.socket.from_stdlib_socket(sock)))
                    accept = partial(trio.serve_listeners, serve, [listener], handler_nursery=connections)
                    accepting.start_soon(accept)
                task_status.started()
                await shutdown()
                accepting.cancel_scope.cancel()
            await context.terminated.set()
            # `connections` closes before `reaper` does; cancelling it after that is harmless.
            reaper.start_soon(_cut_after_grace, still_open, connections)  # noqa: ASYNC111
        reaper.cancel_scope.cancel()


async def _cut_after_grace(still_open: set["_Connection"], connections: trio.Nursery) -> None:
    await trio.sleep(GRACE_SECONDS)
    for connection in still_open:
        connection.socket.close()  # cancelling alone would not reach a shielded write
    connections.cancel_scope.cancel()


async def _serve_connection(
    app: AppWrapper,
    config: Config,
    context: WorkerContext,
    still_open: set["_Connection"],
    connection: "_Connection",
) -> None:
    still_open.add(connection)
    state = ConnectionState(LifespanState({"peer": peer_of(connection.socket)}))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_when_stuck, connection, nursery.cancel_scope)
            # hypercorn's annotation is an SSL stream; it uses only what `_Connection` has.
            await _Protocol(app, config, context, state, connection)  # type: ignore[arg-type]
            nursery.cancel_scope.cancel()
    except* Exception as group:
        # One client's protocol error ends that connection, not the daemon. Cancelled is not caught.
        for error in _leaves(group):
            log.error("admin connection dropped: %s: %s", type(error).__name__, error)
    finally:
        still_open.discard(connection)
        connection.socket.close()
        connection.release()


async def _end_when_stuck(connection: "_Connection", scope: trio.CancelScope) -> None:
    """Cancel `scope` once the connection is broken or has made no progress for `STALL_SECONDS`."""
    while not connection.broken.is_set():
        deadline = connection.progress_time + STALL_SECONDS
        if trio.current_time() >= deadline:
            break
        with trio.move_on_at(deadline):
            await connection.broken.wait()
    scope.cancel()


def _leaves(group: BaseExceptionGroup[Exception]) -> list[Exception]:
    leaves: list[Exception] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


def _config() -> Config:
    config = Config()
    config.keep_alive_timeout = IDLE_SECONDS
    config.include_server_header = False
    config.errorlog = log
    config.accesslog = None
    return config


class _Application:
    """The ASGI application with the send of the last body part shielded; websockets are refused."""

    def __init__(self, app: ASGIFramework) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000, "reason": None})
            return
        if scope["type"] == "http" and not scope["path"].startswith("/"):
            # "*" or a whole URL, on which the framework may trip
            await _refuse(send, "bad_target", "the request target is not a path")
            return
        if scope["type"] == "http" and _LENGTHS <= {name for name, _ in scope["headers"]}:
            # A proxy in front may have gone by the other one, and where the next request begins is anybody's guess.
            await _refuse(send, "two_lengths", "a request has Content-Length or Transfer-Encoding, not both")
            return

        async def send_to_the_end(event: ASGISendEvent) -> None:
            last = event["type"] == "http.response.body" and not event.get("more_body", False)
            with trio.CancelScope(shield=last):  # bounded: see `_Connection.send_all`
                await send(event)

        await self._app(scope, receive, send_to_the_end)


# RFC 9112, 6.3: with both of them a request may be an attempt at smuggling another one.
_LENGTHS = frozenset({b"content-length", b"transfer-encoding"})


async def _refuse(send: ASGISendCallable, code: str, message: str) -> None:
    """Answer 400 and close the connection: what it holds beyond this request is not read."""
    body = b'{"error":{"code":"%s","message":"%s"}}\n' % (code.encode(), message.encode())
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class _Protocol(TCPServer):
    """hypercorn's connection handler, without HTTP/2; it ends when its client has hung up."""

    async def _read_data(self) -> None:
        async def stay_with_http_1(_: h11.Request) -> None:
            """In place of hypercorn's check for an upgrade, which a server may ignore."""

        self.protocol.protocol._check_protocol = stay_with_http_1  # type: ignore[union-attr, method-assign]
        await super()._read_data()
        await self.idle_task.stop()


class _Listener(trio.abc.Listener["_Connection"]):
    """Accepts while fewer than `MAX_CONNECTIONS` of its connections are open."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        self._slots = trio.Semaphore(MAX_CONNECTIONS)

    async def accept(self) -> "_Connection":
        await self._slots.acquire()
        try:
            return _Connection(await self._listener.accept(), self._slots.release)
        except BaseException:
            self._slots.release()
            raise

    async def aclose(self) -> None:
        await self._listener.aclose()


class _Connection(trio.abc.HalfCloseableStream):
    """A socket stream on which one write takes at most `SEND_SECONDS`. `release` returns its place in the limit.

    `broken` is set when a write has failed, so that nothing more can be sent. `progress_time` is when a byte was last
    read or written, by trio's clock.
    """

    def __init__(self, stream: trio.SocketStream, release: Callable[[], None]) -> None:
        self._stream = stream
        self.socket = stream.socket
        self.release = release
        self.broken = trio.Event()
        self.progress_time = trio.current_time()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            with trio.move_on_after(SEND_SECONDS):
                await self._stream.send_all(data)
                self.progress_time = trio.current_time()
                return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.broken.set()
            raise
        # Later writes must fail at once, too: this one broke off in the middle.
        self.socket.close()
        self.broken.set()
        raise trio.BrokenResourceError("the client does not read")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        self.progress_time = trio.current_time()
        return data

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
