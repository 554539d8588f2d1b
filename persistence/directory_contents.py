"""What a state directory holds: the newest intact snapshot, the journal entries after it, the models.

A damaged file is set aside: renamed to `<name>.bad`, never deleted. A file of a later format is refused before
anything is changed. `Losses` lists every fault found.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from persistence import journal_segment, model_file, snapshot_file
from persistence.array_bytes import Value
from persistence.disk import Disk, UnreadableError
from persistence.format_preamble import NewerFormatError, check_preamble
from persistence.journal import JournalReader, segment_paths
from persistence.journal_segment import Entry
from persistence.model_file import ModelError, ModelFile
from persistence.snapshot_file import SnapshotError
from persistence.state_directory import PIN_SUFFIX, SNAPSHOT

Snapshot = tuple[int, int, dict[str, Value]]  # its seq, line and columns


@dataclass
class Losses:
    """`set_aside`: names that the files set aside had. `notes`: a sentence for each of them and for any other fault."""

    set_aside: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Recovery:
    """What the directory holds, and what is missing.

    `snapshot` is the seq, line and columns of the newest intact snapshot. `entries` is lazy: iterate it once, to the
    end; the properties and `notes` are final only then. `models` are the intact ones, newest generation first. New
    frames must follow `last_seq` and `last_line`, the highest numbers seen anywhere: they lie beyond the last entry
    when entries after it are lost. `journal_missing`: there was a journal once, and no segment is left.
    """

    snapshot: Snapshot | None
    snapshot_name: str | None
    entries: Iterator[Entry]
    models: list[ModelFile]
    set_aside: list[str]
    notes: list[str]
    reader: JournalReader
    journal_missing: bool

    @property
    def lost_lines(self) -> int:
        return self.reader.lost_lines

    @property
    def frames_missing(self) -> bool:
        return self.reader.frames_missing

    @property
    def last_seq(self) -> int:
        return self.reader.last_seq

    @property
    def last_line(self) -> int:
        return self.reader.last_line


def scan_directory(
    directory: Path, disk: Disk, losses: Losses, read: Callable[[Path], Snapshot], *, was_journaled: bool
) -> Recovery:
    """Read `directory`, set damaged files aside, and add to `losses`. Blocking. `read` is as for `newest_snapshot`.

    Raises OSError when the disk fails, `NewerFormatError`; iterating the entries also raises `JournalError`.
    """
    # Names that a killed process created may not be durable yet, and new files will rely on them.
    disk.sync(directory)
    _refuse_newer_formats(directory, disk)
    for path in sorted(directory.glob("*.tmp")):
        if _is_unfinished_write_of_ours(path.name):
            disk.unlink(path)
            losses.notes.append(f"{path.name}: removed, an unfinished write")
    positions = _snapshot_positions(directory, disk)
    found = newest_snapshot(directory, disk, losses, read)
    models = _intact_model_files(directory, disk, losses)
    _, seq, line, _ = found if found is not None else ("", 0, 0, {})
    journal_missing = was_journaled and not segment_paths(directory)
    if journal_missing and found is None:
        losses.notes.append("neither snapshot nor journal is left of what this directory held")
    elif journal_missing:
        losses.notes.append("no journal is left: how many lines came after the newest snapshot is not known")
    reader = JournalReader(
        directory, seq, line, set_aside=lambda path, why: set_damaged_file_aside(path, why, disk, losses), disk=disk
    )
    for header_seq, header_line in positions:
        reader.note_position(header_seq, header_line)
    return Recovery(
        snapshot=None if found is None else found[1:],
        snapshot_name=None if found is None else found[0],
        entries=_journal_entries(reader, losses),
        models=models,
        set_aside=losses.set_aside,
        notes=losses.notes,
        reader=reader,
        journal_missing=journal_missing,
    )


def snapshot_paths(directory: Path) -> list[tuple[int, Path]]:
    """The snapshots in `directory` that are not set aside, newest first, with their seq."""
    found = []
    for path in directory.iterdir():
        match = SNAPSHOT.fullmatch(path.name)
        if match is not None and int(match[1]) < 1 << 63:
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)


def model_paths(directory: Path) -> list[Path]:
    """The model files in `directory` that are not set aside, newest generation first."""
    paths = [path for path in directory.iterdir() if model_file.NAME.fullmatch(path.name)]
    return sorted(paths, key=lambda path: (model_file.generation_of_model_file(path.name), path.name), reverse=True)


def set_damaged_file_aside(path: Path, reason: str, disk: Disk, losses: Losses) -> None:
    """Rename a damaged file to a free `<name>.bad`. If that fails the file stays, with a note."""
    target = path.with_name(path.name + ".bad")
    attempt = 0
    while os.path.lexists(target):
        attempt += 1
        target = path.with_name(f"{path.name}.{attempt}.bad")
    losses.set_aside.append(path.name)
    try:
        disk.rename(path, target)
    except OSError as exc:
        losses.notes.append(f"{path.name}: {reason}; it could not be renamed: {exc.strerror}")
    else:
        losses.notes.append(f"{path.name}: {reason}; set aside as {target.name}")


def reason_without_path(path: Path, exc: Exception) -> str:
    """The message of a damage error without the path at its beginning."""
    return str(exc).removeprefix(f"{path}: ")


def _journal_entries(reader: JournalReader, losses: Losses) -> Iterator[Entry]:
    yield from reader
    losses.notes += [note for note in reader.notes if note not in losses.notes]


def _refuse_newer_formats(directory: Path, disk: Disk) -> None:
    kinds = [(path, snapshot_file.MAGIC, snapshot_file.VERSION) for _, path in snapshot_paths(directory)]
    kinds += [(path, journal_segment.MAGIC, journal_segment.VERSION) for _, path in segment_paths(directory)]
    for path, magic, newest in kinds:
        try:
            with disk.read(path) as file:
                check_preamble(file.read(16), magic, newest, path)
        except (ValueError, OSError):
            # Damage is found again, and dealt with, when the file is read in full.
            continue


def _snapshot_positions(directory: Path, disk: Disk) -> list[tuple[int, int]]:
    """The (seq, line) of every snapshot, including damaged ones and those set aside long ago; line 0 if unknown."""
    positions = []
    for path in directory.iterdir():
        match = SNAPSHOT.fullmatch(path.name.removesuffix(".bad"))
        if match is None or int(match[1]) >= 1 << 63:
            continue
        seq = int(match[1])
        try:
            header = snapshot_file.read_snapshot_header(path, disk=disk)
            positions.append((seq, header.line if header.seq == seq else 0))
        except (SnapshotError, NewerFormatError, OSError):
            # Only a lower bound is lost; the damage is dealt with when the file is read in full.
            positions.append((seq, 0))
    return positions


def newest_snapshot(
    directory: Path, disk: Disk, losses: Losses, read: Callable[[Path], Snapshot]
) -> tuple[str, int, int, dict[str, Value]] | None:
    """The name, seq, line and columns of the newest intact snapshot; damaged ones are set aside. None without one.

    `read` gives seq, line and columns of one; it raises SnapshotError for a damaged one, and OSError.

    A snapshot that cannot be read now stays as it is. An older one takes its place if the journal reaches back to
    that, so that nothing is lost; otherwise raises UnreadableError.
    """
    unreadable: list[UnreadableError] = []
    for named, path in snapshot_paths(directory):
        try:
            seq, line, columns = read(path)
            if seq != named:
                raise SnapshotError(f"{path}: is of frame {seq}")
        except SnapshotError as exc:
            set_damaged_file_aside(path, reason_without_path(path, exc), disk, losses)
        except UnreadableError as exc:
            unreadable.append(exc)
        else:
            if unreadable and not any(first <= seq + 1 for first, _ in segment_paths(directory)):
                break
            _note_unreadable_files(unreadable, losses)
            return path.name, seq, line, columns
    if unreadable:
        raise unreadable[0]
    return None


def _intact_model_files(directory: Path, disk: Disk, losses: Losses) -> list[ModelFile]:
    models = []
    for path in model_paths(directory):
        try:
            models.append(model_file.hash_model(path, disk=disk))
        except ModelError as exc:
            set_damaged_file_aside(path, reason_without_path(path, exc), disk, losses)
        except UnreadableError as exc:
            # It matters only if the state needs this model; then loading it raises again.
            _note_unreadable_files([exc], losses)
    return models


def _note_unreadable_files(errors: list[UnreadableError], losses: Losses) -> None:
    notes = [f"{Path(exc.filename).name}: {exc.strerror}" for exc in errors]
    losses.notes += [note for note in notes if note not in losses.notes]


def _is_unfinished_write_of_ours(name: str) -> bool:
    base = name.removesuffix(".tmp").removesuffix(PIN_SUFFIX)
    ours = SNAPSHOT.fullmatch(base) or model_file.NAME.fullmatch(base) or journal_segment.NAME.fullmatch(base)
    return bool(ours) or name.endswith((".bad.tmp", ".mark.tmp"))
