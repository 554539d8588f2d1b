"""Rules files: TOML to `Rule` values. Every error names the file, the rule and the remedy.

    disable = ["rule-name", ...]      optional: rules of earlier files that are not to run

    [[rule]]
    name = "sql-union-select"         unique; lower case, digits, dashes
    type = "sql_injection"            the type of attack in verdicts; lower case, digits, underscores
    severity = "high"                 low, medium, high, critical
    confidence = 0.95                 .5 to 1: how sure a single hit is
    field = "target"                  target, agent (web lines), message (other lines), line (every line)
    about = "..."                     optional: one sentence for an operator who sees a hit
    pattern = '''...'''               a regular expression (RE2 syntax), or several: any = ['''...''', ...]
    unless = '''...'''                optional: no hit where this matches the same field
    tests.match = ["...", ...]        at least one field, as written in a log, that must hit
    tests.silent = ["...", ...]       optional: fields that must not

Unknown keys are refused: a misspelt "unless" would otherwise silently widen the rule.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detection.detection_settings import RuleText

FIELDS = ("target", "agent", "message", "line")
SEVERITIES = ("low", "medium", "high", "critical")
MIN_CONFIDENCE = 0.5
MAX_PATTERN_CHARS = 8192

_REQUIRED = ("name", "type", "severity", "confidence", "field")
_KEYS = (*_REQUIRED, "about", "pattern", "any", "unless", "tests")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_TYPE = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")


class RuleError(ValueError):
    """A rules file cannot be used; the message names the file, the rule and the remedy."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule as its author wrote it. `source` is the file's name, `patterns` are alternatives."""

    name: str
    attack_type: str
    severity: str
    confidence: float
    field: str
    patterns: tuple[str, ...]
    unless: str = ""
    about: str = ""
    source: str = ""
    must_match: tuple[str, ...] = ()
    must_stay_silent: tuple[str, ...] = ()


def read_rules(texts: Sequence[RuleText]) -> tuple[Rule, ...]:
    """The rules of all files in order, without the disabled ones. Raises `RuleError`; compiles no pattern."""
    rules: dict[str, Rule] = {}
    for text in texts:
        try:
            document = tomllib.loads(text.text)
        except (ValueError, RecursionError) as exc:  # TOMLDecodeError, a number of thousands of digits, deep nesting
            raise RuleError(f"{text.name}: not valid TOML: {exc}") from exc
        _refuse_unknown_keys(document, ("rule", "disable"), text.name)
        for name in _strings_from_toml(document, "disable", text.name):
            if name not in rules:
                raise RuleError(
                    f"{text.name}: disable: no earlier file has a rule {name!r}{_suggested_word(name, tuple(rules))}"
                )
            del rules[name]
        tables = document.get("rule", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise RuleError(f"{text.name}: begin every rule with a line [[rule]] (two brackets)")
        for place, table in enumerate(tables, 1):
            rule = _rule_from_toml(table, text.name, place)
            if rule.name in rules:
                raise RuleError(
                    f"{text.name}: rule {rule.name!r}: {rules[rule.name].source} already has a rule of this name; "
                    'choose another, or put the old one in disable = ["..."]'
                )
            rules[rule.name] = rule
    return tuple(rules.values())


def _rule_from_toml(table: Mapping[str, object], source: str, place: int) -> Rule:
    where = f"{source}: rule {table['name']!r}" if "name" in table else f"{source}: rule number {place}"
    _refuse_unknown_keys(table, _KEYS, where)
    for key in _REQUIRED:
        if key not in table:
            raise RuleError(f"{where}: add {key} = ...")
    tests = table.get("tests", {})
    if not isinstance(tests, dict):
        raise RuleError(f"{where}: write tests.match = [...] and tests.silent = [...]")
    _refuse_unknown_keys(tests, ("match", "silent"), f"{where}: tests")
    must_match = _strings_from_toml(tests, "match", f"{where}: tests")
    if not must_match:
        raise RuleError(f"{where}: add tests.match = [...] with at least one text that the rule must catch")
    return Rule(
        name=_string_from_toml(table, "name", where, _NAME, "lower-case letters, digits and dashes"),
        attack_type=_string_from_toml(table, "type", where, _TYPE, "lower-case letters, digits and underscores"),
        severity=_choice_from_toml(table, "severity", where, SEVERITIES),
        confidence=_confidence_from_toml(table, where),
        field=_choice_from_toml(table, "field", where, FIELDS),
        patterns=_patterns_from_toml(table, where),
        unless=_string_from_toml(table, "unless", where) if "unless" in table else "",
        about=_string_from_toml(table, "about", where) if "about" in table else "",
        source=source,
        must_match=must_match,
        must_stay_silent=_strings_from_toml(tests, "silent", f"{where}: tests"),
    )


def _patterns_from_toml(table: Mapping[str, object], where: str) -> tuple[str, ...]:
    if ("pattern" in table) == ("any" in table):
        raise RuleError(f"{where}: give either pattern = '''...''' or any = ['''...''', ...]")
    if "pattern" in table:
        patterns: tuple[str, ...] = (_string_from_toml(table, "pattern", where),)
    else:
        patterns = _strings_from_toml(table, "any", where)
    if not patterns or not all(patterns):
        raise RuleError(f"{where}: an empty pattern would match everything")
    if sum(map(len, patterns)) > MAX_PATTERN_CHARS:
        raise RuleError(f"{where}: patterns hold more than {MAX_PATTERN_CHARS} characters; split the rule")
    return patterns


def _confidence_from_toml(table: Mapping[str, object], where: str) -> float:
    value = table["confidence"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not MIN_CONFIDENCE <= value <= 1:
        raise RuleError(f"{where}: confidence must be a number from {MIN_CONFIDENCE} to 1, not {value!r}")
    return float(value)


def _choice_from_toml(table: Mapping[str, object], key: str, where: str, choices: tuple[str, ...]) -> str:
    value = table[key]
    if not isinstance(value, str) or value not in choices:
        raise RuleError(f"{where}: {key} must be one of {', '.join(choices)}, not {value!r}")
    return value


def _string_from_toml(
    table: Mapping[str, object], key: str, where: str, shape: re.Pattern[str] | None = None, allowed: str = ""
) -> str:
    value = table[key]
    if not isinstance(value, str) or not value:
        raise RuleError(f"{where}: {key} must be a text in quotes, not {value!r}")
    if shape and not shape.fullmatch(value):
        raise RuleError(f"{where}: {key} may hold only {allowed}, up to 64 of them")
    return value


def _strings_from_toml(table: Mapping[str, object], key: str, where: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RuleError(f'{where}: {key} must be a list of texts, like {key} = ["..."], not {value!r}')
    return tuple(value)


def _refuse_unknown_keys(table: Mapping[str, object], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            raise RuleError(f"{where}: unknown key {key!r}{_suggested_word(key, known)}; known are {', '.join(known)}")


def _suggested_word(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""
