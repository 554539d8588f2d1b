"""What the admin API needs of the daemon: the seam between the web framework and the wiring.

`daemon.control.service` implements `Control`, tests fake it; the API calls nothing else of the daemon. Everything a
method returns is made of dicts, lists, strings, numbers, booleans and None. A float that is not finite
is encoded as null; a string may hold the lone surrogates of bytes that were not UTF-8.
"""

from collections.abc import Mapping, Sequence
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
        """{"status", "serving", "reason", "since", "reasons", "reading", "phase", "logs_processed",
        "transformer_ready", "active_models"}; never blocks.

        `status` is "serving", "degraded", "starting" or "stopping". `serving` says whether lines are taken and judged:
        so they are while it is degraded, unless they wait for the disk. `reasons` are what is wrong, as {"code",
        "text"} (`daemon.control.degraded_reasons`), `reason` says it in one sentence, `since` is the epoch second where
        that is known. While the state is read `reading` is {"percent", "lines_to_replay"}, otherwise None.
        """

    def status(self) -> dict[str, Any]:
        """The whole of `GET /status`; never blocks, whatever the scoring thread is doing.

        Beyond the contract's fields: "status", "serving", "reason", "since", "reasons" and "reading" as in `health`.
        Parts the page and the metrics read where they are present:

            recovery    tier, snapshot_line, replayed_lines, lost_lines, seconds, set_aside[]
            checkpoint  last_line, last_time (epoch seconds), lines_at_risk, error, failures
            training    epoch, epochs, loss, percent (0..100), seconds_left, attempt, error, due, generation_in_force,
                        refused (how many models), refusal (why the last one was, or None), failures_total
                        (runs that failed), withdrawn [{member, seq, reason}], withdrawals (how many since the start)
            ingest      connections, bytes, lines_truncated, future_lines (their time lay more than a day ahead),
                        connections_waiting, connections_gave_way, connections_refused, accept_errors
            admin       connections, gave_way, too_slow (to send a request's head), accept_errors of the admin sockets
            alarms      flagged, per_day, alpha, floor_binding, incidents {opened, open, digest, evicted},
                        answers, answers_dropped, admitted, admitted_dropped, records_waiting, records_lost
            templates, sessions, sources  evicted: how many made room in their bounded tables
            vouched     lines, rule_hits, sessions, waiting (a file has ended that no model has learned from)
        """

    async def detect(
        self, lines: Sequence[bytes], session_id: str | None, explain: bool = False
    ) -> list[dict[str, Any]]:
        """One judgement a line, in order, each against the current state alone; changes nothing.

        With `explain` each has an object "explain", as flagged records may have; parts without anything to say are
        left out:

            cause_kind, what  why it would be flagged, as flagged records have it beside "explain"
            members   [{"name", "score", "p", "threshold"}], the surest first; "threshold" is the score beyond which
                      that member alone would flag it, None where no score of it is
            rules     [{"name", "severity", "field", "before", "text", "after"}]: what matched, and what is around it;
                      of an answer to a question they are in "rule_based"
            expected  [{"template_id", "template", "p"}], what would have been usual instead, likeliest first
            found     {"template_id", "template", "p"}, what came in its place
            features  [{"name", "value", "usual", "high"}], what stands out; "high": the largest that is usual
            value     {"text", "characters"}, the oddest parameter value, and what is odd in it
            source    [{"name", "value", "usual"}], the counters of its source
            lines     [{"line", "text", "odd"}], the last ones of the session; "line" is null for the one in question
        """

    async def checkpoint(self, *, extra: bool = False) -> dict[str, Any]:
        """{"line", "path", "bytes", "seconds", "digest"} once everything accepted so far is in it.

        An `extra` one may have to wait for a moment, and pushes no other snapshot out.
        """

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
        """Bring back the snapshot's knowledge: {"name", "seq", "line" of the restore, "snapshot": as `checkpoint`}.

        Returns when a snapshot of the restored state is durable. 404 when there is none of that name, 409 when it
        or its model is damaged. Once begun it is not undone by the caller's hanging up.
        """

    async def feedback(self, alert_id: str, answer: str, note: str) -> dict[str, Any]:
        """Answer an alert, "normal" or "anomaly": {"id", "answer", "kind", "what", "line"}.

        In force when this returns, for everything of the same cause. 404 when there is no such alert or its record
        was rotated away, 409 when the record names no cause, or one that is not to come again and is called normal.
        """

    async def undo_feedback(self, alert_id: str) -> dict[str, Any]:
        """Take an answer back: as `feedback`, "answer" being "undo". 404 when there is no answer to that alert."""

    async def answers(self) -> list[dict[str, Any]]:
        """{"id", "answer", "kind", "cause", "what", "note", "line"} for each answer in force, oldest first."""

    async def incidents(self, limit: int) -> list[dict[str, Any]]:
        """The last `limit` incidents, newest first: {"id", "kind", "cause", "what", "first_time", "last_time",
        "first_line", "last_line", "count", "samples" (ids), "digest", "open"}."""

    async def models(self) -> list[dict[str, Any]]:
        """{"generation", "name", "line", "in_force", "members", "promoted", "reason", "bytes", "time"} for each model
        generation remembered, newest first.

        `line` is where it took effect or was refused; `bytes` and `time` are None when its file is gone.
        """

    async def rollback_model(self, generation: int) -> dict[str, Any]:
        """Let an earlier generation judge again: {"generation", "name", "line", "seq"}, in force when this returns.

        404 when its file is not there, 409 when it is damaged, was refused, or is in force already.
        """

    async def train_from(self, source: str, data: bytes, last: bool) -> dict[str, Any]:
        """Learn from the next bytes of the vouched file `source`: {"lines", "rule_hits", "sessions"} they completed.

        Durable and applied when this returns. `last` ends the file. Sessions that a rule matched in are not learned
        from. 409 while another file is under way, 415 for what is not text.
        """

    async def anomalies(self, after: str | None, limit: int) -> list[dict[str, Any]]:
        """Flagged records, oldest first: the first `limit` after id `after`, or the newest `limit`."""

    async def anomaly(self, alert_id: str) -> Mapping[str, Any]:
        """The flagged record with that id, or the part of a counting record about it, with "counted_in".

        404 when there is none, or its file was rotated away.
        """

    def events(self, *, everything: bool) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[dict[str, Any]]]:
        """A live subscription: flagged records, or with `everything` a sample of the rest as well.

        Raises `ControlError` when called, not when entered. The channel ends when the daemon stops. A subscriber that
        does not keep up misses records, and {"left_out": n} says how many; it never slows the daemon.
        """
