"""Answers to /detect: a line in question is judged like a line of the stream, and nothing is kept.

It is read, judged and explained by the same functions, over a copy of the session that the query names. So the answer
is what the stream would give if the line came next. But a query changes nothing: no template is learned, no cause is
admitted. The query alone decides which session a line belongs to; the times in the line do not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.causes.fingerprints import KINDS, NONE, RULE, cause_in_words
from detection.causes.known_causes import KnownCauses
from detection.detection_settings import DetectionSettings
from detection.formats.kinds import recognise
from detection.members.all_online_members import OnlineMembers
from detection.members.registry import NAMES
from detection.rules.rule_matching import RuleSet
from detection.scoring.batch import Batch, Judged
from detection.scoring.ensemble import Ensemble
from detection.scoring.judging import judge_batch
from detection.scoring.lines_read import LinesRead
from detection.scoring.verdict_and_score import NORMAL, VERDICTS, verdict_of
from detection.sessions.intake import Intake, read_fields, session_key
from detection.sessions.key_pattern import KeyPattern
from detection.sessions.log_clock import LogClock
from detection.sessions.recent_lines import RecentLines
from detection.sessions.session_table import SessionTable, cut_into_pieces
from detection.templates.table import TemplateTable
from detection.verdicts.explanation import LINES_SHOWN, evidence_shown, explain_by_members, explanation_in_order
from detection.verdicts.verdict_records import finite_or_none, shown_key, shown_session, shown_text

NO_TEMPLATE = np.iinfo(np.int32).max  # how `found` of an explanation shows a template that was never seen
CLASSIC = ("isolation_forest", "transformer")  # the members that the answer names one by one, ready or not


@dataclass(frozen=True, slots=True)
class Query:
    """A read-only view of the detector's parts."""

    templates: TemplateTable
    rules: RuleSet
    sessions: SessionTable
    ensemble: Ensemble | None
    pattern: KeyPattern | None
    known: KnownCauses
    recent: RecentLines
    online: OnlineMembers  # those that judge
    settings: DetectionSettings
    alpha: float
    line: int
    clock: LogClock
    received: float
    failed: Mapping[str, str]  # members that raised on these lines, and why

    def answers(self, lines: Sequence[bytes], session: str | None, explain: bool) -> list[dict[str, Any]]:
        """One answer a line, in order, each judged on its own against the current state. Raises MemberError."""
        if not lines:
            return []
        key = None if session is None else session_key(session.encode("utf-8", "surrogatepass"))
        judged = self._judge_lines(list(lines), key)
        answers = []
        for row in range(len(lines)):
            answer = self._answer_for_line(judged, row)
            if explain:
                answer["explain"] = self._cause_answer(judged, row) | self._explain_line(judged, row)
            answers.append(answer)
        return answers

    # --- judging, as of a line of the stream --------------------------------------------------------

    def _judge_lines(self, lines: list[bytes], key: bytes | None) -> "_JudgedLines":
        """Judge each line as the next one of the open session of `key`, or of a new session if there is none; without
        `key`, as the first one of a new session of the line's own key."""
        n = len(lines)
        intake = self._read_line_fields(lines)
        read = LinesRead.of(intake, self._template_ids, self.rules, self.known, self.online)
        clock = self.clock.after_each(intake.times, self.received)
        clock[np.isnan(clock)] = 0.0  # nothing has come yet, and the line has no time
        whole = slice(0, n)
        batch = read.batch(whole, self.line + 1, clock, self.online.score(read.read, whole, clock))
        slot = None if key is None else self.sessions.find(key)
        if key is None:
            copies = self.sessions.copies_of_session(None, intake.keys, intake.windowed)
        else:
            copies = self.sessions.copies_of_session(slot, [key] * n, [False] * n)
        pieces = cut_into_pieces(
            copies,
            np.arange(n),
            clock,
            np.full(n, np.nan),  # neither its own time nor silence takes a line out of its session
            idle_seconds=math.inf,
            window=self.settings.session.window,
        )
        judged = judge_batch(copies, self.ensemble, self.known.read_only(), self.alpha, batch, pieces, None)
        known = np.ones(n, dtype=np.bool_) if self.ensemble is None else self.ensemble.knows_templates(batch.ids)
        verdict, score = verdict_of(judged.states.p, self.alpha, batch.hit, judged.states.verdict, known)
        kinds = {row: fields.kind for where, fields in intake.fields for row in where.tolist()}
        return _JudgedLines(read, kinds, batch, judged, known, verdict, score, slot)

    def _template_ids(self, family: str, contents: Sequence[bytes]) -> NDArray[np.int32]:
        """Those of the templates that match. A new one has the id that it would get: its scores depend on it, too."""
        ids = self.templates.match(family, contents)
        return np.where(ids < 0, np.int32(self.templates.created + 1), ids)

    def _read_line_fields(self, lines: list[bytes]) -> Intake:
        wanted = self.settings.format.kind
        by_kind: dict[str, list[int]] = {}
        for i, line in enumerate(lines):
            by_kind.setdefault(recognise([line]) if wanted == "auto" else wanted, []).append(i)
        nobody = [b""] * len(lines)
        return read_fields(lines, nobody, by_kind, self.pattern, clock=self.clock.now, received=self.received)

    # --- the answer as JSON -------------------------------------------------------------------------

    def _answer_for_line(self, of: "_JudgedLines", row: int) -> dict[str, Any]:
        """The contract's answer to /detect, without `explain`."""
        p, strange = float(of.judged.states.p[row]), bool(of.judged.states.verdict[row] != NORMAL)
        rule_based = self._rules_answer(of, row)
        is_anomaly = rule_based["is_attack"] or strange
        score = max(float(of.score[row]), 0.5) if is_anomaly else min(float(of.score[row]), 0.499)
        active = self.ensemble.members if self.ensemble is not None else ()
        models = {name: self._member(of, name, row) for name in NAMES if name in active or name in CLASSIC}
        models["transformer"] |= {
            "sequence_length": int(of.judged.view.held[row]) + 1,
            "context": "single_log" if of.slot is None else "session",
        }
        votes = {"rule_based": int(rule_based["is_attack"])} | {
            name: said["is_anomaly"] for name, said in models.items()
        }
        return {
            "is_anomaly": is_anomaly,
            "anomaly_score": score,
            "verdict": VERDICTS[of.verdict[row]],
            "p": finite_or_none(p),
            "rule_based": rule_based,
            **{name: models[name] for name in CLASSIC},
            "details": {
                "logs_processed": self.line,
                "transformer_ready": "transformer" in active,
                "rule_based": rule_based,
                **models,
                "ensemble": {
                    "score": score,
                    "alpha": self.alpha,
                    "votes": votes,
                    "weights": dict.fromkeys(active, 1 / len(active)) if active else {},
                    "active_models": ["rule_based", *active],
                    **({"failed_models": dict(self.failed)} if self.failed else {}),
                },
                "log_data": self._log_data_answer(of, row),
            },
        }

    def _rules_answer(self, of: "_JudgedLines", row: int) -> dict[str, Any]:
        """The part of an answer that says which rules hit the line, and where."""
        text, (target, agent) = of.lines.intake.lines[row], of.lines.parsed.matched_in[row]
        evidence = [self.rules.evidence(rule, target, agent, text) for rule in of.hit_by(row)]
        return {
            "is_attack": bool(evidence),
            "attack_types": sorted({found.rule.attack_type for found in evidence}),
            "confidence": float(of.batch.hit[row]),
            "rules": [evidence_shown(found) for found in evidence],
        }

    def _member(self, of: "_JudgedLines", name: str, row: int) -> dict[str, Any]:
        """One member's part of the answer; zeros and nulls while it is not ready."""
        if self.ensemble is None or name not in self.ensemble.members:
            return {"is_anomaly": 0, "score": 0.0, "p": None, "threshold": None}
        column = NAMES.index(name)
        p = float(of.judged.states.members[row, column])
        return {
            "is_anomaly": int(p < self.alpha),
            "score": float(of.judged.states.reached[row, column]),
            "p": p,
            "threshold": self.ensemble.threshold_of_member(name, self.alpha),
        }

    def _log_data_answer(self, of: "_JudgedLines", row: int) -> dict[str, Any]:
        """The part of an answer that says how the line was read."""
        template = int(of.batch.ids[row])
        return {
            "kind": of.kinds[row],
            "time": finite_or_none(of.lines.intake.times[row]),
            "session": shown_text(of.lines.intake.own_keys[row]),
            "source": shown_text(of.lines.parsed.origins[row]),
            "template_id": template if template <= self.templates.created else -1,
            "template": self.templates.text(template) if template <= self.templates.created else None,
            "known_template": self.ensemble is not None and bool(of.known[row]),
            "error": bool(of.batch.errors[row]),
        }

    def _cause_answer(self, of: "_JudgedLines", row: int) -> dict[str, Any]:
        """The cause that an alert on the line would name."""
        states, rules = of.judged.states, of.hit_by(row)
        kind, about, rule = int(states.kind[row]) if states.flagged[row] else NONE, int(states.about[row]), ""
        if rules:
            surest = max((self.rules.rules[number] for number in rules), key=lambda each: each.confidence)
            kind, about, rule = RULE, int(of.batch.ids[row]), surest.name
        if kind == NONE:
            return {}
        key, origin = bytes(states.session[row]), of.lines.parsed.origins[row]
        return {
            "cause_kind": KINDS[kind],
            "what": cause_in_words(
                kind,
                template=self._template_text(about) if about >= 0 else "",
                rule=rule,
                source=shown_text(origin) if origin else shown_key(key),
                session=shown_session(key),
            ),
        }

    def _template_text(self, template: int) -> str:
        return self.templates.text(template) if template <= self.templates.created else "<a template never seen>"

    def _explain_line(self, of: "_JudgedLines", row: int) -> dict[str, Any]:
        reasons: dict[str, Any] = {}
        if self.ensemble is not None:
            judged = of.judged
            reasons = explain_by_members(
                self.ensemble, judged.view, judged.standing, judged.judgement, row, self.alpha, self._template_text
            )
            if reasons["found"]["template_id"] > self.templates.created:
                reasons["found"]["template_id"] = NO_TEMPLATE
        reasons |= self.online.explain(of.lines.read, row, of.lines.parsed.origins[row], float(of.batch.clock[row]))
        before: list[int] = []
        if of.slot is not None:
            serial = int(self.sessions.column["serial"][of.slot])
            before = self.recent.of_session(serial, self.line, LINES_SHOWN - 1)
        reasons["lines"] = [
            {"line": number, "text": shown_text(self.recent.text(number) or b""), "odd": False} for number in before
        ]
        reasons["lines"].append({"line": None, "text": shown_text(of.lines.intake.lines[row]), "odd": True})
        return explanation_in_order(reasons)


@dataclass(frozen=True, slots=True)
class _JudgedLines:
    """n lines in question, judged; columns [n] and rows in their order."""

    lines: LinesRead
    kinds: Mapping[int, str]  # of each line the format that fits it
    batch: Batch
    judged: Judged
    known: NDArray[np.bool_]  # the model in force has seen the template, or there is none
    verdict: NDArray[np.uint8]
    score: NDArray[np.float64]
    slot: int | None  # of the session that the query names; None: it is a new one

    def hit_by(self, row: int) -> list[int]:
        numbers: list[int] = self.lines.hits_in(slice(row, row + 1)).rules.tolist()
        return numbers
