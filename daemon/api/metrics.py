"""`GET /metrics`: the numbers of `GET /status` in Prometheus' text format.

Nothing is counted here; each scrape renders one status. A field that is absent or null has no sample, nor has one that
is 0 while the state is read: it is not known yet, and a count that seems to start again counts twice.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from daemon.control.degraded import CODES

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # what `generate_latest` writes

PHASES = ("warmup", "training", "ensemble")

_COUNTERS = {  # name (the format adds _total): where in the status, help
    "vigild_lines": ("logs_processed", "Log lines durable and applied."),
    "vigild_ingest_bytes": ("ingest.bytes", "Bytes taken from sources since the start."),
    "vigild_lines_truncated": ("ingest.lines_truncated", "Lines longer than max_line_bytes, cut."),
    "vigild_lines_future": ("ingest.future_lines", "Lines with a time more than a day ahead, taken as without one."),
    "vigild_flagged": ("alarms.flagged", "Records flagged."),
    "vigild_incidents_opened": ("alarms.incidents.opened", "Incidents opened."),
    "vigild_incidents_digest": ("alarms.incidents.digest", "Incidents beyond the alarm budget, in the digest."),
    "vigild_incidents_evicted": ("alarms.incidents.evicted", "Incidents that made room in the bounded table."),
    "vigild_templates_evicted": ("templates.evicted", "Templates that made room in the bounded table."),
    "vigild_sessions_evicted": ("sessions.evicted", "Open sessions that made room in the bounded table."),
    "vigild_sources_evicted": ("sources.evicted", "Sources whose counters made room in the bounded table."),
    "vigild_admitted_dropped": ("alarms.admitted_dropped", "Admitted causes that made room for newer ones."),
    "vigild_answers_dropped": ("alarms.answers_dropped", "Answers that made room for newer ones."),
    "vigild_training_failures": ("training.failures_total", "Trainings that failed since the start."),
    "vigild_member_withdrawals": ("training.withdrawals", "Members withdrawn, since they failed, since the start."),
    "vigild_checkpoint_failures": ("checkpoint.failures", "Checkpoints that failed since the start."),
    "vigild_records_lost": ("alarms.records_lost", "Alerts and verdicts that could not be written and are lost."),
    "vigild_connections_gave_way": (
        "ingest.connections_gave_way",
        "Connections that had sent nothing and were closed for others.",
    ),
    "vigild_accept_errors": ("ingest.accept_errors", "Connections that could not be accepted at a try."),
    "vigild_models_refused": ("training.refused", "Models that were trained and not promoted."),
    "vigild_vouched_lines": ("vouched.lines", "Lines of vouched files."),
    "vigild_vouched_rule_hits": ("vouched.rule_hits", "Lines of vouched files that a rule matched."),
}
_GAUGES = {
    "vigild_reading_percent": ("reading.percent", "How far reading the state has come, while the daemon starts."),
    "vigild_lines_to_replay": ("reading.lines_to_replay", "Lines to replay before the start is over."),
    "vigild_ready_transformer": ("transformer_ready", "1 when the transformer scores."),
    "vigild_ready_isolation_forest": ("isolation_forest_ready", "1 when the Isolation Forest scores."),
    "vigild_training": ("training_in_progress", "1 while the trainer runs."),
    "vigild_training_percent": ("training.percent", "How far the training under way has come."),
    "vigild_templates": ("vocabulary_size", "Templates known."),
    "vigild_connections": ("ingest.connections", "Connections of log sources."),
    "vigild_connections_waiting": (
        "ingest.connections_waiting",
        "1 when connections have to wait for a place. The kernel does not tell how many.",
    ),
    "vigild_records_waiting": ("alarms.records_waiting", "Alerts and verdicts to be written, held in memory."),
    "vigild_incidents_open": (
        "alarms.incidents.open",
        "Incidents with an alert within the last six hours of log time.",
    ),
    "vigild_answers": ("alarms.answers", "The operator's answers in force."),
    "vigild_admitted_causes": ("alarms.admitted", "Causes that are normal by their share of the stream."),
    "vigild_model_generation": ("training.generation_in_force", "The model generation in force, 0 without one."),
    "vigild_frame_seq": ("seq", "Number of the last frame applied."),
    "vigild_lines_at_risk": (
        "checkpoint.lines_at_risk",
        "Lines read and not durable yet.",
    ),
    "vigild_checkpoint_line": ("checkpoint.last_line", "Last line in the last snapshot."),
    "vigild_checkpoint_time_seconds": ("checkpoint.last_time", "When the last snapshot was made, Unix time."),
    "vigild_recovery_lost_lines": ("recovery.lost_lines", "Accepted lines the last start could not recover."),
    "vigild_recovery_replayed_lines": ("recovery.replayed_lines", "Lines the last start replayed."),
}


def render(status: Mapping[str, Any]) -> bytes:
    """`status`, as `Control.status` gives it, in the format of `CONTENT_TYPE`."""
    registry = CollectorRegistry()
    registry.register(_StatusCollector(status))
    return generate_latest(registry)


class _StatusCollector(Collector):
    def __init__(self, status: Mapping[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status
        starting = status.get("status") == "starting"
        for name, (path, text) in _COUNTERS.items():
            if (value := self._number(path)) is not None:
                yield CounterMetricFamily(name, text, value=value)
        for name, (path, text) in _GAUGES.items():
            if (value := self._number(path)) is not None:
                yield GaugeMetricFamily(name, text, value=value)
        serving = float(bool(status.get("serving")))
        yield GaugeMetricFamily(
            "vigild_serving", "1 when lines are taken and judged: GET /health is 200.", value=serving
        )
        phase = GaugeMetricFamily("vigild_phase", "1 for the phase the daemon is in.", labels=["phase"])
        for name in PHASES:
            phase.add_metric([name], float(status.get("phase") == name and not starting))
        yield phase
        degraded = GaugeMetricFamily("vigild_degraded", "1 for each reason why it is degraded.", labels=["reason"])
        found = {reason["code"] for reason in status.get("reasons") or ()}
        for code in CODES:
            degraded.add_metric([code], float(code in found))
        yield degraded
        yield InfoMetricFamily("vigild", "The daemon.", value={"version": str(self._status.get("version"))})

    def _number(self, path: str) -> float | None:
        value: Any = self._status
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        known = isinstance(value, (bool, int, float)) and (value or self._status.get("status") != "starting")
        return float(value) if known else None
