"""`GET /status`, as `Control.status` has it: the fields of the contract, then part by part."""

import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from daemon.control.condition import Condition, Running
from daemon.settings_file import Settings
from detection.summary import Summary

_PAGE_BYTES = resource.getpagesize()


def whole_status(
    condition: Condition, settings: Settings, version: str, places: Mapping[str, Any], now: float
) -> dict[str, Any]:
    """`places` are where this daemon's files and sockets are, `now` is in seconds since the epoch. Never waits."""
    summary, reading = condition.summary(), condition.reading
    status = {
        **condition.as_dict(),
        "version": version,
        "uptime_seconds": round(now - condition.began, 1),
        "phase": condition.phase(),
        "logs_processed": condition.line(),
        **_readiness_fields(summary, settings),
        "time": now,
        "places": dict(places),
        "seq": summary.seq if reading is None else max(summary.seq, reading.seq),
        "process": _process_fields(),
        "admin": asdict(condition.admin),
        "records": condition.record_space.status() if condition.record_space is not None else {},
    }
    running = condition.running
    if running is None:
        unknown: dict[str, Any] = {"training_in_progress": False, "state_digest": None, "digest_line": None}
        parts = ("recovery", "checkpoint", "training", "ingest", "alarms", "vouched", "templates", "sessions")
        return {**status, **unknown, **{part: {} for part in parts}}
    return {
        **status,
        "training_in_progress": running.training.in_progress,
        **_digest_fields(running),
        "recovery": running.recovery.as_dict(),
        "checkpoint": {**running.checkpoints.status(), "lines_at_risk": running.ingest.lines_under_way},
        "training": _training_fields(running, summary, withdrawals=len(condition.withdrawals)),
        "ingest": _ingest_fields(running, summary),
        "alarms": _alarm_fields(running, summary, settings),
        **_table_size_fields(summary),
        "lost_lines": summary.lost_lines,
        "log_time": summary.log_time,
    }


def _readiness_fields(summary: Summary, settings: Settings) -> dict[str, Any]:
    """What is ready, by the names of the original's fields."""
    forest, transformer = (name in summary.members for name in ("isolation_forest", "transformer"))
    return {
        "warmup_target": settings.learning.warmup_lines,
        "warmup_complete": transformer or summary.line >= settings.learning.warmup_lines,
        "isolation_forest_ready": forest,
        "transformer_ready": transformer,
        "vocabulary_size": summary.templates,
        "training_sequences": summary.history_sessions,
        "iso_training_samples": summary.history_sessions,
        "active_models": {
            "rule_based": True,
            "isolation_forest": forest,
            "transformer": transformer,
            **dict.fromkeys(summary.members, True),
        },
    }


def _digest_fields(running: Running) -> dict[str, Any]:
    last = running.checkpoints.last
    if last is None:
        return {"state_digest": running.loaded_digest, "digest_line": running.loaded_line}
    return {"state_digest": last.digest, "digest_line": last.line}


def _training_fields(running: Running, summary: Summary, withdrawals: int) -> dict[str, Any]:
    training = running.training
    return {
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
        "withdrawals": withdrawals,
    }


def _ingest_fields(running: Running, summary: Summary) -> dict[str, Any]:
    return {
        **asdict(running.ingest),
        "connections": running.ingest.connections_open,
        "unterminated_lines": summary.unterminated_lines,
        "future_lines": summary.future_lines,
    }


def _alarm_fields(running: Running, summary: Summary, settings: Settings) -> dict[str, Any]:
    return {
        **running.alerts.status(),
        "flagged": summary.flagged,
        "rule_hits": summary.rule_hits,
        "per_day": settings.alarms.per_day,
        "alpha": summary.alpha,
        "recorded": summary.alerts_recorded,
        "counted": summary.alerts_counted,
        "counting": summary.alerts_waiting,
        "counting_records": summary.counting_records,
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
    }


def _table_size_fields(summary: Summary) -> dict[str, Any]:
    """What the state holds of vouched lines, templates, sessions and clients."""
    return {
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
    }


def _process_fields() -> dict[str, Any]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * _PAGE_BYTES
    return {
        "rss_bytes": resident,
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "pid": os.getpid(),
        "prefix": sys.prefix,
    }
