"""logfmt: `key=value` pairs; a value with spaces is in double quotes.

    time="2021-09-15T21:17:10.220731Z" level=error msg="error retrieving pod status" pod=web-1

Contents are level, component and message; without a message, the pairs except time and ids. Only the first 256
pairs of a line are read.
"""

import re
from collections.abc import Sequence

import numpy as np

from detection.formats import levels, times
from detection.formats.access import unescaped_log_text
from detection.formats.fields import Fields
from detection.formats.roles import BYTE_ROLES

# A run of key characters is scanned once: the lookbehind prevents a second start inside it.
_PAIR = re.compile(
    rb"(?<![\w.@/-])([A-Za-z_@][\w.@/-]{0,63})=(?:\"([^\"\\]*+(?>(?:\\.[^\"\\]*+)*))\"|([^\s\"]*+))", re.DOTALL
)
_HEAD = re.compile(rb"[A-Za-z_@][\w.@/-]{0,63}=(?!audit\()")
_HEAD_BYTES = 1024
_MAX_PAIRS = 256
_TELLTALE_ROLES = ("message", "level", "time")


def fits_logfmt(line: bytes) -> bool:
    """True if `line` begins with a pair and has two of message, level and time among its first pairs."""
    if not _HEAD.match(line):
        return False
    names = {role for pair in _PAIR.findall(line[:_HEAD_BYTES]) for role, _ in BYTE_ROLES.get(pair[0], ())}
    return sum(role in names for role in _TELLTALE_ROLES) >= 2 and b" msg=audit(" not in line[:64]


def parse_logfmt(lines: Sequence[bytes], clock: float) -> Fields:
    """Parse every line as logfmt; see `kinds.parse_as_kind`."""
    n = len(lines)
    stamps = times.Stamps()
    seconds = np.full(n, np.nan)
    keys, contents, targets = [b""] * n, list(lines), list(lines)
    given_levels: dict[int, bool] = {}
    for row, line in enumerate(lines):
        pairs = _PAIR.findall(line)[:_MAX_PAIRS] if _HEAD.match(line) else []
        if len(pairs) < 2:
            continue
        roles = _logfmt_values_by_role(pairs)
        if stamp := roles.get("time"):
            if found := times.find_time(stamp):
                stamps.add(row, found)
            elif stamp.isdigit() and len(stamp) <= 19:
                seconds[row] = times.seconds_from_number(int(stamp))
        level = roles.get("level", b"")
        if message := roles.get("message"):
            front = (level, roles.get("component", b""))
            contents[row] = b" ".join(filter(None, (*front, unescaped_log_text(message))))
        else:
            contents[row] = _logfmt_pairs_text(pairs)
        keys[row] = roles.get("trace") or roles.get("pod") or b""
        if level:
            given_levels[row] = levels.is_error_word(level)
    errors = levels.have_error_level(contents)
    for row, error in given_levels.items():
        errors[row] = error
    found_times = stamps.seconds(n, clock)
    times_read = np.where(np.isnan(found_times), seconds, found_times)
    return Fields("logfmt", "text", times_read, keys, contents, targets, [b""] * n, errors)


def _logfmt_values_by_role(pairs: Sequence[tuple[bytes, bytes, bytes]]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    ranks: dict[str, int] = {}
    for name, quoted, bare in pairs:
        for role, rank in BYTE_ROLES.get(name, ()):
            if rank < ranks.get(role, 1000):
                found[role], ranks[role] = quoted or bare, rank
    return found


def _logfmt_pairs_text(pairs: Sequence[tuple[bytes, bytes, bytes]]) -> bytes:
    """The pairs as text, without times and trace ids."""
    return b" ".join(
        b"%b=%b" % (name, quoted or bare)
        for name, quoted, bare in pairs
        if all(role not in ("time", "trace") for role, _ in BYTE_ROLES.get(name, ()))
    )
