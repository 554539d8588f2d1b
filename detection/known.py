"""Causes that are known: what the operator has answered, and what the stream makes normal by its share.

**Answers.** An operator says of an alert that it is normal, or that it is an anomaly indeed; the answer holds for
the alert's cause (see `detection.causes`) until it is undone. Of several answers to one cause the last one holds;
when it is undone, the one before does. At most `ANSWERS` are kept; the oldest make room, and are counted.

**Admission.** After a deploy most sessions have a shape that was never seen, and they are not malicious. So a
cause that made up `ADMITTED_SHARE` of the last `RING` closed sessions, 25 of 1,000, is admitted as normal. A
young stream needs the same 25 sessions, not a share of the fewer it has seen: 5 of its first 200 would be 2.5 %,
too, and anybody can send five sessions. So admission is never easier than it is later. An answer "anomaly"
forbids it, and takes it back. At most `ADMITTED` causes are admitted; those admitted first make room, are counted,
and are admitted again at their next session if they still are that frequent.

Whoever reports closed sessions gives 0 for those that a rule or a source's behaviour was the reason for: being
frequent makes a shape usual, it does not make an attack harmless.

State:

    answers              uint8 [b]     JSON: a list of `Answer`, oldest first
    ring                 uint64 [r]    causes of the last r <= RING closed sessions, 0: none, oldest first
    admitted             uint64 [a]    in the order of admission
    answers_dropped, admissions, admitted_dropped   int, since the state began
"""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from detection.causes import KINDS, clipped, shown
from detection.state import Columns, State

ANSWERS = 10_000
ADMITTED = 4096
RING = 1000
ADMITTED_SHARE = 0.025
NOTE_BYTES = 1000

_NEEDED = round(RING * ADMITTED_SHARE)


class Answer(msgspec.Struct, frozen=True):
    """What the operator said of alert `alert` when the last line was `line`."""

    alert: str
    cause: int
    kind: int
    what: str
    normal: bool
    note: str
    line: int

    def as_dict(self) -> dict[str, Any]:
        """As the API gives it."""
        return {
            "id": self.alert,
            "answer": "normal" if self.normal else "anomaly",
            "kind": KINDS[self.kind],
            "cause": shown(self.cause),
            "what": self.what,
            "note": self.note,
            "line": self.line,
        }


class KnownCauses:
    """`answers_dropped` and `admitted_dropped` made room for others, `admissions` counts causes admitted."""

    def __init__(self, answers: int = ANSWERS, admitted: int = ADMITTED) -> None:
        self.answers_dropped = self.admissions = self.admitted_dropped = 0
        self._capacity = answers, admitted
        self._answers: dict[str, Answer] = {}  # by alert, oldest first
        self._ring = np.zeros(0, dtype=np.uint64)
        self._admitted: dict[int, None] = {}  # in the order of admission
        self._settle()

    # --- answers ------------------------------------------------------------------------------------

    def answer(self, alert_id: str, cause: int, kind: int, what: str, normal: bool, note: str, line: int) -> None:
        """Take effect at once. Another answer to the same alert replaces the one before, and is the last."""
        self._answers.pop(alert_id, None)
        self._answers[alert_id] = Answer(alert_id, cause, kind, clipped(what), normal, clipped(note, NOTE_BYTES), line)
        if len(self._answers) > self._capacity[0]:
            del self._answers[next(iter(self._answers))]
            self.answers_dropped += 1
        self._settle()

    def undo(self, alert_id: str) -> bool:
        """As if it had not been answered; False when it was not. What was admitted meanwhile stays admitted."""
        found = self._answers.pop(alert_id, None) is not None
        self._settle()
        return found

    def answers(self) -> list[Answer]:
        """Oldest first."""
        return list(self._answers.values())

    # --- admission ----------------------------------------------------------------------------------

    def closed(self, causes: NDArray[np.uint64]) -> None:
        """Sessions closed, in this order: for each the cause it was flagged for, or would have been; 0 for none.

        [m]; how sessions are cut into calls does not matter.
        """
        before = self._ring[max(len(self._ring) - RING + 1, 0) :]
        frequent = _frequent(np.concatenate((before, causes)), len(before))
        candidates = [cause for cause in dict.fromkeys(frequent) if cause not in self._bad]
        if len(self._admitted.keys() | candidates) <= self._capacity[1]:
            frequent = candidates  # only where some make room may one come twice
        admissions = self.admissions
        for cause in frequent:
            if cause not in self._bad and cause not in self._admitted:
                self._admit(cause)
        self._ring = np.concatenate((self._ring, causes))[-RING:]
        if admissions != self.admissions:
            self._sort()

    def _admit(self, cause: int) -> None:
        self._admitted[cause] = None
        self.admissions += 1
        if len(self._admitted) > self._capacity[1]:
            del self._admitted[next(iter(self._admitted))]
            self.admitted_dropped += 1

    @property
    def admitted(self) -> int:
        return len(self._admitted)

    # --- questions ----------------------------------------------------------------------------------

    def normal(self, causes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of `causes` [m] are normal, by an answer or by admission."""
        return _among(causes, self._sorted_normal)

    def bad(self, causes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of `causes` [m] the operator called an anomaly."""
        return _among(causes, self._sorted_bad)

    def _settle(self) -> None:
        """Let the answers there are take effect."""
        last = {answer.cause: answer.normal for answer in self._answers.values() if answer.cause}
        self._normal = {cause for cause, normal in last.items() if normal}
        self._bad = {cause for cause, normal in last.items() if not normal}
        for cause in self._bad & self._admitted.keys():
            del self._admitted[cause]
        texts = msgspec.json.encode(self.answers())
        self._encoded = np.frombuffer(texts, dtype=np.uint8)  # once an answer, not once a snapshot
        self._sort()

    def _sort(self) -> None:
        self._sorted_normal = _sorted(self._normal | self._admitted.keys())
        self._sorted_bad = _sorted(self._bad)

    # --- the state as columns -----------------------------------------------------------------------

    def export(self) -> State:
        return {
            "answers": self._encoded.copy(),
            "ring": self._ring.copy(),
            "admitted": np.array(list(self._admitted), dtype=np.uint64),
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    @classmethod
    def load(cls, columns: Columns, answers: int = ANSWERS, admitted: int = ADMITTED) -> "KnownCauses":
        """Raises `msgspec.DecodeError` (a ValueError) when the answers are no list of answers."""
        known = cls(answers, admitted)
        texts = columns["answers"].tobytes()  # type: ignore[union-attr]
        known._answers = {answer.alert: answer for answer in msgspec.json.decode(texts, type=list[Answer])}
        known._ring = np.array(columns["ring"], dtype=np.uint64)
        known._admitted = dict.fromkeys(columns["admitted"].tolist())  # type: ignore[union-attr]
        for name in _COUNTERS:
            setattr(known, name, int(columns[name]))  # type: ignore[arg-type]
        known._settle()
        return known


_COUNTERS = ("answers_dropped", "admissions", "admitted_dropped")


def _frequent(seen: NDArray[np.uint64], old: int) -> list[int]:
    """For each session from `seen[old]` on, in order, its cause, where `_NEEDED` of the last `RING` had that one."""
    at = np.flatnonzero(seen)
    if len(at) < _NEEDED:
        return []
    at = at[np.argsort(seen[at], kind="stable")]
    first, last = at[: len(at) - _NEEDED + 1], at[_NEEDED - 1 :]
    enough = last[(seen[first] == seen[last]) & (last - first < RING) & (last >= old)]
    frequent: list[int] = seen[np.sort(enough)].tolist()
    return frequent


def _sorted(causes: "set[int]") -> NDArray[np.uint64]:
    return np.sort(np.array(list(causes), dtype=np.uint64))


def _among(causes: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(known):
        return np.zeros(len(causes), dtype=np.bool_)
    at = np.minimum(np.searchsorted(known, causes), len(known) - 1)
    found: NDArray[np.bool_] = known[at] == causes
    return found
