"""The cost of a snapshot: how long scoring pauses for it, and how long writing and loading take.

    python -m benchmarks.snapshot [--sessions 50000] [--templates 5000]

The state is as large as a busy daemon's: with this many open sessions and templates, and full calibration scores.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from daemon.host.malloc import keep_freed_buffers
from detection.columns.state_columns import digest
from detection.detector import Detector
from detection.frames import LinesFrame, Segment, Sequenced
from persistence.snapshot_file import read_snapshot, write_snapshot

ROUNDS = 100
LINES_A_SESSION = 6
FRAME_LINES = 1000
RECEIVED = 1_700_000_000.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=50_000)
    parser.add_argument("--templates", type=int, default=5_000)
    options = parser.parse_args()
    keep_freed_buffers()  # as the daemon does
    detector = busy_detector(options.sessions, options.templates)
    summary = detector.summary()
    print(f"state                  {summary.sessions_open:,} open sessions, {summary.templates:,} templates")

    pauses = [timed(detector.export) for _ in range(ROUNDS)]
    print(f"scoring pauses         p50 {middle(pauses):.1f} ms, p99 {pauses[-2]:.1f} ms of {ROUNDS} copies")
    state = detector.export()
    print(f"digest                 {timed(lambda: digest(state)):.0f} ms, beside scoring")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "snapshot-00000000000000000001.msgpack"
        print(f"write, fsync, rename   {timed(lambda: write_snapshot(path, 1, 1, state)):.0f} ms, "
              f"{path.stat().st_size / 1e6:.1f} MB, beside scoring")  # fmt: skip
        _, _, columns = read_snapshot(path)
        print(f"read and verify        {timed(lambda: read_snapshot(path)):.0f} ms")
        print(f"load                   {timed(lambda: Detector.load(columns, None)):.0f} ms")
        same = digest(Detector.load(columns, None).export()) == digest(state)
        print(f"digest after loading   {'equal' if same else 'DIFFERS'}")


def busy_detector(sessions: int, templates: int) -> Detector:
    """A detector that has seen `templates` kinds of lines from `sessions` programs, six lines each."""
    detector = Detector()
    for start in range(0, sessions * LINES_A_SESSION, FRAME_LINES):
        numbers = range(start, min(start + FRAME_LINES, sessions * LINES_A_SESSION))
        data = b"".join(line(number % sessions, number % templates) for number in numbers)
        frame = LinesFrame(RECEIVED, (Segment("bench-1", "syslog", data, len(numbers)),))
        detector.apply(Sequenced(detector.seq + 1, detector.line + len(numbers), frame))
    return detector


def line(session: int, template: int) -> bytes:
    """A syslog line of program number `session`, of a kind of its own: number of words, first and second word."""
    words = [word(template // 30 % 24), word(template // 720), *["went"] * (template % 30)]
    return f"Nov 14 22:13:20 host {word(session)}[7]: {' '.join(words)} well\n".encode()


def word(number: int) -> str:
    """A word without digits, which masks would take for a variable."""
    letters = ""
    while True:
        number, letter = divmod(number, 26)
        letters += chr(97 + letter)
        if not number:
            return letters


def timed(call: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def middle(values: list[float]) -> float:
    values.sort()
    return values[len(values) // 2]


if __name__ == "__main__":
    main()
