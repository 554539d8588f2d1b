"""Why: for a row of a view, what each member said, what was expected instead, and what stands out.

members    [{name, score, p, threshold}]              every member that judges, the most sure first; beyond
                                                      `threshold` it alone would flag, None: it never would
expected   [{template_id, template, p}]               the three likeliest instead of the row, with their probability
found      {template_id, template, p}                 ... and the row's own; none, and null, where neither the
                                                      transformer nor the 3-gram judges
features   [{name, value, usual, high}]               beyond what 99 % of normal sessions come to
value      {text, start, end, characters, score}      the line's oddest parameter value, if it has any
rules      [{name, severity, field, ...}]             where rules matched the line (`evidence_shown`)
source     [{name, value, usual, nats}]               the counters of the line's source, the strangest first
lines      [{line, text, odd}]                        the session's last ten lines

From `value` on they are added by the caller: `value` and `source` are what online members have to show, of whom each
may add a field. They are shown in this order.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from detection.members.registry import NAMES
from detection.members.view import CLOSING, Standing, View
from detection.rules.engine import Evidence
from detection.scoring.ensemble import Ensemble, Judgement

LINES_SHOWN = 10
_FIELDS = ("members", "expected", "found", "features", "value", "rules", "source", "lines")


def in_order(explanation: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in the order above, others last. `source` is there even if nothing counts sources."""
    found = {"source": [], **explanation}
    return {name: found[name] for name in (*_FIELDS, *(name for name in found if name not in _FIELDS)) if name in found}


def evidence_shown(evidence: Evidence) -> dict[str, Any]:
    """Where a rule matched, for JSON."""
    shown = ("field", "start", "end", "text", "before", "after")
    return {
        "name": evidence.rule.name,
        "severity": evidence.rule.severity,
        **{name: getattr(evidence, name) for name in shown},
    }


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
    piece = int(np.searchsorted(view.offsets, row, side="right")) - 1
    begin = int(view.token_offsets[piece])
    context = view.tokens[begin : begin + int(view.held[piece]) + row - int(view.offsets[piece])]
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
