"""Training sets made of sessions with known habits."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from detection.columns.state_columns import Value
from detection.learning.training_run import Progress, train
from detection.members.fitted_member_view import Floats, Standing, view_of_whole_sessions
from detection.members.member_interfaces import FitData
from detection.members.registry import NAMES, ONLINE_NAMES
from detection.models.model import Model
from detection.models.training_set import TrainingSet
from detection.scoring.ensemble import Ensemble
from detection.templates.table import TemplateTable

TEMPLATES: dict[str, Value] = {
    **TemplateTable().export(),
    "id": np.arange(100, dtype=np.int32),
    "family": np.ones(100, dtype=np.uint8),
}


def stream(sessions: Sequence[Sequence[int]], *, ends: bool = True, **changes: Any) -> TrainingSet:
    """A set of these sessions of templates, each of a key of its own."""
    sizes = [len(session) for session in sessions]
    lines, count = sum(sizes), len(sessions)
    columns: dict[str, Any] = {
        "generation": 3,
        "line": lines,
        "seed": 1,
        "full": True,
        "alpha": 0.0,
        "tokens": np.array([t for session in sessions for t in session], dtype=np.int32),
        "errors": np.zeros(lines, dtype=np.bool_),
        "times": np.arange(lines, dtype=np.float64),
        "online": np.zeros((lines, len(ONLINE_NAMES)), dtype=np.float32),
        "online_members": ONLINE_NAMES,
        "offsets": np.concatenate(([0], np.cumsum(sizes))).astype(np.int64),
        "starts": np.full(count, ends),
        "ends": np.full(count, ends),
        "tainted": np.zeros(count, dtype=np.bool_),
        "flagged": np.zeros(count, dtype=np.bool_),
        "vouched": np.zeros(count, dtype=np.bool_),
        "fresh": np.ones(count, dtype=np.bool_),
        "keys": np.arange(1, count + 1, dtype=np.uint64),
        "causes": np.arange(1, count + 1, dtype=np.uint64),
        "templates": TEMPLATES,
    }
    return TrainingSet(**(columns | changes))


def habits(count: int, seed: int) -> list[list[int]]:
    """Open (1), some reads (2 or 3), close (4); now and then a retry (5)."""
    rng = np.random.default_rng(seed)
    return [[1, *rng.choice([2, 3, 5], int(rng.integers(1, 6)), p=[0.6, 0.35, 0.05]).tolist(), 4] for _ in range(count)]


def trained(data: TrainingSet) -> Model:
    return train(data, progress=quietly)


def quietly(step: Progress) -> None:
    assert 0.0 < step.fraction <= 1.0


def reached(model: Model, data: TrainingSet) -> Floats:
    """What each member has come to at the end of each session: float64 [S, M]."""
    view = view_of_whole_sessions(data, len(NAMES))
    return standing(model, data).reached[view.final_rows()]


def standing(model: Model, data: TrainingSet) -> Standing:
    return Ensemble(model).score(view_of_whole_sessions(data, len(NAMES)))


def fit_data(data: TrainingSet, standing: Standing | None = None) -> FitData:
    """What a member is fitted on when `data` is all there is."""
    vocabulary = np.unique(data.tokens).astype(np.int32)
    return FitData(data, vocabulary, standing, None, len(data.tokens), lambda fraction, loss=None: None)
