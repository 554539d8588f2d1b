"""Members together, with calibration scores and templates that can be counted on one hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection.members.failing_members import MemberError
from detection.members.fitted_member_view import view_of_whole_sessions
from detection.members.registry import NAMES, ONLINE_NAMES
from detection.models.model import Model
from detection.scoring.ensemble import Ensemble, members_of, members_resting
from tests.detection.by_hand import INDIFFERENT, model_of, vectors
from tests.detection.streams import stream

COUNTS, VALUES, SOURCES = (NAMES.index(name) for name in ("counts", "values", "sources"))


def made(*, ensemble: int = 999, **rings: "np.ndarray[Any, Any]") -> Model:
    """A model of the members that have a ring here."""
    none: dict[str, int | float | str] = {}
    parts = {"counts": {"vectors": vectors([1, 2, 3])}}
    together = {"ensemble": np.full(ensemble, INDIFFERENT + 1e-9)}
    return Model(4, 1000, np.array([1, 2, 3], dtype=np.int32), parts, {}, rings | together, none)


def reached(**scores: float) -> "np.ndarray[Any, Any]":
    """What one session has come to: float64 [1, M]."""
    return np.array([[scores.get(name, 0.0) for name in NAMES]])


def test_a_p_is_the_rank_among_the_calibration_scores() -> None:
    ensemble = Ensemble(made(values=np.arange(9.0)))
    for score, p in ((0.0, 10 / 10), (0.5, 9 / 10), (7.0, 3 / 10), (8.0, 2 / 10), (8.5, 1 / 10)):
        judged = ensemble.judge(reached(values=score))
        assert judged.members[0, VALUES] == p
        assert math.isnan(judged.members[0, COUNTS]), "it has no part in this model"
        assert judged.strangeness[0] == pytest.approx(-math.log10(min(p, 0.9)))


def test_one_family_of_two_counts_half_and_what_they_come_to_has_a_p_of_its_own() -> None:
    ensemble = Ensemble(made(values=np.zeros(99), counts=np.zeros(99)))
    judged = ensemble.judge(reached(values=1.0))
    assert judged.members[0, [VALUES, COUNTS]].tolist() == [1 / 100, 1.0]
    statistic = 0.5 / math.tan(math.pi / 100) + 0.5 / math.tan(0.9 * math.pi)
    assert judged.strangeness[0] == pytest.approx(-math.log10(math.atan2(1.0, statistic) / math.pi))
    assert judged.p[0] == 1 / 1000
    assert ensemble.judge(reached()).p[0] == 1.0


def test_sources_speak_in_nats_and_are_not_surer_than_they_say() -> None:
    ensemble = Ensemble(made(sources=np.zeros(99)))
    assert ensemble.judge(reached(sources=2.0)).members[0, SOURCES] == pytest.approx(math.exp(-2.0))
    assert ensemble.judge(reached(sources=9.0)).members[0, SOURCES] == 1 / 100
    assert ensemble.threshold_of_member("sources", 0.05) == pytest.approx(-math.log(0.05))


def test_a_threshold_is_the_score_beyond_which_a_member_alone_is_below_alpha() -> None:
    ensemble = Ensemble(made(values=np.arange(9.0), counts=np.zeros(9)))
    assert ensemble.threshold_of_member("values", 0.25) == 7.0
    assert ensemble.threshold_of_member("values", 0.2) == 8.0
    assert ensemble.threshold_of_member("values", 0.05) is None, "nine scores cannot tell"
    assert ensemble.threshold_of_member("counts", 0.5) == 0.0


def test_a_session_scores_as_its_members_do_and_the_highest_so_far_stays() -> None:
    ensemble = Ensemble(made(values=np.zeros(9), counts=np.zeros(9)))
    online = np.zeros((4, len(ONLINE_NAMES)), dtype=np.float32)
    online[:, ONLINE_NAMES.index("values")] = [0.0, 3.0, 1.0, 5.0]
    data = stream([[1, 2, 3], [1]], online=online, errors=np.zeros(4, dtype=np.bool_))
    standing = ensemble.score(view_of_whole_sessions(data, len(NAMES)))
    assert standing.reached[:, VALUES].tolist() == [0.0, 3.0, 3.0, 3.0, 5.0, 5.0]
    # At the closing rows: as the reference; and one line of three, |0 + 1 + 1| of 1 + 3.
    assert standing.reached[:, COUNTS].tolist() == [0.0, 0.0, 0.0, 0.0, 0.0, 0.5]
    assert not standing.reached[:, SOURCES].any()


def test_without_a_member_the_others_share_and_p_is_no_smaller_than_theory_has_it() -> None:
    whole = Ensemble(made(values=np.zeros(99), counts=np.zeros(99)))
    fewer = whole.without({"counts"})
    assert (whole.members, fewer.members) == (("counts", "values"), ("values",))
    judged = fewer.judge(reached(values=1.0, counts=1.0))
    assert judged.strangeness[0] == pytest.approx(2.0), "-log10 of 1/100"
    assert judged.p[0] == pytest.approx(1 / 100), "and not 1/1000, as the ring of both would have it"
    assert whole.judge(reached(values=1.0)).p[0] == 1 / 1000, "the other one is as it was"


def test_a_member_that_cannot_be_made_of_its_part_fails_by_name_when_it_is_asked_and_at_the_check() -> None:
    model = made(values=np.zeros(9), counts=np.zeros(9))
    ensemble = Ensemble(replace(model, parts={}))
    data = stream([[1, 2, 3]])
    for ask in (ensemble.check, lambda: ensemble.score(view_of_whole_sessions(data, len(NAMES)))):
        with pytest.raises(MemberError) as failed:
            ask()
        assert failed.value.member == "counts"
    ensemble.without({"counts"}).check()


def test_what_it_knows_are_the_templates_of_its_vocabulary() -> None:
    ensemble = Ensemble(made(values=np.zeros(9)))
    assert ensemble.knows_templates(np.array([0, 1, 3, 4, 99], dtype=np.int32)).tolist() == [
        False,
        True,
        True,
        False,
        False,
    ]
    nothing = Ensemble(Model(1, 0, np.zeros(0, dtype=np.int32), {}, {}, {"ensemble": np.zeros(9)}, {}))
    assert nothing.knows_templates(np.array([0], dtype=np.int32)).tolist() == [False]
    assert ensemble.calibration == 999


def test_where_no_member_predicts_nothing_was_expected() -> None:
    ensemble = Ensemble(made(values=np.zeros(9)))
    assert ensemble.expected_templates(np.array([1], dtype=np.int32), True, 2) == ([], None)


def test_members_are_those_with_a_ring_and_one_that_looks_at_others_rests_without_them() -> None:
    assert members_of(model_of([1, 2, 3])) == ("counts",)
    assert members_resting({"counts"}).keys() == {"isolation_forest"}
    assert "counts" in members_resting({"counts"})["isolation_forest"]
    assert members_resting({"values"}) == {}, "the forest does not look at those"
    assert members_resting(set()) == {}
    assert members_resting({"isolation_forest", "counts"}) == {}


scores = st.lists(st.floats(0.0, 20.0), min_size=2, max_size=2)


@given(scores, scores)
def test_a_session_that_no_member_finds_less_strange_is_not_less_strange(one: list[float], more: list[float]) -> None:
    ensemble = Ensemble(made(values=np.arange(50.0) / 5, counts=np.arange(50.0) / 10))
    before = ensemble.judge(reached(values=one[0], counts=one[1]))
    after = ensemble.judge(reached(values=one[0] + more[0], counts=one[1] + more[1]))
    assert after.strangeness[0] >= before.strangeness[0] - 1e-9
    assert 0.0 < after.p[0] <= before.p[0] <= 1.0
