"""Incidents, answers, model generations and snapshots as table rows, in the daemon's order."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from daemon.client.text.formatting import Style, count_text, printable, size_text, time_text


def incident_rows(incidents: Iterable[Mapping[str, Any]], style: Style) -> Iterator[str]:
    yield style(f"{'incident':<14} {'alerts':>9}  {'first':<19}  {'last':<19}  what", "dim")
    for one in incidents:
        state = (
            style("  over budget", "dim") if one.get("digest") else style("  open", "yellow") if one.get("open") else ""
        )
        yield (
            f"{printable(one['id']):<14} {count_text(one.get('count')):>9}  {time_text(one.get('first_time')):<19}  "
            f"{time_text(one.get('last_time')):<19}  {printable(one.get('what', ''))}{state}"
        )


def answer_rows(answers: Iterable[Mapping[str, Any]], style: Style) -> Iterator[str]:
    yield style(f"{'alert':<14} {'answer':<8} {'at line':>12}  what", "dim")
    for one in answers:
        note = style(f"  ({printable(one['note'])})", "dim") if one.get("note") else ""
        answer = style(f"{printable(one['answer']):<8}", "green" if one["answer"] == "normal" else "yellow")
        what = printable(one.get("what", ""))
        yield f"{printable(one['id']):<14} {answer} {count_text(one.get('line')):>12}  {what}{note}"


def model_rows(models: Iterable[Mapping[str, Any]], style: Style) -> Iterator[str]:
    yield style(f"{'generation':>10} {'at line':>12} {'size':>10}  {'made':<19}  state", "dim")
    for one in models:
        made = time_text(one.get("time")) if one.get("time") is not None else "file is gone"
        large = size_text(one["bytes"]) if one.get("bytes") is not None else "-"
        facts = f"{count_text(one['generation']):>10} {count_text(one.get('line')):>12} {large:>10}  {made:<19}"
        yield f"{facts}  {_model_state_text(one, style)}"


def snapshot_rows(snapshots: Iterable[Mapping[str, Any]], style: Style, *, verified: bool) -> Iterator[str]:
    yield style(f"{'snapshot':<34} {'line':>12} {'size':>10}  made", "dim")
    for one in snapshots:
        end = "  pinned" if one.get("pinned") else ""
        if verified:
            error = one.get("error")
            end += style(f"  {printable(error)}", "red") if error else style("  ok", "green")
        made = time_text(one.get("time"))
        yield f"{printable(one['name']):<34} {count_text(one['line']):>12} {size_text(one['bytes']):>10}  {made}{end}"


def _model_state_text(model: Mapping[str, Any], style: Style) -> str:
    if model.get("in_force"):
        members = ", ".join(printable(name).replace("_", " ") for name in model.get("members") or ())
        return style("in force", "bold", "green") + (f": {members}" if members else "")
    if not model.get("promoted", True):
        return style(f"refused: {printable(model.get('reason') or 'no reason given')}", "yellow")
    return "was in force" if model.get("bytes") is not None else "was in force, cannot be rolled back to"
