"""Numbers, times and texts as vigilctl prints them; colour only on a terminal.

Text that may come from a log line goes through `printable`, so that no log line can control the terminal.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, TextIO

COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34"}
MEMBERS = {"rule_based": "rules", "isolation_forest": "isolation forest", "transformer": "transformer"}


class Style:
    """Colours text for `stream`, or leaves it plain: that is decided once."""

    def __init__(self, stream: TextIO) -> None:
        self._on = stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def __call__(self, text: str, *colours: str) -> str:
        if not self._on or not colours:
            return text
        return f"\x1b[{';'.join(COLOURS[colour] for colour in colours)}m{text}\x1b[0m"


def printable(text: Any) -> str:
    """`text` with control characters, and whatever else does not print, escaped."""
    return "".join(char if char.isprintable() else _escaped_character(char) for char in str(text))


def _escaped_character(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte that was not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def size_text(count: float) -> str:
    """A number of bytes, such as 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def time_text(moment: Any) -> str:
    """Epoch seconds as local time; text as it is; "-" for neither."""
    if isinstance(moment, (int, float)):
        return datetime.fromtimestamp(moment).isoformat(" ", "seconds")
    return printable(moment) if moment else "-"


def duration_text(seconds: float) -> str:
    """Seconds as s, min, h or d."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} d"


def count_text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else printable(value)


def score_text(value: Any) -> str:
    """A score or a p-value with two digits; "-" when absent."""
    if not isinstance(value, (int, float)):
        return "-"
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.2f}"


def threshold_text(value: Any) -> str:
    """A member's threshold; "none" if no score of that member alone is a reason to flag."""
    return "none" if value is None else score_text(value)


def member_name(name: str) -> str:
    return MEMBERS.get(name) or printable(name).replace("_", " ")


def print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")


def show_answer(answer: Any, as_json: bool, human: Callable[[], object]) -> None:
    """Print `answer` as one line of JSON, or by calling `human`."""
    if as_json:
        print(json.dumps(answer))
    else:
        human()
