"""A toy of a fitted member: templates that the model was not fitted on."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from detection.members.fitted_member_view import Floats, Standing, View
from detection.members.member_interfaces import FitData, FittedMember, Part


class Unheard(FittedMember):
    name: ClassVar[str] = "unheard"
    family: ClassVar[str] = "unheard"
    folds: ClassVar[int] = 2
    early: ClassVar[bool] = True

    def __init__(self, part: Part, vocabulary: NDArray[np.int32]) -> None:
        self._heard = part["heard"]

    def score(self, view: View, standing: Standing) -> Floats:
        return (~np.isin(view.templates, self._heard) & (view.templates >= 0)).astype(np.float64)

    @classmethod
    def fit(cls, fit_data: FitData) -> dict[str, NDArray[Any]]:
        return {"heard": np.unique(fit_data.data.tokens)}
