"""What the daemon says, for people. Plain lines; colour only where a terminal shows it.

Whatever may come from a log line goes through `printable`: a log line must not steer the terminal.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, TextIO

COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34"}
VERDICT_COLOURS = {"attack": "red", "anomaly": "yellow", "novel": "blue", "normal": "green"}
MEMBERS = {"rule_based": "rules", "isolation_forest": "isolation forest", "transformer": "transformer"}


class Style:
    """Colour or none, decided once for a stream."""

    def __init__(self, stream: TextIO) -> None:
        self._on = stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def __call__(self, text: str, *colours: str) -> str:
        if not self._on or not colours:
            return text
        return f"\x1b[{';'.join(COLOURS[colour] for colour in colours)}m{text}\x1b[0m"


def printable(text: Any) -> str:
    """`text` with everything escaped that a terminal might take for a command."""
    return "".join(char if char.isprintable() else _escaped(char) for char in str(text))


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte that was not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def status_lines(status: Mapping[str, Any], style: Style) -> Iterator[str]:
    """The summary of `GET /status`: a line a subject, troubles first."""
    state = str(status.get("status", "serving"))
    head = style(state, "bold", "green" if state == "serving" else "red")
    yield f"vigild {printable(status.get('version', ''))}: {head}, {_phase(status)}"
    for trouble in _troubles(status):
        yield style(f"! {trouble}", "red")
    yield ""
    facts = {
        "lines": _count(status.get("logs_processed")),
        "detectors": _members(status, style),
        "templates": _count(status.get("vocabulary_size")),
        "checkpoint": _checkpoint(status.get("checkpoint") or {}),
        "at start": _recovery(status.get("recovery") or {}),
        "flagged": _alarms(status.get("alarms") or {}),
        "sources": _ingest(status.get("ingest") or {}),
        "state": _digest(status),
    }
    for name, fact in facts.items():
        if fact:
            yield f"  {style(f'{name:<11}', 'dim')}{fact}"


def judgement_lines(text: str, answer: Mapping[str, Any], style: Style) -> Iterator[str]:
    """One judgement in full: the verdict, then what each detector made of the line."""
    yield f"{_verdict(answer, style)}  score {_score(answer.get('anomaly_score'))}  p {_score(answer.get('p'))}"
    yield f"  {style(printable(text), 'dim')}"
    rules = answer.get("rule_based") or {}
    if rules.get("is_attack"):
        kinds = printable(", ".join(map(str, rules.get("attack_types", []))))
        yield f"  {'rules':<17} {style(kinds, 'bold')}, confidence {_score(rules.get('confidence'))}"
    else:
        yield f"  {'rules':<17} no match"
    for name in ("isolation_forest", "transformer"):
        member = answer.get(name) or {}
        if member.get("score") is None:
            yield f"  {MEMBERS[name]:<17} not ready"
            continue
        mark = style(" anomaly", "bold") if member.get("is_anomaly") else ""
        yield (f"  {MEMBERS[name]:<17} {_score(member['score'])}, threshold {_score(member.get('threshold'))}{mark}")


def judgement_row(text: str, answer: Mapping[str, Any], style: Style) -> str:
    """One judgement in one line, for many."""
    kinds = (answer.get("rule_based") or {}).get("attack_types") or []
    odd = [MEMBERS[name] for name in ("isolation_forest", "transformer") if _is_odd(answer.get(name))]
    why = printable(", ".join([*map(str, kinds), *odd]))
    return f"{_verdict(answer, style)} {_score(answer.get('anomaly_score')):>6}  {why:<24} {printable(text)}"


def record_row(record: Mapping[str, Any], style: Style) -> str:
    """One record of the live stream."""
    if "left_out" in record:
        return style(f"({_count(record['left_out'])} more not shown)", "dim")
    session = printable(record.get("session") or "-") + (" closed" if record.get("closed") else "")
    place = style(f"{_count(record.get('line'))} {session}", "dim")
    text = printable(record.get("text") or record.get("template") or "")
    return (
        f"{_when(record.get('time'))} {_verdict(record, style)} {_score(record.get('score')):>6}  "
        f"{_why(record):<24} {place}  {text}"
    )


def snapshot_rows(snapshots: Iterable[Mapping[str, Any]], style: Style, *, verified: bool) -> Iterator[str]:
    yield style(f"{'snapshot':<34} {'line':>12} {'size':>10}  made", "dim")
    for one in snapshots:
        end = "  pinned" if one.get("pinned") else ""
        if verified:
            error = one.get("error")
            end += style(f"  {printable(error)}", "red") if error else style("  ok", "green")
        made = _when(one.get("time"))
        yield f"{printable(one['name']):<34} {_count(one['line']):>12} {size(one['bytes']):>10}  {made}{end}"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def _phase(status: Mapping[str, Any]) -> str:
    training = status.get("training") or {}
    phase = str(status.get("phase"))
    if status.get("training_in_progress"):
        parts = [phase if phase == "training" else f"{phase}, next generation in training"]
        if training.get("percent") is not None:
            parts.append(f"{training['percent']:.0f} %")
        if training.get("epoch") is not None:
            parts.append(f"epoch {training['epoch']} of {training.get('epochs', '?')}")
        if training.get("seconds_left") is not None:
            parts.append(f"{training['seconds_left']:.0f} s left")
        return ", ".join(parts)
    if phase == "warmup":
        return f"warm-up, {_count(status.get('logs_processed'))} of {_count(status.get('warmup_target'))} lines"
    return phase


def _troubles(status: Mapping[str, Any]) -> Iterator[str]:
    recovery = status.get("recovery") or {}
    if status.get("reason"):
        yield printable(status["reason"])
    for name in ("checkpoint", "training"):
        if error := (status.get(name) or {}).get("error"):
            yield f"{name} failed: {printable(error)}"
    if recovery.get("lost_lines"):
        yield f"{_count(recovery['lost_lines'])} lines lost at the last start"
    for item in recovery.get("set_aside") or []:
        yield f"damaged, set aside: {printable(item)}"


def _members(status: Mapping[str, Any], style: Style) -> str:
    active = status.get("active_models") or {}
    return ", ".join(
        f"{MEMBERS.get(name, printable(name))} {style('ready', 'green') if ready else style('learning', 'yellow')}"
        for name, ready in active.items()
    )


def _checkpoint(checkpoint: Mapping[str, Any]) -> str:
    if checkpoint.get("last_time") is None:
        return f"none yet, {_count(checkpoint.get('lines_at_risk'))} lines at risk"
    made = time.time() - checkpoint["last_time"]
    return (
        f"through line {_count(checkpoint.get('last_line'))}, {_duration(made)} ago, "
        f"{_count(checkpoint.get('lines_at_risk'))} lines at risk"
    )


def _recovery(recovery: Mapping[str, Any]) -> str:
    tier = recovery.get("tier")
    if tier is None:
        return ""
    if tier == "fresh":
        return "fresh, nothing was there to load"
    return (
        f"{printable(tier)}: snapshot at line {_count(recovery.get('snapshot_line'))}, "
        f"{_count(recovery.get('replayed_lines'))} lines replayed in {_score(recovery.get('seconds'))} s"
    )


def _alarms(alarms: Mapping[str, Any]) -> str:
    if alarms.get("flagged") is None:
        return ""
    text = _count(alarms["flagged"])
    if alarms.get("per_day") is not None:
        text += f", budget {alarms['per_day']:g} a day"
    return text + (", not yet reachable with so few sessions" if alarms.get("floor_binding") else "")


def _ingest(ingest: Mapping[str, Any]) -> str:
    if ingest.get("connections") is None:
        return ""
    cut = f", {_count(ingest['lines_truncated'])} lines cut" if ingest.get("lines_truncated") else ""
    taken = f", {size(ingest['bytes'])} taken" if ingest.get("bytes") is not None else ""
    return f"{_count(ingest['connections'])} connected{taken}{cut}"


def _digest(status: Mapping[str, Any]) -> str:
    digest = status.get("state_digest")
    return f"{printable(digest)[:16]} as of line {_count(status.get('digest_line'))}" if digest else ""


def _verdict(answer: Mapping[str, Any], style: Style) -> str:
    verdict = str(answer.get("verdict") or ("anomaly" if answer.get("is_anomaly") else "normal"))
    return style(f"{printable(verdict):<7}", "bold", VERDICT_COLOURS.get(verdict, "yellow"))


def _why(record: Mapping[str, Any]) -> str:
    if record.get("why"):
        return printable(record["why"])
    if record.get("attack_types"):
        return printable(", ".join(map(str, record["attack_types"])))
    members = [
        (member["p"], name)
        for name, member in (record.get("members") or {}).items()
        if isinstance(member, Mapping) and member.get("p") is not None
    ]
    return MEMBERS.get(min(members)[1], printable(min(members)[1])) if members else ""


def _is_odd(member: Any) -> bool:
    return isinstance(member, Mapping) and bool(member.get("is_anomaly"))


def _when(moment: Any) -> str:
    if isinstance(moment, (int, float)):
        return datetime.fromtimestamp(moment).isoformat(" ", "seconds")
    return printable(moment) if moment else "-"


def _duration(seconds: float) -> str:
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} d"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else printable(value)


def _score(value: Any) -> str:
    if not isinstance(value, (int, float)):
        return "-"
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.2f}"


def to_stdout(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")
