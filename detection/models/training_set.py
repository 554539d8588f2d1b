"""What a training run learns from: recent sessions as columns, handed to the trainer's process in a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from detection.columns.state import Columns, OtherVersionError, State, Value, array, joined, part, scalar
from detection.columns.upgrades import STATES
from detection.frames import TrainingCutoff
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


@dataclass(frozen=True)
class ClosedSessions:
    """T lines of S sessions; session s is tokens[offsets[s]:offsets[s+1]].

    tokens      int32 [T] template ids; errors bool [T]; times float64 [T] seconds
    online      float32 [T, K]: what each online member said of each line; `online_members` are their K names
    offsets     int64 [S+1]
    starts      bool [S]: begins where the session truly began; ends: the session ended there
    tainted     bool [S]: a rule matched in it
    flagged     bool [S]: the members found it strange
    vouched     bool [S]: the operator says it is normal
    fresh       bool [S]: it ended after the model in force was made
    keys        uint64 [S]: a hash of the session's key; causes uint64 [S]: what it was flagged for (`causes`), 0: it
                was not
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
        """The same without sessions that are not marked (bool [S])."""
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
    """Sessions to learn from: `tainted` are also those that the operator called an anomaly, which are never learned
    from; `flagged` are not those that somebody has called normal since.

    generation  the one the model will have; `line` the last log line of the set; `seed` of all randomness
    full        fit every member; else only those that learn from a few thousand lines
    alpha       the level at which sessions were flagged, 0 when none could be
    templates   `TemplateTable.export()`, passed through into the model
    previous    the model in force, to go on from; None at the first time
    studied     for the frame of the model, when it is there; the trainer is not told
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
        """The set as flat columns for a file, where each online member has a column of its name."""
        scalars = ("generation", "line", "seed", "full", "alpha")
        per_line = [name for name in _PER_LINE if name != "online"]
        return {
            "format": STATES.newest,  # for the columns of the state that are in it
            **{name: getattr(self, name) for name in (*scalars, "offsets", *per_line, *_PER_SESSION)},
            **dict(zip(self.online_members, np.ascontiguousarray(self.online.T), strict=True)),
            **joined("templates", self.templates),
            **(joined("previous", model_to_columns(self.previous)) if self.previous is not None else {}),
        }


def from_columns(columns: Columns, online_members: tuple[str, ...]) -> TrainingSet:
    """The set that `TrainingSet.to_columns` was asked of, where these are the online members.

    Raises KeyError, TypeError or ValueError when `columns` is nothing of the kind, and OtherVersionError when another
    version exported it: a training begins anew then, its set is not brought along.
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
        value = array(columns, name)
        if value.dtype != dtype:
            raise TypeError(f"training set: {name} is not an array of {np.dtype(dtype)}")
        lists[name] = value
    offsets, lines, sessions = lists["offsets"], len(lists["tokens"]), len(lists["starts"])
    if len(offsets) != sessions + 1 or offsets[0] != 0 or offsets[-1] != lines or (np.diff(offsets) < 0).any():
        raise ValueError(f"training set: offsets do not cut {lines} lines into {sessions} sessions")
    for name, length in {**dict.fromkeys(per_line, lines), **dict.fromkeys(_PER_SESSION, sessions)}.items():
        if len(lists[name]) != length:
            raise ValueError(f"training set: {name} holds {len(lists[name])}, not {length}")
    previous = part("previous", columns)
    return TrainingSet(
        generation=scalar(columns, "generation", int),
        line=scalar(columns, "line", int),
        seed=scalar(columns, "seed", int),
        full=scalar(columns, "full", bool),
        alpha=scalar(columns, "alpha", float),
        online=np.stack([lists.pop(name) for name in online_members], axis=1),
        **lists,
        online_members=online_members,
        templates=part("templates", columns),
        previous=model_from_columns(previous) if previous else None,
    )
