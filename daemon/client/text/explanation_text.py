"""An explanation as text: the object "explain" of `daemon.control.control_interface.Control.detect`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from daemon.client.text.formatting import Style, count_text, member_name, printable, score_text, threshold_text


def explanation_lines(explain: Mapping[str, Any], rules: Iterable[Mapping[str, Any]], style: Style) -> Iterator[str]:
    """The parts of `explain` that are present. `rules` are the matches to show if `explain` has none."""
    if what := explain.get("what"):
        yield style(f"  {printable(what)}", "bold")
    yield from _member_score_rows(explain.get("members") or (), style)
    for rule in explain.get("rules") or rules:
        # Marked with signs, too: in a file the colour is lost.
        match = style(f">>{printable(rule.get('text', ''))}<<", "bold", "red")
        yield f"  rule {style(printable(rule.get('name')), 'bold')} in {printable(rule.get('field', 'line'))}"
        yield f"    {printable(rule.get('before', ''))}{match}{printable(rule.get('after', ''))}"
    if expected := explain.get("expected"):
        found = explain.get("found")
        likeliest = found is not None and found["p"] >= max(one["p"] for one in expected)
        yield "  came as expected; the next likely" if likeliest else "  expected instead"
        yield from (_expected_template_row(one) for one in expected)
        if found:
            yield style(f"{_expected_template_row(found)}  came", "bold")
    if value := explain.get("value"):
        odd = f", odd in it: {printable(value['characters'])}" if value.get("characters") else ""
        yield f"  the oddest value: {printable(value.get('text', ''))}{odd}"
    yield from _comparisons_with_usual("stands out", explain.get("features") or ())
    yield from _comparisons_with_usual("its source", filter(_is_above_usual, explain.get("source") or ()))
    if lines := explain.get("lines"):
        yield "  the session's last lines"
        for one in lines:
            mark, colours = (">", ("bold",)) if one.get("odd") else (" ", ("dim",))
            number = count_text(one["line"]) if one.get("line") is not None else "asked"
            yield style(f"  {mark} {number:>12}  {printable(one.get('text', ''))}", *colours)


def _member_score_rows(members: Iterable[Mapping[str, Any]], style: Style) -> Iterator[str]:
    for place, member in enumerate(members):
        if not place:
            yield style(f"  {'detector':<17} {'score':>9} {'p':>9} {'threshold':>9}", "dim")
        value, limit = member.get("score"), member.get("threshold")
        over = isinstance(value, (int, float)) and isinstance(limit, (int, float)) and value > limit
        name = member_name(str(member.get("name")))
        row = f"  {name:<17} {score_text(value):>9} {score_text(member.get('p')):>9} {threshold_text(limit):>9}"
        yield row + (style("  over", "bold") if over else "")


def _is_above_usual(counter: Mapping[str, Any]) -> bool:
    """`explain` has every counter of the source, but only a high one is unusual; a low one is a quiet source."""
    value, usual = counter.get("value"), counter.get("usual")
    return isinstance(value, (int, float)) and isinstance(usual, (int, float)) and value > usual


def _comparisons_with_usual(title: str, features: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for place, one in enumerate(features):
        if not place:
            yield f"  {title}"
        name = printable(one.get("name")).replace("_", " ")
        most = f", at most {score_text(one['high'])}" if one.get("high") is not None else ""
        yield f"    {name} {score_text(one.get('value'))}; usual are {score_text(one.get('usual'))}{most}"


def _expected_template_row(one: Mapping[str, Any]) -> str:
    p = one.get("p")
    share = "-" if not isinstance(p, (int, float)) else f"{p:.1%}" if p >= 0.001 or p == 0 else "< 0.1%"
    return f"    {share:>7}  {printable(one.get('template', ''))}"
