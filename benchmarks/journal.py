"""The cost of durability: the same lines through sequencer and scoring, alternately with and without the journal.

    python -m benchmarks.journal [--log access.log[.gz]] [--lines 60000] [--rounds 5]

"Without" neither appends nor syncs; everything else is the daemon's code. Rules alone judge, so that scoring is
fast and the journal's share as large as possible.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import trio

from actors.scoring import Scoring, run_scoring
from actors.sequencer import Chunk, Request, Sequencer, run_sequencer
from benchmarks.end_to_end import read_lines
from daemon.settings_file import Settings, read_rules
from detection.detector import Detector
from detection.frames import Segment, Sequenced, SettingsFrame
from detection.verdicts.verdict_records import Verdicts
from persistence.journal_segment import Entry
from persistence.store import open_store

CHUNK_LINES = 1000  # about one read from a socket
CHUNKS_UNDER_WAY = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, help="a log of access lines (default: the bundled one)")
    parser.add_argument("--lines", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    lines = list(islice(cycle(read_lines(options.log)), options.lines))
    ratios = []
    for number in range(1, options.rounds + 1):
        with tempfile.TemporaryDirectory(prefix="vigild-journal-") as directory, open_store(Path(directory)) as store:
            list(store.recover().entries)
            store.start_journal(1, 0)  # after the frame that holds the settings
            journaled = trio.run(rate, lines, store.append)
        unjournaled = trio.run(rate, lines, lambda entries: None)
        ratios.append(journaled / unjournaled)
        print(
            f"round {number}   {journaled:9,.0f} lines/s with, {unjournaled:9,.0f} without: {ratios[-1]:.3f}",
            flush=True,
        )
    print(f"median    {statistics.median(ratios):.3f} of the throughput without a journal")


async def rate(lines: list[bytes], append: Callable[[Sequence[Entry]], None]) -> float:
    """Lines per second from the first chunk sent to the last one applied."""
    settings = Settings()
    detector = Detector()
    detector.apply(Sequenced(1, 0, SettingsFrame(settings.detection, read_rules(settings))))
    scoring = Scoring(detector)
    sequencer = Sequencer(append, lambda: None, seq=1, line=0, now=time.time)
    requests_in, requests = trio.open_memory_channel[Request](CHUNKS_UNDER_WAY)
    frames_in, frames = trio.open_memory_channel[Sequenced](4)
    verdicts_in, verdicts = trio.open_memory_channel[Verdicts](4)
    under_way = trio.Semaphore(CHUNKS_UNDER_WAY)

    async def hand_over(start: int, nursery: trio.Nursery) -> None:
        part = lines[start : start + CHUNK_LINES]
        chunk = Chunk(Segment("bench-1", "access", b"".join(line + b"\n" for line in part), len(part)))
        await requests_in.send(chunk)

        async def wait() -> None:
            await chunk.committed.wait()
            under_way.release()

        nursery.start_soon(wait)

    async def drop() -> None:
        async for _ in verdicts:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_scoring, scoring, frames, verdicts_in, lambda: None)
        nursery.start_soon(drop)
        await nursery.start(lambda **k: run_sequencer(sequencer, requests, frames_in, idle_seconds=60.0, **k))
        began = time.monotonic()
        for start in range(0, len(lines), CHUNK_LINES):
            await under_way.acquire()
            await hand_over(start, nursery)
        requests_in.close()
    return len(lines) / (time.monotonic() - began)


if __name__ == "__main__":
    main()
