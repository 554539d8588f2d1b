"""The trainer's process: `python -m daemon.trainer INPUT OUTPUT_DIR`.

Reads a training set (a snapshot file of its columns), trains, and writes the model file into OUTPUT_DIR. It reports on
standard output, one JSON object per line:

    {"resumed": 0.43}                                                     first, when it resumes an interrupted run
    {"note": "one sentence"}                                              for the log
    {"stage", "epoch", "epochs", "loss", "fraction", "seconds_left"}      progress; seconds_left may be null
    {"done": {"name", "sha256"}}                                          last line, exit 0
    {"refused": "one sentence"}                                           last line, exit 0: worse than the last model
    {"error": "one sentence"}                                             last line, exit 1

It may be killed at any moment: a model file appears whole or not at all. Beside the input it keeps its partial result
(`persistence.training_files`), from which the same program resumes on the same input, to the same model bit for bit.
At most NOTES_SHARE of the time is spent writing it. The trainer dies with its parent, which keeps the other end of its
standard input open for as long as it wants a model: end of file there ends the process (exit 2). The kernel's
parent-death signal would not do: it fires when the *thread* that spawned us ends.
"""

import hashlib
import json
import math
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detection.columns.state_columns import Columns, State
    from detection.learning.training_run import Progress

ORPHANED = 2
NOTES_SECONDS = 2.0
NOTES_SHARE = 0.01


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m daemon.trainer INPUT OUTPUT_DIR  (standard input held open)", file=sys.stderr)
        return 64
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # for the daemon, but sent to the whole service
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _take_lowest_priority()

    # Imported only now: the numeric libraries read the number of threads, and an orphan dies while importing, too.
    from detection.columns.state_columns import OtherVersionError
    from detection.learning.promotion import RefusedError
    from detection.learning.training_run import TrainingError, train
    from detection.members.registry import ONLINE_NAMES
    from detection.models.model import to_columns
    from detection.models.training_set import from_columns
    from persistence.disk import os_error_text
    from persistence.format_preamble import NewerFormatError
    from persistence.model_file import write_model
    from persistence.snapshot_file import SnapshotError, read_snapshot

    source, target = Path(arguments[0]), Path(arguments[1])
    try:
        _, _, columns = read_snapshot(source)
        notebook = Notebook(source)
        model = train(from_columns(columns, ONLINE_NAMES), progress=_Reporter(notebook.fraction), notebook=notebook)
        written = write_model(target, to_columns(model))
    except RefusedError as exc:
        _report_to_parent({"refused": str(exc)})
        return 0
    except (TrainingError, SnapshotError, NewerFormatError, OtherVersionError) as exc:
        _report_to_parent({"error": str(exc)})
        return 1
    except OSError as exc:
        _report_to_parent({"error": os_error_text(exc, target)})
        return 1
    except (KeyError, TypeError, ValueError) as exc:
        _report_to_parent({"error": f"{source}: not a training set: {exc}"})
        return 1
    for name, reason in model.unfitted.items():
        _report_to_parent({"note": f"trained without {name}, which could not be fitted: {reason}"})
    _report_to_parent({"done": {"name": written.name, "sha256": written.sha256}})
    return 0


class Notebook:
    """The partial result of the run on `source`: read at once, and replaced as the run goes on.

    `found` holds the columns of an interrupted run, of which `fraction` is done; empty and 0 without one.
    """

    def __init__(self, source: Path) -> None:
        from persistence.training_files import PartialError, read_partial_result

        self._source = source
        self._program = training_program()
        self._not_before = time.monotonic() + NOTES_SECONDS
        self.found: Columns = {}
        self.fraction = 0.0
        try:
            notes = read_partial_result(source, self._program)
        except PartialError as exc:
            _report_to_parent({"note": f"beginning anew: {exc}"})
            return
        if notes is not None:
            self.found, self.fraction = notes.work, notes.fraction
            _report_to_parent({"resumed": round(notes.fraction, 4)})

    def note(self, fraction: float, state: "Callable[[], State]") -> None:
        """Write `state()` as the partial result at `fraction`, unless the last one was written too recently.

        An error ends the writing, with a note on standard output, and not the run.
        """
        from persistence.disk import os_error_text
        from persistence.training_files import partial_result_path, write_partial_result

        began = time.monotonic()
        # A fit that is taken from the partial result reports again what is in it already.
        if began < self._not_before or fraction <= self.fraction:
            return
        try:
            write_partial_result(self._source, self._program, fraction, state())
        except (OSError, ValueError) as exc:
            why = os_error_text(exc, partial_result_path(self._source)) if isinstance(exc, OSError) else str(exc)
            _report_to_parent({"note": f"a restart will resume at {self.fraction:.0%}, which was written last: {why}"})
            self._not_before = math.inf  # a full disk is needed for more important writes
            return
        self.fraction = fraction
        now = time.monotonic()
        self._not_before = now + max(NOTES_SECONDS, (now - began) / NOTES_SHARE)


def training_program() -> str:
    """What must be equal for one run to resume another: the code, the libraries, the number of threads."""
    import detection

    sha = hashlib.sha256()
    root = Path(detection.__path__[0])
    for path in sorted(root.rglob("*.py")):
        sha.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    libraries = " ".join(f"{name} {version(name)}" for name in ("numpy", "scikit-learn", "torch"))
    return f"{sha.hexdigest()} {libraries} {platform.python_version()} 1 thread"


class _Reporter:
    """Prints progress with the seconds left, estimated from the time that this process has taken so far.

    `begun` is the fraction that an interrupted run had done.
    """

    def __init__(self, begun: float) -> None:
        self._started = time.monotonic()
        self._begun = begun

    def __call__(self, progress: "Progress") -> None:
        spent = time.monotonic() - self._started
        done = progress.fraction - self._begun
        left = spent * (1.0 - progress.fraction) / done if done > 0.0 else None
        _report_to_parent(
            {
                "stage": progress.stage,
                "epoch": progress.epoch,
                "epochs": progress.epochs,
                "loss": round(progress.loss, 4),
                "fraction": round(progress.fraction, 4),
                "seconds_left": None if left is None else round(left, 1),
            }
        )


def _report_to_parent(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


def _exit_with_parent() -> None:
    # os.read and not sys.stdin: it holds no lock that the interpreter would wait for at exit.
    while os.read(0, 4096):
        pass
    os._exit(ORPHANED)


def _take_lowest_priority() -> None:
    """Take the lowest CPU priority, which the I/O priority follows, and one thread however many cores there are."""
    os.nice(19)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
