"""The store's `training` directory: the files of a training run, with which a restarted daemon resumes it.

    training-<generation>.msgpack  what the run learns from: a snapshot file (snapshot_file.py) of its columns,
                                   and one more, "about" (str), which belongs to the writer
    training-<generation>.part     the partial result of the run: a snapshot file (its seq and line are 0), with
                                     input     str    SHA-256 of the body of what the run learns from, in hex
                                     program   str    what else decides the result: versions and code
                                     fraction  float  how much of the run is done, 0 to 1
                                     work.*           the trainer's own columns
    attempts.json                  `Attempts`, as a JSON object
    model-<generation>-<hash>.pt   a finished model that the daemon has not taken over yet

There is one run at a time, so at most one file of each kind. Each appears whole or not at all. None of them is state: a
file that is damaged, foreign or missing costs only the time it would have saved. When the store is opened everything
else is removed, unfinished writes and models that were not taken over included. All calls block.
"""

import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from persistence.array_bytes import Columns, Value
from persistence.disk import REAL, Disk, replace_file, unlink_if_there
from persistence.format_preamble import NewerFormatError
from persistence.snapshot_file import SnapshotError, read_snapshot, read_snapshot_header, write_snapshot

MAX_PARTIAL_BYTES = 256 << 20  # a run of the largest models writes some 20 MB
MAX_ATTEMPTS_BYTES = 1 << 16

_INPUT = re.compile(r"training-([1-9][0-9]{0,17})\.msgpack")
_PARTIAL = re.compile(r"training-[1-9][0-9]{0,17}\.part")
_ATTEMPTS = "attempts.json"
_ABOUT = "about"
_WORK = "work."
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]  # so that the next count can be written, too


class PartialError(Exception):
    """There is no partial result from which a run could resume. The message is `path: why`."""


class Attempts(msgspec.Struct, omit_defaults=True):
    """How the trainings since the last success went; outlives restarts.

    `failures` counts the failures in a row, the last of them at `failed_at` (epoch seconds) with `error`;
    `failures_total` counts all failures ever. `began_from` is the fraction at which the last run began, None when
    that run ended; `no_further` counts the runs in a row that ended with the daemon and made no progress.
    """

    failures: _Count = 0
    failures_total: _Count = 0
    failed_at: float = 0.0
    error: str | None = None
    began_from: float | None = None
    no_further: _Count = 0


@dataclass(frozen=True)
class Partial:
    """The partial result of an interrupted run: `fraction` of it is done, with the columns `work`."""

    fraction: float
    work: dict[str, Value]


def open_training_directory(directory: Path) -> None:
    """Create `directory`, or remove from it what the next run cannot resume from. Raises OSError."""
    directory.mkdir(mode=0o700, exist_ok=True)
    inputs = []
    for path in sorted(directory.iterdir()):
        found = path.lstat()
        ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
        if ours and _INPUT.fullmatch(path.name):
            inputs.append(path)
        elif not (ours and (path.name == _ATTEMPTS or _PARTIAL.fullmatch(path.name))):
            _remove_file_or_directory(path)
    newest = max(inputs, key=_generation_of_input, default=None)
    for path in directory.iterdir():
        if path.name != _ATTEMPTS and (newest is None or path.stem != newest.stem):
            path.unlink()


def write_training_input(directory: Path, generation: int, seq: int, line: int, columns: Columns, about: str) -> Path:
    """Write the training set of run `generation`, and remove the files of earlier runs. Raises OSError."""
    forget_training_run(directory)
    path = directory / f"training-{generation}.msgpack"
    write_snapshot(path, seq, line, {**columns, _ABOUT: about})
    return path


def find_training_input(directory: Path) -> tuple[Path, str] | None:
    """The path of the training set of a run that did not end, and its "about"; None when there is none.

    Raises SnapshotError when it is damaged, NewerFormatError, OSError.
    """
    path = max(
        (path for path in directory.iterdir() if _INPUT.fullmatch(path.name)), key=_generation_of_input, default=None
    )
    if path is None:
        return None
    _, _, columns = read_snapshot(path)
    about = columns.get(_ABOUT)
    if not isinstance(about, str):
        raise SnapshotError(f"{path}: has no column 'about'")
    return path, about


def forget_training_run(directory: Path) -> None:
    """Remove the files of the last run, except for `Attempts`. Raises OSError."""
    for path in directory.iterdir():
        if path.name != _ATTEMPTS:
            _remove_file_or_directory(path)


def partial_result_path(source: Path) -> Path:
    """The file for the partial result of the run on `source`."""
    return source.with_suffix(".part")


def write_partial_result(source: Path, program: str, fraction: float, work: Columns, *, disk: Disk = REAL) -> int:
    """Replace the partial result of the run on `source`; returns the file's size in bytes.

    Raises OSError, and ValueError when `work` is larger than MAX_PARTIAL_BYTES; the one before stays then.
    """
    size = sum(getattr(value, "nbytes", 0) for value in work.values())
    if size > MAX_PARTIAL_BYTES:
        raise ValueError(f"{size} bytes are more than the {MAX_PARTIAL_BYTES} that are kept")
    identity: dict[str, Value] = {
        "input": read_snapshot_header(source, disk=disk).sha256,
        "program": program,
        "fraction": fraction,
    }
    return write_snapshot(
        partial_result_path(source),
        0,
        0,
        {**identity, **{_WORK + name: value for name, value in work.items()}},
        disk=disk,
    )


def read_partial_result(source: Path, program: str | None, *, disk: Disk = REAL) -> Partial | None:
    """The partial result of the run on `source`, None without one. With `program` None that of any program is taken.

    Raises PartialError when it is damaged, or belongs to another input or program.
    """
    path = partial_result_path(source)
    try:
        _, _, columns = read_snapshot(path, disk=disk)
        theirs = read_snapshot_header(source, disk=disk).sha256
    except FileNotFoundError:
        return None
    except (SnapshotError, NewerFormatError) as exc:
        raise PartialError(str(exc)) from exc
    except OSError as exc:
        raise PartialError(f"{path}: {exc.strerror}") from exc
    fraction = columns.get("fraction")
    if columns.get("input") != theirs:
        raise PartialError(f"{path}: is of another training set")
    if program is not None and columns.get("program") != program:
        raise PartialError(f"{path}: was begun by another version of the program or of its libraries")
    if not isinstance(fraction, float) or not 0.0 <= fraction <= 1.0:
        raise PartialError(f"{path}: does not say how far it is")
    work = {name.removeprefix(_WORK): value for name, value in columns.items() if name.startswith(_WORK)}
    return Partial(fraction, work)


def write_training_attempts(directory: Path, attempts: Attempts) -> None:
    """Replace the file; remove it when `attempts` is as new. Raises OSError."""
    if attempts == Attempts():
        unlink_if_there(REAL, directory / _ATTEMPTS)
        return
    replace_file(REAL, directory / _ATTEMPTS, [msgspec.json.encode(attempts)])


def read_training_attempts(directory: Path) -> Attempts:
    """The attempts on file; those of a new directory when the file is missing or damaged. Raises OSError."""
    try:
        with REAL.read(directory / _ATTEMPTS) as file:
            return msgspec.json.decode(file.read(MAX_ATTEMPTS_BYTES), type=Attempts)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Attempts()


def _generation_of_input(path: Path) -> int:
    match = _INPUT.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _remove_file_or_directory(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        unlink_if_there(REAL, path)
