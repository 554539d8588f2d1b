"""verdicts.jsonl as columns, and what the records of one session, block or client come to together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.metrics import Bools, Floats, ranked
from detection.members.registry import MEMBERS
from detection.scoring.calibration import combined_p_values
from detection.scoring.ensemble import member_shares
from persistence.jsonl import record_files

RULES = "rules"
_FAMILY = {member.name: member.family for member in MEMBERS}
# A rule that is so sure stands where a p-value of this daemon-wide level would give the contract's score the same.
_NOMINAL_ALPHA = 0.001


class _Member(msgspec.Struct):
    score: float | None = None
    p: float | None = None


class _Record(msgspec.Struct):
    line: int
    first_line: int
    last_line: int
    session: str
    closed: bool
    template_id: int
    verdict: str
    score: float
    p: float | None
    flagged: bool
    members: dict[str, _Member]
    time: float | None = None
    incident: Any = None
    opens: bool = False


@dataclass(frozen=True)
class Records:
    """n records in the order of their ids. A p that is missing is nan: that member does not speak of this line.

    `incident` is "" where there is none; `session` names keys, `first_line` tells apart the sessions of one key.
    """

    line: NDArray[np.int64]
    first_line: NDArray[np.int64]
    last_line: NDArray[np.int64]
    time: Floats
    session: NDArray[np.object_]
    closed: Bools
    template_id: NDArray[np.int64]
    verdict: NDArray[np.object_]
    score: Floats
    p: Floats
    flagged: Bools
    incident: NDArray[np.object_]
    opens: Bools
    member_ps: Mapping[str, Floats]
    member_scores: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(self.line)

    @property
    def knows_incidents(self) -> bool:
        return bool(self.opens.any())

    def only(self, mask: Bools) -> "Records":
        parts: dict[str, Any] = {
            name: {member: column[mask] for member, column in value.items()} if isinstance(value, dict) else value[mask]
            for name, value in vars(self).items()
        }
        return Records(**parts)

    def instances(self) -> NDArray[np.object_]:
        """A name for each session: of one key, what came before a silence is another session than what came after."""
        return np.array([f"{key}\n{first}" for key, first in zip(self.session, self.first_line, strict=True)], object)


def read_records(path: Path) -> Records:
    """The records in the file at `path` and in the parts to which the daemon has rotated it."""
    decode = msgspec.json.Decoder(_Record).decode
    records = []
    for part in record_files(path):
        with open(part, "rb") as file:
            records += [decode(line) for line in file]
    return columns_of(records)


def columns_of(records: list[_Record]) -> Records:
    def column(name: str, kind: Any) -> Any:
        return np.array([getattr(record, name) for record in records], dtype=kind)

    names = sorted({name for record in records for name in record.members})
    member_ps = {name: np.full(len(records), np.nan) for name in names}
    member_scores = {name: np.full(len(records), np.nan) for name in names}
    for row, record in enumerate(records):
        for name, member in record.members.items():
            if member.p is not None:
                member_ps[name][row] = member.p
            if member.score is not None:
                member_scores[name][row] = member.score
    if RULES in names:
        confidence = np.clip(member_scores[RULES], 0.0, 1.0 - 1e-9)
        member_ps[RULES] = _NOMINAL_ALPHA * (1.0 - confidence) / confidence
    incidents = ["" if record.incident is None else str(record.incident) for record in records]
    return Records(
        **{name: column(name, np.int64) for name in ("line", "first_line", "last_line", "template_id")},
        time=column("time", np.float64),
        session=column("session", object),
        closed=column("closed", np.bool_),
        verdict=column("verdict", object),
        score=column("score", np.float64),
        p=column("p", np.float64),
        flagged=column("flagged", np.bool_),
        incident=np.array(incidents, dtype=object),
        opens=column("opens", np.bool_),
        member_ps=member_ps,
        member_scores=member_scores,
    )


@dataclass(frozen=True)
class Units:
    """n units, each the sum of its records: flagged if one was, as strange as the strangest.

    `member_ps` are the smallest p, 1 where a member never spoke; `member_strangeness` ranks by them.
    """

    names: NDArray[np.object_]
    flagged: Bools
    strangeness: Floats
    member_ps: Mapping[str, Floats]
    member_strangeness: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(self.names)

    def only(self, mask: Bools) -> "Units":
        return Units(
            names=self.names[mask],
            flagged=self.flagged[mask],
            strangeness=self.strangeness[mask],
            member_ps={name: p[mask] for name, p in self.member_ps.items()},
            member_strangeness={name: each[mask] for name, each in self.member_strangeness.items()},
        )

    def without(self, left_out: str | None = None) -> Floats:
        """Strangeness from the members' p-values alone, one member left out, combined as the daemon does it."""
        names = [name for name in self.member_ps if name != left_out]
        if not names:
            return np.zeros(len(self))
        counts_for = member_shares([_FAMILY.get(name, name) for name in names])
        return combined_p_values(np.stack([self.member_ps[name] for name in names], axis=1), counts_for)


def gather(records: Records, unit_of: NDArray[np.object_], names: Iterable[Any]) -> Units:
    """The units `names`, in that order; `unit_of` names each record's. One that no record speaks of is normal."""
    wanted = np.array(list(names), dtype=object)
    place = {name: i for i, name in enumerate(wanted)}
    at = np.array([place.get(name, -1) for name in unit_of], dtype=np.int64)
    mask = at >= 0
    at, n = at[mask], len(wanted)
    flagged = np.zeros(n, dtype=np.bool_)
    np.logical_or.at(flagged, at, records.flagged[mask])

    def smallest(p: Floats) -> Floats:
        least = np.ones(n)
        np.fmin.at(least, at, p[mask])
        return least

    def largest(score: Floats) -> Floats:
        most = np.full(n, -np.inf)
        np.fmax.at(most, at, score[mask])
        return np.where(np.isfinite(most), most, -1e300)

    member_ps = {name: smallest(p) for name, p in records.member_ps.items()}
    p = smallest(records.p)
    if RULES in member_ps:
        p = np.minimum(p, member_ps[RULES])
    return Units(
        names=wanted,
        flagged=flagged,
        strangeness=ranked(p, largest(records.score)),
        member_ps=member_ps,
        member_strangeness={
            name: ranked(each, largest(records.member_scores[name])) for name, each in member_ps.items()
        },
    )


def incidents(records: Records) -> Bools:
    """The records that open an incident; of a daemon that knows none, every flagged record."""
    return records.flagged & records.opens if records.knows_incidents else records.flagged
