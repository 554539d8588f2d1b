"""Known causes: those that the operator has answered, and those that became normal because they are frequent.

**Answers.** The operator answers an alert with "normal" or "anomaly". The answer holds for the alert's cause (see
`detection.causes.fingerprints`) until it is undone. Of several answers to one cause the last one holds; when it is
undone, the one before it does. At most `ANSWERS` are kept; the oldest are dropped and counted. A new template that was
answered "normal" is known to the next model; then a session with it is new by its shape, which to the operator is the
same. So "normal" also holds for the shapes that the alert's session had at that point. It does not hold for other
sessions with that template, and an answer to the shape itself takes precedence.

**Admission.** After a deploy most sessions have a shape that was never seen before, and they are not malicious. So a
cause that occurs in `ADMITTED_SHARE` of the last `RECENT_SESSIONS` sessions, 25 of 1,000, is admitted as normal. It
counts from the line where it occurs, not from the end of the session, or long sessions would raise alerts about a
deploy until they end. It counts once a session, and must come from `ADMITTED_KEYS` different session keys, so that one
client cannot admit itself by repetition (sessions without a key, windows of a stream, count one each). A young stream
needs the same 25 sessions, not a share of the fewer that it has had. An answer "anomaly" forbids admission, and
revokes it. At most `ADMITTED` causes are admitted; the oldest are dropped and counted, and are admitted again if they
are still frequent.

While nothing more is learned from the stream (`admits` is false) only answers have effect.

Causes of rules and of clients' behaviour are never admitted: being frequent makes a shape usual, it does not make an
attack harmless.

State:

    answers              uint8 [b]     JSON: a list of `OperatorAnswer`, oldest first
    ring.cause           uint64 [r]    causes in the last sessions, oldest first; r <= MOST_OCCURRENCES
    ring.place           int64 [r]     the number of sessions that had begun when each occurred
    ring.key             uint64 [r]    a hash of the session's key, 0 if it has none
    admitted             uint64 [a]    in the order of admission
    answers_dropped, admissions, admitted_dropped   int, since the state began
"""

from copy import copy
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from detection.causes.fingerprints import KINDS, cause_as_text, clipped_text, hit_causes
from detection.columns.state_columns import Columns, State, array_column, scalar_column
from detection.frames import FeedbackFrame
from detection.rules.rule_matching import Hits, RuleSet

ANSWERS = 10_000
ADMITTED = 4096
RECENT_SESSIONS = 1000
MOST_OCCURRENCES = 8 * RECENT_SESSIONS
ADMITTED_SHARE = 0.025
ADMITTED_KEYS = 5
NOTE_BYTES = 1000

_NEEDED = round(RECENT_SESSIONS * ADMITTED_SHARE)


class OperatorAnswer(msgspec.Struct, frozen=True):
    """The operator's answer to the alert with the id `alert`, given when the last log line was `line`.

    template  id of the template that `cause` depends on, 0 if on none
    shapes    causes for which "normal" also holds
    """

    alert: str
    cause: int
    kind: int
    what: str
    normal: bool
    note: str
    line: int
    template: int
    shapes: tuple[int, ...]

    @classmethod
    def of(cls, frame: FeedbackFrame, line: int) -> "OperatorAnswer":
        """The answer in `frame`, which is not "undo"."""
        return cls(
            alert=frame.alert,
            cause=frame.cause,
            kind=frame.kind,
            what=frame.what,
            normal=frame.answer == "normal",
            note=frame.note,
            line=line,
            template=frame.template,
            shapes=frame.shapes,
        )

    def as_dict(self) -> dict[str, Any]:
        """As in the API, JSON-ready."""
        return {
            "id": self.alert,
            "answer": "normal" if self.normal else "anomaly",
            "kind": KINDS[self.kind],
            "cause": cause_as_text(self.cause),
            "what": self.what,
            "note": self.note,
            "line": self.line,
        }


class KnownCauses:
    """See the module. `answers_dropped`, `admitted_dropped` and `admissions` count since the state began.

    `admits` follows from the settings and is not part of the state.
    """

    def __init__(self, answers: int = ANSWERS, admitted: int = ADMITTED) -> None:
        self.answers_dropped = self.admissions = self.admitted_dropped = 0
        self.admits = True
        self._capacity = answers, admitted
        self._answers: dict[str, OperatorAnswer] = {}  # by alert, oldest first
        self._cause, self._key = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint64)
        self._place = np.zeros(0, dtype=np.int64)
        self._admitted: dict[int, None] = {}  # in the order of admission
        self._apply_answers()

    # --- answers ------------------------------------------------------------------------------------

    def answer(self, answer: OperatorAnswer) -> None:
        """Add an answer, with `what` and `note` clipped; it has effect at once. It replaces an earlier answer to the
        same alert, and is the last one."""
        self._answers.pop(answer.alert, None)
        self._answers[answer.alert] = msgspec.structs.replace(
            answer, what=clipped_text(answer.what), note=clipped_text(answer.note, NOTE_BYTES)
        )
        if len(self._answers) > self._capacity[0]:
            del self._answers[next(iter(self._answers))]
            self.answers_dropped += 1
        self._apply_answers()

    def undo(self, alert_id: str) -> bool:
        """Remove the answer to an alert; False if there is none. Causes admitted meanwhile stay admitted."""
        found = self._answers.pop(alert_id, None) is not None
        self._apply_answers()
        return found

    def answers(self) -> list[OperatorAnswer]:
        """All answers, oldest first."""
        return list(self._answers.values())

    @property
    def templates(self) -> NDArray[np.int32]:
        """The templates that answers depend on, int32, each once, those of the latest answers first."""
        return self._templates

    # --- admission ----------------------------------------------------------------------------------

    def note_seen_causes(
        self, causes: NDArray[np.uint64], places: NDArray[np.int64], keys: NDArray[np.uint64]
    ) -> set[int]:
        """Note that `causes` [m] occurred, in this order, each for the first time in its session; admit frequent ones.

        `places` [m] (non-decreasing) are the numbers of sessions that had begun by then; `keys` [m] are hashes of the
        sessions' keys, 0 where they have none. Returns the causes that were admitted in the same call in which they
        first occurred: there was never an alert about them.
        """
        at_once: set[int] = set()
        if not len(causes) or not self.admits:
            return at_once
        new, before = np.unique(causes), self._cause
        self._cause = np.concatenate((self._cause, causes))
        self._place = np.concatenate((self._place, places))
        self._key = np.concatenate((self._key, keys))
        recent = np.flatnonzero(self._place > places[-1] - RECENT_SESSIONS)[-MOST_OCCURRENCES:]
        admissions = self.admissions
        among = np.isin(self._cause[recent], new)
        found, counts = np.unique(self._cause[recent][among], return_counts=True)
        for cause in found[counts >= _NEEDED].tolist():
            if cause not in self._bad and cause not in self._admitted and self._seen_under_many_keys(recent, cause):
                self._admit_cause(cause)
                if cause not in self._normal and not np.any(before == cause):
                    at_once.add(cause)
        self._cause, self._place, self._key = self._cause[recent], self._place[recent], self._key[recent]
        if admissions != self.admissions:
            self._sort_known_causes()
        return at_once

    def _seen_under_many_keys(self, recent: NDArray[np.int64], cause: int) -> bool:
        """Whether `cause` was seen lately under enough keys of sessions to be admitted."""
        keys = self._key[recent][self._cause[recent] == cause]
        return len(np.unique(keys[keys > 0])) + int(np.count_nonzero(keys == 0)) >= ADMITTED_KEYS

    def _admit_cause(self, cause: int) -> None:
        self._admitted[cause] = None
        self.admissions += 1
        if len(self._admitted) > self._capacity[1]:
            del self._admitted[next(iter(self._admitted))]
            self.admitted_dropped += 1

    @property
    def admitted(self) -> int:
        return len(self._admitted)

    # --- questions ----------------------------------------------------------------------------------

    def read_only(self) -> "KnownCauses":
        """A copy for queries: `note_seen_causes` does not change it."""
        frozen = copy(self)
        frozen.admits = False
        return frozen

    @property
    def any_normal(self) -> bool:
        return len(self._sorted_normal) > 0

    def which_are_normal(self, causes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of `causes` [m] are normal, by an answer or by admission: bool [m]."""
        return _among_known(causes, self._sorted_normal)

    def without_normal(self, rules: RuleSet, hits: Hits, templates: NDArray[np.int32]) -> Hits:
        """`hits` without those on lines whose cause (`hit_causes`) is normal; `templates` [n] are those of all
        lines."""
        if not len(hits.lines) or not self.any_normal:
            return hits
        lines, causes = hit_causes(rules, hits, templates)
        kept = ~np.isin(hits.lines, lines[self.which_are_normal(causes)])
        return Hits(hits.lines[kept], hits.rules[kept])

    def which_are_bad(self, causes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of `causes` [m] the operator answered with "anomaly": bool [m]."""
        return _among_known(causes, self._sorted_bad)

    def _apply_answers(self) -> None:
        """Derive everything that follows from the answers."""
        last = {answer.cause: answer.normal for answer in self._answers.values() if answer.cause}
        normal = {cause for cause, is_normal in last.items() if is_normal}
        self._bad = last.keys() - normal
        alike = {shape for a in self._answers.values() if a.normal and a.cause in normal for shape in a.shapes}
        self._normal = normal | (alike - self._bad)
        for cause in self._bad & self._admitted.keys():
            del self._admitted[cause]
        latest_first = dict.fromkeys(answer.template for answer in reversed(self._answers.values()) if answer.template)
        self._templates = np.array(list(latest_first), dtype=np.int32)
        texts = msgspec.json.encode(self.answers())
        self._encoded = np.frombuffer(texts, dtype=np.uint8)  # encoded once an answer, not once a snapshot
        self._sort_known_causes()

    def _sort_known_causes(self) -> None:
        self._sorted_normal = _sorted_causes(self._normal | self._admitted.keys())
        self._sorted_bad = _sorted_causes(self._bad)

    # --- the state as columns -----------------------------------------------------------------------

    def export(self) -> State:
        return {
            "answers": self._encoded.copy(),
            "ring.cause": self._cause.copy(),
            "ring.place": self._place.copy(),
            "ring.key": self._key.copy(),
            "admitted": np.array(list(self._admitted), dtype=np.uint64),
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    @classmethod
    def load(cls, columns: Columns, answers: int = ANSWERS, admitted: int = ADMITTED) -> "KnownCauses":
        """The inverse of `export`. Raises `msgspec.DecodeError` (a ValueError) if `answers` is not a list of
        answers."""
        known = cls(answers, admitted)
        texts = array_column(columns, "answers").tobytes()
        known._answers = {answer.alert: answer for answer in msgspec.json.decode(texts, type=list[OperatorAnswer])}
        known._cause = np.array(columns["ring.cause"], dtype=np.uint64)
        known._place = np.array(columns["ring.place"], dtype=np.int64)
        known._key = np.array(columns["ring.key"], dtype=np.uint64)
        known._admitted = dict.fromkeys(array_column(columns, "admitted").tolist())
        for name in _COUNTERS:
            setattr(known, name, scalar_column(columns, name, int))
        known._apply_answers()
        return known


_COUNTERS = ("answers_dropped", "admissions", "admitted_dropped")


def _sorted_causes(causes: "set[int]") -> NDArray[np.uint64]:
    return np.sort(np.array(list(causes), dtype=np.uint64))


def _among_known(causes: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(known):
        return np.zeros(len(causes), dtype=np.bool_)
    at = np.minimum(np.searchsorted(known, causes), len(known) - 1)
    found: NDArray[np.bool_] = known[at] == causes
    return found
