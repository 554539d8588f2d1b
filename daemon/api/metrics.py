"""`GET /metrics`: the numbers of `GET /status` in Prometheus' text format.

Nothing is counted here; each scrape renders one status. A field that is absent or null has no sample, and neither has
one that is 0 while the state is being read: its value is not known yet, and Prometheus would take 0 for a reset.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from daemon.control.degraded_reasons import CODES

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # what `generate_latest` writes

PHASES = ("warmup", "training", "ensemble")

_COUNTERS = {  # name (the format adds _total): where in the status, help
    "vigild_lines": ("logs_processed", "Log lines durable and applied."),
    "vigild_ingest_bytes": ("ingest.bytes", "Bytes taken from log connections since the start."),
    "vigild_lines_truncated": ("ingest.lines_truncated", "Lines that were longer than max_line_bytes and were cut."),
    "vigild_lines_future": (
        "ingest.future_lines",
        "Lines with a time more than a day ahead, treated as lines without a time.",
    ),
    "vigild_flagged": ("alarms.flagged", "Alerts raised: recorded in full, or counted."),
    "vigild_alerts_recorded": ("alarms.recorded", "Alerts recorded in full."),
    "vigild_alerts_counted": ("alarms.counted", "Alerts that counting records stand for."),
    "vigild_counting_records": ("alarms.counting_records", "Counting records."),
    "vigild_incidents_opened": ("alarms.incidents.opened", "Incidents opened."),
    "vigild_incidents_digest": ("alarms.incidents.digest", "Incidents over the alarm budget: listed, not announced."),
    "vigild_incidents_evicted": ("alarms.incidents.evicted", "Incidents evicted from the bounded table."),
    "vigild_templates_evicted": ("templates.evicted", "Templates evicted from the bounded table."),
    "vigild_sessions_evicted": ("sessions.evicted", "Open sessions evicted from the bounded table."),
    "vigild_sources_evicted": ("sources.evicted", "Clients whose counters were evicted from the bounded table."),
    "vigild_admitted_dropped": ("alarms.admitted_dropped", "Admitted causes dropped in favour of newer ones."),
    "vigild_answers_dropped": ("alarms.answers_dropped", "Answers dropped in favour of newer ones."),
    "vigild_training_failures": ("training.failures_total", "Trainings that failed; restarts do not reset it."),
    "vigild_member_withdrawals": ("training.withdrawals", "Members withdrawn because they failed, since the start."),
    "vigild_checkpoint_failures": ("checkpoint.failures", "Checkpoints that failed since the start."),
    "vigild_records_lost": ("alarms.records_lost", "Alerts and verdicts that could not be written and are lost."),
    "vigild_connections_gave_way": (
        "ingest.connections_gave_way",
        "Log connections closed because they were idle or their user had most, to make room for others.",
    ),
    "vigild_connections_refused": (
        "ingest.connections_refused",
        "Log connections refused because too many waited for a place already.",
    ),
    "vigild_admin_connections_gave_way": (
        "admin.gave_way",
        "Admin connections closed while the daemon waited for their clients, to make room for others.",
    ),
    "vigild_admin_connections_too_slow": (
        "admin.too_slow",
        "Admin connections closed because no whole request head came in time.",
    ),
    "vigild_admin_accept_errors": (
        "admin.accept_errors",
        "Attempts to accept an admin connection that failed for want of descriptors or memory.",
    ),
    "vigild_records_removed_bytes": (
        "alarms.bytes_removed",
        "Bytes of the oldest records removed since the start, for max_bytes or a full disk.",
    ),
    "vigild_accept_errors": ("ingest.accept_errors", "Attempts to accept a connection that failed."),
    "vigild_models_refused": ("training.refused", "Models that were trained and not promoted."),
    "vigild_vouched_lines": ("vouched.lines", "Lines of vouched files."),
    "vigild_vouched_rule_hits": ("vouched.rule_hits", "Lines of vouched files that a rule matched."),
}
_GAUGES = {
    "vigild_alerts_counting": ("alarms.counting", "Alerts that no record stands for yet: in counts under way."),
    "vigild_records_bytes": ("alarms.record_bytes", "Bytes of files of records, with what was rotated of them."),
    "vigild_records_max_bytes": (
        "records.max_bytes",
        "Bytes that files of records may take; no sample where others rotate them.",
    ),
    "vigild_disk_free_bytes": ("records.disk_free", "Bytes free on the disk of the state directory."),
    "vigild_disk_kept_free_bytes": (
        "records.disk_kept_free",
        "Bytes kept free for the journal: below that, records give way.",
    ),
    "vigild_reading_percent": ("reading.percent", "Progress of reading the state at a start, in percent."),
    "vigild_lines_to_replay": ("reading.lines_to_replay", "Lines still to replay before the start is over."),
    "vigild_ready_transformer": ("transformer_ready", "1 when the transformer scores."),
    "vigild_ready_isolation_forest": ("isolation_forest_ready", "1 when the Isolation Forest scores."),
    "vigild_training": ("training_in_progress", "1 while the trainer runs."),
    "vigild_training_percent": ("training.percent", "Progress of the training under way, in percent."),
    "vigild_templates": ("vocabulary_size", "Templates known."),
    "vigild_connections": ("ingest.connections", "Open log connections."),
    "vigild_admin_connections": ("admin.connections", "Open connections of the admin API."),
    "vigild_connections_waiting": (
        "ingest.connections_waiting",
        "1 while connections for log lines have to wait, and until none had to for 30 s.",
    ),
    "vigild_records_waiting": ("alarms.records_waiting", "Alerts and verdicts waiting in memory to be written."),
    "vigild_incidents_open": (
        "alarms.incidents.open",
        "Incidents with an alert within the last six hours of log time.",
    ),
    "vigild_answers": ("alarms.answers", "The operator's answers in force."),
    "vigild_admitted_causes": ("alarms.admitted", "Causes that are normal because they are frequent."),
    "vigild_model_generation": ("training.generation_in_force", "The model generation in force, 0 without one."),
    "vigild_frame_seq": ("seq", "Number of the last frame applied."),
    "vigild_lines_at_risk": (
        "checkpoint.lines_at_risk",
        "Lines read and not durable yet.",
    ),
    "vigild_checkpoint_line": ("checkpoint.last_line", "Number of the last line in the last snapshot."),
    "vigild_checkpoint_time_seconds": ("checkpoint.last_time", "When the last snapshot was made, Unix time."),
    "vigild_recovery_lost_lines": ("recovery.lost_lines", "Accepted lines the last start could not recover."),
    "vigild_recovery_replayed_lines": ("recovery.replayed_lines", "Lines the last start replayed."),
}


def render_metrics(status: Mapping[str, Any]) -> bytes:
    """Render a `Control.status` in the format of `CONTENT_TYPE`."""
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
            if (value := self._number_in_status(path)) is not None:
                yield CounterMetricFamily(name, text, value=value)
        for name, (path, text) in _GAUGES.items():
            if (value := self._number_in_status(path)) is not None:
                yield GaugeMetricFamily(name, text, value=value)
        serving = float(bool(status.get("serving")))
        yield GaugeMetricFamily(
            "vigild_serving", "1 while lines are taken and judged, and GET /health answers 200.", value=serving
        )
        phase = GaugeMetricFamily("vigild_phase", "1 for the current phase.", labels=["phase"])
        for name in PHASES:
            phase.add_metric([name], float(status.get("phase") == name and not starting))
        yield phase
        removed = CounterMetricFamily(
            "vigild_records_parts_removed",
            "Parts of files of records removed since the start, by what for.",
            labels=["reason"],
        )
        for why, count in status.get("records", {}).get("parts_removed", {}).items():
            removed.add_metric([why], count)
        yield removed
        degraded = GaugeMetricFamily(
            "vigild_degraded", "1 for each reason why the daemon is degraded.", labels=["reason"]
        )
        found = {reason["code"] for reason in status.get("reasons") or ()}
        for code in CODES:
            degraded.add_metric([code], float(code in found))
        yield degraded
        yield InfoMetricFamily("vigild", "The daemon.", value={"version": str(self._status.get("version"))})

    def _number_in_status(self, path: str) -> float | None:
        value: Any = self._status
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        known = isinstance(value, (bool, int, float)) and (value or self._status.get("status") != "starting")
        return float(value) if known else None
