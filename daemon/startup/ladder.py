"""What is done about a frame on which `apply` raises: the same with everything once more, then with less and less.

    1  the same frame once more, with everything: what failed for a moment costs a moment
    2  without the member that raised, and without the next one that does (`detection.members.failing`)
    3  with rules alone
    4  the frame is left out: only what cannot be applied even so is the frame's own fault

Each try begins from the state before the frame. What is decided is a frame of its own (`WithdrawnFrame`, `SkipFrame`)
that names this one, and it is durable before anything leaves that was said without the member or the frame: whoever
replays the journal knows of it before he applies that frame, so a kill at any moment changes nothing of what was said.

A frame that was applied before may fail when it is replayed: after a start, or when a state is read back, on a machine
on which a member does not work any more. What is replayed is then judged without it, from the first frame on that
fails; its verdicts are delivered again, and what was said of those lines before stays said.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from detection.frames import Frame, SkipFrame, WithdrawnFrame, decode
from detection.members.failing import MemberError, in_a_line
from detection.members.registry import NAMES
from detection.verdicts.records import Verdicts
from persistence.segment import Entry

# A member that failed on so many frames and then did not is not tried again when it fails the next time: each costs
# the time of reading the state back.
PATIENCE = 3
COPY_SHARE = 0.05  # of the time of replaying, for copies to go back to

log = logging.getLogger(__name__)


class ApplyError(Exception):
    """`apply` raised on this entry, which is the cause; `hopeless` says that it is no frame at all."""

    def __init__(self, entry: Entry, *, hopeless: bool = False) -> None:
        super().__init__(f"frame {entry.seq}")
        self.entry = entry
        self.hopeless = hopeless


class Ladder:
    """Which frames are left out, and which members from which frame on: what the journal says, and what is found out.

    `skipped` and `withdrawn` are what the frames after frame `since` say. `say` has a frame journaled, and returns when
    it is durable. `set_aside` keeps a frame that is left out, `note` is given a sentence for each decision. All are
    called in the thread that calls this.
    """

    def __init__(
        self,
        skipped: set[int],
        withdrawn: Mapping[int, Mapping[str, str]],
        *,
        since: int,
        say: Callable[[Frame], None],
        set_aside: Callable[[Entry], None],
        note: Callable[[str], None],
    ) -> None:
        self.decided: set[int] = set()  # frames of which this process decided something, settled or not
        self.since = since
        self.retried = 0  # frames that could be applied at the second try
        self._skipped = set(skipped)
        self._withdrawn = {seq: dict(members) for seq, members in withdrawn.items()}
        self._say, self._set_aside, self._note = say, set_aside, note
        self._failures: Counter[int] = Counter()
        self._last_failed: dict[int, str | None] = {}
        self._recovered: Counter[str] = Counter()  # by member: frames on which it failed, and then did not
        self._unsettled: set[int] = set()
        self._unsaid: set[int] = set()  # of those decided: what was is not journaled yet

    def learn(self, since: int, entries: Iterable[Entry]) -> None:
        """What the frames after frame `since` say, as they were journaled: for going further back than before."""
        self.since = since
        for entry in entries:
            try:
                frame = decode(entry.payload)
            except ValueError:
                continue  # it was left out as well, as some frame after it says
            if isinstance(frame, SkipFrame):
                self._skipped.add(frame.seq)
            elif isinstance(frame, WithdrawnFrame):
                self._withdrawn[frame.seq] = frame.members | self._withdrawn.get(frame.seq, {})

    def is_left_out(self, seq: int) -> bool:
        return seq in self._skipped

    def without(self, seq: int) -> Mapping[str, str]:
        """The members to withdraw when frame `seq` is applied, each with the reason."""
        return self._withdrawn.get(seq, {})

    def has_failed(self, seq: int) -> bool:
        return seq in self._failures

    def failed(self, error: ApplyError) -> None:
        """Decide what is done at the next try."""
        entry, cause = error.entry, error.__cause__ or error
        seq, member = entry.seq, cause.member if isinstance(cause, MemberError) else None
        reason = cause.reason if isinstance(cause, MemberError) else in_a_line(cause)
        self._failures[seq] += 1
        self._last_failed[seq] = member
        self._unsettled.add(seq)
        out = self._withdrawn.get(seq, {})
        if error.hopeless:
            self._leave_out(entry, cause)
        elif self._failures[seq] == 1 and (member is None or self._recovered[member] < PATIENCE):
            log.error("frame %d: %s; it is tried once more", seq, _told(member, reason), exc_info=cause)
        elif member is not None and member not in out:
            log.error("frame %d: %s; it is tried without %s", seq, _told(member, reason), member)
            self._decide(seq, out | {member: reason})
        elif not out.keys() >= set(NAMES):
            log.error("frame %d: %s; it is tried with rules alone", seq, _told(member, reason))
            self._decide(seq, out | {name: reason for name in NAMES if name not in out})
        else:
            self._leave_out(entry, cause)

    def settle(self, entry: Entry) -> None:
        """This frame is applied, or left out, as was decided: have that journaled before anything of it leaves."""
        seq = entry.seq
        if seq not in self._unsettled:
            return
        if seq in self._skipped:
            self._say(SkipFrame(seq))
            self._set_aside(entry)
        elif seq in self._unsaid:
            out = self._withdrawn[seq]
            self._say(WithdrawnFrame(seq, dict(out)))
            for member, reason in out.items():
                log.error("%s does not judge from frame %d on: %s", member, seq, reason)
                self._note(f"{member} does not judge from frame {seq} on: {reason}")
        else:
            self.retried += 1
            if (failed := self._last_failed[seq]) is not None:
                self._recovered[failed] += 1
            log.warning("frame %d could be applied at the second try", seq)
        self._unsettled.remove(seq)
        self._unsaid.discard(seq)
        # Should it fail when it is replayed once more, that is another matter.
        del self._failures[seq]

    def _decide(self, seq: int, out: dict[str, str]) -> None:
        self._withdrawn[seq] = out
        self.decided.add(seq)
        self._unsaid.add(seq)

    def _leave_out(self, entry: Entry, cause: BaseException) -> None:
        log.error("frame %d cannot be applied; it is set aside and skipped", entry.seq, exc_info=cause)
        self._skipped.add(entry.seq)
        self.decided.add(entry.seq)


def _told(member: str | None, reason: str) -> str:
    return f"{member} failed: {reason}" if member is not None else reason


class Fold(Protocol):
    """A detector on its way along the journal, and the way back."""

    def apply(self, entry: Entry, without: Mapping[str, str]) -> Verdicts:
        """Raises ApplyError; the fold is spoilt then."""

    def skip(self, entry: Entry) -> Verdicts: ...

    def copied(self) -> "Callable[[], None]":
        """Remember the state as it is; what is returned goes back to it."""


FoldT = TypeVar("FoldT", bound=Fold)


class Replay(Generic[FoldT]):
    """Takes `fold` along frames, as `ladder` says.

    With `copies` the state is copied now and then, and a frame that fails is tried again from there; else the first
    one that does is an ApplyError, and the fold spoilt. `alive` is called between frames.
    """

    def __init__(self, fold: FoldT, ladder: Ladder, alive: Callable[[], None], *, copies: bool) -> None:
        self.fold = fold
        self._ladder = ladder
        self._alive = alive
        self._copies = copies
        self.changed = math.inf  # the first frame that is judged otherwise than before
        self._row: list[Entry] = []  # since the copy
        self._back: Callable[[], None] | None = None
        self._copied = self._cost = 0.0

    def take(self, entry: Entry) -> "Taken":
        """Apply `entry`, and before it once more what has to be; or leave it out."""
        if self._copies and (self._back is None or self._is_due(entry)):
            self._copy()
        if not self._copies:
            self._row = []
        self._row.append(entry)
        again: dict[int, Verdicts] = {}
        at = len(self._row) - 1
        while at < len(self._row):
            each = self._row[at]
            try:
                verdicts = self._one(each)
            except ApplyError as error:
                if self._back is None:
                    raise
                self._ladder.failed(error)
                if each.seq in self._ladder.decided:
                    self.changed = min(self.changed, each.seq)
                self._back()
                at = 0
                continue
            self._ladder.settle(each)
            again[each.seq] = verdicts
            self._alive()
            at += 1
        return Taken(again.pop(entry.seq), [again[seq] for seq in sorted(again) if seq >= self.changed])

    def _one(self, entry: Entry) -> Verdicts:
        if self._ladder.is_left_out(entry.seq):
            return self.fold.skip(entry)
        return self.fold.apply(entry, self._ladder.without(entry.seq))

    def _is_due(self, entry: Entry) -> bool:
        spent = time.monotonic() - self._copied
        return self._ladder.has_failed(entry.seq) or spent * COPY_SHARE > self._cost

    def _copy(self) -> None:
        began = time.monotonic()
        self._back, self._row = self.fold.copied(), []
        self._copied = time.monotonic()
        self._cost = self._copied - began


@dataclass(frozen=True)
class Taken:
    """`verdicts` of the frame taken; and, because a member was withdrawn at one of them, of frames before it
    `again`."""

    verdicts: Verdicts
    again: list[Verdicts]
