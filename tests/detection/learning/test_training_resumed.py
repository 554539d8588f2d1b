"""A training run that is interrupted anywhere and resumed gives the model of an uninterrupted one, bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from detection.columns.state_columns import Columns, State, digest
from detection.learning import promotion
from detection.learning.training_run import Progress, train
from detection.members.transformer import fitting as transformer
from detection.models.model import Model, to_columns
from detection.models.training_set import TrainingSet
from persistence.training_files import read_partial_result, write_partial_result, write_training_input
from tests.detection.streams import habits, stream, trained

STEPS = 40  # of a fit, two to a report


class Interrupted(BaseException):
    pass


class Notes:
    """Takes every note, through a file as the trainer does; the run ends when it has taken `patience` of them."""

    def __init__(self, directory: Path, patience: float = float("inf")) -> None:
        self._source = directory / "training-3.msgpack"
        if not self._source.exists():
            write_training_input(directory, 3, 1, 1, {}, "")
        notes = read_partial_result(self._source, "us")
        self.found: Columns = notes.work if notes is not None else {}
        self.fraction = notes.fraction if notes is not None else 0.0
        self.taken: list[float] = []
        self._patience = patience

    def note(self, fraction: float, state: Callable[[], State]) -> None:
        write_partial_result(self._source, "us", fraction, state())
        self.taken.append(fraction)
        if len(self.taken) >= self._patience:
            raise Interrupted


@pytest.fixture(autouse=True)
def _short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "FEWEST_STEPS", STEPS)
    monkeypatch.setattr(transformer, "MOST_STEPS", STEPS)
    # In so few steps a model may become worse, which is not what is asked here.
    monkeypatch.setattr(promotion, "WORSE_ALLOWED", 10.0)
    monkeypatch.setattr(promotion, "ANCHOR_WORSE_ALLOWED", 10.0)


def run(data: TrainingSet, notes: Notes) -> tuple[str, list[Progress]]:
    """The digest of the model, and what was reported."""
    said: list[Progress] = []
    return digest(to_columns(train(data, progress=said.append, notebook=notes))), said


def first() -> TrainingSet:
    return stream(habits(200, 1))


def later() -> TrainingSet:
    """Goes on from a model, with replay: two samplers share one generator."""
    return stream(habits(220, 2), generation=4, previous=_previous(), fresh=np.arange(220) >= 100)


@cache
def _previous() -> Model:
    return trained(stream(habits(200, 1)))


def undisturbed() -> str:
    """The digest of the model of `first`, trained without a notebook, in one go."""
    return digest(to_columns(_previous()))


@pytest.mark.parametrize("data", [first, later])
def test_the_model_is_the_same_wherever_the_run_was_interrupted(
    tmp_path: Path, data: Callable[[], TrainingSet]
) -> None:
    what = data()
    (tmp_path / "whole").mkdir()
    whole = Notes(tmp_path / "whole")
    expected, _ = run(what, whole)
    assert expected == run(what, Notes(tmp_path / "whole"))[0], "what is noted last is the whole work"
    count = len(whole.taken)
    # In the quick fits, early in the transformer's, between two of them, and in the last.
    for patience in (1, 7, count // 3, count // 2, count - 4):
        directory = tmp_path / str(patience)
        directory.mkdir()
        with pytest.raises(Interrupted):
            run(what, Notes(directory, patience))
        notes = Notes(directory)
        assert notes.found
        found, said = run(what, notes)
        assert found == expected, f"interrupted at {notes.fraction}"
        assert said[0].fraction >= notes.fraction
        assert len(notes.taken) < count


def test_a_run_that_never_gets_far_comes_to_its_end_all_the_same(tmp_path: Path) -> None:
    interruptions, reached = 0, [0.0]
    while True:
        notes = Notes(tmp_path, patience=25)
        reached.append(notes.fraction)
        try:
            found, _ = run(first(), notes)
            break
        except Interrupted:
            interruptions += 1
    assert interruptions >= 2
    assert reached == sorted(reached)
    assert found == undisturbed()


@pytest.mark.parametrize("lacking", ["exp_avg.embedding", "exp_avg_sq.1.up.weight", "rng.state"])
def test_without_any_part_of_the_partial_result_it_would_be_another_model(tmp_path: Path, lacking: str) -> None:
    with pytest.raises(Interrupted):
        run(first(), Notes(tmp_path, patience=30))
    notes = Notes(tmp_path)
    (name,) = [name for name in notes.found if name.startswith("begun.") and name.endswith(lacking)]
    value = notes.found[name]
    notes.found = {**notes.found, name: value * 0 if isinstance(value, np.ndarray) else 1}
    found, _ = run(first(), notes)
    assert found != undisturbed()


def test_a_fit_that_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[int] = []
    fit_transformer = transformer.fit_transformer

    def counting(fit_data):  # type: ignore[no-untyped-def]
        fits.append(fit_data.begun["steps"] if fit_data.begun is not None else 0)
        return fit_transformer(fit_data)

    monkeypatch.setattr(transformer, "fit_transformer", counting)
    with pytest.raises(Interrupted):
        run(first(), Notes(tmp_path, patience=52))
    assert fits == [0, 0]
    fits.clear()
    run(first(), Notes(tmp_path))
    assert len(fits) == 2 and fits[0] > 0 and fits[1] == 0, "the second goes on, the third begins"


def test_it_is_another_set_that_is_learned_from_when_a_line_differs() -> None:
    """The control of all that compares digests here."""
    data = first()
    tokens = data.tokens.copy()
    tokens[7] = 2 if tokens[7] != 2 else 3
    assert undisturbed() != digest(to_columns(trained(replace(data, tokens=tokens))))
