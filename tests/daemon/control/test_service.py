"""Requests of the operator, through the real service, sequencer, journal and alerts, to a small detector."""

import json
import math
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from actors.alerts import RECENT_RECORDS, Alerts, Outlet, run_alerts
from actors.checkpoint import Checkpoints, CheckpointSettings
from actors.ingest import IngestCounters
from actors.scoring import run_scoring
from actors.sequencer import JournalFailure, Request, Sequencer, run_sequencer
from actors.training_status import TrainingStatus
from daemon.api.app import create_app
from daemon.control import answered_alert, snapshot_requests
from daemon.control import service as service_module
from daemon.control.condition import Running
from daemon.control.control_interface import Control, ControlError
from daemon.control.service import Service
from daemon.control.vouched_uploads import ABANDONED_SECONDS, VouchedUploads
from daemon.settings_file import Settings
from daemon.startup.detector_recovery import Report
from daemon.startup.replay_progress import ReplayProgress
from detection.columns.state_columns import with_prefix
from detection.detector import Detector
from detection.frames import Sequenced, VouchedFrame, decode_frame
from detection.members.failing_members import Withdrawn
from detection.sessions.living_sources import LivingSources
from detection.summary import Summary
from detection.templates.table import TemplateTable
from detection.verdicts.counted_alerts import CountedGroup, CountedRecord, CountUnderWay
from detection.verdicts.verdict_records import Verdicts
from persistence.array_bytes import Columns, Value
from persistence.journal_segment import Entry
from persistence.jsonl import open_jsonl
from persistence.model_file import ModelFile, write_model
from persistence.store import Store, open_store
from tests.actors.fakes import FakeDetector, FakeVerdicts, scoring_of, wall_clock

CAUSE = 0xFEDCBA9876543210


def alert(number: int, **changes: Any) -> dict[str, Any]:
    about = {"cause": f"{CAUSE:016x}", "cause_kind": "shape", "cause_template": None, "what": "sessions like this one"}
    return {"id": f"{number}", "line": number, "flagged": True, **about, **changes}


def counting_record(record_id: str | None, ids: str) -> dict[str, Any]:
    """Of one cause, another than `alert` has."""
    first, last = ids.split("-")
    about = {"cause": f"{CAUSE + 1:016x}", "cause_kind": "shape", "cause_template": None, "what": "counted"}
    counted = CountUnderWay({(CAUSE + 1, -1, 0, 0): CountedGroup(CAUSE + 1, 3, -1, 0, 0, 2, "counted")}, 90, 1.0)
    [group] = counted.groups.values()
    group.add((int(first), 0), (int(last), 0), 2)
    record = CountedRecord((1, 0), CAUSE, 3, "the incident", False, counted).record(record_id, 0)
    assert [each | about for each in record["alerts"]] == record["alerts"]
    return record


@dataclass
class Judge(FakeDetector):
    """Parses vouched lines as a detector does, so that a gap or a wrong count raises."""

    sources: LivingSources = field(default_factory=LivingSources)
    learned: list[bytes] = field(default_factory=list)
    generation: int = 0

    def counting_record(self, line: int, k: int) -> dict[str, Any] | None:
        return counting_record(None, "70-79") if 70 <= line < 80 and not k else None

    def apply(self, item: Sequenced) -> FakeVerdicts:
        if isinstance(item.frame, VouchedFrame):
            self.learned += self.sources.complete_lines(item.frame.segment)[0]
            assert item.frame.done == item.frame.segment.last
        if item.model is not None:
            self.generation = item.model.generation
        return super().apply(item)

    def summary(self) -> Summary:
        return Summary(
            seq=self.seq,
            line=self.line,
            generation=self.generation,
            answers=len(self.answered),
            vouched_lines=len(self.learned),
            vouched_rule_hits=sum(b"union" in line for line in self.learned),
            vouched_sessions=len(self.learned) // 2,
        )


@dataclass
class Served:
    service: Service
    detector: Judge
    sequencer: Sequencer
    store: Store
    alerts: Alerts
    verdicts: "trio.MemorySendChannel[Verdicts]"

    @property
    def control(self) -> Control:
        return self.service

    async def flag(self, *records: dict[str, Any]) -> None:
        """Write alerts, as if the last frame had raised them."""
        await self.alerts.take_verdicts(FakeVerdicts(self.detector.seq, self.detector.line, records))

    def model(
        self,
        generation: int,
        *,
        promoted: bool = True,
        in_force: bool = False,
        reason: str = "",
        more: Columns | None = None,
    ) -> ModelFile:
        """A generation that the state remembers, and its file, with `more` columns."""
        columns: dict[str, Value] = {
            "generation": generation,
            "line": 10 * generation,
            "vocabulary": np.zeros(0, dtype=np.int32),
            **with_prefix("templates", TemplateTable().export()),
            "rings.ensemble": np.zeros(0),
            **(more or {}),
        }
        file = self.store.adopt_model(self.store.training / write_model(self.store.training, columns).name)
        entry = {"generation": generation, "name": file.name, "line": 10 * generation, "members": ["transformer"]}
        state = {"promoted": promoted, "reason": reason or None, "in_force": in_force}
        self.detector.known_generations.insert(0, entry | state)
        return file


@asynccontextmanager
async def served(directory: Path) -> AsyncIterator[Served]:
    with open_store(directory) as store, open_jsonl(directory / "alerts.jsonl") as writer:
        list(store.recover().entries)
        store.start_journal(0, 0)
        detector = Judge()
        scoring = scoring_of(detector)
        sequencer = Sequencer(store.append, store.rotate, seq=0, line=0, now=wall_clock)
        alerts = Alerts(Outlet("alerts.jsonl", writer), seq=0)
        requests_in, requests = trio.open_memory_channel[Request](64)
        frames_in, frames = trio.open_memory_channel[Sequenced](4)
        verdicts_in, verdicts = trio.open_memory_channel[Verdicts](4)
        service = Service(Settings(), "0", now=wall_clock)
        async with trio.open_nursery() as nursery:
            await nursery.start(run_alerts, alerts, verdicts)
            await nursery.start(run_scoring, scoring, frames, verdicts_in.clone(), lambda: None)
            await nursery.start(partial(run_sequencer, sequencer, requests, frames_in, idle_seconds=1e9))
            service.condition.sequencer = sequencer
            service.run(
                Running(
                    scoring=scoring,
                    sequencer=sequencer,
                    alerts=alerts,
                    checkpoints=Checkpoints(
                        store, sequencer, scoring, alerts, CheckpointSettings(now=wall_clock), models=lambda columns: []
                    ),
                    training=TrainingStatus(),
                    ingest=IngestCounters(),
                    requests=requests_in,
                    store=store,
                    recovery=Report(),
                    loaded_digest="",
                    loaded_line=0,
                    recovered_line=0,
                )
            )
            nursery.start_soon(service.release_left_restores)
            with requests_in, verdicts_in:
                yield Served(service, detector, sequencer, store, alerts, verdicts_in)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def refused(status: int, code: str) -> AsyncIterator[list[str]]:
    """The message of the `ControlError` that the body raises."""
    said: list[str] = []
    with pytest.raises(ControlError) as error:
        yield said
    assert (error.value.status, error.value.code) == (status, code)
    said.append(error.value.message)


async def test_before_the_state_is_read_only_requests_that_need_it_are_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Service(Settings(), "0", now=wall_clock)
    client = create_app(service, hosts=(), token=None).test_client()

    async def get(path: str) -> tuple[int, Any]:
        answer = await client.get(path, headers={"Host": "localhost"})
        return answer.status_code, await answer.get_json()

    for path in ("/events", "/anomalies", "/incidents", "/models"):
        code, answer = await get(path)
        assert (code, answer["error"]["code"]) == (503, "starting"), path
    code, health = await get("/health")
    assert (code, health["status"], health["reading"]) == (503, "starting", None)
    reading = ReplayProgress()
    reading.line = 700
    reading.add(Entry(1, 400, 400, bytes(40)))
    reading.add(Entry(2, 700, 300, bytes(60)))
    reading.note_replayed(1)
    service.condition.reading = reading
    code, health = await get("/health")
    assert code == 503 and health["logs_processed"] == 700
    assert health["reading"] == {"percent": 40.0, "lines_to_replay": 300}
    assert service.condition.status_sentence() == "starting, reading the state: 40 %, 300 lines to replay"
    assert (await get("/status"))[1]["reason"] == "reading the state: 40 %, 300 lines to replay"
    assert not caplog.records, "none of it is a fault of ours"


async def test_it_is_degraded_for_as_long_as_something_has_failed(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        service = daemon.service
        service.condition.started.set()
        assert (service.health()["status"], service.health()["reasons"]) == ("serving", [])
        assert service.condition.status_sentence() == "serving, warmup, 0 lines"
        running = service._running_or_503()
        training = running.training
        training.attempts, training.error = 1, "no space"
        training.begin_run(3)
        health = service.health()
        assert (health["status"], health["serving"], health["reason"]) == (
            "degraded",
            True,
            "training failed: no space",
        )
        assert service.condition.status_sentence() == "degraded, training, 0 lines: training failed: no space"
        training.in_progress, training.error = False, "no more space"
        assert service.health()["reason"] == "training failed 2 times in a row: no more space"
        assert service.status()["reasons"] == service.health()["reasons"]
        daemon.sequencer.failure = JournalFailure("/s: full", 5.0)
        health = service.health()
        assert (health["status"], health["serving"], health["since"]) == ("degraded", False, 5.0)
        assert [reason["code"] for reason in health["reasons"]] == ["journal", "training"]
        daemon.sequencer.failure = None
        training.error = None
        assert service.health()["status"] == "serving"
        service.condition.stopping = True
        assert (service.health()["status"], service.health()["serving"]) == ("stopping", False)


async def test_a_member_that_the_model_was_trained_without_is_a_reason_and_the_warm_up_is_over(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        service = daemon.service
        service.condition.started.set()
        published = service._running_or_503().scoring.published
        published.publish_summary(
            replace(published.summary, generation=1, members=("ngram",), unfitted=(("transformer", "no"),))
        )
        assert (service.health()["status"], service.condition.phase()) == ("degraded", "ensemble")
        assert service.health()["reasons"] == [
            {"code": "unfitted", "text": "the model was trained without transformer: no"}
        ]


async def test_the_forest_and_the_transformer_are_ready_each_by_itself(tmp_path: Path) -> None:
    """One of them may be withdrawn, or missing from a model, while the other judges."""
    async with served(tmp_path / "state") as daemon:
        published = daemon.service._running_or_503().scoring.published
        for judging in ((), ("isolation_forest",), ("transformer",), ("transformer", "isolation_forest")):
            published.publish_summary(replace(published.summary, members=judging))
            status = daemon.service.status()
            for name in ("isolation_forest", "transformer"):
                assert status[f"{name}_ready"] == status["active_models"][name] == (name in judging), (name, judging)
            assert status["warmup_complete"] == ("transformer" in judging)


async def test_a_member_withdrawn_is_a_reason_and_counted_once(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon, trio.open_nursery() as nursery:
        daemon.service.condition.started.set()
        nursery.start_soon(daemon.service.condition.count_withdrawals, daemon.service._running_or_503())
        published = daemon.service._running_or_503().scoring.published
        gone = Withdrawn("transformer", 12, "could not create a primitive")
        for withdrawn in ((), (gone,), (gone,), (), (Withdrawn("transformer", 31, "again"),)):
            published.publish_summary(replace(published.summary, withdrawn=withdrawn))
            await trio.testing.wait_all_tasks_blocked()
        status = daemon.service.status()
        assert status["reasons"] == [{"code": "withdrawn", "text": "transformer does not judge since frame 31: again"}]
        assert status["training"]["withdrawn"] == [{"member": "transformer", "seq": 31, "reason": "again"}]
        assert status["training"]["withdrawals"] == 2
        nursery.cancel_scope.cancel()


async def test_an_answer_is_in_force_and_in_the_journal_when_it_is_confirmed(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        await daemon.flag(
            alert(7), alert(8, cause_kind="new", cause_template=3, cause_shapes=[f"{CAUSE:016x}"], what="x")
        )
        answer = await daemon.control.feedback("7", "normal", "a deploy")
        assert answer == {
            "id": "7", "answer": "normal", "kind": "shape", "what": "sessions like this one", "line": 0,
        }  # fmt: skip
        assert [(one["id"], one["cause"]) for one in await daemon.control.answers()] == [("7", f"{CAUSE:016x}")]
        assert (await daemon.control.feedback("8", "anomaly", ""))["kind"] == "new"
        assert daemon.control.status()["alarms"]["answers"] == 2
        assert (await daemon.control.undo_feedback("7"))["answer"] == "undo"
        assert [one["id"] for one in await daemon.control.answers()] == ["8"]
        async with refused(404, "not_found"):
            await daemon.control.undo_feedback("7")
    with open_store(tmp_path / "state") as store:
        journaled = [decode_frame(entry.payload) for entry in store.recover().entries]
    assert [(f.alert, f.answer, f.cause, f.template, f.shapes, f.note) for f in journaled] == [  # type: ignore[union-attr]
        ("7", "normal", CAUSE, 0, (), "a deploy"),
        ("8", "anomaly", CAUSE, 3, (CAUSE,), ""),
        ("7", "undo", CAUSE, 0, (), ""),
    ]


async def test_an_alert_has_one_answer_however_its_id_is_written(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        await daemon.flag(alert(7))
        await daemon.control.feedback("7", "normal", "")
        assert (await daemon.control.feedback("007", "anomaly", ""))["id"] == "7"
        assert [(one["id"], one["answer"]) for one in await daemon.control.answers()] == [("7", "anomaly")]


async def test_an_alert_that_is_no_longer_among_the_recent_ones_is_found_in_its_file(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        await daemon.flag(*(alert(2 * n) for n in range(1, RECENT_RECORDS + 500)))
        assert daemon.alerts.find_record("4") is None
        assert (await daemon.control.anomaly("4"))["line"] == 4
        assert (await daemon.control.feedback("4", "normal", ""))["id"] == "4"
        for never in ("5", "999999", "4.1"):
            async with refused(404, "not_found") as said:
                await daemon.control.feedback(never, "normal", "")
            async with refused(404, "not_found"):
                await daemon.control.anomaly(never)
            assert said == [f"no alert has the id {never}"]
        assert len(daemon.detector.answered) == 1


async def test_an_alert_whose_record_was_rotated_away_is_gone_and_the_error_says_what_to_do(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        await daemon.flag(alert(4))
        (tmp_path / "state" / "alerts.jsonl").rename(tmp_path / "alerts.jsonl.1")
        assert (await daemon.control.feedback("4", "normal", ""))["id"] == "4"  # still among the recent ones
        async with refused(404, "gone") as said:
            await daemon.control.feedback("3", "normal", "")
        assert said[0].startswith("alert 3 is neither among the recent ones nor in alerts.jsonl")
        await daemon.flag(*(alert(n) for n in range(10, RECENT_RECORDS + 20)))
        async with refused(404, "gone"):
            await daemon.control.feedback("4", "normal", "")


async def test_an_alert_in_a_counting_record_is_answered_by_its_own_cause(tmp_path: Path) -> None:
    """While it is in the state, among the recent records, in the file, and in a part of it."""
    async with served(tmp_path / "state") as daemon:
        await daemon.flag(alert(1), counting_record("60.0.1", "21-59"))
        assert (await daemon.control.anomaly("75"))["counted_in"] is None
        assert (await daemon.control.feedback("75", "normal", ""))["what"] == "counted"
        assert (await daemon.control.anomaly("30"))["counted_in"] == "60.0.1"
        await daemon.flag(*(alert(n) for n in range(100, RECENT_RECORDS + 101)))
        assert daemon.alerts.find_record("30") is None
        assert (await daemon.control.feedback("30", "anomaly", ""))["what"] == "counted"
        path = tmp_path / "state" / "alerts.jsonl"
        path.rename(path.with_name("alerts.jsonl.00000001"))
        assert (await daemon.control.feedback("59", "normal", ""))["id"] == "59"
        assert [answer.cause for answer in daemon.detector.answered.values()] == [CAUSE + 1] * 3
        for never in ("20", "60", "30.1"):
            async with refused(404, "not_found"):
                await daemon.control.anomaly(never)
        async with refused(409, "counting_record") as said:
            await daemon.control.feedback("60.0.1", "normal", "")
        assert said == ["60.0.1 stands for 39 alerts, from 21 to 59: answer one of them"]


async def test_the_search_reads_little_of_what_is_before_and_passes_over_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "alerts.jsonl"
    records = [json.dumps(alert(2 * n, text="x" * 200)).encode() for n in range(1, 30_000)]
    damaged = [b'{"id":7}', b'{"id":"x"}', b"{}}"]
    odd = b'{"id":"60001","stands_for":2,"alerts":[5]}'
    path.write_bytes(b"\n".join([*records[:50], *damaged, *records[50:], *damaged, odd, b""]))
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1

    for wanted in ("2", "100", "102", "30000", "59998"):
        assert answered_alert.find_record(path, wanted, check)["id"] == wanted
    assert checks < 500, "each is a block or a line that was read"
    for never, code in (("59997", "not_found"), ("60000", "not_found"), ("1", "gone")):
        async with refused(404, code):
            answered_alert.find_record(path, never)
    # Control: what is not found by its place is looked for in all records that come after it.
    before = checks
    with pytest.raises(ControlError):
        answered_alert.find_record(path, "3", check)
    assert checks - before > path.stat().st_size >> 17


def endless(path: Path) -> None:
    """A file in which a search does not end in the time of a test: one line of 256 GiB, which take no room."""
    with open(path, "ab") as file:
        file.truncate(1 << 38)


async def test_a_search_ends_when_its_caller_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(tmp_path / "state") as daemon:
        endless(tmp_path / "state" / "alerts.jsonl")
        for ask in (daemon.control.anomaly, partial(daemon.control.feedback, answer="normal", note="")):
            with trio.fail_after(20):
                with trio.move_on_after(0.3) as left:
                    await ask("3")
                assert left.cancelled_caught
        # Control: one that nothing tells goes on, in its thread, until the file ends.
        monkeypatch.setattr(trio.from_thread, "check_cancelled", lambda: None)
        timer = threading.Timer(2.0, os.truncate, (tmp_path / "state" / "alerts.jsonl", 0))
        began = trio.current_time()
        with trio.move_on_after(0.3):
            timer.start()
            async with refused(404, "gone"):
                await daemon.control.anomaly("3")
        assert trio.current_time() - began >= 2.0


async def test_few_may_look_for_an_alert_at_once_and_who_answers_one_does_not_wait_for_them(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        await daemon.flag(alert(4), *(alert(n) for n in range(10, RECENT_RECORDS + 20)))
        running = daemon.service._running_or_503()
        searching = threading.Event()

        def search() -> None:
            searching.wait(20)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.service._reading.run, search)
            for _ in range(service_module.WAITING_SEARCHES):
                nursery.start_soon(daemon.control.anomaly, "4")
            await trio.testing.wait_all_tasks_blocked()
            async with refused(503, "busy") as said:
                await daemon.control.anomaly("4")
            assert said == ["the daemon is looking for alerts for others; try again in a moment"]
            assert (await daemon.control.anomaly("900"))["id"] == "900", "those in memory are not looked for"
            assert (await daemon.control.feedback("4", "normal", ""))["id"] == "4"
            assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
            searching.set()
        assert running.alerts.find_record("4") is None


async def test_snapshots_are_verified_for_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verifying, at_once = threading.Event(), 0

    def verified(store: Store) -> list[dict[str, Any]]:
        nonlocal at_once
        at_once += 1
        assert at_once == 1 and verifying.wait(20)
        at_once -= 1
        return []

    monkeypatch.setattr(snapshot_requests, "verified_snapshots", verified)
    async with served(tmp_path / "state") as daemon, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(daemon.control.verify_snapshots)
        await trio.testing.wait_all_tasks_blocked()
        async with refused(503, "busy"):
            await daemon.control.verify_snapshots()
        verifying.set()


async def return_at_once(alerts: Alerts, seq: int) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("waits", [True, False])
async def test_an_alert_whose_record_is_on_its_way_is_waited_for_and_would_be_404_without_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """Its frame is applied, which has ended its count, and the verdicts have not come through to the records."""
    if not waits:
        monkeypatch.setattr(Alerts, "wait_for_frame", return_at_once)
    async with served(tmp_path / "state") as daemon:
        daemon.detector.seq = 5
        found: list[Any] = []

        async def ask(alert_id: str) -> None:
            try:
                found.append((await daemon.control.anomaly(alert_id))["id"])
            except ControlError as error:
                found.append(error.status)

        async with trio.open_nursery() as nursery:
            for alert_id in ("30", "60", "60.0.1"):
                nursery.start_soon(ask, alert_id)
            await trio.testing.wait_all_tasks_blocked(0.2)
            assert len(found) == (0 if waits else 3)
            await daemon.flag(alert(60), counting_record("60.0.1", "21-59"))
        assert sorted(map(str, found)) == (["30", "60", "60.0.1"] if waits else ["404"] * 3)


async def test_a_record_without_a_cause_cannot_be_answered(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        old = {"id": "4", "line": 4, "flagged": True}
        odd = alert(7, cause_template=2**31), alert(8, cause_template="7"), alert(9, cause_shapes=["7"])
        await daemon.flag(old, alert(5, cause="7"), alert(6, cause_kind="x"), *odd)
        for number in ("4", "5", "6", "7", "8", "9"):
            async with refused(409, "no_cause"):
                await daemon.control.feedback(number, "normal", "")
        assert daemon.sequencer.seq == 0


async def test_a_cause_that_cannot_recur_is_refused_as_normal_and_accepted_as_an_anomaly(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        await daemon.flag(*(alert(n, cause_kind="new", cause_template=n) for n in (7, 8)))
        daemon.detector.evicted = {7}
        async with refused(409, "template_gone") as said:
            await daemon.control.feedback("7", "normal", "")
        assert said[0].startswith("alert 7 is about a template that is not known any more")
        assert daemon.sequencer.seq == 0
        await daemon.control.feedback("8", "normal", "")
        await daemon.control.feedback("7", "anomaly", "")
        assert [(one["id"], one["answer"]) for one in await daemon.control.answers()] == [
            ("8", "normal"),
            ("7", "anomaly"),
        ]


async def test_while_the_disk_is_full_nothing_is_changed_and_nobody_waits(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        await daemon.flag(alert(4))
        daemon.sequencer.failure = JournalFailure("no space left on device", 0.0)
        with trio.fail_after(5):
            async with refused(503, "degraded"):
                await daemon.control.feedback("4", "normal", "")
            async with refused(503, "degraded"):
                await daemon.control.train_from("a", b"one\n", True)
        daemon.sequencer.failure = None
        assert await daemon.control.train_from("a", b"one\n", True) == {"lines": 1, "rule_hits": 0, "sessions": 0}
        assert daemon.detector.learned == [b"one"]


async def test_vouched_lines_arrive_whole_however_the_file_is_cut(tmp_path: Path) -> None:
    text = b"".join(b"line %d %s\n" % (n, b"union" * (n % 50 == 0)) for n in range(30_000)) + b"no newline"
    async with served(tmp_path / "state") as daemon:
        told = {"lines": 0, "rule_hits": 0, "sessions": 0}
        for start in range(0, len(text), 300_001):
            chunk = text[start : start + 300_001]
            answer = await daemon.control.train_from("file", chunk, start + 300_001 >= len(text))
            told = {name: told[name] + count for name, count in answer.items()}
        assert daemon.detector.learned == text.split(b"\n")
        assert (told["lines"], told["rule_hits"], daemon.detector.line) == (30_001, 600, 0)
        assert daemon.detector.sources.sources() == []
        assert await daemon.control.train_from("empty", b"", True) == {"lines": 0, "rule_hits": 0, "sessions": 0}


async def test_of_a_file_that_is_not_text_nothing_is_learned_and_the_next_one_need_not_wait(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        async with refused(415, "not_text"):
            await daemon.control.train_from("model.pt", b"PK\x03\x04\n\n\n", False)
        assert await daemon.control.train_from("log", b"one\ntw", False) == {
            "lines": 1,
            "rule_hits": 0,
            "sessions": 0,
        }
        async with refused(415, "not_text"):
            await daemon.control.train_from("log", bytes(100), False)
        assert await daemon.control.train_from("log", b"o\n", True) == {"lines": 1, "rule_hits": 0, "sessions": 1}
        windows = "drei\nvier\n".encode("utf-16")
        for place in range(len(windows)):
            await daemon.control.train_from("windows", windows[place : place + 1], place + 1 == len(windows))
        assert daemon.detector.learned == [b"one", b"two", b"drei", b"vier"]


async def test_lines_too_long_are_cut_as_those_of_a_connection(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        for chunk in (b"x" * 40_000, b"x" * 40_000, b"x" * 40_000 + b"\nshort\n"):
            await daemon.control.train_from("long", chunk, False)
        await daemon.control.train_from("long", b"", True)
        assert [len(line) for line in daemon.detector.learned] == [65_536, 5]


async def test_one_upload_at_a_time_and_an_abandoned_one_is_ended(autojump_clock: MockClock) -> None:
    vouching = VouchedUploads(lambda lines: "plain", "auto", 65_536, "salt", wall_clock)
    sources, learned, ends = LivingSources(), list[bytes](), list[bytes]()

    async def apply(frame: VouchedFrame, sent: Callable[[], None]) -> Summary:
        sent()
        lines, _ = sources.complete_lines(frame.segment)
        learned.extend(lines)
        ends.extend(lines if frame.done else [])
        assert frame.done == frame.segment.last
        return Summary(vouched_lines=len(learned))

    def summary() -> Summary:
        return Summary(vouched_lines=len(learned))

    await vouching.take_chunk("first", b"one\nbegun", False, summary, apply)
    await trio.sleep(ABANDONED_SECONDS - 1)
    async with refused(409, "busy"):
        await vouching.take_chunk("second", b"two\n", False, summary, apply)
    await vouching.take_chunk("first", b" and", False, summary, apply)
    await trio.sleep(ABANDONED_SECONDS - 1)
    async with refused(409, "busy"):
        await vouching.take_chunk("second", b"two\n", False, summary, apply)
    await trio.sleep(1)
    assert (await vouching.take_chunk("second", b"two\n", True, summary, apply))["lines"] == 1
    assert (learned, ends) == ([b"one", b"begun and", b"two"], [b"begun and"])
    await vouching.take_chunk("third", b"three\n", False, summary, apply)  # the second has ended
    assert [source.name for source in sources.sources()] == ["vouched-salt-3"]


@pytest.mark.parametrize("taken", [False, True])
async def test_a_client_that_hangs_up_leaves_no_gap_and_nothing_twice(autojump_clock: MockClock, taken: bool) -> None:
    vouching = VouchedUploads(lambda lines: "plain", "auto", 65_536, "salt", wall_clock)
    sources, learned, stuck = LivingSources(), list[bytes](), False

    async def apply(frame: VouchedFrame, sent: Callable[[], None]) -> Summary:
        if stuck and not taken:
            await trio.sleep_forever()
        sent()
        learned.extend(sources.complete_lines(frame.segment)[0])
        if stuck:
            await trio.sleep_forever()
        return Summary()

    await vouching.take_chunk("file", b"one\ntw", False, Summary, apply)
    for last in (False, True):
        stuck = True
        with trio.move_on_after(1) as scope:
            await vouching.take_chunk("file", b"o\nthree", last, Summary, apply)
        assert scope.cancelled_caught
        stuck = False
        if not taken:  # a repeated answer is the same
            await vouching.take_chunk("file", b"o\nthree", last, Summary, apply)
    if taken:
        await vouching.take_chunk("file", b"", True, Summary, apply)
    assert learned == [b"one", b"two", b"threeo", b"three"] and sources.sources() == []


async def test_an_earlier_generation_judges_again(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        first, second = daemon.model(1), daemon.model(2, in_force=True)
        answer = await daemon.control.rollback_model(1)
        assert (answer["generation"], answer["name"], answer["seq"]) == (1, first.name, 1)
        assert daemon.detector.generation == 1 and daemon.detector.model == first.name
        async with refused(409, "in_force"):
            await daemon.control.rollback_model(2)
        async with refused(404, "not_found"):
            await daemon.control.rollback_model(3)
        assert daemon.sequencer.seq == 1 and second.generation == 2
    with open_store(tmp_path / "state") as store:
        [entry] = store.recover().entries
        frame = decode_frame(entry.payload)
    assert frame.name == first.name and frame.sha256 == first.sha256  # type: ignore[union-attr]


async def test_models_that_are_refused_damaged_or_gone_do_not_take_effect(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        daemon.model(1, promoted=False, reason="the anchor set got worse")
        damaged, gone = daemon.model(2), daemon.model(3)
        daemon.store.models()
        (tmp_path / "state" / damaged.name).write_bytes(b"rot")
        (tmp_path / "state" / gone.name).unlink()
        async with refused(409, "refused") as said:
            await daemon.control.rollback_model(1)
        assert said == ["model generation 1 was refused: the anchor set got worse"]
        async with refused(409, "damaged"):
            await daemon.control.rollback_model(2)
        async with refused(404, "not_found"):
            await daemon.control.rollback_model(3)
        assert daemon.sequencer.seq == 0 and daemon.detector.model == ""


async def test_a_snapshot_or_model_of_another_version_is_not_restored(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        daemon.model(1, more={"parts.ngram/grams.4": np.zeros(1, np.uint64)})
        async with refused(409, "damaged") as said:
            await daemon.control.rollback_model(1)
        assert "the columns of its ngram are not" in said[0]
        info = daemon.store.write_snapshot(7, 0, {**Detector().export(), "clock.wound": 1.0})
        async with refused(409, "damaged") as said:
            await daemon.control.restore_snapshot(info.name)
        assert "the columns of its clock" in said[0] and info.name in said[0]
        assert daemon.sequencer.seq == 0


def is_held(daemon: Served, name: str) -> bool:
    return daemon.store._used.get(name, 0) == math.inf


async def test_a_restore_that_fails_leaves_its_snapshot_free(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        name = daemon.store.write_snapshot(7, 0, dict(Detector().export())).name
        async with refused(500, "not_restored"):  # the small detector restores nothing
            await daemon.control.restore_snapshot(name)
        assert not is_held(daemon, name)
        requests = daemon.service._running_or_503().requests
        assert isinstance(requests, trio.MemorySendChannel)
        requests.close()
        async with refused(503, "stopping"):
            await daemon.control.restore_snapshot(name)
        assert not is_held(daemon, name)


def waiting_after(begun: threading.Event, wait: Callable[[float], bool]) -> Callable[[float], bool]:
    def set_and_wait(seconds: float) -> bool:
        begun.set()
        return wait(seconds)

    return set_and_wait


async def do_nothing(service: Service) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize("released", [True, False])
async def test_a_snapshot_stays_held_for_a_caller_who_left_until_its_frame_is_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, released: bool
) -> None:
    if not released:  # control: as it was
        monkeypatch.setattr(Service, "release_left_restores", do_nothing)
    async with served(tmp_path / "state") as daemon:
        name = daemon.store.write_snapshot(7, 0, dict(Detector().export())).name
        daemon.detector.gate, applying = threading.Event(), threading.Event()
        monkeypatch.setattr(daemon.detector.gate, "wait", waiting_after(applying, daemon.detector.gate.wait))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.control.restore_snapshot, name)
            with trio.fail_after(20):
                await trio.to_thread.run_sync(applying.wait)
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert is_held(daemon, name)
        daemon.detector.gate.set()
        with trio.fail_after(20):
            await daemon.service._running_or_503().scoring.published.wait_for_frame(1)
        await trio.testing.wait_all_tasks_blocked()
        assert is_held(daemon, name) != released


async def test_models_are_listed_with_their_files_and_files_that_nobody_remembers(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        first, second, third = daemon.model(1), daemon.model(2, promoted=False, reason="worse"), daemon.model(3)
        (tmp_path / "state" / second.name).unlink()
        del daemon.detector.known_generations[-1]
        listed = await daemon.control.models()
        assert [(one["name"], one["line"], one["promoted"], one["reason"]) for one in listed] == [
            (third.name, 30, True, None), (second.name, 20, False, "worse"), (first.name, None, True, None),
        ]  # fmt: skip
        size = (tmp_path / "state" / third.name).stat().st_size
        assert [one["bytes"] for one in listed] == [size, None, listed[2]["bytes"]] and listed[2]["bytes"] > 0
        assert listed[0]["time"] > 0 and listed[1]["time"] is None


async def test_incidents_and_reasons_come_from_the_detector(tmp_path: Path) -> None:
    async with served(tmp_path / "state") as daemon:
        daemon.detector.line = 5
        assert await daemon.control.incidents(2) == [{"id": "5"}, {"id": "4"}]
        [answer] = await daemon.control.detect([b"x"], None, explain=True)
        assert answer["explain"] == {"members": {}}


async def test_before_the_state_is_read_no_alert_can_be_answered() -> None:
    service: Control = Service(Settings(), "0", now=lambda: 0.0)
    for ask in (
        partial(service.feedback, "1", "normal", ""), partial(service.undo_feedback, "1"), service.answers,
        partial(service.incidents, 1), service.models, partial(service.rollback_model, 1),
        partial(service.train_from, "a", b"", False),
    ):  # fmt: skip
        async with refused(503, "starting"):
            await ask()
