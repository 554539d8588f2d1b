"""A model generation: everything one training run produced, as immutable arrays.

It holds no torch and no scikit-learn object: the transformer's weights and the forest's trees are numpy
arrays, so that persistence can write them, a hash can name them, and scoring can be rebuilt from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.state import State, Value, joined, part


@dataclass(frozen=True)
class Model:
    """`generation` counts from 1. `line` is the last log line that was in the training buffer.

    vocabulary   int32 [V], ascending: the template ids the transformer knows; token = _FIRST + index
    weights      float32 arrays by the transformer's parameter names
    forest       the Isolation Forest as flat arrays (see `detection.forest`)
    templates    `TemplateTable.export()` at training time: a model without its state can still be used
    rings        float64 [n] ascending: scores of held-out clean sessions at their maximum, by member name
                 ("transformer", "isolation_forest") and "ensemble" for the combined statistic
    meta         scalars: seed, torch version, threads, epochs, losses, sessions, seconds...
    """

    generation: int
    line: int
    vocabulary: NDArray[np.int32]
    weights: Mapping[str, NDArray[np.float32]]
    forest: Mapping[str, NDArray[np.generic]]
    templates: Mapping[str, Value]
    rings: Mapping[str, NDArray[np.float64]]
    meta: Mapping[str, int | float | str]


def to_columns(model: Model) -> State:
    """`model` as flat columns for a model file."""
    return {
        "generation": model.generation,
        "line": model.line,
        "vocabulary": model.vocabulary,
        **joined("weights", model.weights),
        **joined("forest", model.forest),
        **joined("templates", model.templates),
        **joined("rings", model.rings),
        **joined("meta", model.meta),
    }


def from_columns(columns: Mapping[str, Value]) -> Model:
    """Raises KeyError or TypeError when `columns` is not what `to_columns` gave."""
    generation, line = columns["generation"], columns["line"]
    if not isinstance(generation, int) or not isinstance(line, int):
        raise TypeError("a model's generation and line are integers")
    return Model(
        generation=generation,
        line=line,
        vocabulary=columns["vocabulary"],  # type: ignore[arg-type]
        weights=part("weights", columns),  # type: ignore[arg-type]
        forest=part("forest", columns),  # type: ignore[arg-type]
        templates=part("templates", columns),
        rings=part("rings", columns),  # type: ignore[arg-type]
        meta=part("meta", columns),  # type: ignore[arg-type]
    )
