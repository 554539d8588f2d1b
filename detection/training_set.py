"""What a training run learns from: recent sessions as columns, handed to the trainer's process in a file."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.state import Columns, State, Value, joined, part

_ARRAYS = {
    "tokens": np.int32,
    "errors": np.bool_,
    "times": np.float64,
    "offsets": np.int64,
    "starts": np.bool_,
    "ends": np.bool_,
    "tainted": np.bool_,
}


@dataclass(frozen=True)
class TrainingSet:
    """T lines of S sessions; session s is tokens[offsets[s]:offsets[s+1]].

    generation  the one the model will have; `line` the last log line of the set; `seed` of all randomness
    tokens      int32 [T] template ids; errors bool [T]; times float64 [T] seconds
    offsets     int64 [S+1]
    starts      bool [S]: begins where the session truly began; ends: the session ended there
    tainted     bool [S]: a rule matched in it, never learned from
    templates   `TemplateTable.export()`, passed through into the model
    """

    generation: int
    line: int
    seed: int
    tokens: NDArray[np.int32]
    errors: NDArray[np.bool_]
    times: NDArray[np.float64]
    offsets: NDArray[np.int64]
    starts: NDArray[np.bool_]
    ends: NDArray[np.bool_]
    tainted: NDArray[np.bool_]
    templates: Mapping[str, Value]

    def only(self, sessions: NDArray[np.bool_]) -> "TrainingSet":
        """The same set with none but the marked sessions (bool [S])."""
        sizes = np.diff(self.offsets)
        rows = np.repeat(sessions, sizes)
        return TrainingSet(
            generation=self.generation,
            line=self.line,
            seed=self.seed,
            tokens=self.tokens[rows],
            errors=self.errors[rows],
            times=self.times[rows],
            offsets=np.concatenate(([0], np.cumsum(sizes[sessions]))).astype(np.int64),
            starts=self.starts[sessions],
            ends=self.ends[sessions],
            tainted=self.tainted[sessions],
            templates=self.templates,
        )

    def to_columns(self) -> State:
        """The set as flat columns for a file."""
        return {
            "generation": self.generation,
            "line": self.line,
            "seed": self.seed,
            **{name: getattr(self, name) for name in _ARRAYS},
            **joined("templates", self.templates),
        }


def from_columns(columns: Columns) -> TrainingSet:
    """Raises KeyError, TypeError or ValueError when `columns` is not what `TrainingSet.to_columns` gave."""
    arrays = {}
    for name, dtype in _ARRAYS.items():
        value = columns[name]
        if not isinstance(value, np.ndarray) or value.dtype != dtype:
            raise TypeError(f"training set: {name} is not an array of {np.dtype(dtype)}")
        arrays[name] = value
    scalars = {name: columns[name] for name in ("generation", "line", "seed")}
    if not all(isinstance(value, int) for value in scalars.values()):
        raise TypeError("training set: generation, line and seed are integers")
    offsets, lines, sessions = arrays["offsets"], len(arrays["tokens"]), len(arrays["starts"])
    if len(offsets) != sessions + 1 or offsets[0] != 0 or offsets[-1] != lines or (np.diff(offsets) < 0).any():
        raise ValueError(f"training set: offsets do not cut {lines} lines into {sessions} sessions")
    if any(len(arrays[name]) != lines for name in ("errors", "times")):
        raise ValueError(f"training set: errors and times are not {lines} each")
    if any(len(arrays[name]) != sessions for name in ("ends", "tainted")):
        raise ValueError(f"training set: ends and tainted are not {sessions} each")
    return TrainingSet(**scalars, **arrays, templates=part("templates", columns))  # type: ignore[arg-type]
