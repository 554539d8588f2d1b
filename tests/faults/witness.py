"""The reference for a killed daemon: its own journal, kept whole, applied by one process that is not killed."""

import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from detection.columns.state_columns import digest
from detection.detector import Detector
from detection.frames import Frame, LinesFrame, ModelFrame, Sequenced, SkipFrame, decode_frame
from detection.models.model import Model, from_columns
from persistence.journal import JournalReader
from persistence.model_file import read_model
from persistence.snapshot_file import read_snapshot

_KEPT = ("journal-*.log", "snapshot-*.msgpack", "model-*.pt")
_LOOK_SECONDS = 0.02

Record = dict[str, Any]


class Witness:
    """Hard links in `kept` to every file of `patterns` that ever appeared in `state`: segments, snapshots, models.

    The store lets go of a segment two snapshots after its end at the earliest; we look far more often.
    """

    def __init__(self, state: Path, kept: Path, patterns: tuple[str, ...] = _KEPT) -> None:
        self.kept = kept
        self._state = state
        self._patterns = patterns
        self._over = threading.Event()
        kept.mkdir()

    @contextmanager
    def watching(self) -> Iterator["Witness"]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join()
            self._look()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        for pattern in self._patterns:
            for path in self._state.glob(pattern):
                try:
                    os.link(path, self.kept / path.name)
                except (FileExistsError, FileNotFoundError):
                    # Known already; or gone since the glob. If that mattered, the journal has a hole now.
                    continue


@dataclass
class Account:
    """What the journal says: `sources` the bytes of each connection, `records` every verdict in order of ids,
    `recorded` what is recorded of those that are flagged, in full and in counting records, `counting` the alerts in
    counts under way."""

    sources: dict[str, bytes] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    recorded: list[Record] = field(default_factory=list)
    counting: int = 0
    generations: int = 0
    snapshots: int = 0
    seq: int = 0
    line: int = 0
    digest: str = ""
    wrong: list[str] = field(default_factory=list)

    @property
    def flagged(self) -> list[Record]:
        return [record for record in self.records if record["flagged"]]


def account_of(kept: Path) -> Account:
    """Apply the kept journal from its first frame on, and hold every kept snapshot against the state there."""
    account, detector = Account(), Detector()
    sources: dict[str, bytearray] = defaultdict(bytearray)
    snapshots = {int(path.stem.removeprefix("snapshot-")): path for path in kept.glob("snapshot-*.msgpack")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the daemon: other numbers of threads give other last bits
    try:
        for item in _items(kept, account):
            try:
                verdicts = detector.apply(item)
            except ValueError as exc:
                account.wrong.append(f"frame {item.seq} cannot be applied: {exc}")
                break
            # By way of JSON, as they are written.
            account.records += [json.loads(json.dumps(record)) for record in verdicts.records()]
            account.recorded += [json.loads(json.dumps(record)) for record in verdicts.recorded()]
            account.counting = detector.summary().alerts_waiting
            account.generations += item.model is not None
            for segment in item.frame.segments if isinstance(item.frame, LinesFrame) else ():
                sources[segment.source] += segment.data
            if item.seq in snapshots:
                account.snapshots += 1
                account.seq, account.line, account.digest = item.seq, item.line, digest(detector.export())
                _, line, columns = read_snapshot(snapshots[item.seq])
                if (line, digest(columns)) != (item.line, account.digest):
                    account.wrong.append(f"{snapshots[item.seq].name} is not what the journal gives")
    finally:
        torch.set_num_threads(threads)
    account.sources = {name: bytes(data) for name, data in sources.items()}
    return account


def _items(kept: Path, account: Account) -> Iterator[Sequenced]:
    def refuse(path: Path, reason: str) -> None:
        account.wrong.append(f"{path.name}: {reason}")

    reading = JournalReader(kept, 0, 0, set_aside=refuse)
    for entry in reading:
        frame = decode_frame(entry.payload)
        if isinstance(frame, SkipFrame):
            account.wrong.append(f"frame {frame.seq} was left out")
        yield Sequenced(entry.seq, entry.line, frame, _model(kept, frame))
    account.wrong += reading.notes


def _model(kept: Path, frame: Frame) -> Model | None:
    if not isinstance(frame, ModelFrame) or not frame.name:
        return None
    return from_columns(read_model(kept / frame.name, frame.sha256))


def records_in(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]
