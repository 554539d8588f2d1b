"""Formats that wrap another program's text: JSON lines and the logs of container runtimes.

    2016-10-06T00:17:09.669794202Z stdout F 192.0.2.7 - - [06/Oct/2016:00:17:09 +0000] "GET / HTTP/1.1" 200 13
    web-1  | 2024-04-25T05:32:35.584725130Z  * Serving Flask app 'app.py'

The text inside is parsed as what it looks like: an access line, a JSON object, or text with a time of its own. The
wrapper's time takes precedence over the text's; the level of either counts. The session is the client of an access
line; otherwise a trace, request or session id in wrapper or text; otherwise the pod, or host and container.
"""

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from detection.formats import access, json_lines, levels, logfmt, roles, times, timestamped
from detection.formats.fields import Fields, gathered_fields

_CRI = re.compile(
    rb"(" + times.ISO_PATTERN + rb")(" + times.FRACTION_PATTERN + rb")?(" + times.ZONE_PATTERN + rb")"
    rb" std(?:out|err) [FP](?::\S{0,16})?(?: |$)"
)
_COMPOSE = re.compile(
    rb"(?>(?:\x1b\[[0-9;]{0,16}[A-Za-z])*)([A-Za-z0-9][\w.-]{0,63})(?:\x1b\[[0-9;]{0,16}m)?\s{1,60}+\| ?"
)


def fits_container(line: bytes) -> bool:
    return (_CRI.match(line) or _COMPOSE.match(line)) is not None


def parse_container(lines: Sequence[bytes], clock: float) -> Fields:
    """Parse every line as a container runtime's; see `kinds.parse_as_kind`."""
    n = len(lines)
    stamps = times.Stamps()
    texts: list[bytes] = []
    origins: list[bytes] = []
    strays: list[int] = []
    for row, line in enumerate(lines):
        if found := _CRI.match(line):
            stamps.add_parts(row, times.ISO, found[1], found[2], found[3])
            origins.append(b"")
        elif found := _COMPOSE.match(line):
            origins.append(found[1])
        else:
            strays.append(row)
            origins.append(b"")
        texts.append(line[found.end() :] if found else line)
    inner = _parse_wrapped_messages(texts, clock, _parse_json_with, set(strays))
    outer = stamps.seconds(n, clock)
    keys = [key or origin for key, origin in zip(inner.keys, origins, strict=True)]
    seconds = np.where(np.isnan(outer), inner.times, outer)
    rest = (inner.contents, inner.targets, inner.agents, inner.errors)
    return Fields("container", "text", seconds, keys, *rest)


def parse_json_lines(lines: Sequence[bytes], clock: float) -> Fields:
    """Parse every line as a JSON object; see `kinds.parse_as_kind`."""
    return _parse_json_with(lines, clock, _parse_messages_in_json)


def _parse_json_with(
    lines: Sequence[bytes], clock: float, look: Callable[[list[bytes], float], Fields] | None = None
) -> Fields:
    """Parse every line as a JSON object and its message with `look`; without `look` a message is text."""
    n = len(lines)
    stamps = times.Stamps()
    records = [json_lines.read_json_record(line) for line in lines]
    texts = [record.message for record in records if record is not None and not record.request]
    inner = look(texts, clock) if look else _parse_messages_as_text(texts, clock)
    inner_times, inner_errors = inner.times.tolist(), inner.errors.tolist()
    # Lists, because setting elements of an array one by one is slow.
    seconds, errors = [math.nan] * n, [False] * n
    keys, contents, targets, agents = [b""] * n, list(lines), list(lines), [b""] * n
    strays: list[int] = []
    at = -1
    for row, record in enumerate(records):
        if record is None:
            strays.append(row)
            continue
        seconds[row] = record.seconds
        if record.stamp and (found := times.find_time(record.stamp)):
            stamps.add(row, found)
        if record.request:
            keys[row], contents[row], targets[row] = record.key, record.message, record.target
            agents[row], errors[row] = record.agent, record.error is True
            continue
        at += 1
        inside = inner.contents[at]
        contents[row] = record.prefix + b" " + inside if record.prefix and not inner.agents[at] else inside
        targets[row], agents[row] = inner.targets[at], inner.agents[at]
        keys[row] = record.trace or inner.keys[at] or record.key
        errors[row] = inner_errors[at] if record.error is None else record.error
        if math.isnan(record.seconds):
            seconds[row] = inner_times[at]
    found_errors = np.array(errors, dtype=np.bool_)
    if strays:
        found_errors[strays] = levels.have_error_level([lines[row] for row in strays])
    read = stamps.seconds(n, clock)
    best = np.where(np.isnan(read), np.array(seconds, dtype=np.float64), read)
    return Fields("json", "text", best, keys, contents, targets, agents, found_errors)


def _parse_messages_in_json(texts: list[bytes], clock: float) -> Fields:
    return _parse_wrapped_messages(texts, clock, _parse_json_with, set())


def _parse_wrapped_messages(
    texts: list[bytes], clock: float, read_json: Callable[[Sequence[bytes], float], Fields], strays: set[int]
) -> Fields:
    """Parse each text as what it looks like. `strays` are rows that no wrapper fits: they are left unchanged."""
    objects: list[int] = []
    requests: list[int] = []
    pairs: list[int] = []
    plain: list[int] = []
    for row, text in enumerate(texts):
        if row in strays:
            continue
        if text[:1] == b"{" and text[-1:] == b"}":
            objects.append(row)
        elif b'] "' in text and access.match_access_line(text):
            requests.append(row)
        elif b"=" in text[:24] and logfmt.fits_logfmt(text):
            pairs.append(row)
        else:
            plain.append(row)
    parts = [
        (objects, lambda part: read_json(part, clock)),
        (requests, lambda part: access.parse_access(part, clock)),
        (pairs, lambda part: logfmt.parse_logfmt(part, clock)),
        (plain, lambda part: _parse_messages_as_text(part, clock)),
        (sorted(strays), _fields_of_unwrapped),
    ]
    return gathered_fields("", parts, texts)


def _parse_messages_as_text(texts: Sequence[bytes], clock: float) -> Fields:
    """Messages with at most a time at the head; the session is the trace id they contain."""
    read = timestamped.parse_timestamped(texts, clock, inside=False)
    keys = [roles.trace_in(text) for text in read.contents]
    return Fields("", "text", read.times, keys, read.contents, read.targets, read.agents, read.errors)


def _fields_of_unwrapped(lines: Sequence[bytes]) -> Fields:
    """Fields of lines that no wrapper fits: the whole line is the message."""
    blank, never = [b""] * len(lines), np.full(len(lines), np.nan)
    return Fields("", "text", never, blank, list(lines), list(lines), blank, levels.have_error_level(lines))
