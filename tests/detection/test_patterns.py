"""No pattern of ours depends on what Python 3.11.2, which Debian 12 has, gets wrong.

There a possessive quantifier around a group that backtracks matches the wrong text (CPython gh-106052): such a
group is written as an atomic one, `(?>(?:...)*)`. A possessive quantifier of a single character is another instruction
of the engine, which has no group to return into, and may stay.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.detection.patterns import PACKAGES, ROOT

_parser: Any = re._parser  # type: ignore[attr-defined]
_constants: Any = re._constants  # type: ignore[attr-defined]


def possessive_groups(pattern: str | bytes, flags: int = 0) -> int:
    """How many possessive quantifiers stand behind more than a single character or set."""
    single = (_constants.IN, _constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY)
    return sum(
        code is _constants.POSSESSIVE_REPEAT and not (len(argument[2]) == 1 and argument[2][0][0] in single)
        for code, argument in _codes(_parser.parse(pattern, flags & ~re.UNICODE))
    )


def _codes(parsed: Any) -> Iterator[tuple[Any, Any]]:
    """Every (operation, argument) of a parsed pattern, the inner ones too."""
    if isinstance(parsed, _parser.SubPattern):
        yield from parsed.data
        parsed = parsed.data
    if isinstance(parsed, list | tuple):
        for part in parsed:
            yield from _codes(part)


def compiled_at_import() -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.detection.patterns"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_no_compiled_pattern_has_a_possessive_group() -> None:
    found = compiled_at_import()
    assert {"detection/formats/access.py", "detection/templates/masks.py", "persistence/high_water_mark.py"} <= {
        each["where"].partition(":")[0] for each in found
    }
    wrong = {
        each["where"]: each["text"]
        for each in found
        if possessive_groups(each["text"].encode("latin-1") if each["bytes"] else each["text"], each["flags"])
    }
    assert not wrong


def test_no_pattern_in_a_function_has_a_possessive_group() -> None:
    seen = 0
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args):
                continue
            if isinstance(call.func.value, ast.Name) and call.func.value.id == "re":
                first = call.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str | bytes):
                    seen += 1
                    assert not possessive_groups(first.value), f"{path}:{call.lineno}"
    assert seen


def test_the_groups_that_were_read_wrong_are_found() -> None:
    for pattern in (
        rb"(?:\S++ (?=\d+ ))?+(\S++)",  # an access line's client was `-`
        rb'"([^"\\\n]*+(?:\\.[^"\\\n]*+)*+)"',
        rb"(?:a|(b(?:cd)++))",
        rb"(?=(?:ab)*+)",
        rb"(a)?+",
    ):
        assert possessive_groups(pattern), pattern
    for pattern in (rb"\S++ [ab]?+a{1,3}+", rb"(?>(?:\S++ (?=\d+ ))?)(\S++)", rb"(?:a+)+"):
        assert not possessive_groups(pattern), pattern


def test_an_atomic_group_is_read_right_where_a_possessive_one_is_not() -> None:
    """The example of the fault. On 3.11.2 the possessive form gives `b`."""
    assert re.findall(rb"^(?>(?:\S++ (?=\d+ ))?)(\S++)", b"a b c") == [b"a"]
    assert re.findall(rb"^(?>(?:\S++ (?=\d+ ))?)(\S++)", b"a 1 c") == [b"1"]
