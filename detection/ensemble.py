"""A model generation at work: the members' scores, their p-values, and the one p they come to."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.calibration import Ring, combined
from detection.forest import Forest
from detection.model import Model
from detection.transformer import SequenceModel

MEMBERS = ("transformer", "isolation_forest")


@dataclass(frozen=True, slots=True)
class Judgement:
    """p-values of n states of sessions: `members` by name and combined, float64 [n]."""

    members: dict[str, NDArray[np.float64]]
    p: NDArray[np.float64]


class Ensemble:
    """`worst` is a session's largest surprise so far (transformer), `oddity` its largest forest score."""

    def __init__(self, model: Model) -> None:
        self.generation = model.generation
        self.line = model.line
        self.vocabulary = model.vocabulary
        self.sequence = SequenceModel(model)
        self.forest = Forest(model.forest)
        self._rings = {name: Ring(np.asarray(model.rings[name])) for name in (*MEMBERS, "ensemble")}

    @property
    def calibration(self) -> int:
        """How many sessions the combined statistic was calibrated on."""
        return len(self._rings["ensemble"])

    def judge(self, worst: NDArray[np.float64], oddity: NDArray[np.float64]) -> Judgement:
        scores = {"transformer": worst, "isolation_forest": oddity}
        members = {name: self._rings[name].p(scores[name]) for name in MEMBERS}
        statistic = combined(np.stack([members[name] for name in MEMBERS], axis=1))
        return Judgement(members, self._rings["ensemble"].p(statistic))

    def threshold(self, member: str, alpha: float) -> float:
        """The score at which `member` alone would have a p-value of `alpha`."""
        return self._rings[member].score_at(alpha)

    def knows(self, template_ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which templates the transformer was trained on."""
        if not len(self.vocabulary):
            return np.zeros(len(template_ids), dtype=np.bool_)
        at = np.searchsorted(self.vocabulary, template_ids)
        at = np.minimum(at, len(self.vocabulary) - 1)
        known: NDArray[np.bool_] = self.vocabulary[at] == template_ids
        return known
