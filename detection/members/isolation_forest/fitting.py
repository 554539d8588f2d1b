"""Fitting the Isolation Forest with scikit-learn, and converting its trees to flat arrays."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest

from detection.columns.runs import repeat_per_row
from detection.members.fitted_member_view import view_of_whole_sessions
from detection.members.isolation_forest.features import forest_input, shown_features
from detection.members.isolation_forest.scoring import Forest
from detection.members.member_interfaces import FitData

TREES = 100
MOST_SAMPLES = 2048  # a tree; and at most a quarter of all rows, so that most trees have not seen a given session


def fit_forest(fit_data: FitData) -> dict[str, NDArray[Any]]:
    """The forest's columns (see `scoring`), `held_out` and `usual`.

    It is fitted on two rows of every session: the last one and a random one, since open sessions are scored, too.
    Without the random one every session would be unusual while it is short, and its running maximum would mean nothing.

    held_out  float64 [R]: the score of each row by the trees that did not see its session (out of bag; Breiman, 2001).
              Forests fitted on parts of the data would not do for calibration: scores of rows far from everything a
              forest was fitted on differ more between forests than the highest scores within one forest do.
    usual     float64 [F, 3]: the 5 %, 50 % and 99 % quantiles of FEATURES at the end of sessions, for explanations
    """
    assert fit_data.standing is not None
    offsets, seed = view_of_whole_sessions(fit_data.data, 0).offsets, fit_data.data.seed & 0xFFFFFFFF
    sizes = np.diff(offsets)
    anywhere = np.random.default_rng(seed).random(len(sizes)) * sizes
    found = forest_input(fit_data.standing)
    rows = np.concatenate([offsets[1:] - 1, offsets[:-1] + anywhere.astype(np.int64)])
    samples = min(MOST_SAMPLES, -(-len(rows) // 4))
    forest = IsolationForest(n_estimators=TREES, max_samples=samples, random_state=seed).fit(found[rows])
    columns = forest_columns(forest)
    unseen = np.ones((len(sizes), TREES), dtype=np.bool_)
    for tree, sampled in enumerate(forest.estimators_samples_):
        unseen[sampled % len(sizes), tree] = False
    unseen[~unseen.any(axis=1)] = True  # of very few sessions one may be in every sample
    held_out = Forest(columns).scores(found, unseen[repeat_per_row(offsets)])
    usual = np.quantile(shown_features(fit_data.standing)[offsets[1:] - 1], [0.05, 0.5, 0.99], axis=0).T
    return {**columns, "usual": np.ascontiguousarray(usual), "held_out": held_out}


def forest_columns(forest: IsolationForest) -> dict[str, NDArray[np.generic]]:
    """A fitted scikit-learn forest as the columns of `detection.members.isolation_forest.scoring`."""
    trees = [estimator.tree_ for estimator in forest.estimators_]
    depth = max(tree.max_depth for tree in trees)
    feature = np.zeros((len(trees), (1 << depth) - 1), dtype=np.int8)
    threshold = np.full(feature.shape, np.inf, dtype=np.float32)
    path = np.zeros((len(trees), 1 << depth))
    for row, tree in enumerate(trees):
        waiting = [(0, 0, 0)]  # scikit-learn's node, its level, its position in the level
        while waiting:
            node, level, place = waiting.pop()
            if tree.children_left[node] < 0:
                below = depth - level
                length = level + _mean_path_length(int(tree.n_node_samples[node]))
                path[row, place << below : (place + 1) << below] = length
                continue
            index = (1 << level) - 1 + place
            feature[row, index] = tree.feature[node]
            threshold[row, index] = _rounded_down_to_float32(float(tree.threshold[node]))
            waiting.append((int(tree.children_left[node]), level + 1, 2 * place))
            waiting.append((int(tree.children_right[node]), level + 1, 2 * place + 1))
    scale = np.array([len(trees) * _mean_path_length(int(forest.max_samples_))])
    return {"feature": feature, "threshold": threshold, "path": path, "scale": scale}


def _mean_path_length(samples: int) -> float:
    """The mean path length of an unsuccessful search among `samples` (Liu, Ting and Zhou, 2008)."""
    if samples <= 2:
        return float(samples == 2)
    return 2.0 * (math.log(samples - 1.0) + float(np.euler_gamma)) - 2.0 * (samples - 1.0) / samples


def _rounded_down_to_float32(value: float) -> np.float32:
    nearest = np.float32(value)
    return np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > value else nearest
