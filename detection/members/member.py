"""The one interface of the ensemble's members."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from detection.columns.state import Columns
from detection.members.view import Floats, Standing, View
from detection.models.training_set import TrainingSet

Part = Mapping[str, NDArray[Any]]


class Progress(Protocol):
    """Told how much of a fit is done, in [0, 1], and the loss in nats a token, where there is one."""

    def __call__(self, fraction: float, loss: float | None = None) -> None: ...


def keep_nothing(state: Callable[[], Columns]) -> None:
    """Of a fit that cannot be interrupted there is nothing to keep."""


@dataclass(frozen=True)
class Lesson:
    """What a member is fitted on.

    data        sessions to learn from; vocabulary int32 [V] ascending: the templates that have a token of their own
    standing    of the rows of `data`, with what the members before this one in the registry say of sessions they
                were not fitted on (None for the first ones, which do not look at it)
    previous    this member's part of the model in force, and its vocabulary, when there is one to begin with
    lines       how many there are in all, of which a fit for calibration gets a part: it shall learn for as long as the
                fit on all of them, for a model that learned for less time is less sure, and its scores are lower
    begun       what an interrupted fit of the same lesson gave to `keep` last; going on from it gives the same bits.
                A fit that takes long calls `keep` now and then; `state` is called at once, or not at all
    """

    data: TrainingSet
    vocabulary: NDArray[np.int32]
    standing: Standing | None
    previous: tuple[Part, NDArray[np.int32]] | None
    lines: int
    progress: Progress
    begun: Columns | None = None
    keep: Callable[[Callable[[], Columns]], None] = keep_nothing


class Member(Protocol):
    """A member, ready to score with one model generation.

    name    names it, and its part of a model
    family  members that judge the same evidence are one family: together they count as much as any other family
    folds   how many fits on parts of the data the trainer makes, so that each session is scored by one that did
            not see it; 0 where there is nothing to fit; 1 where one fit consists of many on parts, and `fit` gives
            along, as `held_out` float64 [R], what those say of each row that did not see its session
    early   it can be fitted on the first few thousand lines
    """

    name: ClassVar[str]
    family: ClassVar[str]
    folds: ClassVar[int]
    early: ClassVar[bool]

    def __init__(self, part: Part, vocabulary: NDArray[np.int32]) -> None: ...

    def scores(self, view: View, standing: Standing) -> Floats:
        """How strange each row is: float64 [R], >= 0. `standing` holds the members before this one."""

    @classmethod
    def fit(cls, lesson: Lesson) -> dict[str, NDArray[Any]]:
        """The part of a new model; deterministic. Runs in the trainer's process only."""
