"""A toy of an online member: by how much a line is longer than any clean one before it."""

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from detection.columns.state_columns import Columns, State, scalar_column
from detection.members.fitted_member_view import Bools, Floats
from detection.members.member_interfaces import OnlineMember
from detection.members.parsed_lines import ParsedLines


class Length(OnlineMember[NDArray[np.int64]]):
    name: ClassVar[str] = "length"
    family: ClassVar[str] = "length"

    def __init__(self) -> None:
        self._longest = 0

    def read(self, lines: ParsedLines) -> NDArray[np.int64]:
        lengths = np.zeros(len(lines.ids), np.int64)
        for kind in lines.kinds:
            lengths[kind.at] = [len(contents) for contents in kind.fields.contents]
        return lengths

    def score(self, read: NDArray[np.int64], rows: slice, clock: Floats) -> Floats:
        return np.maximum(read[rows] - self._longest, 0).astype(np.float64)

    def learn(self, read: NDArray[np.int64], clean: Bools) -> None:
        self._longest = max(self._longest, int(read[clean].max(initial=0)))

    def explain(self, read: NDArray[np.int64] | None, row: int, client: bytes, clock: float | None) -> dict[str, Any]:
        return {} if read is None else {"length": {"characters": int(read[row]), "longest": self._longest}}

    def export(self) -> State:
        return {"longest": self._longest}

    @classmethod
    def load(cls, columns: Columns) -> Self:
        member = cls()
        member._longest = scalar_column(columns, "longest", int)
        return member
