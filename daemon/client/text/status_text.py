"""The answer to `GET /status` as text."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from daemon.client.text.formatting import (
    Style,
    count_text,
    duration_text,
    member_name,
    printable,
    score_text,
    size_text,
)


def status_lines(status: Mapping[str, Any], style: Style) -> Iterator[str]:
    """The summary of `GET /status`: failures first, then one line per subject."""
    state = str(status.get("status", "serving"))
    head = style(state, "bold", {"serving": "green", "starting": "yellow"}.get(state, "red"))
    if state == "starting":  # the state is not read yet, so nothing else is known
        yield f"vigild {printable(status.get('version', ''))}: {head}, {printable(status.get('reason', ''))}"
        yield ""
        yield _status_line("lines", count_text(status.get("logs_processed")), style)
        return
    yield f"vigild {printable(status.get('version', ''))}: {head}, {_training_phase_text(status)}"
    for failure in _status_failure_lines(status):
        yield style(f"! {failure}", "red")
    yield ""
    facts = {
        "lines": count_text(status.get("logs_processed")),
        "detectors": _members_ready_text(status, style),
        "templates": count_text(status.get("vocabulary_size")),
        "checkpoint": _last_checkpoint_text(status.get("checkpoint") or {}),
        "at start": _recovery_text(status.get("recovery") or {}),
        "flagged": _alarms_text(status.get("alarms") or {}),
        "sources": _ingest_text(status.get("ingest") or {}),
        "state": _state_digest_text(status),
    }
    for name, fact in facts.items():
        if fact:
            yield _status_line(name, fact, style)


def _status_line(name: str, fact: str, style: Style) -> str:
    return f"  {style(f'{name:<11}', 'dim')}{fact}"


def _training_phase_text(status: Mapping[str, Any]) -> str:
    training = status.get("training") or {}
    phase = str(status.get("phase"))
    if status.get("training_in_progress"):
        parts = [phase if phase == "training" else f"{phase}, next generation in training"]
        if training.get("percent") is not None:
            parts.append(f"{training['percent']:.0f} %")
        if training.get("resumed_from") is not None:
            parts.append(f"resumed at {100.0 * training['resumed_from']:.0f} %")
        if training.get("epoch") is not None:
            parts.append(f"epoch {training['epoch']} of {training.get('epochs', '?')}")
        if training.get("seconds_left") is not None:
            parts.append(f"{training['seconds_left']:.0f} s left")
        return ", ".join(parts)
    if phase == "warmup":
        return f"warm-up, {count_text(status.get('logs_processed'))} of {count_text(status.get('warmup_target'))} lines"
    return phase


def _status_failure_lines(status: Mapping[str, Any]) -> Iterator[str]:
    recovery = status.get("recovery") or {}
    reasons = status.get("reasons") or []
    yield from (printable(reason.get("text")) for reason in reasons)
    if status.get("reason") and not reasons:
        yield printable(status["reason"])
    if refusal := (status.get("training") or {}).get("refusal"):
        yield f"the last model trained was refused, the one before stays: {printable(refusal)}"
    if lost := (status.get("alarms") or {}).get("records_lost"):
        yield f"{count_text(lost)} alerts and verdicts could not be written and are lost"
    if recovery.get("lost_lines"):
        yield f"{count_text(recovery['lost_lines'])} lines lost at the last start"
    for item in recovery.get("set_aside") or []:
        yield f"damaged, set aside: {printable(item)}"


def _members_ready_text(status: Mapping[str, Any], style: Style) -> str:
    active = status.get("active_models") or {}
    return ", ".join(
        f"{member_name(name)} {style('ready', 'green') if ready else style('learning', 'yellow')}"
        for name, ready in active.items()
    )


def _last_checkpoint_text(checkpoint: Mapping[str, Any]) -> str:
    if checkpoint.get("last_time") is None:
        return f"none yet, {count_text(checkpoint.get('lines_at_risk'))} lines at risk"
    made = time.time() - checkpoint["last_time"]
    return (
        f"through line {count_text(checkpoint.get('last_line'))}, {duration_text(made)} ago, "
        f"{count_text(checkpoint.get('lines_at_risk'))} lines at risk"
    )


def _recovery_text(recovery: Mapping[str, Any]) -> str:
    tier = recovery.get("tier")
    if tier is None:
        return ""
    if tier == "fresh":
        return "fresh, nothing was there to load"
    return (
        f"{printable(tier)}: snapshot at line {count_text(recovery.get('snapshot_line'))}, "
        f"{count_text(recovery.get('replayed_lines'))} lines replayed in {score_text(recovery.get('seconds'))} s"
    )


def _alarms_text(alarms: Mapping[str, Any]) -> str:
    if alarms.get("flagged") is None:
        return ""
    text = count_text(alarms["flagged"])
    incidents = alarms.get("incidents") or {}
    if incidents.get("opened") is not None:
        text += f" in {count_text(incidents['opened'])} incidents, {count_text(incidents.get('open'))} open"
        text += f", {count_text(incidents['digest'])} over budget" if incidents.get("digest") else ""
    if alarms.get("counted") is not None:
        counted = alarms["counted"] + (alarms.get("counting") or 0)
        text += (
            f", {count_text(alarms.get('recorded'))} recorded in full and {count_text(counted)} counted"
            if counted
            else ""
        )
    if alarms.get("per_day") is not None:
        text += f", budget {alarms['per_day']:g} a day"
    return text + (", not yet reachable with so few sessions" if alarms.get("floor_binding") else "")


def _ingest_text(ingest: Mapping[str, Any]) -> str:
    if ingest.get("connections") is None:
        return ""
    cut = f", {count_text(ingest['lines_truncated'])} lines cut" if ingest.get("lines_truncated") else ""
    if ingest.get("future_lines"):
        cut += f", {count_text(ingest['future_lines'])} lines with times in the future"
    taken = f", {size_text(ingest['bytes'])} taken" if ingest.get("bytes") is not None else ""
    return f"{count_text(ingest['connections'])} connected{taken}{cut}"


def _state_digest_text(status: Mapping[str, Any]) -> str:
    digest = status.get("state_digest")
    return f"{printable(digest)[:16]} as of line {count_text(status.get('digest_line'))}" if digest else ""
