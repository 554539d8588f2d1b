"""The condition of the daemon: what it is doing, whether it serves, what has failed. Nothing here ever waits.

It can be read from the first moment of the process, so that /health answers while the state is still being recovered.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from actors.alerts import Alerts
from actors.checkpoint import Checkpoints
from actors.ingest import IngestCounters
from actors.scoring import Scoring
from actors.sequencer import Request, Sequencer
from actors.training_status import TrainingStatus
from daemon.control.degraded_reasons import Reason, degraded_reasons
from daemon.startup.replay_progress import ReplayProgress
from detection.members.failing_members import Withdrawn
from detection.summary import Summary
from persistence.record_space import RecordSpace
from persistence.store import Store

if TYPE_CHECKING:  # heavy imports come with it
    from daemon.startup.detector_recovery import Report


@dataclass(frozen=True)
class Running:
    """The actors, once recovery has given them a state."""

    scoring: Scoring
    sequencer: Sequencer
    alerts: Alerts
    checkpoints: Checkpoints
    training: TrainingStatus
    ingest: IngestCounters
    requests: "trio.MemorySendChannel[Request]"
    store: Store
    recovery: "Report"
    loaded_digest: str
    loaded_line: int
    recovered_line: int


@dataclass(slots=True)
class AdminCounters:
    """The admin API's sockets: how many `connections` are open; since the start so many `gave_way` to others, and were
    `too_slow` to send the head of a request; `accept_errors` for want of descriptors."""

    connections: int = 0
    gave_way: int = 0
    too_slow: int = 0
    accept_errors: int = 0


class Condition:
    """`now` is the wall clock in seconds since the epoch. What becomes known in the course of a start is set from
    outside: first `sequencer` (from then on lines are journaled), then `reading` (how far the state goes, and how much
    of it is there), then `running` (there is a state), and `started` when lines are judged as they come."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.began = now()
        self.sequencer: Sequencer | None = None
        self.reading: ReplayProgress | None = None
        self.running: Running | None = None
        self.started = trio.Event()
        self.stopping = False
        self.record_space: RecordSpace | None = None
        self.admin = AdminCounters()
        self.withdrawals: set[Withdrawn] = set()  # since the start

    async def count_withdrawals(self, running: Running) -> None:
        """Until cancelled, or scoring has ended."""
        published = running.scoring.published
        summary = published.summary
        with suppress(trio.EndOfChannel):
            while True:
                self.withdrawals.update(summary.withdrawn)
                summary = await published.newer_summary(summary)

    def health(self) -> dict[str, Any]:
        """As `daemon.control.control_interface.Control.health` has it."""
        summary = self.summary()
        return {
            **self.as_dict(),
            "phase": self.phase(),
            "logs_processed": self.line(),
            "transformer_ready": "transformer" in summary.members,
            "active_models": 1 + len(summary.members),
        }

    def status_sentence(self) -> str:
        """One line, for the service manager's status."""
        health = self.health()
        if health["status"] == "starting":
            return f"starting, {health['reason']}"
        words = f"{health['status']}, {health['phase']}, {health['logs_processed']:,} lines"
        return f"{words}: {health['reason']}" if health["reasons"] else words

    def as_dict(self) -> dict[str, Any]:
        """What the daemon is doing, whether it serves (takes lines and judges them), and what is wrong if anything is:
        in one sentence, since when where that is known, and as a list."""
        running, failure = self.running, self.sequencer.failure if self.sequencer is not None else None
        found = [] if self.stopping else self._degraded_reasons()
        words = "; ".join(one.text for one in found) or None
        reading = self.reading if running is None else None
        reason: str | None
        since: float | None = self.began
        if self.stopping:
            status, reason, since = "stopping", "the daemon is stopping", None
        elif running is None:
            begun = "looking through the state directory" if reading is None else reading.replay_sentence()
            status, reason = "starting", "; ".join(filter(None, (begun, words)))
        elif failure is not None:
            status, reason, since = "degraded", words, failure.since
        elif not self.started.is_set():
            status, reason = "starting", "the state is being brought up to date"
        else:
            status, reason, since = "degraded" if found else "serving", words, None
        return {
            "status": status,
            "serving": status in ("serving", "degraded") and failure is None,
            "reason": reason,
            "since": since,
            "reasons": [one.as_dict() for one in found],
            "reading": reading.as_dict() if reading is not None and not self.stopping else None,
        }

    def _degraded_reasons(self) -> list[Reason]:
        failure = self.sequencer.failure if self.sequencer is not None else None
        journal = failure.error if failure is not None else None
        disk = self.record_space.shortage if self.record_space is not None else None
        running = self.running
        if running is None:
            return degraded_reasons(journal=journal, disk=disk)
        training = running.training
        return degraded_reasons(
            journal=journal,
            training=training.error,
            trainings_failed=training.attempts - training.in_progress,
            summary=self.summary(),
            checkpoint=running.checkpoints.error,
            outlets=running.alerts.outlets(),
            disk=disk,
            waiting=running.ingest.connections_waiting_reason,
        )

    def phase(self) -> str:
        """By what is ready, not by a count: an ensemble that is retrained stays one, quick members are none yet."""
        summary, running = self.summary(), self.running
        # A member that failed still counts: it may be back soon, or come with the next training of all members.
        failed = (*(each.member for each in summary.withdrawn), *dict(summary.unfitted))
        if "transformer" in (*summary.members, *failed):
            return "ensemble"
        enough = summary.line + summary.vouched_lines >= summary.warmup_lines
        due = running is not None and (running.training.in_progress or summary.training_due)
        return "training" if due and enough else "warmup"

    def line(self) -> int:
        """The last line applied; where lines at the end of the journal are lost, their numbers are not used again.

        While the state is read it is the last line of all that is there to be applied.
        """
        if self.running is None:
            return self.reading.line if self.reading is not None else 0
        return max(self.running.scoring.published.summary.line, self.running.recovered_line)

    def summary(self) -> Summary:
        """The latest; one of nothing before there is a state."""
        return self.running.scoring.published.summary if self.running is not None else Summary()
