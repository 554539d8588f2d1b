"""The ladder: what is tried, in which order, when `apply` raises on a frame.

    1  the same frame again, with every member: the failure may have been a passing one
    2  without the member that raised, then also without the next one that raises (`detection.members.failing_members`)
    3  with rules alone
    4  the frame is skipped: if it cannot be applied even by rules alone, the fault is the frame's own

Each attempt starts from the state before the frame. The decision is a frame of its own (`WithdrawnFrame`, `SkipFrame`)
that names the failed frame. It is durable before any verdict that depends on it leaves the process, and every replay
reads it before it applies the frame it names. So a kill at any moment changes no verdict.

A frame that was applied before may fail when it is replayed, at a start or when a state is read back, because a member
no longer works on this machine. The replay then judges without that member from the first failing frame on. These
verdicts are delivered again; records that were written before stay as they are.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from detection.frames import Frame, SkipFrame, WithdrawnFrame, decode_frame
from detection.members.failing_members import MemberError, exception_in_a_line
from detection.members.registry import NAMES
from detection.verdicts.verdict_records import Verdicts
from persistence.journal_segment import Entry

# A member that failed on this many frames, and on none of them a second time, is withdrawn at its next failure without
# a second attempt: each attempt costs reading the state back.
PATIENCE = 3
COPY_SHARE = 0.05  # of the time of replaying may go into copies of the state

log = logging.getLogger(__name__)


class ApplyError(Exception):
    """`apply` raised on `entry`; the exception is the cause. `hopeless`: the entry is no frame, or what
    it names cannot be."""

    def __init__(self, entry: Entry, *, hopeless: bool = False) -> None:
        super().__init__(f"frame {entry.seq}")
        self.entry = entry
        self.hopeless = hopeless


class Ladder:
    """Which frames are skipped, and which members are withdrawn from which frame on: as journaled, and as decided here.

    `skipped` (seqs) and `withdrawn` (seq: {member: reason}) are the decisions journaled after frame `since`. `journal`
    journals a frame and returns when it is durable; `set_aside` keeps the bytes of a skipped frame; `note` takes a
    sentence for each decision. All are called in the thread that calls the ladder.
    """

    def __init__(
        self,
        skipped: set[int],
        withdrawn: Mapping[int, Mapping[str, str]],
        *,
        since: int,
        journal: Callable[[Frame], None],
        set_aside: Callable[[Entry], None],
        note: Callable[[str], None],
    ) -> None:
        self.decided: set[int] = set()  # frames about which this process decided something, journaled or not
        self.since = since
        self.retried = 0  # frames that could be applied at the second attempt
        self._skipped = set(skipped)
        self._withdrawn = {seq: dict(members) for seq, members in withdrawn.items()}
        self._journal, self._set_aside, self._note = journal, set_aside, note
        self._failures: Counter[int] = Counter()
        self._last_failed: dict[int, str | None] = {}
        self._recovered: Counter[str] = Counter()  # by member: frames on which it failed once and not again
        self._unsettled: set[int] = set()
        self._unjournaled: set[int] = set()  # decided, and the decision is not journaled yet

    def read_decisions(self, since: int, entries: Iterable[Entry]) -> None:
        """Take up the decisions journaled after frame `since`, in order to replay from further back."""
        self.since = since
        for entry in entries:
            try:
                frame = decode_frame(entry.payload)
            except ValueError:
                continue  # it cannot be applied either; a later frame skips it
            if isinstance(frame, SkipFrame):
                self._skipped.add(frame.seq)
            elif isinstance(frame, WithdrawnFrame):
                self._withdrawn[frame.seq] = frame.members | self._withdrawn.get(frame.seq, {})

    def is_skipped(self, seq: int) -> bool:
        """Whether frame `seq` is not to be applied."""
        return seq in self._skipped

    def members_left_out(self, seq: int) -> Mapping[str, str]:
        """The members to withdraw when frame `seq` is applied, each with the reason."""
        return self._withdrawn.get(seq, {})

    def has_failed(self, seq: int) -> bool:
        return seq in self._failures

    def record_failure(self, error: ApplyError) -> None:
        """Decide what the next attempt leaves out."""
        entry, cause = error.entry, error.__cause__ or error
        seq, member = entry.seq, cause.member if isinstance(cause, MemberError) else None
        reason = cause.reason if isinstance(cause, MemberError) else exception_in_a_line(cause)
        self._failures[seq] += 1
        self._last_failed[seq] = member
        self._unsettled.add(seq)
        out = self._withdrawn.get(seq, {})
        if error.hopeless:
            self._skip_frame(entry, reason)
        elif self._failures[seq] == 1 and (member is None or self._recovered[member] < PATIENCE):
            log.error("frame %d: %s; it is tried once more", seq, _failure_with_member(member, reason), exc_info=cause)
        elif member is not None and member not in out:
            log.error("frame %d: %s; it is tried without %s", seq, _failure_with_member(member, reason), member)
            self._note_decision(seq, out | {member: reason})
        elif not out.keys() >= set(NAMES):
            log.error("frame %d: %s; it is tried with rules alone", seq, _failure_with_member(member, reason))
            self._note_decision(seq, out | {name: reason for name in NAMES if name not in out})
        else:
            self._skip_frame(entry, reason, cause)

    def journal_decision(self, entry: Entry) -> None:
        """The frame was applied or skipped as decided: journal the decision, before its verdicts leave."""
        seq = entry.seq
        if seq not in self._unsettled:
            return
        if seq in self._skipped:
            self._journal(SkipFrame(seq))
            self._set_aside(entry)
        elif seq in self._unjournaled:
            out = self._withdrawn[seq]
            self._journal(WithdrawnFrame(seq, dict(out)))
            for member, reason in out.items():
                log.error("%s does not judge from frame %d on: %s", member, seq, reason)
                self._note(f"{member} does not judge from frame {seq} on: {reason}")
        else:
            self.retried += 1
            if (failed := self._last_failed[seq]) is not None:
                self._recovered[failed] += 1
            log.warning("frame %d could be applied at the second try", seq)
        self._unsettled.remove(seq)
        self._unjournaled.discard(seq)
        # A failure in a later replay starts from the first rung.
        del self._failures[seq]

    def _note_decision(self, seq: int, out: dict[str, str]) -> None:
        self._withdrawn[seq] = out
        self.decided.add(seq)
        self._unjournaled.add(seq)

    def _skip_frame(self, entry: Entry, reason: str, bug: BaseException | None = None) -> None:
        log.error("frame %d cannot be applied, it is set aside and skipped: %s", entry.seq, reason, exc_info=bug)
        self._skipped.add(entry.seq)
        self.decided.add(entry.seq)


def _failure_with_member(member: str | None, reason: str) -> str:
    return f"{member} failed: {reason}" if member is not None else reason


class Fold(Protocol):
    """The state as a fold over frames, with copies to return to."""

    def apply(self, entry: Entry, without: Mapping[str, str]) -> Verdicts:
        """Apply a frame without the members in `without`. Raises ApplyError, and the state is undefined then."""

    def skip(self, entry: Entry) -> Verdicts:
        """Pass the frame without applying it."""

    def copy_to_go_back_to(self) -> "Callable[[], None]":
        """Copy the state; calling the result restores it, any number of times."""


FoldT = TypeVar("FoldT", bound=Fold)


class Replay(Generic[FoldT]):
    """Applies frames to `fold`, each as the `ladder` decides.

    With `copies` the state is copied from time to time; after a failure the frames since the copy are applied again.
    Without, the first failure raises ApplyError, and `fold` is undefined then. `alive` is called between frames.
    """

    def __init__(self, fold: FoldT, ladder: Ladder, alive: Callable[[], None], *, copies: bool) -> None:
        self.fold = fold
        self._ladder = ladder
        self._alive = alive
        self._copies = copies
        self.changed = math.inf  # the first frame that this replay judges differently
        self._since_copy: list[Entry] = []
        self._go_back: Callable[[], None] | None = None
        self._copied_at = self._copy_seconds = 0.0

    def apply(self, entry: Entry) -> "Applied":
        """Apply or skip `entry`, after a failure together with the frames since the last copy."""
        if self._copies and (self._go_back is None or self._copy_is_due(entry)):
            self._copy_state()
        if not self._copies:
            self._since_copy = []
        self._since_copy.append(entry)
        reapplied: dict[int, Verdicts] = {}
        at = len(self._since_copy) - 1
        while at < len(self._since_copy):
            each = self._since_copy[at]
            try:
                verdicts = self._apply_or_skip(each)
            except ApplyError as error:
                if self._go_back is None:
                    raise
                self._ladder.record_failure(error)
                if each.seq in self._ladder.decided:
                    self.changed = min(self.changed, each.seq)
                self._go_back()
                at = 0
                continue
            self._ladder.journal_decision(each)
            reapplied[each.seq] = verdicts
            self._alive()
            at += 1
        return Applied(reapplied.pop(entry.seq), [reapplied[seq] for seq in sorted(reapplied) if seq >= self.changed])

    def _apply_or_skip(self, entry: Entry) -> Verdicts:
        if self._ladder.is_skipped(entry.seq):
            return self.fold.skip(entry)
        return self.fold.apply(entry, self._ladder.members_left_out(entry.seq))

    def _copy_is_due(self, entry: Entry) -> bool:
        spent = time.monotonic() - self._copied_at
        return self._ladder.has_failed(entry.seq) or spent * COPY_SHARE > self._copy_seconds

    def _copy_state(self) -> None:
        began = time.monotonic()
        self._go_back, self._since_copy = self.fold.copy_to_go_back_to(), []
        self._copied_at = time.monotonic()
        self._copy_seconds = self._copied_at - began


@dataclass(frozen=True)
class Applied:
    """`verdicts` of the frame, and of the earlier frames that were judged again without a member (`reapplied`)."""

    verdicts: Verdicts
    reapplied: list[Verdicts]
