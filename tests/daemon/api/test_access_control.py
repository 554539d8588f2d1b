"""Who may do what over TCP and on admin.sock, that each change is in the log, and that guessing the token is slow."""

import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import pytest
import trio
import trio.testing
from quart import Response
from quart_trio import QuartTrio

from daemon.api import access_control, token_guesses
from daemon.api import app as api
from daemon.api.access_control import TokenFor
from daemon.api.app import create_app
from daemon.api.peers import LOOPBACK, UNKNOWN_LOCAL, Peer, peer_at, peer_of
from tests.daemon.fake_control import FakeControl, unavailable

TOKEN = "a-token-of-the-daemon-s-own"
Headers = Mapping[str, str]
NONE: Headers = {}
RIGHT: Headers = {"Authorization": f"Bearer {TOKEN}"}
WRONG: Headers = {"Authorization": "Bearer another-token-altogether"}
UNIX = Peer("uid 1000, gid 1000, pid 4711 on admin.sock", over_unix=True)
NEIGHBOUR = peer_at("192.0.2.7", 40000)

# What may be asked of the daemon by every user of its host. Whatever else is not a GET has to be refused.
OPEN_POSTS = {"/detect", "/detect/batch", "/checkpoint", "/snapshots/verify"}


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


def app_of(control: FakeControl, token: str | None = TOKEN, token_for: TokenFor = "changes") -> QuartTrio:
    return create_app(control, hosts=("logs.example",), token=token, token_for=token_for)


async def ask(
    app: QuartTrio, method: str, path: str, peer: Peer = UNKNOWN_LOCAL, host: str = "localhost", headers: Headers = NONE
) -> Response:
    answer = await app.test_client().open(  # type: ignore[call-arg]
        path, method=method, headers={"Host": host, **headers}, scope_base={"state": {"peer": peer}}
    )
    assert isinstance(answer, Response)
    return answer


async def error_of(answer: Response) -> dict[str, str]:
    error: dict[str, str] = (await answer.get_json())["error"]
    return error


def requests(app: QuartTrio) -> Iterator[tuple[str, str]]:
    """Method and path of every route, with something plausible in the place of its variables."""
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<name>", "snapshot-00000000000000000007.msgpack", str(rule))
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            yield method, re.sub(r"<\w+>", "7", path)


async def test_over_tcp_every_route_that_changes_something_needs_the_token(control: FakeControl) -> None:
    app = app_of(control)
    changing = [
        each for each in requests(app) if each[0] != "GET" and each[1].removeprefix("/anomaly") not in OPEN_POSTS
    ]
    assert len(changing) == 16, "the routes that there are today; each twice"
    for method, path in changing:
        refused = await ask(app, method, path)
        error = await error_of(refused)
        assert (refused.status_code, error["code"]) == (403, "token_needed"), path
        assert "admin.sock" in error["message"] and "`vigilctl page`" in error["message"]
        assert "WWW-Authenticate" not in refused.headers, "no browser asks for a password that nobody has"
    assert control.asked == []
    for method, path in changing:
        for peer, headers in ((UNKNOWN_LOCAL, RIGHT), (UNIX, NONE)):
            assert (await ask(app, method, path, peer, headers=headers)).status_code in (200, 400), path


async def test_over_tcp_reading_asking_and_saving_need_none(control: FakeControl) -> None:
    app = app_of(control)
    for method, path in requests(app):
        if method == "GET" and not path.endswith("/events"):
            assert (await ask(app, method, path)).status_code == 200, path
    for path in OPEN_POSTS:
        assert (await ask(app, "POST", path)).status_code in (200, 400), path  # no body, which some need
    assert control.extra == [True], "a snapshot asked for over TCP pushes out no other"
    await ask(app, "POST", "/checkpoint", UNIX)
    assert control.extra == [True, False]


async def test_a_new_route_is_guarded_however_it_was_added(control: FakeControl) -> None:
    app = app_of(control)
    called = []

    async def handler() -> Response:
        called.append(1)
        return Response(b"{}")

    api._add_route(app, "/new", handler, "POST")
    app.add_url_rule("/other", endpoint="other", view_func=handler, methods=["DELETE"])
    for method, path in (("POST", "/new"), ("POST", "/anomaly/new"), ("DELETE", "/other")):
        assert (await ask(app, method, path)).status_code == 403, path
    assert called == []
    assert (await ask(app, "POST", "/new", UNIX)).status_code == 200
    api._ASKING_ENDPOINTS.add("POST /new")  # control: what is said to change nothing gets through
    try:
        assert (await ask(app, "POST", "/new")).status_code == 200
    finally:
        api._ASKING_ENDPOINTS.discard("POST /new")


async def test_from_another_host_and_by_its_name_everything_needs_the_token(control: FakeControl) -> None:
    app = app_of(control)
    for peer, host in ((NEIGHBOUR, "localhost"), (NEIGHBOUR, "logs.example"), (UNKNOWN_LOCAL, "logs.example")):
        for method, path in [
            ("POST", "/detect"),
            ("POST", "/flush"),
            ("GET", "/status"),
            ("GET", "/"),
            ("GET", "/health"),
        ]:
            refused = await ask(app, method, path, peer, host)
            assert refused.status_code == 401 and "token_file" in (await error_of(refused))["message"], path
            assert refused.headers["WWW-Authenticate"].startswith("Basic ")
            assert (await ask(app, method, path, peer, host, headers=RIGHT)).status_code in (200, 400), path


PROXIED = [
    {"Forwarded": "for=192.0.2.60;proto=http"},
    {"X-Forwarded-For": "192.0.2.60"},
    {"x-forwarded-host": "logs.example"},
    {"X-Forwarded-Proto": "https"},
    {"X-Real-IP": "127.0.0.1"},
    {"Via": "1.1 proxy"},
    {"Forwarded": ""},
]


@pytest.mark.parametrize("added", PROXIED)
async def test_through_a_proxy_on_the_same_host_everything_needs_the_token(
    control: FakeControl, added: Headers
) -> None:
    app = app_of(control)
    for method, path in [("GET", "/status"), ("GET", "/anomalies"), ("POST", "/detect"), ("POST", "/flush")]:
        refused = await ask(app, method, path, headers=added)
        assert refused.status_code == 401 and "through a proxy" in (await error_of(refused))["message"], path
        assert (await ask(app, method, path, headers={**added, **RIGHT})).status_code in (200, 400), path
    assert (await ask(app, "GET", "/status", UNIX, headers=added)).status_code == 200, "who may open it decides"


async def test_without_looking_at_what_proxies_add_their_clients_would_be_of_this_host(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_control, "PROXY_HEADERS", ())
    assert (await ask(app_of(control), "GET", "/status", headers=PROXIED[1])).status_code == 200


async def test_without_any_token_nothing_can_be_changed_over_tcp(control: FakeControl) -> None:
    app = app_of(control, token=None, token_for="all")
    assert (await ask(app, "GET", "/status")).status_code == 200
    given: list[Headers] = [NONE, RIGHT, {"Authorization": "Bearer "}, {"Authorization": "Bearer None"}]
    for headers in given:
        assert (await ask(app, "POST", "/flush", headers=headers)).status_code in (401, 403)
        assert (await ask(app, "GET", "/status", NEIGHBOUR, headers=headers)).status_code == 401
    assert (await ask(app, "POST", "/flush", UNIX)).status_code == 200


async def test_a_token_of_the_operators_is_needed_for_everything_over_tcp(control: FakeControl) -> None:
    app = app_of(control, token_for="all")
    for path in ("/status", "/health", "/", "/nothing"):
        assert (await ask(app, "GET", path)).status_code == 401, path
    assert (await ask(app, "GET", "/status", headers=RIGHT)).status_code == 200


# --- audit ------------------------------------------------------------------------------------------


def audit(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if text.startswith("audit: ")]


async def test_each_change_is_one_line_with_who_what_and_the_result(
    control: FakeControl, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = app_of(control)
    await ask(app, "POST", "/feedback/7/undo", UNIX)
    await ask(app, "POST", "/models/7/rollback", peer_at("127.0.0.1", 4712), headers=RIGHT)
    control.error = unavailable()
    await ask(app, "POST", "/train-from?source=a%0Ab&last=1", UNIX)
    await ask(app, "POST", "/snapshots/%0Aaudit: a lie%1b/pin", UNIX)
    control.error = KeyError("a bug")
    await ask(app, "POST", "/feedback/7/undo", UNIX)
    who = "uid 1000, gid 1000, pid 4711 on admin.sock"
    told = audit(caplog)
    assert told[0].startswith(f'audit: {who}: POST /feedback/7/undo: 200 {{"id":"7","answer":"undo"')
    assert told[1].startswith("audit: the token from 127.0.0.1:4712: POST /models/7/rollback: 200 {")
    assert told[2].startswith(f"audit: {who}: POST /train-from?source=a%250Ab&last=1: 400 bad_request: ")
    assert told[3].startswith(f"audit: {who}: POST /snapshots/%0Aaudit%3A%20a%20lie%1B/pin: 404 not_found: ")
    assert told[4:] == [f"audit: {who}: POST /feedback/7/undo: failed: KeyError"]
    assert all(text.isprintable() and text.isascii() and TOKEN not in text for text in told)


async def test_what_changes_nothing_or_was_refused_is_not_in_the_audit(
    control: FakeControl, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = app_of(control)
    for method, path in (("GET", "/status"), ("POST", "/checkpoint"), ("POST", "/flush")):
        await ask(app, method, path)
    assert audit(caplog) == []


async def test_a_change_whose_caller_leaves_is_in_the_audit(
    control: FakeControl, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    control.checkpoint_may_finish = trio.Event()
    with trio.CancelScope() as caller:
        async with trio.open_nursery() as nursery:
            path = "/snapshots/snapshot-00000000000000000007.msgpack/restore"
            nursery.start_soon(ask, app_of(control), "POST", path, UNIX)
            await control.checkpoint_asked.wait()
            caller.cancel()
    [line] = audit(caplog)
    assert line.endswith("restore: left before the answer; it may have been done all the same")


# --- guesses ----------------------------------------------------------------------------------------


async def seconds_of(app: QuartTrio, peer: Peer, status: int, headers: Headers = NONE) -> float:
    began = trio.current_time()
    assert (await ask(app, "POST", "/flush", peer, headers=headers)).status_code == status
    return trio.current_time() - began


async def test_wrong_tokens_wait_longer_each_time_up_to_a_bound(
    control: FakeControl, autojump_clock: trio.testing.MockClock
) -> None:
    app = app_of(control)
    waits = [await seconds_of(app, UNKNOWN_LOCAL, 401, headers=WRONG) for _ in range(9)]
    assert waits == pytest.approx([0, 0, 0, 0.25, 0.5, 1, 2, 2, 2])
    assert await seconds_of(app, UNKNOWN_LOCAL, 200, headers=RIGHT) == pytest.approx(2), (
        "so hanging up early tells nothing"
    )
    await trio.sleep(token_guesses.FORGET_SECONDS + 1)
    assert await seconds_of(app, UNKNOWN_LOCAL, 200, headers=RIGHT) == 0


async def test_who_guesses_holds_up_nobody_else(control: FakeControl, autojump_clock: trio.testing.MockClock) -> None:
    app = app_of(control)
    for _ in range(10):
        await seconds_of(app, UNKNOWN_LOCAL, 401, headers=WRONG)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask, app, "POST", "/flush", UNKNOWN_LOCAL, "localhost", WRONG)
        assert await seconds_of(app, UNIX, 200) == 0
        assert await seconds_of(app, NEIGHBOUR, 200, headers=RIGHT) == 0
        assert await seconds_of(app, UNKNOWN_LOCAL, 403) == 0, "without a token there is nothing to guess"
        began = trio.current_time()
        assert (await ask(app, "GET", "/status", headers=WRONG)).status_code == 200
        assert trio.current_time() == began, "where no token is needed, none is looked at"
        assert await seconds_of(app, UNKNOWN_LOCAL, 429, headers=RIGHT) == 0, "too many of the same network wait"
    assert await seconds_of(app, UNKNOWN_LOCAL, 200, headers=RIGHT) == pytest.approx(2)


async def test_guesses_are_logged_ever_more_rarely(
    control: FakeControl, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_of(control)
    for port in range(40):
        await seconds_of(app, peer_at(f"127.0.0.{port + 1}", 5000 + port), 401, headers=WRONG)
    told = audit(caplog)
    assert len(told) == 6
    assert told[0] == "audit: 127.0.0.1:5000 sent a wrong token with POST /flush; 1 from loopback so far"
    assert told[-1] == "audit: 127.0.0.32:5031 sent a wrong token with POST /flush; 32 from loopback so far"
    assert not any("another-token" in text for text in told)


async def test_only_so_many_guessers_are_remembered(
    control: FakeControl, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_guesses, "MAX_NETWORKS", 3)
    app = app_of(control)
    for _ in range(4):
        await seconds_of(app, NEIGHBOUR, 401, headers=WRONG)
    for last in (1, 2, 3):
        assert await seconds_of(app, NEIGHBOUR, 401, headers=WRONG) > 0
        await seconds_of(app, peer_at(f"198.51.100.{last}", 1), 401, headers=WRONG)
    for last in (4, 5, 6):
        await seconds_of(app, peer_at(f"198.51.100.{last}", 1), 401, headers=WRONG)
    assert await seconds_of(app, NEIGHBOUR, 401, headers=WRONG) == 0


# --- peers ------------------------------------------------------------------------------------------


def test_a_peer_on_the_unix_socket_is_a_process() -> None:
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        peer = peer_of(ours)
    assert peer == Peer(f"uid {os.geteuid()}, gid {os.getegid()}, pid {os.getpid()} on admin.sock", over_unix=True)


def test_a_peer_over_tcp_is_an_address_and_nobody_trusted_once_it_has_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as caller:
        accepted, _ = server.accept()
        with accepted:
            host, port = caller.getsockname()
            assert peer_of(accepted) == Peer(f"{host}:{port}", loopback=True, network=LOOPBACK)
    with socket.socket() as unconnected:
        assert not peer_of(unconnected).loopback and not peer_of(unconnected).over_unix


@pytest.mark.parametrize(
    ("host", "loopback", "network"),
    [
        ("127.8.9.1", True, LOOPBACK),
        ("::1", True, LOOPBACK),
        ("::ffff:127.0.0.1", True, LOOPBACK),
        ("192.0.2.7", False, "192.0.2.7/32"),
        ("::ffff:192.0.2.7", False, "192.0.2.7/32"),
        ("2001:db8::1:2:3:4", False, "2001:db8::/64"),
        ("fe80::1%eth0", False, "fe80::/64"),
    ],
)
def test_guesses_are_counted_by_network(host: str, loopback: bool, network: str) -> None:
    peer: Any = peer_at(host, 80)
    assert (peer.loopback, peer.network) == (loopback, network)
