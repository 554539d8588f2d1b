"""Access control, before any handler runs.

Any web page can make a browser send requests here, so a foreign Host (DNS rebinding) and a foreign Origin
(cross-site requests) are refused. Over the Unix socket the file's mode decides: there every Host is allowed
and no token is needed.
"""

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from daemon.control.interface import ControlError


def check_host(host: str | None, hosts: Collection[str]) -> None:
    """Raises `ControlError` 421 unless `host` (a Host header) names loopback or one of `hosts`."""
    name = _host_name(host or "")
    if name is None or not _is_known(name, hosts):
        raise ControlError(421, "foreign_host", "this Host is not served here; name it under [admin] hosts to allow it")


def check_origin(origin: str | None, host: str | None, hosts: Collection[str]) -> None:
    """Raises `ControlError` 403 unless `origin` is absent, the page's own, or one of `hosts`."""
    if origin is None:
        return
    try:
        parts = urlsplit(origin)
        own = parts.scheme in ("http", "https") and parts.netloc.lower() == (host or "").lower()
        named = (parts.hostname or "") in _lowered(hosts)
    except ValueError:
        own = named = False
    if not own and not named:
        raise ControlError(403, "foreign_origin", "requests from pages of other sites are refused")


def check_token(authorization: str | None, token: str) -> None:
    """Raises `ControlError` 401 unless `authorization` carries `token`, as Bearer or as Basic password.

    Basic is for browsers: they prompt for it, and send it with the page's own requests.
    """
    scheme, _, value = (authorization or "").partition(" ")
    given = value.strip().encode("utf-8", "replace")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except binascii.Error:
            given = b""
    if scheme.lower() not in ("basic", "bearer") or not hmac.compare_digest(given, token.encode()):
        raise ControlError(401, "unauthorized", "this needs the token of the daemon's token_file")


def _host_name(header: str) -> str | None:
    """The host in a Host header, lower case, without port and brackets; None if it is malformed."""
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port  # raises ValueError when it is not a number
    except ValueError:
        return None
    if parts.netloc != header or "@" in header:
        return None
    return (parts.hostname or "").removesuffix(".") or None


def _is_known(name: str, hosts: Collection[str]) -> bool:
    if name == "localhost" or name in _lowered(hosts):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _lowered(hosts: Collection[str]) -> set[str]:
    return {host.lower().strip("[]") for host in hosts}
