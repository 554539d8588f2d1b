"""The member `values`: how unusual the spelling of a request's parameter values is (see `character_model` beside it).

It learns from the values of clean lines. It scores lines only once FEWEST_LINES lines had values, since every value is
unusual at first.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from detection.columns.state_columns import Columns, State, scalar_column
from detection.formats.text import shown_text
from detection.members.fitted_member_view import Bools, Floats
from detection.members.member_interfaces import Cause, OnlineMember
from detection.members.parameter_values.character_model import ValueModel, Values, values_of
from detection.members.parsed_lines import ParsedLines

FEWEST_LINES = 500  # with values

Read = list[tuple[NDArray[np.int64], Values]]  # which lines, and their values


class ParameterValues(OnlineMember[Read]):
    name: ClassVar[str] = "values"
    family: ClassVar[str] = "values"
    often_silent: ClassVar[bool] = True
    cause: ClassVar[Cause] = "value"

    def __init__(self) -> None:
        self._model = ValueModel()
        self._lines = 0  # that had values, clean or not

    def read(self, lines: ParsedLines) -> Read:
        return [(kind.at, values_of(kind.targets, kind.web)) for kind in lines.kinds if kind.web.any()]

    def score(self, read: Read, rows: slice, clock: Floats) -> Floats:
        scores = np.zeros(len(clock))
        if self._lines >= FEWEST_LINES:
            for at, values in _values_within_rows(read, rows):
                scores[at - rows.start] = self._model.scores(values, len(at))
        return scores

    def learn(self, read: Read, clean: Bools) -> None:
        for at, values in read:
            self._model.learn(values, clean[at])
            self._lines += len(np.unique(values.lines))

    def explain(self, read: Read | None, row: int, client: bytes, clock: float | None) -> dict[str, Any]:
        """The field `value`: {text, start, end, characters, score}, the most unusual value of the line and where in
        it."""
        if read is None or self._lines < FEWEST_LINES:
            return {}
        for _, values in _values_within_rows(read, slice(row, row + 1)):
            if (odd := self._model.explain(values, 0)) is not None:
                return {
                    "value": {
                        "text": shown_text(odd.value),
                        "start": odd.start,
                        "end": odd.end,
                        "characters": shown_text(odd.characters),
                        "score": odd.score,
                    }
                }
        return {}

    def export(self) -> State:
        return {**self._model.export(), "lines": self._lines}

    @classmethod
    def load(cls, columns: Columns) -> Self:
        member = cls()
        member._model = ValueModel.load(columns)
        member._lines = scalar_column(columns, "lines", int)
        return member


def _values_within_rows(read: Read, rows: slice) -> Iterator[tuple[NDArray[np.int64], Values]]:
    """The lines within `rows`, and their values."""
    for at, values in read:
        low, high = np.searchsorted(at, [rows.start, rows.stop]).tolist()
        if low < high:
            yield at[low:high], values.of_lines(low, high)
