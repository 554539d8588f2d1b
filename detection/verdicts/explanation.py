"""Explanations: why a row was judged as it was. The fields, in this order:

members    [{name, score, p, threshold}]              every member that judges, the lowest p-value first; a score above
                                                      `threshold` suffices to flag, None: no score does
expected   [{template_id, template, p}]               the three most probable templates here; [] if no predictor judges
found      {template_id, template, p}                 the row's own template; p is null if no predictor judges
features   [{name, value, usual, high}]               features that exceed those of 99 % of normal sessions
value      {text, start, end, characters, score}      the line's most unusual parameter value, if it has any
rules      [{name, severity, field, ...}]             where rules matched the line (`evidence_shown`)
source     [{name, value, usual, nats}]               the counters of the line's client, the most unusual first
lines      [{line, text, odd}]                        the session's last ten lines

The caller adds the fields from `value` on. `value` and `source` come from online members, each of which may add fields.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from detection.members.fitted_member_view import CLOSING, Standing, View
from detection.members.registry import NAMES
from detection.rules.rule_matching import Evidence
from detection.scoring.ensemble import Ensemble, Judgement

LINES_SHOWN = 10
_FIELDS = ("members", "expected", "found", "features", "value", "rules", "source", "lines")


def explanation_in_order(explanation: Mapping[str, Any]) -> dict[str, Any]:
    """`explanation` with its fields in the order above, others last; `source` is [] if no member gave it."""
    found = {"source": [], **explanation}
    return {name: found[name] for name in (*_FIELDS, *(name for name in found if name not in _FIELDS)) if name in found}


def evidence_shown(evidence: Evidence) -> dict[str, Any]:
    """Where a rule matched, JSON-ready."""
    shown = ("field", "start", "end", "text", "before", "after")
    return {
        "name": evidence.rule.name,
        "severity": evidence.rule.severity,
        **{name: getattr(evidence, name) for name in shown},
    }


def explain_by_members(
    ensemble: Ensemble,
    view: View,
    standing: Standing,
    judgement: Judgement,
    row: int,
    alpha: float,
    text_of: Callable[[int], str],
) -> dict[str, Any]:
    """The fields `members` to `features` for `row`, JSON-ready; `text_of` returns the text of a template id."""
    members = [
        {
            "name": name,
            "score": float(standing.reached[row, column]),
            "p": float(judgement.members[row, column]),
            "threshold": ensemble.threshold_of_member(name, alpha),
        }
        for column, name in enumerate(NAMES)
        if name in ensemble.members
    ]
    members.sort(key=lambda member: (member["p"], member["name"]))
    piece = int(np.searchsorted(view.offsets, row, side="right")) - 1
    begin = int(view.token_offsets[piece])
    context = view.tokens[begin : begin + int(view.held[piece]) + row - int(view.offsets[piece])]
    found = int(view.templates[row])
    expected, chance = ensemble.expected_templates(context, bool(view.starts[piece]), found)

    def named(template: int, p: float | None) -> dict[str, Any]:
        text = "<end of session>" if template == CLOSING else text_of(template)
        return {"template_id": template, "template": text, "p": p}

    return {
        "members": members,
        "expected": [named(template, p) for template, p in expected],
        "found": named(found, chance),
        "features": ensemble.features_standing_out(standing, row),
    }
