"""Answers to "what would you say of this line?": the detector's judgement without its consequences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.ensemble import MEMBERS, Ensemble
from detection.features import Carry, running
from detection.formats.kinds import parse, recognise
from detection.intake import KeyPattern, match_rules, session_key
from detection.rules.engine import RuleSet
from detection.sessions import SessionTable
from detection.settings import DetectionSettings
from detection.templates import TemplateTable
from detection.verdicts import ANOMALY, ATTACK, NORMAL, NOVEL, VERDICTS, finite, severity_score, shown


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


@dataclass(frozen=True, slots=True)
class Opinion:
    """A reading view of the detector's parts; asking changes none of them."""

    templates: TemplateTable
    rules: RuleSet
    sessions: SessionTable
    ensemble: Ensemble | None
    pattern: KeyPattern | None
    settings: DetectionSettings
    alpha: float
    line: int
    clock: float

    def on(self, lines: Sequence[bytes], session: str | None) -> list[dict[str, Any]]:
        """One answer a line, in order, each judged on its own against the current state."""
        if not lines:
            return []
        read = self._read(lines)
        slot = None if session is None else self.sessions.find(session_key(session.encode("utf-8", "surrogatepass")))
        held = 0 if slot is None else int(self.sessions.column["held"][slot])
        worst, oddity = self._scores(read, slot, held)
        members: dict[str, NDArray[np.float64]] = {}
        p = np.full(len(lines), np.nan)
        if self.ensemble is not None:
            judgement = self.ensemble.judge(worst, oddity)
            members, p = judgement.members, judgement.p
        scores = {"transformer": worst, "isolation_forest": oddity}
        context = "single_log" if slot is None else "session"
        return [
            self._answer(
                lines[i],
                line,
                float(p[i]),
                {name: (float(scores[name][i]), float(members[name][i])) for name in members},
                held + 1,
                context,
            )
            for i, line in enumerate(read)
        ]

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
            hits, targets = match_rules(self.rules, fields, texts)
            keys = fields.keys if self.pattern is None else self.pattern.keys(texts)
            for j, i in enumerate(where):
                low, high = np.searchsorted(hits.lines, [j, j + 1])
                read[i] = _Line(
                    kind=kind,
                    template_id=int(ids[j]),
                    time=float(fields.times[j]),
                    error=bool(fields.errors[j]),
                    key=keys[j],
                    rules=tuple(hits.rules[low:high].tolist()),
                    target=targets[j],
                    agent=fields.agents[j],
                )
        return [read[i] for i in range(len(lines))]

    def _scores(
        self, read: Sequence[_Line], slot: int | None, held: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The session's worst surprise and oddity were each line its next; zeros without a model."""
        n = len(read)
        if self.ensemble is None:
            return np.zeros(n), np.zeros(n)
        table = self.sessions.column
        context = table["tokens"][slot, :held] if slot is not None else np.zeros(0, dtype=np.int32)
        tokens = np.empty((n, held + 1), dtype=np.int32)
        tokens[:, :held] = context
        tokens[:, held] = [line.template_id for line in read]
        opened = True if slot is None else bool(table["opened"][slot])
        surprise = self.ensemble.sequence.surprises(
            tokens.reshape(-1),
            np.arange(n + 1) * (held + 1),
            np.full(n, held),
            np.full(n, opened),
            np.zeros(n, dtype=np.bool_),
        )
        clock = 0.0 if np.isnan(self.clock) else self.clock

        def brought(name: str, fresh: float = 0) -> NDArray[Any]:
            return np.full(n, fresh if slot is None else table[name][slot])

        features, _ = running(
            surprise.astype(np.float64),
            np.array([line.error for line in read]),
            tokens[:, held].copy(),
            np.full(n, clock),
            np.arange(n + 1),
            Carry.brought(brought, brought("began", clock)),
        )
        oddity = self.ensemble.forest.scores(features)
        return features[:, 0], oddity if slot is None else np.maximum(oddity, table["oddity"][slot])

    def _answer(
        self,
        text: bytes,
        line: _Line,
        p: float,
        members: dict[str, tuple[float, float]],
        length: int,
        context: str,
    ) -> dict[str, Any]:
        ready = self.ensemble is not None
        evidence = [self.rules.evidence(rule, line.target, line.agent, text) for rule in line.rules]
        confidence = max((found.rule.confidence for found in evidence), default=0.0)
        strange = ready and p < self.alpha
        score = severity_score(p, self.alpha, confidence)
        known = ready and line.template_id >= 0 and self._known(line.template_id)
        verdict = NORMAL
        if evidence:
            verdict = ATTACK
        elif strange:
            verdict = ANOMALY
        elif ready and not known:
            verdict = NOVEL
        rule_based = {
            "is_attack": bool(evidence),
            "attack_types": sorted({found.rule.attack_type for found in evidence}),
            "confidence": confidence,
            "rules": [
                {
                    "name": found.rule.name,
                    "severity": found.rule.severity,
                    "field": found.field,
                    "start": found.start,
                    "end": found.end,
                    "text": found.text,
                }
                for found in evidence
            ],
        }
        models: dict[str, dict[str, Any]] = {
            name: {
                "is_anomaly": int(name in members and members[name][1] < self.alpha),
                "score": finite(members[name][0]) if name in members else 0.0,
                "p": finite(members[name][1]) if name in members else None,
                "threshold": finite(self.ensemble.threshold(name, self.alpha)) if self.ensemble else None,
            }
            for name in MEMBERS
        }
        models["transformer"] |= {"sequence_length": length, "context": context}
        return {
            "is_anomaly": bool(evidence) or strange,
            "anomaly_score": score,
            "verdict": VERDICTS[verdict],
            "p": finite(p),
            "rule_based": rule_based,
            **models,
            "details": {
                "logs_processed": self.line,
                "transformer_ready": ready,
                "rule_based": rule_based,
                **models,
                "ensemble": {
                    "score": score,
                    "alpha": self.alpha,
                    "votes": {
                        "rule_based": int(bool(evidence)),
                        **{name: models[name]["is_anomaly"] for name in MEMBERS},
                    },
                    "weights": {name: 1 / len(MEMBERS) for name in MEMBERS} if ready else {},
                    "active_models": ["rule_based", *(MEMBERS if ready else ())],
                },
                "log_data": {
                    "kind": line.kind,
                    "time": finite(line.time),
                    "session": shown(line.key),
                    "template_id": line.template_id,
                    "template": self.templates.text(line.template_id) if line.template_id >= 0 else None,
                    "known_template": known,
                    "error": line.error,
                },
            },
        }

    def _known(self, template_id: int) -> bool:
        assert self.ensemble is not None
        return bool(self.ensemble.knows(np.array([template_id], dtype=np.int32))[0])
