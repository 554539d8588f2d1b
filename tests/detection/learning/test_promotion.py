"""When a new model is refused, and how far a promotion may move a threshold."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection.learning import promotion
from detection.learning import training_run as run
from detection.learning.promotion import (
    ANCHOR_LINES,
    ANCHOR_SESSIONS,
    LARGEST_MOVE,
    RefusedError,
    anchor_of,
    bounded_calibration_scores,
    refuse_worse,
)
from detection.members.fitted_member_view import Floats, Standing, View, view_of_whole_sessions
from detection.members.registry import NAMES
from detection.members.transformer import network
from detection.members.transformer.member import Transformer
from detection.members.transformer.windows import FIRST
from detection.models.model import Model
from tests.detection.streams import habits, quietly, stream, trained

ALL = np.ones(60, np.bool_)


def seen(sessions: list[list[int]]) -> View:
    return view_of_whole_sessions(stream(sessions), len(NAMES))


def surprises(model: Model, view: View) -> Floats:
    return Transformer(model.parts["transformer"], model.vocabulary).score(view, Standing(view, NAMES))


def without_anchor(model: Model) -> Model:
    return replace(model, parts={name: part for name, part in model.parts.items() if name != "anchor"})


def untrained(model: Model) -> Model:
    """The same vocabulary, and weights that learned nothing."""
    weights = network.initial_weights(FIRST + len(model.vocabulary), seed=3)
    return replace(model, parts={**model.parts, "transformer": {name: t.numpy() for name, t in weights.items()}})


def test_a_challenger_that_is_worse_at_new_sessions_is_refused_and_one_as_good_is_not(habitual: Model) -> None:
    champion, view = without_anchor(habitual), seen(habits(60, 5))
    theirs = surprises(champion, view)
    refuse_worse(champion, champion, view, theirs * 1.005, ALL)
    with pytest.raises(RefusedError, match=r"at new sessions it is worse: \d+\.\d+ nats each, the model in force"):
        refuse_worse(champion, champion, view, theirs * 1.05, ALL)


def test_sessions_that_the_champion_learned_from_do_not_count(habitual: Model) -> None:
    champion, view = without_anchor(habitual), seen(habits(60, 5))
    theirs = surprises(champion, view)
    old = np.arange(60) < 30
    worse_at_old = np.where(np.repeat(old, np.diff(view.offsets)), theirs * 9, theirs)
    refuse_worse(champion, champion, view, worse_at_old, ~old)
    refuse_worse(champion, champion, view, theirs * 9, ~ALL)
    with pytest.raises(RefusedError):
        refuse_worse(champion, champion, view, worse_at_old, old)


def test_templates_that_the_champion_does_not_know_do_not_count(
    habitual: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are one to it, and so no great surprise; telling them apart must not look worse."""
    champion, view = without_anchor(habitual), seen([[1, 70 + number % 9, 4] for number in range(60)])
    mine = np.where(view.templates >= 70, 9.0, surprises(champion, view))
    refuse_worse(champion, champion, view, mine, ALL)
    monkeypatch.setattr(promotion, "_rows_known_to_model", lambda model, view: np.ones(len(view), np.bool_))
    with pytest.raises(RefusedError):
        refuse_worse(champion, champion, view, mine, ALL)


def test_one_that_learned_what_is_rare_is_not_worse_for_what_it_costs_at_what_is_common(
    habitual: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion, view = without_anchor(habitual), seen([[1, 2, 3, 4]] * 56 + [[1, 4], [4, 1], [3, 3, 3], [2, 1, 2]])
    theirs = surprises(champion, view)
    common = np.repeat(np.arange(60) < 56, np.diff(view.offsets))
    mine = np.where(common, theirs + 0.2, theirs * 0.5)
    refuse_worse(champion, champion, view, mine, ALL)
    monkeypatch.setattr(promotion, "_weights_of_sessions", lambda view, chosen: chosen.astype(float))
    with pytest.raises(RefusedError):
        refuse_worse(champion, champion, view, mine, ALL)


def test_what_a_deploy_takes_from_what_was_there_before_is_no_fault_of_the_challenger(
    habitual: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the sessions begin with a template that is new: the openings that were there have half as much left."""
    champion, old = without_anchor(habitual), habits(30, 5)
    view = seen(old + [[70, *session[1:]] for session in old])
    opening = np.zeros(len(view), np.bool_)
    opening[view.offsets[:-1]] = True
    theirs = surprises(champion, view)
    refuse_worse(champion, champion, view, theirs + np.log(2) * opening, ALL)
    with pytest.raises(RefusedError):
        refuse_worse(champion, champion, view, theirs + np.log(6) * opening, ALL)
    monkeypatch.setattr(promotion, "LARGEST_SHARE_MOVED", 0.0)
    with pytest.raises(RefusedError):
        refuse_worse(champion, champion, view, theirs + np.log(2) * opening, ALL)


def test_one_that_forgot_what_was_normal_at_first_is_refused_however_good_it_is_now(habitual: Model) -> None:
    view = seen(habits(60, 5))
    better = surprises(habitual, view) * 0.5
    refuse_worse(habitual, habitual, view, better, ALL)
    with pytest.raises(RefusedError, match="it forgot what was normal at first"):
        refuse_worse(untrained(habitual), habitual, view, better, ALL)
    refuse_worse(untrained(habitual), without_anchor(habitual), view, better, ALL)


def test_the_anchor_is_made_of_the_first_sessions_and_handed_on_unchanged(habitual: Model) -> None:
    data = stream(habits(400, 5))
    first = anchor_of(None, data)
    assert len(first["starts"]) == ANCHOR_SESSIONS
    assert first["tokens"].tolist() == data.tokens[: data.offsets[ANCHOR_SESSIONS]].tolist()
    assert anchor_of(without_anchor(habitual), data)["tokens"].tolist() == first["tokens"].tolist()
    assert anchor_of(habitual, data)["tokens"].tolist() == habitual.parts["anchor"]["tokens"].tolist()
    long = anchor_of(None, stream([[1] * 900] * 20))
    assert len(long["tokens"]) == 9 * 900 <= ANCHOR_LINES


scores_drawn = st.lists(st.floats(0.01, 50), min_size=1, max_size=80).map(lambda scores: np.sort(np.array(scores)))


@given(scores_drawn, scores_drawn)
def test_no_threshold_moves_by_more_than_a_quarter(scores: Floats, before: Floats) -> None:
    result = bounded_calibration_scores(scores, before)
    assert len(result) == len(scores) and (np.diff(result) >= 0).all()
    places = (np.arange(len(scores)) + 0.5) / len(scores)
    ratio = result / np.quantile(before, places, method="hazen")
    assert (ratio >= 1 - LARGEST_MOVE - 1e-9).all() and (ratio <= 1 + LARGEST_MOVE + 1e-9).all()
    np.testing.assert_array_equal(bounded_calibration_scores(before * 1.2, before), before * 1.2)


def test_calibration_scores_like_the_ones_before_are_left_as_they_are_and_the_first_ones_too() -> None:
    scores = np.linspace(1.0, 9.0, 500)
    np.testing.assert_array_equal(bounded_calibration_scores(scores * 1.1, scores), scores * 1.1)
    np.testing.assert_array_equal(bounded_calibration_scores(scores, np.zeros(0)), scores)


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize(
    ("allowed", "said"), [("WORSE_ALLOWED", "at new sessions"), ("ANCHOR_WORSE_ALLOWED", "it forgot")]
)
def test_a_training_run_raises_the_refusal(
    habitual: Model, monkeypatch: pytest.MonkeyPatch, allowed: str, said: str
) -> None:
    monkeypatch.setattr(promotion, "WORSE_ALLOWED", 9.0)
    monkeypatch.setattr(promotion, "ANCHOR_WORSE_ALLOWED", 9.0)
    monkeypatch.setattr(promotion, allowed, 0.0)
    with pytest.raises(RefusedError, match=said):
        run.train(stream(habits(60, 2), previous=habitual), progress=quietly)


@pytest.mark.slow
@pytest.mark.usefixtures("briefly")
def test_a_training_run_moves_the_thresholds_of_the_model_in_force_by_no_more_than_it_may(
    habitual: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "refuse_worse", lambda *rest: None)
    far = replace(
        habitual,
        calibration={**habitual.calibration, "ensemble": habitual.calibration["ensemble"] * 10},
    )
    data = stream(habits(80, 2))
    free, held = (trained(replace(data, previous=each)).calibration["ensemble"] for each in (None, far))
    least = np.quantile(far.calibration["ensemble"], (np.arange(80) + 0.5) / 80, method="hazen") * (1 - LARGEST_MOVE)
    assert (free < least).all() and (held >= least - 1e-9).all()
