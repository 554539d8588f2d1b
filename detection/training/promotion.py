"""Whether a newly trained model may take the place of the one in force, and how far it may move the thresholds.

The challenger must not be worse than the champion at what came since (both judge sessions that they have not learned
from), nor at the *anchor*: sessions that were set aside at the first full generation and are handed on unchanged, so
that no chain of small steps leads away from what was normal then.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.members.registry import NAMES
from detection.members.transformer import Transformer
from detection.members.view import CLOSING, Bools, Floats, Standing, View, whole_sessions
from detection.model import Model
from detection.segments import repeat_per_row
from detection.training_set import TrainingSet

ANCHOR_SESSIONS = 256
ANCHOR_LINES = 8192
WORSE_ALLOWED = 1.01  # of the champion's mean surprise at what is new: less cannot be told from chance
ANCHOR_WORSE_ALLOWED = 1.15
LARGEST_MOVE = 0.25  # of a threshold of the combined statistic, by one promotion


class RefusedError(Exception):
    """The new model is worse than the one in force; the message says at what."""


def refuse_worse(challenger: Model, champion: Model, view: View, surprises: Floats, fresh: Bools) -> None:
    """Raise RefusedError when the challenger is worse. `surprises` float64 [R]: what its cross-fits' transformers say
    of the sessions in `view`, of which the champion has not seen the `fresh` ones (bool [S]).

    Compared are the rows of templates that the champion knows: to it all others are one, and so less of a surprise.
    """
    rows = fresh[repeat_per_row(view.offsets)] & _known_to(champion, view)
    if rows.any():
        theirs = float(_surprises(champion, view)[rows].mean())
        mine = float(surprises[rows].mean())
        if mine > theirs * WORSE_ALLOWED:
            raise RefusedError(f"at new sessions it is worse: {mine:.3f} nats a line, the model in force {theirs:.3f}")
    anchor = champion.parts.get("anchor")
    if anchor is not None:
        kept = whole_sessions(_sessions(anchor), len(NAMES))
        rows = _known_to(champion, kept)
        mine, theirs = (float(_surprises(model, kept)[rows].mean()) for model in (challenger, champion))
        if mine > theirs * ANCHOR_WORSE_ALLOWED:
            raise RefusedError(
                f"it forgot what was normal at first: {mine:.3f} nats a line, the model in force {theirs:.3f}"
            )


def bounded(ring: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
    """`ring` with no quantile further than LARGEST_MOVE from that of the ring `before`: float64 [n] ascending."""
    if not len(before):
        return ring
    # By Hazen's rule, by which a ring of the same length is its own quantiles, the largest included.
    same = np.quantile(before, (np.arange(len(ring)) + 0.5) / len(ring), method="hazen")
    return np.clip(ring, same * (1.0 - LARGEST_MOVE), same * (1.0 + LARGEST_MOVE))


def anchor_of(previous: Model | None, data: TrainingSet) -> dict[str, NDArray[Any]]:
    """The anchor that `previous` has, else one of the first sessions of `data`."""
    if previous is not None and "anchor" in previous.parts:
        return dict(previous.parts["anchor"])
    some = (np.arange(len(data.starts)) < ANCHOR_SESSIONS) & (data.offsets[1:] <= ANCHOR_LINES)
    kept = data.only(some)
    return {"tokens": kept.tokens, "offsets": kept.offsets, "starts": kept.starts, "ends": kept.ends}


def _known_to(model: Model, view: View) -> Bools:
    """The rows that are ends of sessions, or of templates in the model's vocabulary: bool [R]."""
    known: Bools = np.isin(view.templates, model.vocabulary) | (view.templates == CLOSING)
    return known


def _surprises(model: Model, view: View) -> Floats:
    return Transformer(model.parts["transformer"], model.vocabulary).scores(view, Standing(view, NAMES))


def _sessions(anchor: Mapping[str, NDArray[Any]]) -> TrainingSet:
    lines, sessions = len(anchor["tokens"]), len(anchor["starts"])
    return TrainingSet(
        generation=0,
        line=0,
        seed=0,
        full=True,
        alpha=0.0,
        tokens=anchor["tokens"],
        errors=np.zeros(lines, np.bool_),
        times=np.zeros(lines),
        values=np.zeros(lines, np.float32),
        sources=np.zeros(lines, np.float32),
        offsets=anchor["offsets"],
        starts=anchor["starts"],
        ends=anchor["ends"],
        tainted=np.zeros(sessions, np.bool_),
        flagged=np.zeros(sessions, np.bool_),
        vouched=np.zeros(sessions, np.bool_),
        fresh=np.zeros(sessions, np.bool_),
        keys=np.zeros(sessions, np.uint64),
        causes=np.zeros(sessions, np.uint64),
        templates={},
    )
