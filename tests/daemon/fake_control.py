"""A fake daemon with fixed answers, for the tests of API, page and vigilctl."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from daemon.control.control_interface import ControlError

REFUSAL = "the anchor set got worse: .91 to .84"
ACTIVE = {"rule_based": True, "isolation_forest": True, "transformer": False}


class FakeControl:
    """`stop()` ends the event streams; `publish()` reaches everyone subscribed; `asked` records calls."""

    def __init__(self) -> None:
        self.health_status = "serving"
        self.serving = True  # unless something else keeps it from that
        self.reasons: list[dict[str, str]] = []
        self.status_extra: dict[str, Any] = {}
        self.asked: list[Any] = []
        self.extra: list[bool] = []  # of each checkpoint
        self.error: Exception | None = None
        self.checkpoint_may_finish = trio.Event()
        self.checkpoint_may_finish.set()
        self.checkpoint_cancelled = trio.Event()
        self.checkpoint_asked = trio.Event()
        self.subscribed = trio.Event()
        self.unsubscribed = trio.Event()
        self.flagged: list[dict[str, Any]] = []
        self.grouped: list[dict[str, Any]] = []
        self.vouched = b""
        self.generation = 3
        self.trains = True
        self.after_vouching: dict[str, Any] = {}  # what the status says then
        self.error_after: tuple[int, Exception] | None = None  # of so many chunks
        self.broken_snapshot: str | None = None
        self._subscribers: set[trio.MemorySendChannel[dict[str, Any]]] = set()
        self._stopped = False

    def health(self) -> dict[str, Any]:
        return {
            "status": self.health_status,
            "serving": self.serving and self.health_status in ("serving", "degraded"),
            "reasons": self.reasons,
            "reading": None,
            "phase": "training",
            "logs_processed": 51234,
            "transformer_ready": False,
            "active_models": ACTIVE,
        }

    def status(self) -> dict[str, Any]:
        if self.error:
            raise self.error
        return {
            **self.health(),
            "reason": None,
            "warmup_target": 50000,
            "warmup_complete": True,
            "training_in_progress": True,
            "isolation_forest_ready": True,
            "vocabulary_size": 143,
            "training_sequences": 4100,
            "iso_training_samples": 4100,
            "seq": 812,
            "state_digest": "9f" * 32,
            "digest_line": 50000,
            "recovery": {
                "tier": "full",
                "snapshot_line": 40000,
                "replayed_lines": 1200,
                "lost_lines": 0,
                "seconds": 0.21,
                "set_aside": [],
            },
            "checkpoint": {
                "last_line": 50000,
                "last_time": 1700000000.0,
                "lines_at_risk": 1234,
                "error": None,
            },
            "training": {"epoch": 3, "epochs": 8, "loss": 0.512, "percent": 42.0, "seconds_left": 38.0}
            | {"due": True, "generation_in_force": self.generation, "refused": 1, "refusal": REFUSAL, "error": None},
            "ingest": {"connections": 3, "bytes": 9_000_000, "lines_truncated": 1, "future_lines": 2},
            "alarms": {"flagged": 17, "per_day": 20.0, "alpha": 0.001, "floor_binding": False}
            | {"incidents": {"opened": 9, "open": 2, "digest": 3, "evicted": 1}, "answers": 4, "admitted": 5}
            | {"answers_dropped": 11, "admitted_dropped": 12},
            "templates": {"live": 20, "evicted": 6},
            "sessions": {"open": 3, "evicted": 7},
            "sources": {"evicted": 8},
            "vouched": {"lines": 1000, "rule_hits": 3, "sessions": 90, "waiting": False},
            "version": "0.1.0",
            **self.status_extra,
        }

    async def detect(
        self, lines: Sequence[bytes], session_id: str | None, explain: bool = False
    ) -> list[dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        if self.error:
            raise self.error
        self.asked.append(("detect", list(lines), session_id) + (("explain",) if explain else ()))
        why = (
            {"explain": {"cause_kind": "new", "what": "new template: GET /item 500"} | explanation()} if explain else {}
        )
        return [judgement(line) | why for line in lines]

    async def detect_when_checkpoint_may_finish(
        self, lines: Sequence[bytes], session_id: str | None, explain: bool = False
    ) -> list[dict[str, Any]]:
        await self.checkpoint_may_finish.wait()
        return [judgement(line) for line in lines]

    async def checkpoint(self, *, extra: bool = False) -> dict[str, Any]:
        self.asked.append("checkpoint")
        self.extra.append(extra)
        self.checkpoint_asked.set()
        try:
            await self.checkpoint_may_finish.wait()
        except trio.Cancelled:
            self.checkpoint_cancelled.set()
            raise
        return {"line": 51234, "path": "/s/snapshot-812.msgpack", "bytes": 3_100_000, "seconds": 0.04} | {
            "digest": "9f" * 32
        }

    async def flush(self) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self.asked.append("flush")
        return {"line": 51234, "sessions_closed": 12, "flagged": 1}

    async def snapshots(self) -> list[dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        return [
            {
                "name": f"snapshot-{seq}.msgpack",
                "seq": seq,
                "line": line,
                "bytes": 3_100_000,
                "time": 1.7e9,
                "pinned": False,
            }
            for seq, line in ((700, 40000), (812, 50000))
        ]

    async def verify_snapshots(self) -> list[dict[str, Any]]:
        found = [{**snapshot, "error": None} for snapshot in await self.snapshots()]
        found[0]["error"] = self.broken_snapshot
        return found

    async def pin_snapshot(self, name: str) -> dict[str, Any]:
        return await self._snapshot("pin", name, {"name": name, "pinned": True})

    async def unpin_snapshot(self, name: str) -> dict[str, Any]:
        return await self._snapshot("unpin", name, {"name": name, "pinned": False})

    async def restore_snapshot(self, name: str) -> dict[str, Any]:
        answer = {"name": name, "line": 51234, "seq": 813, "snapshot": await self.checkpoint()}
        return await self._snapshot("restore", name, answer)

    async def _snapshot(self, action: str, name: str, answer: dict[str, Any]) -> dict[str, Any]:
        return await self._told((action, name), answer)

    async def feedback(self, alert_id: str, answer: str, note: str) -> dict[str, Any]:
        answered = {"id": alert_id, "answer": answer, "kind": "new", "what": "new template: GET /beta 200"}
        return await self._told(("feedback", alert_id, answer, note), {**answered, "line": 51234})

    async def undo_feedback(self, alert_id: str) -> dict[str, Any]:
        return await self._told(("undo", alert_id), {"id": alert_id, "answer": "undo", "kind": "new"} | {
            "what": "new template: GET /beta 200", "line": 51234,
        })  # fmt: skip

    async def answers(self) -> list[dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        return [
            {
                "id": "1207.1",
                "answer": "normal",
                "kind": "shape",
                "cause": "00000000000000ab",
                "what": "sessions like this one",
                "note": "deploy of \x1b[31mTuesday",
                "line": 50001,
            }
        ]

    async def incidents(self, limit: int) -> list[dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        self.asked.append(("incidents", limit))
        return self.grouped[:limit]

    async def models(self) -> list[dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        both = {"members": ["transformer", "isolation_forest"], "bytes": 13_000_000, "time": 1.7e9}
        return [
            {"generation": 3, "name": "model-3-c.pt", "line": 150_000, "in_force": True, "promoted": True} | both
            | {"reason": None},
            {"generation": 2, "name": "model-2-b.pt", "line": 100_000, "in_force": False, "promoted": False} | both
            | {"reason": REFUSAL, "bytes": None, "time": None},
            {"generation": 1, "name": "model-1-a.pt", "line": 50_000, "in_force": False, "promoted": True} | both
            | {"reason": None},
        ]  # fmt: skip

    async def rollback_model(self, generation: int) -> dict[str, Any]:
        answer = {"generation": generation, "name": f"model-{generation}-a.pt", "line": 51234, "seq": 813}
        return await self._told(("rollback", generation), answer)

    async def train_from(self, source: str, data: bytes, last: bool) -> dict[str, Any]:
        if self.error_after is not None and len(self.asked) >= self.error_after[0]:
            raise self.error_after[1]
        self.vouched += data
        if last:
            self.status_extra |= self.after_vouching
        lines = data.count(b"\n") + (last and not self.vouched.endswith(b"\n"))
        self.generation += last and self.trains
        return await self._told(
            ("train-from", source, len(data), last),
            {"lines": lines, "rule_hits": data.count(b"union"), "sessions": data.count(b"\xff")},
        )

    async def _told(self, asked: tuple[Any, ...], answer: dict[str, Any]) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        if self.error:
            raise self.error
        self.asked.append(asked)
        return answer

    async def anomalies(self, after: str | None, limit: int) -> list[dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        self.asked.append(("anomalies", after, limit))
        return self.flagged[-limit:]

    async def anomaly(self, alert_id: str) -> dict[str, Any]:
        return await self._told(("anomaly", alert_id), {"id": alert_id, "flagged": True})

    @asynccontextmanager
    async def events(self, *, everything: bool) -> AsyncIterator[trio.MemoryReceiveChannel[dict[str, Any]]]:
        self.asked.append(("events", everything))
        send, receive = trio.open_memory_channel[dict[str, Any]](1000)
        self._subscribers.add(send)
        if self._stopped:
            send.close()
        self.subscribed.set()
        with send, receive:
            try:
                yield receive
            finally:
                self._subscribers.discard(send)
                self.unsubscribed.set()

    @property
    def streams(self) -> int:
        return len(self._subscribers)

    def publish(self, record: dict[str, Any]) -> None:
        for send in self._subscribers:
            send.send_nowait(record)

    def stop(self) -> None:
        self._stopped = True
        for send in self._subscribers:
            send.close()


def judgement(line: bytes) -> dict[str, Any]:
    attack = b"union" in line.lower()
    rules = {
        "is_attack": attack,
        "attack_types": ["sql_injection"] if attack else [],
        "confidence": 0.95 if attack else 0.0,
    }
    forest = {"is_anomaly": 0, "score": 0.41, "p": 0.2, "threshold": None}
    transformer = {
        "is_anomaly": int(attack),
        "score": 5.1057 if attack else 0.2,
        "p": 0.0002 if attack else 0.6,
        "threshold": 3.4038,
        "sequence_length": 1,
        "context": "single_log",
    }
    return {
        "is_anomaly": attack,
        "anomaly_score": 0.98 if attack else 0.03,
        "verdict": "attack" if attack else "normal",
        "p": 0.0001 if attack else 0.7,
        "phase": "ensemble",
        "timestamp": "2025-10-28T08:00:00+00:00",
        "rule_based": rules,
        "isolation_forest": forest,
        "transformer": transformer,
        "details": {"logs_processed": 51234, "log_data": line.decode("utf-8", "surrogateescape")},
    }


def explanation() -> dict[str, Any]:
    """Why, as judgements and flagged records carry it."""
    return {
        "members": [
            {"name": "transformer", "score": 9.25, "p": 0.0001, "threshold": 6.5},
            {"name": "source_rates", "score": 1.5, "p": 0.4, "threshold": None},
        ],
        "rules": [
            {
                "name": "sqli-union",
                "severity": "high",
                "field": "target",
                "before": "/item?id=1 ",
                "text": "union select",
                "after": " password\x1b[2J",
            }
        ],
        "expected": [
            {"template_id": 4, "template": "GET /item 200", "p": 0.71},
            {"template_id": 9, "template": "GET /style.css 200", "p": 0.2},
            {"template_id": 2, "template": "<end of session>", "p": 0.0004},
        ],
        "found": {"template_id": 31, "template": "GET /item 500", "p": 0.00002},
        "value": {"text": "1 union select", "characters": "' o"},
        "source": [
            {"name": "distinct_things", "value": 311.0, "usual": 4.0},
            {"name": "failures", "value": -0.0, "usual": 2.0},
        ],
        "features": [
            {"name": "share_of_errors", "value": 0.8, "usual": 0.01, "high": 0.05},
            {"name": "seconds_a_line", "value": 0.02, "usual": 3.0, "high": 60.0},
        ],
        "lines": [
            {"line": 51230, "text": "GET / HTTP/1.1 200", "odd": False},
            {"line": 51233, "text": "GET /item?id=1+union+select HTTP/1.1 500", "odd": True},
            {"line": None, "text": "GET /item", "odd": False},
        ],
    }


def incident(line: int, **changes: Any) -> dict[str, Any]:
    """As `GET /incidents` lists it."""
    return {
        "id": str(line),
        "kind": "rule",
        "cause": f"{line:016x}",
        "what": "rule sqli-union on GET /item 200",
        "first_time": 1_700_000_000.0,
        "last_time": 1_700_000_600.0,
        "first_line": line,
        "last_line": line + 400,
        "count": 37,
        "samples": [str(line), str(line + 400)],
        "digest": False,
        "open": True,
        **changes,
    }


def record(line: int, **changes: Any) -> dict[str, Any]:
    """A flagged record as `GET /events` carries it."""
    return {
        "id": str(line),
        "line": line,
        "first_line": line,
        "last_line": line,
        "time": 1700000000.0,
        "session": "203.0.113.9",
        "closed": False,
        "template_id": 7,
        "template": "GET /search <*> 200",
        "verdict": "attack",
        "score": 0.98,
        "p": 0.0001,
        "flagged": True,
        "members": {"rules": {"score": 1.0, "p": 0.0}},
        "attack_types": ["sql_injection"],
        "cause": f"{line:016x}",
        "cause_kind": "rule",
        "cause_template": 7,
        "what": "rule sqli-union on GET /item 200",
        "incident": str(line),
        "incident_count": 1,
        "digest": False,
        "explain": explanation(),
        "model_generation": 1,
        "text": '203.0.113.9 - - "GET /search?q=<script>alert(1)</script> HTTP/1.1" 200 12',
        **changes,
    }


def unavailable() -> ControlError:
    return ControlError(503, "starting", "the daemon is still loading what it knows")
