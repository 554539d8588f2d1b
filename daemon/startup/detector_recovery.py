"""From a state directory to a detector: the newest sound snapshot, then the frames after it.

`daemon.startup.startup_scan` has read the directory before, and new lines may be journaled after the frames replayed
here. The result is one of three tiers:

    full      the state is exactly that of one process that applied the same journal
    partial   part of the state is missing (its model file, or everything but a model file): what is intact
              is used, the rest is learned again
    fresh     the directory held nothing

A state of an older version is upgraded to this version's layout (`detection.columns.layout_upgrades`) wherever it is
read. A model that cannot be upgraded is set aside, as if it were lost: it is trained again, and everything else is
kept. A file of a later version, or a state with columns that no version gave its number, belongs to none of the tiers:
the start is refused, and nothing is changed.

A frame on which `apply` raises goes through `daemon.startup.failing_frames`: the member that raised is withdrawn, and
only a frame that cannot be applied by rules alone is skipped. That costs the frame and not the daemon: its bytes are
kept as `frame-<seq>.bad`, and its lines are counted as lost. The decision is journaled before its verdicts are
delivered, and later replays obey it: even a program that could apply the frame with all members must come to the same
state, and deliver the same verdicts.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from daemon.startup.failing_frames import ApplyError, Ladder, Replay
from daemon.startup.startup_scan import Found
from detection.column_bounds import DamagedError, check_model
from detection.columns.layout_upgrades import STATES
from detection.columns.state_columns import Columns, NewerVersionError, OtherVersionError, State
from detection.detector import Detector
from detection.detector_state import model_in
from detection.frames import Frame, Knowledge, ModelFrame, RestoreFrame, ReturnedFrame, Sequenced, decode_frame
from detection.models.model import Model, from_columns, to_columns
from detection.verdicts.verdict_records import Verdicts
from persistence.disk import UnreadableError
from persistence.format_preamble import NewerFormatError
from persistence.journal_segment import Entry
from persistence.model_file import ModelError
from persistence.snapshot_file import SnapshotError
from persistence.state_directory import StoreError
from persistence.store import Store

log = logging.getLogger(__name__)


@dataclass
class Report:
    """The object `recovery` of `GET /status`; every loss has a sentence in `notes`. Frames that the running daemon
    skips are added to it."""

    tier: str = "fresh"
    snapshot_line: int = 0
    replayed_lines: int = 0
    lost_lines: int = 0
    retried_frames: int = 0  # that could be applied at the second attempt
    seconds: float = 0.0
    set_aside: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def recovery_sentence(self) -> str:
        words = f"{self.tier}: snapshot at line {self.snapshot_line:,}, {self.replayed_lines:,} lines replayed"
        return words + (f", {self.lost_lines:,} lines lost" if self.lost_lines else "")


@dataclass(frozen=True)
class Recovered:
    """The detector, and the frames that the daemon still has to journal.

    `model` is a model to install, because there is no state that uses one; `withdraw` names the model of the state if
    its file is lost. `members` brings back the members that an earlier process withdrew, None when there are none.
    `ladder` holds the decisions so far, and the running daemon continues with it."""

    detector: Detector
    report: Report
    model: tuple[ModelFrame, Model] | None
    withdraw: ModelFrame | None
    ladder: Ladder
    members: ReturnedFrame | None


def recover_detector(
    store: Store,
    found: Found,
    deliver: Callable[[Verdicts], None],
    alive: Callable[[], None],
    journal: Callable[[Frame], None] | None = None,
) -> Recovered:
    """Load the newest snapshot and replay the frames after it, as `found` lists them. Blocking.

    `deliver` takes the verdicts of replayed frames, some of which were delivered before; `alive` is called between
    frames; `journal` journals a frame and returns when it is durable. New frames may be journaled meanwhile. Raises
    StoreError and JournalError when the disk fails, StoreError for files of another version, and StoreError when a
    decision has to be journaled and `journal` is None."""
    began = time.monotonic()
    report = Report(lost_lines=found.lost_lines, set_aside=found.set_aside, notes=found.notes)
    ladder = Ladder(
        found.skipped,
        found.withdrawn,
        since=found.snapshot_seq,
        journal=_refuse_to_journal if journal is None else journal,
        set_aside=lambda entry: keep_skipped_frame(store, entry, report),
        note=report.notes.append,
    )
    try:
        try:
            recovered = _replay_since_snapshot(store, found, deliver, alive, report, ladder, copies=False)
        except ApplyError as error:
            # Start over, as there is no copy to return to; this time with copies, in case more frames fail.
            ladder.record_failure(error)
            recovered = _replay_since_snapshot(store, found, deliver, alive, report, ladder, copies=True)
    except OtherVersionError as exc:
        raise StoreError(f"{exc}; {exc.advice}") from exc
    except (NewerFormatError, UnreadableError) as exc:
        raise StoreError(str(exc)) from exc
    recovered.report.retried_frames = ladder.retried
    recovered.report.seconds = round(time.monotonic() - began, 3)
    return recovered


def _refuse_to_journal(frame: Frame) -> None:
    raise StoreError(f"nothing can be journaled here: {frame}")


def keep_skipped_frame(store: Store, entry: Entry, report: Report) -> None:
    """Keep the bytes of a frame that was skipped, and report the loss of its lines."""
    report.lost_lines += entry.count
    try:
        kept = store.set_frame_aside(entry)
    except OSError as exc:
        where = f"and could not be kept: {exc.strerror}"
    else:
        report.set_aside.append(kept)
        where = f"kept as {kept}"
    report.notes.append(f"frame {entry.seq} could not be applied: {entry.count} lines lost, {where}")


def adopt_model(store: Store, name: str, sha256: str) -> Model:
    """Move a model from the trainer's directory into the store, and load it. Blocking. Raises as `load_model`."""
    store.adopt_model(store.training / name)
    return load_model(store, name, sha256)


def load_model(store: Store, name: str, sha256: str | None) -> Model:
    """Load a model of the store. Blocking.

    Raises ModelError when the file is missing, damaged or not a model (one whose columns hold what cannot be is set
    aside), NewerFormatError and NewerVersionError when it
    is of a later version, OtherVersionError when it cannot be upgraded to this version, OSError."""
    columns = store.load_model(name, sha256)
    try:
        with _with_location(store.model_path(name)):
            model = from_columns(columns)
        check_model(to_columns(model))
    except (DamagedError, KeyError, TypeError) as exc:
        why = str(exc) if isinstance(exc, DamagedError) else f"is not a model generation: {exc}"
        store.set_model_aside(name, why)
        raise ModelError(f"{name}: {why}") from exc
    return model


def load_knowledge(store: Store, name: str, sha256: str | None = None) -> tuple[str, Knowledge]:
    """The SHA-256 of snapshot `name`, and the knowledge in it, for a restore. Blocking.

    Raises SnapshotError, ModelError for its model, FileNotFoundError, ValueError when `name` is not a snapshot's,
    NewerFormatError, OtherVersionError."""
    try:
        found, columns = store.load_snapshot(name, sha256)
        columns = _upgraded_snapshot(store, name, columns)
        reference = model_in(columns)
        model = load_model(store, reference.name, reference.sha256) if reference.name else None
    except UnreadableError as exc:
        raise SnapshotError(str(exc)) from exc
    return found, Knowledge(columns, model)


@contextmanager
def _with_location(where: Path | str) -> Iterator[None]:
    """Put `where` before the message of an OtherVersionError."""
    try:
        yield
    except OtherVersionError as exc:
        raise type(exc)(f"{where}: {exc}") from exc


def _upgraded_snapshot(store: Store, name: str, columns: Columns) -> State:
    """The `columns` of snapshot `name` in this version's layout."""
    with _with_location(store.directory / name):
        return STATES.upgraded(columns)


def _replay_since_snapshot(
    store: Store,
    found: Found,
    deliver: Callable[[Verdicts], None],
    alive: Callable[[], None],
    report: Report,
    ladder: Ladder,
    *,
    copies: bool,
) -> Recovered:
    report.replayed_lines = 0
    with store.reading_back(found.seq + 1) as (columns, entries):
        fold = Fold(store, report, columns)
        replay = Replay(fold, ladder, alive, copies=copies)
        for entry in entries:
            applied = replay.apply(entry)
            for verdicts in (*applied.reapplied, applied.verdicts):
                deliver(verdicts)
            if entry.seq in found.skipped:
                fold.add_note(f"frame {entry.seq} is left out, as it was when it came")
            elif not ladder.is_skipped(entry.seq):
                report.replayed_lines += entry.count
    poisoned = any(ladder.is_skipped(seq) for seq in ladder.decided)
    detector = fold.detector
    model_to_use = None
    incomplete = found.lost_lines > 0 or found.frames_missing or found.journal_missing
    if found.only_models_left and not detector.model.name and (incomplete or not detector.seq):
        model_to_use = _newest_intact_model(store, found, report)
    if columns is None and not detector.seq and not found.seq and model_to_use is None:
        report.tier = "fresh"
    elif fold.lost or incomplete or poisoned or (columns is None and not detector.seq):
        report.tier = "partial" if detector.seq or model_to_use else "fresh"
    else:
        report.tier = "full"
    return Recovered(
        detector=detector,
        report=report,
        model=model_to_use,
        withdraw=fold.withdraw,
        ladder=ladder,
        members=_members_to_return(detector, ladder),
    )


def _members_to_return(detector: Detector, ladder: Ladder) -> ReturnedFrame | None:
    """Members that an earlier process withdrew are tried again: the cause may be gone. A member that could not be
    loaded fails at the next frame, so there has to be one, with or without lines."""
    before = [each.member for each in detector.summary().withdrawn if each.seq not in ladder.decided]
    return ReturnedFrame(tuple(before)) if before or detector.failing() else None


class Fold:
    """A detector that starts at a snapshot (`columns`; None: empty) and follows the journal. The models that the frame
    `given` refers to are loaded already.

    `withdraw` names the model in force if its file is lost or cannot be used by this program. `lost` says whether
    anything that a frame or the snapshot refers to is lost; each has a note in `report`.
    """

    def __init__(self, store: Store, report: Report, columns: Columns | None, given: Sequenced | None = None) -> None:
        self.withdraw: ModelFrame | None = None
        self.lost = False
        self._store = store
        self._report = report
        self._given = given
        self.detector = Detector() if columns is None else self._load_snapshot_state(columns)

    def apply(self, entry: Entry, without: Mapping[str, str]) -> Verdicts:
        """Apply a frame without the members in `without`. Raises ApplyError, and the detector is undefined then."""
        if self._given is not None and self._given.seq == entry.seq:
            item = self._given
        else:
            try:
                frame = decode_frame(entry.payload)
            except ValueError as exc:
                raise ApplyError(entry, hopeless=True) from exc
            try:
                item = self._with_model_or_knowledge(entry, frame)
            except (OtherVersionError, NewerFormatError, OSError, StoreError, MemoryError, ImportError):
                raise  # not the frame's fault but that of the directory, the medium or the machine
            except Exception as exc:
                # It names what cannot be: a model by a path, or a state that no detector can hold.
                raise ApplyError(entry, hopeless=True) from exc
        item = replace(item, without=without)
        try:
            return self.detector.apply(item)
        except Exception as exc:  # whatever it is, it must not stop the daemon
            raise ApplyError(entry) from exc

    def skip(self, entry: Entry) -> Verdicts:
        """Pass the frame without applying it; it has no verdicts."""
        frame: Frame | None
        try:
            frame = decode_frame(entry.payload)
        except ValueError:
            frame = None
        self.detector.skip(entry.seq, entry.line, frame)
        return Verdicts(entry.seq, entry.line, 0, ())

    def copy_to_go_back_to(self) -> Callable[[], None]:
        """Copy the state; calling the result restores it, any number of times."""
        columns, model, withdraw = self.detector.export(), self.detector.in_force, self.withdraw

        def go_back() -> None:
            # A detector may go on writing into the arrays that it was loaded from.
            fresh = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in columns.items()}
            self.detector, self.withdraw = Detector.load(fresh, model), withdraw

        return go_back

    def _load_snapshot_state(self, columns: Columns) -> Detector:
        with _with_location(f"{self._store.directory}: the newest snapshot"):
            state = STATES.upgraded(columns)
        self._report.snapshot_line = int(state["line"])  # type: ignore[arg-type]
        model = self._referenced_model(model_in(state))
        with _with_location(f"{self._store.directory}: the newest snapshot"):
            return Detector.load(state, model)

    def _with_model_or_knowledge(self, entry: Entry, frame: Frame) -> Sequenced:
        model = knowledge = None
        if isinstance(frame, ModelFrame):
            model = self._referenced_model(frame)
        elif isinstance(frame, RestoreFrame):
            knowledge = self._referenced_knowledge(frame)
        return Sequenced(entry.seq, entry.line, frame, model, knowledge)

    def _referenced_model(self, reference: ModelFrame) -> Model | None:
        self.withdraw = None
        if not reference.name:
            return None
        try:
            return load_model(self._store, reference.name, reference.sha256)
        except NewerVersionError:
            raise  # a later program's directory
        except OtherVersionError as exc:
            _set_model_aside(self._store, reference.name, exc)
            what, because = "cannot be used by this version", ""
        except ModelError as exc:
            what, because = "is lost", f": {exc}"
        self.withdraw, self.lost = reference, True
        self.add_note(f"model generation {reference.generation} {what}, only rules judge until retrained{because}")
        return None

    def _referenced_knowledge(self, frame: RestoreFrame) -> Knowledge | None:
        try:
            _, columns = self._store.load_snapshot(frame.name, frame.sha256)
        except (SnapshotError, FileNotFoundError, ValueError) as exc:
            self.lost = True
            self.add_note(f"what {frame.name} held was restored and is lost, newer knowledge is used instead: {exc}")
            return None
        state = _upgraded_snapshot(self._store, frame.name, columns)
        return Knowledge(state, self._referenced_model(model_in(state)))

    def add_note(self, note: str) -> None:
        if note not in self._report.notes:
            self._report.notes.append(note)


def _set_model_aside(store: Store, name: str, exc: OtherVersionError) -> None:
    store.set_model_aside(name, str(exc).removeprefix(f"{store.model_path(name)}: "))


def _newest_intact_model(store: Store, found: Found, report: Report) -> tuple[ModelFrame, Model] | None:
    """The newest intact model, used because there is no state."""
    for file in found.models:
        try:
            model = load_model(store, file.name, file.sha256)
        except NewerVersionError:
            raise
        except OtherVersionError as exc:
            _set_model_aside(store, file.name, exc)
            continue
        except ModelError as exc:
            report.notes.append(str(exc))
            continue
        report.notes.append(f"the state is lost; model generation {model.generation} is used as far as it goes")
        return ModelFrame(model.generation, file.name, file.sha256), model
    return None
