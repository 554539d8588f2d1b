"""The trainer's process: `python -m daemon.trainer INPUT OUTPUT_DIR`.

Reads a training set (a snapshot file of its columns), trains, writes the model file into OUTPUT_DIR and says
so on standard output, one JSON object a line:

    {"stage", "epoch", "epochs", "loss", "fraction", "seconds_left"}      progress
    {"done": {"name", "sha256"}}                                          last line, exit 0
    {"refused": "one sentence"}                                           last line, exit 0: no better than the old one
    {"error": "one sentence"}                                             last line, exit 1

It may be killed at any moment: a model file appears whole or not at all. It dies with its parent, which holds
the other end of its standard input open for as long as it wants a model: end of file there ends the process
(exit 2). The kernel's parent-death signal would not do, it fires when the *thread* that spawned us ends.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detection.training.run import Progress

ORPHANED = 2


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m daemon.trainer INPUT OUTPUT_DIR  (standard input held open)", file=sys.stderr)
        return 64
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _yield_to_everyone()

    # Only now: the numeric libraries start with one thread, and an orphan dies while importing, too.
    from detection.model import to_columns
    from detection.state import OtherVersionError
    from detection.training.promotion import RefusedError
    from detection.training.run import TrainingError, train
    from detection.training_set import from_columns
    from persistence.model_file import write_model
    from persistence.preamble import NewerFormatError
    from persistence.snapshot import SnapshotError, read_snapshot

    source, target = Path(arguments[0]), Path(arguments[1])
    try:
        _, _, columns = read_snapshot(source)
        model = train(from_columns(columns), progress=_Reporter())
        written = write_model(target, to_columns(model))
    except RefusedError as exc:
        _say({"refused": str(exc)})
        return 0
    except (TrainingError, SnapshotError, NewerFormatError, OtherVersionError, OSError) as exc:
        _say({"error": str(exc)})
        return 1
    except (KeyError, TypeError, ValueError) as exc:
        _say({"error": f"{source}: not a training set: {exc}"})
        return 1
    _say({"done": {"name": written.name, "sha256": written.sha256}})
    return 0


class _Reporter:
    """Prints progress with an estimate of the time left, from what the work so far has taken."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, progress: "Progress") -> None:
        spent = time.monotonic() - self._started
        left = spent * (1.0 - progress.fraction) / progress.fraction
        _say(
            {
                "stage": progress.stage,
                "epoch": progress.epoch,
                "epochs": progress.epochs,
                "loss": round(progress.loss, 4),
                "fraction": round(progress.fraction, 4),
                "seconds_left": round(left, 1),
            }
        )


def _say(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


def _exit_with_parent() -> None:
    # os.read and not sys.stdin: no lock is held that the interpreter's own end would wait for.
    while os.read(0, 4096):
        pass
    os._exit(ORPHANED)


def _yield_to_everyone() -> None:
    """Lowest processor priority; the I/O priority follows it. One thread, whatever the machine has."""
    os.nice(19)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
