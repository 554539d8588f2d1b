"""What of the history is not to be learned from: what the operator, or the detector itself, says of each session."""

import numpy as np
from numpy.typing import NDArray

from detection.causes.fingerprints import new_causes, shape_causes, value_causes
from detection.causes.known import KnownCauses
from detection.columns.runs import repeat_per_row
from detection.members.view import COUNT_BUCKETS, counted
from detection.models.training_set import ClosedSessions

Bools = NDArray[np.bool_]


def bad_and_flagged(sessions: ClosedSessions, known: KnownCauses) -> tuple[Bools, Bools]:
    """Sessions never to be learned from, and those that were found strange and that nobody has called normal since.

    bool [S] each. A session whose shape at its end is normal now was strange on the way to it only.
    """
    bad = sessions.tainted | known.bad(sessions.causes) | _with_a_bad_template(sessions, known)
    normal = known.normal(sessions.causes)
    normal |= known.normal(_final_shapes(sessions)) & ~_by_value_or_source(sessions)
    return bad, sessions.flagged & ~normal


def _with_a_bad_template(sessions: ClosedSessions, known: KnownCauses) -> Bools:
    """Which have a template that was new once, and was called an anomaly then or since: bool [S].

    Flagged for it or not: by the time of the answer it may have been admitted, and learned.
    """
    templates = np.unique(sessions.tokens)
    bad = np.isin(sessions.tokens, templates[known.bad(new_causes(templates))])
    found: Bools = np.bincount(repeat_per_row(sessions.offsets)[bad], minlength=len(sessions.starts)) > 0
    return found


def _final_shapes(sessions: ClosedSessions) -> NDArray[np.uint64]:
    """The cause that each session's shape was when it was over: uint64 [S]."""
    none = np.zeros((len(sessions.starts), COUNT_BUCKETS), dtype=np.uint8)
    counts = counted(none, sessions.tokens, repeat_per_row(sessions.offsets))
    return shape_causes(counts, np.ones(len(counts), dtype=np.bool_))


def _by_value_or_source(sessions: ClosedSessions) -> Bools:
    """Which were flagged for odd values or for what their source does, so that no shape makes them normal: bool [S]."""
    session = repeat_per_row(sessions.offsets)
    by_value = session[value_causes(sessions.tokens) == sessions.causes[session]]
    found: Bools = np.bincount(by_value, minlength=len(sessions.starts)) > 0
    found |= sessions.causes == sessions.keys
    return found
