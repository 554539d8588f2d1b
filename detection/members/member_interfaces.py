"""The two interfaces of the ensemble's members.

A *fitted* member is fitted on sessions in the trainer's process; in the daemon it scores the rows of a `View` with the
arrays of that fit. An *online* member is part of the detector's state: it scores the lines of the stream as they come
and learns from them, with or without a model. Its scores are stored with the lines, so that a model can calibrate it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from detection.columns.state_columns import Columns, State
from detection.members.fitted_member_view import Bools, Floats, Standing, View
from detection.members.parsed_lines import ParsedLines
from detection.models.training_set import TrainingSet

Part = Mapping[str, NDArray[Any]]
Read = TypeVar("Read")
Cause = Literal["shape", "value", "source"]


class FitProgress(Protocol):
    """Reports the fraction of a fit that is done, in [0, 1], and the loss in nats a token, where there is one."""

    def __call__(self, fraction: float, loss: float | None = None) -> None: ...


def keep_nothing(state: Callable[[], Columns]) -> None:
    """The default of `FitData.keep`: partial results are discarded."""


@dataclass(frozen=True)
class FitData:
    """What a member is fitted on.

    data        sessions to learn from
    vocabulary  int32 [V] ascending: the templates that have a token of their own
    standing    of the rows of `data`, with the cross-fitted scores of the members before this one in the registry; None
                for members that do not look at others
    previous    this member's part of the model in force and the vocabulary of that model; None if there is none
    lines       of the whole training set. A fit for calibration gets a part of it, and takes as many steps as the fit
                on all of it: a model that was trained for fewer steps is less confident, and its scores are lower
    progress    to be called now and then by a long fit
    begun       the partial result that an interrupted fit on the same data passed to `keep` last; resuming from it
                gives the same bits
    keep        to be called now and then by a long fit, with a function that returns its partial result; that function
                is called at once or not at all
    """

    data: TrainingSet
    vocabulary: NDArray[np.int32]
    standing: Standing | None
    previous: tuple[Part, NDArray[np.int32]] | None
    lines: int
    progress: FitProgress
    begun: Columns | None = None
    keep: Callable[[Callable[[], Columns]], None] = keep_nothing


class Member(ABC):
    """What the registry knows of a member of either kind.

    name          its name in verdicts, models and states
    family        members that judge the same evidence are one family; every family has the same weight
    often_silent  it scores 0 where there is nothing to judge; its calibration scores are only those above 0
    in_nats       its scores are -ln of a probability of normal behaviour; its p-value is never below exp(-score)
    cause         what an alert is about if this member has the lowest p-value: the shape of the session, the values in
                  the line, or the client that the line names
    """

    name: ClassVar[str]
    family: ClassVar[str]
    often_silent: ClassVar[bool] = False
    in_nats: ClassVar[bool] = False
    cause: ClassVar[Cause] = "shape"


class FittedMember(Member):
    """A member, ready to score with one model generation.

    folds     the number of cross-fits: each session is scored by a fit that did not see it. 1 if one fit consists of
              many on parts of the data; `fit` then also returns `held_out` float64 [R], the scores of each row by those
              that did not see its session
    early     it can be fitted on the first few thousand lines; the others are fitted when the warm-up is complete
    looks_at  members before this one whose running maxima are its input; without one of them it does not judge either
    """

    folds: ClassVar[int]
    early: ClassVar[bool]
    looks_at: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __init__(self, part: Part, vocabulary: NDArray[np.int32]) -> None:
        """From the arrays that `fit` returned, and the model's vocabulary int32 [V]."""

    @abstractmethod
    def score(self, view: View, standing: Standing) -> Floats:
        """How unusual each row is: float64 [R], >= 0. `standing` has the scores of the members before this one."""

    @classmethod
    @abstractmethod
    def fit(cls, fit_data: FitData) -> dict[str, NDArray[Any]]:
        """This member's arrays of a new model; deterministic. Runs in the trainer's process only."""


class Predictor(FittedMember):
    """A fitted member that also predicts the next template. Explanations use the last one in the registry."""

    @abstractmethod
    def likely(self, context: NDArray[np.int32], starts: bool) -> Floats:
        """The probability of each token after `context` (template ids int32 [n]): float64 [FIRST + V].

        `starts`: the context begins where the session began.
        """


class OnlineMember(Member, Generic[Read]):
    """A member whose knowledge is part of the state. Constructed without arguments it knows nothing.

    For the lines of a frame its methods are called in this order: `read` once; `observe` for one slice of lines after
    another, each perhaps followed by `explain`; `learn` once all lines are judged. `score` may be called at any time.

    by_time  its knowledge depends on the log clock. Vouched lines have a clock of their own, and an instance of their
             own learns from them; a member that is not `by_time` learns from them for the stream, too
    """

    by_time: ClassVar[bool] = False

    @abstractmethod
    def __init__(self) -> None: ...

    @abstractmethod
    def read(self, lines: ParsedLines) -> Read:
        """What it needs of these lines, for the other methods. Changes nothing."""

    @abstractmethod
    def score(self, read: Read, rows: slice, clock: Floats) -> Floats:
        """How unusual each of the n lines `rows` would be as the next line: float64 [n], >= 0. Changes nothing.

        `clock` float64 [n] is the log clock at each, in seconds.
        """

    def observe(self, read: Read, rows: slice, clock: Floats) -> Floats:
        """Score lines of the stream, each after those before it, and count them if the member counts lines.

        Arguments and result are those of `score`. The result does not depend on how the stream is cut into calls.
        """
        return self.score(read, rows, clock)

    @abstractmethod
    def learn(self, read: Read, clean: Bools) -> None:
        """Learn from the lines that `clean` (bool [lines]) marks: no rule hit them, and their sessions are not
        flagged."""

    @abstractmethod
    def explain(self, read: Read | None, row: int, client: bytes, clock: float | None) -> dict[str, Any]:
        """Its fields of the explanation of line number `row`, JSON-ready; {} if it has nothing to show.

        `read` is None at the end of a session, where there is no line. `client` is the client of the line or session,
        b"" for none, at the time `clock` in seconds, by default that of its last line.
        """

    @property
    def evicted(self) -> int:
        """The number of entries that it has evicted."""
        return 0

    @abstractmethod
    def export(self) -> State:
        """A copy of all it knows, as plain columns."""

    @classmethod
    @abstractmethod
    def load(cls, columns: Columns) -> Self:
        """The inverse of `export`. Raises KeyError, TypeError or ValueError if `columns` is not an export."""
