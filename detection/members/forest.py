"""The Isolation Forest, over what other members have come to.

It sees what those members have come to that judge the order of a session; neither raw counts, on which it is little
better than chance, nor a session's length, rate and share of errors: those drift (measured, PR-AUC of all members
together on raw HDFS without and with them: .745 and .732 after an unlabelled warm-up, .855 and .841 after a clean one).
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from detection.forest import Forest
from detection.members.member import Lesson, Part
from detection.members.view import Floats, Standing, View

_JUDGED = ("transformer", "ngram", "counts")
_REACHED = (*_JUDGED, "values", "sources")
FEATURES = (*_REACHED, "log_length", "distinct", "error_share", "rate")


class IsolationForest:
    name: ClassVar[str] = "isolation_forest"
    folds: ClassVar[int] = 1
    family: ClassVar[str] = "sequence"
    early: ClassVar[bool] = False

    def __init__(self, part: Part, vocabulary: NDArray[np.int32]) -> None:
        self.forest = Forest(part)

    def scores(self, view: View, standing: Standing) -> Floats:
        return self.forest.scores(judged(standing))

    @classmethod
    def fit(cls, lesson: Lesson) -> dict[str, NDArray[Any]]:
        from detection.training.forest import fit_forest  # scikit-learn stays out of the daemon's process

        return fit_forest(lesson)


def judged(standing: Standing) -> Floats:
    """What the forest sees of each row: float64 [R, 3]."""
    return np.stack([standing.reached[:, standing.column[name]] for name in _JUDGED], axis=1)


def features(standing: Standing) -> Floats:
    """What can stand out in a row, for explanations: float64 [R, len(FEATURES)]."""
    reached = [standing.reached[:, standing.column[name]] for name in _REACHED]
    plain = [standing.log_length, standing.distinct, standing.error_share, standing.rate]
    return np.stack([*reached, *plain], axis=1)
