"""The online members together: what is asked of all of them is asked here, and nowhere of one by name.

A member that raises is a `MemberError` that names it.
"""

from collections.abc import Collection, Mapping
from typing import Any, Self

import numpy as np

from detection.columns.state import Columns, State, joined, part
from detection.members.failing import blamed_on
from detection.members.member import OnlineMember
from detection.members.parsed_lines import ParsedLines
from detection.members.registry import ONLINE, ONLINE_NAMES
from detection.members.view import Bools, Floats

Read = Mapping[str, Any]  # what each member read of some lines, by its name

# Prefixes of columns, and what they are called in states: these had their names before members had one interface.
_IN_STATES = {
    "online.values.lines": "counters.value_lines",
    "online.values.": "values.",
    "online.sources.": "origins.",
    "vouching.online.sources.": "vouching.counters.",
}


class OnlineMembers:
    """Some or all online members. Columns of scores are those of all (K, in the order of the registry)."""

    def __init__(self, members: Mapping[str, OnlineMember[Any]] | None = None) -> None:
        """These members, by name; by default all of them, which know nothing yet."""
        self._members = {member.name: member() for member in ONLINE} if members is None else dict(members)

    def without(self, out: Collection[str]) -> "OnlineMembers":
        """The same members, but those named in `out`."""
        return OnlineMembers({name: member for name, member in self._members.items() if name not in out})

    @classmethod
    def by_time(cls) -> Self:
        """Those that go by the log clock, and know nothing yet."""
        return cls({member.name: member() for member in ONLINE if member.by_time})

    def with_those_of(self, others: "OnlineMembers") -> "OnlineMembers":
        """These members, and the `others` in place of those of the same names."""
        return OnlineMembers(self._members | others._members)

    def read(self, lines: ParsedLines) -> Read:
        """What these members read of the lines. Who has read nothing of them is not asked about them."""
        read: dict[str, Any] = {}
        for name, member in self._members.items():
            with blamed_on(name):
                read[name] = member.read(lines)
        return read

    def score(self, read: Read, rows: slice, clock: Floats) -> Floats:
        """As `OnlineMember.score`, of all members: float64 [n, K]; 0 of who has read nothing."""
        scores = np.zeros((len(clock), len(ONLINE_NAMES)))
        for name, mine in read.items():
            with blamed_on(name):
                scores[:, ONLINE_NAMES.index(name)] = self._members[name].score(mine, rows, clock)
        return scores

    def observe(self, read: Read, rows: slice, clock: Floats) -> Floats:
        """As `OnlineMember.observe`, likewise."""
        scores = np.zeros((len(clock), len(ONLINE_NAMES)))
        for name, mine in read.items():
            with blamed_on(name):
                scores[:, ONLINE_NAMES.index(name)] = self._members[name].observe(mine, rows, clock)
        return scores

    def learn(self, read: Read, clean: Bools) -> None:
        """As `OnlineMember.learn`."""
        for name, mine in read.items():
            with blamed_on(name):
                self._members[name].learn(mine, clean)

    def explain(self, read: Read, row: int, client: bytes, clock: float | None = None) -> dict[str, Any]:
        """As `OnlineMember.explain`, of these members. `read` is {} where there is no line."""
        found: dict[str, Any] = {}
        for name, member in self._members.items():
            with blamed_on(name):
                found |= member.explain(read.get(name), row, client, clock)
        return found

    @property
    def evicted(self) -> int:
        """How much these members have forgotten to make room."""
        return sum(member.evicted for member in self._members.values())

    def export(self) -> State:
        """A copy of all they know, as columns "<name>.<column>"."""
        state: State = {}
        for name, member in self._members.items():
            state |= joined(name, member.export())
        return state

    @classmethod
    def load(cls, columns: Columns) -> Self:
        """The members that `export` was asked of."""
        each = {member: part(member.name, columns) for member in ONLINE}
        return cls({member.name: member.load(mine) for member, mine in each.items() if mine})


def as_in_states(columns: Columns) -> State:
    """`columns` of all parts under the names that states have them by."""
    return _renamed(columns, _IN_STATES)


def from_states(state: Columns) -> State:
    """The inverse of `as_in_states`."""
    return _renamed(state, {theirs: mine for mine, theirs in _IN_STATES.items()})


def _renamed(columns: Columns, prefixes: Mapping[str, str]) -> State:
    renamed: State = {}
    for name, value in columns.items():
        old = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        renamed[prefixes.get(old, "") + name[len(old) :]] = value
    return renamed
