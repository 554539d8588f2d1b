"""The online members as one: every call goes to all of them in a loop; nothing else calls one by its name.

If a member raises, the error is a `MemberError` that names it.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

import numpy as np

from detection.columns.state_columns import Columns, State, columns_under, with_prefix
from detection.members.failing_members import blamed_on
from detection.members.fitted_member_view import Bools, Floats
from detection.members.member_interfaces import OnlineMember
from detection.members.parsed_lines import ParsedLines
from detection.members.registry import ONLINE, ONLINE_NAMES

Read = Mapping[str, Any]  # what each member read of some lines, by its name

# Prefixes of columns, and their names in states, which are older than the common interface of members.
_IN_STATES = {
    "online.values.lines": "counters.value_lines",
    "online.values.": "values.",
    "online.sources.": "origins.",
    "vouching.online.sources.": "vouching.counters.",
}


class OnlineMembers:
    """Some or all online members. Scores always have K columns, one for every online member of the registry, in
    order."""

    def __init__(self, members: Mapping[str, OnlineMember[Any]] | None = None) -> None:
        """These members, by name; by default all of them, which know nothing yet."""
        self._members = {member.name: member() for member in ONLINE} if members is None else dict(members)

    def without(self, out: Collection[str]) -> "OnlineMembers":
        """These members without those named in `out`; they are shared, not copied."""
        return OnlineMembers({name: member for name, member in self._members.items() if name not in out})

    @classmethod
    def by_time(cls) -> Self:
        """New ones of those members that depend on the log clock."""
        return cls({member.name: member() for member in ONLINE if member.by_time})

    def with_those_of(self, others: "OnlineMembers") -> "OnlineMembers":
        """These members, with `others` replacing those of the same names."""
        return OnlineMembers(self._members | others._members)

    def read(self, lines: ParsedLines) -> Read:
        """`OnlineMember.read` of each of these members. Later calls about these lines go only to members in the
        result."""
        read: dict[str, Any] = {}
        for name, member in self._members.items():
            with blamed_on(name):
                read[name] = member.read(lines)
        return read

    def score(self, read: Read, rows: slice, clock: Floats) -> Floats:
        """`OnlineMember.score` of the members in `read`, float64 [n, K]; columns of the others are 0."""
        return self._scores(read, len(clock), lambda member, mine: member.score(mine, rows, clock))

    def observe(self, read: Read, rows: slice, clock: Floats) -> Floats:
        """`OnlineMember.observe` of the members in `read`, float64 [n, K]; columns of the others are 0."""
        return self._scores(read, len(clock), lambda member, mine: member.observe(mine, rows, clock))

    def _scores(self, read: Read, n: int, score: Callable[[OnlineMember[Any], Any], Floats]) -> Floats:
        scores = np.zeros((n, len(ONLINE_NAMES)))
        for name, mine in read.items():
            with blamed_on(name):
                scores[:, ONLINE_NAMES.index(name)] = score(self._members[name], mine)
        return scores

    def learn(self, read: Read, clean: Bools) -> None:
        """`OnlineMember.learn` of the members in `read`."""
        for name, mine in read.items():
            with blamed_on(name):
                self._members[name].learn(mine, clean)

    def explain(self, read: Read, row: int, client: bytes, clock: float | None = None) -> dict[str, Any]:
        """The fields of `OnlineMember.explain` of all these members. `read` is {} where there is no line."""
        found: dict[str, Any] = {}
        for name, member in self._members.items():
            with blamed_on(name):
                found |= member.explain(read.get(name), row, client, clock)
        return found

    @property
    def evicted(self) -> int:
        """The number of entries that these members have evicted."""
        return sum(member.evicted for member in self._members.values())

    def export(self) -> State:
        """A copy of the members' state, as columns "<name>.<column>"."""
        state: State = {}
        for name, member in self._members.items():
            state |= with_prefix(name, member.export())
        return state

    @classmethod
    def load(cls, columns: Columns) -> Self:
        """The inverse of `export`."""
        each = {member: columns_under(member.name, columns) for member in ONLINE}
        return cls({member.name: member.load(mine) for member, mine in each.items() if mine})


def online_columns_as_in_states(columns: Columns) -> State:
    """`columns` of all parts, renamed as in states."""
    return _with_prefixes_renamed(columns, _IN_STATES)


def online_columns_from_states(state: Columns) -> State:
    """The inverse of `online_columns_as_in_states`."""
    return _with_prefixes_renamed(state, {theirs: mine for mine, theirs in _IN_STATES.items()})


def _with_prefixes_renamed(columns: Columns, prefixes: Mapping[str, str]) -> State:
    renamed: State = {}
    for name, value in columns.items():
        old = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        renamed[prefixes.get(old, "") + name[len(old) :]] = value
    return renamed
