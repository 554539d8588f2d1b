"""From the segments of a frame to lines, their fields, template ids and rule hits."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from detection.formats.fields import Fields
from detection.formats.kinds import parse_as_kind, parse_each_by_own_kind
from detection.formats.requests import request_targets
from detection.frames import Segment
from detection.members.origins.line_features import sources_of
from detection.members.parsed_lines import LinesOfAKind, ParsedLines
from detection.rules.rule_matching import Hits, RuleSet
from detection.sessions.key_pattern import KeyPattern
from detection.sessions.living_sources import LivingSources
from detection.sessions.log_clock import from_the_future
from detection.sessions.session_table import KEY_BYTES

HALF_A_YEAR_SECONDS = 182 * 86_400.0
TemplateIds = Callable[[str, Sequence[bytes]], NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class Intake:
    """n lines in order. `keys` name sessions; a `windowed` line has no key of its own, so its source is the key."""

    lines: list[bytes]
    fields: list[tuple[NDArray[np.int64], Fields]]  # which lines, and their fields
    own_keys: list[bytes]  # as the lines hold them, b"" where they hold none
    keys: list[bytes]
    windowed: list[bool]
    times: NDArray[np.float64]
    errors: NDArray[np.bool_]
    future: int  # lines whose time is not believed; in `times` they have none
    cut: int = 0
    unterminated: int = 0
    ended: Sequence[bytes] = ()  # keys of the windows of sources that have ended


def read_lines(intake: Intake, ids_of: TemplateIds, rules: RuleSet) -> ParsedLines:
    """Read the fields of all lines; `ids_of` is a template table's `assign`, or its `match` where nothing is to be
    learned."""
    n = len(intake.lines)
    ids, kinds, found = np.empty(n, np.int32), [], []
    matched_in, origins = [(b"", b"")] * n, [b""] * n
    for at, fields in intake.fields:
        ids[at] = ids_of(fields.family, fields.contents)
        hits, targets, web = match_rules(rules, fields, [intake.lines[i] for i in at.tolist()])
        found.append(Hits(lines=at[hits.lines].astype(np.int32), rules=hits.rules))
        kinds.append(LinesOfAKind(at, fields, targets, web))
        clients, searched = sources_of(fields), list(zip(targets, fields.agents, strict=True))
        if len(intake.fields) == 1:
            origins, matched_in = clients, searched
        else:
            for j, i in enumerate(at.tolist()):
                origins[i], matched_in[i] = clients[j], searched[j]
    return ParsedLines(ids, hits_in_order(found), kinds, matched_in, origins)


def match_rules(rules: RuleSet, fields: Fields, lines: Sequence[bytes]) -> tuple[Hits, list[bytes], NDArray[np.bool_]]:
    """The rules' hits on lines and their fields, the targets that were looked at, and which lines are requests."""
    web, targets = request_targets(fields)
    if web.all() or not web.any():
        return rules.match(targets, fields.agents, lines, web=bool(web.all())), targets, web
    found = []
    for mask in (web, ~web):
        at = np.flatnonzero(mask)
        columns = ([column[i] for i in at.tolist()] for column in (targets, fields.agents, lines))
        hits = rules.match(*columns, web=mask is web)
        found.append(Hits(lines=at[hits.lines].astype(np.int32), rules=hits.rules))
    return hits_in_order(found), targets, web


def hits_in_order(found: Sequence[Hits]) -> Hits:
    """Hits of several parts as one, sorted by line and then by rule."""
    lines = np.concatenate([hits.lines for hits in found] or [np.zeros(0, dtype=np.int32)])
    rules = np.concatenate([hits.rules for hits in found] or [np.zeros(0, dtype=np.int32)])
    order = np.lexsort((rules, lines))
    return Hits(lines=lines[order].astype(np.int32), rules=rules[order].astype(np.int32))


def take_in_segments(
    segments: Sequence[Segment], living: LivingSources, pattern: KeyPattern | None, *, clock: float, received: float
) -> Intake:
    """Cut the segments of one frame into lines and read their fields, with `received` the frame's receive time."""
    lines: list[bytes] = []
    sources: list[bytes] = []
    ended: list[bytes] = []
    by_kind: dict[str, list[int]] = {}
    cut = unterminated = 0
    for segment in segments:
        completed, tail_counted = living.complete_lines(segment)
        source = segment.source.encode()
        if completed:
            by_kind.setdefault(segment.kind, []).extend(range(len(lines), len(lines) + len(completed)))
        lines += completed
        sources += [source] * len(completed)
        cut += len(segment.cut)
        unterminated += tail_counted
        if segment.last:
            ended.append(_bounded_key(b"w" + source))
    intake = read_fields(lines, sources, by_kind, pattern, clock=clock, received=received)
    return replace(intake, cut=cut, unterminated=unterminated, ended=ended)


def read_fields(
    lines: list[bytes],
    sources: Sequence[bytes],
    by_kind: Mapping[str, Sequence[int]],
    pattern: KeyPattern | None,
    *,
    clock: float,
    received: float,
) -> Intake:
    """The fields of `lines`, which came from `sources`; `by_kind` says which of them are of each kind.

    `clock` is the log clock before them, nan when unset; then `received`, when they came, tells the year or the day
    that a time leaves out. Lines of a kind that carries no times have none, nor have those whose time is not believed.
    """
    reference = received if np.isnan(clock) else clock
    times = np.full(len(lines), np.nan)
    errors = np.zeros(len(lines), dtype=np.bool_)
    keys: list[bytes] = [b""] * len(lines)
    fields: list[tuple[NDArray[np.int64], Fields]] = []
    for kind, places in by_kind.items():
        at = np.array(places, dtype=np.int64)
        for rows, parsed in parse_each_by_own_kind(kind, [lines[i] for i in places], clock=reference):
            where = at[rows]
            for i, key in zip(where.tolist(), parsed.keys, strict=True):
                keys[i] = key
            times[where], errors[where] = parsed.times, parsed.errors
            fields.append((where, parsed))
    future = from_the_future(times, received)
    if future.any():
        # A missing year is taken as the one nearest to the clock, which may be the next one: read those times again.
        _reread_missing_times(lines, fields, times, future, received - HALF_A_YEAR_SECONDS)
        future = from_the_future(times, received)
    times[future] = np.nan
    if pattern is not None:
        keys = pattern.keys(lines)
    windowed = [not key for key in keys]
    named = [
        session_key(key) if key else _bounded_key(b"w" + source) for key, source in zip(keys, sources, strict=True)
    ]
    return Intake(lines, fields, keys, named, windowed, times, errors, int(future.sum()))


def _reread_missing_times(
    lines: Sequence[bytes],
    fields: Sequence[tuple[NDArray[np.int64], Fields]],
    times: NDArray[np.float64],
    which: NDArray[np.bool_],
    clock: float,
) -> None:
    """Read the times of `which` lines again, completed by `clock`."""
    for where, parsed in fields:
        again = where[which[where]]
        if len(again):
            times[again] = parse_as_kind(parsed.kind, [lines[i] for i in again.tolist()], clock=clock).times


def session_key(key: bytes) -> bytes:
    """The name under which the table holds the session of `key`."""
    return _bounded_key(b"k" + key)


def _bounded_key(key: bytes) -> bytes:
    """`key` as it fits a fixed-width column: no NUL (they are padding there), long ones shortened by a hash."""
    if len(key) < KEY_BYTES and b"\0" not in key:
        return key
    name = hashlib.blake2b(key, digest_size=8).hexdigest().encode()
    return key[: KEY_BYTES - len(name) - 1].replace(b"\0", b"?") + b"~" + name
