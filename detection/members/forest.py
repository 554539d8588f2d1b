"""The Isolation Forest, over what the other members have come to and over a session's plain statistics.

It never sees raw counts: on those it is little better than chance, on scores it is as good as the best (measured).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from detection.forest import Forest
from detection.members.member import Lesson, Part
from detection.members.view import Floats, Standing, View

_REACHED = ("transformer", "ngram", "counts", "values", "sources")
_MEAN = ("transformer", "ngram_mean")
FEATURES = (*_REACHED, *(f"mean_{voice}" for voice in _MEAN), "log_length", "distinct", "error_share", "rate")


class IsolationForest:
    name: ClassVar[str] = "isolation_forest"
    voices: ClassVar[Mapping[str, bool]] = {"isolation_forest": False}
    folds: ClassVar[int] = 2
    family: ClassVar[str] = "sequence"
    early: ClassVar[bool] = False

    def __init__(self, part: Part, vocabulary: NDArray[np.int32]) -> None:
        self.forest = Forest(part)

    def scores(self, view: View, standing: Standing) -> tuple[Floats, ...]:
        return (self.forest.scores(features(standing)),)

    @classmethod
    def fit(cls, lesson: Lesson) -> dict[str, NDArray[Any]]:
        from detection.training.forest import fit_forest  # scikit-learn stays out of the daemon's process

        return fit_forest(lesson)


def features(standing: Standing) -> Floats:
    """float64 [R, len(FEATURES)] after each row."""
    reached = [standing.reached[:, standing.column[voice]] for voice in _REACHED]
    mean = [standing.mean[:, standing.column[voice]] for voice in _MEAN]
    plain = [standing.log_length, standing.distinct, standing.error_share, standing.rate]
    return np.stack([*reached, *mean, *plain], axis=1)
