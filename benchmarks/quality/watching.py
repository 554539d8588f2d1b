"""The daemon under test: fed over its sockets, queried over its API, evaluated by its records.

A log of days is sent within minutes, so we wait where a real day would leave the time: a training that has
begun ends before more lines are sent. `retrain_seconds` is 0 for the same reason.
A wait is silence to the daemon: if it is longer than the idle time, open sessions are cut in two, and the second
halves look unusual. That says nothing about the verdicts, so `notes` reports it: measure again on an idle machine.
All other settings are the defaults unless a set changes them.
"""

import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.quality.records import Records, read_records
from benchmarks.running import Vigild
from detection.detection_settings import SessionSettings

BATCH_LINES = 2000
RETRAIN_LINES = 50_000  # as shipped
NEVER = 0  # lines: a daemon that learns no more
VOUCHED_BYTES = 256 * 1024
TRAINING_SECONDS = 1800.0
APPLIED_SECONDS = 300.0
DUE_SECONDS = 20.0
IDLE_SECONDS = SessionSettings().idle_seconds  # as shipped: the silence that ends a session
_POLL_SECONDS = 0.05
_SAY_SECONDS = 10.0

_SETTINGS = """
[session]
key = {key}
[learning]
warmup_lines = {warmup}
retrain_lines = {retrain}
retrain_seconds = 0
[alarms]
verdicts = "all"
{alarms}
[checkpoint]
every_lines = 1000000000
[admin]
bind = ["unix:admin.sock"]
"""


def settings(
    *, warmup: int = 50_000, retrain: int = RETRAIN_LINES, key: str = "auto", alpha: float | None = None
) -> str:
    """The settings of a run. Without `alpha` the alarm budget is the daemon's own default."""
    return _SETTINGS.format(
        key=json.dumps(key),
        warmup=max(warmup, 100),
        retrain=retrain,
        alarms="" if alpha is None else f"alpha = {alpha}",
    )


@contextmanager
def watched(about: str, settings: str) -> Iterator["Watched"]:
    """A running daemon in a temporary directory; dead afterwards, whatever happens."""
    with tempfile.TemporaryDirectory(prefix="vigild-quality-") as home:
        daemon = Vigild(Path(home), settings=settings)
        try:
            yield Watched(about, daemon.start())
        finally:
            daemon.close()


class Watched:
    """One run. `line` is the number of the last line sent; `notes` what the daemon could not do.

    `alpha`, known when it is finished, is the level at which sessions were tested in the end.
    """

    def __init__(self, about: str, daemon: Vigild) -> None:
        self.about = about
        self.daemon = daemon
        self.line = 0
        self.notes: list[str] = []
        self.alpha = float("nan")
        self._connection: socket.socket | None = None
        self._progress = Progress(about)

    def vouch(self, lines: Sequence[bytes]) -> None:
        """Train the daemon from vouched lines, and return when its model is in force.

        A daemon without that request gets them as ordinary lines: `line` moves on, and `notes` reports it.
        """
        chunks = list(_chunks(lines))
        for i, chunk in enumerate(chunks):
            last = i == len(chunks) - 1
            path = f"/train-from?source=vouched&last={int(last)}"
            answer = self.daemon.api.post(path, content=chunk, headers={"content-type": "text/plain"})
            if answer.status_code in (404, 405) and i == 0:
                self.notes.append("no POST /train-from: vouched lines went in as ordinary ones")
                self.stream(lines)
                self.flush()
                self.settle(wanted=True)
                return
            assert answer.status_code == 200, f"train-from: {answer.status_code} {answer.text}"
            self._progress.say("vouching", i + 1, len(chunks))
        self.settle(wanted=True)

    def stream(
        self, lines: Sequence[bytes], *, batch: int = BATCH_LINES, after: Callable[[], None] | None = None
    ) -> None:
        """Send the lines in order, `batch` at a time; after each wait until it is judged, and for a training begun."""
        if self._connection is None:
            self._connection = self.daemon.connect()
            self._connection.settimeout(APPLIED_SECONDS)
        for start in range(0, len(lines), batch):
            part = lines[start : start + batch]
            self._connection.sendall(b"".join(line + b"\n" for line in part))
            self.line += len(part)
            self.daemon.wait(lambda: self.daemon.status()["logs_processed"] >= self.line, APPLIED_SECONDS)
            self.settle()
            if after is not None:
                after()
            self._progress.say("lines", start + len(part), len(lines))

    def settle(self, *, wanted: bool = False) -> None:
        """Return when no training is under way or due; with `wanted` a full model must be in force then.

        A training that fails, takes too long, or is not even due although a model is wanted ends the run: RuntimeError.
        """
        begun = time.monotonic()
        try:
            self._settle(wanted)
        finally:
            waited = time.monotonic() - begun
            if self._connection is not None and waited > IDLE_SECONDS:
                self.notes.append(f"{waited:.0f} s of waiting for a training cut the sessions under way")

    def _settle(self, wanted: bool) -> None:
        deadline = time.monotonic() + TRAINING_SECONDS
        quiet_until = time.monotonic() + DUE_SECONDS
        while True:
            status = self.daemon.status()
            training = status["training"]
            missing = wanted and not status["transformer_ready"]
            if training["error"]:
                self._give_up(f"training failed: {training['error']}")
            if time.monotonic() > deadline:
                self._give_up(f"no model after {TRAINING_SECONDS:.0f} s")
            if status["training_in_progress"]:
                quiet_until = time.monotonic() + DUE_SECONDS
                self._progress.say("training", int(training.get("percent") or 0), 100)
            elif not missing and not _due(status):
                return
            elif time.monotonic() > quiet_until:
                if missing:
                    self._give_up(f"no full model is in force, and no training begins: {training}")
                return  # due, but held back by the daemon: the lines go on, as they would
            time.sleep(_POLL_SECONDS)

    def _give_up(self, why: str) -> NoReturn:
        raise RuntimeError(f"{self.about}: {why}\n{self.daemon.log[-2000:]}")

    def alerts_after(self, last: str | None) -> list[dict[str, Any]]:
        """The flagged records since the id `last`."""
        found: list[dict[str, Any]] = self.daemon.api.get(
            "/anomalies", params={"limit": 1000, **({"after": last} if last else {})}
        ).json()
        return found["anomalies"] if isinstance(found, dict) else found

    def flush(self) -> None:
        """End every open session. The connection ends as well: a stream's last window closes with it."""
        if self._connection is not None:
            self._connection.shutdown(socket.SHUT_WR)
            assert self._connection.recv(1) == b"", "the daemon did not confirm the last lines"
            self._connection.close()
            self._connection = None
        self.daemon.post("/flush")

    def finish(self) -> Records:
        """Flush, stop, and return the records of every line and every closed session; prints the `notes`."""
        for note in self.notes:
            print(f"  {self.about}: {note}", file=sys.stderr)
        self.alpha = float(self.daemon.status()["alarms"]["alpha"])
        self.flush()
        assert self.daemon.stop() == 0, self.daemon.log[-2000:]
        return read_records(self.daemon.state / "verdicts.jsonl")


def _due(status: dict[str, Any]) -> bool:
    """A training that the state asks for and that has not begun: the moment before it begins."""
    if "due" in status["training"]:
        return bool(status["training"]["due"])
    if not status["transformer_ready"]:
        return bool(status["logs_processed"] >= status["warmup_target"])
    return bool(status["phase"] == "training")


def _chunks(lines: Sequence[bytes]) -> Iterator[bytes]:
    """Whole lines, at most VOUCHED_BYTES at once."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        if held and size + len(line) + 1 > VOUCHED_BYTES:
            yield b"\n".join(held) + b"\n"
            held, size = [], 0
        held.append(line)
        size += len(line) + 1
    yield b"\n".join(held) + b"\n"


class Progress:
    """Prints a line on stderr from time to time: the current step and its progress."""

    def __init__(self, about: str) -> None:
        self._about = about
        self._last = time.monotonic()

    def say(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= _SAY_SECONDS:
            self._last = now
            print(f"  {self._about}: {what} {done:,} of {total:,} ({done / max(total, 1):.0%})", file=sys.stderr)
