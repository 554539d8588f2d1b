import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from detection.members.fitted_member_view import Floats
from detection.members.registry import MEMBERS, NAMES
from detection.scoring.calibration import SMALLEST_P, CalibrationScores, alpha_for, combined_p_values
from detection.scoring.ensemble import member_shares, p_values_of_member, score_at_level

EVEN = {k: np.full(k, 1 / k) for k in range(1, 7)}


def ring(n: int, seed: int = 1) -> CalibrationScores:
    return CalibrationScores(np.sort(np.random.default_rng(seed).gamma(2.0, 1.0, n)))


def test_the_share_of_normal_scores_below_a_level_is_about_that_level() -> None:
    fresh = np.random.default_rng(2).gamma(2.0, 1.0, 200_000)
    p = ring(20_000).p(fresh)
    for level in (0.1, 0.01, 0.001):
        assert (p < level).mean() == pytest.approx(level, rel=0.35)


def test_beyond_the_largest_score_seen_p_goes_on_falling_and_never_reaches_zero() -> None:
    calibration = ring(2000)
    top = calibration.scores[-1]
    p = calibration.p(np.array([top, top + 1, top + 5, top + 50, top + 1e6]))
    assert p[0] == pytest.approx(2 / 2001)
    assert np.all(np.diff(p) <= 0) and p[1] < p[0] and p[3] < p[2]
    assert p[-1] >= SMALLEST_P


@given(st.lists(st.floats(-5, 50), min_size=1, max_size=300), st.lists(st.floats(-10, 100), min_size=2))
def test_a_stranger_score_never_has_a_larger_p(scores: list[float], asked: list[float]) -> None:
    p = CalibrationScores(np.sort(np.array(scores))).p(np.sort(np.array(asked)))
    assert np.all(np.diff(p) <= 1e-15)
    assert np.all((p > 0) & (p <= 1))


def test_an_empty_ring_calls_nothing_strange() -> None:
    assert CalibrationScores(np.zeros(0)).p(np.array([1e9])).tolist() == [1.0]


@given(st.integers(0, 400), st.sampled_from(["spread", "mostly silent", "equal"]), st.sampled_from(NAMES), st.data())
def test_a_score_beyond_the_threshold_is_below_alpha_and_one_up_to_it_is_not(
    n: int, kind: str, member: str, data: st.DataObject
) -> None:
    alpha = data.draw(st.sampled_from([1e-4, 0.001, 0.005, 0.02, 0.5]))
    drawn = np.random.default_rng(n).exponential(size=n)
    scores = {"spread": drawn, "mostly silent": np.where(drawn > 4.0, drawn, 0.0), "equal": np.ones(n)}[kind]
    calibrated = CalibrationScores(np.sort(scores))
    threshold = score_at_level(member, calibrated, alpha)
    if threshold is None:
        assert p_values_of_member(member, calibrated, np.array([1e3]))[0] >= alpha
        return
    up_to, beyond = p_values_of_member(member, calibrated, np.array([threshold - 1e-6, threshold + 1e-6]))
    assert up_to >= alpha > beyond


def test_a_member_that_speaks_in_nats_and_was_always_silent_has_a_threshold_of_nats() -> None:
    silent = CalibrationScores(np.zeros(5000))
    assert score_at_level("sources", silent, 0.001) == pytest.approx(-np.log(0.001))
    assert score_at_level("ngram", silent, 0.001) == 0.0


def test_equal_scores_are_no_tail() -> None:
    p = CalibrationScores(np.full(1000, 3.0)).p(np.array([2.0, 3.0, 4.0]))
    assert p.tolist() == [1.0, 1.0, 1 / 1001]


def test_one_sure_member_speaks_against_an_indifferent_one() -> None:
    sure, indifferent = combined_p_values(np.array([[1e-6, 1.0], [0.5, 1.0]]), EVEN[2])
    assert sure > 5.0
    assert indifferent < 1.0


def test_one_that_is_sure_weighs_its_share_of_all_that_are() -> None:
    alone, agreeing = combined_p_values(np.array([[1e-6, 1.0, 0.9], [1e-6, 1e-6, 1e-6]]), EVEN[3])
    assert alone == pytest.approx(6 - np.log10(3), abs=0.01), "a third of the weight of three"
    assert agreeing == pytest.approx(6, abs=0.01)


def test_those_that_look_at_the_same_together_count_as_much_as_one_that_looks_at_something_else() -> None:
    counts_for = dict(
        zip(
            (member.name for member in MEMBERS),
            member_shares([member.family for member in MEMBERS]).tolist(),
            strict=True,
        )
    )
    assert counts_for["values"] == counts_for["sources"] == pytest.approx(1 / 3)
    assert counts_for["ngram"] == counts_for["transformer"] == pytest.approx(1 / 12)
    assert sum(counts_for.values()) == pytest.approx(1.0)


@given(st.lists(st.floats(1e-13, 1.0), min_size=1, max_size=6), st.data())
def test_a_statistic_never_falls_when_a_p_falls(p: list[float], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(p) - 1))
    smaller = list(p)
    smaller[place] *= data.draw(st.floats(1e-6, 1.0))
    before, after = combined_p_values(np.array([p, smaller]), EVEN[len(p)])
    assert after >= before - 1e-9


def test_the_budget_sets_the_level_and_the_floor_binds_where_calibration_is_thin() -> None:
    assert alpha_for(20, 20_000, 100_000) == (0.001, False)
    assert alpha_for(20, 20_000, 1_000) == (0.005, True)
    assert alpha_for(20, 10, 100_000) == (0.002, False), "a quiet stream does not spend its budget on every session"


def tail_of(scores: Floats) -> tuple[float, float, float]:
    """Threshold, shape and scale of the tail over the 95 % quantile, by probability-weighted moments as in Hosking and
    Wallis (1987): b0 the mean of the exceedances, b1 that of each weighted by the share of those above it."""
    ascending = np.sort(scores)
    count = int(len(ascending) * 0.05)
    threshold = ascending[-count - 1]
    exceedances = ascending[-count:] - threshold
    above = np.arange(count - 1, -1, -1) / (count - 1)
    b0, b1 = exceedances.mean(), (above * exceedances).mean()
    return float(threshold), float(2 - b0 / (b0 - 2 * b1)), float(2 * b0 * b1 / (b0 - 2 * b1))


DRAWN = {
    "heavy": stats.genpareto(c=0.3, scale=2.0),
    "log-normal": stats.lognorm(s=0.8),
    "gamma": stats.gamma(a=0.7),
    "student": stats.halfcauchy(),  # heavier than any shape that is allowed
    "light": stats.uniform(),  # ends: its shape is below 0
    "exponential": stats.expon(),
}


@pytest.mark.parametrize("kind", list(DRAWN))
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_beyond_the_largest_score_p_falls_as_scipys_generalised_pareto_does(kind: str, seed: int) -> None:
    scores = np.sort(DRAWN[kind].rvs(4000, random_state=seed))
    threshold, shape, scale = tail_of(scores)
    mean = scores[-200:].mean() - threshold
    if shape <= 0.0:  # refused: an exponential tail of the same mean
        shape, scale = 0.0, mean
    elif shape > 0.5:
        shape, scale = 0.5, mean * 0.5
    tail = stats.genpareto(c=shape, loc=threshold, scale=scale)
    top = scores[-1]
    beyond = top + np.array([0.001, 0.1, 0.5, 1.0, 3.0]) * (top - threshold)
    calibrated = CalibrationScores(scores)
    np.testing.assert_allclose(
        calibrated.p(beyond), np.maximum(tail.sf(beyond) / tail.sf(top) / 4001, SMALLEST_P), rtol=1e-9
    )
    for alpha in (1e-4, 1e-5, 1e-6):
        expected = tail.isf(alpha * 4001 * tail.sf(top))
        assert calibrated.score_at(alpha) == pytest.approx(expected, rel=1e-9)


def test_the_cases_of_that_test_are_all_the_tails_there_are() -> None:
    shapes = {kind: tail_of(drawn.rvs(4000, random_state=1))[1] for kind, drawn in DRAWN.items()}
    assert 0.0 < shapes["heavy"] < 0.5 < shapes["student"]
    assert shapes["light"] < -0.5


@pytest.mark.parametrize("shape", [0.1, 0.25, 0.4])
def test_the_tail_that_is_fitted_is_about_the_one_that_scores_were_drawn_from(shape: float) -> None:
    """Where scipy's own fit, by maximum likelihood, comes out, too."""
    true = stats.genpareto(c=shape, scale=2.0)
    scores = np.sort(true.rvs(200_000, random_state=5))
    threshold = scores[-10_001]
    by_likelihood, _, scale = stats.genpareto.fit(scores[-10_000:] - threshold, floc=0.0)
    calibrated = CalibrationScores(scores)
    assert by_likelihood == pytest.approx(shape, abs=0.05)
    assert calibrated._shape == pytest.approx(by_likelihood, abs=0.05)
    assert calibrated._scale == pytest.approx(scale, rel=0.1)
    far = true.isf(1e-7)  # fifty times rarer than the rarest of these
    assert 0.2 < calibrated.p(np.array([far]))[0] / 1e-7 < 5.0


@given(st.lists(st.floats(1e-11, 0.9), min_size=1, max_size=6))
def test_members_together_are_what_scipys_cauchy_says_of_the_mean_of_their_cotangents(p: list[float]) -> None:
    together = combined_p_values(np.array([p]), EVEN[len(p)])[0]
    statistic = np.mean([stats.cauchy.isf(each) for each in p])
    assert together == pytest.approx(-np.log10(stats.cauchy.sf(statistic)), rel=1e-6, abs=1e-9)
