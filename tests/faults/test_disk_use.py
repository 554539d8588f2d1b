"""However many lines come, the state directory does not grow: journal, snapshots and models are pruned.

VIGILD_FLAT_LINES is how many (`make faults`: 5,000,000). Files of records have a bound of their own and do not count.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import pytest

from benchmarks.running import QUICK, Vigild, sample_lines
from tests.faults.altered import BRIEF_TRAINING, alter

LINES = int(os.environ.get("VIGILD_FLAT_LINES", "60000"))
WARMUP = 2000  # within the first share
EVERY_LINES = 2000
SHARES = 24  # sent one after another, with a snapshot behind each, beside those that are due by themselves
SENT_AT_ONCE = 20_000
_LOOK_SECONDS = 0.05
_COUNTED = ("journal-*", "snapshot-*", "model-*", "frame-*", "training/*")

KEEPS_EVERYTHING = """
from persistence.store import Store
Store._prune_old_files = lambda self: []
"""


class Usage:
    """Looks at a state directory again and again; `seen` is how many lines were sent, and the bytes then."""

    def __init__(self, state: Path) -> None:
        self.sent = 0
        self.seen: list[tuple[int, int]] = []
        self._state = state
        self._over = threading.Event()

    @contextmanager
    def watched(self) -> Iterator["Usage"]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join()

    def largest(self, start: float, stop: float) -> int:
        """The most bytes while the lines from `start` to `stop`, shares of all, were sent."""
        return max(size for sent, size in self.seen if start * LINES <= sent <= stop * LINES)

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self.seen.append((self.sent, size_of(self._state)))


def size_of(state: Path) -> int:
    size = 0
    for pattern in _COUNTED:
        for path in state.glob(pattern):
            try:
                size += path.stat().st_size
            except FileNotFoundError:  # let go of as we looked
                continue
    return size


def flood(home: Path, code: str = "") -> tuple[Usage, Vigild]:
    """Send all lines to a daemon that trains now and then; it is stopped at the end."""
    settings = QUICK.format(warmup=WARMUP, retrain=LINES // 4, every_lines=EVERY_LINES, verdicts="flagged")
    daemon = Vigild(home, settings=settings)
    alter(daemon, BRIEF_TRAINING + code)
    usage = Usage(daemon.state)
    stream = cycle(sample_lines())
    try:
        daemon.start()
        with usage.watched():
            began = time.monotonic()
            for share in range(SHARES):
                for size in pieces(LINES // SHARES):
                    daemon.send_lines(list(islice(stream, size)))
                    usage.sent += size
                daemon.post("/checkpoint")
                if share == 0:
                    daemon.wait_for_model()
            rate = usage.sent / (time.monotonic() - began)
        status = daemon.status()
        daemon.applied(usage.sent)
        assert daemon.stop() == 0
    finally:
        daemon.close()
    print(
        f"{usage.sent:,} lines at {rate:,.0f}/s, generation {status['training']['generation_in_force']}; at most "
        f"{usage.largest(0, 0.4) / 1e6:.1f} MB in the first two fifths, {usage.largest(0.4, 1) / 1e6:.1f} MB after"
    )
    return usage, daemon


def pieces(lines: int) -> Iterator[int]:
    while lines > 0:
        yield min(lines, SENT_AT_ONCE)
        lines -= SENT_AT_ONCE


def grows(usage: Usage) -> bool:
    return usage.largest(0.4, 1.0) > 1.5 * usage.largest(0.0, 0.4) + 5_000_000


@pytest.mark.timeout(7200)
def test_disk_use_is_flat_however_many_lines_come(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    usage, daemon = flood(tmp_path)
    record_property("lines", usage.sent)
    record_property("bytes at most", usage.largest(0.0, 1.0))
    assert not grows(usage)
    assert len(list(daemon.state.glob("snapshot-*"))) == 5
    assert len(list(daemon.state.glob("model-*"))) <= 5


def test_a_daemon_that_never_prunes_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr("tests.faults.test_disk_use.LINES", min(LINES, 60_000))
    usage, _ = flood(tmp_path, KEEPS_EVERYTHING)
    assert grows(usage)
