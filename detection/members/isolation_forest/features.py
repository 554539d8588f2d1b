"""The features of a row: the input of the Isolation Forest, and those that explanations compare with usual values."""

import numpy as np

from detection.members.fitted_member_view import Floats, Standing

JUDGED = ("transformer", "ngram", "counts")
_REACHED = (*JUDGED, "values", "sources")
FEATURES = (*_REACHED, "log_length", "distinct", "error_share", "rate")


def forest_input(standing: Standing) -> Floats:
    """The input of the forest for each row: float64 [R, 3], the running maxima of JUDGED."""
    return np.stack([standing.reached[:, standing.column[name]] for name in JUDGED], axis=1)


def shown_features(standing: Standing) -> Floats:
    """The features that explanations show: float64 [R, len(FEATURES)]."""
    reached = [standing.reached[:, standing.column[name]] for name in _REACHED]
    plain = [standing.log_length, standing.distinct, standing.error_share, standing.rate]
    return np.stack([*reached, *plain], axis=1)
