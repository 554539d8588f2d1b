"""From a state directory to a detector: the newest sound snapshot, then the frames after it.

    full      the state is exactly what one process applying the same journal would hold
    partial   something of it is missing (its model file, or everything but a model file): what is intact
              is used, the rest is learned again
    fresh     nothing was there

A frame on which `apply` raises costs that frame, not the daemon: it is kept as `frame-<seq>.bad`, its
lines are counted as lost, and the state is folded again without it.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from detection.detector import Detector, model_in
from detection.frames import Frame, ModelFrame, Sequenced, decode
from detection.model import Model, from_columns
from detection.verdicts import Verdicts
from persistence.model_file import ModelError
from persistence.recovery import Recovery
from persistence.segment import Entry
from persistence.store import Store

log = logging.getLogger(__name__)


@dataclass
class Report:
    """What recovery found, for /status; every loss has a sentence in `notes`."""

    tier: str = "fresh"
    snapshot_line: int = 0
    replayed_lines: int = 0
    lost_lines: int = 0
    seconds: float = 0.0
    set_aside: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        words = f"{self.tier}: snapshot at line {self.snapshot_line:,}, {self.replayed_lines:,} lines replayed"
        return words + (f", {self.lost_lines:,} lines lost" if self.lost_lines else "")


@dataclass(frozen=True)
class Recovered:
    """`seq` and `line` are the place that the next frame follows. `model` is one to install because the
    state that used it, or any, is lost; `withdraw` names a model in the state whose file is lost."""

    detector: Detector
    report: Report
    snapshot_seq: int
    seq: int
    line: int
    model: tuple[ModelFrame, Model] | None
    withdraw: ModelFrame | None


class _Poison(Exception):
    """`apply` raised on this entry."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(f"frame {entry.seq}")
        self.entry = entry


def recover(store: Store, deliver: Callable[[Verdicts], None], alive: Callable[[], None]) -> Recovered:
    """Blocking. `deliver` gets the verdicts of replayed frames, some of which were delivered before;
    `alive` is called between frames. Raises StoreError and JournalError when the disk fails."""
    began = time.monotonic()
    skipped: dict[int, Entry] = {}
    while True:
        try:
            recovered = _fold(store, deliver, alive, skipped)
            break
        except _Poison as poison:
            log.exception("frame %d: cannot be applied; it is set aside and skipped", poison.entry.seq)
            skipped[poison.entry.seq] = poison.entry
    report = recovered.report
    for entry in skipped.values():
        kept = store.set_frame_aside(entry)
        report.set_aside.append(kept)
        report.notes.append(f"frame {entry.seq} could not be applied: {entry.count} lines lost, kept as {kept}")
    report.seconds = round(time.monotonic() - began, 3)
    return recovered


def load_model(store: Store, name: str, sha256: str | None) -> Model:
    """Blocking. Raises ModelError when the file is missing, damaged or not a model."""
    columns = store.load_model(name, sha256)
    try:
        return from_columns(columns)
    except (KeyError, TypeError) as exc:
        raise ModelError(f"{name}: is not a model generation: {exc}") from exc


def _fold(
    store: Store, deliver: Callable[[Verdicts], None], alive: Callable[[], None], skipped: dict[int, Entry]
) -> Recovered:
    found = store.recover()
    report = Report(set_aside=found.set_aside, notes=found.notes)
    detector, withdraw = _from_snapshot(store, found, report)
    for entry in found.entries:
        if entry.seq in skipped:
            continue
        try:
            frame = decode(entry.payload)
            model, lost = _resolved(store, frame, report)
            verdicts = detector.apply(Sequenced(entry.seq, entry.line, frame, model))
        except Exception as exc:  # whatever it is, it must not keep the daemon from starting
            raise _Poison(entry) from exc
        if isinstance(frame, ModelFrame):
            withdraw = frame if lost else None
        report.replayed_lines += entry.count
        deliver(verdicts)
        alive()
    line = max(found.last_line, detector.line)
    report.lost_lines = found.lost_lines + sum(entry.count for entry in skipped.values())
    model_to_use = None
    if found.snapshot is None and not detector.seq and found.models:
        model_to_use = _any_model(store, found, report)
    if found.snapshot is None and not detector.seq and not found.last_seq and model_to_use is None:
        report.tier = "fresh"
    elif withdraw is not None or report.lost_lines or (found.snapshot is None and not detector.seq):
        report.tier = "partial" if detector.seq or model_to_use else "fresh"
    else:
        report.tier = "full"
    snapshot_seq = found.snapshot[0] if found.snapshot is not None else 0
    return Recovered(detector, report, snapshot_seq, max(found.last_seq, detector.seq), line, model_to_use, withdraw)


def _from_snapshot(store: Store, found: Recovery, report: Report) -> tuple[Detector, ModelFrame | None]:
    if found.snapshot is None:
        return Detector(), None
    _, line, columns = found.snapshot
    report.snapshot_line = line
    reference = model_in(columns)
    if not reference.name:
        return Detector.load(columns, None), None
    try:
        return Detector.load(columns, load_model(store, reference.name, reference.sha256)), None
    except ModelError as exc:
        _say_lost(report, reference, exc)
        return Detector.load(columns, None), reference


def _resolved(store: Store, frame: Frame, report: Report) -> tuple[Model | None, bool]:
    """The model that `frame` names, and whether it should be there and is lost."""
    if not isinstance(frame, ModelFrame) or not frame.name:
        return None, False
    try:
        return load_model(store, frame.name, frame.sha256), False
    except ModelError as exc:
        _say_lost(report, frame, exc)
        return None, True


def _say_lost(report: Report, reference: ModelFrame, exc: ModelError) -> None:
    report.notes.append(f"model generation {reference.generation} is lost, only rules judge until retrained: {exc}")


def _any_model(store: Store, found: Recovery, report: Report) -> tuple[ModelFrame, Model] | None:
    """The newest sound model file, for want of a state."""
    for file in found.models:
        try:
            model = load_model(store, file.name, file.sha256)
        except ModelError as exc:
            report.notes.append(str(exc))
            continue
        report.notes.append(f"the state is lost; model generation {model.generation} is used as far as it goes")
        return ModelFrame(model.generation, file.name, file.sha256), model
    return None
