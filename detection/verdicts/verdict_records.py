"""Verdicts as columns: one row a line and one row a session closed; JSON-ready records only on demand."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.causes.fingerprints import RULE, cause_fields
from detection.formats.text import shown_text as shown_text
from detection.members.fitted_member_view import CLOSING as CLOSING_TEMPLATE
from detection.members.registry import NAMES
from detection.rules.rule_files import Rule
from detection.rules.rule_matching import Hits
from detection.scoring.batch import Batch, Closings, LineStates
from detection.scoring.ensemble import Ensemble
from detection.scoring.verdict_and_score import VERDICTS, verdict_of
from detection.templates.table import TemplateTable
from detection.verdicts.counted_alerts import alert_id
from detection.verdicts.incidents import GroupedAlerts


@dataclass(frozen=True, slots=True)
class VerdictRows:
    """Verdicts of one batch; [n] lines in order, then [m] closings, ordered by line and then by `k`.

    `k` is 0 for a line and counts the sessions closed at that line from 1. Scores are the session's running maxima
    at that line, and p-values are of these. A NaN p-value means that the member does not judge.
    """

    line: NDArray[np.int64]
    k: NDArray[np.int64]
    first_line: NDArray[np.int64]
    last_line: NDArray[np.int64]
    time: NDArray[np.float64]
    session: NDArray[np.bytes_]
    template_id: NDArray[np.int32]
    verdict: NDArray[np.uint8]
    score: NDArray[np.float64]
    p: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    cause: NDArray[np.uint64]  # of flagged rows
    kind: NDArray[np.uint8]
    about: NDArray[np.int32]  # the template that the cause is about
    shapes: NDArray[np.uint64]  # [n + m, 2] of a session with a new template, its own: see `attribution.Reasons`
    reached: NDArray[np.float64]  # [n + m, M]
    member_ps: NDArray[np.float64]  # [n + m, M]
    texts: list[bytes]  # of lines, then of the most unusual line of each session closed
    hits: Hits
    rules: tuple[Rule, ...]
    templates: Mapping[int, str]
    generation: int

    @property
    def lines(self) -> int:
        return int(np.count_nonzero(self.k == 0))

    def in_order(self) -> NDArray[np.int64]:
        """Row indices in the order of their ids."""
        return np.lexsort((self.k, self.line))

    def matched(self, row: int) -> list[Rule]:
        """The rules that hit the line of a row, highest confidence first."""
        return [self.rules[rule] for rule in self.hit_by(row)]

    def hit_by(self, row: int) -> list[int]:
        """The numbers of the rules that hit the line of a row, highest confidence first."""
        if self.k[row]:
            return []
        low, high = np.searchsorted(self.hits.lines, [row, row + 1])
        found: list[int] = self.hits.rules[low:high].tolist()
        return sorted(found, key=lambda rule: -self.rules[rule].confidence)

    def record(self, row: int) -> dict[str, Any]:
        """Row `row` as the contract's JSON object."""
        line, k = int(self.line[row]), int(self.k[row])
        template_id = int(self.template_id[row])
        reached, ps = self.reached[row].tolist(), self.member_ps[row].tolist()
        members: dict[str, Any] = {
            name: {"score": score, "p": p} for name, score, p in zip(NAMES, reached, ps, strict=True) if p == p
        }
        matched = self.matched(row)
        if matched:
            members["rules"] = {"score": matched[0].confidence, "p": None}
        return {
            "id": alert_id(line, k),
            "line": line,
            "first_line": int(self.first_line[row]),
            "last_line": int(self.last_line[row]),
            "time": finite_or_none(self.time[row]),
            "session": shown_key(bytes(self.session[row])),
            "closed": k > 0,
            "template_id": template_id,
            "template": self.templates.get(template_id, ""),
            "verdict": VERDICTS[self.verdict[row]],
            "score": finite_or_none(self.score[row]),
            "p": finite_or_none(self.p[row]),
            "flagged": bool(self.flagged[row]),
            "members": members,
            "attack_types": sorted({rule.attack_type for rule in matched}),
            "rules": [{"name": rule.name, "type": rule.attack_type, "severity": rule.severity} for rule in matched],
            "model_generation": self.generation,
            "text": shown_text(self.texts[row]),
        }


def verdict_rows_of(
    batch: Batch,
    states: LineStates,
    closings: Closings,
    alpha: float,
    k: NDArray[np.int64],
    times: NDArray[np.float64],
    texts: list[bytes],
    hits: Hits,
    rule_causes: NDArray[np.uint64],
    rules: tuple[Rule, ...],
    templates: TemplateTable,
    ensemble: Ensemble | None,
) -> VerdictRows:
    """The verdicts on a batch and on what closed with it (`verdict_of`); a session is flagged once.

    `rule_causes` uint64 [n]: the cause of each line that a rule hit, else 0.
    """
    n, m = len(batch.ids), len(closings.line)
    p = np.concatenate((states.p, closings.p))
    hit = np.concatenate((batch.hit, closings.hit))
    known = np.ones(n + m, dtype=np.bool_)
    if ensemble is not None:
        known[:n] = ensemble.knows_templates(batch.ids)
    verdict, score = verdict_of(p, alpha, hit, np.concatenate((states.verdict, closings.verdict)), known)
    flagged_now = np.concatenate((states.flagged, closings.flagged))
    reached = np.concatenate((states.reached, closings.reached))
    about = np.where(flagged_now, np.concatenate((states.about, closings.about)), CLOSING_TEMPLATE).astype(np.int32)
    about[:n] = np.where(rule_causes > 0, batch.ids, about[:n])
    by_rule = np.concatenate((rule_causes > 0, np.zeros(m, dtype=np.bool_)))
    cause = np.concatenate((states.cause, closings.cause))
    cause[:n] = np.where(rule_causes > 0, rule_causes, cause[:n])
    return VerdictRows(
        line=np.concatenate((batch.first_line + np.arange(n), closings.line)),
        k=np.concatenate((np.zeros(n, dtype=np.int64), k)),
        first_line=np.concatenate((states.first_line, closings.first_line)),
        last_line=np.concatenate((batch.first_line + np.arange(n), closings.last_line)),
        time=np.concatenate((times, closings.time)),
        session=np.concatenate((states.session, closings.session)),
        template_id=np.concatenate((batch.ids, np.full(m, CLOSING_TEMPLATE, dtype=np.int32))),
        verdict=verdict,
        score=score,
        p=p,
        flagged=flagged_now | by_rule,
        cause=cause,
        kind=np.where(by_rule, RULE, np.concatenate((states.kind, closings.kind))).astype(np.uint8),
        about=about,
        shapes=np.concatenate((states.shapes, closings.shapes)),
        reached=reached,
        member_ps=np.concatenate((states.members, _member_p_values_of_closings(closings, ensemble))),
        texts=texts,
        hits=hits,
        rules=rules,
        templates={CLOSING_TEMPLATE: "<end of session>"}
        | {number: templates.text(number) for number in np.union1d(batch.ids, about[about >= 0]).tolist()},
        generation=ensemble.generation if ensemble else 0,
    )


def _member_p_values_of_closings(closings: Closings, ensemble: Ensemble | None) -> NDArray[np.float64]:
    """The members' p-values of closings [m, M]: those that were crowded out are judged here first."""
    if ensemble is None or not len(closings.line):
        return np.full(closings.reached.shape, np.nan)
    return ensemble.judge(closings.reached).members


@dataclass(frozen=True, slots=True)
class Alerted:
    """The flagged rows of a batch, in the order of their ids, as `grouped` in incidents, and why (`explained`)."""

    rows: NDArray[np.int64]
    grouped: GroupedAlerts
    what: list[str]
    explained: Mapping[int, dict[str, Any]]  # by row; not every alert of a flood has one

    def fields(self, rows: VerdictRows, number: int) -> dict[str, Any]:
        """What the record of alert `number` has beside that of a row."""
        row = int(self.rows[number])
        added = self.grouped.fields(number)
        return {
            **added,
            "opens": bool(self.grouped.opens[number]),
            **cause_fields(int(rows.cause[row]), int(rows.kind[row]), int(rows.about[row]), rows.shapes[row].tolist()),
            "what": self.what[number],
            **({"explain": self.explained[row]} if row in self.explained else {}),
        }


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The verdicts of frame `seq`. `line` is the last line up to and including it, `lines` the number of its lines;
    `counts` are the counting records of the frame (`detection.verdicts.counted_alerts`), whose ids come after those of
    its rows."""

    seq: int
    line: int
    lines: int
    batches: tuple[tuple[VerdictRows, Alerted], ...]
    counts: tuple[dict[str, Any], ...] = ()

    @property
    def alerts(self) -> int:
        """How many rows are flagged."""
        return sum(len(alerted.rows) for _, alerted in self.batches)

    def recorded(self) -> list[dict[str, Any]]:
        """What is to be recorded of the flagged rows: those in full that are, then the counting records."""
        full = [
            rows.record(int(alerted.rows[number])) | alerted.fields(rows, number)
            for rows, alerted in self.batches
            for number in np.flatnonzero(alerted.grouped.in_full).tolist()
        ]
        return [*full, *self.counts]

    def flagged(self) -> list[dict[str, Any]]:
        """The flagged rows as records, in the order of their ids."""
        return [
            rows.record(row) | alerted.fields(rows, number)
            for rows, alerted in self.batches
            for number, row in enumerate(alerted.rows.tolist())
        ]

    def records(self) -> Iterator[dict[str, Any]]:
        """Every row as a record, in the order of their ids."""
        for rows, alerted in self.batches:
            number_of = {row: number for number, row in enumerate(alerted.rows.tolist())}
            for row in rows.in_order().tolist():
                added = alerted.fields(rows, number_of[row]) if row in number_of else {}
                yield rows.record(row) | added


def shown_key(key: bytes) -> str:
    """A session's key without its first byte, with which the session table marks kinds of keys."""
    return shown_text(key[1:])


def shown_session(key: bytes) -> str:
    """The same, and "" of the windows of a source whose lines have no key."""
    return "" if key.startswith(b"w") else shown_key(key)


def finite_or_none(value: Any) -> float | None:
    """For JSON, which has neither nan nor infinity."""
    number = float(value)
    return number if np.isfinite(number) else None
