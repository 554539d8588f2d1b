"""Access control, before any handler runs.

Any web page can make a browser send requests here, so a foreign Host (DNS rebinding) and a foreign Origin
(cross-site requests) are refused. Over the Unix socket the file's mode decides: there every Host is allowed
and no token is needed. Over TCP every user of this host gets in: what changes the state needs a token there, and
everything does from another host, by another host's name, through a proxy that says that it is one, or when the
operator has set a token.
"""

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from daemon.api.peers import Peer
from daemon.api.token_guesses import TokenGuesses
from daemon.api.waiting import GivingWay
from daemon.control.control_interface import ControlError

TOKEN_NEEDED = (
    "over TCP this needs a token: use admin.sock, as vigilctl does for root and the group of that socket, or open the "
    "address that `vigilctl page` prints"
)
# What proxies add. The peer of such a request is the proxy: who sent it may be anywhere.
PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via")
WRONG_TOKEN = "that is not the token of this daemon, which makes another at each start: `vigilctl page` prints it"
TokenFor = Literal["all", "changes"]


@dataclass(frozen=True, slots=True)
class Access:
    """`hosts` are the names, besides loopback, that a Host header may have. Over TCP, requests that change the state
    need the `token`, and so do all those from another host, by its name, or through a proxy (by the headers that
    proxies add); with `token_for` "all" every request does.
    Without a token, those that need one are refused."""

    hosts: Collection[str]
    token: str | None
    token_for: TokenFor
    guesses: TokenGuesses = field(default_factory=TokenGuesses)

    async def check_access(
        self, peer: Peer, header: Callable[[str], str | None], request: str, changes: bool, giving_way: GivingWay
    ) -> None:
        """Raises `ControlError` unless `peer` may make the request. Waits when wrong tokens came from there.

        `header` gives the value of a header by its name. `request` is the name of the request in the log, `changes`
        whether it changes the state.
        """
        host = header("Host")
        if not peer.over_unix:
            check_host(host, self.hosts)
        check_origin(header("Origin"), host, self.hosts)
        if peer.over_unix:
            return
        everything = (
            self._token_for_all
            or not peer.loopback
            or not _is_loopback_host(_host_header_name(host or "") or "")
            or any(header(name) is not None for name in PROXY_HEADERS)
        )
        if not everything and not changes:
            return
        given = _token_in(header("Authorization"))
        if given is None and not everything:
            raise ControlError(403, "token_needed", TOKEN_NEEDED)
        if given is not None:
            await self.guesses.wait_before_answer(peer, giving_way)
            if self.token is not None and hmac.compare_digest(given, self.token.encode()):
                return
            self.guesses.count_wrong_token(peer, request)
        if not everything:
            raise ControlError(401, "wrong_token", WRONG_TOKEN)
        if self._token_for_all:
            raise ControlError(401, "unauthorized", "this needs the token of the daemon's token_file")
        raise ControlError(
            401,
            "unauthorized",
            "from another host, by its name, or through a proxy, this needs a token: set token_file in [admin]",
        )

    @property
    def _token_for_all(self) -> bool:
        return self.token is not None and self.token_for == "all"


def check_host(host: str | None, hosts: Collection[str]) -> None:
    """Raises `ControlError` 421 unless `host` (a Host header) names loopback or one of `hosts`."""
    name = _host_header_name(host or "")
    if name is None or not _is_known_host(name, hosts):
        raise ControlError(421, "foreign_host", "this Host is not served here; name it under [admin] hosts to allow it")


def check_origin(origin: str | None, host: str | None, hosts: Collection[str]) -> None:
    """Raises `ControlError` 403 unless `origin` is absent, the page's own, or one of `hosts`."""
    if origin is None:
        return
    try:
        parts = urlsplit(origin)
        own = parts.scheme in ("http", "https") and parts.netloc.lower() == (host or "").lower()
        named = (parts.hostname or "") in _lowered_hosts(hosts)
    except ValueError:
        own = named = False
    if not own and not named:
        raise ControlError(403, "foreign_origin", "requests from pages of other sites are refused")


def _token_in(authorization: str | None) -> bytes | None:
    """The token that an Authorization header carries, as Bearer or as Basic password; None without such a header.

    Basic is for browsers: they prompt for it, and send it with the page's own requests.
    """
    if authorization is None:
        return None
    scheme, _, value = authorization.partition(" ")
    given = value.strip().encode("utf-8", "replace")
    if scheme.lower() == "bearer":
        return given
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(given, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _host_header_name(header: str) -> str | None:
    """The host in a Host header, lower case, without port and brackets; None if it is malformed."""
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port  # raises ValueError when it is not a number
    except ValueError:
        return None
    if parts.netloc != header or "@" in header:
        return None
    return (parts.hostname or "").removesuffix(".") or None


def _is_known_host(name: str, hosts: Collection[str]) -> bool:
    return _is_loopback_host(name) or name in _lowered_hosts(hosts)


def _is_loopback_host(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _lowered_hosts(hosts: Collection[str]) -> set[str]:
    return {host.lower().strip("[]") for host in hosts}
