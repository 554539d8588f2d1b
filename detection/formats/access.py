"""Access logs: common and combined, with or without a virtual host in front and more fields behind.

    [vhost[:port] ]client ident user [10/Oct/2000:13:55:36 -0700] "request" status bytes[ "referer" "agent"]

The client is the first token, or the second if that is an address and the first is a virtual host.
Further fields are not read. What servers escape in request and agent (`\\"`, `\\\\`, `\\x22`, `\\t`) is unescaped; any
other backslash is the client's own and stays, so that rules see its `\\u0027`. If a quote in referer or agent breaks
the fields, everything from there on counts as the agent.
A request that is not `METHOD target ...` (binary, a lone `-`) has the contents `- - STATUS` and the whole
request as its target.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detection.formats import levels, times
from detection.formats.fields import Fields, on_one_line

# No pattern can match a text in two ways: a line that does not fit must fail in one pass. Groups are atomic rather
# than possessive, `(?>(?:...)*)` for `(?:...)*+`. They mean the same, but in Python 3.11.2, which Debian 12 has, a
# possessive quantifier around a group that backtracks matches the wrong text.
_QUOTED = rb'"([^"\\\n]*+(?>(?:\\.[^"\\\n]*+)*))"'
_BEFORE = (
    rb"(?>(?:[^\s\[]++ (?=[0-9a-fA-F]{0,4}[.:][0-9a-fA-F.:]++ |[0-9]{1,3}\.[0-9.]++ ))?)"
    rb"([^\s,]++),? [^\[\n]*+"
    rb"\[([0-3]\d/[A-Z][a-z]{2}/\d{4}:[0-2]\d:[0-5]\d:[0-6]\d) ([+-]\d{4})\] "
)
_AFTER = rb' (\d{3}|-)(?: \S++(?: "[^"\\\n]*+(?>(?:\\.[^"\\\n]*+)*)" ' + _QUOTED + rb")?)?"
_LINE = re.compile(_BEFORE + _QUOTED + _AFTER)
# Some servers do not escape quotes: the request then ends at a quote that a status follows.
_LOOSE = re.compile(_BEFORE + rb'"(.*?)"' + _AFTER)
_START = re.compile(_BEFORE + rb'"')
_METHOD = re.compile(rb"[A-Z][A-Z_-]{1,19}$")
_COMMON_METHODS = frozenset((b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))
_ESCAPE = re.compile(rb'\\(?:x([0-9a-fA-F]{2})|([\\"nrtv]))')
# Well-formed further fields, each after white space: quoted, quoted behind a name (`rt="0.1"`), or bare.
_FURTHER = re.compile(rb'(?>(?:\s++(?>[^\s"]*+"[^"\\]*+(?>(?:\\.[^"\\]*+)*)"|[^\s"]++))*)\s*$', re.DOTALL)


def match_access_line(line: bytes) -> re.Match[bytes] | None:
    """Groups: client, time, zone, request, status, agent. None if it is not an access line."""
    return _LINE.match(line) or _LOOSE.match(line)


def parse_access(lines: Sequence[bytes], clock: float) -> Fields:
    """Parse every line as an access line; see `kinds.parse_as_kind`."""
    n = len(lines)
    keys, contents, targets, agents = [b""] * n, list(lines), list(lines), [b""] * n
    errors: NDArray[np.bool_] = np.zeros(n, dtype=np.bool_)
    rows: list[int] = []
    strays: list[int] = []
    stamps: list[bytes] = []
    zones: list[bytes] = []
    for row, line in enumerate(lines):
        found = _LINE.match(line) or _LOOSE.match(line)
        if found is None:
            strays.append(row)
            continue
        keys[row], stamp, zone, request, status, agent = found.groups(b"")
        contents[row], targets[row] = read_request_line(request, status)
        if found.end() < len(line) and not _FURTHER.match(line, found.end()):
            agent = line[found.start(6) if found.end(6) >= 0 else found.end() :]
        agents[row] = unescaped_log_text(agent) if b"\\" in agent else agent
        errors[row] = status >= b"400"  # three digits, or "-", which sorts before them
        rows.append(row)
        stamps.append(stamp)
        zones.append(zone)
    seconds = np.full(n, np.nan)
    if rows:
        seconds[rows] = times.seconds_of_dates(times.CLF, stamps, clock) - times.zone_offsets(zones)
    if strays:
        errors[strays] = levels.have_error_level([lines[row] for row in strays])
    return Fields("access", "access", seconds, keys, contents, targets, agents, errors)


def rows_unlike_access(fields: Fields) -> list[int]:
    """Rows of a `parse_access` that do not even begin like an access line. A truncated access line is still one."""
    columns = enumerate(zip(fields.contents, fields.targets, strict=True))
    return [row for row, (contents, target) in columns if contents is target and not _START.match(target)]


def read_request_line(request: bytes, status: bytes) -> tuple[bytes, bytes]:
    """Contents and target of a request as logged: `GET /path?query HTTP/1.1`, escaped or not."""
    request = unescaped_log_text(request)
    method, _, target = request.partition(b" ")
    if not target or not (method in _COMMON_METHODS or _METHOD.match(method)):
        return b"- - " + status, request
    if target[-9:-3] == b" HTTP/":
        target = target[:-9]
    else:
        target = target.partition(b" HTTP/")[0]
    return request_contents(method, target, status), target


def request_contents(method: bytes, target: bytes, status: bytes) -> bytes:
    """`METHOD path STATUS`, without query and fragment."""
    path = target.partition(b"?")[0]
    if b"#" in path:
        path = path.partition(b"#")[0]
    return b"%b %b %b" % (method, path, status)


def unescaped_log_text(text: bytes) -> bytes:
    """`text` with the server's escapes undone."""
    return on_one_line(_ESCAPE.sub(_unescaped_sequence, text)) if b"\\" in text else text


def _unescaped_sequence(found: re.Match[bytes]) -> bytes:
    """What one escape sequence of an access log stands for."""
    code, char = found.groups()
    if code:
        return bytes((int(code, 16),))
    # \n, \t and the like become a space; a quote or a backslash stands for itself.
    return b" " if char in b"nrtv" else char
