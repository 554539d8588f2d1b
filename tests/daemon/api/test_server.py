"""The admin server over real sockets: connections end, are bounded, and never hold up the stop."""

import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from daemon.api import event_streams, http_connections, server, token_guesses, waiting
from daemon.api.app import BODY_SECONDS, create_app
from daemon.control.condition import AdminCounters
from tests.daemon.fake_control import FakeControl, record

GET_HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
GET_EVENTS = b"GET /events?all=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass
class Serving:
    control: FakeControl
    port: int
    path: Path
    stop: trio.Event
    stopped: trio.Event
    counters: AdminCounters = field(default_factory=AdminCounters)

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)


@asynccontextmanager
async def serving(tmp_path: Path, token: str | None = None) -> AsyncIterator[Serving]:
    control = FakeControl()
    tcp = socket.create_server(("127.0.0.1", 0))
    path = tmp_path / "admin.sock"
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(path))
    unix.listen()
    it = Serving(control, tcp.getsockname()[1], path, trio.Event(), trio.Event())
    app = create_app(control, hosts=(), token=token)

    async def run(task_status: trio.TaskStatus[None]) -> None:
        await server.run_server(app, [tcp, unix], it.stop.wait, counters=it.counters, task_status=task_status)
        it.stopped.set()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            yield it
            it.stop.set()


async def read_to_end(stream: trio.SocketStream) -> bytes:
    received = b""
    async for chunk in stream:
        received += chunk
    return received


async def read_response(stream: trio.SocketStream) -> tuple[int, Any]:
    """One response with a Content-Length; the connection stays open."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = await stream.receive_some()
        assert chunk, f"the connection ended inside the head: {received!r}"
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    [length] = [int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    while len(body) < length:
        body += await stream.receive_some()
    return int(head.split()[1]), json.loads(body)


async def test_connection_close_is_honoured_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as it, await it.connect() as stream:
        await stream.send_all(GET_HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        with trio.fail_after(2):
            assert b'"status":"serving"' in await read_to_end(stream)


async def test_an_idle_connection_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.3)
    async with serving(tmp_path) as it, await it.connect() as stream:
        await stream.send_all(GET_HEALTH)
        assert (await read_response(stream))[0] == 200
        with trio.fail_after(3):
            assert await read_to_end(stream) == b""


async def test_without_the_shield_finished_connections_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the two tests above: if this fails, hypercorn was fixed and the shield can go."""
    monkeypatch.setattr(server, "_Application", lambda app, connection: app)
    async with serving(tmp_path) as it, await it.connect() as stream:
        await stream.send_all(GET_HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        with trio.move_on_after(1) as waited:
            await read_to_end(stream)
        assert waited.cancelled_caught


async def test_a_connection_serves_several_requests_pipelined_ones_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as it, await it.connect() as stream:
        for _ in range(3):
            await stream.send_all(GET_HEALTH)
            assert (await read_response(stream))[0] == 200
        last = GET_HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        await stream.send_all(GET_HEALTH + GET_HEALTH + last)
        assert (await read_to_end(stream)).count(b"HTTP/1.1 200") == 3


async def test_a_long_list_comes_whole_and_its_head_alone_when_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as it, await it.connect() as stream:
        it.control.flagged = [record(n, text="x" * 12_000) for n in range(1000)]
        asked = b"HEAD /anomalies?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await stream.send_all(asked)
        assert (await stream.receive_some()).endswith(b"\r\n\r\n")
        # An HTTP/1.0 client gets it without chunks.
        await stream.send_all(asked.replace(b"HEAD", b"GET").replace(b"HTTP/1.1", b"HTTP/1.0"))
        head, _, body = (await read_to_end(stream)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and json.loads(body) == {"anomalies": it.control.flagged}


async def leave_pipelining(it: Serving, times: int) -> None:
    """Send pipelined requests from `times` clients, and disconnect without reading a byte of the answers."""
    for _ in range(times):
        client = await it.connect()
        await client.send_all(GET_HEALTH * 20)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await client.aclose()


async def test_clients_that_pipeline_requests_and_leave_free_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connections, "MAX_CONNECTIONS", 2)
    async with serving(tmp_path) as it:
        await leave_pipelining(it, 12)
        async with await it.connect() as stream:
            with trio.fail_after(3):
                await stream.send_all(GET_HEALTH)
                assert (await read_response(stream))[0] == 200


@pytest.mark.slow
async def test_without_a_watch_on_broken_connections_those_clients_keep_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: if this fails, hypercorn was fixed."""

    async def never(connection: object, scope: trio.CancelScope) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(http_connections, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(server, "_end_when_stuck", never)
    async with serving(tmp_path) as it:
        await leave_pipelining(it, 12)
        async with await it.connect() as stream:
            with trio.move_on_after(2) as waited:
                await stream.send_all(GET_HEALTH)
                await read_response(stream)
            assert waited.cancelled_caught


async def test_a_connection_without_progress_in_a_request_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STALL_SECONDS", 0.5)
    async with serving(tmp_path) as it, await it.connect() as stream:
        await stream.send_all(b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        with trio.fail_after(3):
            await read_to_end(stream)


# By Transfer-Encoding the body ends at once and a second request follows; by Content-Length that is part of the body.
SMUGGLING = (
    b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    + GET_HEALTH
)


async def test_a_request_with_two_lengths_is_refused_and_nothing_after_it_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as it:
        for answer in await answers_to_smuggling(it):
            assert answer.startswith(b"HTTP/1.1 400") and b'"two_lengths"' in answer
            assert answer.count(b"HTTP/1.1 ") == 1


async def answers_to_smuggling(it: Serving) -> list[bytes]:
    """Each whole, as the connection is closed by the server. Whether the answer or the rest of the request comes first
    is up to the scheduler, which throws a coin."""
    answers = []
    for _ in range(20):
        async with await it.connect() as stream:
            await stream.send_all(SMUGGLING)
            answers.append(await read_to_end(stream))
    return answers


async def test_a_server_that_closes_before_its_answer_is_out_leaves_some_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_wait(_: http_connections.Connection) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(http_connections.Connection, "wait_for_answer", no_wait)
    async with serving(tmp_path) as it:
        assert not all(answer.endswith(b"}}\n") for answer in await answers_to_smuggling(it))


async def test_without_that_check_the_second_request_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_LENGTHS", frozenset({b"never sent"}))
    async with serving(tmp_path) as it, await it.connect() as stream:
        await stream.send_all(SMUGGLING)
        assert (await read_response(stream))[0] == 400  # no body
        assert (await read_response(stream))[0] == 200


POST_CHECKPOINT = b"POST /checkpoint HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"


async def served(stream: trio.SocketStream, seconds: float) -> bool:
    """Whether a request is answered within that time."""
    with trio.move_on_after(seconds):
        await stream.send_all(GET_HEALTH)
        assert (await read_response(stream))[0] == 200
        return True
    return False


async def test_connections_over_the_cap_wait_and_the_other_socket_is_not_locked_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connections, "MAX_CONNECTIONS", 2)
    async with serving(tmp_path) as it:
        monkeypatch.setattr(it.control, "snapshots", it.control.checkpoint)
        it.control.checkpoint_may_finish = trio.Event()
        first, second = [await it.connect() for _ in range(2)]
        for stream in (first, second):
            await stream.send_all(GET_HEALTH.replace(b"/health", b"/snapshots"))
            await trio.testing.wait_all_tasks_blocked()
        third = await it.connect()
        assert not await served(third, 2 * http_connections.PATIENCE_SECONDS), (
            "nobody gives way who waits for the daemon"
        )
        async with await trio.open_unix_socket(it.path) as unix:
            assert await served(unix, 5)
        await first.aclose()
        assert (await read_response(third))[0] == 200
        await second.aclose()
        await third.aclose()


async def _said_all(connection: http_connections.Connection) -> bool:
    return True


@asynccontextmanager
async def crowd(it: Serving, number: int, first: bytes) -> AsyncIterator[list[trio.SocketStream]]:
    """So many clients that send `first` and nothing more."""
    streams = [await it.connect() for _ in range(number)]
    for stream in streams:
        try:
            await stream.send_all(first)
        except trio.BrokenResourceError:
            continue  # it gave way already
    await trio.testing.wait_all_tasks_blocked(0.05)
    yield streams
    for stream in streams:
        await stream.aclose()


HALF_A_HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "
HALF_A_BODY = b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"


@pytest.mark.parametrize("first", [b"", HALF_A_HEAD])
@pytest.mark.parametrize("protected", [True, False])
async def test_clients_that_have_not_asked_take_no_places_and_would_without_the_hall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bytes, protected: bool
) -> None:
    monkeypatch.setattr(http_connections, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(http_connections, "MAX_WAITING", 4)
    monkeypatch.setattr(http_connections, "HEAD_SECONDS", 60.0)
    if not protected:
        monkeypatch.setattr(http_connections.Connection, "read_head", _said_all)
        monkeypatch.setattr(http_connections.Room, "_make_way", nobody_gives_way)
    async with serving(tmp_path) as it, crowd(it, 10, first), await it.connect() as stream:
        assert await served(stream, 2.0) == protected


def nobody_gives_way(room: http_connections.Room) -> float:
    return trio.current_time() + 60.0


@pytest.mark.parametrize("first", [HALF_A_BODY, GET_HEALTH])
@pytest.mark.parametrize("protected", [True, False])
async def test_places_of_clients_that_are_waited_for_go_to_others_and_would_not_without_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bytes, protected: bool
) -> None:
    monkeypatch.setattr(http_connections, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(server, "IDLE_SECONDS", 60.0)
    if not protected:
        monkeypatch.setattr(http_connections.Room, "_make_way", nobody_gives_way)
    async with serving(tmp_path) as it, crowd(it, 2, first), await it.connect() as stream:
        assert await served(stream, 3.0) == protected
        assert it.counters.gave_way == protected


POST_DETECT = b'POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 18\r\n\r\n{"log_line": "a "}'
WRONG_TOKEN = POST_CHECKPOINT.replace(b"/checkpoint", b"/flush").replace(
    b"\r\n\r\n", b"\r\nAuthorization: Bearer x\r\n\r\n"
)


@contextmanager
def gives_no_way(connection: http_connections.Connection) -> Iterator[None]:
    yield


@pytest.mark.parametrize("asked", [POST_CHECKPOINT, POST_DETECT, WRONG_TOKEN])
@pytest.mark.parametrize("protected", [True, False])
async def test_requests_that_are_made_to_wait_keep_no_places_from_others_and_would_without_giving_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bytes, protected: bool
) -> None:
    """A checkpoint over TCP, one's turn to have lines judged, and the answer to the next token after wrong ones."""
    monkeypatch.setattr(waiting, "MAX_WAITING_OF_A_NETWORK", 1000)  # as if each came from a network of its own
    monkeypatch.setattr(token_guesses, "FREE_GUESSES", 1)
    monkeypatch.setattr(token_guesses, "FIRST_WAIT_SECONDS", 60.0)
    monkeypatch.setattr(token_guesses, "MAX_WAIT_SECONDS", 60.0)
    if not protected:
        monkeypatch.setattr(http_connections.Connection, "giving_way", gives_no_way)
    async with serving(tmp_path) as it:
        it.control.checkpoint_may_finish = trio.Event()
        monkeypatch.setattr(it.control, "detect", it.control.detect_when_checkpoint_may_finish)
        async with await it.connect() as first:
            await first.send_all(asked)  # the first wrong token is answered at once, a first line judged
            await trio.testing.wait_all_tasks_blocked(0.05)
            async with crowd(it, http_connections.MAX_CONNECTIONS + 10, asked), await it.connect() as stream:
                assert await served(stream, 4.0) == protected
                it.control.checkpoint_may_finish.set()


@pytest.mark.parametrize("asked", [POST_CHECKPOINT, WRONG_TOKEN])
@pytest.mark.parametrize("most", [waiting.MAX_WAITING_OF_A_NETWORK, 1000])
async def test_only_so_many_of_a_network_are_made_to_wait_at_once_and_without_that_all_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bytes, most: int
) -> None:
    monkeypatch.setattr(waiting, "MAX_WAITING_OF_A_NETWORK", most)
    monkeypatch.setattr(token_guesses, "FREE_GUESSES", 0)
    monkeypatch.setattr(token_guesses, "FIRST_WAIT_SECONDS", 60.0)
    monkeypatch.setattr(token_guesses, "MAX_WAIT_SECONDS", 60.0)
    async with serving(tmp_path) as it:
        it.control.checkpoint_may_finish = trio.Event()
        if asked == WRONG_TOKEN:
            async with await it.connect() as first:
                await first.send_all(asked)
                assert (await read_response(first))[0] == 401
        async with crowd(it, 8, asked), await it.connect() as stream:
            await stream.send_all(asked)
            with trio.move_on_after(2.0) as too_late:
                status, answer = await read_response(stream)
                assert (status, answer["error"]["code"]) == (429, "too_many_waiting")
            assert too_late.cancelled_caught == (most > 8)
            async with await it.connect() as other:
                assert await served(other, 2.0)
            it.control.checkpoint_may_finish.set()


async def test_the_oldest_in_a_full_hall_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "MAX_WAITING", 2)
    async with serving(tmp_path) as it, crowd(it, 3, b"") as streams:
        with trio.fail_after(2):
            assert await read_to_end(streams[0]) == b""
        assert it.counters == AdminCounters(connections=2, gave_way=1)
        assert await served(streams[1], 2) and await served(streams[2], 2)


@pytest.mark.parametrize("first", [b"", HALF_A_HEAD])
async def test_a_head_has_a_deadline(tmp_path: Path, autojump_clock: trio.testing.MockClock, first: bytes) -> None:
    async with serving(tmp_path) as it, crowd(it, 1, first) as [stream]:
        before = trio.current_time()
        assert await read_to_end(stream) == b""
        assert trio.current_time() - before == pytest.approx(http_connections.HEAD_SECONDS, abs=0.1)
        assert it.counters.too_slow == 1


async def test_bytes_that_drip_do_not_move_the_deadline_of_a_head(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(tmp_path) as it, crowd(it, 1, HALF_A_HEAD) as [stream]:
        before = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"a")
                await trio.sleep(0.5)
        assert trio.current_time() - before <= http_connections.HEAD_SECONDS + 1.0


async def test_a_body_has_a_deadline(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with serving(tmp_path) as it, crowd(it, 1, HALF_A_BODY) as [stream]:
        before = trio.current_time()
        assert (await read_response(stream))[0] == 408
        assert trio.current_time() - before == pytest.approx(BODY_SECONDS, abs=0.1)


async def test_a_head_in_pieces_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as it, await it.connect() as stream:
        for byte in GET_HEALTH[:-1]:
            await stream.send_all(bytes([byte]))
        assert await served_by(stream, GET_HEALTH[-1:])


async def served_by(stream: trio.SocketStream, rest: bytes) -> bool:
    await stream.send_all(rest)
    return (await read_response(stream))[0] == 200


async def test_those_in_the_hall_do_not_hold_up_the_stop(tmp_path: Path) -> None:
    async with serving(tmp_path) as it, crowd(it, 3, b""):
        it.stop.set()
        with trio.fail_after(server.GRACE_SECONDS / 2):
            await it.stopped.wait()


@pytest.mark.parametrize("protected", [True, False])
async def test_streams_that_are_asked_for_at_once_leave_places_and_would_not_without_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protected: bool
) -> None:
    monkeypatch.setattr(http_connections, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(event_streams, "MAX_STREAMS", 3 if protected else 1000)
    async with serving(tmp_path) as it, crowd(it, 20, GET_EVENTS), await it.connect() as stream:
        assert await served(stream, 3.0) == protected
        if protected:
            assert it.control.streams == 3


async def test_streams_over_tcp_leave_those_of_the_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_streams, "MAX_STREAMS", 1)
    async with serving(tmp_path) as it, crowd(it, 1, GET_EVENTS), await it.connect() as other:
        await other.send_all(GET_EVENTS)
        answer = await other.receive_some()
        assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 5\r\n" in answer.lower()
        async with await trio.open_unix_socket(it.path) as unix:
            await unix.send_all(GET_EVENTS)
            assert (await unix.receive_some()).startswith(b"HTTP/1.1 200")


async def test_any_host_and_no_token_over_the_unix_socket_but_not_over_tcp(tmp_path: Path) -> None:
    asked = GET_HEALTH.replace(b"localhost", b"evil.example")
    async with serving(tmp_path, token="secret") as it:
        async with await trio.open_unix_socket(it.path) as unix:
            await unix.send_all(asked)
            assert (await read_response(unix))[0] == 200
        async with await it.connect() as stream:
            await stream.send_all(asked)
            assert (await read_response(stream))[0] == 421
        async with await it.connect() as stream:
            await stream.send_all(GET_HEALTH)
            assert (await read_response(stream))[0] == 401


async def test_a_checkpoint_request_is_cancelled_with_its_caller_and_nobody_else(tmp_path: Path) -> None:
    async with serving(tmp_path) as it:
        it.control.checkpoint_may_finish = trio.Event()
        stream = await it.connect()
        await stream.send_all(b"POST /checkpoint HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        await it.control.checkpoint_asked.wait()
        await stream.aclose()
        await it.control.checkpoint_cancelled.wait()
        async with await it.connect() as other:
            await other.send_all(GET_HEALTH)
            assert (await read_response(other))[0] == 200


async def test_events_arrive_as_they_come_and_end_when_the_daemon_stops(tmp_path: Path) -> None:
    async with serving(tmp_path) as it, await it.connect() as stream:
        await stream.send_all(GET_EVENTS)
        await it.control.subscribed.wait()
        it.control.publish(record(7))
        received = b""
        while b'"line":7' not in received:
            received += await stream.receive_some()
        assert b"text/event-stream" in received and b"id: 7\ndata: {" in received
        it.control.stop()
        it.stop.set()
        with trio.fail_after(server.GRACE_SECONDS / 2):
            assert (await read_to_end(stream)).endswith(b"0\r\n\r\n")  # a whole chunked body
            await it.stopped.wait()


async def test_a_stream_whose_reader_left_frees_its_subscription(tmp_path: Path) -> None:
    async with serving(tmp_path) as it:
        stream = await it.connect()
        await stream.send_all(GET_EVENTS)
        await it.control.subscribed.wait()
        assert it.control.streams == 1
        await stream.aclose()
        await it.control.unsubscribed.wait()


async def test_streams_are_bounded_and_places_come_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_streams, "MAX_STREAMS", 1)
    async with serving(tmp_path) as it:
        for _ in range(2):  # by the second round the place is free again
            it.control.unsubscribed = trio.Event()
            stream = await it.connect()
            await stream.send_all(GET_EVENTS)
            await stream.receive_some()
            async with await it.connect() as other:
                await other.send_all(GET_EVENTS)
                status, answer = await read_response(other)
            assert (status, answer["error"]["code"]) == (503, "too_many_streams")
            await stream.aclose()
            await it.control.unsubscribed.wait()


async def _leaves_a_stream_unread(it: Serving) -> trio.SocketStream:
    """Fill a stream whose client never reads, until the server's write cannot go on."""
    stream = await trio.open_unix_socket(it.path)
    await stream.send_all(GET_EVENTS)
    await it.control.subscribed.wait()
    for n in range(300):
        it.control.publish(record(n, text="x" * 8000))
    await trio.testing.wait_all_tasks_blocked(0.1)
    return stream


async def test_a_client_that_does_not_read_cannot_hold_up_the_stop(tmp_path: Path) -> None:
    async with serving(tmp_path) as it:
        stream = await _leaves_a_stream_unread(it)
        it.control.stop()
        it.stop.set()
        with trio.fail_after(server.GRACE_SECONDS + 1):
            await it.stopped.wait()
        await stream.aclose()


async def test_a_client_that_does_not_read_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "SEND_SECONDS", 0.3)
    async with serving(tmp_path) as it:
        stream = await _leaves_a_stream_unread(it)
        with trio.fail_after(3):
            await it.control.unsubscribed.wait()
        await stream.aclose()


async def test_a_request_under_way_at_the_stop_gets_the_grace_and_no_more(tmp_path: Path) -> None:
    async with serving(tmp_path) as it, await it.connect() as stream:
        it.control.checkpoint_may_finish = trio.Event()
        await stream.send_all(b"POST /checkpoint HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        await it.control.checkpoint_asked.wait()
        it.stop.set()
        await it.control.checkpoint_cancelled.wait()
        with trio.fail_after(1):
            await it.stopped.wait()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff" * 1000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nHTTP2-Settings: !!!\r\n\r\n",
        b"GET /events HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: [::1\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nAuthorization: \xe9\r\nOrigin: \xe9\r\n\r\n",
        b"GET /status?\xff=%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET //x HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET \xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
async def test_garbage_ends_its_own_connection_and_nothing_else(
    tmp_path: Path, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as it:
        async with await it.connect() as stream:
            await stream.send_all(garbage)
            await stream.send_eof()
            answer = await read_to_end(stream)
            assert not answer.startswith(b"HTTP/1.1 5"), answer
        async with await it.connect() as stream:
            await stream.send_all(GET_HEALTH)
            assert (await read_response(stream))[0] == 200
    assert "Traceback" not in caplog.text
