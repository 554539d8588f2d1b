"""The admin API's `Control`, over the actors: a request becomes a query, a frame, or a read of the store.

It exists from the first moment, so that /health answers while the state is still being recovered; until `run` is called
everything else is refused.
"""

import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import trio
from msgspec.structs import replace

from actors.alerts import Alerts
from actors.checkpoint import CheckpointError
from actors.record_ids import counted_alert, record_id_key
from actors.scoring import StateAbandoned
from actors.sequencer import FrameRequest, submit_frame
from daemon.control import model_requests, snapshot_requests
from daemon.control.answered_alert import answered_alert, find_record
from daemon.control.condition import Condition, Running
from daemon.control.control_interface import ControlError
from daemon.control.status_fields import whole_status
from daemon.control.turns import Turns
from daemon.control.vouched_uploads import VouchedUploads
from daemon.settings_file import Settings, SettingsError
from detection.causes import fingerprints as causes
from detection.causes.fingerprints import KINDS
from detection.detection_settings import RuleText
from detection.frames import FeedbackFrame, FlushFrame, Frame, RestoreFrame, SettingsFrame, VouchedFrame
from detection.models.model import Model
from detection.rules.rule_files import RuleError
from detection.rules.rule_matching import RuleSet
from detection.summary import Summary

if TYPE_CHECKING:  # heavy imports come with it
    from detection.detector import Detector

T = TypeVar("T")

log = logging.getLogger(__name__)

LINES_PER_QUERY = 256
WAITING_SEARCHES = 8
WAITING_VERIFICATIONS = 1


class Service:
    """Implements `daemon.control.control_interface.Control`. `now` is the wall clock in seconds since the epoch;
    `places` says, for /status, where this daemon's files and sockets are. `condition` is set by the
    daemon's start and stop."""

    def __init__(
        self,
        settings: Settings,
        version: str,
        now: Callable[[], float] = time.time,
        places: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = settings
        self.condition = Condition(now)
        self._version = version
        self._places = dict(places or {})
        self._now = now
        # Over TCP anybody may look for an alert; who answers one does not wait for them.
        self._reading, self._answering = (Turns("looking for alerts", WAITING_SEARCHES) for _ in range(2))
        self._verifying = Turns("verifying snapshots", WAITING_VERIFICATIONS)
        self._restores_left, self._restores_left_out = trio.open_memory_channel[tuple[str, FrameRequest]](math.inf)
        self._uploads: VouchedUploads | None = None

    def run(self, running: Running) -> None:
        """From here on there is a state to query; lines are taken when `condition.started` is set."""
        from detection.formats.kinds import recognise  # recovery has imported it by now

        self.condition.running = running
        self._uploads = VouchedUploads(
            recognise,
            self.settings.format.kind,
            self.settings.ingest.max_line_bytes,
            secrets.token_hex(4),
            self._now,
        )

    async def adopt_settings(self, fresh: Settings, rules: tuple[RuleText, ...]) -> None:
        """Let `fresh` settings and rules take effect, except what sockets, formats and sessions need.

        Raises SettingsError when a rule is not in order; nothing has changed then.
        """
        running = self._running_or_503()
        try:
            await trio.to_thread.run_sync(RuleSet.compile, rules)
        except RuleError as exc:
            raise SettingsError(str(exc)) from exc
        old = self.settings
        self.settings = replace(old, learning=fresh.learning, alarms=fresh.alarms, rules=fresh.rules, path=fresh.path)
        running.alerts.write_all = fresh.alarms.verdicts == "all"
        await submit_frame(running.requests, SettingsFrame(self.settings.detection, rules))
        log.info("settings and %d files of rules reloaded", len(rules))
        if replace(fresh, path=None) != replace(self.settings, path=None):
            log.warning("some of the changed settings take effect at the next start")

    def health(self) -> dict[str, Any]:
        return self.condition.health()

    def status(self) -> dict[str, Any]:
        return whole_status(self.condition, self.settings, self._version, self._places, self._now())

    # --- queries: nothing changes ---------------------------------------------------------------------

    async def detect(
        self, lines: Sequence[bytes], session_id: str | None, explain: bool = False
    ) -> list[dict[str, Any]]:
        self._running_or_503()
        answers: list[dict[str, Any]] = []
        # In small parts: frames, and the watchdog, wait for one part at most.
        for start in range(0, len(lines), LINES_PER_QUERY):
            some = lines[start : start + LINES_PER_QUERY]
            answers += await self._query_detector(partial(_judge_asked_lines, some, session_id, explain))
        timestamp = datetime.fromtimestamp(self._now(), UTC).isoformat()
        return [{**answer, "phase": self.condition.phase(), "timestamp": timestamp} for answer in answers]

    async def answers(self) -> list[dict[str, Any]]:
        return await self._query_detector(lambda detector: detector.answers())

    async def incidents(self, limit: int) -> list[dict[str, Any]]:
        return await self._query_detector(lambda detector: detector.incidents(limit))

    async def models(self) -> list[dict[str, Any]]:
        known = await self._query_detector(lambda detector: detector.generations())
        return await trio.to_thread.run_sync(model_requests.listed_generations, self._running_or_503().store, known)

    async def _query_detector(self, question: "Callable[[Detector], T]") -> T:
        """The answer of `question`, which only reads the state, as of the last frame applied."""
        try:
            return await self._running_or_503().scoring.query(question)
        except StateAbandoned as exc:
            raise ControlError(503, "stopping", str(exc)) from exc

    async def anomalies(self, after: str | None, limit: int) -> list[dict[str, Any]]:
        try:
            return self._running_or_503().alerts.recent_records(after, limit)
        except ValueError as exc:
            raise ControlError(400, "bad_id", f"after={after!r} is not an alert's id, such as 123 or 123.1") from exc

    async def anomaly(self, alert_id: str) -> Mapping[str, Any]:
        return await self._find_alert(alert_id, self._reading)

    async def _find_alert(self, alert_id: str, turns: Turns) -> Mapping[str, Any]:
        running, (line, k, *counting_record) = self._running_or_503(), record_id_key(alert_id)
        record = running.alerts.find_record(alert_id)
        if record is None:
            # Not recorded yet: the count that it may be in is part of the state.
            counting, seq = await self._query_detector(
                lambda detector: (None if counting_record else detector.counting_record(line, k), detector.seq)
            )
            record = counted_alert(counting, alert_id) if counting is not None else None
        if record is None:
            # A frame may have ended its count, or raised it, whose records are on their way.
            try:
                await running.alerts.wait_for_frame(seq)
            except RuntimeError as exc:
                raise ControlError(503, "stopping", "the daemon is stopping") from exc
            record = running.alerts.find_record(alert_id)
        if record is None:
            path = running.store.directory / "alerts.jsonl"
            return await turns.run(partial(find_record, path, alert_id, trio.from_thread.check_cancelled))
        return record

    def events(self, *, everything: bool) -> AbstractAsyncContextManager["trio.MemoryReceiveChannel[dict[str, Any]]"]:
        # Not in the context manager: that is entered when an answer has begun, which is too late to refuse.
        return _event_subscription(self._running_or_503().alerts, everything)

    # --- snapshots ------------------------------------------------------------------------------------

    async def checkpoint(self, *, extra: bool = False) -> dict[str, Any]:
        try:
            return (await self._running_or_503().checkpoints.request_snapshot(extra=extra)).reply()
        except CheckpointError as exc:
            raise ControlError(503, "not_saved", str(exc)) from exc

    async def snapshots(self) -> list[dict[str, Any]]:
        return await trio.to_thread.run_sync(snapshot_requests.listed_snapshots, self._running_or_503().store)

    async def verify_snapshots(self) -> list[dict[str, Any]]:
        return await self._verifying.run(partial(snapshot_requests.verified_snapshots, self._running_or_503().store))

    async def pin_snapshot(self, name: str) -> dict[str, Any]:
        await trio.to_thread.run_sync(snapshot_requests.set_pinned, self._running_or_503().store, name, True)
        return {"name": name, "pinned": True}

    async def unpin_snapshot(self, name: str) -> dict[str, Any]:
        await trio.to_thread.run_sync(snapshot_requests.set_pinned, self._running_or_503().store, name, False)
        return {"name": name, "pinned": False}

    async def restore_snapshot(self, name: str) -> dict[str, Any]:
        store = self._running_or_503().store
        self._refuse_degraded("restored")
        sha256, knowledge = await trio.to_thread.run_sync(snapshot_requests.hold_snapshot_knowledge, store, name)
        request, sent = FrameRequest(RestoreFrame(name, sha256), knowledge=knowledge), trio.Event()
        try:
            seq, line, after = await self._apply_request(request, sent.set)
        except BaseException as exc:
            if isinstance(exc, trio.Cancelled) and sent.is_set():
                # The caller hung up. The file stays held while the frame is on its way: applying it may need it.
                self._restores_left.send_nowait((name, request))
            else:
                store.release_snapshot(name)
            raise
        store.release_snapshot(name)
        if after.restored < seq:
            raise ControlError(500, "not_restored", f"{name} could not be restored; the log says why")
        log.info("restored %s: its knowledge is in force again from line %d on", name, line)
        # The restore makes a snapshot due anyway; this one is waited for.
        saved = await self.checkpoint()
        return {"name": name, "line": line, "seq": seq, "snapshot": saved}

    async def release_left_restores(self) -> None:
        """Until cancelled: end the hold on each snapshot that is being restored for a caller who hung up, once its
        frame was applied or skipped."""
        running = self._running_or_503()
        async for name, request in self._restores_left_out:
            await request.committed.wait()
            with suppress(trio.EndOfChannel):  # scoring has ended, and so does the daemon
                await running.scoring.published.wait_for_frame(request.seq)
            running.store.release_snapshot(name)

    # --- frames: what changes the state ---------------------------------------------------------------

    async def flush(self) -> dict[str, Any]:
        self._running_or_503()
        before = self.condition.summary()
        # Also when degraded: it waits until the journal can be written, as lines do.
        _, line, after = await self._apply_frame(FlushFrame(self._now()))
        return {
            "line": line,
            "sessions_closed": after.sessions_closed - before.sessions_closed,
            "flagged": after.flagged - before.flagged,
        }

    async def feedback(self, alert_id: str, answer: str, note: str) -> dict[str, Any]:
        record = await self._find_alert(alert_id, self._answering)
        alert, alert_id = (
            answered_alert(record),
            str(record["id"]),
        )  # as it is written there: 0701 is no other alert than 701
        said: Literal["normal", "anomaly"] = "normal" if answer == "normal" else "anomaly"
        # An anomaly is still kept out of what is learned; what is called normal would be raised again all the same.
        if said == "normal" and not await self._query_detector(lambda detector: detector.has_template(alert.template)):
            raise ControlError(
                409,
                "template_gone",
                f"alert {alert_id} is about a template that is not known any more (many others came, or an earlier "
                "state was restored): the next line like it raises another alert; answer that one",
            )
        frame = FeedbackFrame(alert_id, alert.cause, alert.kind, alert.what, said, note, alert.template, alert.shapes)
        line = await self._apply_feedback(frame)
        return {"id": alert_id, "answer": said, "kind": KINDS[alert.kind], "what": alert.what, "line": line}

    async def undo_feedback(self, alert_id: str) -> dict[str, Any]:
        given = next((one for one in await self.answers() if one["id"] == alert_id), None)
        if given is None:
            raise ControlError(404, "not_found", f"there is no answer to alert {alert_id}")
        cause, kind = causes.cause_from_text(given["cause"]), KINDS.index(given["kind"])
        line = await self._apply_feedback(FeedbackFrame(alert_id, cause, kind, given["what"], "undo", ""))
        return {"id": alert_id, "answer": "undo", "kind": given["kind"], "what": given["what"], "line": line}

    async def _apply_feedback(self, frame: FeedbackFrame) -> int:
        """The line after which the answer of `frame` is in force."""
        self._refuse_degraded("changed")
        _, line, _ = await self._apply_frame(frame)
        log.info("alert %s: %s; %s", frame.alert, frame.answer, frame.what)
        return line

    async def rollback_model(self, generation: int) -> dict[str, Any]:
        known = await self._query_detector(lambda detector: detector.generations())
        frame, model = await trio.to_thread.run_sync(
            model_requests.earlier_model, self._running_or_503().store, known, generation
        )
        self._refuse_degraded("changed")
        seq, line, _ = await self._apply_frame(frame, model)
        log.info("rolled back to model generation %d from line %d on", generation, line)
        return {"generation": generation, "name": frame.name, "line": line, "seq": seq}

    async def train_from(self, source: str, data: bytes, last: bool) -> dict[str, Any]:
        self._running_or_503()
        assert self._uploads is not None, "made when there is a state"

        async def apply(frame: VouchedFrame, sent: Callable[[], None]) -> Summary:
            self._refuse_degraded("changed")
            _, _, summary = await self._apply_request(FrameRequest(frame), sent)
            return summary

        return await self._uploads.take_chunk(source, data, last, self.condition.summary, apply)

    def _refuse_degraded(self, what: str) -> None:
        """For requests that are better refused than left waiting for the disk."""
        failure = self._running_or_503().sequencer.failure
        if failure is not None:
            raise ControlError(503, "degraded", f"nothing can be {what} now: {failure.error}")

    async def _apply_frame(self, frame: Frame, model: Model | None = None) -> tuple[int, int, Summary]:
        """Have `frame` journaled and applied: its seq and line, and the summary after it."""
        return await self._apply_request(FrameRequest(frame, model))

    async def _apply_request(
        self, request: FrameRequest, sent: Callable[[], None] = lambda: None
    ) -> tuple[int, int, Summary]:
        """As `_apply_frame`. `sent` is called when the frame is on its way: from then on it takes its place even when
        the caller hangs up."""
        running = self._running_or_503()
        try:
            await running.requests.send(request)
            sent()
            await request.committed.wait()
            summary = await running.scoring.published.wait_for_frame(request.seq)
        except (trio.ClosedResourceError, trio.BrokenResourceError, trio.EndOfChannel) as exc:
            raise ControlError(503, "stopping", "the daemon is stopping") from exc
        return request.seq, request.line, summary

    def _running_or_503(self) -> Running:
        if self.condition.running is None:
            raise ControlError(503, "starting", "the state is still being read; try again in a moment")
        return self.condition.running


def _judge_asked_lines(
    lines: Sequence[bytes], session: str | None, explain: bool, detector: "Detector"
) -> list[dict[str, Any]]:
    return detector.ask(lines, session, explain)


@asynccontextmanager
async def _event_subscription(
    alerts: Alerts, everything: bool
) -> AsyncIterator["trio.MemoryReceiveChannel[dict[str, Any]]"]:
    with alerts.subscribe(everything=everything) as channel:
        yield channel
