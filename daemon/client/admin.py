"""The admin API from the client's side: where the daemon may be, and one request at a time.

httpx is imported when a request is made and not before: it takes longer than all the rest of vigilctl.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.places import SYSTEM_RUNTIME, runtime_directory

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8765"
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 300.0  # a checkpoint or a flush of everything may take a while
SILENCE_SECONDS = 60.0  # an event stream says something every 15 s
UNIX_PATH_BYTES = 107  # of a socket's address, less the zero at its end


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
        token = Path(path).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise Failure(f"cannot read the token file {path}: {reason(exc)}") from exc
    if not token.isprintable():
        raise Failure(f"the token file {path} holds more than one line of printable characters")
    return token


@dataclass
class Admin:
    """Talks to the first of `urls` at which somebody listens, and waits `patience` seconds for an answer, as long
    as the longest command takes where it is not said.

    Raises `Failure`, or `UsageError` for an address that is none.
    """

    urls: list[str]
    token: str | None = None
    patience: float | None = None
    _found: "tuple[str, httpx.Client] | None" = field(default=None, init=False)

    def get(self, path: str) -> Answer:
        """A JSON answer of any status; `Failure` where the API says it failed."""
        return self._ask("GET", path)

    def post(self, path: str, body: Any = None) -> Answer:
        """As `get`. `body` goes out as JSON, bytes as they are."""
        return self._ask("POST", path, body)

    def health(self) -> Any:
        """What /health says, which is an answer also where its status is 503."""
        return self._ask("GET", "/health", failed=503).body

    def events(self, path: str) -> Iterator[dict[str, Any]]:
        """Records of a server-sent stream until the daemon ends it."""
        with (
            _failures("the daemon went silent", "the stream broke off"),
            closing(self._send("GET", path, None, SILENCE_SECONDS)) as response,
        ):
            if response.status_code != 200:
                _read_answer(response)
                raise Failure(f"the daemon answered HTTP {response.status_code}")
            # Also splits at U+2028 and the like, of which the API's ASCII has none.
            for line in response.iter_lines():
                if line.startswith("data:"):
                    yield _parsed(line[5:], "the stream is not vigild's (not JSON)")

    def _ask(self, method: str, path: str, body: Any = None, failed: int | None = None) -> Answer:
        seconds = ANSWER_SECONDS if self.patience is None else self.patience
        with (
            _failures(f"no answer within {seconds:.0f} s", "the daemon hung up"),
            closing(self._send(method, path, body, seconds)) as response,
        ):
            return _read_answer(response, failed)

    def _send(self, method: str, path: str, body: Any, seconds: float) -> "httpx.Response":
        """The answer's head; the caller reads the rest and closes it."""
        import httpx

        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        data = None
        if isinstance(body, bytes):
            data = body
            headers["Content-Type"] = "application/octet-stream"
        elif body is not None:
            # Not httpx's own JSON: ASCII escapes carry the lone surrogates that stand for bytes which
            # are not UTF-8.
            data = json.dumps(body).encode("ascii")
            headers["Content-Type"] = "application/json"
        timeout = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        refusals = []
        for url, client in [self._found] if self._found else ((url, _client(url)) for url in self.urls):
            request = client.build_request(method, path, content=data, headers=headers, timeout=timeout)
            try:
                response = client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
                refusals.append(f"{url} ({reason(exc)})")
            except UnicodeError as exc:  # the resolver, of a host that cannot be
                raise UsageError(f"{url}: {exc}") from exc
            else:
                self._found = url, client
                return response
        raise Failure(f"no daemon answers; looked at {', '.join(refusals)}")


def reason(exc: BaseException) -> str:
    """Why, in the system's words without numbers and file names."""
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__  # httpcore raises "from None", so mostly the latter
    return str(exc) or type(exc).__name__


def _client(url: str) -> "httpx.Client":
    import ssl

    import httpx

    path = url.removeprefix("unix:") if url.startswith(("unix:", "/")) else None
    if path is not None and len(os.fsencode(path)) > UNIX_PATH_BYTES:
        raise UsageError(f"{path}: longer than a Unix socket's path may be ({UNIX_PATH_BYTES} bytes)")
    try:
        base = httpx.URL("http://localhost/" if path is not None else url)
    except httpx.InvalidURL as exc:
        raise UsageError(f"{url}: {exc}") from exc
    # The system would take a port too large for another one.
    valid = base.scheme == "http" and base.host and (base.port or 80) < 2**16
    if not valid or base.raw_path != b"/" or base.userinfo:
        raise UsageError(f"{url}: an admin address is http://HOST:PORT or unix:PATH")
    transport = httpx.HTTPTransport(
        uds=path,
        # For https, of which there is none: it trusts nobody, where httpx's own loads every known root.
        verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        # One connection a request: the daemon closes an idle one, maybe just as the next request leaves.
        limits=httpx.Limits(max_keepalive_connections=0),
    )
    # No proxy setting of the environment leads a request for this machine elsewhere.
    return httpx.Client(base_url=base, transport=transport, trust_env=False)


@contextmanager
def _failures(silent: str, broken: str) -> Iterator[None]:
    """httpx's errors as ours, told in the words for this kind of exchange."""
    import httpx

    try:
        yield
    except httpx.TimeoutException as exc:
        raise Failure(silent) from exc
    except httpx.HTTPError as exc:
        raise Failure(f"{broken}: {reason(exc)}") from exc


def _read_answer(response: "httpx.Response", answer: int | None = None) -> Answer:
    """Raises Failure for an error, except for one with the status `answer`."""
    body = _parsed(response.read(), f"what answers is not vigild (HTTP {response.status_code}, not JSON)")
    if response.status_code >= 400 and response.status_code != answer:
        error = body.get("error") if isinstance(body, dict) else None
        if isinstance(error, dict):
            raise Failure(str(error.get("message")))
        raise Failure(f"the daemon answered HTTP {response.status_code}")
    return Answer(response.status_code, body)


def _parsed(data: str | bytes, stranger: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as exc:
        raise Failure(stranger) from exc
