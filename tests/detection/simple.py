"""A small stream with known habits: a request opens, works, closes; and the model that it teaches in no time."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from detection.causes.fingerprints import KINDS
from detection.detection_settings import AlarmSettings, SessionSettings
from detection.frames import FeedbackFrame, FlushFrame, LinesFrame, ModelFrame, Segment
from detection.learning.training_run import train
from detection.models.model import Model
from tests.detection.journal import RECEIVED, Journal, started

BEGAN = 1_700_000_000
KEY = SessionSettings(key=r"id=(\S+)", idle_seconds=60.0)
OPEN, READ, WRITE, RETRY, CLOSE = (
    b"accepted the connection",
    b"reading rows from the table",
    b"writing rows to the table",
    b"retrying after a timeout",
    b"closed the connection",
)
RESTARTED, NEW = b"restarted by itself", b"dropping all tables now"  # not usual


def line(key: str, text: bytes, at: float = 0.0) -> bytes:
    return b"%.3f INFO id=%s %s" % (BEGAN + at, key.encode(), text)


def usual(count: int, seed: int, *, prefix: str = "s", at: float = 0.0) -> list[bytes]:
    """The lines of `count` sessions, one begun a second, each of a key of its own."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        middle = rng.choice(3, int(rng.integers(1, 6)), p=[0.6, 0.35, 0.05])
        texts = [OPEN, *((READ, WRITE, RETRY)[step] for step in middle), CLOSE]
        lines += session(f"{prefix}{number}", texts, at + number)
    return lines


def session(key: str, texts: Iterable[bytes], at: float = 0.0) -> list[bytes]:
    return [line(key, text, at) for text in texts]


def simple(**changes: Any) -> Journal:
    """A journal whose sessions are told by `id=`. Sure sessions only are flagged, as far as calibration allows."""
    changes = {"session": KEY, "alarms": AlarmSettings(alpha=0.001), **changes}
    return started(**changes)


def fed(journal: Journal, lines: Sequence[bytes], *, batch: int = 500) -> list[dict[str, Any]]:
    """What applying `lines` flags."""
    return journal.feed(lines, kind="timestamped", batch=batch)


def finished(journal: Journal) -> list[dict[str, Any]]:
    """End all sessions; what that flags."""
    return journal.apply(FlushFrame(RECEIVED)).flagged()


def alerts_of(journal: Journal, lines: Sequence[bytes], *, batch: int = 500) -> list[dict[str, Any]]:
    """What applying `lines` flags, and then the end of all sessions."""
    return fed(journal, lines, batch=batch) + finished(journal)


def answer(journal: Journal, alert: dict[str, Any], what: Literal["normal", "anomaly", "undo"]) -> None:
    """Say it of the alert with that record."""
    cause, *shapes = (int(each, 16) for each in (alert["cause"], *alert.get("cause_shapes", ())))
    kind, template = KINDS.index(alert["cause_kind"]), alert["cause_template"] or 0
    journal.apply(FeedbackFrame(alert["id"], cause, kind, alert["what"], what, "seen it", template, tuple(shapes)))


def said(journal: Journal, lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """All records of applying `lines` in one frame."""
    data = b"".join(each + b"\n" for each in lines)
    return list(journal.apply(LinesFrame(RECEIVED, (Segment("a-1", "timestamped", data, len(lines)),))).records())


def learn(journal: Journal, *, full: bool = False) -> Model:
    """Train on what `journal` saw, quickly, and let the model judge from here on."""
    data = replace(journal.detector.training_set(), full=full)
    model = train(data, progress=lambda _: None)
    journal.apply(ModelFrame(model.generation, f"model-{model.generation}", "sha"), model)
    return model


def taught(sessions: int = 1500, **changes: Any) -> Journal:
    """A journal that has seen usual sessions, ended, and has a model of the quick members."""
    journal = simple(**changes)
    fed(journal, usual(sessions, 1))
    finished(journal)
    learn(journal)
    return journal


def learned_by(journal: Journal) -> Model:
    """The model in force."""
    ensemble = journal.detector._ensemble
    assert ensemble is not None
    return ensemble.model
