"""What many tests here need and takes seconds to make.

Imports are in the fixtures: most of them load torch, and tests of what needs none run where there is none.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from detection.frames import LinesFrame

if TYPE_CHECKING:
    from detection.columns.state_columns import State
    from detection.models.model import Model
    from tests.detection.journal import Journal


@pytest.fixture(scope="session")
def lines() -> list[bytes]:
    """Lines of a real web server."""
    from tests.detection.journal import sample

    return sample()


@pytest.fixture(scope="session")
def model(lines: list[bytes]) -> "Model":
    """All members, trained for a short while on the first WARMUP lines."""
    from detection.learning.training_run import train
    from detection.members.transformer import fitting as transformer
    from tests.detection.journal import RECEIVED, WARMUP, segment, started

    journal = started()
    for start in range(0, WARMUP, 500):
        journal.apply(LinesFrame(RECEIVED, (segment(lines[start : start + 500]),)))
    assert journal.detector.summary().training_due
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer, "FEWEST_STEPS", 10)
        patch.setattr(transformer, "LINES_PER_STEP", WARMUP)
        return train(journal.detector.training_set(), progress=lambda _: None)


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs of few steps, for what does not depend on how well a transformer has learned."""
    from detection.members.transformer import fitting as transformer

    monkeypatch.setattr(transformer, "FEWEST_STEPS", 8)
    yield


@pytest.fixture(scope="session")
def habitual() -> "Model":
    """All members, trained for a while on 300 sessions of `streams.habits`."""
    from detection.members.transformer import fitting as transformer
    from tests.detection.streams import habits, stream, trained

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer, "FEWEST_STEPS", 60)
        return trained(stream(habits(300, 1)))


@pytest.fixture(scope="session")
def knowing() -> "tuple[State, Model]":
    """The state of a detector that knows the sessions of `simple.usual`, and its model, of the quick members."""
    from tests.detection.simple import fed, finished, learn, simple, usual

    journal = simple()
    fed(journal, usual(1500, 1))
    finished(journal)
    model = learn(journal)
    return journal.detector.export(), model


@pytest.fixture
def journal(knowing: "tuple[State, Model]") -> "Journal":
    """One that goes on from there."""
    from detection.detector import Detector
    from tests.detection.journal import Journal

    return Journal(Detector.load(*knowing))


@pytest.fixture(scope="session")
def used_to_novelty() -> "tuple[State, Model]":
    """As `knowing`, of a stream in which every tenth session shows a line that comes once: no surprise by itself."""
    from tests.detection.simple import CLOSE, OPEN, READ, fed, finished, learn, session, simple

    journal = simple()
    for number in range(1000):
        texts = [OPEN, READ, CLOSE]
        if number % 10 == 0:
            texts.insert(1, b"on " * (2 + number // 10))  # lines of different lengths are different templates
        fed(journal, session(f"o{number}", texts, number))
    finished(journal)
    model = learn(journal)
    return journal.detector.export(), model
