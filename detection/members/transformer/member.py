"""The member `transformer`: the surprise of each next template, the session's end included (see `scoring`)."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from detection.members.fitted_member_view import Floats, Standing, View
from detection.members.member_interfaces import FitData, Part, Predictor


class Transformer(Predictor):
    name: ClassVar[str] = "transformer"
    folds: ClassVar[int] = 2
    family: ClassVar[str] = "sequence"
    early: ClassVar[bool] = False

    def __init__(self, part: Part, vocabulary: NDArray[np.int32]) -> None:
        from detection.members.transformer.scoring import SequenceModel  # torch comes with it, and is not needed before

        self.sequence = SequenceModel(part, vocabulary)

    def score(self, view: View, standing: Standing) -> Floats:
        nats = self.sequence.surprises(view.tokens, view.token_offsets, view.held, view.starts, view.ends)
        surprise = nats.astype(np.float64)
        surprise[view.muted_rows()] = 0.0
        return surprise

    def likely(self, context: NDArray[np.int32], starts: bool) -> Floats:
        """As `Predictor.likely`."""
        return self.sequence.likely(context, starts)

    @classmethod
    def fit(cls, fit_data: FitData) -> dict[str, NDArray[Any]]:
        from detection.members.transformer.fitting import (
            fit_transformer,  # training code stays out of the daemon's process
        )

        return fit_transformer(fit_data)
