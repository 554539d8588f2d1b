"""A model generation: everything one training run produced, as immutable arrays.

It holds no objects of torch or scikit-learn: each member's part is numpy arrays, which persistence can write, a hash
can identify, and scoring can be rebuilt from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.columns.layout_upgrades import MODELS
from detection.columns.state_columns import (
    State,
    Value,
    array_column,
    array_columns,
    columns_under,
    scalar_columns,
    with_prefix,
)

UNFITTED = "unfitted"  # prefix in `meta`: why a member could not be fitted, by its name


@dataclass(frozen=True)
class Model:
    """`generation` counts from 1; `line` is the last log line when its training set was taken.

    vocabulary   int32 [V], ascending: the template ids that have a token of their own; token = FIRST + index
    parts        the arrays that `FittedMember.fit` returned, by member name; and "anchor": sessions that a later
                 generation must not judge worse than this one does (`detection.learning.promotion`)
    templates    `TemplateTable.export()` at training time: a model without its state can still be used
    calibration  calibration scores by member name, float64 [n] ascending: the maxima of clean sessions by a fit that
                 had not seen them; and "ensemble" for the combined statistic. A member without any is not part of this
                 generation
    meta         scalars: seed, torch version, threads, epochs, losses, sessions, seconds...
    """

    generation: int
    line: int
    vocabulary: NDArray[np.int32]
    parts: Mapping[str, Mapping[str, NDArray[Any]]]
    templates: Mapping[str, Value]
    calibration: Mapping[str, NDArray[np.float64]]
    meta: Mapping[str, int | float | str]

    @property
    def complete(self) -> bool:
        """Whether it has the members that learn from the whole warm-up (even if they have been withdrawn since)."""
        return "transformer" in self.calibration

    @property
    def unfitted(self) -> dict[str, str]:
        """The members that this generation lacks because they could not be fitted, each with the reason."""
        return {name: str(why) for name, why in columns_under(UNFITTED, self.meta).items()}


def to_columns(model: Model) -> State:
    """`model` as flat columns for a model file."""
    return {
        "format": MODELS.newest,
        "generation": model.generation,
        "line": model.line,
        "vocabulary": model.vocabulary,
        **with_prefix(
            "parts", {f"{name}/{column}": array for name, each in model.parts.items() for column, array in each.items()}
        ),
        **with_prefix("templates", model.templates),
        **with_prefix("rings", model.calibration),
        **with_prefix("meta", model.meta),
    }


def from_columns(columns: Mapping[str, Value]) -> Model:
    """The inverse of `to_columns`, also for columns of older versions of the program.

    Raises KeyError or TypeError if `columns` is not a model, NewerVersionError and OtherVersionError as
    `Versions.upgraded` does.
    """
    generation, line = columns["generation"], columns["line"]
    if not isinstance(generation, int) or not isinstance(line, int):
        raise TypeError("a model's generation and line are integers")
    columns = MODELS.upgraded(columns)
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    for name, values in array_columns(columns_under("parts", columns)).items():
        member, _, column = name.partition("/")
        parts.setdefault(member, {})[column] = values
    return Model(
        generation=generation,
        line=line,
        vocabulary=array_column(columns, "vocabulary"),
        parts=parts,
        templates=columns_under("templates", columns),
        calibration=array_columns(columns_under("rings", columns)),
        meta=scalar_columns(columns_under("meta", columns)),
    )
