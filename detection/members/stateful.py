"""Members that need no model: what they say of a line comes with it, they only need to be calibrated.

`values` is the character model over web parameters (`members.parameter_values`), `sources` the counters of what one
client does over time (`members.origins.counters`); both are part of the detector's state and learn with every line.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from detection.members.member import Lesson, Part
from detection.members.view import Floats, Standing, View


class Values:
    name: ClassVar[str] = "values"
    family: ClassVar[str] = "values"
    folds: ClassVar[int] = 0
    early: ClassVar[bool] = True

    def __init__(self, part: Part, vocabulary: NDArray[np.int32]) -> None:
        pass

    def scores(self, view: View, standing: Standing) -> Floats:
        return view.values

    @classmethod
    def fit(cls, lesson: Lesson) -> dict[str, NDArray[Any]]:
        return {}


class Sources(Values):
    name: ClassVar[str] = "sources"
    family: ClassVar[str] = "sources"

    def scores(self, view: View, standing: Standing) -> Floats:
        return view.sources
