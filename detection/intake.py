"""From the segments of a frame to lines and their fields."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import re2
from numpy.typing import NDArray

from detection.formats.fields import Fields
from detection.formats.kinds import parse
from detection.formats.requests import request_targets
from detection.frames import Segment
from detection.rules.engine import Hits, RuleSet
from detection.sessions import KEY_BYTES
from detection.sources import LivingSources


@dataclass(frozen=True, slots=True)
class Intake:
    """n lines in order. `keys` name sessions; a `windowed` line has no key of its own, its source is one."""

    lines: list[bytes]
    fields: list[tuple[NDArray[np.int64] | slice, Fields]]  # which lines, and their fields
    keys: list[bytes]
    windowed: list[bool]
    times: NDArray[np.float64]
    errors: NDArray[np.bool_]
    cut: int
    unterminated: int
    ended: list[bytes]  # keys of the windows of sources that have ended


def match_rules(rules: RuleSet, fields: Fields, lines: Sequence[bytes]) -> tuple[Hits, list[bytes]]:
    """The rules' hits on lines and their fields, and the targets that were looked at (for evidence)."""
    web, targets = request_targets(fields)
    if web.all() or not web.any():
        return rules.match(targets, fields.agents, lines, web=bool(web.all())), targets
    found = []
    for mask in (web, ~web):
        at = np.flatnonzero(mask)
        columns = ([column[i] for i in at.tolist()] for column in (targets, fields.agents, lines))
        hits = rules.match(*columns, web=mask is web)
        found.append(Hits(lines=at[hits.lines].astype(np.int32), rules=hits.rules))
    return in_order(found), targets


def in_order(found: Sequence[Hits]) -> Hits:
    """Hits of several parts as one, sorted by line and then by rule."""
    lines = np.concatenate([hits.lines for hits in found] or [np.zeros(0, dtype=np.int32)])
    rules = np.concatenate([hits.rules for hits in found] or [np.zeros(0, dtype=np.int32)])
    order = np.lexsort((rules, lines))
    return Hits(lines=lines[order].astype(np.int32), rules=rules[order].astype(np.int32))


class KeyPattern:
    """The user's session key: a regular expression with one group, searched in the whole line.

    RE2 keeps it linear in the line. Raises ValueError when it is none or has another number of groups.
    """

    def __init__(self, pattern: str) -> None:
        try:
            self._search = re2.compile(pattern.encode()).search
            groups = re2.compile(pattern.encode()).groups
        except re2.error as exc:
            raise ValueError(f"session key {pattern!r}: {exc}") from exc
        if groups != 1:
            raise ValueError(f"session key {pattern!r}: wants exactly one group, has {groups}")

    def keys(self, lines: Sequence[bytes]) -> list[bytes]:
        """One key a line, b"" where the pattern does not match."""
        found = map(self._search, lines)
        return [match.group(1) or b"" if match else b"" for match in found]


def take_in(
    segments: Sequence[Segment], living: LivingSources, pattern: KeyPattern | None, *, clock: float, received: float
) -> Intake:
    """Cut the segments of one frame into lines and read their fields.

    `clock` is the log clock before the frame, nan when unset; `received` the frame's receive time, which
    lines of a kind that carries no times get.
    """
    lines: list[bytes] = []
    sources: list[bytes] = []
    ended: list[bytes] = []
    spans: dict[str, list[tuple[int, int]]] = {}
    cut = unterminated = 0
    for segment in segments:
        completed, tail_counted = living.complete(segment)
        source = segment.source.encode()
        if completed:
            spans.setdefault(segment.kind, []).append((len(lines), len(lines) + len(completed)))
        lines += completed
        sources += [source] * len(completed)
        cut += len(segment.cut)
        unterminated += tail_counted
        if segment.last:
            ended.append(_bounded(b"w" + source))

    reference = received if np.isnan(clock) else clock
    times = np.full(len(lines), np.nan)
    errors = np.zeros(len(lines), dtype=np.bool_)
    keys: list[bytes] = [b""] * len(lines)
    fields: list[tuple[NDArray[np.int64] | slice, Fields]] = []
    for kind, ranges in spans.items():
        where: Any
        if len(ranges) == 1 or len(spans) == 1:
            where = slice(ranges[0][0], ranges[-1][1])
            parsed = parse(kind, lines[where], clock=reference)
            keys[where] = parsed.keys
        else:
            where = np.concatenate([np.arange(start, stop) for start, stop in ranges])
            parsed = parse(kind, [lines[i] for i in where.tolist()], clock=reference)
            for i, key in zip(where.tolist(), parsed.keys, strict=True):
                keys[i] = key
        times[where] = received if kind == "plain" else parsed.times
        errors[where] = parsed.errors
        fields.append((where, parsed))
    if pattern is not None:
        keys = pattern.keys(lines)
    windowed = [not key for key in keys]
    named = [session_key(key) if key else _bounded(b"w" + source) for key, source in zip(keys, sources, strict=True)]
    return Intake(lines, fields, named, windowed, times, errors, cut, unterminated, ended)


def session_key(key: bytes) -> bytes:
    """The name under which the table holds the session of `key`."""
    return _bounded(b"k" + key)


def _bounded(key: bytes) -> bytes:
    """`key` as it fits a fixed-width column: no NUL (they are padding there), long ones shortened by a hash."""
    if len(key) < KEY_BYTES and b"\0" not in key:
        return key
    name = hashlib.blake2b(key, digest_size=8).hexdigest().encode()
    return key[: KEY_BYTES - len(name) - 1].replace(b"\0", b"?") + b"~" + name
