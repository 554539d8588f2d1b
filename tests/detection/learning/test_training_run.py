"""What a training run learns from and leaves out: each protection, and what happens without it."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from detection.learning import training_run as run
from detection.learning.training_run import TrainingError, _calibration_scores, _CrossFitting, _RunProgress
from detection.members.fitted_member_view import Bools, Floats, Standing, View, view_of_whole_sessions
from detection.members.member_interfaces import FitData, FittedMember, Part
from detection.members.ngram import Ngram
from detection.members.registry import FITTED, NAMES, ONLINE_NAMES
from detection.members.transformer import fitting as transformer
from detection.members.transformer.fitting import fit_transformer
from detection.members.transformer.member import Transformer
from detection.members.transformer.windows import FIRST, UNSEEN
from detection.models.model import Model, from_columns, to_columns
from detection.models.training_set import TrainingSet
from detection.scoring.calibration import CalibrationScores
from detection.scoring.ensemble import Ensemble
from tests.detection.streams import TEMPLATES, fit_data, habits, quietly, stream, trained

VALUES = ONLINE_NAMES.index("values")


class Recognising(FittedMember):
    """A member that says 1 of every line of a session it was fitted on: sessions here have a template each."""

    name: ClassVar[str] = "ngram"
    family: ClassVar[str] = "sequence"
    folds: ClassVar[int] = 3
    early: ClassVar[bool] = True

    def __init__(self, part: Part, vocabulary: NDArray[np.int32]) -> None:
        self._seen = part["seen"]

    def score(self, view: View, standing: Standing) -> Floats:
        return np.isin(view.templates, self._seen).astype(np.float64)

    @classmethod
    def fit(cls, fit_data: FitData) -> dict[str, NDArray[Any]]:
        return {"seen": np.unique(fit_data.data.tokens)}


def recognised(learned: Bools) -> list[bool]:
    """Which of ten sessions are scored by a fit that saw them; only `learned` ones are learned from at all."""
    data = stream([[number] * 3 for number in range(10)])
    view = view_of_whole_sessions(data, len(NAMES))
    crossing = _CrossFitting(data, view, np.arange(10, dtype=np.int32), _RunProgress(lambda step: None, False))
    standing = crossing.cross_fitted([Recognising], learned)
    return [bool(x) for x in standing.reached[view.final_rows(), NAMES.index("ngram")]]


def test_no_session_is_scored_by_a_fit_that_saw_it() -> None:
    assert recognised(np.ones(10, np.bool_)) == [False] * 10
    assert recognised(np.arange(10) < 5) == [False] * 10


def test_fitted_on_everything_they_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = _CrossFitting.fit
    monkeypatch.setattr(_CrossFitting, "fit", lambda self, member, sessions, *rest, **more: fit(
        self, member, np.ones_like(sessions), *rest, **more))  # fmt: skip
    assert recognised(np.ones(10, np.bool_)) == [True] * 10


def test_scores_of_sessions_that_were_learned_would_be_too_low(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that are all different: what a fit has seen it finds usual, what it has not it does not."""
    rng = np.random.default_rng(1)
    data = stream([rng.integers(1, 30, 8).tolist() for _ in range(60)], full=False)
    crossed = trained(data).calibration["ngram"]
    fit = _CrossFitting.fit
    monkeypatch.setattr(_CrossFitting, "fit", lambda self, member, sessions, *rest, **more: fit(
        self, member, np.ones_like(sessions), *rest, **more))  # fmt: skip
    assert trained(data).calibration["ngram"].max() < crossed.min()


def unclean() -> TrainingSet:
    """291 usual sessions and 9 in which somebody tries things out, three in a hundred."""
    rng = np.random.default_rng(4)
    odd = [[1, 66, *rng.choice([67, 68, 2, 3, 5], size).tolist()] for size in range(5, 14)]
    sessions = habits(291, 1)
    for number, each in enumerate(odd):
        sessions.insert(30 * number, each)
    return stream(sessions, full=False)


def test_the_strangest_of_a_first_warm_up_are_not_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(unclean())
    assert not np.isin([66, 67, 68], model.vocabulary).any()
    assert model.meta["fitted_sessions"] == 300 - 15
    assert len(model.calibration["ensemble"]) == 300, "calibrated on all of them: the highest are normal, too"
    monkeypatch.setattr(run, "TRIMMED_SHARE", 0.0)
    assert np.isin([66, 67, 68], trained(unclean()).vocabulary).all()


def test_sessions_that_somebody_vouches_for_are_never_left_out() -> None:
    data = unclean()
    data.vouched[:] = True
    model = trained(data)
    assert np.isin([66, 67, 68], model.vocabulary).all() and model.meta["fitted_sessions"] == 300


def test_one_source_does_not_make_up_what_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    data = stream([*habits(200, 1), *[[8, 9, 8, 9]] * 300], full=False)
    data.keys[200:] = 7777
    model = trained(data)
    assert len(model.calibration["ensemble"]) == 200 + 25, "five in a hundred of 500"
    assert not np.isin([8, 9], model.vocabulary).any(), "and nobody else ever sent those"
    data.keys[220] = 8888
    assert np.isin([8, 9], trained(data).vocabulary).all()
    data.keys[220] = 7777
    monkeypatch.setattr(run, "MANY_KEYS", 10_000)
    model = trained(data)
    assert len(model.calibration["ensemble"]) == 500 and np.isin([8, 9], model.vocabulary).all()


def programs_of_a_host(family: int) -> TrainingSet:
    """300 sessions of 30 programs, half of them of one; each program has two templates of its own."""
    ours = np.concatenate([np.zeros(150, np.int64), np.arange(150) % 30])
    data = stream([[2 * program + 1, 2 * program + 2] * 2 for program in ours.tolist()], full=False)
    data.keys[:] = ours + 1
    return replace(data, templates={**TEMPLATES, "family": np.full(100, family, np.uint8)})


def test_programs_with_templates_of_their_own_are_all_learned_from() -> None:
    model = trained(programs_of_a_host(1))
    assert len(model.vocabulary) == 60 and len(model.calibration["ensemble"]) == 300


def test_whether_keys_are_alike_is_decided_for_each_family_of_templates() -> None:
    """The programs' lines come into one socket with those of clients, of which one has words of its own."""
    apart, hosts = stream([*habits(300, 1), *[[98, 99, 98, 99]] * 20]), programs_of_a_host(1)
    apart.keys[300:] = 7777
    both = stream(
        [*_sessions(hosts), *[[t if t > 90 else t + 70 for t in each] for each in _sessions(apart)]], full=False
    )
    both.keys[:] = np.concatenate([hosts.keys, apart.keys + np.uint64(1000)])
    both = replace(both, templates={**TEMPLATES, "family": (np.arange(100) < 70).astype(np.uint8)})
    known = trained(both).vocabulary
    assert np.isin(np.arange(1, 61), known).all() and not np.isin([98, 99], known).any()
    of_one_family = trained(replace(both, templates=TEMPLATES)).vocabulary
    assert not np.isin(np.arange(1, 61), of_one_family).any(), "the control: most keys are clients, and have the say"


def _sessions(data: TrainingSet) -> list[list[int]]:
    return [each.tolist() for each in np.split(data.tokens, data.offsets[1:-1])]


def test_a_stream_of_few_keys_is_learned_as_it_is() -> None:
    data = stream(habits(200, 1), full=False)
    data.keys[:] = 5
    assert len(trained(data).calibration["ensemble"]) == 200


def flagged(alpha: float) -> TrainingSet:
    """290 usual sessions, ten that were flagged: eight like the others, and two that are strange indeed."""
    data = stream([*habits(298, 1), [4, 3, 2, 1, 66], [66, 67, 66, 4]], full=False, alpha=alpha)
    data.flagged[290:] = True
    return data


def test_flagged_sessions_are_not_learned_from_but_as_many_as_alpha_flags_by_chance_calibrate() -> None:
    survivors, calibrated = trained(flagged(0.0)), trained(flagged(0.01))
    assert not np.isin([66, 67], calibrated.vocabulary).any()
    assert len(survivors.calibration["ensemble"]) == 290, "survivors only: the highest of them would be the whole"
    assert len(calibrated.calibration["ensemble"]) == 290 + 3
    assert calibrated.calibration["ngram"][-1] <= trained(flagged(0.03)).calibration["ngram"][-1]
    worst = trained(flagged(1.0)).calibration["ngram"][-1]
    assert calibrated.calibration["ngram"][-1] < worst, "the least strange come back, not the two at the end"


def test_a_campaign_does_not_fill_the_top_of_the_calibration_scores_with_itself() -> None:
    data = stream([*habits(400, 1), *[[1, 66, 66, 4]] * 40], full=False, alpha=0.05)
    data.flagged[400:] = True
    of_many_causes = trained(data)
    data.causes[400:] = 4242
    of_one = trained(data)
    assert len(of_many_causes.calibration["ensemble"]) == 400 + 22, "the control: the campaign is the top 5 % of it"
    assert len(of_one.calibration["ensemble"]) == 400 + 1


def with_a_kind_of_their_own(previous: Model | None) -> tuple[Floats, TrainingSet]:
    """1,000 sessions before the model in force, 1,000 since; 30 of those come to one high score. None is flagged."""
    pool = stream([[1, 4]] * 2000, alpha=0.002, previous=previous)
    pool.fresh[:1000] = False
    reached = np.zeros((2000, len(NAMES)))
    reached[:, NAMES.index("ngram")] = np.concatenate([np.linspace(0.0, 9.0, 1000), np.linspace(0.0, 8.0, 1000)])
    reached[1970:, NAMES.index("ngram")] = 12.0
    return reached, pool


def test_anomalies_too_common_to_be_flagged_do_not_hide_the_next_of_their_kind(habitual: Model) -> None:
    def how_strange(previous: Model | None) -> float:
        reached, pool = with_a_kind_of_their_own(previous)
        rings = _calibration_scores(reached, [Ngram], pool)
        return float(CalibrationScores(rings["ngram"]).p(np.array([12.0]))[0])

    assert how_strange(None) > 0.015, "the control: with nothing to compare with they are 30 of 2,000"
    assert how_strange(habitual) < 0.006, "as many of them stay as were strange before: ten in a thousand"


def test_what_is_vouched_for_is_compared_with_nothing(habitual: Model) -> None:
    reached, pool = with_a_kind_of_their_own(habitual)
    pool.vouched[1000:] = True
    assert len(_calibration_scores(reached, [Ngram], pool)["ensemble"]) == 2000


def test_normal_sessions_that_become_no_stranger_all_stay(habitual: Model) -> None:
    reached, pool = with_a_kind_of_their_own(habitual)
    reached[1970:] = 0.0
    assert len(_calibration_scores(reached, [Ngram], pool)["ensemble"]) == 2000


def test_before_the_warm_up_is_over_there_are_the_quick_members_only() -> None:
    model = trained(stream(habits(60, 1), full=False))
    assert set(model.parts) == {"ngram", "counts"}
    assert set(model.calibration) == {"ngram", "counts", "sources", "ensemble"}
    assert model.meta["full"] == 0


def test_values_are_judged_from_when_they_were_seen_often_enough_and_among_the_times_they_spoke() -> None:
    data = stream(habits(600, 1), full=False)
    assert "values" not in trained(data).calibration
    speaking = np.arange(600) % 2 == 0
    data.online[data.offsets[:-1][speaking], VALUES] = 3.0
    assert len(trained(data).calibration["values"]) == 300
    few = stream(habits(600, 1), full=False)
    few.online[few.offsets[:-1][:100], VALUES] = 3.0
    assert "values" not in trained(few).calibration


def test_a_later_generation_continues_from_the_weights_of_the_last(
    monkeypatch: pytest.MonkeyPatch, habitual: Model
) -> None:
    monkeypatch.setattr(transformer, "FEWEST_STEPS", 1)
    monkeypatch.setattr(transformer, "LINES_PER_STEP", 10**9)
    data = stream([*habits(80, 2), *[[1, 6, 4]] * 20])
    vocabulary = np.array([1, 2, 3, 4, 5, 6], dtype=np.int32)
    before = habitual.parts["transformer"]
    begun = fit_transformer(replace(fit_data(data), vocabulary=vocabulary))
    gone_on = fit_transformer(replace(fit_data(data), vocabulary=vocabulary, previous=(before, habitual.vocabulary)))
    for name, array in before.items():
        carried = (
            gone_on[name][: len(array)] if name in ("embedding", "output.weight", "output.bias") else gone_on[name]
        )
        np.testing.assert_allclose(carried, array, atol=1e-3, err_msg=name)
    assert np.abs(begun["output.weight"][: len(before["output.weight"])] - before["output.weight"]).max() > 0.05
    new, unseen = gone_on["output.weight"][FIRST + 5], before["output.weight"][UNSEEN]
    np.testing.assert_allclose(new, unseen, atol=1e-3, err_msg="a template begins as the unseen ones left off")


def test_a_later_generation_sees_old_sessions_as_often_as_new_ones(
    monkeypatch: pytest.MonkeyPatch, habitual: Model
) -> None:
    drawn: list[str] = []

    class Sampler(transformer._Sampler):
        def __init__(self, fit: TrainingSet, *rest: Any) -> None:
            super().__init__(fit, *rest)
            self.of = "fresh" if fit.fresh.all() else "old" if not fit.fresh.any() else "mixed"

        def batch(self) -> Any:
            drawn.append(self.of)
            return super().batch()

    monkeypatch.setattr(transformer, "_Sampler", Sampler)
    monkeypatch.setattr(transformer, "FEWEST_STEPS", 8)
    data = stream(habits(80, 2))
    data.fresh[:76] = False
    given = replace(fit_data(data), previous=(habitual.parts["transformer"], habitual.vocabulary))
    fit_transformer(given)
    assert drawn == ["fresh", "old"] * 2, "half the steps of a first run"
    drawn.clear()
    fit_transformer(replace(given, previous=None))
    assert drawn == ["mixed"] * 8


@pytest.mark.usefixtures("briefly")
def test_a_model_as_good_as_the_last_replaces_it_and_keeps_its_anchor(habitual: Model) -> None:
    data = stream(habits(100, 2), previous=habitual)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detection.learning.promotion.WORSE_ALLOWED", 2.0)
        model = run.train(data, progress=quietly)
    assert set(model.parts) >= {"anchor", "transformer"}
    for name, array in habitual.parts["anchor"].items():
        np.testing.assert_array_equal(model.parts["anchor"][name], array)
    assert Transformer(model.parts["transformer"], model.vocabulary)


def _no_transformer(monkeypatch: pytest.MonkeyPatch, why: Exception | None = None) -> None:
    def fit(fit_data: FitData) -> dict[str, NDArray[Any]]:
        raise why or RuntimeError("could not create a primitive")

    monkeypatch.setattr(Transformer, "fit", fit)


def test_a_member_that_cannot_be_fitted_costs_the_model_that_member(monkeypatch: pytest.MonkeyPatch) -> None:
    _no_transformer(monkeypatch)
    model = trained(stream(habits(200, 1)))
    assert model.unfitted == {"transformer": "RuntimeError: could not create a primitive"}
    assert "transformer" not in model.calibration and "transformer" not in model.parts
    ensemble = Ensemble(model)
    assert {"ngram", "counts", "isolation_forest"} <= set(ensemble.members)
    assert "transformer" not in ensemble.members, "it is tried again when the next training is due"
    again = from_columns(to_columns(model))
    assert again.unfitted == model.unfitted


def test_a_member_that_the_model_in_force_has_is_never_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "MOST_STEPS", 20)
    previous = trained(stream(habits(200, 1)))
    assert previous.unfitted == {}
    _no_transformer(monkeypatch)
    with pytest.raises(TrainingError, match="transformer could not be fitted, and the model in force has it: Runtime"):
        trained(stream(habits(200, 2), generation=4, previous=previous))


def test_without_any_member_there_is_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(fit_data: FitData) -> dict[str, NDArray[Any]]:
        raise MemoryError

    for member in FITTED:
        monkeypatch.setattr(member, "fit", fit)
    with pytest.raises(TrainingError, match="no member could be fitted"):
        trained(stream(habits(200, 1)))
