"""Why: for a row of a view, what each member said, what was expected instead, and what stands out.

members    [{name, score, p, threshold}]              every member that judges, the most sure first; beyond
                                                      `threshold` it alone would flag, None: it never would
expected   [{template_id, template, p}]               the three likeliest instead of the row, with their probability
found      {template_id, template, p}                 ... and the row's own; none, and null, where neither the
                                                      transformer nor the 3-gram judges
features   [{name, value, usual, high}]               beyond what 99 % of normal sessions come to
value      {text, start, end, characters, score}      the line's oddest parameter value, if it has any
source     [{name, value, usual, nats}]               the counters of the line's source, the strangest first
lines      [{line, text, odd}]                        the session's last ten lines

The last three, and the rules, are added by the caller.
"""

from collections.abc import Callable
from typing import Any

from detection.columns.runs import repeat_per_row
from detection.members.origins.counters import SourceCounters
from detection.members.parameter_values import Strangest
from detection.members.registry import NAMES
from detection.members.view import CLOSING, Standing, View
from detection.rules.engine import Evidence
from detection.scoring.ensemble import Ensemble, Judgement
from detection.verdicts.records import shown

LINES_SHOWN = 10


def evidence_shown(evidence: Evidence) -> dict[str, Any]:
    """Where a rule matched, for JSON."""
    shown = ("field", "start", "end", "text", "before", "after")
    return {
        "name": evidence.rule.name,
        "severity": evidence.rule.severity,
        **{name: getattr(evidence, name) for name in shown},
    }


def value_shown(odd: Strangest) -> dict[str, Any]:
    """The oddest value of a line, for JSON."""
    return {
        "text": shown(odd.value),
        "start": odd.start,
        "end": odd.end,
        "characters": shown(odd.characters),
        "score": odd.score,
    }


def source_shown(counters: SourceCounters | None, source: bytes, clock: float | None = None) -> list[dict[str, Any]]:
    """How a source stands at `clock`, by default in the minute of its last line, for JSON; nothing without counters."""
    if counters is None:
        return []
    return [
        {"name": counter.name, "value": counter.value, "usual": counter.usual, "nats": counter.nats}
        for counter in counters.explain(source, clock)
    ]


def explained(
    ensemble: Ensemble,
    view: View,
    standing: Standing,
    judgement: Judgement,
    row: int,
    alpha: float,
    text_of: Callable[[int], str],
) -> dict[str, Any]:
    """Why the session of `row` stands as it does there; `text_of` gives a template's text by its id."""
    members = [
        {
            "name": name,
            "score": float(standing.reached[row, column]),
            "p": float(judgement.members[row, column]),
            "threshold": ensemble.threshold(name, alpha),
        }
        for column, name in enumerate(NAMES)
        if name in ensemble.members
    ]
    members.sort(key=lambda member: (member["p"], member["name"]))
    piece = int(repeat_per_row(view.offsets)[row])
    begin, place = int(view.token_offsets[piece]), int(view.token_places()[row])
    context = view.tokens[begin:place]
    found = int(view.templates[row])
    expected, chance = ensemble.expected(context, bool(view.starts[piece]), found)

    def named(template: int, p: float | None) -> dict[str, Any]:
        text = "<end of session>" if template == CLOSING else text_of(template)
        return {"template_id": template, "template": text, "p": p}

    return {
        "members": members,
        "expected": [named(template, p) for template, p in expected],
        "found": named(found, chance),
        "features": ensemble.standing_out(standing, row),
    }
