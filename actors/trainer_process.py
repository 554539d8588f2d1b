"""The trainer's process as its parent sees it. It writes one JSON object a line on its standard output:

    {"resumed": fraction}                                                it resumes there
    {"note": "one sentence"}                                             for the log
    {"stage", "epoch", "epochs", "loss", "fraction", "seconds_left"}     progress
    {"done": {"name", "sha256"}}                                         the last line, exit status 0
    {"refused": "one sentence"}                                          the last line, exit status 0
    {"error": "one sentence"}                                            the last line, exit status 1

and ends when its standard input does, so it cannot outlive us. The other side is `daemon/trainer.py`.
"""

import logging
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import trio

from actors.training_status import RunProgress, TrainingStatus

KILLED_WITHIN_SECONDS = 2.0
MAX_LINE_BYTES = 64 * 1024
STDERR_BYTES = 4096
SILENT_SECONDS = 1800.0  # a busy machine gives a child of lowest priority little time
SILENT_TIMES = 20.0

log = logging.getLogger("actors.training")


class TrainingFailed(Exception):
    """A training run ended without a model; the message is its cause."""


class TrainingKilled(TrainingFailed):
    """The child was killed by a signal, or by us because it was silent: its input need not be the cause."""


class Trained(msgspec.Struct):
    name: str
    sha256: str


class _TrainerReport(msgspec.Struct):
    """The child's last line."""

    done: Trained | None = None
    refused: str | None = None
    error: str | None = None


async def train_in_child(command: Sequence[str], status: TrainingStatus, silent_seconds: float) -> Trained | str:
    """Run the child to its end: its model, or why it was refused. The child is dead and waited for when this ends."""
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None and process.stdin is not None
    stderr = _StderrTail(process.stderr)
    report = _TrainerReport()
    allowed, last_line_at = silent_seconds, trio.current_time()
    try:
        with trio.CancelScope(deadline=last_line_at + allowed) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stderr.read_to_end)
                async for line in _trainer_output_lines(process.stdout):
                    report = _parse_trainer_message(line, status) or report
                    now = trio.current_time()
                    # A slow machine gets more time.
                    allowed, last_line_at = max(allowed, SILENT_TIMES * (now - last_line_at)), now
                    patience.deadline = now + allowed
                await process.wait()
    finally:
        process.kill()
        # SIGKILL needs no grace period: this bounds a child that is stuck in the kernel.
        with trio.move_on_after(KILLED_WITHIN_SECONDS, shield=True):
            await process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                await pipe.aclose()
    if patience.cancelled_caught:
        raise TrainingKilled(f"trainer hung: it said nothing for {_silence_text(allowed)}, and was killed")
    if process.returncode == 0 and (report.done is not None or report.refused is not None):
        return report.done or report.refused or ""
    killed = process.returncode is not None and process.returncode < 0
    raise (TrainingKilled if killed else TrainingFailed)(
        report.error or f"trainer {_trainer_ending_text(process.returncode)}{stderr.last_error_line()}"
    )


def _silence_text(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120.0 else f"{seconds / 60.0:.0f} minutes"


def _parse_trainer_message(line: bytes, status: TrainingStatus) -> _TrainerReport | None:
    """One line of the child: progress goes into `status`, a result is returned."""
    try:
        message: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
        if "stage" in message:
            status.note_progress(msgspec.convert(message, RunProgress))
            return None
        if "resumed" in message:
            status.note_resumed(msgspec.convert(message["resumed"], float))
            return None
        if "note" in message:
            log.warning("training generation %s: %s", status.generation, message["note"])
            return None
        return msgspec.convert(message, _TrainerReport)
    except msgspec.DecodeError as exc:
        # A library that prints must not cost a model.
        log.warning("training: the trainer wrote %r, which is no progress: %s", line[:200], exc)
        return None


def _trainer_ending_text(returncode: int | None) -> str:
    if returncode is None:
        return "cannot be killed"
    if returncode == -signal.SIGKILL:
        return "was killed by signal 9, which the kernel sends when memory runs out"
    return f"was killed by signal {-returncode}" if returncode < 0 else f"exited with status {returncode}"


async def _trainer_output_lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    """Whole lines; one longer than MAX_LINE_BYTES comes in pieces."""
    rest = b""
    async for data in stream:
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield line
        if len(rest) > MAX_LINE_BYTES:
            yield rest
            rest = b""
    if rest:
        yield rest


class _StderrTail:
    """Reads a stream to its end and keeps the last of it, so that a chatty child never blocks."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._kept = b""

    async def read_to_end(self) -> None:
        async for data in self._stream:
            self._kept = (self._kept + data)[-STDERR_BYTES:]

    def last_error_line(self) -> str:
        lines = self._kept.decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""
