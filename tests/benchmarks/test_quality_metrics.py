import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from benchmarks.quality.metrics import (
    ap_difference,
    ap_interval,
    average_precision,
    best_f1,
    best_order,
    f1_interval,
    found,
    interval,
    ranked,
    recall_at,
)

labelled = st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=40)


@given(labelled)
def test_average_precision_is_that_of_scikit_learn_also_with_ties_and_weights(
    rows: list[tuple[bool, int, int]],
) -> None:
    truth = np.array([each[0] for each in rows])
    strangeness = np.array([float(each[1]) for each in rows])
    weights = np.array([float(each[2]) for each in rows])
    if not (truth & (weights > 0)).any():
        assert np.isnan(average_precision(truth, strangeness, weights))
        return
    expected = average_precision_score(truth, strangeness, sample_weight=weights)
    assert average_precision(truth, strangeness, weights) == pytest.approx(expected)


def test_average_precision_of_a_perfect_order_is_one_and_of_no_order_the_share_of_what_is_to_be_found() -> None:
    truth = np.array([False] * 97 + [True] * 3)
    assert average_precision(truth, np.arange(100.0)) == 1.0
    assert average_precision(truth, np.zeros(100)) == pytest.approx(0.03)


def test_f1_counts_each_unit_once() -> None:
    truth = np.array([True, True, True, False, False])
    flagged = np.array([True, True, False, True, False])
    assert found(truth, flagged) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert found(truth, np.zeros(5, dtype=np.bool_)).f1 == 0.0


def test_the_best_order_of_groups_is_that_of_their_shares_and_no_other_order_of_them_is_better() -> None:
    truth = np.array([True, False, True, True, False, False])
    groups = ["a", "a", "b", "b", "c", "c"]
    best = average_precision(truth, best_order(groups, truth))
    assert best == pytest.approx((2 * 1.0 + 1 * 3 / 4) / 3)
    for order in itertools.permutations(range(3)):
        place = dict(zip("abc", order, strict=True))
        assert average_precision(truth, np.array([float(place[group]) for group in groups])) <= best


def test_a_difference_of_two_orders_is_that_of_their_areas_and_nothing_where_they_agree() -> None:
    chance = np.random.default_rng(2)
    truth = chance.random(300) < 0.2
    good, poor = chance.normal(size=300) + 3.0 * truth, chance.normal(size=300)
    assert ap_difference(truth, good, good) == (0.0, 0.0, 0.0)
    difference = ap_difference(truth, good, poor)
    assert difference.value == pytest.approx(average_precision(truth, good) - average_precision(truth, poor))
    assert 0.0 < difference.low < difference.value < difference.high


def test_the_best_f1_is_reached_at_a_threshold_and_never_splits_a_tie() -> None:
    truth = np.array([True, True, False, False])
    assert best_f1(truth, np.array([3.0, 2.0, 2.0, 1.0])) == pytest.approx(0.8)
    assert best_f1(truth, np.array([3.0, 2.5, 2.0, 1.0])) == 1.0


def test_a_bootstrap_holds_the_figure_and_is_the_same_for_the_same_seed() -> None:
    chance = np.random.default_rng(5)
    truth = chance.random(400) < 0.1
    strangeness = chance.normal(size=400) + 2.0 * truth
    first, again, other = (ap_interval(truth, strangeness, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first.low < first.value < first.high
    flags = f1_interval(truth, strangeness > 1.5)
    assert flags.low < flags.value < flags.high


def test_a_bootstrap_of_a_mean_is_as_wide_as_its_standard_error_says() -> None:
    values = np.random.default_rng(3).normal(size=1000)
    mean = interval(lambda weights: float((weights * values).sum() / weights.sum()), 1000)
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * values.std() / 1000**0.5, rel=0.15)


def test_recall_at_a_rate_of_false_alarms_is_not_helped_by_ties_with_harmless_ones() -> None:
    truth = np.array([False] * 10 + [True] * 4)
    strangeness = np.array([0.0] * 9 + [5.0] + [5.0, 5.0, 6.0, 7.0])
    assert recall_at(truth, strangeness, 0.05) == 0.5  # none of ten may pass: only what is beyond the strangest
    assert recall_at(truth, strangeness, 0.1) == 1.0


def test_a_smaller_p_is_stranger_and_among_equal_p_the_larger_score() -> None:
    p = np.array([0.5, 0.5, 1e-9, 0.5])
    score = np.array([1.0, 2.0, 0.0, 1.0])
    assert ranked(p, score).tolist() == [0.0, 1.0, 2.0, 0.0]
