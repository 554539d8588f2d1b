"""Withdrawn members: the list of them, and open sessions judged again without them.

They failed, and do not judge until a frame brings them back.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec
import numpy as np

from detection.columns.state_columns import Columns, State, array_column
from detection.members.failing_members import Withdrawn
from detection.members.registry import NAMES
from detection.scoring.ensemble import Ensemble, members_resting
from detection.sessions.session_table import SessionTable


class WithdrawnMembers(Collection[str]):
    """Their names, a part of the state; `entries` says since when and why.

    State: `entries`, a uint8 column of JSON (a list of `Withdrawn`, in the order in which members score).
    """

    def __init__(self) -> None:
        self._entries: dict[str, Withdrawn] = {}

    def __contains__(self, member: object) -> bool:
        return member in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> list[Withdrawn]:
        """In the order in which members score."""
        return [self._entries[name] for name in NAMES if name in self._entries]

    def withdraw(self, seq: int, without: Mapping[str, str], members: Collection[str]) -> None:
        """From frame `seq` on these do not judge, by name and with the reason, nor do members that use their scores.

        `members` are those that exist now. Others are ignored: another model may have had more.
        """
        out = {name: reason for name, reason in without.items() if name in members}
        out |= {name: why for name, why in members_resting({*self, *out}).items() if name in members}
        self._entries |= {name: Withdrawn(name, seq, reason) for name, reason in out.items()}

    def bring_back(self, members: Iterable[str]) -> None:
        """Those of `members` that are withdrawn judge again."""
        for name in members:
            self._entries.pop(name, None)

    def bring_all_back(self) -> None:
        self._entries.clear()

    def export(self) -> State:
        return {"entries": np.frombuffer(msgspec.json.encode(self.entries()), dtype=np.uint8).copy()}

    @classmethod
    def load(cls, columns: Columns) -> "WithdrawnMembers":
        """Raises `msgspec.DecodeError` (a ValueError)."""
        withdrawn = cls()
        entries = msgspec.json.decode(array_column(columns, "entries").tobytes(), type=list[Withdrawn])
        withdrawn._entries = {each.member: each for each in entries}
        return withdrawn


def judge_anew(sessions: SessionTable, ensemble: Ensemble | None, withdrawn: Collection[str]) -> None:
    """Judge open sessions again by the members that judge now.

    The result is as if those `withdrawn` had not been ready when the sessions began; a member that is brought back has
    no score for them yet. What known causes explained of a session, they still explain. With rules alone it is as after
    a change of models. What was flagged stays flagged.
    """
    table = sessions.column
    for name in withdrawn:
        table["reached"][:, NAMES.index(name)] = 0.0
    judged = np.flatnonzero(sessions.open & ~np.isnan(table["p"]))
    if ensemble is None:
        forget_judgements(sessions)
    elif len(judged):
        judgement = ensemble.judge(table["reached"][judged])
        table["strangeness"][judged], table["p"][judged] = judgement.strangeness, judgement.p
        excused = table["excused"][judged]
        table["excused"][judged] = np.where(excused > 0.0, np.minimum(excused, judgement.p), 0.0)


def forget_judgements(sessions: SessionTable) -> None:
    """Reset what another model measured, in every open session."""
    for name in ("reached", "strangeness", "muted", "excused", "novel"):
        sessions.column[name][:] = 0
    sessions.column["p"][:] = np.nan
