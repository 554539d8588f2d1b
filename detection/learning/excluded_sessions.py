"""Which sessions of the history are not learned from, because of the operator's answers or the detector's verdicts."""

import numpy as np
from numpy.typing import NDArray

from detection.causes.fingerprints import new_causes, shape_causes, value_causes
from detection.causes.known_causes import KnownCauses
from detection.columns.runs import repeat_per_row
from detection.members.fitted_member_view import COUNT_BUCKETS, with_templates_counted
from detection.models.training_set import ClosedSessions

Bools = NDArray[np.bool_]


def bad_and_flagged(sessions: ClosedSessions, known: KnownCauses) -> tuple[Bools, Bools]:
    """The sessions that are never learned from, and those that were flagged and are not normal now: bool [S] each.

    A session whose final shape is normal now counts as normal: it was unusual only on its way there.
    """
    bad = sessions.tainted | known.which_are_bad(sessions.causes) | _with_a_bad_template(sessions, known)
    normal = known.which_are_normal(sessions.causes)
    normal |= known.which_are_normal(_final_shapes(sessions)) & ~_by_value_or_source(sessions)
    return bad, sessions.flagged & ~normal


def _with_a_bad_template(sessions: ClosedSessions, known: KnownCauses) -> Bools:
    """Which sessions have a template whose cause NEW was answered "anomaly": bool [S].

    Whether or not they were flagged for it: by the time of the answer the template may have been admitted and learned.
    """
    templates = np.unique(sessions.tokens)
    bad = np.isin(sessions.tokens, templates[known.which_are_bad(new_causes(templates))])
    found: Bools = np.bincount(repeat_per_row(sessions.offsets)[bad], minlength=len(sessions.starts)) > 0
    return found


def _final_shapes(sessions: ClosedSessions) -> NDArray[np.uint64]:
    """The cause of each session's shape at its end: uint64 [S]."""
    none = np.zeros((len(sessions.starts), COUNT_BUCKETS), dtype=np.uint8)
    counts = with_templates_counted(none, sessions.tokens, repeat_per_row(sessions.offsets))
    return shape_causes(counts, np.ones(len(counts), dtype=np.bool_))


def _by_value_or_source(sessions: ClosedSessions) -> Bools:
    """Which were flagged for unusual values or for their client's behaviour, which no shape makes normal: bool [S]."""
    session = repeat_per_row(sessions.offsets)
    by_value = session[value_causes(sessions.tokens) == sessions.causes[session]]
    found: Bools = np.bincount(by_value, minlength=len(sessions.starts)) > 0
    found |= sessions.causes == sessions.keys
    return found
