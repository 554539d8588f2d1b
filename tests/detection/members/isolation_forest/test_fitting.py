"""The features of a session, and the rows that the forest is fitted on."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest as SklearnForest

from detection.members.fitted_member_view import Standing, view_of_whole_sessions
from detection.members.isolation_forest.features import FEATURES, forest_input, shown_features
from detection.members.isolation_forest.fitting import fit_forest, forest_columns
from detection.members.isolation_forest.scoring import Forest
from detection.members.registry import MEMBERS, NAMES
from tests.detection.streams import fit_data, habits, stream
from tests.detection.views import Line, Session, whole


def standing_of(sessions: list[Session]) -> Standing:
    """Every member says its number in `NAMES` of the first line and nothing of the others."""
    view = whole(sessions, len(NAMES))
    standing = Standing(view, NAMES)
    first = np.zeros(len(view))
    first[view.offsets[:-1]] = 1.0
    for member in MEMBERS:
        standing.put(member.name, first * NAMES.index(member.name))
    return standing


def test_features_are_named_one_by_one_and_stand_in_that_order() -> None:
    lines = [Line(1, error=True), Line(2, gap=3.0), Line(1, gap=4.0)]
    row = dict(zip(FEATURES, shown_features(standing_of([Session(lines)]))[-1].tolist(), strict=True))
    for name in ("transformer", "ngram", "counts", "values", "sources"):
        assert row[name] == NAMES.index(name)
    assert row["log_length"] == np.log1p(3) and row["distinct"] == 2
    assert row["error_share"] == pytest.approx(1 / 3) and row["rate"] == pytest.approx(np.log1p(3 / 7))


def test_usual_values_are_returned_for_each_feature() -> None:
    data = stream(habits(200, 1))
    standing = Standing(view_of_whole_sessions(data, len(NAMES)), NAMES)
    part = fit_forest(fit_data(data, standing))
    assert part["usual"].shape == (len(FEATURES), 3)
    assert (np.diff(part["usual"], axis=1) >= 0).all()
    low, middle, high = np.expm1(part["usual"][FEATURES.index("log_length")])
    sizes = np.diff(data.offsets)
    np.testing.assert_allclose([low, middle, high], np.quantile(sizes, [0.05, 0.5, 0.99]), atol=0.6)


def test_a_session_is_not_strange_because_it_is_still_short() -> None:
    """Open sessions are shown to it as well; fitted on the ends of sessions only, every beginning is strange."""
    data = stream([[1, *[2] * int(size), 4] for size in np.random.default_rng(1).integers(4, 30, 300)])
    standing = Standing(view_of_whole_sessions(data, len(NAMES)), NAMES)
    rows, ends = shown_features(standing), view_of_whole_sessions(data, len(NAMES)).offsets[1:] - 1
    fitted = Forest(fit_forest(fit_data(data, standing)))
    on_ends = Forest(forest_columns(SklearnForest(n_estimators=100, max_samples=300, random_state=1).fit(rows[ends])))
    halves = (ends + np.concatenate(([-1], ends[:-1]))) // 2
    strange, strange_to_other = (
        (forest.scores(rows[halves]) > np.quantile(forest.scores(rows[ends]), 0.95)).mean()
        for forest in (fitted, on_ends)
    )
    assert strange < 0.1 < 0.2 < strange_to_other


def test_a_forest_scored_by_some_of_its_trees_scores_as_if_it_had_no_others() -> None:
    rng = np.random.default_rng(1)
    columns = forest_columns(SklearnForest(n_estimators=10, max_samples=64, random_state=1).fit(rng.random((200, 3))))
    rows, some = rng.random((50, 3)), np.array([1, 4, 7])
    fewer = {name: column if name == "scale" else column[some] for name, column in columns.items()}
    fewer["scale"] = np.array([float(columns["scale"][0]) * len(some) / 10])
    asked = np.tile(np.isin(np.arange(10), some), (50, 1))
    np.testing.assert_allclose(Forest(columns).scores(rows, asked), Forest(fewer).scores(rows), rtol=1e-12)


def test_a_session_learned_from_is_scored_for_calibration_as_one_that_was_not() -> None:
    sessions = [[1, 2, 4]] * 200 + [[1, 3, 4]]

    def scored(count: int) -> tuple[Standing, dict[str, NDArray[Any]]]:
        """The first `count` sessions, of scores drawn at random but for the last's, and what they teach."""
        data = stream(sessions[:count])
        view = view_of_whole_sessions(data, len(NAMES))
        standing = Standing(view, NAMES)
        said = np.random.default_rng(1).random(len(view))
        said[800:] = 5.0
        standing.put("counts", said)
        return standing, fit_forest(fit_data(data, standing))

    _, without = scored(200)
    standing, part = scored(201)
    last = forest_input(standing)[-1:]
    unseen, seen = Forest(without).scores(last)[0], Forest(part).scores(last)[0]
    assert abs(part["held_out"][-1] - unseen) < 0.02 < 0.1 < seen - unseen
