"""A detector, a store and files small enough to see through, for the actors' tests."""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import trio

from actors.scoring import Scoring
from detection.causes.fingerprints import KINDS, cause_as_text
from detection.columns.state_columns import Columns, State
from detection.detector import Detector
from detection.frames import (
    FeedbackFrame,
    LinesFrame,
    ModelFrame,
    Sequenced,
    VouchedFrame,
    count_lines,
    decode_frame,
)
from detection.models.training_set import TrainingCutoff
from detection.summary import Summary
from detection.verdicts.verdict_records import Verdicts
from persistence.journal import JournalError
from persistence.journal_segment import Entry
from persistence.store import SnapshotInfo


class FakeVerdicts(Verdicts):
    """Verdicts that are records from the first."""

    def __init__(self, seq: int, line: int, all_records: tuple[dict[str, Any], ...] = ()) -> None:
        super().__init__(seq, line, len(all_records), ())
        object.__setattr__(self, "all_records", all_records)

    all_records: tuple[dict[str, Any], ...]

    @property
    def alerts(self) -> int:
        return len(self.flagged())

    def recorded(self) -> list[dict[str, Any]]:
        return self.flagged()

    def flagged(self) -> list[dict[str, Any]]:
        return [record for record in self.all_records if record["flagged"]]

    def records(self) -> Iterator[dict[str, Any]]:
        return iter(self.all_records)


def record(number: int, *, flagged: bool = True, **more: Any) -> dict[str, Any]:
    return {"id": str(number), "line": number, "flagged": flagged, **more}


@dataclass(frozen=True)
class FakeTrainingSet:
    generation: int
    line: int
    full: bool = True
    studied: TrainingCutoff = field(default_factory=lambda: TrainingCutoff(seq=2, learned=2))

    def to_columns(self) -> State:
        return {"generation": self.generation, "line": self.line}


@dataclass
class FakeDetector:
    """Its state is the text it has seen. Lines with BAD in them are flagged; a POISON line raises half-way."""

    seq: int = 0
    line: int = 0
    text: bytes = b""
    tails: dict[str, bytes] = field(default_factory=dict)
    warmup_lines: int = 1_000_000
    model: str = ""
    generation: int = 0
    due: bool = False  # until the next model
    urgent: bool = False
    restored: int = 0
    unfitted: tuple[tuple[str, str], ...] = ()  # members, until the next model
    full: bool = True
    gate: threading.Event | None = None
    calls: list[str] = field(default_factory=list)
    answered: dict[str, FeedbackFrame] = field(default_factory=dict)
    known_generations: list[dict[str, Any]] = field(default_factory=list)
    vouched: list[VouchedFrame] = field(default_factory=list)
    evicted: set[int] = field(default_factory=set)

    def apply(self, item: Sequenced) -> FakeVerdicts:
        self.calls.append(f"apply {item.seq}")
        if self.gate is not None:
            assert self.gate.wait(30)
        assert item.seq == self.seq + 1 and item.line == self.line + count_lines(item.frame)
        lines: list[bytes] = []
        if isinstance(item.frame, LinesFrame):
            for segment in item.frame.segments:
                *whole, tail = (self.tails.pop(segment.source, b"") + segment.data).split(b"\n")
                if segment.last and tail:
                    whole, tail = [*whole, tail], b""
                if tail:
                    self.tails[segment.source] = tail
                assert len(whole) == segment.lines
                lines += whole
        if isinstance(item.frame, ModelFrame):
            self.model, self.generation = item.frame.name, item.frame.generation
            self.due = self.urgent = False
        if isinstance(item.frame, FeedbackFrame):
            self.answered.pop(item.frame.alert, None)
            if item.frame.answer != "undo":
                self.answered[item.frame.alert] = item.frame
        if isinstance(item.frame, VouchedFrame):
            self.vouched.append(item.frame)
        self.text += b"".join(line + b"\n" for line in lines)
        if any(b"POISON" in line for line in lines):
            raise ValueError("poison")
        records = tuple(
            record(self.line + 1 + n, flagged=b"BAD" in line, text=line.decode("latin-1"))
            for n, line in enumerate(lines)
        )
        self.seq, self.line = item.seq, item.line
        return FakeVerdicts(item.seq, item.line, records)

    def ask(self, lines: Sequence[bytes], session: str | None, explain: bool = False) -> list[dict[str, Any]]:
        self.calls.append("ask")
        why: dict[str, Any] = {"explain": {"members": {}}} if explain else {}
        return [{"line": line.decode(), "known": self.line, **why} for line in lines]

    def incidents(self, limit: int) -> list[dict[str, Any]]:
        return [{"id": str(self.line - n)} for n in range(min(limit, self.line))]

    def answers(self) -> list[dict[str, Any]]:
        return [{"id": frame.alert, "answer": frame.answer} | _about(frame) for frame in self.answered.values()]

    def has_template(self, template: int) -> bool:
        return template not in self.evicted

    def generations(self) -> list[dict[str, Any]]:
        return list(self.known_generations)

    def export(self) -> State:
        return {"seq": self.seq, "line": self.line, "text": self.text, "model": self.model}

    def training_set(self) -> FakeTrainingSet:
        return FakeTrainingSet(generation=1, line=self.line, full=self.full)

    def summary(self) -> Summary:
        due = self.due or self.urgent or (self.line >= self.warmup_lines and not self.model)
        restored = self.restored if self.restored <= self.seq else 0
        return Summary(
            seq=self.seq,
            line=self.line,
            training_due=due,
            training_urgent=self.urgent,
            restored=restored,
            generation=self.generation,
            unfitted=self.unfitted,
        )


def scoring_of(
    detector: FakeDetector,
    read_back: Callable[[Sequenced, Exception], tuple[FakeDetector, FakeVerdicts]] | None = None,
) -> Scoring:
    """Scoring whose detector is a fake: the one place where that is said to the type checker."""
    return Scoring(cast(Detector, detector), cast(Any, read_back))


def _about(frame: FeedbackFrame) -> dict[str, Any]:
    return {
        "kind": KINDS[frame.kind],
        "cause": cause_as_text(frame.cause),
        "what": frame.what,
        "note": frame.note,
        "line": 0,
    }


@dataclass
class FakeStore:
    """Keeps what it is given. `full` makes every write fail, as a full disk does."""

    directory: Path = Path("/state")
    entries: list[Entry] = field(default_factory=list)
    appends: list[int] = field(default_factory=list)
    snapshots: list[tuple[int, int, State, tuple[str, ...]]] = field(default_factory=list)
    extra: list[bool] = field(default_factory=list)  # of each snapshot
    rotations: list[int] = field(default_factory=list)
    full: bool = False
    snapshots_fail: bool = False

    def append(self, entries: Sequence[Entry]) -> None:
        if self.full:
            raise JournalError("journal-1.log: no space left on device")
        self.entries += entries
        self.appends.append(len(entries))

    def rotate(self) -> None:
        if self.full:
            raise JournalError("journal-2.log: no space left on device")
        self.rotations.append(self.entries[-1].seq if self.entries else 0)

    def write_snapshot(
        self, seq: int, line: int, columns: Columns, models: Collection[str] = (), *, extra: bool = False
    ) -> SnapshotInfo:
        if self.full or self.snapshots_fail:
            raise OSError(28, "No space left on device")
        self.snapshots.append((seq, line, dict(columns), tuple(models)))
        self.extra.append(extra)
        return SnapshotInfo(name=f"snapshot-{seq}.msgpack", seq=seq, line=line, bytes=100, time=0.0)

    def has_snapshot(self, name: str) -> bool:
        return any(name == f"snapshot-{seq}.msgpack" for seq, _, _, _ in self.snapshots)

    def text(self) -> bytes:
        """The bytes of all segments in journal order."""
        frames = [decode_frame(entry.payload) for entry in self.entries]
        return b"".join(segment.data for frame in frames if isinstance(frame, LinesFrame) for segment in frame.segments)


@dataclass
class FakeWriter:
    """A file of records in memory. `full` makes both calls fail."""

    records: list[bytes] = field(default_factory=list)
    synced: int = 0
    full: bool = False
    last_id: str | None = None

    def append(self, records: Sequence[bytes], last_id: str | None = None) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.records += records
        self.last_id = last_id

    def sync(self) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.synced = len(self.records)

    def usage(self) -> dict[str, int]:
        return {"bytes": sum(map(len, self.records)), "rotations": 0, "parts_removed": 0, "bytes_removed": 0}


def wall_clock() -> float:
    """Seconds since the epoch that move with the test's virtual clock."""
    return 1_700_000_000.0 + trio.current_time()
