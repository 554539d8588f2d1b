"""A model generation at work: the members' scores, their p-values, and the one p they come to."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.calibration import Ring, combined
from detection.members.features import FEATURES, features
from detection.members.ngram import Ngram
from detection.members.registry import IN_NATS, MEMBERS, NAMES
from detection.members.transformer import Transformer
from detection.members.view import CLOSING, Floats, Standing, View
from detection.model import Model
from detection.transformer import END, FIRST, UNSEEN

EXPECTED = 3


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of n states of sessions: `members` float64 [n, M] p-values, nan of members that are not ready; `strangeness`
    their combined statistic, which never falls while a session goes on; `p` its p-value."""

    members: Floats
    strangeness: Floats
    p: Floats


class Ensemble:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.generation = model.generation
        self.line = model.line
        self.vocabulary = model.vocabulary
        self._rings = {name: Ring(np.asarray(ring)) for name, ring in model.rings.items()}
        self._members = [
            member(model.parts.get(member.name, {}), model.vocabulary)
            for member in MEMBERS
            if member.name in self._rings
        ]
        self.members = tuple(member.name for member in self._members)
        self._columns = [NAMES.index(name) for name in self.members]
        self._shares = shares([member.family for member in self._members])

    @property
    def complete(self) -> bool:
        """Whether the members that learn from the whole warm-up are among these."""
        return "transformer" in self.members

    @property
    def calibration(self) -> int:
        """How many sessions the combined statistic was calibrated on."""
        return len(self._rings["ensemble"])

    def score(self, view: View) -> Standing:
        """Where each row leaves its session, by member; members that are not ready say 0."""
        standing = Standing(view, NAMES)
        for member in self._members:
            standing.put(member.name, member.scores(view, standing))
        return standing

    def judge(self, reached: Floats) -> Judgement:
        """`reached` float64 [n, M]: what sessions have come to (`Standing.reached`)."""
        members = np.full(reached.shape, np.nan)
        for name, column in zip(self.members, self._columns, strict=True):
            members[:, column] = p_of(name, self._rings[name], reached[:, column])
        strangeness = combined(members[:, self._columns], self._shares)
        return Judgement(members, strangeness, self._rings["ensemble"].p(strangeness))

    def threshold(self, member: str, alpha: float) -> float | None:
        """The score beyond which `member` alone has a p-value below `alpha`; None: whatever it scores, it has not."""
        return score_at(member, self._rings[member], alpha)

    def expected(self, context: NDArray[np.int32], starts: bool, found: int) -> tuple[list[tuple[int, float]], float]:
        """The three likeliest templates after `context` (CLOSING stands for the end), and the probability of `found`.

        By the transformer, by the 3-gram before there is one.
        """
        predicting = [member for member in self._members if isinstance(member, Ngram | Transformer)]
        p = predicting[-1].likely(context, starts)
        ids = np.concatenate(([CLOSING], self.vocabulary))
        probability = np.concatenate((p[END : END + 1], p[FIRST : FIRST + len(self.vocabulary)]))
        best = np.argsort(-probability, kind="stable")[:EXPECTED]
        at = np.flatnonzero(ids == found)
        chance = float(probability[at[0]]) if len(at) else float(p[UNSEEN])
        return [(int(ids[each]), float(probability[each])) for each in best], chance

    def standing_out(self, standing: Standing, row: int) -> list[dict[str, Any]]:
        """The features of a row beyond what is usual at the end of a session: [{name, value, usual, high}]."""
        usual = self.model.parts.get("isolation_forest", {}).get("usual")
        if usual is None:
            return []
        values = features(standing.only(np.arange(len(standing.reached)) == row))[0]
        low, middle, high = usual.T
        out = np.flatnonzero((values > high) | (values < low))
        spread = np.maximum(high - low, 1e-9)
        order = out[np.argsort(-np.abs(values - middle)[out] / spread[out], kind="stable")]
        return [
            {"name": FEATURES[i], "value": float(values[i]), "usual": float(middle[i]), "high": float(high[i])}
            for i in order.tolist()
        ]

    def knows(self, template_ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which templates have a token of their own."""
        if not len(self.vocabulary):
            return np.zeros(len(template_ids), dtype=np.bool_)
        at = np.searchsorted(self.vocabulary, template_ids)
        at = np.minimum(at, len(self.vocabulary) - 1)
        known: NDArray[np.bool_] = self.vocabulary[at] == template_ids
        return known


def p_of(member: str, ring: Ring, scores: Floats) -> Floats:
    """p-values by the ring; of a member that speaks in nats never less than exp(-score).

    Where nearly all sessions score 0 (a source that does nothing odd), anything more would be without precedent.
    """
    p = ring.p(scores)
    return np.maximum(p, np.exp(-scores)) if member in IN_NATS else p


def score_at(member: str, ring: Ring, alpha: float) -> float | None:
    """The score beyond which `p_of` is below `alpha`; None where there is none."""
    score = ring.score_at(alpha)
    return max(score, -math.log(alpha)) if score is not None and member in IN_NATS else score


def shares(families: Sequence[str]) -> Floats:
    """What each member counts for by its family: every family the same, and within one every member: float64 [k]."""
    members = Counter(families)
    return np.array([1.0 / (len(members) * members[family]) for family in families])
