"""The real daemon under everything at once, for VIGILD_SOAK_SECONDS (`make soak`: an hour; CI: five minutes).

Load of several kinds from many connections, a slow and a hostile one among them; clients of the admin API that are
slow, silent, hasty or no clients at all; operators who ask, rotate and reload; retraining. For the first half it is
killed every 20 to 60 seconds, mostly by SIGKILL. Then it is left alive and watched: it must not grow, and in the long
form, where it gets warm, by less than a megabyte a minute. What is asserted is in `checks.py`, and that it would be
noticed in `tests/test_soak_checks.py`.
"""

import json
import os
import random
import signal
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.running import TRAINING_SECONDS, Vigild
from detection.frames import LinesFrame, SkipFrame, decode_frame
from persistence.journal import JournalReader
from tests.faults.witness import Witness
from tests.soak.checks import (
    MOST_MORE,
    Journaled,
    Record,
    Sample,
    bytes_a_minute,
    wrong_with_lines,
    wrong_with_log,
    wrong_with_records,
    wrong_with_sum,
    wrong_with_use,
    wrong_with_what_is_held,
)
from tests.soak.hostile import Hostile
from tests.soak.load import Load

SECONDS = float(os.environ.get("VIGILD_SOAK_SECONDS", "300"))
KILL_SECONDS = (20.0, 60.0)
# In the long form what remembers a bounded number of lines is full by then, and grows no more.
WARM_LINES = 300_000 if SECONDS >= 1800.0 else 40_000
WARM_SECONDS = min(300.0, SECONDS / 5)
SAMPLE_SECONDS = 2.0
ROTATE_SECONDS = 40.0
# Connections of clients that have left are let go of by then.
LEFT_SECONDS = 90.0
SETTINGS = """
[learning]
early_lines = 500
warmup_lines = 2000
retrain_lines = {retrain}
retrain_seconds = 60
[checkpoint]
every_lines = 3000
every_seconds = 20
[admin]
bind = ["unix:admin.sock", "127.0.0.1:{port}"]
"""

pytestmark = pytest.mark.timeout(2 * SECONDS + 2 * TRAINING_SECONDS)


@dataclass
class Rotation:
    """Moves `alerts.jsonl` away as logrotate does, and sends the signals that go with it."""

    daemon: Vigild
    rng: random.Random
    rotated: int = 0
    due: float = 0.0

    def look(self) -> None:
        if time.monotonic() < self.due or not self.current.exists():
            return
        self.due = time.monotonic() + self.rng.uniform(0.5, 1.5) * ROTATE_SECONDS
        os.replace(self.current, self.current.with_name(f"alerts.jsonl.{self.rotated}"))
        self.rotated += 1
        assert self.daemon.process is not None
        for number in self.rng.sample((signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP), 2):
            self.daemon.process.send_signal(number)

    @property
    def current(self) -> Path:
        return self.daemon.state / "alerts.jsonl"

    def records(self) -> list[Record]:
        files = [self.current.with_name(f"alerts.jsonl.{number}") for number in range(self.rotated)]
        return [json.loads(line) for path in (*files, self.current) for line in path.read_bytes().splitlines()]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def test_it_stands_its_ground(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    rng, port = random.Random(seed), free_port()
    (tmp_path / "state").mkdir(mode=0o700)
    daemon = Vigild(tmp_path, settings=SETTINGS.format(port=port, retrain=max(5000, int(20 * SECONDS))))
    load = Load(daemon.runtime / "log.sock", rng)
    hostile = Hostile(port, daemon.runtime / "admin.sock", rng)
    rotation = Rotation(daemon, rng)
    try:
        with Witness(daemon.state, tmp_path / "kept", ("journal-*.log",)).watching() as witness:
            daemon.start()
            idle = look_at(daemon)
            with load.at_work(), hostile.at_work():
                kills, starts = killed_again_and_again(daemon, rotation, rng, SECONDS / 2)
                daemon.wait(lambda: daemon.status()["training"]["generation_in_force"] > 0, TRAINING_SECONDS)
                load.fill(WARM_LINES, rng)
                watched_for(daemon, rotation, WARM_SECONDS)
                samples = watched_for(daemon, rotation, SECONDS / 2 - WARM_SECONDS)
            left = look_when_all_have_left(daemon, idle)
            daemon.post("/flush")
            status = daemon.status()
            assert daemon.stop() == 0
    finally:
        daemon.close()
    journaled, records = read_journal(witness.kept), rotation.records()
    print(
        f"{status['logs_processed']:,} lines, {load.confirmed:,} of {len(load.sendings):,} connections confirmed, "
        f"{kills} kills, slowest start {max(starts):.1f} s, {rotation.rotated} rotations, {len(records):,} records, "
        f"{hostile.answers:,} answers, generation {status['training']['generation_in_force']}; when warm "
        f"{bytes_a_minute(samples) / 1e6:+.2f} MB a minute, {samples[0]} to {samples[-1]}; idle {idle}, left {left}"
    )
    wrong = wrong_with_lines(load.sendings, journaled, status) + wrong_with_records(records, journaled)
    wrong += wrong_with_sum(records, status)
    wrong += (
        wrong_with_log(daemon.log) + wrong_with_use(samples) + wrong_with_what_is_held([idle], [left]) + hostile.wrong
    )
    assert wrong == []
    # That much happened, or it proves little.
    assert kills >= SECONDS / 2 / KILL_SECONDS[1] - 1 and rotation.rotated and hostile.answers > SECONDS / 4
    assert load.confirmed > SECONDS / 2 and len(records) > SECONDS / 10
    record_property("lines", status["logs_processed"])
    record_property("records", len(records))
    record_property("kills and stops", kills)
    record_property("bytes more a minute", round(bytes_a_minute(samples)))


def killed_again_and_again(
    daemon: Vigild, rotation: Rotation, rng: random.Random, seconds: float
) -> tuple[int, list[float]]:
    """How often, and how long each start took. Every fifth end is an orderly stop, whose status must be 0."""
    end, kills, starts = time.monotonic() + seconds, 0, []
    while time.monotonic() < end:
        watched_for(daemon, rotation, min(rng.uniform(*KILL_SECONDS), max(end - time.monotonic(), 1.0)))
        if rng.randrange(5):
            daemon.kill()
        else:
            assert daemon.stop() == 0, daemon.log[-2000:]
        kills += 1
        began = time.monotonic()
        daemon.start()
        starts.append(time.monotonic() - began)
    return kills, starts


def watched_for(daemon: Vigild, rotation: Rotation, seconds: float) -> list[Sample]:
    end, samples = time.monotonic() + seconds, []
    while time.monotonic() < end:
        samples.append(look_at(daemon))
        rotation.look()
        time.sleep(min(SAMPLE_SECONDS, max(end - time.monotonic(), 0.0)))
    return samples


def look_at(daemon: Vigild) -> Sample:
    assert daemon.process is not None and daemon.process.poll() is None, daemon.log[-2000:]
    process = Path(f"/proc/{daemon.process.pid}")
    found = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    rss = int(found["VmRSS"].split()[0]) * 1024
    return Sample(time.monotonic(), rss, len(list((process / "fd").iterdir())), int(found["Threads"]))


def look_when_all_have_left(daemon: Vigild, idle: Sample) -> Sample:
    """When nobody holds it any more, or at the end of the time that it has for that."""
    end = time.monotonic() + LEFT_SECONDS
    while (sample := look_at(daemon)).descriptors > idle.descriptors + MOST_MORE and time.monotonic() < end:
        time.sleep(1.0)
    return sample


def read_journal(kept: Path) -> Journaled:
    journaled = Journaled()
    sources: dict[str, bytearray] = defaultdict(bytearray)
    reading = JournalReader(kept, 0, 0, set_aside=lambda path, why: journaled.notes.append(f"{path.name}: {why}"))
    for entry in reading:
        frame = decode_frame(entry.payload)
        if isinstance(frame, SkipFrame):
            journaled.notes.append(f"frame {frame.seq} was left out")
        for segment in frame.segments if isinstance(frame, LinesFrame) else ():
            sources[segment.source] += segment.data
            journaled.lines += segment.lines
    journaled.notes += serious(reading.notes)
    journaled.sources = {name: bytes(data) for name, data in sources.items()}
    return journaled


def serious(notes: list[str]) -> Iterator[str]:
    """All but what a kill may leave: a last write that was never confirmed."""
    return (note for note in notes if "never confirmed" not in note)
