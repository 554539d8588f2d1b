"""The admin API from the client's side: where the daemon may be, and one request at a time.

The standard library's HTTP client, because it starts in a fifth of the time of the larger ones and no
proxy setting of the environment can lead a request for this machine elsewhere.
"""

import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from daemon.places import SYSTEM_RUNTIME, runtime_directory

DEFAULT_URL = "http://127.0.0.1:8765"
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 300.0  # a checkpoint or a flush of everything may take a while
SILENCE_SECONDS = 60.0  # an event stream says something every 15 s


class Failure(Exception):
    """What could not be done, as one line for the user."""


class UsageError(Exception):
    """An argument that makes no sense, as one line for the user."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any


def admin_urls(given: str | None, env: Mapping[str, str]) -> list[str]:
    """Where to look, in order: `given`, or VIGILD_ADMIN, or the places a daemon binds by itself."""
    if chosen := given or env.get("VIGILD_ADMIN"):
        return [chosen]
    directories = dict.fromkeys([runtime_directory(env), SYSTEM_RUNTIME])
    return [f"unix:{directory / 'admin.sock'}" for directory in directories] + [DEFAULT_URL]


def read_token(given: str | None, env: Mapping[str, str]) -> str | None:
    """The token in the file `given` or VIGILD_TOKEN_FILE names; None without either."""
    path = given or env.get("VIGILD_TOKEN_FILE")
    if not path:
        return None
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise Failure(f"cannot read the token file {path}: {reason(exc)}") from exc


@dataclass
class Admin:
    """Talks to the first of `urls` at which somebody listens. Raises `Failure` with one line."""

    urls: list[str]
    token: str | None = None
    _found: str | None = field(default=None, init=False)

    def get(self, path: str) -> Answer:
        """A JSON answer of any status; `Failure` where the API says it failed."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: Any = None) -> Answer:
        return self._ask("POST", path, body)

    def events(self, path: str) -> Iterator[dict[str, Any]]:
        """Records of a server-sent stream until the daemon ends it."""
        connection = self._connect()
        try:
            response = self._exchange(connection, "GET", path, None)
            if response.status != 200:
                _read_answer(response)
                raise Failure(f"the daemon answered HTTP {response.status}")
            assert connection.sock is not None or response.fp is not None
            while line := response.readline():
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])
        except TimeoutError as exc:
            raise Failure("the daemon went silent") from exc
        except (OSError, http.client.HTTPException) as exc:
            raise Failure(f"the stream broke off: {reason(exc)}") from exc
        finally:
            connection.close()

    def _ask(self, method: str, path: str, body: Any) -> Answer:
        connection = self._connect()
        try:
            return _read_answer(self._exchange(connection, method, path, body))
        except TimeoutError as exc:
            raise Failure(f"no answer within {ANSWER_SECONDS:.0f} s") from exc
        except (OSError, http.client.HTTPException) as exc:
            raise Failure(f"the daemon hung up: {reason(exc)}") from exc
        finally:
            connection.close()

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any
    ) -> http.client.HTTPResponse:
        # ASCII escapes carry the lone surrogates that stand for bytes which are not UTF-8.
        data = None if body is None else json.dumps(body).encode("ascii")
        headers = {"Content-Type": "application/json"} if data else {}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        connection.request(method, path, body=data, headers=headers)
        assert connection.sock is not None
        connection.sock.settimeout(SILENCE_SECONDS if path.startswith("/events") else ANSWER_SECONDS)
        return connection.getresponse()

    def _connect(self) -> http.client.HTTPConnection:
        refusals = []
        for url in [self._found] if self._found else self.urls:
            connection = _connection(url)
            try:
                connection.connect()
            except OSError as exc:
                refusals.append(f"{url} ({reason(exc)})")
                continue
            self._found = url
            return connection
        raise Failure(f"no daemon answers; looked at {', '.join(refusals)}")


def reason(exc: BaseException) -> str:
    """Why, in the system's words without numbers and file names."""
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror.lower()
    return str(exc) or type(exc).__name__


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=CONNECT_SECONDS)
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(CONNECT_SECONDS)
            sock.connect(self._path)
        except OSError:
            sock.close()
            raise
        self.sock = sock


def _connection(url: str) -> http.client.HTTPConnection:
    if url.startswith(("unix:", "/")):
        path = os.path.abspath(url.removeprefix("unix:").replace("//", "/", 1))
        if len(os.fsencode(path)) > 107:
            raise UsageError(f"{path}: longer than a Unix socket's path may be (107 bytes)")
        return _UnixConnection(path)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise UsageError(f"{url}: {exc}") from exc
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
        raise UsageError(f"{url}: an admin address is http://HOST:PORT or unix:PATH")
    return http.client.HTTPConnection(parts.hostname, port or 80, timeout=CONNECT_SECONDS)


def _read_answer(response: http.client.HTTPResponse) -> Answer:
    raw = response.read()
    try:
        body = json.loads(raw)
    except ValueError as exc:
        raise Failure(f"what answers is not vigild (HTTP {response.status}, not JSON)") from exc
    if response.status >= 400:
        error = body.get("error") if isinstance(body, dict) else None
        if isinstance(error, dict):
            raise Failure(str(error.get("message")))
        raise Failure(f"the daemon answered HTTP {response.status}")
    return Answer(response.status, body)
