"""The pattern of session keys that the operator may set; a start checks it before there is time for heavy imports."""

from collections.abc import Sequence
from typing import Any

import re2


def compiled_key_pattern(pattern: str) -> Any:
    """A regular expression of RE2 over bytes, which is linear in the line. Raises ValueError with RE2's reason."""
    options = re2.Options()
    options.log_errors = False  # else RE2 prints the error itself, beside ours
    try:
        return re2.compile(pattern.encode(), options)
    except re2.error as exc:
        reason = exc.args[0] if exc.args else exc
        raise ValueError(reason.decode() if isinstance(reason, bytes) else str(reason)) from exc


class KeyPattern:
    """The user's session key: a regular expression with one group, searched in the whole line.

    Raises ValueError when it is none or has another number of groups.
    """

    def __init__(self, pattern: str) -> None:
        try:
            compiled = compiled_key_pattern(pattern)
        except ValueError as exc:
            raise ValueError(f"session key {pattern!r}: {exc}") from exc
        if compiled.groups != 1:
            raise ValueError(f"session key {pattern!r}: wants exactly one group, has {compiled.groups}")
        self._search = compiled.search

    def keys(self, lines: Sequence[bytes]) -> list[bytes]:
        """One key a line, b"" where the pattern does not match."""
        found = map(self._search, lines)
        return [match.group(1) or b"" if match else b"" for match in found]
