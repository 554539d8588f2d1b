"""The reasons for a judgement, for people: the object "explain" of `daemon.control.Control.detect`."""

from collections.abc import Iterator, Mapping
from typing import Any

from daemon.client.text import Style, member_name, printable, score


def explanation_lines(explain: Mapping[str, Any], style: Style) -> Iterator[str]:
    """A line a reason; what is absent is left out."""
    yield from _members(explain.get("members") or {}, style)
    for rule in explain.get("rules") or ():
        kind = ", ".join(printable(rule[name]) for name in ("type", "severity") if rule.get(name))
        # Marked for the eye and for a file: colour alone would be lost there.
        found = style(f">>{printable(rule.get('text', ''))}<<", "bold", "red")
        around = f"{printable(rule.get('before', ''))}{found}{printable(rule.get('after', ''))}"
        yield f"  rule {style(printable(rule.get('name')), 'bold')} ({kind}) in {printable(rule.get('field'))}"
        yield f"    {around}"
    if expected := explain.get("expected"):
        yield "  expected instead"
        for one in expected:
            yield f"    {_share(one.get('p')):>7}  {printable(one.get('template', ''))}"
    if features := explain.get("features"):
        yield "  stands out"
        for one in features:
            direction = "above" if one.get("high") else "below"
            name = printable(one.get("name")).replace("_", " ")
            yield f"    {name} {score(one.get('value'))}, {direction} the usual {score(one.get('usual'))}"
    if lines := explain.get("lines"):
        yield "  the session's last lines"
        for one in lines:
            mark, colours = (">", ("bold",)) if one.get("odd") else (" ", ("dim",))
            number = f"{one['line']:,}" if isinstance(one.get("line"), int) else ""
            yield style(f"  {mark} {number:>12}  {printable(one.get('text', ''))}", *colours)


def _members(members: Mapping[str, Any], style: Style) -> Iterator[str]:
    if not members:
        return
    yield style(f"  {'detector':<17} {'score':>9} {'p':>9} {'threshold':>9}", "dim")
    for name, member in members.items():
        value, limit = member.get("score"), member.get("threshold")
        over = isinstance(value, (int, float)) and isinstance(limit, (int, float)) and value >= limit
        row = f"  {member_name(name):<17} {score(value):>9} {score(member.get('p')):>9} {score(limit):>9}"
        yield row + (style("  over", "bold") if over else "")


def _share(p: Any) -> str:
    if not isinstance(p, (int, float)):
        return "-"
    return f"{p:.1%}" if p >= 0.001 or p == 0 else "< 0.1%"
