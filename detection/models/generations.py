"""The generations of models: which took effect, which were refused and why. Facts for the operator.

State: `entries`, a uint8 column of JSON (a list of `Generation`, oldest first, at most `KEPT`), and `refused`, how
many were since the state began.
"""

from typing import Any

import msgspec
import numpy as np

from detection.columns.state import Columns, State, array, scalar

KEPT = 64


class Generation(msgspec.Struct, frozen=True):
    """`line` is the last line when it took effect, for the last time, or was refused; `reason` is why it was."""

    generation: int
    name: str
    line: int
    members: tuple[str, ...] = ()
    promoted: bool = True
    reason: str | None = None


class Generations:
    def __init__(self) -> None:
        self.refused = 0
        self._entries: dict[str, Generation] = {}  # by file name, in the order of what was last said of it

    def took_effect(self, generation: int, name: str, line: int, members: tuple[str, ...]) -> None:
        """Also when it is an old one that takes effect again."""
        self._add(Generation(generation, name, line, members))

    def was_refused(self, generation: int, name: str, line: int, reason: str) -> None:
        self.refused += 1
        self._add(Generation(generation, name, line, promoted=False, reason=reason))

    @property
    def refusal(self) -> str:
        """Why the last model that came does not take effect, "" when it does."""
        last = next(reversed(self._entries.values()), None)
        return "" if last is None else last.reason or ""

    def listing(self, in_force: str) -> list[dict[str, Any]]:
        """Newest generation first; `in_force` is the name of the file that is, "" when none is."""
        entries = sorted(self._entries.values(), key=lambda entry: (entry.generation, entry.name), reverse=True)
        return [
            {**msgspec.structs.asdict(entry), "members": list(entry.members), "in_force": entry.name == in_force}
            for entry in entries
        ]

    def _add(self, entry: Generation) -> None:
        self._entries.pop(entry.name, None)
        self._entries[entry.name] = entry
        if len(self._entries) > KEPT:
            del self._entries[next(iter(self._entries))]

    def export(self) -> State:
        texts = msgspec.json.encode(list(self._entries.values()))
        return {"entries": np.frombuffer(texts, dtype=np.uint8).copy(), "refused": self.refused}

    @classmethod
    def load(cls, columns: Columns) -> "Generations":
        """Raises `msgspec.DecodeError` (a ValueError) when the entries are none."""
        generations = cls()
        texts = array(columns, "entries").tobytes()
        generations._entries = {entry.name: entry for entry in msgspec.json.decode(texts, type=list[Generation])}
        generations.refused = scalar(columns, "refused", int)
        return generations
