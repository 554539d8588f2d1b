"""Verdicts as columns: one row a line and one row a session closed; JSON-ready records only on demand."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.ensemble import MEMBERS, Ensemble
from detection.members.view import CLOSING as CLOSING_TEMPLATE
from detection.judging import Batch, Closings, LineStates
from detection.rules.engine import Hits
from detection.rules.reading import Rule
from detection.templates import TemplateTable

VERDICTS = ("normal", "novel", "anomaly", "attack")
NORMAL, NOVEL, ANOMALY, ATTACK = range(4)
TEXT_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Rows:
    """Verdicts of one batch; [n] lines in order, then [m] closings, ordered by line and then by `k`.

    `k` is 0 for a line and counts the sessions closed at that line from 1. Scores and p-values are the
    session's running ones: what it has come to, at that line. NaN p-values: that member is not ready.
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
    member_scores: Mapping[str, NDArray[np.float64]]
    member_ps: Mapping[str, NDArray[np.float64]]
    texts: list[bytes]  # of lines, then of the oddest line of each session closed
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

    def record(self, row: int) -> dict[str, Any]:
        """Row `row` as the contract's JSON object."""
        line, k = int(self.line[row]), int(self.k[row])
        template_id = int(self.template_id[row])
        members = {
            name: {"score": finite(self.member_scores[name][row]), "p": finite(self.member_ps[name][row])}
            for name in self.member_ps
            if not np.isnan(self.member_ps[name][row])
        }
        matched = self._matched(row) if k == 0 else []
        if matched:
            members["rules"] = {"score": max(rule.confidence for rule in matched), "p": None}
        return {
            "id": f"{line}.{k}" if k else f"{line}",
            "line": line,
            "first_line": int(self.first_line[row]),
            "last_line": int(self.last_line[row]),
            "time": finite(self.time[row]),
            "session": shown_key(bytes(self.session[row])),
            "closed": k > 0,
            "template_id": template_id,
            "template": self.templates.get(template_id, ""),
            "verdict": VERDICTS[self.verdict[row]],
            "score": finite(self.score[row]),
            "p": finite(self.p[row]),
            "flagged": bool(self.flagged[row]),
            "members": members,
            "attack_types": sorted({rule.attack_type for rule in matched}),
            "rules": [{"name": rule.name, "type": rule.attack_type, "severity": rule.severity} for rule in matched],
            "model_generation": self.generation,
            "text": shown(self.texts[row]),
        }

    def _matched(self, row: int) -> list[Rule]:
        low, high = np.searchsorted(self.hits.lines, [row, row + 1])
        return [self.rules[rule] for rule in self.hits.rules[low:high].tolist()]


def rows_of(
    batch: Batch,
    states: LineStates,
    closings: Closings,
    alpha: float,
    k: NDArray[np.int64],
    times: NDArray[np.float64],
    texts: list[bytes],
    hits: Hits,
    rules: tuple[Rule, ...],
    templates: TemplateTable,
    ensemble: Ensemble | None,
) -> Rows:
    """The verdicts on a batch and on what closed with it.

    A line that a rule matched is an attack; a session whose p is below `alpha` is an anomaly from that
    line on, and flagged there once; a template the model in force never saw is novel.
    """
    n, m = len(batch.ids), len(closings.line)
    p = np.concatenate((states.p, closings.p))
    hit = np.concatenate((batch.hit, closings.hit))
    verdict = np.zeros(n + m, dtype=np.uint8)
    if ensemble is not None:
        verdict[:n][~ensemble.knows(batch.ids)] = NOVEL
    verdict[p < alpha] = ANOMALY
    verdict[hit > 0.0] = ATTACK
    surprise = np.where(np.isnan(p) | (alpha <= 0.0), 0.0, alpha / (alpha + np.where(np.isnan(p), 1.0, p)))
    closing_ps = ensemble.judge(closings.worst, closings.oddity).members if ensemble and m else {}
    unknown = np.full(m, np.nan)
    return Rows(
        line=np.concatenate((batch.first_line + np.arange(n), closings.line)),
        k=np.concatenate((np.zeros(n, dtype=np.int64), k)),
        first_line=np.concatenate((states.first_line, closings.first_line)),
        last_line=np.concatenate((batch.first_line + np.arange(n), closings.last_line)),
        time=np.concatenate((times, closings.time)),
        session=np.concatenate((states.session, closings.session)),
        template_id=np.concatenate((batch.ids, np.full(m, CLOSING_TEMPLATE, dtype=np.int32))),
        verdict=verdict,
        score=np.maximum(surprise, hit),
        p=p,
        flagged=np.concatenate((states.flagged | (batch.hit > 0.0), closings.flagged)),
        member_scores={
            "transformer": np.concatenate((states.worst, closings.worst)),
            "isolation_forest": np.concatenate((states.oddity, closings.oddity)),
        },
        member_ps={name: np.concatenate((states.member_ps[name], closing_ps.get(name, unknown))) for name in MEMBERS},
        texts=texts,
        hits=hits,
        rules=rules,
        templates={CLOSING_TEMPLATE: "<end of session>"}
        | {number: templates.text(number) for number in np.unique(batch.ids).tolist()},
        generation=ensemble.generation if ensemble else 0,
    )


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What applying frame `seq` said. `line` is the last line through it, `lines` how many lines it held."""

    seq: int
    line: int
    lines: int
    batches: tuple[Rows, ...]

    def flagged(self) -> list[dict[str, Any]]:
        """The flagged rows as records, in the order of their ids."""
        return [
            rows.record(row)
            for rows in self.batches
            if rows.flagged.any()
            for row in rows.in_order().tolist()
            if rows.flagged[row]
        ]

    def records(self) -> Iterator[dict[str, Any]]:
        """Every row as a record, in the order of their ids."""
        for rows in self.batches:
            for row in rows.in_order().tolist():
                yield rows.record(row)


def shown(text: bytes) -> str:
    """Bytes of a log as text that any JSON reader takes: bytes that are not UTF-8 become \\xNN."""
    return text[:TEXT_BYTES].decode("utf-8", "backslashreplace")


def shown_key(key: bytes) -> str:
    """A session's key as its user knows it (the table marks kinds of keys by their first byte)."""
    return shown(key[1:])


def severity_score(p: float, alpha: float, confidence: float) -> float:
    """The contract's score in 0..1: .5 and more is flagged, by a p below `alpha` or by a rule's confidence."""
    surprise = alpha / (alpha + p) if p == p and alpha > 0.0 else 0.0
    return max(surprise, confidence)


def finite(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None
