"""The cost of a start: the time until lines are durable again and until the state is read, with much to replay.

    python -m benchmarks.recovery [--log access.log[.gz]] [--lines 10000] [--model-bytes 13000000] [--rounds 5]

A daemon is trained and stopped. Its model is made as large as asked for, put in force again by a frame, and so many
lines in full frames are left in the journal behind it. Then it is started, killed, and started again: every start
loads the snapshot, the models, and replays the same frames.
"""

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from actors.sequencer import FRAME_BYTES
from benchmarks.end_to_end import read_lines
from benchmarks.running import QUICK, Vigild
from daemon.startup.startup_scan import scan_directory
from detection.frames import Frame, LinesFrame, ModelFrame, Segment, count_lines, encode_frame
from persistence.journal_segment import Entry
from persistence.model_file import generation_of_model_file, write_model
from persistence.store import open_store

WARMUP = 3000
RECEIVED = 1_700_000_000.0
IMPORTS = (
    "import torch, daemon.lifecycle, daemon.startup.detector_recovery, daemon.startup.read_back, "
    "detection.formats.kinds"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, help="a log of access lines (default: the bundled one)")
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--model-bytes", type=int, default=13_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    lines = read_lines(options.log)
    settings = QUICK.format(warmup=WARMUP, retrain=1_000_000_000, every_lines=1_000_000_000, verdicts="flagged")
    with tempfile.TemporaryDirectory(prefix="vigild-bench-") as home:
        daemon = Vigild(Path(home), settings=settings)
        try:
            train(daemon, lines)
            leave(daemon.state, list(islice(cycle(lines), options.lines)), options.model_bytes)
            measure(daemon, options.rounds)
        finally:
            daemon.close()


def train(daemon: Vigild, lines: list[bytes]) -> None:
    daemon.start()
    daemon.send_lines(list(islice(cycle(lines), WARMUP)))
    daemon.wait_for_model()
    if daemon.stop():
        raise SystemExit(daemon.log)


def leave(state: Path, lines: list[bytes], model_bytes: int) -> None:
    """A model of `model_bytes`, the frame that puts it in force, and `lines` in full frames."""
    with open_store(state) as store:
        found = scan_directory(store)
        store.start_journal(found.seq, found.line)
        columns = store.load_model(found.models[0].name)
        size = (state / found.models[0].name).stat().st_size
        padded = {**columns, "filler": np.zeros(max(model_bytes - size, 0), dtype=np.uint8)}
        model = write_model(store.training, padded)
        store.adopt_model(store.training / model.name)
        seq, line, frames = found.seq, found.line, 0
        for frame in (ModelFrame(generation_of_model_file(model.name), model.name, model.sha256), *full_frames(lines)):
            seq, line, frames = seq + 1, line + count_lines(frame), frames + 1
            store.append([Entry(seq, line, count_lines(frame), encode_frame(frame))])
        print(f"left           a model of {(state / model.name).stat().st_size / 1e6:.1f} MB, "
              f"{len(lines):,} lines in {frames - 1} frames")  # fmt: skip


def full_frames(lines: list[bytes]) -> Iterator[Frame]:
    part: list[bytes] = []
    for line in lines:
        if part and sum(map(len, part)) + len(part) + len(line) >= FRAME_BYTES:
            yield lines_frame(part)
            part = []
        part.append(line)
    yield lines_frame(part)


def lines_frame(lines: list[bytes]) -> Frame:
    return LinesFrame(RECEIVED, (Segment("bench-1", "access", b"".join(line + b"\n" for line in lines), len(lines)),))


def measure(daemon: Vigild, rounds: int) -> None:
    """Each round ends with SIGKILL before anything new is saved, so the next one replays the same and a line more."""
    imports, durable, serving = [], [], []
    for number in range(1, rounds + 1):
        imports.append(seconds_of_imports())
        began = time.monotonic()
        daemon.launch()
        send_as_soon_as_possible(daemon, b"one line more\n")
        durable.append(time.monotonic() - began)
        daemon.wait(lambda: bool(daemon.health().get("serving")))
        serving.append(time.monotonic() - began)
        recovery = daemon.status()["recovery"]
        print(
            f"round {number}        a line durable after {durable[-1]:.2f} s, serving after {serving[-1]:.2f} s, "
            f"{serving[-1] - imports[-1]:.2f} s beyond imports ({imports[-1]:.2f} s); "
            f"{recovery['tier']}, {recovery['replayed_lines']:,} lines replayed in {recovery['seconds']:.2f} s",
            flush=True,
        )
        daemon.kill()
    beyond = [whole - part for whole, part in zip(serving, imports, strict=True)]
    print(
        f"median         a line durable after {statistics.median(durable):.2f} s, serving after "
        f"{statistics.median(serving):.2f} s, {statistics.median(beyond):.2f} s beyond imports (target: 5)"
    )


def send_as_soon_as_possible(daemon: Vigild, data: bytes) -> None:
    while True:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(daemon.runtime / "log.sock"))
            except (ConnectionRefusedError, FileNotFoundError):
                time.sleep(0.01)
                continue
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b"", daemon.log
            return


def seconds_of_imports() -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
