"""Whether a newly trained model may take the place of the one in force, and how far it may move the thresholds.

The new model (the *challenger*) must not be worse than the model in force (the *champion*) on new sessions, which
neither has learned from, nor on the *anchor*: sessions reserved at the first full generation and passed on unchanged,
so that no chain of small steps leads away from what was normal then.
"""

import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.members.fitted_member_view import CLOSING, Bools, Floats, Standing, View, view_of_whole_sessions
from detection.members.registry import NAMES, ONLINE_NAMES
from detection.members.transformer.member import Transformer
from detection.models.model import Model
from detection.models.training_set import ClosedSessions, TrainingSet

ANCHOR_SESSIONS = 256
ANCHOR_LINES = 8192
WORSE_ALLOWED = 1.01  # times the champion's mean surprise on new sessions: less could be chance
ANCHOR_WORSE_ALLOWED = 1.15
LARGEST_SHARE_MOVED = 0.9  # of sessions with templates that the champion does not know: the most that excuses anything
LARGEST_MOVE = 0.25  # of a threshold of the combined statistic, by one promotion


class RefusedError(Exception):
    """The new model is worse than the one in force; the message says on which sessions."""


def refuse_worse(challenger: Model, champion: Model, view: View, surprises: Floats, fresh: Bools) -> None:
    """Raise RefusedError if the challenger is worse.

    `surprises` float64 [R] are those of the challenger's cross-fitted transformers on the rows of `view`. The champion
    has not seen the `fresh` sessions (bool [S]).

    Models are compared by the mean surprise of sessions, in rows of templates that the champion knows: all others are
    one token to it, and so surprise it less. If such templates now occur in a share of the sessions, the challenger
    must give them that share of the probability: -ln(1 - share) nats a session are not its fault. Sessions of a kind
    weigh by the square root of their number, as in training: otherwise a model that learned more of what is rare would
    be the worse one for its small loss on what is frequent.
    """
    weights, known, room = _weights_of_sessions(view, fresh), _rows_known_to_model(champion, view), 0.0
    if weights.any():
        moved = float(weights[_sessions_with_any_row(~known, view)].sum() / weights.sum())
        room = -math.log(max(1.0 - moved, 1.0 - LARGEST_SHARE_MOVED))
        theirs = _weighted_mean_surprise(_transformer_surprises(champion, view), known, view, weights)
        mine = _weighted_mean_surprise(surprises, known, view, weights)
        if mine > theirs * WORSE_ALLOWED + room:
            raise RefusedError(f"at new sessions it is worse: {mine:.3f} nats each, the model in force {theirs:.3f}")
    anchor = champion.parts.get("anchor")
    if anchor is not None:
        kept = view_of_whole_sessions(_sessions_in_anchor(anchor), len(NAMES))
        known = _rows_known_to_model(champion, kept)
        weights = _weights_of_sessions(kept, np.ones(len(kept.starts), dtype=np.bool_))
        mine, theirs = (
            _weighted_mean_surprise(_transformer_surprises(model, kept), known, kept, weights)
            for model in (challenger, champion)
        )
        if mine > theirs * ANCHOR_WORSE_ALLOWED + room:
            raise RefusedError(
                f"it forgot what was normal at first: {mine:.3f} nats a session, the model in force {theirs:.3f}"
            )


def _weights_of_sessions(view: View, chosen: Bools) -> Floats:
    """1/sqrt(n) for each of n chosen sessions with the same templates, 0 for the others: float64 [S]."""
    kinds = [view.templates[start:end].tobytes() for start, end in pairwise(view.offsets.tolist())]
    often = Counter(kind for kind, one in zip(kinds, chosen.tolist(), strict=True) if one)
    return np.array([often[kind] ** -0.5 if one else 0.0 for kind, one in zip(kinds, chosen.tolist(), strict=True)])


def _sessions_with_any_row(rows: Bools, view: View) -> Bools:
    """Which sessions have any of `rows`: bool [S]."""
    found: Bools = np.logical_or.reduceat(rows, view.offsets[:-1])
    return found


def _weighted_mean_surprise(surprises: Floats, rows: Bools, view: View, weights: Floats) -> float:
    """The weighted mean over sessions of the summed surprises of their `rows`, in nats."""
    each = np.add.reduceat(np.where(rows, surprises, 0.0), view.offsets[:-1])
    return float((weights * each).sum() / weights.sum())


def bounded_calibration_scores(scores: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
    """`scores` (ascending) with no quantile further than LARGEST_MOVE from that of `before`: float64 [n] ascending."""
    if not len(before):
        return scores
    # By Hazen's rule n scores are their own quantiles at these n levels, the largest included.
    same = np.quantile(before, (np.arange(len(scores)) + 0.5) / len(scores), method="hazen")
    return np.clip(scores, same * (1.0 - LARGEST_MOVE), same * (1.0 + LARGEST_MOVE))


def anchor_of(previous: Model | None, data: TrainingSet) -> dict[str, NDArray[Any]]:
    """The anchor of `previous` if it has one, otherwise the first sessions of `data`."""
    if previous is not None and "anchor" in previous.parts:
        return dict(previous.parts["anchor"])
    some = (np.arange(len(data.starts)) < ANCHOR_SESSIONS) & (data.offsets[1:] <= ANCHOR_LINES)
    kept = data.only(some)
    return {"tokens": kept.tokens, "offsets": kept.offsets, "starts": kept.starts, "ends": kept.ends}


def _rows_known_to_model(model: Model, view: View) -> Bools:
    """Which rows are ends of sessions, or lines of templates in the model's vocabulary: bool [R]."""
    known: Bools = np.isin(view.templates, model.vocabulary) | (view.templates == CLOSING)
    return known


def _transformer_surprises(model: Model, view: View) -> Floats:
    """The surprise of each row by the model's transformer, in nats."""
    return Transformer(model.parts["transformer"], model.vocabulary).score(view, Standing(view, NAMES))


def _sessions_in_anchor(anchor: Mapping[str, NDArray[Any]]) -> ClosedSessions:
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
