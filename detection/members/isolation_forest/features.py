"""A row in numbers: what the Isolation Forest judges by, and what can stand out in an explanation."""

import numpy as np

from detection.members.view import Floats, Standing

JUDGED = ("transformer", "ngram", "counts")
_REACHED = (*JUDGED, "values", "sources")
FEATURES = (*_REACHED, "log_length", "distinct", "error_share", "rate")


def judged(standing: Standing) -> Floats:
    """What the forest sees of each row: float64 [R, 3]."""
    return np.stack([standing.reached[:, standing.column[name]] for name in JUDGED], axis=1)


def features(standing: Standing) -> Floats:
    """What can stand out in a row, for explanations: float64 [R, len(FEATURES)]."""
    reached = [standing.reached[:, standing.column[name]] for name in _REACHED]
    plain = [standing.log_length, standing.distinct, standing.error_share, standing.rate]
    return np.stack([*reached, *plain], axis=1)
