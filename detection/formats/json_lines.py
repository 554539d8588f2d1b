"""JSON lines: one object per line. This module reads the objects; `wrapped` parses their messages.

    {"ts": "2013-09-06T20:00:48.124817Z", "level": "INFO", "logger": "com.example.foo", "msg": "startup"}
    {"log": "192.0.2.7 - - [24/Aug/2021:09:52:13 +0000] \\"GET / HTTP/1.1\\" 200 13\\n", "stream": "stdout"}

An object with a method, a target and a status is a request. If an object has no message, its text and number
members serve as one, as `name=value`, without times and ids.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from detection.formats import access, levels, times
from detection.formats.fields import on_one_line
from detection.formats.roles import NESTED, ROLES

_MAX_MEMBERS = 32  # of an object without a message
_decode = msgspec.json.Decoder().decode


class Record(NamedTuple):
    """One object's members by role. b"" and nan mean absent; `stamp` is a time not yet parsed.

    `prefix` is level and component. If `request` is true, `message` already is `METHOD path STATUS`, and
    `target` is the request's target.
    """

    message: bytes
    prefix: bytes
    seconds: float
    stamp: bytes
    key: bytes
    trace: bytes
    target: bytes
    agent: bytes
    error: bool | None
    request: bool


def read_json_record(line: bytes) -> Record | None:
    """The record of `line`; None if it is not a JSON object."""
    try:
        members = _decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return _record_of_members(members, line) if type(members) is dict else None


def _record_of_members(members: dict[str, Any], line: bytes) -> Record:
    roles = _members_by_role(members)
    error, prefix = _error_and_level_text(roles)
    seconds, stamp = _json_time(roles.get("time"))
    trace, key = _json_value_text(roles.get("trace")), _pod_or_container(roles)
    request = _http_request_in_json(members, roles)
    if request is not None:
        contents, target, agent, failed = request
        key = _json_value_text(roles.get("client")) or trace or key
        return Record(contents, b"", seconds, stamp, key, trace, target, agent, failed, True)
    message = roles.get("message")
    if message is not None:
        text = _json_value_text(message).strip()
    else:
        text, prefix = _members_as_pairs(members) or line, b""
    return Record(text, prefix, seconds, stamp, key, trace, b"", b"", error, False)


def _members_by_role(members: Mapping[str, Any]) -> dict[str, Any]:
    """The best-ranked member for each role."""
    found: dict[str, Any] = {}
    ranks: dict[str, int] = {}
    for name, value in members.items():
        if type(value) is dict:
            if name in NESTED:
                for inner, member in value.items():
                    _offer_for_roles(found, ranks, f"{name}.{inner}", member)
        elif name in ROLES:
            _offer_for_roles(found, ranks, name, value)
    return found


def _offer_for_roles(found: dict[str, Any], ranks: dict[str, int], name: str, value: Any) -> None:
    if value is None or type(value) is dict or type(value) is list:
        return
    for role, rank in ROLES.get(name, ()):
        if role not in ranks or rank < ranks[role]:
            found[role], ranks[role] = value, rank


def _json_value_text(value: Any) -> bytes:
    """`value` as bytes on one line; b"" for None."""
    if value is None:
        return b""
    return on_one_line(str(value).encode("utf-8", "surrogatepass"))


def _error_and_level_text(roles: Mapping[str, Any]) -> tuple[bool | None, bytes]:
    """Whether it is an error (None if no level is given), and the text to put in front of the message."""
    level, component = roles.get("level"), _json_value_text(roles.get("component"))
    error: bool | None = None
    shown = b""
    if type(level) is str:
        shown = _json_value_text(level)
        error = levels.is_error_word(shown)
    elif type(level) is int and level >= 10:
        error = level >= 50  # the levels of bunyan and pino: 50 is error, 60 fatal
    elif "priority" in roles and str(roles["priority"]) in "0123":
        error = True  # syslog severities of the journal
    return error, b" ".join(filter(None, (shown, component)))


def _json_time(value: Any) -> tuple[float, bytes]:
    if type(value) is int or type(value) is float:
        return times.seconds_from_number(value), b""
    if type(value) is not str:
        return float("nan"), b""
    if value.isdecimal() and value.isascii() and len(value) <= 19:
        return times.seconds_from_number(int(value)), b""
    return float("nan"), value[:64].encode("utf-8", "replace")


def _pod_or_container(roles: Mapping[str, Any]) -> bytes:
    """Where the line came from: its pod, else its host and container."""
    if pod := _json_value_text(roles.get("pod")):
        return pod
    host, container = _json_value_text(roles.get("host")), _json_value_text(roles.get("container"))
    return b" ".join(filter(None, (host, container)))


def _http_request_in_json(
    members: Mapping[str, Any], roles: Mapping[str, Any]
) -> tuple[bytes, bytes, bytes, bool] | None:
    """Contents, target, agent and failure if the object records an HTTP request; otherwise None."""
    status, method, target = _json_value_text(roles.get("status")), roles.get("method"), roles.get("target")
    if len(status) != 3 or not status.isdigit():
        return None
    agent = _json_value_text(roles.get("agent"))
    nested = members.get("request")
    if type(nested) is dict and type(nested.get("headers")) is dict:
        named = nested["headers"].get("User-Agent")
        agent = _json_value_text(named[0]) if type(named) is list and named else agent
    failed = status >= b"400"
    if type(method) is str and type(target) is str:
        path_and_query = _json_value_text(target)
        return access.request_contents(_json_value_text(method), path_and_query, status), path_and_query, agent, failed
    request = roles.get("request")
    if type(request) is str and " HTTP/" in request:
        contents, path_and_query = access.read_request_line(_json_value_text(request), status)
        return contents, path_and_query, agent, failed
    return None


def _members_as_pairs(members: Mapping[str, Any]) -> bytes:
    """`name=value` of an object without a message, one level of nesting deep."""
    pairs: list[str] = []
    for name, value in members.items():
        if type(value) is dict:
            pairs.extend(
                f"{name}.{inner}={member}" for inner, member in value.items() if _is_content_member(inner, member)
            )
        elif _is_content_member(name, value):
            pairs.append(f"{name}={value}")
        if len(pairs) >= _MAX_MEMBERS:
            break
    return on_one_line(" ".join(pairs[:_MAX_MEMBERS]).encode("utf-8", "surrogatepass"))


def _is_content_member(name: str, value: Any) -> bool:
    if type(value) not in (str, int, float, bool):
        return False
    return all(role not in ("time", "trace") for role, _ in ROLES.get(name, ()))
