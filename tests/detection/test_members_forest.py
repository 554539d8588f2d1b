"""What the forest is shown of a session, and what it is fitted on."""

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest as SklearnForest

from detection.forest import Forest
from detection.members.forest import FEATURES, features
from detection.members.registry import MEMBERS, VOICES
from detection.members.view import Standing, whole_sessions
from detection.training.forest import fit_forest, forest_columns
from tests.detection.streams import habits, lesson, stream
from tests.detection.views import Line, Session, whole


def heard(sessions: list[Session]) -> Standing:
    """Every voice says its number in `VOICES` of the first line and nothing of the others."""
    view = whole(sessions, len(VOICES))
    standing = Standing(view, VOICES)
    first = np.zeros(len(view))
    first[view.offsets[:-1]] = 1.0
    for member in MEMBERS:
        standing.hear(member.voices, [first * VOICES.index(voice) for voice in member.voices])
    return standing


def test_features_are_named_one_by_one_and_stand_in_that_order() -> None:
    lines = [Line(1, error=True), Line(2, gap=3.0), Line(1, gap=4.0)]
    row = dict(zip(FEATURES, features(heard([Session(lines)]))[-1].tolist(), strict=True))
    for voice in ("transformer", "ngram", "counts", "values", "sources"):
        assert row[voice] == VOICES.index(voice)
    for voice in ("transformer", "ngram_mean"):
        assert row[f"mean_{voice}"] == pytest.approx(VOICES.index(voice) / 4)
    assert row["log_length"] == np.log1p(3) and row["distinct"] == 2
    assert row["error_share"] == pytest.approx(1 / 3) and row["rate"] == pytest.approx(np.log1p(3 / 7))


def test_what_is_usual_goes_along_by_feature() -> None:
    data = stream(habits(200, 1))
    standing = Standing(whole_sessions(data, len(VOICES)), VOICES)
    part = fit_forest(lesson(data, standing))
    assert part["usual"].shape == (len(FEATURES), 3)
    assert (np.diff(part["usual"], axis=1) >= 0).all()
    low, middle, high = np.expm1(part["usual"][FEATURES.index("log_length")])
    sizes = np.diff(data.offsets)
    np.testing.assert_allclose([low, middle, high], np.quantile(sizes, [0.05, 0.5, 0.99]), atol=0.6)


def test_a_session_is_not_strange_because_it_is_still_short() -> None:
    """Open sessions are shown to it as well; fitted on the ends of sessions only, every beginning is strange."""
    data = stream([[1, *[2] * int(size), 4] for size in np.random.default_rng(1).integers(4, 30, 300)])
    standing = Standing(whole_sessions(data, len(VOICES)), VOICES)
    rows, ends = features(standing), whole_sessions(data, len(VOICES)).offsets[1:] - 1
    fitted = Forest(fit_forest(lesson(data, standing)))
    on_ends = Forest(forest_columns(SklearnForest(n_estimators=100, max_samples=300, random_state=1).fit(rows[ends])))
    halves = (ends + np.concatenate(([-1], ends[:-1]))) // 2
    strange, strange_to_other = (
        (forest.scores(rows[halves]) > np.quantile(forest.scores(rows[ends]), 0.95)).mean()
        for forest in (fitted, on_ends)
    )
    assert strange < 0.1 < 0.2 < strange_to_other
