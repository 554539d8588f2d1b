"""Judgements of lines, and records of alerts, as text."""

from collections.abc import Iterator, Mapping
from typing import Any

from daemon.client.text.explanation_text import explanation_lines
from daemon.client.text.formatting import (
    MEMBERS,
    Style,
    count_text,
    member_name,
    printable,
    score_text,
    threshold_text,
    time_text,
)

VERDICT_COLOURS = {"attack": "red", "anomaly": "yellow", "novel": "blue", "normal": "green"}


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
