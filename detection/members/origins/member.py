"""The member `sources`: the activity of one client over time (see `source_counters` beside it).

Every line is counted when it is scored, clean or not: an uncounted flood would not be found. Usual activity is learned
from all clients, each with little weight (`background`), so there is nothing to learn afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from detection.columns.state_columns import Columns, State
from detection.members.fitted_member_view import Bools, Floats
from detection.members.member_interfaces import Cause, OnlineMember
from detection.members.origins.line_features import failures_of, resources_of
from detection.members.origins.source_counters import SourceCounters
from detection.members.parsed_lines import ParsedLines


@dataclass(frozen=True, slots=True)
class OriginsRead:
    """The client of each line, whether the line reports a failure, and a hash of the requested resource."""

    clients: Sequence[bytes]
    failures: Bools
    resources: NDArray[np.uint64]


class Origins(OnlineMember[OriginsRead]):
    name: ClassVar[str] = "sources"
    family: ClassVar[str] = "sources"
    in_nats: ClassVar[bool] = True
    cause: ClassVar[Cause] = "source"
    by_time: ClassVar[bool] = True

    def __init__(self) -> None:
        self._counters = SourceCounters()

    @property
    def evicted(self) -> int:
        return self._counters.evicted

    def read(self, lines: ParsedLines) -> OriginsRead:
        count = len(lines.ids)
        read = OriginsRead(lines.origins, np.zeros(count, np.bool_), np.zeros(count, np.uint64))
        for kind in lines.kinds:
            read.failures[kind.at] = failures_of(kind.fields)
            read.resources[kind.at] = resources_of(kind.fields.contents)
        return read

    def score(self, read: OriginsRead, rows: slice, clock: Floats) -> Floats:
        return self._counters.peek(read.clients[rows], clock, read.failures[rows], read.resources[rows])

    def observe(self, read: OriginsRead, rows: slice, clock: Floats) -> Floats:
        return self._counters.observe(read.clients[rows], clock, read.failures[rows], read.resources[rows])

    def learn(self, read: OriginsRead, clean: Bools) -> None:
        """Does nothing: `observe` has counted the lines."""

    def explain(self, read: OriginsRead | None, row: int, client: bytes, clock: float | None) -> dict[str, Any]:
        """The field `source`: [{name, value, usual, nats}], the client's present counters, the most unusual first."""
        return {
            "source": [
                {"name": counter.name, "value": counter.value, "usual": counter.usual, "nats": counter.nats}
                for counter in self._counters.explain(client, clock)
            ]
        }

    def export(self) -> State:
        return self._counters.export()

    @classmethod
    def load(cls, columns: Columns) -> Self:
        member = cls()
        member._counters = SourceCounters.load(columns)
        return member
