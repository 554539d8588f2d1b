"""Matching rules over batches: which rules hit which lines, and where.

Patterns run in RE2, so matching takes time linear in the field, whatever pattern a user writes and whatever bytes
an attacker sends; fields are decoded and cut first (see `detection.rules.decoding`). Most fields are dismissed by
a few *gates*: a gate is the union of several rules' patterns, and only if it matches are its rules tried one by
one. Real streams are repetitive, so the results for short fields are kept in a bounded memo. Neither changes a
result: matching depends on the rules and the single line, not on the batch or on earlier lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, Self, cast

import numpy as np
import re2
from numpy.typing import NDArray

from detection.detection_settings import RuleText
from detection.rules.decoding import decode_field
from detection.rules.rule_files import FIELDS, Rule, RuleError, parse_rules

# Rules per gate. On random bytes, a single gate over our whole pack needs more automaton states than its budget
# holds and is then several times slower than no gate; one gate per rule costs one call per rule.
GATE_RULES = 5
# The memory budget of one pattern or gate for automaton states; real input mostly needs far less.
PATTERN_BYTES = 8 << 20
# Longer fields skip the gates: they are rarely harmless text, and random bytes slow down unions but not single rules.
GATED_BYTES = 512
# The memo holds up to `MEMO_FIELDS` fields of at most `MEMO_FIELD_BYTES` bytes; when full it is cleared.
MEMO_FIELDS = 8192
MEMO_FIELD_BYTES = 256
EVIDENCE_BYTES = 200
AROUND_BYTES = 60


@dataclass(frozen=True, slots=True)
class Hits:
    """Which rules hit which lines, sorted by line, then rule: row i means that `rules[i]` hit `lines[i]`."""

    lines: NDArray[np.int32]
    rules: NDArray[np.int32]

    @classmethod
    def none(cls) -> "Hits":
        return cls(np.zeros(0, np.int32), np.zeros(0, np.int32))


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where `rule` matched: bytes `start` to `end` of the decoded field, and the beginning of the match as text.

    `before` and `after` are the surrounding text, which shows the match in context; `after` is empty if `text` is
    only the beginning of the match.
    """

    rule: Rule
    field: str
    start: int
    end: int
    text: str
    before: str
    after: str


class RuleSet:
    """Compiled rules; `Hits` refers to them by their index in `rules`."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        """Raises `RuleError` if a pattern does not compile or a rule fails one of its own tests."""
        self.rules = rules
        self.names = [rule.name for rule in rules]
        self.confidence = np.array([rule.confidence for rule in rules], dtype=np.float64)
        self._patterns = [_Pattern(rule) for rule in rules]
        for rule, pattern in zip(rules, self._patterns, strict=True):
            _run_rule_tests(rule, pattern)
        self._gates = {field: _gates_of_rules(field, rules) for field in FIELDS}
        self._memo: dict[str, dict[bytes, list[int]]] = {field: {} for field in FIELDS}

    @classmethod
    def compile(cls, texts: Sequence[RuleText]) -> Self:
        """The rules of several files, in order. Raises `RuleError` with the file, the rule and the remedy."""
        return cls(parse_rules(texts))

    def match(self, targets: Sequence[bytes], agents: Sequence[bytes], lines: Sequence[bytes], *, web: bool) -> Hits:
        """The hits of a batch; element i of each sequence belongs to line i.

        With `web`, `targets` are request targets and `agents` user agents. Without it, `targets` are the
        lines' messages, `agents` is ignored, and rules for targets and agents do not apply.
        """
        columns = [("target" if web else "message", targets), ("line", lines)]
        if web:
            columns.append(("agent", agents))
        found: list[tuple[int, int]] = []
        for field, values in columns:
            if self._gates[field]:
                memo = self._memo[field]
                for line, value in enumerate(values):
                    hits = memo.get(value)
                    if hits is None:
                        hits = self._rules_matching_field(field, value)
                    if hits:
                        found += [(line, rule) for rule in hits]
        found.sort()
        rows = np.array(found, np.int32).reshape(-1, 2)
        return Hits(np.ascontiguousarray(rows[:, 0]), np.ascontiguousarray(rows[:, 1]))

    def surest_hits(self, hits: Hits) -> NDArray[np.int64]:
        """For each line that was hit, in order, the index of the hit by its most confident rule (ties: the first)."""
        if not len(hits.lines):
            return np.zeros(0, dtype=np.int64)
        order = np.lexsort((np.arange(len(hits.lines)), -self.confidence[hits.rules], hits.lines))
        lines = hits.lines[order]
        return order[np.concatenate(([True], lines[1:] != lines[:-1]))]

    def surest_confidences(self, hits: Hits, lines: int) -> NDArray[np.float64]:
        """Of each of so many lines the confidence of the surest rule that hit it, 0 where none did: float64 [n]."""
        surest = np.zeros(lines)
        if len(hits.lines):
            np.maximum.at(surest, hits.lines, self.confidence[hits.rules])
        return surest

    def _rules_matching_field(self, field: str, value: bytes) -> list[int]:
        text = decode_field(value, query=field == "target")
        hits = [
            rule
            for gate, behind in self._gates[field]
            if len(text) > GATED_BYTES or gate.search(text)
            for rule in behind
            if self._patterns[rule].hits(text)
        ]
        # Whole lines contain a time and so never repeat.
        if field != "line" and len(value) <= MEMO_FIELD_BYTES:
            if len(self._memo[field]) >= MEMO_FIELDS:
                self._memo[field] = {}
            self._memo[field][value] = hits
        return hits

    def evidence(self, rule: int, target: bytes, agent: bytes, line: bytes) -> Evidence:
        """Where rule number `rule` matched a line for which `match` reported it.

        `target`, `agent` and `line` are as they were given to `match`. ValueError if the rule does not match.
        """
        subject = self.rules[rule]
        value = {"agent": agent, "line": line}.get(subject.field, target)
        text = decode_field(value, query=subject.field == "target")
        span = self._patterns[rule].span(text)
        if span is None:
            raise ValueError(f"rule {subject.name!r} does not match this {subject.field}")
        start, end = span
        shown, before = text[start : min(end, start + EVIDENCE_BYTES)], text[max(start - AROUND_BYTES, 0) : start]
        after = text[end : end + AROUND_BYTES] if end - start <= EVIDENCE_BYTES else b""
        texts = [part.decode(errors="replace") for part in (shown, before, after)]
        return Evidence(subject, subject.field, start, end, *texts)


# Compiling takes a tenth of a second, and a state that is loaded, or reloaded, mostly has the same rules.
compiled_rules = lru_cache(maxsize=4)(RuleSet.compile)


class _Found(Protocol):
    def span(self) -> tuple[int, int]: ...


class _Searches(Protocol):
    def search(self, text: bytes) -> _Found | None: ...


class _Pattern:
    """One rule's patterns combined, with its `unless`."""

    __slots__ = ("_any", "_unless")

    def __init__(self, rule: Rule) -> None:
        for pattern in (*rule.patterns, *filter(None, [rule.unless])):
            # Compile each alone first: the error then names the culprit, and `a)|(b` is refused, though it is valid
            # inside a union.
            alone = _compiled_pattern(pattern, f"{rule.source}: rule {rule.name!r}: pattern {pattern!r}")
            if alone.search(b"") and alone.search(b"\0"):
                raise RuleError(
                    f"{rule.source}: rule {rule.name!r}: pattern {pattern!r} also matches nothing at all, "
                    "so it would hit every line; make some part of it required"
                )
        where = f"{rule.source}: rule {rule.name!r}"
        self._any = _compiled_pattern(_union_pattern(rule.patterns), where)
        self._unless = _compiled_pattern(rule.unless, where) if rule.unless else None

    def hits(self, text: bytes) -> bool:
        return self.span(text) is not None

    def span(self, text: bytes) -> tuple[int, int] | None:
        found = self._any.search(text)
        if found is None or (self._unless and self._unless.search(text)):
            return None
        return found.span()


def _run_rule_tests(rule: Rule, pattern: _Pattern) -> None:
    for kind, tests, expected in (
        ("match", rule.must_match, True),
        ("silent", rule.must_stay_silent, False),
    ):
        for place, test in enumerate(tests, 1):
            text = decode_field(test.encode(), query=rule.field == "target")
            if pattern.hits(text) != expected:
                raise RuleError(
                    f"{rule.source}: rule {rule.name!r}: tests.{kind} number {place} "
                    f"should {'match and does not' if expected else 'stay silent and matches'}: {test!r}"
                    + (f" (the rule sees {text.decode(errors='replace')!r})" if text != test.encode() else "")
                )


def _gates_of_rules(field: str, rules: Sequence[Rule]) -> list[tuple[_Searches, list[int]]]:
    """Groups of rules of a field, each with one pattern that matches wherever a rule of the group can."""
    own = [number for number, rule in enumerate(rules) if rule.field == field]
    behind = [own[i : i + GATE_RULES] for i in range(0, len(own), GATE_RULES)]
    return [
        (
            _compiled_pattern(
                _union_pattern([_union_pattern(rules[n].patterns) for n in group]), f"gate of {field} rules"
            ),
            group,
        )
        for group in behind
    ]


def _union_pattern(patterns: Sequence[str]) -> str:
    return "|".join(f"(?:{pattern})" for pattern in patterns)


def _compiled_pattern(pattern: str, where: str) -> _Searches:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # bytes, not characters: logs hold both
    options.case_sensitive = False
    options.dot_nl = True  # a decoded line break must not hide what follows it
    options.never_capture = True
    options.log_errors = False
    options.max_mem = PATTERN_BYTES
    try:
        return cast(_Searches, re2.compile(pattern.encode(), options))
    except re2.error as exc:
        reason = exc.args[0].decode(errors="replace") if isinstance(exc.args[0], bytes) else exc
        raise RuleError(f"{where} is not a usable RE2 pattern: {reason}") from exc
