"""The admin API from the client's side.

    admin = Admin(admin_urls(None, os.environ))
    admin.get("/status").body["phase"]
    for record in admin.events("/events"): ...

Every error is a `Failure`, one line for the user; an address that cannot be one is a `UsageError`. httpx is imported
with the first request: that takes longer than the rest of vigilctl together.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.default_directories import SYSTEM_RUNTIME, runtime_directory

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8765"
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 300.0  # a checkpoint or a flush of everything may take a while
SILENCE_SECONDS = 60.0  # an event stream has a heartbeat every 15 s
UNIX_PATH_BYTES = 107  # sockaddr_un.sun_path, less its closing NUL


class Failure(Exception):
    """A command failed. The message is one line for the user."""


class UsageError(Exception):
    """An argument is invalid. The message is one line for the user."""


@dataclass(frozen=True)
class Answer:
    """The HTTP status and the decoded JSON body."""

    status: int
    body: Any


def admin_urls(given: str | None, env: Mapping[str, str]) -> list[str]:
    """The addresses to try, in order: `given`, else VIGILD_ADMIN, else those that a daemon binds by default."""
    if chosen := given or env.get("VIGILD_ADMIN"):
        return [chosen]
    directories = dict.fromkeys([runtime_directory(env), SYSTEM_RUNTIME])
    return [f"unix:{directory / 'admin.sock'}" for directory in directories] + [DEFAULT_URL]


def read_token(given: str | None, env: Mapping[str, str]) -> str | None:
    """The token in the file that `given`, else VIGILD_TOKEN_FILE names; None without either. Raises Failure."""
    path = given or env.get("VIGILD_TOKEN_FILE")
    if not path:
        return None
    try:
        token = Path(path).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise Failure(f"cannot read the token file {path}: {os_error_reason(exc)}") from exc
    if not token.isprintable():
        raise Failure(f"the token file {path} holds more than one line of printable characters")
    return token


@dataclass
class Admin:
    """A client of the first of `urls` that accepts a connection; blocking, one request at a time.

    An answer may take `answer_seconds`; None means ANSWER_SECONDS. Methods raise `Failure` when no daemon
    answers, or not in time, or with an error, and `UsageError` for an invalid address.
    """

    urls: list[str]
    token: str | None = None
    answer_seconds: float | None = None
    _connected: "tuple[str, httpx.Client] | None" = field(default=None, init=False)

    def get(self, path: str) -> Answer:
        """The JSON answer to a GET. Raises `Failure` with the API's message for a status from 400 on."""
        return self._request_answer("GET", path)

    def post(self, path: str, body: Any = None) -> Answer:
        """The JSON answer to a POST, as `get`. `body` is sent as JSON, bytes as they are."""
        return self._request_answer("POST", path, body)

    def health(self) -> Any:
        """The body of `GET /health`, with status 200 or 503."""
        return self._request_answer("GET", "/health", accepted=503).body

    def events(self, path: str) -> Iterator[dict[str, Any]]:
        """The records of a server-sent event stream, until the daemon ends it."""
        with (
            _http_errors_as_failures("the daemon went silent", "the stream broke off"),
            closing(self._send_request("GET", path, None, SILENCE_SECONDS)) as response,
        ):
            if response.status_code != 200:
                _read_admin_answer(response)
                raise Failure(f"the daemon answered HTTP {response.status_code}")
            # Also splits at U+2028 and the like, of which the API's ASCII has none.
            for line in response.iter_lines():
                if line.startswith("data:"):
                    yield _parsed_json_answer(line[5:], "the stream is not vigild's (not JSON)")

    def _request_answer(self, method: str, path: str, body: Any = None, accepted: int | None = None) -> Answer:
        seconds = ANSWER_SECONDS if self.answer_seconds is None else self.answer_seconds
        with (
            _http_errors_as_failures(f"no answer within {seconds:.0f} s", "the daemon hung up"),
            closing(self._send_request(method, path, body, seconds)) as response,
        ):
            return _read_admin_answer(response, accepted)

    def _send_request(self, method: str, path: str, body: Any, seconds: float) -> "httpx.Response":
        """The head of the response; the caller reads the body and closes it."""
        import httpx

        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        data = None
        if isinstance(body, bytes):
            data = body
            headers["Content-Type"] = "application/octet-stream"
        elif body is not None:
            # Not by httpx, which writes UTF-8: bytes that are not UTF-8 are lone surrogates here, which only
            # ASCII escapes can carry.
            data = json.dumps(body).encode("ascii")
            headers["Content-Type"] = "application/json"
        timeout = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        refusals = []
        for url, client in [self._connected] if self._connected else ((url, _http_client(url)) for url in self.urls):
            request = client.build_request(method, path, content=data, headers=headers, timeout=timeout)
            try:
                response = client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
                refusals.append(f"{url} ({os_error_reason(exc)})")
            except UnicodeError as exc:  # from the resolver, for an impossible host name
                raise UsageError(f"{url}: {exc}") from exc
            else:
                self._connected = url, client
                return response
        raise Failure(f"no daemon answers; tried {', '.join(refusals)}")


def os_error_reason(exc: BaseException) -> str:
    """The operating system's message behind `exc`, without number and file name; else the text of `exc`."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__  # httpcore raises "from None", so usually the latter
    return str(exc) or type(exc).__name__


def _http_client(url: str) -> "httpx.Client":
    import ssl

    import httpx

    path = url.removeprefix("unix:") if url.startswith(("unix:", "/")) else None
    if path is not None and len(os.fsencode(path)) > UNIX_PATH_BYTES:
        raise UsageError(f"{path}: longer than a Unix socket's path may be ({UNIX_PATH_BYTES} bytes)")
    try:
        base = httpx.URL("http://localhost/" if path is not None else url)
    except httpx.InvalidURL as exc:
        raise UsageError(f"{url}: {exc}") from exc
    # The system would wrap a port that is too large.
    valid = base.scheme == "http" and base.host and (base.port or 80) < 2**16
    if not valid or base.raw_path != b"/" or base.userinfo:
        raise UsageError(f"{url}: an admin address is http://HOST:PORT or unix:PATH")
    transport = httpx.HTTPTransport(
        uds=path,
        # There is no https here. An empty context saves httpx loading every root certificate.
        verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        # One connection per request: the daemon closes idle ones, perhaps just as the next request is sent.
        limits=httpx.Limits(max_keepalive_connections=0),
    )
    # trust_env: a proxy in the environment must not get requests for this machine.
    return httpx.Client(base_url=base, transport=transport, trust_env=False)


@contextmanager
def _http_errors_as_failures(silent: str, broken: str) -> Iterator[None]:
    """Turn httpx's errors into `Failure`: `silent` for a timeout, `broken` and the reason for any other."""
    import httpx

    try:
        yield
    except httpx.TimeoutException as exc:
        raise Failure(silent) from exc
    except httpx.HTTPError as exc:
        raise Failure(f"{broken}: {os_error_reason(exc)}") from exc


def _read_admin_answer(response: "httpx.Response", accepted: int | None = None) -> Answer:
    """Raises Failure for a status from 400 on, except for `accepted`."""
    body = _parsed_json_answer(response.read(), f"what answers is not vigild (HTTP {response.status_code}, not JSON)")
    if response.status_code >= 400 and response.status_code != accepted:
        error = body.get("error") if isinstance(body, dict) else None
        if isinstance(error, dict):
            raise Failure(str(error.get("message")))
        raise Failure(f"the daemon answered HTTP {response.status_code}")
    return Answer(response.status_code, body)


def _parsed_json_answer(data: str | bytes, otherwise: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as exc:
        raise Failure(otherwise) from exc
