"""A model small enough to do its arithmetic on paper: one member, which compares how often each template came.

It knows sessions of one line of each of USUAL. One that ends so scores 0, which has a p-value of 1. Whatever else a
session ends as scores more than any of the 99 that `counts` was calibrated on: 1/100; and that is stranger than any of
the 999 that all members together were: 1/1000.
"""

import math
from functools import cache
from typing import Any

import numpy as np

from detection.columns.state_columns import State
from detection.detection_settings import AlarmSettings
from detection.detector import Detector
from detection.frames import ModelFrame
from detection.models.model import Model
from tests.detection.journal import Journal
from tests.detection.simple import CLOSE, READ, RETRY, finished, said, session, simple

USUAL = [READ, RETRY, CLOSE]  # three templates, as nobody takes one of these for another
INDIFFERENT = -math.log10(0.9)  # what members of whom none finds anything come to together
FLOOR = 5 / 999  # the least alpha that 999 calibration scores can resolve


def vectors(*sessions: list[int]) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """How often each template came in each session: uint8 [n, 64]."""
    return np.array([np.bincount(ids, minlength=64) for ids in sessions], dtype=np.uint8)


def model_of(ids: list[int], line: int = 0) -> Model:
    parts = {"counts": {"vectors": vectors(ids)}}
    rings = {"counts": np.zeros(99), "ensemble": np.full(999, INDIFFERENT + 1e-9)}
    return Model(1, line, np.array(sorted(ids), dtype=np.int32), parts, {}, rings, {"seed": 1})


@cache
def _known() -> tuple[State, Model]:
    journal = simple(alarms=AlarmSettings(alpha=0.001))
    ids = [record["template_id"] for record in said(journal, session("first", USUAL))]
    assert len(set(ids)) == 3
    finished(journal)
    return journal.detector.export(), model_of(ids, line=3)


def knowing_by_hand() -> Journal:
    """A journal that has seen one usual session, of the lines 1 to 3, and is judged by that model from here on."""
    state, model = _known()
    journal = Journal(Detector.load(state, None))
    journal.apply(ModelFrame(1, "model-1", "sha"), model)
    return journal
