"""The daemon's answers as text: status, judgements, records and snapshots."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from daemon.client.text.explanation import explanation_lines
from daemon.client.text.values import (
    MEMBERS,
    Style,
    count,
    duration,
    member_name,
    printable,
    score,
    size,
    threshold,
    when,
)

VERDICT_COLOURS = {"attack": "red", "anomaly": "yellow", "novel": "blue", "normal": "green"}


def status_lines(status: Mapping[str, Any], style: Style) -> Iterator[str]:
    """The summary of `GET /status`: failures first, then one line per subject."""
    state = str(status.get("status", "serving"))
    head = style(state, "bold", {"serving": "green", "starting": "yellow"}.get(state, "red"))
    if state == "starting":  # the state is not read yet, so nothing else is known
        yield f"vigild {printable(status.get('version', ''))}: {head}, {printable(status.get('reason', ''))}"
        yield ""
        yield _fact("lines", count(status.get("logs_processed")), style)
        return
    yield f"vigild {printable(status.get('version', ''))}: {head}, {_phase(status)}"
    for failure in _failures(status):
        yield style(f"! {failure}", "red")
    yield ""
    facts = {
        "lines": count(status.get("logs_processed")),
        "detectors": _members(status, style),
        "templates": count(status.get("vocabulary_size")),
        "checkpoint": _checkpoint(status.get("checkpoint") or {}),
        "at start": _recovery(status.get("recovery") or {}),
        "flagged": _alarms(status.get("alarms") or {}),
        "sources": _ingest(status.get("ingest") or {}),
        "state": _state(status),
    }
    for name, fact in facts.items():
        if fact:
            yield _fact(name, fact, style)


def _fact(name: str, fact: str, style: Style) -> str:
    return f"  {style(f'{name:<11}', 'dim')}{fact}"


def judgement_lines(text: str, answer: Mapping[str, Any], style: Style) -> Iterator[str]:
    """One judgement in full: the verdict, then the result of each detector."""
    yield f"{_verdict(answer, style)}  score {score(answer.get('anomaly_score'))}  p {score(answer.get('p'))}"
    yield f"  {style(printable(text), 'dim')}"
    rules = answer.get("rule_based") or {}
    if rules.get("is_attack"):
        kinds = printable(", ".join(map(str, rules.get("attack_types", []))))
        yield f"  {'rules':<17} {style(kinds, 'bold')}, confidence {score(rules.get('confidence'))}"
    else:
        yield f"  {'rules':<17} no match"
    for name in ("isolation_forest", "transformer"):
        member = answer.get(name) or {}
        if member.get("p") is None:
            yield f"  {MEMBERS[name]:<17} not ready"
            continue
        mark = style(" anomaly", "bold") if member.get("is_anomaly") else ""
        yield (f"  {MEMBERS[name]:<17} {score(member['score'])}, threshold {threshold(member.get('threshold'))}{mark}")
    if answer.get("explain"):
        yield ""
        yield from explanation_lines(answer["explain"], rules.get("rules") or (), style)


def judgement_row(text: str, answer: Mapping[str, Any], style: Style) -> str:
    """One judgement in one line."""
    kinds = (answer.get("rule_based") or {}).get("attack_types") or []
    odd = [MEMBERS[name] for name in ("isolation_forest", "transformer") if _is_odd(answer.get(name))]
    why = printable(", ".join([*map(str, kinds), *odd]))
    return f"{_verdict(answer, style)} {score(answer.get('anomaly_score')):>6}  {why:<24} {printable(text)}"


def announces(record: Mapping[str, Any]) -> bool:
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
        return style(f"({count(record['left_out'])} more not shown)", "dim")
    if record.get("stands_for"):
        ids = f"from {printable(record.get('first_id'))} to {printable(record.get('last_id'))}"
        counted = f"({count(record['stands_for'])} more alerts of incident {printable(record.get('incident'))}, {ids})"
        return style(f"{when(record.get('time'))} {counted}", "dim")
    session = printable(record.get("session") or "-") + (" closed" if record.get("closed") else "")
    place = style(f"{count(record.get('line'))} {session}", "dim")
    text = printable(record.get("text") or record.get("template") or "")
    if (number := record.get("incident_count") or 1) > 1:
        place = f"{place}  alert {number:,} of incident {printable(record.get('incident'))}"
    return (
        f"{when(record.get('time'))} {_verdict(record, style)} {score(record.get('score')):>6}  "
        f"{_reason(record):<24} {place}  {text}"
    )


def snapshot_rows(snapshots: Iterable[Mapping[str, Any]], style: Style, *, verified: bool) -> Iterator[str]:
    yield style(f"{'snapshot':<34} {'line':>12} {'size':>10}  made", "dim")
    for one in snapshots:
        end = "  pinned" if one.get("pinned") else ""
        if verified:
            error = one.get("error")
            end += style(f"  {printable(error)}", "red") if error else style("  ok", "green")
        made = when(one.get("time"))
        yield f"{printable(one['name']):<34} {count(one['line']):>12} {size(one['bytes']):>10}  {made}{end}"


def _phase(status: Mapping[str, Any]) -> str:
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
        return f"warm-up, {count(status.get('logs_processed'))} of {count(status.get('warmup_target'))} lines"
    return phase


def _failures(status: Mapping[str, Any]) -> Iterator[str]:
    recovery = status.get("recovery") or {}
    reasons = status.get("reasons") or []
    yield from (printable(reason.get("text")) for reason in reasons)
    if status.get("reason") and not reasons:
        yield printable(status["reason"])
    if refusal := (status.get("training") or {}).get("refusal"):
        yield f"the last model trained was refused, the one before stays: {printable(refusal)}"
    if lost := (status.get("alarms") or {}).get("records_lost"):
        yield f"{count(lost)} alerts and verdicts could not be written and are lost"
    if recovery.get("lost_lines"):
        yield f"{count(recovery['lost_lines'])} lines lost at the last start"
    for item in recovery.get("set_aside") or []:
        yield f"damaged, set aside: {printable(item)}"


def _members(status: Mapping[str, Any], style: Style) -> str:
    active = status.get("active_models") or {}
    return ", ".join(
        f"{member_name(name)} {style('ready', 'green') if ready else style('learning', 'yellow')}"
        for name, ready in active.items()
    )


def _checkpoint(checkpoint: Mapping[str, Any]) -> str:
    if checkpoint.get("last_time") is None:
        return f"none yet, {count(checkpoint.get('lines_at_risk'))} lines at risk"
    made = time.time() - checkpoint["last_time"]
    return (
        f"through line {count(checkpoint.get('last_line'))}, {duration(made)} ago, "
        f"{count(checkpoint.get('lines_at_risk'))} lines at risk"
    )


def _recovery(recovery: Mapping[str, Any]) -> str:
    tier = recovery.get("tier")
    if tier is None:
        return ""
    if tier == "fresh":
        return "fresh, nothing was there to load"
    return (
        f"{printable(tier)}: snapshot at line {count(recovery.get('snapshot_line'))}, "
        f"{count(recovery.get('replayed_lines'))} lines replayed in {score(recovery.get('seconds'))} s"
    )


def _alarms(alarms: Mapping[str, Any]) -> str:
    if alarms.get("flagged") is None:
        return ""
    text = count(alarms["flagged"])
    incidents = alarms.get("incidents") or {}
    if incidents.get("opened") is not None:
        text += f" in {count(incidents['opened'])} incidents, {count(incidents.get('open'))} open"
        text += f", {count(incidents['digest'])} over budget" if incidents.get("digest") else ""
    if alarms.get("counted") is not None:
        counted = alarms["counted"] + (alarms.get("counting") or 0)
        text += f", {count(alarms.get('recorded'))} recorded in full and {count(counted)} counted" if counted else ""
    if alarms.get("per_day") is not None:
        text += f", budget {alarms['per_day']:g} a day"
    return text + (", not yet reachable with so few sessions" if alarms.get("floor_binding") else "")


def _ingest(ingest: Mapping[str, Any]) -> str:
    if ingest.get("connections") is None:
        return ""
    cut = f", {count(ingest['lines_truncated'])} lines cut" if ingest.get("lines_truncated") else ""
    if ingest.get("future_lines"):
        cut += f", {count(ingest['future_lines'])} lines with times in the future"
    taken = f", {size(ingest['bytes'])} taken" if ingest.get("bytes") is not None else ""
    return f"{count(ingest['connections'])} connected{taken}{cut}"


def _state(status: Mapping[str, Any]) -> str:
    digest = status.get("state_digest")
    return f"{printable(digest)[:16]} as of line {count(status.get('digest_line'))}" if digest else ""


def _verdict(answer: Mapping[str, Any], style: Style) -> str:
    verdict = str(answer.get("verdict") or ("anomaly" if answer.get("is_anomaly") else "normal"))
    return style(f"{printable(verdict):<7}", "bold", VERDICT_COLOURS.get(verdict, "yellow"))


def _reason(record: Mapping[str, Any]) -> str:
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


def _is_odd(member: Any) -> bool:
    return isinstance(member, Mapping) and bool(member.get("is_anomaly"))
