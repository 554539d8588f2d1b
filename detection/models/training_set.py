"""The training set: recent sessions as columns, passed to the trainer's process in a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from detection.columns.layout_upgrades import STATES
from detection.columns.state_columns import (
    Columns,
    OtherVersionError,
    State,
    Value,
    array_column,
    columns_under,
    scalar_column,
    with_prefix,
)
from detection.models.model import Model
from detection.models.model import from_columns as model_from_columns
from detection.models.model import to_columns as model_to_columns

_PER_LINE = {"tokens": np.int32, "errors": np.bool_, "times": np.float64, "online": np.float32}
_PER_SESSION = {
    "starts": np.bool_,
    "ends": np.bool_,
    "tainted": np.bool_,
    "flagged": np.bool_,
    "vouched": np.bool_,
    "fresh": np.bool_,
    "keys": np.uint64,
    "causes": np.uint64,
}


class TrainingCutoff(msgspec.Struct, frozen=True):
    """When a training set was taken: nothing later is in the model.

    seq         the last frame applied
    learned     lines to learn from until then, vouched ones included
    admissions  causes admitted until then
    """

    seq: int = 0
    learned: int = 0
    admissions: int = 0


@dataclass(frozen=True)
class ClosedSessions:
    """T lines of S sessions; session s is tokens[offsets[s]:offsets[s+1]].

    tokens      int32 [T] template ids; errors bool [T]; times float64 [T] seconds
    online      float32 [T, K]: the score of each line by each online member; `online_members` are their K names
    offsets     int64 [S+1]
    starts      bool [S]: the first line is where the session really began; ends bool [S]: it ended by silence
    tainted     bool [S]: a rule matched in it
    flagged     bool [S]: the ensemble flagged it
    vouched     bool [S]: the operator says it is normal
    fresh       bool [S]: it ended after the training set of the model in force was taken
    keys        uint64 [S]: a hash of the session's key
    causes      uint64 [S]: the cause for which it was flagged (`detection.causes`), 0 if it was not
    """

    tokens: NDArray[np.int32]
    errors: NDArray[np.bool_]
    times: NDArray[np.float64]
    online: NDArray[np.float32]
    offsets: NDArray[np.int64]
    starts: NDArray[np.bool_]
    ends: NDArray[np.bool_]
    tainted: NDArray[np.bool_]
    flagged: NDArray[np.bool_]
    vouched: NDArray[np.bool_]
    fresh: NDArray[np.bool_]
    keys: NDArray[np.uint64]
    causes: NDArray[np.uint64]
    online_members: tuple[str, ...]

    def only(self, sessions: NDArray[np.bool_]) -> Self:
        """A copy with only the marked `sessions` (bool [S])."""
        sizes = np.diff(self.offsets)
        rows = np.repeat(sessions, sizes)
        return replace(
            self,
            offsets=np.concatenate(([0], np.cumsum(sizes[sessions]))).astype(np.int64),
            **{name: getattr(self, name)[rows] for name in _PER_LINE},
            **{name: getattr(self, name)[sessions] for name in _PER_SESSION},
        )


@dataclass(frozen=True)
class TrainingSet(ClosedSessions):
    """The sessions of a training run. Here `tainted` includes sessions that the operator answered `anomaly`, which are
    never learned from, and `flagged` excludes those whose cause has become normal since.

    generation  of the model to be trained; `line` the last log line of the set; `seed` of all randomness
    full        fit every member; otherwise only those that can learn from a few thousand lines
    alpha       the level at which sessions were flagged, 0 if none could be
    templates   `TemplateTable.export()`, which goes into the model unchanged
    previous    the model in force, with which the training begins; None for the first one
    studied     the training cutoff for the model's frame; not in the columns, so the trainer does not see it
    """

    generation: int
    line: int
    seed: int
    full: bool
    alpha: float
    templates: Mapping[str, Value]
    previous: Model | None = None
    studied: TrainingCutoff = field(default_factory=TrainingCutoff)

    def to_columns(self) -> State:
        """The set as flat columns for a file. The scores of each online member are a column with its name."""
        scalars = ("generation", "line", "seed", "full", "alpha")
        per_line = [name for name in _PER_LINE if name != "online"]
        return {
            "format": STATES.newest,  # for the columns of the state that are in it
            **{name: getattr(self, name) for name in (*scalars, "offsets", *per_line, *_PER_SESSION)},
            **dict(zip(self.online_members, np.ascontiguousarray(self.online.T), strict=True)),
            **with_prefix("templates", self.templates),
            **(with_prefix("previous", model_to_columns(self.previous)) if self.previous is not None else {}),
        }


def from_columns(columns: Columns, online_members: tuple[str, ...]) -> TrainingSet:
    """The inverse of `TrainingSet.to_columns`, where `online_members` are the names of the online members.

    Raises KeyError, TypeError or ValueError if `columns` is not a training set, OtherVersionError if another version
    exported it: training sets are not upgraded, the training starts over.
    """
    if columns["format"] != STATES.newest:
        raise OtherVersionError(
            f"the training set has format {columns['format']!r}, this program trains from format {STATES.newest}; "
            "restart vigild"
        )
    lists: dict[str, Any] = {}
    per_line = {**_PER_LINE, **dict.fromkeys(online_members, _PER_LINE["online"])}
    del per_line["online"]
    for name, dtype in {**per_line, **_PER_SESSION, "offsets": np.int64}.items():
        value = array_column(columns, name)
        if value.dtype != dtype:
            raise TypeError(f"training set: {name} is not an array of {np.dtype(dtype)}")
        lists[name] = value
    offsets, lines, sessions = lists["offsets"], len(lists["tokens"]), len(lists["starts"])
    if len(offsets) != sessions + 1 or offsets[0] != 0 or offsets[-1] != lines or (np.diff(offsets) < 0).any():
        raise ValueError(f"training set: offsets do not cut {lines} lines into {sessions} sessions")
    for name, length in {**dict.fromkeys(per_line, lines), **dict.fromkeys(_PER_SESSION, sessions)}.items():
        if len(lists[name]) != length:
            raise ValueError(f"training set: {name} holds {len(lists[name])}, not {length}")
    previous = columns_under("previous", columns)
    return TrainingSet(
        generation=scalar_column(columns, "generation", int),
        line=scalar_column(columns, "line", int),
        seed=scalar_column(columns, "seed", int),
        full=scalar_column(columns, "full", bool),
        alpha=scalar_column(columns, "alpha", float),
        online=np.stack([lists.pop(name) for name in online_members], axis=1),
        **lists,
        online_members=online_members,
        templates=columns_under("templates", columns),
        previous=model_from_columns(previous) if previous else None,
    )
