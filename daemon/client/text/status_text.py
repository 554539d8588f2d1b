"""The daemon's answers as text: status, judgements, records and snapshots."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from daemon.client.text.explanation_text import explanation_lines
from daemon.client.text.formatting import (
    MEMBERS,
    Style,
    count_text,
    duration_text,
    member_name,
    printable,
    score_text,
    size_text,
    threshold_text,
    time_text,
)

VERDICT_COLOURS = {"attack": "red", "anomaly": "yellow", "novel": "blue", "normal": "green"}


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


def judgement_lines(text: str, answer: Mapping[str, Any], style: Style) -> Iterator[str]:
    """One judgement in full: the verdict, then the result of each detector."""
    score, p = score_text(answer.get("anomaly_score")), score_text(answer.get("p"))
    yield f"{_verdict_text(answer, style)}  score {score}  p {p}"
    yield f"  {style(printable(text), 'dim')}"
    rules = answer.get("rule_based") or {}
    if rules.get("is_attack"):
        kinds = printable(", ".join(map(str, rules.get("attack_types", []))))
        yield f"  {'rules':<17} {style(kinds, 'bold')}, confidence {score_text(rules.get('confidence'))}"
    else:
        yield f"  {'rules':<17} no match"
    for name in ("isolation_forest", "transformer"):
        member = answer.get(name) or {}
        if member.get("p") is None:
            yield f"  {MEMBERS[name]:<17} not ready"
            continue
        mark = style(" anomaly", "bold") if member.get("is_anomaly") else ""
        yield (
            f"  {MEMBERS[name]:<17} {score_text(member['score'])}, "
            f"threshold {threshold_text(member.get('threshold'))}{mark}"
        )
    if answer.get("explain"):
        yield ""
        yield from explanation_lines(answer["explain"], rules.get("rules") or (), style)


def judgement_row(text: str, answer: Mapping[str, Any], style: Style) -> str:
    """One judgement in one line."""
    kinds = (answer.get("rule_based") or {}).get("attack_types") or []
    odd = [MEMBERS[name] for name in ("isolation_forest", "transformer") if _is_anomalous_member(answer.get(name))]
    why = printable(", ".join([*map(str, kinds), *odd]))
    return f"{_verdict_text(answer, style)} {score_text(answer.get('anomaly_score')):>6}  {why:<24} {printable(text)}"


def is_announced_by_tail(record: Mapping[str, Any]) -> bool:
    """Whether `tail` shows a record by default: every record that belongs to no incident, and of an incident within the
    budget the first alert, the 10th, the 100th and so on. Incidents over the budget are listed, not announced."""
    if not record.get("flagged") or record.get("incident") is None:
        return True
    if record.get("stands_for"):
        return False
    number = str(record.get("incident_count"))
    return not record.get("digest") and number[0] == "1" and not number[1:].strip("0")


def record_row(record: Mapping[str, Any], style: Style) -> str:
    """One record of the live stream."""
    if "left_out" in record:
        return style(f"({count_text(record['left_out'])} more not shown)", "dim")
    if record.get("stands_for"):
        ids = f"from {printable(record.get('first_id'))} to {printable(record.get('last_id'))}"
        counted = (
            f"({count_text(record['stands_for'])} more alerts of incident {printable(record.get('incident'))}, {ids})"
        )
        return style(f"{time_text(record.get('time'))} {counted}", "dim")
    session = printable(record.get("session") or "-") + (" closed" if record.get("closed") else "")
    place = style(f"{count_text(record.get('line'))} {session}", "dim")
    text = printable(record.get("text") or record.get("template") or "")
    if (number := record.get("incident_count") or 1) > 1:
        place = f"{place}  alert {number:,} of incident {printable(record.get('incident'))}"
    return (
        f"{time_text(record.get('time'))} {_verdict_text(record, style)} {score_text(record.get('score')):>6}  "
        f"{_record_reason_text(record):<24} {place}  {text}"
    )


def snapshot_rows(snapshots: Iterable[Mapping[str, Any]], style: Style, *, verified: bool) -> Iterator[str]:
    yield style(f"{'snapshot':<34} {'line':>12} {'size':>10}  made", "dim")
    for one in snapshots:
        end = "  pinned" if one.get("pinned") else ""
        if verified:
            error = one.get("error")
            end += style(f"  {printable(error)}", "red") if error else style("  ok", "green")
        made = time_text(one.get("time"))
        yield f"{printable(one['name']):<34} {count_text(one['line']):>12} {size_text(one['bytes']):>10}  {made}{end}"


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


def _verdict_text(answer: Mapping[str, Any], style: Style) -> str:
    verdict = str(answer.get("verdict") or ("anomaly" if answer.get("is_anomaly") else "normal"))
    return style(f"{printable(verdict):<7}", "bold", VERDICT_COLOURS.get(verdict, "yellow"))


def _record_reason_text(record: Mapping[str, Any]) -> str:
    if why := record.get("why") or record.get("what"):
        return printable(why)
    if record.get("attack_types"):
        return printable(", ".join(map(str, record["attack_types"])))
    members = [
        (member["p"], name)
        for name, member in (record.get("members") or {}).items()
        if isinstance(member, Mapping) and member.get("p") is not None
    ]
    return member_name(min(members)[1]) if members else ""


def _is_anomalous_member(member: Any) -> bool:
    return isinstance(member, Mapping) and bool(member.get("is_anomaly"))
