"""The list of model generations for the operator: which took effect, which were refused and why.

State: `entries`, a uint8 column of JSON (a list of `Generation`, oldest first, at most `KEPT`), and `refused`, the
number of refusals since the state began.
"""

from typing import Any

import msgspec
import numpy as np

from detection.columns.state_columns import Columns, State, array_column, scalar_column

KEPT = 64


class Generation(msgspec.Struct, frozen=True):
    """`line` is the last log line when it was refused or last took effect; `reason` is why it was refused."""

    generation: int
    name: str
    line: int
    members: tuple[str, ...] = ()
    promoted: bool = True
    reason: str | None = None


class Generations:
    """The list, a part of the state; `refused` counts refusals since the state began."""

    def __init__(self) -> None:
        self.refused = 0
        self._entries: dict[str, Generation] = {}  # by file name, the one that changed last at the end

    def took_effect(self, generation: int, name: str, line: int, members: tuple[str, ...]) -> None:
        """Note that it took effect, also if it is an earlier one that takes effect again."""
        self._add_generation(Generation(generation, name, line, members))

    def was_refused(self, generation: int, name: str, line: int, reason: str) -> None:
        self.refused += 1
        self._add_generation(Generation(generation, name, line, promoted=False, reason=reason))

    @property
    def refusal(self) -> str:
        """Why the last model was refused, "" if it took effect."""
        last = next(reversed(self._entries.values()), None)
        return "" if last is None else last.reason or ""

    def listing(self, in_force: str) -> list[dict[str, Any]]:
        """JSON-ready, newest generation first; `in_force` is the file name of the model in force, "" if there is
        none."""
        entries = sorted(self._entries.values(), key=lambda entry: (entry.generation, entry.name), reverse=True)
        return [
            {**msgspec.structs.asdict(entry), "members": list(entry.members), "in_force": entry.name == in_force}
            for entry in entries
        ]

    def _add_generation(self, entry: Generation) -> None:
        self._entries.pop(entry.name, None)
        self._entries[entry.name] = entry
        if len(self._entries) > KEPT:
            del self._entries[next(iter(self._entries))]

    def export(self) -> State:
        texts = msgspec.json.encode(list(self._entries.values()))
        return {"entries": np.frombuffer(texts, dtype=np.uint8).copy(), "refused": self.refused}

    @classmethod
    def load(cls, columns: Columns) -> "Generations":
        """The inverse of `export`. Raises `msgspec.DecodeError` (a ValueError) if `entries` is not a list of
        generations."""
        generations = cls()
        texts = array_column(columns, "entries").tobytes()
        generations._entries = {entry.name: entry for entry in msgspec.json.decode(texts, type=list[Generation])}
        generations.refused = scalar_column(columns, "refused", int)
        return generations
