"""What a state directory still holds: the newest sound snapshot, the entries after it, the models.

Damaged files are renamed `<name>.bad`, never deleted. A file of a later format is refused before
anything was changed. Whatever was not as it should be is said in `notes` and `set_aside`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from persistence import model_file, segment, snapshot
from persistence.columns import Value
from persistence.directory import PIN_SUFFIX, SNAPSHOT
from persistence.disk import Disk, UnreadableError
from persistence.journal import JournalReading, segments
from persistence.model_file import ModelError, ModelFile
from persistence.preamble import NewerFormatError, check_preamble
from persistence.segment import Entry
from persistence.snapshot import SnapshotError


@dataclass
class Losses:
    """What was set aside (names as they were, with the reason) and what else is worth saying."""

    set_aside: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Recovery:
    """What is left, and what is not.

    `snapshot` is the seq, line and columns of the newest sound one. `entries` is lazy and to be
    iterated once, to the end; the numbers below and `notes` are settled then. `models` are sound, newest
    generation first. New frames must follow `last_seq` and `last_line`, the highest seen anywhere: they
    lie beyond the last entry when what came after it is lost.
    """

    snapshot: tuple[int, int, dict[str, Value]] | None
    snapshot_name: str | None
    entries: Iterator[Entry]
    models: list[ModelFile]
    set_aside: list[str]
    notes: list[str]
    reading: JournalReading
    journal_missing: bool  # there should be one, and there is none

    @property
    def lost_lines(self) -> int:
        return self.reading.lost_lines

    @property
    def frames_missing(self) -> bool:
        return self.reading.frames_missing

    @property
    def last_seq(self) -> int:
        return self.reading.last_seq

    @property
    def last_line(self) -> int:
        return self.reading.last_line


def recover(directory: Path, disk: Disk, losses: Losses, *, was_journaled: bool) -> Recovery:
    """Look through `directory`; `losses` is added to.

    Raises OSError when the disk fails, `NewerFormatError`; iterating the entries, `JournalError` too.
    """
    # Names that a killed process made may not be durable yet, and new ones will rely on them.
    disk.sync(directory)
    _refuse_newer(directory, disk)
    for path in sorted(directory.glob("*.tmp")):
        if _is_leftover(path.name):
            disk.unlink(path)
            losses.notes.append(f"{path.name}: removed, an unfinished write")
    reached = _reached_by_snapshots(directory, disk)
    found = newest_snapshot(directory, disk, losses)
    models = _sound_models(directory, disk, losses)
    _, seq, line, _ = found if found is not None else ("", 0, 0, {})
    journal_missing = was_journaled and not segments(directory)
    if journal_missing and found is None:
        losses.notes.append("neither snapshot nor journal is left of what this directory held")
    elif journal_missing:
        losses.notes.append("no journal is left: how many lines came after the newest snapshot is not known")
    reading = JournalReading(
        directory, seq, line, set_aside=lambda path, why: set_aside(path, why, disk, losses), disk=disk
    )
    for header_seq, header_line in reached:
        reading.saw(header_seq, header_line)
    return Recovery(
        snapshot=None if found is None else found[1:],
        snapshot_name=None if found is None else found[0],
        entries=_entries(reading, losses),
        models=models,
        set_aside=losses.set_aside,
        notes=losses.notes,
        reading=reading,
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
    return sorted(paths, key=lambda path: (model_file.generation_of(path.name), path.name), reverse=True)


def set_aside(path: Path, reason: str, disk: Disk, losses: Losses) -> None:
    """Rename a damaged file to a free `<name>.bad`; one that cannot be renamed stays, which is said."""
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


def bare_reason(path: Path, exc: Exception) -> str:
    """The message of a damage error without the path that it begins with."""
    return str(exc).removeprefix(f"{path}: ")


def _entries(reading: JournalReading, losses: Losses) -> Iterator[Entry]:
    yield from reading
    losses.notes += [note for note in reading.notes if note not in losses.notes]


def _refuse_newer(directory: Path, disk: Disk) -> None:
    kinds = [(path, snapshot.MAGIC, snapshot.VERSION) for _, path in snapshot_paths(directory)]
    kinds += [(path, segment.MAGIC, segment.VERSION) for _, path in segments(directory)]
    for path, magic, newest in kinds:
        try:
            with disk.read(path) as file:
                check_preamble(file.read(16), magic, newest, path)
        except (ValueError, OSError):
            # Damage: found again, and dealt with, where the file is read for good.
            continue


def _reached_by_snapshots(directory: Path, disk: Disk) -> list[tuple[int, int]]:
    """The numbers that any snapshot tells of, also the damaged ones, also those set aside long ago."""
    reached = []
    for path in directory.iterdir():
        match = SNAPSHOT.fullmatch(path.name.removesuffix(".bad"))
        if match is None or int(match[1]) >= 1 << 63:
            continue
        seq = int(match[1])
        try:
            header = snapshot.read_header(path, disk=disk)
            reached.append((seq, header.line if header.seq == seq else 0))
        except (SnapshotError, NewerFormatError, OSError):
            # Only a hint is lost here; what the damage means is found where the file is read for good.
            reached.append((seq, 0))
    return reached


def newest_snapshot(directory: Path, disk: Disk, losses: Losses) -> tuple[str, int, int, dict[str, Value]] | None:
    """The name, seq, line and columns of the newest snapshot that is sound; those that are not are set aside.

    One that cannot be read now stays as it is; an older one takes its place if the journal goes back to it, so that
    nothing is lost. Otherwise raises its UnreadableError.
    """
    unreadable: list[UnreadableError] = []
    for named, path in snapshot_paths(directory):
        try:
            seq, line, columns = snapshot.read_snapshot(path, disk=disk)
            if seq != named:
                raise SnapshotError(f"{path}: is of frame {seq}")
        except SnapshotError as exc:
            set_aside(path, bare_reason(path, exc), disk, losses)
        except UnreadableError as exc:
            unreadable.append(exc)
        else:
            if unreadable and not any(first <= seq + 1 for first, _ in segments(directory)):
                break
            _say_unreadable(unreadable, losses)
            return path.name, seq, line, columns
    if unreadable:
        raise unreadable[0]
    return None


def _sound_models(directory: Path, disk: Disk, losses: Losses) -> list[ModelFile]:
    models = []
    for path in model_paths(directory):
        try:
            models.append(model_file.hash_model(path, disk=disk))
        except ModelError as exc:
            set_aside(path, bare_reason(path, exc), disk, losses)
        except UnreadableError as exc:
            # If the state needs it, whoever loads it meets this again, and then it matters.
            _say_unreadable([exc], losses)
    return models


def _say_unreadable(errors: list[UnreadableError], losses: Losses) -> None:
    notes = [f"{Path(exc.filename).name}: {exc.strerror}" for exc in errors]
    losses.notes += [note for note in notes if note not in losses.notes]


def _is_leftover(name: str) -> bool:
    base = name.removesuffix(".tmp").removesuffix(PIN_SUFFIX)
    ours = SNAPSHOT.fullmatch(base) or model_file.NAME.fullmatch(base) or segment.NAME.fullmatch(base)
    return bool(ours) or name.endswith((".bad.tmp", ".mark.tmp"))
