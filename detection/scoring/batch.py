"""The input and the output of judging, as columns: a batch of lines, and what each did to its session.

A *row* is a line or the closing of a session by silence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from detection.members.fitted_member_view import Bools, Floats, Ints, Standing, View
from detection.members.registry import ONLINE_NAMES
from detection.scoring.ensemble import Judgement


@dataclass(frozen=True, slots=True)
class Batch:
    """n lines as columns. Of each line `clock` is the log clock, non-decreasing; `hit` the confidence of the surest
    rule that matched it, 0 where none did; `online` [n, K] its online scores; `origins` the client, b"" for none."""

    first_line: int
    ids: NDArray[np.int32]
    errors: Bools
    clock: Floats
    hit: Floats
    online: Floats
    origins: Sequence[bytes]

    @classmethod
    def empty(cls, line: int) -> "Batch":
        """No lines; sessions that close now close at `line`."""
        none = np.zeros(0)
        nothing = np.zeros((0, len(ONLINE_NAMES)))
        return cls(line, none.astype(np.int32), none.astype(np.bool_), none, none, nothing, ())


@dataclass(frozen=True, slots=True)
class Closings:
    """Sessions that closed, one row each, with their final p and running maxima (`reached`)."""

    line: Ints  # at which the closing showed
    serial: Ints
    first_line: Ints
    last_line: Ints
    time: Floats
    session: NDArray[np.bytes_]
    p: Floats
    reached: Floats  # [m, M]
    hit: Floats
    verdict: NDArray[np.uint8]  # what the session was flagged as; 0: it was not
    flagged: Bools  # by the closing itself; a session flagged earlier is not flagged again
    cause: NDArray[np.uint64]  # of that
    kind: NDArray[np.uint8]
    about: NDArray[np.int32]  # the template that the cause is about
    shapes: NDArray[np.uint64]  # [m, 2] see `attribution.Reasons`
    worst_line: Ints

    def and_also(self, other: "Closings") -> "Closings":
        """Both, ordered by line and then by the order in which the sessions began."""
        together = {
            name: np.concatenate((getattr(self, name), getattr(other, name)))
            for name in (column.name for column in fields(Closings))
        }
        order = np.lexsort((together["serial"], together["line"]))
        return Closings(**{name: values[order] for name, values in together.items()})


@dataclass(frozen=True, slots=True)
class LineStates:
    """For each line of a batch, in order, its session as of that line; `reached` are the running maxima."""

    serial: Ints
    first_line: Ints
    session: NDArray[np.bytes_]
    p: Floats
    reached: Floats  # [n, M]
    members: Floats  # [n, M] their p-values
    verdict: NDArray[np.uint8]  # what the session is flagged as by now; 0: it is not
    flagged: Bools  # at this line
    cause: NDArray[np.uint64]  # of that
    kind: NDArray[np.uint8]
    about: NDArray[np.int32]  # the template that the cause is about
    shapes: NDArray[np.uint64]  # [n, 2] see `attribution.Reasons`


@dataclass(frozen=True, slots=True)
class Judged:
    """A batch judged: its lines, the closings in it, and for explanations what the members saw."""

    states: LineStates
    closings: Closings
    view: View
    standing: Standing
    judgement: Judgement
    row_of_line: Ints
    row_of_serial: dict[int, int]  # the closing rows, by their sessions
