"""The flat forest against scikit-learn's own."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest

from detection.members.isolation_forest.fitting import forest_columns
from detection.members.isolation_forest.scoring import Forest


def _rows(n: int, seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    columns = [
        rng.gamma(2.0, 2.0, n),
        rng.gamma(2.0, 1.0, n),
        np.log1p(rng.poisson(6, n)),
        rng.poisson(3, n).astype(float),
        np.where(rng.random(n) < 0.8, 0.0, rng.random(n)),
        rng.gamma(1.0, 1.0, n),
    ]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize(("fitted", "samples"), [(20, 20), (400, 256), (3000, 2048)])
def test_scores_equal_scikit_learns(fitted: int, samples: int) -> None:
    reference = IsolationForest(n_estimators=100, max_samples=samples, random_state=3).fit(_rows(fitted, 1))
    rows = np.concatenate([_rows(1500, 2), _rows(300, 2) * 1000.0, np.zeros((1, 6)), -_rows(20, 5)])
    scores = Forest(forest_columns(reference)).scores(rows)
    np.testing.assert_allclose(scores, -reference.score_samples(rows), rtol=0, atol=1e-12)


def test_a_value_on_a_threshold_goes_the_way_it_goes_in_scikit_learn() -> None:
    grid = np.stack([np.arange(64.0) % 8, np.arange(64.0) // 8], axis=1)
    reference = IsolationForest(n_estimators=50, max_samples=64, random_state=1).fit(grid)
    thresholds = np.unique(np.concatenate([tree.tree_.threshold for tree in reference.estimators_]))
    near = np.float32(thresholds)
    values = np.concatenate([thresholds, near, np.nextafter(near, np.float32(9)), np.nextafter(near, np.float32(-9))])
    rows = np.stack([values, values[::-1]], axis=1)
    scores = Forest(forest_columns(reference)).scores(rows)
    np.testing.assert_allclose(scores, -reference.score_samples(rows.astype(np.float32)), rtol=0, atol=1e-12)


def test_features_that_never_vary_make_a_forest_that_finds_nothing() -> None:
    reference = IsolationForest(n_estimators=10, max_samples=32, random_state=1).fit(np.ones((32, 6)))
    scores = Forest(forest_columns(reference)).scores(_rows(5, 1))
    np.testing.assert_allclose(scores, -reference.score_samples(_rows(5, 1)), rtol=0, atol=1e-12)
    assert len(np.unique(scores)) == 1


def test_a_row_has_the_same_bits_alone_and_among_others() -> None:
    forest = Forest(forest_columns(IsolationForest(max_samples=256, random_state=1).fit(_rows(800, 1))))
    rows = _rows(700, 4)
    together = forest.scores(rows)
    assert np.array_equal(np.concatenate([forest.scores(row[None]) for row in rows]), together)
    assert np.array_equal(forest.scores(rows[::-1]), together[::-1])
    assert len(forest.scores(rows[:0])) == 0


def test_columns_that_do_not_fit_together_are_refused() -> None:
    columns = forest_columns(IsolationForest(n_estimators=5, max_samples=16).fit(_rows(30, 1)))
    with pytest.raises(ValueError, match="forest of shapes"):
        Forest({**columns, "path": columns["path"][:, :-1]})
    with pytest.raises(KeyError):
        Forest({name: column for name, column in columns.items() if name != "scale"})
