"""Causes that are known: what the operator has answered, and what the stream makes normal by its share.

**Answers.** An operator says of an alert that it is normal, or that it is an anomaly indeed; the answer holds for
the alert's cause (see `detection.causes.fingerprints`) until it is undone. Of several answers to one cause the last
one holds; when it is undone, the one before does. At most `ANSWERS` are kept; the oldest make room, and are counted.
A new template that was called normal is known to the next model, and what was new about a session is then its shape,
to the operator the same thing again. So "normal" also holds for the shapes that come with the alert: those that its
session had there. It does for no other session with that template, and an answer to a shape itself goes before.

**Admission.** After a deploy most sessions have a shape that was never seen, and they are not malicious. So a
cause that `ADMITTED_SHARE` of the last `RING` sessions showed, 25 of 1,000, is admitted as normal. It counts where it
shows, not where the session closes, since long sessions would keep a deploy alarming until their end; once a session;
and it must come from `ADMITTED_KEYS` different session keys, so that one source does not admit itself by coming
back (sessions without a key, windows of a stream, speak for themselves). A young stream needs the same 25
sessions, not a share of the fewer it has seen. An answer "anomaly" forbids admission, and takes it back. At most
`ADMITTED` causes are admitted; those admitted first make room, are counted, and are admitted again if they still are
that frequent.

Where nothing more is to be learned (`admits` is false) there are answers only.

Rules and the behaviour of sources are never reported here: being frequent makes a shape usual, it does not make an
attack harmless.

State:

    answers              uint8 [b]     JSON: a list of `Answer`, oldest first
    ring.cause           uint64 [r]    what the last sessions showed, oldest first; r <= LONGEST_RING
    ring.place           int64 [r]     how many sessions had begun then
    ring.key             uint64 [r]    a hash of the session's key, 0: it has none
    admitted             uint64 [a]    in the order of admission
    answers_dropped, admissions, admitted_dropped   int, since the state began
"""

from copy import copy
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from detection.causes.fingerprints import KINDS, clipped, hit_causes, shown
from detection.columns.state import Columns, State, array, scalar
from detection.frames import FeedbackFrame
from detection.rules.engine import Hits, RuleSet

ANSWERS = 10_000
ADMITTED = 4096
RING = 1000
LONGEST_RING = 8 * RING
ADMITTED_SHARE = 0.025
ADMITTED_KEYS = 5
NOTE_BYTES = 1000

_NEEDED = round(RING * ADMITTED_SHARE)


class Answer(msgspec.Struct, frozen=True):
    """What the operator said of alert `alert` when the last line was `line`; `template` is what `cause` depends on, 0:
    on none; `shapes` are causes that are as normal as it."""

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
    def of(cls, frame: FeedbackFrame, line: int) -> "Answer":
        """What `frame` says, which undoes nothing."""
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
    """`answers_dropped` and `admitted_dropped` made room for others, `admissions` counts causes admitted.

    `admits` is the settings' to say, and no part of the state.
    """

    def __init__(self, answers: int = ANSWERS, admitted: int = ADMITTED) -> None:
        self.answers_dropped = self.admissions = self.admitted_dropped = 0
        self.admits = True
        self._capacity = answers, admitted
        self._answers: dict[str, Answer] = {}  # by alert, oldest first
        self._cause, self._key = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint64)
        self._place = np.zeros(0, dtype=np.int64)
        self._admitted: dict[int, None] = {}  # in the order of admission
        self._settle()

    # --- answers ------------------------------------------------------------------------------------

    def answer(self, answer: Answer) -> None:
        """Take effect at once, `what` and `note` clipped. Another answer to the same alert replaces the one before, and
        is the last."""
        self._answers.pop(answer.alert, None)
        self._answers[answer.alert] = msgspec.structs.replace(
            answer, what=clipped(answer.what), note=clipped(answer.note, NOTE_BYTES)
        )
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

    @property
    def templates(self) -> NDArray[np.int32]:
        """What the answers depend on, each once, those of the last answers first."""
        return self._templates

    # --- admission ----------------------------------------------------------------------------------

    def seen(self, causes: NDArray[np.uint64], places: NDArray[np.int64], keys: NDArray[np.uint64]) -> set[int]:
        """Sessions showed `causes` [m] for the first time, in this order, when `places` [m] (non-decreasing) had begun.

        `keys` [m] are hashes of the sessions' keys, 0 where they have none. The causes admitted at once, of which
        nothing was known before: nobody can have been told of them.
        """
        at_once: set[int] = set()
        if not len(causes) or not self.admits:
            return at_once
        new, before = np.unique(causes), self._cause
        self._cause = np.concatenate((self._cause, causes))
        self._place = np.concatenate((self._place, places))
        self._key = np.concatenate((self._key, keys))
        recent = np.flatnonzero(self._place > places[-1] - RING)[-LONGEST_RING:]
        admissions = self.admissions
        among = np.isin(self._cause[recent], new)
        found, counts = np.unique(self._cause[recent][among], return_counts=True)
        for cause in found[counts >= _NEEDED].tolist():
            if cause not in self._bad and cause not in self._admitted and self._of_many(recent, cause):
                self._admit(cause)
                if cause not in self._normal and not np.any(before == cause):
                    at_once.add(cause)
        self._cause, self._place, self._key = self._cause[recent], self._place[recent], self._key[recent]
        if admissions != self.admissions:
            self._sort()
        return at_once

    def _of_many(self, recent: NDArray[np.int64], cause: int) -> bool:
        keys = self._key[recent][self._cause[recent] == cause]
        return len(np.unique(keys[keys > 0])) + int(np.count_nonzero(keys == 0)) >= ADMITTED_KEYS

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

    def read_only(self) -> "KnownCauses":
        """The same as of now, to which one may report what one likes: it stays as it is."""
        frozen = copy(self)
        frozen.admits = False
        return frozen

    @property
    def any_normal(self) -> bool:
        return len(self._sorted_normal) > 0

    def normal(self, causes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of `causes` [m] are normal, by an answer or by admission."""
        return _among(causes, self._sorted_normal)

    def without_normal(self, rules: RuleSet, hits: Hits, templates: NDArray[np.int32]) -> Hits:
        """`hits` but those on lines that are normal: by their surest rule and their template, of `templates` [n]."""
        if not len(hits.lines) or not self.any_normal:
            return hits
        lines, causes = hit_causes(rules, hits, templates)
        kept = ~np.isin(hits.lines, lines[self.normal(causes)])
        return Hits(hits.lines[kept], hits.rules[kept])

    def bad(self, causes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of `causes` [m] the operator called an anomaly."""
        return _among(causes, self._sorted_bad)

    def _settle(self) -> None:
        """Let the answers there are take effect."""
        last = {answer.cause: answer.normal for answer in self._answers.values() if answer.cause}
        said = {cause for cause, normal in last.items() if normal}
        self._bad = last.keys() - said
        alike = {shape for a in self._answers.values() if a.normal and a.cause in said for shape in a.shapes}
        self._normal = said | (alike - self._bad)
        for cause in self._bad & self._admitted.keys():
            del self._admitted[cause]
        latest_first = dict.fromkeys(answer.template for answer in reversed(self._answers.values()) if answer.template)
        self._templates = np.array(list(latest_first), dtype=np.int32)
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
            "ring.cause": self._cause.copy(),
            "ring.place": self._place.copy(),
            "ring.key": self._key.copy(),
            "admitted": np.array(list(self._admitted), dtype=np.uint64),
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    @classmethod
    def load(cls, columns: Columns, answers: int = ANSWERS, admitted: int = ADMITTED) -> "KnownCauses":
        """Raises `msgspec.DecodeError` (a ValueError) when the answers are no list of answers."""
        known = cls(answers, admitted)
        texts = array(columns, "answers").tobytes()
        known._answers = {answer.alert: answer for answer in msgspec.json.decode(texts, type=list[Answer])}
        known._cause = np.array(columns["ring.cause"], dtype=np.uint64)
        known._place = np.array(columns["ring.place"], dtype=np.int64)
        known._key = np.array(columns["ring.key"], dtype=np.uint64)
        known._admitted = dict.fromkeys(array(columns, "admitted").tolist())
        for name in _COUNTERS:
            setattr(known, name, scalar(columns, name, int))
        known._settle()
        return known


_COUNTERS = ("answers_dropped", "admissions", "admitted_dropped")


def _sorted(causes: "set[int]") -> NDArray[np.uint64]:
    return np.sort(np.array(list(causes), dtype=np.uint64))


def _among(causes: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(known):
        return np.zeros(len(causes), dtype=np.bool_)
    at = np.minimum(np.searchsorted(known, causes), len(known) - 1)
    found: NDArray[np.bool_] = known[at] == causes
    return found
