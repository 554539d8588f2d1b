"""Isolation Forest scoring (Liu, Ting and Zhou, 2008) over flat arrays, without scikit-learn.

Columns of a forest with T trees of depth at most D:

    feature    int8    [T, 2^D - 1]    column compared at each inner node, nodes in heap order: the children
                                       of node i are 2i + 1 (value <= threshold) and 2i + 2
    threshold  float32 [T, 2^D - 1]    +inf below a leaf that is higher than D: everything goes left
    path       float64 [T, 2^D]        at each place of the lowest level, the path length of its leaf
    scale      float64 [1]             T times the mean path length of a tree over its sample

The trees are filled up to one depth so that a level is one step for all rows and all trees, and a child
needs no pointer. Features are compared as float32, as scikit-learn does; a threshold is rounded down to
float32, which changes no comparison with a float32.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROWS_AT_ONCE = 256  # 256 rows of 100 trees: what a level touches stays in the second-level cache


class Forest:
    """Immutable. The score of a row does not depend on other rows."""

    def __init__(self, columns: Mapping[str, NDArray[np.generic]]) -> None:
        """Raises KeyError if a column is missing, ValueError if their shapes do not match."""
        feature, threshold, path = columns["feature"], columns["threshold"], columns["path"]
        self._trees, leaves = path.shape
        self._depth = leaves.bit_length() - 1
        expected = (self._trees, leaves - 1)
        if leaves != 1 << self._depth or feature.shape != expected or threshold.shape != expected:
            raise ValueError(f"forest of shapes {feature.shape}, {threshold.shape}, {path.shape}")
        self._scale = float(columns["scale"][0])
        self._path = np.ascontiguousarray(path, dtype=np.float64).reshape(-1)
        # One table a level: place = tree * 2^level + node, so the next place is 2 * place + (0 or 1).
        levels = [slice((1 << level) - 1, (2 << level) - 1) for level in range(self._depth)]
        self._features = [feature[:, level].astype(np.intp).reshape(-1) for level in levels]
        self._thresholds = [threshold[:, level].astype(np.float32).reshape(-1) for level in levels]

    def scores(self, features: NDArray[np.float64], selected: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """The anomaly score of each row of `features` float64 [n, F]: float64 [n] in (0, 1), higher is more unusual.

        Equal to scikit-learn's `-IsolationForest.score_samples` to 1e-12. `selected` bool [n, T] are the trees to use,
        at least one for each row; by default all.
        """
        values = np.ascontiguousarray(features, dtype=np.float32)
        paths = np.empty(len(values))
        for start in range(0, len(values), _ROWS_AT_ONCE):
            some = slice(start, start + _ROWS_AT_ONCE)
            by_tree = self._path_lengths(values[some])
            if selected is None:
                paths[some] = by_tree.sum(axis=1)
            else:
                paths[some] = (by_tree * selected[some]).sum(axis=1) * (self._trees / selected[some].sum(axis=1))
        scores: NDArray[np.float64] = np.exp2(-paths / self._scale)
        return scores

    def _path_lengths(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Path lengths, float64 [n, T]."""
        n, width = values.shape
        flat: NDArray[Any] = values.reshape(-1)
        row = np.repeat(np.arange(n, dtype=np.intp) * width, self._trees)
        place = np.tile(np.arange(self._trees, dtype=np.intp), n)
        column = np.empty_like(place)
        value, threshold = np.empty(len(place), np.float32), np.empty(len(place), np.float32)
        for features, thresholds in zip(self._features, self._thresholds, strict=True):
            # mode="clip" spares take its own bounds check and buffer; every index is in bounds.
            features.take(place, out=column, mode="clip")
            column += row
            flat.take(column, out=value, mode="clip")
            thresholds.take(place, out=threshold, mode="clip")
            place += place
            place += value > threshold
        paths: NDArray[np.float64] = self._path.take(place, mode="clip").reshape(n, self._trees)
        return paths
