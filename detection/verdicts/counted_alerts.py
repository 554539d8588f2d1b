"""Thinning: which alerts of an incident get a record of their own, and the counting records that stand for the others.

Of each incident the first ten alerts are recorded in full, then the 100th, the 1,000th and so on: those that `vigilctl
tail` announces. All others are *counted*: they are noted in the incident's count under way, of which an incident has at
most one. It ends, and becomes a counting record, with the incident's next alert in full, when it is as large as it may
be (`MAX_RUNS`, `MAX_CAUSES`), when the incident is over or leaves the table, and at a flush. So at any time

    flagged = recorded in full + counted in counting records + counted in counts under way

A count keeps the id of every alert that it stands for, as runs of ids that follow each other, by cause: the answer to
an alert holds for its cause, and an incident of one source may have many.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.causes.fingerprints import KINDS, cause_as_text, cause_fields, cause_template
from detection.scoring.verdict_and_score import VERDICTS

FULL_FIRST = 10
MAX_RUNS = 32  # of ids in one count
MAX_CAUSES = 8
_POWERS = 10 ** np.arange(19, dtype=np.int64)

Id = tuple[int, int]  # line and k
Key = tuple[int, int, int, int]


def alert_id(line: int, k: int) -> str:
    """As records and the API name it."""
    return f"{line}.{k}" if k else f"{line}"


def recorded_in_full(numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which alerts get a record of their own, by their numbers in their incidents (from 1)."""
    full: NDArray[np.bool_] = (numbers <= FULL_FIRST) | np.isin(numbers, _POWERS)
    return full


@dataclass(frozen=True, slots=True)
class AlertColumns:
    """Alerts in the order of their ids, as a count notes them; all columns [m], `shapes` [m, 2]."""

    lines: NDArray[np.int64]
    ks: NDArray[np.int64]
    about: NDArray[np.int32]
    shapes: NDArray[np.uint64]
    verdicts: NDArray[np.uint8]

    def heads(self) -> NDArray[np.int64]:
        """Where runs begin whose ids follow each other and whose other columns are equal."""
        lines, ks, begins = self.lines, self.ks, np.ones(len(self.lines), dtype=np.bool_)
        next_line = (lines[1:] == lines[:-1] + 1) & (ks[1:] == 0) & (ks[:-1] == 0)
        next_k = (lines[1:] == lines[:-1]) & (ks[1:] == ks[:-1] + 1) & (ks[:-1] > 0)
        same = (self.about[1:] == self.about[:-1]) & (self.verdicts[1:] == self.verdicts[:-1])
        begins[1:] = ~((next_line | next_k) & same & (self.shapes[1:] == self.shapes[:-1]).all(axis=1))
        return np.flatnonzero(begins)

    def id(self, row: int) -> Id:
        return int(self.lines[row]), int(self.ks[row])


@dataclass(slots=True)
class CountedGroup:
    """Counted alerts of one cause. `runs` are of ids that follow each other: the first and the last of each."""

    cause: int
    kind: int
    about: int
    shape: int
    open_shape: int
    verdict: int  # the gravest
    what: str
    runs: list[tuple[Id, Id]] = field(default_factory=list)

    @property
    def key(self) -> Key:
        return self.cause, self.about, self.shape, self.open_shape

    def add(self, first: Id, last: Id, verdict: int) -> None:
        """Note the alerts from `first` to `last`, whose ids follow each other."""
        self.verdict = max(self.verdict, verdict)
        if self.runs and self.extends(first):
            first = self.runs.pop()[0]
        self.runs.append((first, last))

    def extends(self, first: Id) -> bool:
        """Whether a run that begins with `first` goes on from the last one."""
        line, k = self.runs[-1][1]
        return first == ((line, k + 1) if k else (line + 1, 0))

    def holds(self, alert: Id) -> bool:
        # A run is either of lines, or of sessions that closed at one line.
        return any(a <= alert <= b and (alert[1] > 0) == (a[1] > 0) for a, b in self.runs)

    def as_dict(self) -> dict[str, Any]:
        return {
            "ids": ",".join(alert_id(*a) if a == b else f"{alert_id(*a)}-{alert_id(*b)}" for a, b in self.runs),
            "verdict": VERDICTS[self.verdict],
            **cause_fields(self.cause, self.kind, self.about, (self.shape, self.open_shape)),
            "what": self.what,
        }


@dataclass(slots=True)
class CountUnderWay:
    """The alerts that a counting record is to stand for. `number` is that of the last one in its incident, `time` its
    log time."""

    groups: dict[Key, CountedGroup] = field(default_factory=dict)
    number: int = 0
    time: float = 0.0

    def takes(self, key: Key, first: Id) -> bool:
        """Whether there is room for a run of alerts of that group, beginning with `first`."""
        group = self.groups.get(key)
        if group is not None and group.extends(first):
            return True
        room = sum(len(each.runs) for each in self.groups.values()) < MAX_RUNS
        return room and (group is not None or len(self.groups) < MAX_CAUSES)

    def alerts(self) -> int:
        return sum(_length_of_run(*run) for group in self.groups.values() for run in group.runs)

    def ends(self) -> tuple[Id, Id]:
        """The ids of the first and of the last alert."""
        runs = [run for group in self.groups.values() for run in group.runs]
        return min(first for first, _ in runs), max(last for _, last in runs)

    def group_of(self, alert: Id) -> CountedGroup | None:
        return next((group for group in self.groups.values() if group.holds(alert)), None)


@dataclass(frozen=True, slots=True)
class CountedRecord:
    """A count of `incident` (its id), which is about `cause` and `what` and may be in the digest."""

    incident: Id
    cause: int
    kind: int
    what: str
    digest: bool
    count: CountUnderWay

    def record(self, record_id: str | None, generation: int) -> dict[str, Any]:
        """The JSON object. It has every field of an alert's record, empty where many alerts have no common value,
        and `stands_for`, which no other record has. `record_id` is None while it is under way."""
        first, last = self.count.ends()
        groups = list(self.count.groups.values())
        about = cause_template(groups[0].kind, groups[0].about) if len(groups) == 1 else None
        return {
            "id": record_id,
            "line": last[0],
            "first_line": first[0],
            "last_line": last[0],
            "time": self.count.time,
            "session": "",
            "closed": False,
            "template_id": about or 0,
            "template": "",
            "verdict": VERDICTS[max(group.verdict for group in groups)],
            "score": None,
            "p": None,
            "flagged": True,
            "members": {},
            "attack_types": [],
            "rules": [],
            "model_generation": generation,
            "text": "",
            "incident": alert_id(*self.incident),
            "incident_count": self.count.number,
            "digest": self.digest,
            "opens": False,
            "cause": cause_as_text(self.cause),
            "cause_kind": KINDS[self.kind],
            "cause_template": about,
            "what": self.what,
            "stands_for": self.count.alerts(),
            "first_id": alert_id(*first),
            "last_id": alert_id(*last),
            "alerts": [group.as_dict() for group in groups],
        }


def _length_of_run(first: Id, last: Id) -> int:
    return last[0] - first[0] + last[1] - first[1] + 1
