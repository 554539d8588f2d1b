"""The two interfaces of the ensemble's members.

A *fitted* member is fitted on sessions in the trainer's process, and scores the rows of a `View` with what came of it.
An *online* member is part of the detector's state: it scores the lines of the stream as they come and learns from them,
whether or not there is a model. What it says of a line is remembered with the line, so that a model can calibrate it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from detection.columns.state import Columns, State
from detection.members.parsed_lines import ParsedLines
from detection.members.view import Bools, Floats, Standing, View
from detection.models.training_set import TrainingSet

Part = Mapping[str, NDArray[Any]]
Read = TypeVar("Read")
Cause = Literal["shape", "value", "source"]


class Progress(Protocol):
    """Told how much of a fit is done, in [0, 1], and the loss in nats a token, where there is one."""

    def __call__(self, fraction: float, loss: float | None = None) -> None: ...


def keep_nothing(state: Callable[[], Columns]) -> None:
    """Of a fit that cannot be interrupted there is nothing to keep."""


@dataclass(frozen=True)
class FitData:
    """What a member is fitted on.

    data        sessions to learn from; vocabulary int32 [V] ascending: the templates that have a token of their own
    standing    of the rows of `data`, with what the members before this one in the registry say of sessions they
                were not fitted on (None for the first ones, which do not look at it)
    previous    this member's part of the model in force, and its vocabulary, when there is one to begin with
    lines       how many there are in all, of which a fit for calibration gets a part: it shall learn for as long as the
                fit on all of them, for a model that learned for less time is less sure, and its scores are lower
    begun       what an interrupted fit on the same data gave to `keep` last; going on from it gives the same bits.
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


class Member(ABC):
    """What the registry knows of a member of either kind.

    name          names it: in verdicts, in a model, and in the state
    family        members that judge the same evidence are one family: together they count as much as any other family
    often_silent  it scores 0 where there is nothing to judge: it is calibrated among the times it spoke
    in_nats       its scores are by themselves -ln of a probability under what is usual: no p is below exp(-score)
    cause         what an alert is about where this member is the surest: the shape of the session, the values of the
                  line, or the client that it names
    """

    name: ClassVar[str]
    family: ClassVar[str]
    often_silent: ClassVar[bool] = False
    in_nats: ClassVar[bool] = False
    cause: ClassVar[Cause] = "shape"


class FittedMember(Member):
    """A member, ready to score with one model generation.

    folds     how many fits on parts of the data the trainer makes, so that each session is scored by one that did
              not see it; 1 where one fit consists of many on parts, and `fit` gives along, as `held_out` float64 [R],
              what those say of each row that did not see its session
    early     it can be fitted on the first few thousand lines; others are fitted when the warm-up is complete
    looks_at  members before this one whose running maxima it judges by: without one of them it does not judge either
    """

    folds: ClassVar[int]
    early: ClassVar[bool]
    looks_at: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __init__(self, part: Part, vocabulary: NDArray[np.int32]) -> None:
        """Of the part of a model that `fit` gave, and the model's vocabulary."""

    @abstractmethod
    def score(self, view: View, standing: Standing) -> Floats:
        """How strange each row is: float64 [R], >= 0. `standing` holds the members before this one."""

    @classmethod
    @abstractmethod
    def fit(cls, fit_data: FitData) -> dict[str, NDArray[Any]]:
        """The part of a new model; deterministic. Runs in the trainer's process only."""


class Predictor(FittedMember):
    """A fitted member that also says what was to be expected instead. The last one in the registry is asked."""

    @abstractmethod
    def likely(self, context: NDArray[np.int32], starts: bool) -> Floats:
        """P of each token after `context` (template ids; it `starts` where the session began): float64 [FIRST + V]."""


class OnlineMember(Member, Generic[Read]):
    """A member whose knowledge is part of the state. Made without arguments it knows nothing.

    Of a frame's lines it is asked, in this order: once `read`; then `observe` of some lines after the others, and
    perhaps `explain` of those; and when all of them are judged `learn`. `score` may be asked at any time.

    by_time  what it knows hangs on the log clock. Vouched lines have a clock of their own, so they teach one of its
             own; what else a member learns from them, it learns for the stream as well
    """

    by_time: ClassVar[bool] = False

    @abstractmethod
    def __init__(self) -> None: ...

    @abstractmethod
    def read(self, lines: ParsedLines) -> Read:
        """What it needs to know of these lines. Changes nothing."""

    @abstractmethod
    def score(self, read: Read, rows: slice, clock: Floats) -> Floats:
        """How strange each of the n lines `rows` would be as the next one: float64 [n], >= 0. Changes nothing.

        `clock` float64 [n] is the log clock at each, in seconds."""

    def observe(self, read: Read, rows: slice, clock: Floats) -> Floats:
        """As `score`, of lines that do come, each after those before it: who counts what comes counts it in here.
        How the stream is cut into calls changes no bit."""
        return self.score(read, rows, clock)

    @abstractmethod
    def learn(self, read: Read, clean: Bools) -> None:
        """Learn from the lines that `clean` bool [lines] marks: no rule hit them, their sessions are not flagged."""

    @abstractmethod
    def explain(self, read: Read | None, row: int, client: bytes, clock: float | None) -> dict[str, Any]:
        """What it has to show of line number `row`, as fields of an explanation, for JSON; {} for nothing.

        `read` is None where a session ended and there is no line. `client` acts there, b"" is nobody; at `clock`, by
        default at its last line.
        """

    @property
    def evicted(self) -> int:
        """How much it has forgotten to make room."""
        return 0

    @abstractmethod
    def export(self) -> State:
        """A copy of all it knows, as plain columns."""

    @classmethod
    @abstractmethod
    def load(cls, columns: Columns) -> Self:
        """The one that `export` was asked of. Raises KeyError, TypeError or ValueError for anything else."""
