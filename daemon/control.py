"""What the admin API asks of the daemon: the seam between the web framework and the wiring.

`daemon.main` implements `Control`, tests fake it; the API knows nothing else of the daemon. Everything a
method returns is made of dicts, lists, strings, numbers, booleans and None. A float that is not finite
leaves the process as null; a string may hold the lone surrogates of bytes that were not UTF-8.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import trio


class ControlError(Exception):
    """A request that cannot be served: the HTTP status, a code for programs, one sentence for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class Control(Protocol):
    """Every method may raise `ControlError`. Awaiting ones are cancelled when the caller hangs up, so
    what must finish (a checkpoint) is an actor's business and the method only waits for it.
    """

    def health(self) -> dict[str, Any]:
        """{"status", "reason", "since", "phase", "logs_processed", "transformer_ready", "active_models"}; never blocks.

        `status` is "serving", or what keeps the daemon from it: "starting", "degraded" (lines wait, questions are
        answered), "stopping"; `reason` is why, a sentence, `since` the epoch second where that is known.
        """

    def status(self) -> dict[str, Any]:
        """The whole of `GET /status`; never blocks, whatever the scoring thread is doing.

        Beyond the contract's fields: "status" as in `health`, and "reason", why it is not "serving"
        (a sentence or None). Parts the page and the metrics read where they are present:

            recovery    tier, snapshot_line, replayed_lines, lost_lines, seconds, set_aside[]
            checkpoint  last_line, last_time (epoch seconds), lines_at_risk, error
            training    epoch, epochs, loss, percent (0..100), seconds_left, attempt, error
            ingest      connections, bytes, lines_truncated
            alarms      flagged, per_day, alpha, floor_binding
        """

    async def detect(self, lines: Sequence[bytes], session_id: str | None) -> list[dict[str, Any]]:
        """One judgement a line, in order, each against the current state alone; changes nothing."""

    async def checkpoint(self) -> dict[str, Any]:
        """{"line", "path", "bytes", "seconds", "digest"} once everything accepted so far is in it."""

    async def flush(self) -> dict[str, Any]:
        """Close every open session and score the closings: {"line", "sessions_closed", "flagged"}."""

    async def snapshots(self) -> list[dict[str, Any]]:
        """{"name", "seq", "line", "bytes", "time", "pinned"} for each, oldest first."""

    async def verify_snapshots(self) -> list[dict[str, Any]]:
        """As `snapshots`, each with "error": what is wrong with the file, or None."""

    async def pin_snapshot(self, name: str) -> dict[str, Any]:
        """Keep it for ever: {"name", "pinned"}. 404 when there is none of that name."""

    async def unpin_snapshot(self, name: str) -> dict[str, Any]:
        """Undo `pin_snapshot`; also when it was not pinned."""

    async def restore_snapshot(self, name: str) -> dict[str, Any]:
        """Know what the snapshot knew: {"name", "seq", "line" of the restore, "snapshot": as `checkpoint`}.

        Returns when a snapshot of the restored state is durable. 404 when there is none of that name, 409 when it
        or its model is damaged. Once begun it is not undone by the caller's hanging up.
        """

    async def anomalies(self, after: str | None, limit: int) -> list[dict[str, Any]]:
        """Flagged records, oldest first: the first `limit` after id `after`, or the newest `limit`."""

    def events(self, *, everything: bool) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[dict[str, Any]]]:
        """A live subscription: flagged records, or with `everything` a sample of the rest as well.

        The channel ends when the daemon stops. A subscriber that does not keep up misses records and is
        told how many by {"left_out": n}; it never slows the daemon.
        """
