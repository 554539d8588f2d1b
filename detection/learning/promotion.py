"""Whether a newly trained model may take the place of the one in force, and how far it may move the thresholds.

The challenger must not be worse than the champion at what came since (both judge sessions that they have not learned
from), nor at the *anchor*: sessions that were set aside at the first full generation and are handed on unchanged, so
that no chain of small steps leads away from what was normal then.
"""

import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.members.registry import NAMES, ONLINE_NAMES
from detection.members.transformer.member import Transformer
from detection.members.view import CLOSING, Bools, Floats, Standing, View, whole_sessions
from detection.models.model import Model
from detection.models.training_set import ClosedSessions, TrainingSet

ANCHOR_SESSIONS = 256
ANCHOR_LINES = 8192
WORSE_ALLOWED = 1.01  # of the champion's mean surprise at what is new: less cannot be told from chance
ANCHOR_WORSE_ALLOWED = 1.15
LARGEST_SHARE_MOVED = 0.9  # of sessions to templates that the champion does not know, as far as that excuses anything
LARGEST_MOVE = 0.25  # of a threshold of the combined statistic, by one promotion


class RefusedError(Exception):
    """The new model is worse than the one in force; the message says at what."""


def refuse_worse(challenger: Model, champion: Model, view: View, surprises: Floats, fresh: Bools) -> None:
    """Raise RefusedError when the challenger is worse. `surprises` float64 [R]: what its cross-fits' transformers say
    of the sessions in `view`, of which the champion has not seen the `fresh` ones (bool [S]).

    Compared is how surprising sessions are, in rows of templates that the champion knows: to it all others are one, and
    so less of a surprise. Where those make their way into a share of the sessions, that share of the probability is
    theirs, and nobody can give it to what was there before: -ln(1 - share) nats a session are no fault of the
    challenger. Sessions of a kind count by the root of their number, as they do in learning: the model that has seen
    more of what is rare would be the worse one of two by what is common alone.
    """
    weights, known, room = _weights(view, fresh), _known_to(champion, view), 0.0
    if weights.any():
        moved = float(weights[_any(~known, view)].sum() / weights.sum())
        room = -math.log(max(1.0 - moved, 1.0 - LARGEST_SHARE_MOVED))
        theirs = _mean(_surprises(champion, view), known, view, weights)
        mine = _mean(surprises, known, view, weights)
        if mine > theirs * WORSE_ALLOWED + room:
            raise RefusedError(f"at new sessions it is worse: {mine:.3f} nats each, the model in force {theirs:.3f}")
    anchor = champion.parts.get("anchor")
    if anchor is not None:
        kept = whole_sessions(_sessions(anchor), len(NAMES))
        known = _known_to(champion, kept)
        weights = _weights(kept, np.ones(len(kept.starts), dtype=np.bool_))
        mine, theirs = (_mean(_surprises(model, kept), known, kept, weights) for model in (challenger, champion))
        if mine > theirs * ANCHOR_WORSE_ALLOWED + room:
            raise RefusedError(
                f"it forgot what was normal at first: {mine:.3f} nats a session, the model in force {theirs:.3f}"
            )


def _weights(view: View, chosen: Bools) -> Floats:
    """1/sqrt(n) for each of n chosen sessions with the same templates, 0 for the others: float64 [S]."""
    kinds = [view.templates[start:end].tobytes() for start, end in pairwise(view.offsets.tolist())]
    often = Counter(kind for kind, one in zip(kinds, chosen.tolist(), strict=True) if one)
    return np.array([often[kind] ** -0.5 if one else 0.0 for kind, one in zip(kinds, chosen.tolist(), strict=True)])


def _any(rows: Bools, view: View) -> Bools:
    """Which sessions have any of `rows`: bool [S]."""
    found: Bools = np.logical_or.reduceat(rows, view.offsets[:-1])
    return found


def _mean(surprises: Floats, rows: Bools, view: View, weights: Floats) -> float:
    """The weighted mean over sessions of what is surprising in their `rows`, in nats."""
    each = np.add.reduceat(np.where(rows, surprises, 0.0), view.offsets[:-1])
    return float((weights * each).sum() / weights.sum())


def bounded(scores: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
    """`scores` with no quantile further than LARGEST_MOVE from that of `before`: float64 [n] ascending."""
    if not len(before):
        return scores
    # By Hazen's rule, by which as many scores are their own quantiles, the largest included.
    same = np.quantile(before, (np.arange(len(scores)) + 0.5) / len(scores), method="hazen")
    return np.clip(scores, same * (1.0 - LARGEST_MOVE), same * (1.0 + LARGEST_MOVE))


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
    return Transformer(model.parts["transformer"], model.vocabulary).score(view, Standing(view, NAMES))


def _sessions(anchor: Mapping[str, NDArray[Any]]) -> ClosedSessions:
    lines, sessions = len(anchor["tokens"]), len(anchor["starts"])
    return ClosedSessions(
        tokens=anchor["tokens"],
        errors=np.zeros(lines, np.bool_),
        times=np.zeros(lines),
        online=np.zeros((lines, len(ONLINE_NAMES)), np.float32),
        offsets=anchor["offsets"],
        starts=anchor["starts"],
        ends=anchor["ends"],
        tainted=np.zeros(sessions, np.bool_),
        flagged=np.zeros(sessions, np.bool_),
        vouched=np.zeros(sessions, np.bool_),
        fresh=np.zeros(sessions, np.bool_),
        keys=np.zeros(sessions, np.uint64),
        causes=np.zeros(sessions, np.uint64),
        online_members=ONLINE_NAMES,
    )
