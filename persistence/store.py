"""The store: one state directory, and every operation on it.

    lock                     held for the life of the process
    snapshot-<seq>.msgpack   the state at `seq` (persistence/snapshot_file.py); with `.pin` beside it it stays
    model-<gen>-<hash>.pt    immutable (persistence/model_file.py); the last MODELS_KEPT stay, to go back to
    journal-<seq>.log        the frames from `seq` on, the write-ahead log (persistence/journal.py)
    training/                the files of the training run (persistence/training_files.py): not state
    frame-<seq>.bad          a frame that could not be applied; the last FRAMES_SET_ASIDE stay
    alerts.jsonl, .mark      records of alerts (persistence/jsonl.py), and the id of the last one
    verdicts.jsonl, .mark    every record, if the settings say so
    *.jsonl.<number>         what was rotated of either
    *.bad                    set aside: damaged, or holds what cannot be, or a model of a layout that is not ours
    *.tmp                    an unfinished write, removed at recovery

    with open_store(directory, keep=5) as store:
        found = store.recover()
        entries = list(found.entries)                       # to the end, before anything is written
        store.start_journal(found.last_seq, found.last_line)
        store.append([Entry(found.last_seq + 1, found.last_line + 2, 2, b"...")])   # durable when it returns
        store.write_snapshot(seq, line, columns)
        store.rotate()                                      # so that older segments can be removed

At every instant the directory holds the last two intact snapshots and the journal back to the older of
them, so a damaged newest snapshot costs time, not data; and every model file and snapshot that either of
them, or a frame after it, refers to. Calls block. `append`, `rotate` and `start_journal` are for one thread
at a time; everything else may run beside them, and waits for the lock on the files.
"""

import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from persistence import model_file, snapshot_file
from persistence.array_bytes import Columns, Value
from persistence.directory_contents import (
    Losses,
    Recovery,
    Snapshot,
    model_paths,
    newest_snapshot,
    read_directory_contents,
    reason_without_path,
    set_damaged_file_aside,
    snapshot_paths,
)
from persistence.disk import REAL, Disk, UnreadableError, replace_file, unlink_if_there
from persistence.format_preamble import NewerFormatError
from persistence.journal import JournalReader, JournalWriter, segment_paths
from persistence.journal_segment import Entry
from persistence.model_file import ModelError, ModelFile
from persistence.snapshot_file import SnapshotError
from persistence.state_directory import PIN_SUFFIX, SNAPSHOT, Lock, StoreError, open_state_directory
from persistence.training_files import open_training_directory

MODELS_KEPT = 5
FRAMES_SET_ASIDE = 64
_FRAME_SET_ASIDE = re.compile(r"frame-[0-9]{20}\.bad")

log = logging.getLogger(__name__)

Check = Callable[[int, int, Columns], None]


@dataclass(frozen=True)
class SnapshotInfo:
    """One snapshot. `time` is when it was written (epoch seconds), `seconds` how long that took.

    In a listing `seconds` is 0.0, and `line` is 0 if the header is damaged. `notes` says which old files could not
    be removed after writing it; the snapshot itself is durable regardless.
    """

    name: str
    seq: int
    line: int
    bytes: int
    time: float
    pinned: bool = False
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@contextmanager
def open_store(directory: Path, *, keep: int = 5, check: Check | None = None, disk: Disk = REAL) -> Iterator["Store"]:
    """Create, check and lock `directory`, and keep the last `keep` snapshots in it. Raises `StoreError`.

    `check` is called with the seq, line and columns of each snapshot before it is used for the first time; a snapshot
    for which it raises ValueError is damaged.
    """
    if keep < 1:
        raise ValueError(f"keep {keep} snapshots: at least 1")
    with open_state_directory(directory) as lock:
        store = Store(directory, keep, disk, lock, check)
        try:
            yield store
        finally:
            store.close()


class Store:
    """Opened by `open_store`. Call `recover` first, iterate its entries, then `start_journal`; then the rest."""

    def __init__(self, directory: Path, keep: int, disk: Disk, lock: Lock, check: Check | None = None) -> None:
        self.directory = directory
        self.training = directory / "training"
        self._keep = keep
        self._disk = disk
        self._lock = lock
        self._check = check
        self._sound: set[Path] = set()  # snapshots that `check` has found so
        self._journal: JournalWriter | None = None
        self._reader: JournalReader | None = None  # of the last `recover`
        # One list for the life of the process: a second recovery must not hide the faults that the first one found.
        self._losses = Losses()
        # By snapshot, the models it names; by model, its hash. The files never change, so pruning reads each only once.
        self._models_of: dict[str, tuple[str, ...]] = {}
        self._intact_models: dict[str, ModelFile] = {}
        # By file, the journal's last seq when a model or a snapshot was last loaded by name. Written by any thread.
        self._used: dict[str, float] = {}
        # Held for moments only, unlike `_files`: while `_used` changes, and from looking there to removing a model.
        self._using = threading.Lock()
        # Snapshots written with `extra`: they come and go beside the last `keep`.
        self._extra: set[str] = set()
        # Held while snapshots and segments are listed or removed.
        self._files = threading.RLock()
        self._open_training_files()

    def recover(self) -> Recovery:
        """Read the directory; see `Recovery` and `read_directory_contents`. A journal that is open is closed first.

        Raises `StoreError` for files of a later format, which are left untouched, and when the disk fails; iterating
        the entries may raise `JournalError`.
        """
        self.close()
        try:
            found = read_directory_contents(
                self.directory,
                self._disk,
                self._losses,
                self._read_checked_snapshot,
                was_journaled=self._lock.was_journaled,
            )
        except NewerFormatError as exc:
            raise StoreError(str(exc)) from exc
        except OSError as exc:
            raise StoreError(f"{exc.filename or self.directory}: {exc.strerror}") from exc
        self._intact_models = {model.name: model for model in found.models}
        self._models_of.clear()
        self._reader = found.reader
        return found

    def start_journal(self, seq: int, line: int) -> None:
        """Open a new segment for the frames after `seq` and `line`; `append` works from now on.

        Raises RuntimeError if the entries of `recover` were not iterated to the end, ValueError when `seq` or
        `line` would go back. After `JournalError` there is no segment yet, and every `append` tries to create one.
        """
        found = self._reader
        if found is None or not found.finished:
            raise RuntimeError("the journal starts only after recovery, and after its entries were read to the end")
        if seq < found.last_seq or line < found.last_line:
            raise ValueError(f"frame {seq}, line {line} go back behind {found.last_seq}, {found.last_line}")
        self.close()
        self._journal = JournalWriter(self.directory, seq, line, tail=found.tail, disk=self._disk)
        self._journal.rotate()
        if not self._lock.was_journaled:
            try:
                self._lock.mark_journaled()
            except OSError as exc:
                raise StoreError(f"{self.directory / 'lock'}: {exc.strerror}") from exc
            self._lock.was_journaled = True

    @property
    def is_journaling(self) -> bool:
        """Whether `append` works."""
        return self._journal is not None

    def append(self, entries: Sequence[Entry]) -> None:
        """Make `entries` durable; see `JournalWriter.append`."""
        self._open_journal_writer().append(entries)

    def set_frame_aside(self, entry: Entry) -> str:
        """Write the payload of a frame that cannot be applied to `frame-<seq>.bad`, durably; returns the file's name.

        The last FRAMES_SET_ASIDE of them are kept. Raises OSError.
        """
        path = self.directory / f"frame-{entry.seq:020d}.bad"
        replace_file(self._disk, path, [entry.payload])
        self._remove_old_frames_set_aside()
        return path.name

    def _remove_old_frames_set_aside(self) -> None:
        names = sorted(path.name for path in self.directory.iterdir() if _FRAME_SET_ASIDE.fullmatch(path.name))
        for name in names[:-FRAMES_SET_ASIDE]:
            try:
                self._disk.unlink(self.directory / name)
                log.warning("%s is removed: the last %d frames set aside are kept", name, FRAMES_SET_ASIDE)
            except OSError as exc:
                # The frame of now is safe, and the daemon goes on.
                log.warning("%s cannot be removed: %s", name, exc)

    def rotate(self) -> None:
        """Continue in a new segment, so that pruning can remove the old one; see `JournalWriter.rotate`."""
        self._open_journal_writer().rotate()

    def close(self) -> None:
        """Close the journal. Everything appended is durable already."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def write_snapshot(
        self, seq: int, line: int, columns: Columns, models: Collection[str] = (), *, extra: bool = False
    ) -> SnapshotInfo:
        """Write the state at `seq` durably, then remove the files that are no longer needed.

        `models` names the model files that the state refers to. The columns must not change meanwhile. An `extra`
        snapshot does not count among the last `keep`, so it pushes none of them out; it goes when the next snapshot of
        either kind is written. One that outlives the process, because that was killed, is a snapshot like any other.
        Raises OSError, and the older snapshots stay as they were; TypeError as `snapshot_file.write_snapshot` does.
        """
        began = time.monotonic()
        path = self.directory / f"snapshot-{seq:020d}.msgpack"
        with self._files:
            counts = not extra or (path.name not in self._extra and path.exists())
            size = snapshot_file.write_snapshot(path, seq, line, columns, models=models, disk=self._disk)
            self._models_of[path.name] = tuple(models)
            self._extra.discard(path.name)
            if not counts:
                self._extra.add(path.name)
            seconds = time.monotonic() - began
            notes = tuple(self._prune_old_files())
            return SnapshotInfo(
                path.name, seq, line, size, path.stat().st_mtime, _is_snapshot_pinned(path), seconds, notes
            )

    def has_snapshot(self, name: str) -> bool:
        """Whether there is a file of that name; it is not read."""
        return os.path.isfile(self.directory / name)

    def snapshots(self) -> list[SnapshotInfo]:
        """Every snapshot, newest first. Only headers are read; a body may still be damaged."""
        infos = []
        for seq, path in snapshot_paths(self.directory):
            try:
                found = path.stat()
                line = snapshot_file.read_snapshot_header(path, disk=self._disk).line
            except FileNotFoundError:
                continue  # pruned since it was listed
            except (SnapshotError, NewerFormatError, UnreadableError):
                line = 0
            infos.append(SnapshotInfo(path.name, seq, line, found.st_size, found.st_mtime, _is_snapshot_pinned(path)))
        return infos

    def verify_snapshots(self) -> list[tuple[SnapshotInfo, str | None]]:
        """Check every snapshot, and the models it names, against their checksums: each with the error, or None."""
        return [(info, self._snapshot_error(info)) for info in self.snapshots()]

    def load_snapshot(self, name: str, sha256: str | None = None) -> tuple[str, dict[str, Value]]:
        """The SHA-256 of the body of snapshot `name`, and its columns. The file is kept as long as the journal may
        refer to it.

        Raises ValueError when `name` is not a snapshot's, `SnapshotError` when the file is damaged or its body has
        another hash than `sha256`, FileNotFoundError when there is none, `NewerFormatError`, OSError.
        """
        path = self._snapshot_path(name)
        with self._files:
            with self._using:
                self._used[name] = max(self._last_journaled_seq(), self._used.get(name, 0))
            seq, _, columns = self._read_checked_snapshot(path)
            header = snapshot_file.read_snapshot_header(path, disk=self._disk)
        if f"{seq:020d}" not in name:
            raise SnapshotError(f"{path}: is of frame {seq}")
        if sha256 is not None and header.sha256 != sha256:
            raise SnapshotError(f"{path}: is another snapshot than the one that was meant")
        return header.sha256, columns

    def hold_snapshot(self, name: str) -> None:
        """Keep snapshot `name` until `release_snapshot`.

        Raises ValueError when `name` is not a snapshot's, FileNotFoundError when there is none.
        """
        with self._files:
            self._snapshot_path(name).stat()
            with self._using:
                self._used[name] = math.inf

    def release_snapshot(self, name: str) -> None:
        """End `hold_snapshot`: keep the snapshot only as long as a frame journaled meanwhile may refer to it.

        Does not block."""
        self._note_used(name)

    @contextmanager
    def reading_back(self, before: int) -> Iterator[tuple[dict[str, Value] | None, Iterator[Entry]]]:
        """The columns of the newest intact snapshot (None without one), and the entries after it up to frame `before`,
        exclusive.

        To replay them, at a start or when the state of the running daemon is corrupt: the journal stays open and may
        be appended to meanwhile. Raises `StoreError` when the disk fails; iterating may raise `JournalError`.
        """
        with self._files:
            try:
                found = newest_snapshot(self.directory, self._disk, self._losses, self._read_checked_snapshot)
            except OSError as exc:
                raise StoreError(f"{exc.filename or self.directory}: {exc.strerror}") from exc
            _, seq, line, columns = found if found is not None else ("", 0, 0, None)
            reading = JournalReader(
                self.directory, seq, line, before=before, set_aside=self._set_file_aside, disk=self._disk
            )
            yield columns, iter(reading)

    def pin_snapshot(self, name: str) -> None:
        """Keep snapshot `name` for ever; it no longer counts among the last `keep`.

        Raises ValueError when `name` is not a snapshot's, FileNotFoundError when there is none, OSError."""
        path = self._snapshot_path(name)
        with self._files:
            path.stat()
            replace_file(self._disk, _snapshot_pin_path(path), [])

    def unpin_snapshot(self, name: str) -> None:
        """Undo `pin_snapshot`; no error when it was not pinned. Raises as `pin_snapshot` does."""
        path = self._snapshot_path(name)
        with self._files:
            path.stat()
            unlink_if_there(self._disk, _snapshot_pin_path(path))
            self._disk.sync(self.directory)

    def model_path(self, name: str) -> Path:
        """The path of model file `name`. Raises ValueError when that is not the name of one."""
        model_file.generation_of_model_file(name)
        return self.directory / name

    def adopt_model(self, path: Path) -> ModelFile:
        """Check a model file that the trainer left in `training`, and move it into the store, durably.

        Raises `ModelError` when it is damaged, OSError.
        """
        model = model_file.hash_model(path, disk=self._disk)
        self._disk.sync(path)
        self._note_used(model.name)
        self._disk.rename(path, self.directory / model.name)
        self._disk.sync(self.directory)
        self._intact_models[model.name] = model
        return model

    def load_model(self, name: str, sha256: str | None = None) -> dict[str, Value]:
        """The columns of model file `name`. The file is kept as long as the journal may refer to it.

        Raises `ModelError` when it is damaged (it is then set aside) and when there is no such file,
        `NewerFormatError`, OSError.
        """
        path = self.model_path(name)
        self._note_used(name)
        try:
            return model_file.read_model(path, sha256, disk=self._disk)
        except FileNotFoundError as exc:
            raise ModelError(f"{path}: is missing") from exc
        except ModelError as exc:
            # A wrong `sha256` alone does not prove the file damaged: its contents may still match its name.
            if not self._is_model_intact(path):
                set_damaged_file_aside(path, reason_without_path(path, exc), self._disk, self._losses)
                self._intact_models.pop(name, None)
            raise

    def set_model_aside(self, name: str, reason: str) -> None:
        """Set aside model file `name`, which is what was written, but of no use: of another layout, or no model."""
        set_damaged_file_aside(self.model_path(name), reason, self._disk, self._losses)
        self._intact_models.pop(name, None)

    def models(self) -> list[ModelFile]:
        """The intact model files, newest generation first."""
        models = []
        for path in model_paths(self.directory):
            try:
                if path.name not in self._intact_models:
                    self._intact_models[path.name] = model_file.hash_model(path, disk=self._disk)
                models.append(self._intact_models[path.name])
            except (ModelError, UnreadableError):
                # Damaged since recovery: `load_model` reports it and sets the file aside.
                continue
        return models

    def _prune_old_files(self) -> list[str]:
        """Remove the snapshots, segments and models that are no longer needed; notes of what failed."""
        losses = Losses()
        try:
            intact = self._intact_snapshots(losses)
            counted = [each for each in intact if each[1].name not in self._extra]
            kept, older = counted[: self._keep], counted[self._keep :]
            # As if the extra ones were not there: without a single one to keep the journal stays whole.
            oldest_state = kept[:2][-1][0] if kept else 0
            superseded = [each for each in intact[1:] if each[1].name in self._extra]
            for _, path in older + superseded:
                if not _is_snapshot_pinned(path) and self._used.get(path.name, -1) < oldest_state:
                    self._disk.unlink(path)
                    self._models_of.pop(path.name, None)
                    self._extra.discard(path.name)
            if len(kept) > 1 or (kept and self._keep == 1):
                self._prune_files_before(oldest_state)
        except OSError as exc:
            # The snapshot is safe; the old files take space until the next one.
            losses.notes.append(f"not tidied up: {exc}")
        return losses.notes

    def _intact_snapshots(self, losses: Losses) -> list[tuple[int, Path]]:
        intact = []
        for seq, path in snapshot_paths(self.directory):
            try:
                if path.name not in self._models_of:
                    self._models_of[path.name] = self._models_of_checked_snapshot(seq, path)
                intact.append((seq, path))
            except SnapshotError as exc:
                set_damaged_file_aside(path, reason_without_path(path, exc), self._disk, losses)
            except UnreadableError as exc:
                # Neither counted nor removed while it cannot be read.
                losses.notes.append(str(exc))
        return intact

    def _models_of_checked_snapshot(self, seq: int, path: Path) -> tuple[str, ...]:
        """The names of the models of the snapshot at `path`, once all of it was checked. Raises as `check_snapshot`."""
        header, models = snapshot_file.check_snapshot(path, disk=self._disk)
        if header.seq != seq:
            raise SnapshotError(f"{path}: is of frame {header.seq}")
        return models

    def _prune_files_before(self, seq: int) -> None:
        """Remove the segments and models that only a state before `seq` would need."""
        row = segment_paths(self.directory)
        # The last but one stays: it announces the last, whose loss would otherwise go unnoticed.
        for (_, path), (next_first, _) in pairwise(row[:-1]):
            if next_first > seq + 1:
                break
            self._disk.unlink(path)
        needed = {name for names in self._models_of.values() for name in names}
        for path in model_paths(self.directory)[MODELS_KEPT:]:
            with self._using:
                if path.name in needed or self._used.get(path.name, -1) >= seq:
                    continue
                self._disk.unlink(path)
            self._intact_models.pop(path.name, None)

    def _read_checked_snapshot(self, path: Path) -> Snapshot:
        """Raises as `snapshot_file.read_snapshot` does; SnapshotError also for one that `check` refuses."""
        seq, line, columns = snapshot_file.read_snapshot(path, disk=self._disk)
        if self._check is not None and path not in self._sound:
            try:
                self._check(seq, line, columns)
            except ValueError as exc:
                raise SnapshotError(f"{path}: {exc}") from exc
            self._sound.add(path)
        return seq, line, columns

    def _set_file_aside(self, path: Path, reason: str) -> None:
        set_damaged_file_aside(path, reason, self._disk, self._losses)

    def _snapshot_error(self, info: SnapshotInfo) -> str | None:
        """What is wrong with the snapshot or a model that it names, None when nothing is."""
        try:
            for name in self._models_of_checked_snapshot(info.seq, self.directory / info.name):
                model_file.hash_model(self.model_path(name), disk=self._disk)
        except FileNotFoundError as exc:
            return f"{exc.filename}: is missing"
        except (SnapshotError, ModelError, NewerFormatError, ValueError, OSError) as exc:
            return str(exc)
        return None

    def _is_model_intact(self, path: Path) -> bool:
        try:
            model_file.read_model(path, disk=self._disk)
        except ModelError:
            return False
        return True

    def _snapshot_path(self, name: str) -> Path:
        if not SNAPSHOT.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a snapshot")
        return self.directory / name

    def _note_used(self, name: str) -> None:
        with self._using:
            self._used[name] = self._last_journaled_seq()

    def _open_journal_writer(self) -> JournalWriter:
        if self._journal is None:
            raise RuntimeError("the journal is not open")
        return self._journal

    def _last_journaled_seq(self) -> int:
        if self._journal is not None:
            return self._journal.seq
        return self._reader.last_seq if self._reader is not None else 0

    def _open_training_files(self) -> None:
        try:
            open_training_directory(self.training)
        except OSError as exc:
            raise StoreError(f"{self.training}: {exc.strerror}") from exc


def _snapshot_pin_path(path: Path) -> Path:
    return path.with_name(path.name + PIN_SUFFIX)


def _is_snapshot_pinned(path: Path) -> bool:
    return os.path.lexists(_snapshot_pin_path(path))
