"""Answers to "what would you say of this line?": the detector's judgement without its consequences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.causes.fingerprints import KINDS, NONE, RULE, in_words, rule_causes
from detection.causes.known import KnownCauses
from detection.formats.fields import Fields
from detection.formats.kinds import parse, recognise
from detection.members.failing import asked
from detection.members.origins.counters import SourceCounters
from detection.members.origins.lines import sources_of, things_of, troubles
from detection.members.parameter_values import Strangest, ValueModel, values_of
from detection.members.registry import NAMES
from detection.members.view import Carry, Standing, View, counted
from detection.rules.engine import RuleSet
from detection.scoring.attribution import Reasons, muted
from detection.scoring.ensemble import Ensemble, Judgement
from detection.scoring.outcomes import ATTACK, NORMAL, NOVEL, VERDICTS, severity_score
from detection.sessions.intake import KeyPattern, match_rules, session_key
from detection.sessions.recent_lines import RecentLines
from detection.sessions.table import SessionTable
from detection.settings import DetectionSettings
from detection.templates.table import TemplateTable
from detection.verdicts.explanation import LINES_SHOWN, evidence_shown, explained, source_shown, value_shown
from detection.verdicts.records import finite, shown, shown_key, shown_session

NO_TEMPLATE = np.iinfo(np.int32).max  # of a line that fits none: asking makes no new ones, and it ends no session
CLASSIC = ("isolation_forest", "transformer")  # the members that the answer names one by one, ready or not


@dataclass(frozen=True, slots=True)
class _Line:
    """One line as read: nothing in it depends on the session it is asked about."""

    kind: str
    template_id: int
    time: float
    error: bool
    key: bytes
    rules: tuple[int, ...]
    target: bytes
    agent: bytes
    value: float
    strangest: Strangest | None
    source: float
    origin: bytes


@dataclass(frozen=True, slots=True)
class Opinion:
    """A reading view of the detector's parts; asking changes none of them."""

    templates: TemplateTable
    rules: RuleSet
    sessions: SessionTable
    ensemble: Ensemble | None
    pattern: KeyPattern | None
    known: KnownCauses
    recent: RecentLines
    values: ValueModel | None  # None while it has learned too little to be asked
    origins: SourceCounters | None  # None while they are withdrawn
    settings: DetectionSettings
    alpha: float
    line: int
    clock: float
    failed: Mapping[str, str]  # members that could not say what they think of these lines, and why

    def on(self, lines: Sequence[bytes], session: str | None, explain: bool) -> list[dict[str, Any]]:
        """One answer a line, in order, each judged on its own against the current state. Raises MemberError."""
        if not lines:
            return []
        read = self._read(lines)
        key = None if session is None else session_key(session.encode("utf-8", "surrogatepass"))
        slot = None if key is None else self.sessions.find(key)
        keys = np.array([session_key(line.key) if key is None else key for line in read])
        view = self._view(read, slot)
        standing, judgement, reasons = Standing(view, NAMES), None, Reasons.none(len(read), np.zeros(0, np.int32))
        if self.ensemble is not None:
            standing = self.ensemble.score(view)
            judgement = self.ensemble.judge(standing.reached)
            reasons = self._reasons(
                self.ensemble, view, standing, judgement, keys, [line.origin for line in read], slot
            )
        answers = []
        for i, line in enumerate(read):
            answer = self._answer(lines[i], line, standing, judgement, reasons, i, slot)
            if explain:
                answer["explain"] = self._cause(line, reasons, i, bytes(keys[i])) | self._explained(
                    lines[i], line, view, standing, judgement, i, slot
                )
            answers.append(answer)
        return answers

    def _read(self, lines: Sequence[bytes]) -> list[_Line]:
        clock = 0.0 if np.isnan(self.clock) else self.clock
        wanted = self.settings.format.kind
        by_kind: dict[str, list[int]] = {}
        for i, line in enumerate(lines):
            by_kind.setdefault(recognise([line]) if wanted == "auto" else wanted, []).append(i)
        read: dict[int, _Line] = {}
        for kind, where in by_kind.items():
            texts = [lines[i] for i in where]
            fields = parse(kind, texts, clock=clock)
            ids = self.templates.match(fields.family, fields.contents)
            hits, targets, web = match_rules(self.rules, fields, texts)
            surest = self.rules.surest(hits)
            lines_hit = hits.lines[surest]
            normal = self.known.normal(rule_causes(self.rules.names, hits.rules[surest], ids[lines_hit]))
            kept = ~np.isin(hits.lines, lines_hit[normal])
            keys = fields.keys if self.pattern is None else self.pattern.keys(texts)
            odd, strangest = self._values_said(targets, web)
            source = self._sources_said(fields, clock, len(where))
            origins = sources_of(fields)
            for j, i in enumerate(where):
                low, high = np.searchsorted(hits.lines, [j, j + 1])
                read[i] = _Line(
                    kind=kind,
                    template_id=int(ids[j]),
                    time=float(fields.times[j]),
                    error=bool(fields.errors[j]),
                    key=keys[j],
                    rules=tuple(hits.rules[low:high][kept[low:high]].tolist()),
                    target=targets[j],
                    agent=fields.agents[j],
                    value=float(odd[j]),
                    strangest=strangest[j],
                    source=source[j],
                    origin=origins[j],
                )
        return [read[i] for i in range(len(lines))]

    def _values_said(
        self, targets: Sequence[bytes], web: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], list[Strangest | None]]:
        """How odd the parameter values of each line are, and the oddest of them."""
        if self.values is None:
            return np.zeros(len(web)), [None] * len(web)
        with asked("values"):
            values = values_of(targets, web)
            return self.values.scores(values, len(web)), [self.values.explain(values, j) for j in range(len(web))]

    def _sources_said(self, fields: Fields, clock: float, lines: int) -> list[float]:
        if self.origins is None:
            return [0.0] * lines
        with asked("sources"):
            each = zip(sources_of(fields), troubles(fields), things_of(fields.contents), strict=True)
            return [self.origins.peek(origin, clock, bool(trouble), int(thing)) for origin, trouble, thing in each]

    def _view(self, read: Sequence[_Line], slot: int | None) -> View:
        """Each line as the next one of the session in `slot`, or of a new one: a piece of one row each."""
        n, table = len(read), self.sessions.column
        held = 0 if slot is None else int(table["held"][slot])
        clock = 0.0 if np.isnan(self.clock) else self.clock
        ids = np.array([line.template_id if line.template_id >= 0 else NO_TEMPLATE for line in read], dtype=np.int32)
        tokens = np.empty((n, held + 1), dtype=np.int32)
        tokens[:, :held] = table["tokens"][slot, :held] if slot is not None else 0
        tokens[:, held] = ids

        def brought(name: str, fresh: float = 0) -> NDArray[Any]:
            column = table[name]
            empty = np.full(column.shape[1:], fresh, dtype=column.dtype)
            return np.repeat((empty if slot is None else column[slot])[None], n, axis=0)

        return View(
            tokens=tokens.reshape(-1),
            token_offsets=np.arange(n + 1) * (held + 1),
            held=np.full(n, held),
            starts=np.full(n, True if slot is None else bool(table["opened"][slot])),
            ends=np.zeros(n, dtype=np.bool_),
            complete=np.zeros(n, dtype=np.bool_),
            offsets=np.arange(n + 1),
            templates=ids,
            errors=np.array([line.error for line in read]),
            times=np.full(n, clock),
            muted=muted(self.known, self.ensemble, tokens.reshape(-1)),
            values=np.array([line.value for line in read]),
            sources=np.array([line.source for line in read]),
            counts=counted(brought("counts"), ids, np.arange(n)),
            carry=Carry.brought(brought, brought("began", clock)),
        )

    def _reasons(
        self,
        ensemble: Ensemble,
        view: View,
        standing: Standing,
        judgement: Judgement,
        keys: NDArray[np.bytes_],
        origins: Sequence[bytes],
        slot: int | None,
    ) -> Reasons:
        """What each line would be flagged for; nothing of those that would not be, or whose session was already."""
        n, none = len(view), np.zeros(len(view), dtype=np.int64)
        table = self.sessions.column
        novel = np.full(n, 0 if slot is None else table["novel"][slot], dtype=np.int32)
        reasons = Reasons(
            ensemble, self.known, view, standing, judgement, keys, np.zeros(n, dtype=np.bool_), none, novel,
            np.arange(n), origins,
        )  # fmt: skip
        excused = 0.0 if slot is None else float(table["excused"][slot])
        level = min(self.alpha, excused) if excused > 0.0 else self.alpha
        if slot is None or not table["verdict"][slot]:
            reasons.name(np.flatnonzero(judgement.p < level))
        explained = reasons.normal(np.arange(n))
        reasons.kind[explained], reasons.verdict[explained] = NONE, NORMAL
        return reasons

    def _answer(
        self,
        text: bytes,
        line: _Line,
        standing: Standing,
        judgement: Judgement | None,
        reasons: Reasons,
        row: int,
        slot: int | None,
    ) -> dict[str, Any]:
        ensemble = self.ensemble
        p = float(judgement.p[row]) if judgement is not None else float("nan")
        evidence = [self.rules.evidence(rule, line.target, line.agent, text) for rule in line.rules]
        confidence = max((found.rule.confidence for found in evidence), default=0.0)
        template = np.array([line.template_id], dtype=np.int32)
        known = ensemble is not None and line.template_id >= 0 and bool(ensemble.knows(template)[0])
        verdict = int(reasons.verdict[row]) or (0 if slot is None else int(self.sessions.column["verdict"][slot]))
        strange = verdict != NORMAL
        score = severity_score(p, self.alpha, confidence)
        score = max(score, 0.5) if strange else score if evidence else min(score, 0.499)
        if evidence:
            verdict = ATTACK
        elif not strange and ensemble is not None and not known:
            verdict = NOVEL
        rule_based = {
            "is_attack": bool(evidence),
            "attack_types": sorted({found.rule.attack_type for found in evidence}),
            "confidence": confidence,
            "rules": [evidence_shown(found) for found in evidence],
        }
        active = ensemble.members if ensemble is not None else ()
        models = {
            name: self._said(name, standing, judgement, row) for name in NAMES if name in active or name in CLASSIC
        }
        held = 0 if slot is None else int(self.sessions.column["held"][slot])
        models["transformer"] |= {"sequence_length": held + 1, "context": "single_log" if slot is None else "session"}
        classic = {name: models[name] for name in CLASSIC}
        return {
            "is_anomaly": bool(evidence) or strange,
            "anomaly_score": score,
            "verdict": VERDICTS[verdict],
            "p": finite(p),
            "rule_based": rule_based,
            **classic,
            "details": {
                "logs_processed": self.line,
                "transformer_ready": "transformer" in active,
                "rule_based": rule_based,
                **models,
                "ensemble": {
                    "score": score,
                    "alpha": self.alpha,
                    "votes": {
                        "rule_based": int(bool(evidence)),
                        **{name: said["is_anomaly"] for name, said in models.items()},
                    },
                    "weights": dict.fromkeys(active, 1 / len(active)) if active else {},
                    "active_models": ["rule_based", *active],
                    **({"failed_models": dict(self.failed)} if self.failed else {}),
                },
                "log_data": {
                    "kind": line.kind,
                    "time": finite(line.time),
                    "session": shown(line.key),
                    "source": shown(line.origin),
                    "template_id": line.template_id,
                    "template": self.templates.text(line.template_id) if line.template_id >= 0 else None,
                    "known_template": known,
                    "error": line.error,
                },
            },
        }

    def _said(self, name: str, standing: Standing, judgement: Judgement | None, row: int) -> dict[str, Any]:
        """What one member says of a row; zeros and nulls while it is not ready."""
        column = NAMES.index(name)
        if self.ensemble is None or judgement is None or name not in self.ensemble.members:
            return {"is_anomaly": 0, "score": 0.0, "p": None, "threshold": None}
        p = float(judgement.members[row, column])
        return {
            "is_anomaly": int(p < self.alpha),
            "score": float(standing.reached[row, column]),
            "p": p,
            "threshold": self.ensemble.threshold(name, self.alpha),
        }

    def _cause(self, line: _Line, reasons: Reasons, row: int, key: bytes) -> dict[str, Any]:
        """What an alert on the line would say that it is about."""
        kind, about, rule = int(reasons.kind[row]), int(reasons.about[row]), ""
        if line.rules:
            surest = max((self.rules.rules[number] for number in line.rules), key=lambda each: each.confidence)
            kind, about, rule = RULE, line.template_id if line.template_id >= 0 else NO_TEMPLATE, surest.name
        if kind == NONE:
            return {}
        template = self._text_of(about) if about >= 0 else ""
        return {
            "cause_kind": KINDS[kind],
            "what": in_words(
                kind,
                template=template,
                rule=rule,
                source=shown(line.origin) if line.origin else shown_key(key),
                session=shown_session(key),
            ),
        }

    def _text_of(self, template: int) -> str:
        return "<a template never seen>" if template == NO_TEMPLATE else self.templates.text(template)

    def _explained(
        self,
        text: bytes,
        line: _Line,
        view: View,
        standing: Standing,
        judgement: Judgement | None,
        row: int,
        slot: int | None,
    ) -> dict[str, Any]:
        reasons: dict[str, Any] = {}
        if self.ensemble is not None and judgement is not None:
            reasons = explained(self.ensemble, view, standing, judgement, row, self.alpha, self._text_of)
        if line.strangest is not None:
            reasons["value"] = value_shown(line.strangest)
        clock = 0.0 if np.isnan(self.clock) else self.clock
        with asked("sources"):
            reasons["source"] = source_shown(self.origins, line.origin, clock)
        before: list[int] = []
        if slot is not None:
            serial = int(self.sessions.column["serial"][slot])
            before = self.recent.of_session(serial, self.line, LINES_SHOWN - 1)
        reasons["lines"] = [
            {"line": number, "text": shown(self.recent.text(number) or b""), "odd": False} for number in before
        ]
        reasons["lines"].append({"line": None, "text": shown(text), "odd": True})
        return reasons
