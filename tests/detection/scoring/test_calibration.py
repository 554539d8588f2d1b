import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection.members.registry import MEMBERS, NAMES
from detection.scoring.calibration import SMALLEST_P, Ring, alpha_for, combined
from detection.scoring.ensemble import p_of, score_at, shares

EVEN = {k: np.full(k, 1 / k) for k in range(1, 7)}


def ring(n: int, seed: int = 1) -> Ring:
    return Ring(np.sort(np.random.default_rng(seed).gamma(2.0, 1.0, n)))


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
    p = Ring(np.sort(np.array(scores))).p(np.sort(np.array(asked)))
    assert np.all(np.diff(p) <= 1e-15)
    assert np.all((p > 0) & (p <= 1))


def test_an_empty_ring_calls_nothing_strange() -> None:
    assert Ring(np.zeros(0)).p(np.array([1e9])).tolist() == [1.0]


@given(st.integers(0, 400), st.sampled_from(["spread", "mostly silent", "equal"]), st.sampled_from(NAMES), st.data())
def test_a_score_beyond_the_threshold_is_below_alpha_and_one_up_to_it_is_not(
    n: int, kind: str, member: str, data: st.DataObject
) -> None:
    alpha = data.draw(st.sampled_from([1e-4, 0.001, 0.005, 0.02, 0.5]))
    drawn = np.random.default_rng(n).exponential(size=n)
    scores = {"spread": drawn, "mostly silent": np.where(drawn > 4.0, drawn, 0.0), "equal": np.ones(n)}[kind]
    calibrated = Ring(np.sort(scores))
    threshold = score_at(member, calibrated, alpha)
    if threshold is None:
        assert p_of(member, calibrated, np.array([1e3]))[0] >= alpha
        return
    up_to, beyond = p_of(member, calibrated, np.array([threshold - 1e-6, threshold + 1e-6]))
    assert up_to >= alpha > beyond


def test_a_member_that_speaks_in_nats_and_was_always_silent_has_a_threshold_of_nats() -> None:
    silent = Ring(np.zeros(5000))
    assert score_at("sources", silent, 0.001) == pytest.approx(-np.log(0.001))
    assert score_at("ngram", silent, 0.001) == 0.0


def test_equal_scores_are_no_tail() -> None:
    p = Ring(np.full(1000, 3.0)).p(np.array([2.0, 3.0, 4.0]))
    assert p.tolist() == [1.0, 1.0, 1 / 1001]


def test_one_sure_member_speaks_against_an_indifferent_one() -> None:
    sure, indifferent = combined(np.array([[1e-6, 1.0], [0.5, 1.0]]), EVEN[2])
    assert sure > 5.0
    assert indifferent < 1.0


def test_one_that_is_sure_weighs_its_share_of_all_that_are() -> None:
    alone, agreeing = combined(np.array([[1e-6, 1.0, 0.9], [1e-6, 1e-6, 1e-6]]), EVEN[3])
    assert alone == pytest.approx(6 - np.log10(3), abs=0.01), "a third of the weight of three"
    assert agreeing == pytest.approx(6, abs=0.01)


def test_those_that_look_at_the_same_together_count_as_much_as_one_that_looks_at_something_else() -> None:
    counts_for = dict(
        zip((member.name for member in MEMBERS), shares([member.family for member in MEMBERS]).tolist(), strict=True)
    )
    assert counts_for["values"] == counts_for["sources"] == pytest.approx(1 / 3)
    assert counts_for["ngram"] == counts_for["transformer"] == pytest.approx(1 / 12)
    assert sum(counts_for.values()) == pytest.approx(1.0)


@given(st.lists(st.floats(1e-13, 1.0), min_size=1, max_size=6), st.data())
def test_a_statistic_never_falls_when_a_p_falls(p: list[float], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(p) - 1))
    smaller = list(p)
    smaller[place] *= data.draw(st.floats(1e-6, 1.0))
    before, after = combined(np.array([p, smaller]), EVEN[len(p)])
    assert after >= before - 1e-9


def test_the_budget_sets_the_level_and_the_floor_binds_where_calibration_is_thin() -> None:
    assert alpha_for(20, 20_000, 100_000) == (0.001, False)
    assert alpha_for(20, 20_000, 1_000) == (0.005, True)
    assert alpha_for(20, 10, 100_000) == (0.002, False), "a quiet stream does not spend its budget on every session"
