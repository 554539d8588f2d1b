"""The running daemon as the admin API sees it: `Control` over the actors.

It exists from the first moment, so that /health answers while the state is still being recovered; the
actors are handed to it when there are any.
"""

import logging
import os
import resource
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import trio
from msgspec.structs import replace

from actors.alerts import Alerts
from actors.checkpoint import CheckpointError, Checkpoints
from actors.ingest import Counters as IngestCounters
from actors.scoring import Scoring, StateAbandoned
from actors.sequencer import FrameRequest, Request, Sequencer, submit
from actors.training import TrainingStatus
from daemon.control.degraded import Reason, reasons
from daemon.control.feedback import about, find_record
from daemon.control.generations import earlier_model, listed
from daemon.control.interface import ControlError
from daemon.control.train_from import Vouching
from daemon.settings import Settings, SettingsError
from daemon.startup.progress import ReplayProgress
from detection.causes import fingerprints as causes
from detection.causes.fingerprints import KINDS
from detection.columns.state import OtherVersionError
from detection.frames import FeedbackFrame, FlushFrame, Frame, RestoreFrame, SettingsFrame, VouchedFrame
from detection.members.failing import Withdrawn
from detection.models.model import Model
from detection.rules.engine import RuleSet
from detection.rules.files import RuleError
from detection.settings import RuleText
from detection.summary import Summary
from persistence.model_file import ModelError
from persistence.preamble import NewerFormatError
from persistence.snapshot import SnapshotError
from persistence.store import SnapshotInfo, Store

if TYPE_CHECKING:
    from daemon.startup.replay import Report
    from detection.detector import Detector

T = TypeVar("T")

log = logging.getLogger(__name__)

LINES_PER_QUERY = 256

_PAGE_BYTES = resource.getpagesize()


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


class Service:
    """Implements `daemon.control.interface.Control`. `now` is the wall clock in seconds since the epoch; `places` says,
    for /status, where this daemon's files and sockets are."""

    def __init__(
        self,
        settings: Settings,
        version: str,
        now: Callable[[], float] = time.time,
        places: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = settings
        self.started = trio.Event()
        self.stopping = False
        self._version = version
        self._places = dict(places or {})
        self._now = now
        self._began = now()
        self._sequencer: Sequencer | None = None
        self._reading: ReplayProgress | None = None
        self._running: Running | None = None
        self._withdrawals: set[Withdrawn] = set()
        self._detecting = trio.Lock()
        self._vouching: Vouching | None = None

    def journal(self, sequencer: Sequencer) -> None:
        """From here on lines are journaled, or wait; what comes of them is known when there is a state."""
        self._sequencer = sequencer

    def read(self, reading: ReplayProgress) -> None:
        """From here on it is known how far the state goes, and `reading` says how much of it is there."""
        self._reading = reading

    def run(self, running: Running) -> None:
        """From here on there is a state to ask; lines are taken when `started` is set."""
        from detection.formats.kinds import recognise  # recovery has imported it by now

        self._running = running
        self._vouching = Vouching(
            recognise,
            self.settings.format.kind,
            self.settings.ingest.max_line_bytes,
            secrets.token_hex(4),
            self._now,
        )

    async def count_withdrawals(self) -> None:
        """Until cancelled, or scoring has ended."""
        published = self._ready().scoring.published
        summary = published.summary
        with suppress(trio.EndOfChannel):
            while True:
                self._withdrawals.update(summary.withdrawn)
                summary = await published.newer(summary)

    async def adopt(self, fresh: Settings, rules: tuple[RuleText, ...]) -> None:
        """Let `fresh` settings and rules take effect, except what sockets, formats and sessions need.

        Raises SettingsError when a rule is not in order; nothing has changed then.
        """
        running = self._ready()
        try:
            await trio.to_thread.run_sync(RuleSet.compile, rules)
        except RuleError as exc:
            raise SettingsError(str(exc)) from exc
        old = self.settings
        self.settings = replace(old, learning=fresh.learning, alarms=fresh.alarms, rules=fresh.rules, path=fresh.path)
        running.alerts.write_all = fresh.alarms.verdicts == "all"
        await submit(running.requests, SettingsFrame(self.settings.detection, rules))
        log.info("settings and %d files of rules reloaded", len(rules))
        if replace(fresh, path=None) != replace(self.settings, path=None):
            log.warning("some of the changed settings take effect at the next start")

    # --- what never waits ---------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        summary = self._summary()
        return {
            **self._condition(),
            "phase": self.phase(),
            "logs_processed": self._line(),
            "transformer_ready": "transformer" in summary.members,
            "active_models": 1 + len(summary.members),
        }

    def status(self) -> dict[str, Any]:
        summary, settings = self._summary(), self.settings
        ready = "transformer" in summary.members
        status: dict[str, Any] = {
            **self._condition(),
            "version": self._version,
            "uptime_seconds": round(self._now() - self._began, 1),
            "phase": self.phase(),
            "logs_processed": self._line(),
            "warmup_target": settings.learning.warmup_lines,
            "warmup_complete": ready or summary.line >= settings.learning.warmup_lines,
            "isolation_forest_ready": ready,
            "transformer_ready": ready,
            "vocabulary_size": summary.templates,
            "training_sequences": summary.history_sessions,
            "iso_training_samples": summary.history_sessions,
            "active_models": {
                "rule_based": True,
                "isolation_forest": ready,
                "transformer": ready,
                **dict.fromkeys(summary.members, True),
            },
            "time": self._now(),
            "places": self._places,
            "seq": summary.seq if self._reading is None else max(summary.seq, self._reading.seq),
            "process": _process(),
        }
        running = self._running
        if running is None:
            unknown: dict[str, Any] = {"training_in_progress": False, "state_digest": None, "digest_line": None}
            parts = ("recovery", "checkpoint", "training", "ingest", "alarms", "vouched", "templates", "sessions")
            return {**status, **unknown, **{part: {} for part in parts}}
        training = running.training
        return {
            **status,
            "training_in_progress": training.in_progress,
            **self._digest(running),
            "recovery": running.recovery.as_dict(),
            "checkpoint": {**running.checkpoints.status(), "lines_at_risk": running.ingest.lines_under_way},
            "training": {
                **training.as_dict(),
                "percent": None if training.fraction is None else round(100 * training.fraction, 1),
                "attempt": training.attempts,
                "lines_since": summary.lines_since_training,
                "due": summary.training_due,
                "generation_in_force": summary.generation,
                "model_line": summary.model_line,
                "refused": summary.models_refused,
                "refusal": summary.refusal or None,
                "unfitted": dict(summary.unfitted),
                "withdrawn": [asdict(one) for one in summary.withdrawn],
                "withdrawals": len(self._withdrawals),
            },
            "ingest": {
                **asdict(running.ingest),
                "connections": running.ingest.connections_open,
                "unterminated_lines": summary.unterminated_lines,
                "future_lines": summary.future_lines,
            },
            "alarms": {
                **running.alerts.status(),
                "flagged": summary.flagged,
                "rule_hits": summary.rule_hits,
                "per_day": settings.alarms.per_day,
                "alpha": summary.alpha,
                "floor_binding": summary.floor_binding,
                "calibration_sessions": summary.calibration,
                "sessions_per_day": round(summary.sessions_per_day, 1),
                "rules": summary.rules,
                "incidents": {
                    "opened": summary.incidents_opened,
                    "open": summary.incidents_open,
                    "digest": summary.incidents_digest,
                    "evicted": summary.incidents_evicted,
                },
                "answers": summary.answers,
                "answers_dropped": summary.answers_dropped,
                "admitted": summary.admitted,
                "admitted_dropped": summary.admitted_dropped,
            },
            "vouched": {
                "lines": summary.vouched_lines,
                "rule_hits": summary.vouched_rule_hits,
                "sessions": summary.vouched_sessions,
                "waiting": summary.vouched_waiting,
            },
            "templates": {
                "live": summary.templates,
                "created": summary.templates_created,
                "evicted": summary.templates_evicted,
                "in_model": summary.vocabulary,
            },
            "sessions": {
                "open": summary.sessions_open,
                "closed": summary.sessions_closed,
                "evicted": summary.sessions_evicted,
            },
            "sources": {"evicted": summary.sources_evicted},
            "lost_lines": summary.lost_lines,
            "log_time": summary.log_time,
        }

    def phase(self) -> str:
        """By what is ready, not by a count: an ensemble that is retrained stays one, quick members are none yet."""
        summary, running = self._summary(), self._running
        # Members that failed are another matter: in judging, and they may be back soon, or in the training of all.
        failed = (*(each.member for each in summary.withdrawn), *dict(summary.unfitted))
        if "transformer" in (*summary.members, *failed):
            return "ensemble"
        enough = summary.line + summary.vouched_lines >= summary.warmup_lines
        due = running is not None and (running.training.in_progress or summary.training_due)
        return "training" if due and enough else "warmup"

    def _condition(self) -> dict[str, Any]:
        """What the daemon is doing, whether it serves (takes lines and judges them), and what is wrong if anything is:
        in one sentence, since when where that is known, and as a list."""
        running, trouble = self._running, self._sequencer.trouble if self._sequencer is not None else None
        found = [] if self.stopping else self._reasons()
        words = "; ".join(one.text for one in found) or None
        reading = self._reading if running is None else None
        reason: str | None
        since: float | None = self._began
        if self.stopping:
            status, reason, since = "stopping", "the daemon is stopping", None
        elif running is None:
            begun = "looking through the state directory" if reading is None else reading.sentence()
            status, reason = "starting", "; ".join(filter(None, (begun, words)))
        elif trouble is not None:
            status, reason, since = "degraded", words, trouble.since
        elif not self.started.is_set():
            status, reason = "starting", "the state is being brought up to date"
        else:
            status, reason, since = "degraded" if found else "serving", words, None
        return {
            "status": status,
            "serving": status in ("serving", "degraded") and trouble is None,
            "reason": reason,
            "since": since,
            "reasons": [one.as_dict() for one in found],
            "reading": reading.as_dict() if reading is not None and not self.stopping else None,
        }

    def _reasons(self) -> list[Reason]:
        trouble = self._sequencer.trouble if self._sequencer is not None else None
        journal = trouble.error if trouble is not None else None
        running = self._running
        if running is None:
            return reasons(journal=journal)
        training = running.training
        return reasons(
            journal=journal,
            training=training.error,
            trainings_failed=training.attempts - training.in_progress,
            withdrawn=self._summary().withdrawn,
            unfitted=dict(self._summary().unfitted),
            checkpoint=running.checkpoints.error,
            outlets=running.alerts.outlets(),
            waiting=running.ingest.connections_waiting_reason,
        )

    def sentence(self) -> str:
        """One line for whoever has no more room than that."""
        health = self.health()
        if health["status"] == "starting":
            return f"starting, {health['reason']}"
        words = f"{health['status']}, {health['phase']}, {health['logs_processed']:,} lines"
        return f"{words}: {health['reason']}" if health["reasons"] else words

    def _line(self) -> int:
        """The last line applied; where lines at the end of the journal are lost, their numbers are not used again.

        While the state is read it is the last line of all that is there to be applied.
        """
        if self._running is None:
            return self._reading.line if self._reading is not None else 0
        return max(self._running.scoring.published.summary.line, self._running.recovered_line)

    def _summary(self) -> Summary:
        return self._running.scoring.published.summary if self._running is not None else Summary()

    @staticmethod
    def _digest(running: Running) -> dict[str, Any]:
        last = running.checkpoints.last
        if last is None:
            return {"state_digest": running.loaded_digest, "digest_line": running.loaded_line}
        return {"state_digest": last.digest, "digest_line": last.line}

    # --- what waits for an actor --------------------------------------------------------------------

    async def detect(
        self, lines: Sequence[bytes], session_id: str | None, explain: bool = False
    ) -> list[dict[str, Any]]:
        self._ready()
        answers: list[dict[str, Any]] = []
        # One request at a time and in small parts: frames, and the watchdog, wait for one part at most.
        async with self._detecting:
            for start in range(0, len(lines), LINES_PER_QUERY):
                some = lines[start : start + LINES_PER_QUERY]
                answers += await self._query(partial(_ask, some, session_id, explain))
        timestamp = datetime.fromtimestamp(self._now(), UTC).isoformat()
        return [{**answer, "phase": self.phase(), "timestamp": timestamp} for answer in answers]

    async def checkpoint(self) -> dict[str, Any]:
        try:
            return (await self._ready().checkpoints.request()).reply()
        except CheckpointError as exc:
            raise ControlError(503, "not_saved", str(exc)) from exc

    async def flush(self) -> dict[str, Any]:
        running = self._ready()
        before = self._summary()
        try:
            seq, line = await submit(running.requests, FlushFrame(self._now()))
            after = await running.scoring.published.wait_for(seq)
        except (trio.ClosedResourceError, trio.BrokenResourceError, trio.EndOfChannel) as exc:
            raise ControlError(503, "stopping", "the daemon is stopping") from exc
        return {
            "line": line,
            "sessions_closed": after.sessions_closed - before.sessions_closed,
            "flagged": after.flagged - before.flagged,
        }

    async def snapshots(self) -> list[dict[str, Any]]:
        infos = await trio.to_thread.run_sync(self._ready().store.snapshots)
        return [_snapshot(info) for info in reversed(infos)]

    async def verify_snapshots(self) -> list[dict[str, Any]]:
        found = await trio.to_thread.run_sync(self._ready().store.verify)
        return [{**_snapshot(info), "error": error} for info, error in reversed(found)]

    async def pin_snapshot(self, name: str) -> dict[str, Any]:
        return await self._pinned(name, True)

    async def unpin_snapshot(self, name: str) -> dict[str, Any]:
        return await self._pinned(name, False)

    async def _pinned(self, name: str, pinned: bool) -> dict[str, Any]:
        store = self._ready().store
        try:
            await trio.to_thread.run_sync(store.pin if pinned else store.unpin, name)
        except (ValueError, FileNotFoundError):
            _no_snapshot(name)
        except OSError as exc:
            raise ControlError(503, "not_written", f"the state directory cannot be written: {exc.strerror}") from exc
        return {"name": name, "pinned": pinned}

    async def restore_snapshot(self, name: str) -> dict[str, Any]:
        from daemon.startup.replay import load_knowledge

        running = self._ready()
        store = running.store
        if running.sequencer.trouble is not None:
            raise ControlError(503, "degraded", f"nothing can be restored now: {running.sequencer.trouble.error}")
        try:
            await trio.to_thread.run_sync(store.hold, name)
            sha256, knowledge = await trio.to_thread.run_sync(load_knowledge, store, name)
            # Not given up again when the caller hangs up while the frame is on its way: it may need the file.
            seq, line = await submit(running.requests, RestoreFrame(name, sha256), knowledge=knowledge)
            after = await running.scoring.published.wait_for(seq)
            store.release(name)
        except (ValueError, FileNotFoundError):
            _no_snapshot(name)
        except (SnapshotError, ModelError, NewerFormatError, OtherVersionError) as exc:
            store.release(name)
            raise ControlError(409, "damaged", f"nothing was restored: {exc}") from exc
        except (trio.ClosedResourceError, trio.BrokenResourceError, trio.EndOfChannel) as exc:
            raise ControlError(503, "stopping", "the daemon is stopping") from exc
        if after.restored < seq:
            raise ControlError(500, "not_restored", f"{name} could not be restored; the log says why")
        log.info("restored %s: what was known at its line is known again, from line %d on", name, line)
        # A snapshot is due by itself; who asked is told when it is there.
        saved = await self.checkpoint()
        return {"name": name, "line": line, "seq": seq, "snapshot": saved}

    # --- the operator's word ------------------------------------------------------------------------

    async def feedback(self, alert_id: str, answer: str, note: str) -> dict[str, Any]:
        record = await self.anomaly(alert_id)
        alert, alert_id = about(record), str(record["id"])  # as it is written there: 0701 is no other alert than 701
        said: Literal["normal", "anomaly"] = "normal" if answer == "normal" else "anomaly"
        # An anomaly is still kept out of what is learned; what is called normal would be raised again all the same.
        if said == "normal" and not await self._query(lambda detector: detector.has_template(alert.template)):
            raise ControlError(
                409,
                "template_gone",
                f"alert {alert_id} is about a template that is not known any more (many others came, or an earlier "
                "state was restored): the next line like it raises another alert; answer that one",
            )
        frame = FeedbackFrame(alert_id, alert.cause, alert.kind, alert.what, said, note, alert.template, alert.shapes)
        line = await self._answer(frame)
        return {"id": alert_id, "answer": said, "kind": KINDS[alert.kind], "what": alert.what, "line": line}

    async def undo_feedback(self, alert_id: str) -> dict[str, Any]:
        given = next((one for one in await self.answers() if one["id"] == alert_id), None)
        if given is None:
            raise ControlError(404, "not_found", f"there is no answer to alert {alert_id}")
        cause, kind = causes.read(given["cause"]), KINDS.index(given["kind"])
        line = await self._answer(FeedbackFrame(alert_id, cause, kind, given["what"], "undo", ""))
        return {"id": alert_id, "answer": "undo", "kind": given["kind"], "what": given["what"], "line": line}

    async def _answer(self, frame: FeedbackFrame) -> int:
        """Have it take effect; the line after which it does."""
        _, line, _ = await self._applied(frame)
        log.info("alert %s: %s; %s", frame.alert, frame.answer, frame.what)
        return line

    async def answers(self) -> list[dict[str, Any]]:
        return await self._query(lambda detector: detector.answers())

    async def incidents(self, limit: int) -> list[dict[str, Any]]:
        return await self._query(lambda detector: detector.incidents(limit))

    async def models(self) -> list[dict[str, Any]]:
        running = self._ready()
        known = await self._query(lambda detector: detector.generations())
        return await trio.to_thread.run_sync(listed, running.store, known)

    async def rollback_model(self, generation: int) -> dict[str, Any]:
        running = self._ready()
        known = await self._query(lambda detector: detector.generations())
        frame, model = await trio.to_thread.run_sync(earlier_model, running.store, known, generation)
        seq, line, _ = await self._applied(frame, model)
        log.info("rolled back to model generation %d from line %d on", generation, line)
        return {"generation": generation, "name": frame.name, "line": line, "seq": seq}

    async def train_from(self, source: str, data: bytes, last: bool) -> dict[str, Any]:
        self._ready()
        assert self._vouching is not None, "made when there is a state"

        async def apply(frame: VouchedFrame, sent: Callable[[], None]) -> Summary:
            _, _, summary = await self._applied(frame, sent=sent)
            return summary

        return await self._vouching.take(source, data, last, self._summary, apply)

    async def _query(self, question: "Callable[[Detector], T]") -> T:
        """The answer of `question`, which only reads, by the state as it is."""
        try:
            return await self._ready().scoring.query(question)
        except StateAbandoned as exc:
            raise ControlError(503, "stopping", str(exc)) from exc

    async def _applied(
        self, frame: Frame, model: Model | None = None, sent: Callable[[], None] = lambda: None
    ) -> tuple[int, int, Summary]:
        """Have `frame` journaled and applied: its seq and line, and the summary after it.

        `sent` is called when it is on its way: from then on it takes its place even when the caller hangs up.
        """
        running = self._ready()
        if running.sequencer.trouble is not None:
            raise ControlError(503, "degraded", f"nothing can be changed now: {running.sequencer.trouble.error}")
        request = FrameRequest(frame, model)
        try:
            await running.requests.send(request)
            sent()
            await request.committed.wait()
            summary = await running.scoring.published.wait_for(request.seq)
        except (trio.ClosedResourceError, trio.BrokenResourceError, trio.EndOfChannel) as exc:
            raise ControlError(503, "stopping", "the daemon is stopping") from exc
        return request.seq, request.line, summary

    async def anomalies(self, after: str | None, limit: int) -> list[dict[str, Any]]:
        try:
            return self._ready().alerts.recent(after, limit)
        except ValueError as exc:
            raise ControlError(400, "bad_id", f"after={after!r} is not an alert's id, such as 123 or 123.1") from exc

    async def anomaly(self, alert_id: str) -> Mapping[str, Any]:
        running = self._ready()
        record = running.alerts.find(alert_id)
        if record is None:
            path = running.store.directory / "alerts.jsonl"
            return await trio.to_thread.run_sync(find_record, path, alert_id)
        return record

    def events(self, *, everything: bool) -> AbstractAsyncContextManager["trio.MemoryReceiveChannel[dict[str, Any]]"]:
        # Not in the context manager: that is entered when an answer has begun, which is too late to refuse.
        return _subscribed(self._ready().alerts, everything)

    def _ready(self) -> Running:
        if self._running is None:
            raise ControlError(503, "starting", "the state is still being read; try again in a moment")
        return self._running


@asynccontextmanager
async def _subscribed(alerts: Alerts, everything: bool) -> AsyncIterator["trio.MemoryReceiveChannel[dict[str, Any]]"]:
    with alerts.subscribe(everything=everything) as channel:
        yield channel


def _ask(lines: Sequence[bytes], session: str | None, explain: bool, detector: "Detector") -> list[dict[str, Any]]:
    return detector.ask(lines, session, explain)


def _no_snapshot(name: str) -> NoReturn:
    raise ControlError(404, "not_found", f"there is no snapshot {name!r}") from None


def _snapshot(info: SnapshotInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "seq": info.seq,
        "line": info.line,
        "bytes": info.bytes,
        "time": info.time,
        "pinned": info.pinned,
    }


def _process() -> dict[str, Any]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * _PAGE_BYTES
    return {
        "rss_bytes": resident,
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "pid": os.getpid(),
        "prefix": sys.prefix,
    }
