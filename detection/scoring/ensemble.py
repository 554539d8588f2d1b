"""A model generation at work: the members' scores, their p-values, and the p-value that combines them.

A member that raises is a `MemberError`; the ensemble continues `without` it, and the weights of families are shared by
the members that are left. The statistic was calibrated with all members, so for fewer of them its calibrated p is no
longer a p-value. Cauchy's combination is one by itself, for any members and under any dependence, approximately and
where it is small, which is where it matters. So without a member p is the larger of the two: never smaller than theory
allows, and never smaller than the calibration would give the same statistic.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from detection.members.failing_members import MemberError, blamed_on
from detection.members.fitted_member_view import CLOSING, Floats, Standing, View
from detection.members.isolation_forest.features import FEATURES, shown_features
from detection.members.member_interfaces import FittedMember, Member, Predictor
from detection.members.registry import IN_NATS, LOOKS_AT, MEMBERS, NAMES, ONLINE_NAMES
from detection.members.transformer.windows import END, FIRST, UNSEEN
from detection.models.model import Model
from detection.scoring.calibration import CalibrationScores, combined_p_values

EXPECTED = 3


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of n states of sessions: `members` float64 [n, M] p-values, nan of members that are not ready; `strangeness`
    their combined statistic, which never falls while a session goes on; `p` its p-value."""

    members: Floats
    strangeness: Floats
    p: Floats


class Ensemble:
    """The members of `model`, except those named in `out`. One that cannot be constructed from its part of the model
    raises when it is called, and at `check`."""

    def __init__(self, model: Model, out: Collection[str] = ()) -> None:
        self.model = model
        self.generation = model.generation
        self.line = model.line
        self.vocabulary = model.vocabulary
        self._calibration = {name: CalibrationScores(np.asarray(scores)) for name, scores in model.calibration.items()}
        self._combined = self._calibration["ensemble"]
        names = members_of(model)
        self._whole = not any(name in out for name in names)
        self._take_members(
            [
                _member_made_of_part(member, model)
                for member in MEMBERS
                if member.name in names and member.name not in out
            ]
        )

    def without(self, out: Collection[str]) -> "Ensemble":
        """This ensemble without some members; the others are shared, not copied."""
        fewer = copy(self)
        fewer._whole = self._whole and not any(name in out for name in self.members)
        fewer._take_members([member for member in self._members if member.name not in out])
        return fewer

    def _take_members(self, members: "Sequence[FittedMember | _OnlineInEnsemble | _UnmadeMember]") -> None:
        self._members = members
        self.members = tuple(member.name for member in members)
        self._columns = [NAMES.index(name) for name in self.members]
        self._shares = member_shares([member.family for member in members])

    def check(self) -> None:
        """Raises MemberError when a member could not be made of its part of the model."""
        for member in self._members:
            if isinstance(member, _UnmadeMember):
                member.fail()

    @property
    def calibration(self) -> int:
        """How many sessions the combined statistic was calibrated on."""
        return len(self._combined)

    def score(self, view: View) -> Standing:
        """The state of each row's session after it, with the members' scores; members that are not ready score 0."""
        standing = Standing(view, NAMES)
        for member in self._members:
            with blamed_on(member.name):
                standing.put(member.name, member.score(view, standing))
        return standing

    def judge(self, reached: Floats) -> Judgement:
        """The judgement of n states of sessions with the running maxima `reached` float64 [n, M]."""
        members = np.full(reached.shape, np.nan)
        for name, column in zip(self.members, self._columns, strict=True):
            with blamed_on(name):
                members[:, column] = p_values_of_member(name, self._calibration[name], reached[:, column])
        strangeness = combined_p_values(members[:, self._columns], self._shares)
        p = self._combined.p(strangeness)
        return Judgement(members, strangeness, p if self._whole else np.maximum(p, np.exp(-strangeness * math.log(10))))

    def threshold_of_member(self, member: str, alpha: float) -> float | None:
        """The score beyond which `member` alone has a p-value below `alpha`; None: whatever it scores, it has not."""
        with blamed_on(member):
            return score_at_level(member, self._calibration[member], alpha)

    def expected_templates(
        self, context: NDArray[np.int32], starts: bool, found: int
    ) -> tuple[list[tuple[int, float]], float | None]:
        """The three likeliest templates after `context` (CLOSING stands for the end), and the probability of `found`.

        By the last member that predicts; nothing, and None, where none does.
        """
        predicting = [member for member in self._members if isinstance(member, Predictor | _UnmadePredictor)]
        if not predicting:
            return [], None
        with blamed_on(predicting[-1].name):
            p = predicting[-1].likely(context, starts)
        ids = np.concatenate(([CLOSING], self.vocabulary))
        probability = np.concatenate((p[END : END + 1], p[FIRST : FIRST + len(self.vocabulary)]))
        best = np.argsort(-probability, kind="stable")[:EXPECTED]
        at = np.flatnonzero(ids == found)
        chance = float(probability[at[0]]) if len(at) else float(p[UNSEEN])
        return [(int(ids[each]), float(probability[each])) for each in best], chance

    def features_standing_out(self, standing: Standing, row: int) -> list[dict[str, Any]]:
        """The features of a row beyond what is usual at the end of a session: [{name, value, usual, high}]."""
        usual = self.model.parts.get("isolation_forest", {}).get("usual")
        if usual is None or "isolation_forest" not in self.members:
            return []
        with blamed_on("isolation_forest"):
            values = shown_features(standing.only(np.array([row])))[0]
        low, middle, high = usual.T
        judged = np.array([name in self.members or name not in self._calibration for name in FEATURES])
        out = np.flatnonzero(judged & ((values > high) | (values < low)))
        spread = np.maximum(high - low, 1e-9)
        order = out[np.argsort(-np.abs(values - middle)[out] / spread[out], kind="stable")]
        return [
            {"name": FEATURES[i], "value": float(values[i]), "usual": float(middle[i]), "high": float(high[i])}
            for i in order.tolist()
        ]

    def knows_templates(self, template_ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which templates have a token of their own."""
        if not len(self.vocabulary):
            return np.zeros(len(template_ids), dtype=np.bool_)
        at = np.searchsorted(self.vocabulary, template_ids)
        at = np.minimum(at, len(self.vocabulary) - 1)
        known: NDArray[np.bool_] = self.vocabulary[at] == template_ids
        return known


def members_of(model: Model) -> tuple[str, ...]:
    """The members that `model` has, in the order in which they score."""
    return tuple(name for name in NAMES if name in model.calibration)


def members_resting(out: Collection[str]) -> dict[str, str]:
    """Members that cannot judge while those in `out` do not, because they use their scores: each with the reason."""
    return {
        member: f"it judges by what {', '.join(missing)} says"
        for member, looks_at in LOOKS_AT.items()
        if member not in out and (missing := [name for name in looks_at if name in out])
    }


class _OnlineInEnsemble:
    """An online member among the fitted ones: its scores came with the lines."""

    def __init__(self, member: type[Member]) -> None:
        self.name, self.family = member.name, member.family
        self._column = ONLINE_NAMES.index(member.name)

    def score(self, view: View, standing: Standing) -> Floats:
        scores: Floats = view.online[:, self._column]
        return scores


class _UnmadeMember:
    """In place of a member that could not be constructed from its part of the model."""

    def __init__(self, member: type[Member], error: Exception) -> None:
        self.name, self.family = member.name, member.family
        self._error = error

    def fail(self) -> NoReturn:
        raise MemberError(self.name) from self._error

    def score(self, view: View, standing: Standing) -> Floats:
        self.fail()


class _UnmadePredictor(_UnmadeMember):
    def likely(self, context: NDArray[np.int32], starts: bool) -> Floats:
        self.fail()


def _member_made_of_part(member: type[Member], model: Model) -> "FittedMember | _OnlineInEnsemble | _UnmadeMember":
    if not issubclass(member, FittedMember):
        return _OnlineInEnsemble(member)
    try:
        return member(model.parts.get(member.name, {}), model.vocabulary)
    except Exception as exc:  # whatever it is, the others can judge
        return (_UnmadePredictor if issubclass(member, Predictor) else _UnmadeMember)(member, exc)


def p_values_of_member(member: str, calibration: CalibrationScores, scores: Floats) -> Floats:
    """p-values by the calibration scores; of a member whose scores are in nats never less than exp(-score).

    Where nearly all sessions score 0 (clients that do nothing unusual), any higher score would be without precedent.
    """
    p = calibration.p(scores)
    return np.maximum(p, np.exp(-scores)) if member in IN_NATS else p


def score_at_level(member: str, calibration: CalibrationScores, alpha: float) -> float | None:
    """The score beyond which `p_values_of_member` is below `alpha`; None where there is none."""
    score = calibration.score_at(alpha)
    return max(score, -math.log(alpha)) if score is not None and member in IN_NATS else score


def member_shares(families: Sequence[str]) -> Floats:
    """The weight of each member, float64 [k]: families weigh the same, and so do the members of one family."""
    members = Counter(families)
    return np.array([1.0 / (len(members) * members[family]) for family in families])
