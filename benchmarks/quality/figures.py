"""Rows that every labelled set has: each member alone, the ensemble without each, and the controls."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.quality.controls import Control
from benchmarks.quality.metrics import Bools, ap_difference, average_precision, found
from benchmarks.quality.records import Units
from benchmarks.quality.report import Row


def asking(rows: Sequence[Row], asked: Mapping[str, Mapping[str, Any]], note: str = "") -> list[Row]:
    """`rows` with the floor and target that `asked` has for some of them, by `what`, and with `note` on those.

    A figure that is asked for and has no row could not be measured: it becomes a row that says so.
    """
    there = {row.what for row in rows}
    absent = [Row(rows[0].set, what, float("nan"), note="not measured") for what in asked if what not in there]
    return [
        replace(row, note="; ".join(filter(None, (row.note, note))), **asked[row.what]) if row.what in asked else row
        for row in [*rows, *absent]
    ]


def member_rows(name: str, truth: Bools, units: Units, seed: int = 0) -> list[Row]:
    """PR-AUC of each member alone and of the members' p-values combined, all of them and all but one.

    "Ensemble minus best member" uses the daemon's own combination of the p-values.
    """
    alone = {member: average_precision(truth, each) for member, each in units.member_strangeness.items()}
    if not alone:
        return [Row(name, "members", float("nan"), note="no record names a member")]
    best = max(alone, key=alone.__getitem__)
    combined = average_precision(truth, units.without())
    rows = [Row(name, f"PR-AUC of {member} alone", value) for member, value in alone.items()]
    rows.append(
        Row.of(
            name,
            "PR-AUC of the ensemble minus its best member's",
            ap_difference(truth, units.strangeness, units.member_strangeness[best], seed),
            floor=0.0,
            target=0.0,
            note=f"best: {best}",
        )
    )
    rows.append(Row(name, "PR-AUC of the members' p-values, combined here", combined))
    for member in alone if len(alone) > 1 else ():
        value = average_precision(truth, units.without(member))
        rows.append(Row(name, f"PR-AUC combined without {member}", value, note=f"{value - combined:+.3f}"))
    return rows


def control_rows(name: str, truth: Bools, controls: Sequence[Control]) -> list[Row]:
    rows = []
    for control in controls:
        flags = found(truth, control.flagged)
        note = f"F1 at its own flags {flags.f1:.3f}"
        rows.append(Row(name, f"PR-AUC of {control.name}", average_precision(truth, control.strangeness), note=note))
    return rows
