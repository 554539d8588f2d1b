"""The internals of hypercorn that daemon/api/server.py relies on: these tests name what a new version changed.

Most of it is private, so release notes need not mention a change, and some changes raise no error: an attribute that
nobody reads any more can be set without an error. What the server makes of it over real sockets: test_server.py.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
import trio.testing
from hypercorn.config import Config
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H2CProtocolRequiredError, H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import TrioSingleTask, WorkerContext
from hypercorn.utils import wrap_app

from daemon.api import http_connections, server
from tests.daemon.api.test_server import GET_HEALTH, nobody_gives_way, read_response, serving


@dataclass(frozen=True)
class Parts:
    """The classes and the function of hypercorn that server.py uses or overrides."""

    connection: type = TCPServer
    wrapper: type = ProtocolWrapper
    http: type = H11Protocol
    timer: type = TrioSingleTask
    context: type = WorkerContext
    config: type = Config
    wrap_app: Callable[..., Any] = wrap_app


def change(parts: Parts) -> str | None:
    """The first thing that is not as server.py takes it to be, in one sentence; None if all is."""
    found = next(_changes(parts), None)
    if found is None:
        return None
    return f"hypercorn {version('hypercorn')} {found}: read daemon/api/server.py against it before the pin is moved"


def _changes(parts: Parts) -> Iterator[str]:
    if _parameters(parts.connection) != ["app", "config", "context", "state", "stream"]:
        yield "makes a TCPServer from other arguments"
    if not _awaited(parts.connection, "_read_data", []):
        yield "has no coroutine TCPServer._read_data(), which _Protocol extends"
    run = _source(parts.connection, "run")
    if not 0 <= run.find("self.protocol = ProtocolWrapper(") < run.find("await self._read_data()"):
        yield "does not make TCPServer.protocol before it awaits TCPServer._read_data()"
    if "except AttributeError:" not in run:
        yield "does not take a stream without do_handshake for one without TLS"
    if "self.idle_task = TrioSingleTask()" not in _source(parts.connection, "__init__"):
        yield "has no TCPServer.idle_task, which _Protocol stops when a client has hung up"
    if not _awaited(parts.timer, "stop", []):
        yield "has no coroutine TrioSingleTask.stop()"
    if "self.protocol = H11Protocol(" not in _source(parts.wrapper, "__init__"):
        yield "does not keep the HTTP/1 protocol in ProtocolWrapper.protocol"
    if not _awaited(parts.http, "_check_protocol", ["event"]):
        yield "has no coroutine H11Protocol._check_protocol(event), which _Protocol replaces"
    if "await self._check_protocol(event)" not in _source(parts.http, "_handle_events"):
        yield "does not ask H11Protocol._check_protocol(event) whether to speak HTTP/2"
    if _parameters(parts.context) != ["max_requests"]:
        yield "makes a WorkerContext from other arguments"
    if "self.terminated = " not in _source(parts.context, "__init__"):
        yield "has no WorkerContext.terminated, which tells idle connections of the stop"
    for setting in ("keep_alive_timeout", "include_server_header", "errorlog", "accesslog"):
        if not hasattr(parts.config, setting):
            yield f"has no setting {setting}"
    if _parameters(parts.wrap_app) != ["app", "wsgi_max_body_size", "mode"]:
        yield "has a wrap_app of other arguments"


def _parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def _awaited(owner: type, name: str, parameters: list[str]) -> bool:
    method = getattr(owner, name, None)
    return inspect.iscoroutinefunction(method) and _parameters(method) == ["self", *parameters]


def _source(owner: type, name: str) -> str:
    method = getattr(owner, name, None)
    return inspect.getsource(method) if method is not None else ""


def test_hypercorn_is_inside_what_the_server_takes_it_to_be() -> None:
    said = change(Parts())
    if said is not None:
        pytest.fail(said, pytrace=False)


class OtherArguments(TCPServer):
    def __init__(self, app: Any, context: Any, stream: Any) -> None: ...


class NoTimer(TCPServer):
    def __init__(self, app: Any, config: Any, context: Any, state: Any, stream: Any) -> None: ...


class ReadsElsewhere(TCPServer):
    async def run(self) -> None:
        self.protocol = ProtocolWrapper(*([None] * 9))  # type: ignore[arg-type]
        try:
            await self._read()
        except AttributeError:
            pass

    async def _read(self) -> None: ...


class ReadsAtOnce(TCPServer):
    async def run(self) -> None:
        await self._read_data()
        self.protocol = ProtocolWrapper(*([None] * 9))  # type: ignore[arg-type]


class ReadsASize(TCPServer):
    async def _read_data(self, size: int) -> None: ...  # type: ignore[override]


class AlwaysTls(TCPServer):
    async def run(self) -> None:
        await self.stream.do_handshake()
        self.protocol = ProtocolWrapper(*([None] * 9))  # type: ignore[arg-type]
        await self._read_data()


class StopsAtOnce(TrioSingleTask):
    def stop(self) -> None: ...  # type: ignore[override]


class ChecksOtherwise(H11Protocol):
    async def _handle_events(self) -> None: ...


class ChecksAtOnce(H11Protocol):
    def _check_protocol(self, event: h11.Request) -> None: ...  # type: ignore[override]


class ChecksTwo(H11Protocol):
    async def _check_protocol(self, event: h11.Request, first: bool) -> None: ...  # type: ignore[override]


class KeptElsewhere(ProtocolWrapper):
    def __init__(self) -> None: ...


class NeverTerminated(WorkerContext):
    def __init__(self, max_requests: int | None) -> None: ...


class OtherContext(WorkerContext):
    def __init__(self) -> None: ...


class FewerSettings:
    keep_alive_timeout = include_server_header = errorlog = None


def wrap_it(app: Any) -> None: ...


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (replace(Parts(), connection=OtherArguments), "makes a TCPServer from other arguments"),
        (replace(Parts(), connection=NoTimer), "has no TCPServer.idle_task"),
        (replace(Parts(), connection=ReadsElsewhere), "does not make TCPServer.protocol before it awaits"),
        (replace(Parts(), connection=ReadsAtOnce), "does not make TCPServer.protocol before it awaits"),
        (replace(Parts(), connection=ReadsASize), "has no coroutine TCPServer._read_data()"),
        (replace(Parts(), connection=AlwaysTls), "does not take a stream without do_handshake"),
        (replace(Parts(), timer=StopsAtOnce), "has no coroutine TrioSingleTask.stop()"),
        (replace(Parts(), timer=object), "has no coroutine TrioSingleTask.stop()"),
        (replace(Parts(), wrapper=KeptElsewhere), "does not keep the HTTP/1 protocol"),
        (replace(Parts(), http=object), "has no coroutine H11Protocol._check_protocol(event)"),
        (replace(Parts(), http=ChecksAtOnce), "has no coroutine H11Protocol._check_protocol(event)"),
        (replace(Parts(), http=ChecksTwo), "has no coroutine H11Protocol._check_protocol(event)"),
        (replace(Parts(), http=ChecksOtherwise), "does not ask H11Protocol._check_protocol(event)"),
        (replace(Parts(), context=OtherContext), "makes a WorkerContext from other arguments"),
        (replace(Parts(), context=NeverTerminated), "has no WorkerContext.terminated"),
        (replace(Parts(), config=FewerSettings), "has no setting accesslog"),
        (replace(Parts(), wrap_app=wrap_it), "has a wrap_app of other arguments"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_hypercorn_that_has_changed_is_named_with_what_is_other(parts: Parts, said: str) -> None:
    """The control: each stand-in differs in one thing."""
    sentence = change(parts)
    assert sentence is not None
    assert sentence.startswith(f"hypercorn {version('hypercorn')} {said}"), sentence
    assert "\n" not in sentence


UPGRADE = GET_HEALTH.replace(
    b"\r\n\r\n", b"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
)


async def test_an_upgrade_to_http_2_is_answered_in_http_1(tmp_path: Path) -> None:
    async with serving(tmp_path) as it, await it.connect() as stream:
        await stream.send_all(UPGRADE)
        assert (await read_response(stream))[0] == 200


async def test_hypercorn_alone_would_go_over_to_http_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above: if this fails, `_Protocol` need not replace the check."""
    check, asked = H11Protocol._check_protocol, trio.Event()

    async def checked(self: H11Protocol, event: h11.Request) -> None:
        with pytest.raises(H2CProtocolRequiredError):
            await check(self, event)
        asked.set()

    monkeypatch.setattr(H11Protocol, "_check_protocol", checked)
    monkeypatch.setattr(server, "_Protocol", TCPServer)
    async with serving(tmp_path) as it, await it.connect() as stream:
        await stream.send_all(UPGRADE)
        await asked.wait()


@pytest.mark.parametrize(("protocol", "waits"), [(server._Protocol, False), (TCPServer, True)])
async def test_a_client_that_hangs_up_between_requests_frees_its_place_at_once_and_with_hypercorn_alone_would_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: type, waits: bool
) -> None:
    monkeypatch.setattr(server, "_Protocol", protocol)
    monkeypatch.setattr(http_connections, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(http_connections.Room, "_make_way", nobody_gives_way)
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.7 if waits else 60.0)
    async with serving(tmp_path) as it:
        async with await it.connect() as first:
            await first.send_all(GET_HEALTH)
            assert (await read_response(first))[0] == 200
            await trio.testing.wait_all_tasks_blocked()  # its idle timer runs
        left = trio.current_time()
        async with await it.connect() as second:
            await second.send_all(GET_HEALTH)
            assert (await read_response(second))[0] == 200
        if waits:
            assert trio.current_time() - left > 0.6
