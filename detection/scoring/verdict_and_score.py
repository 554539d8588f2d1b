"""The four verdicts on a line or a session, and the contract's score."""

import numpy as np
from numpy.typing import NDArray

VERDICTS = ("normal", "novel", "anomaly", "attack")
NORMAL, NOVEL, ANOMALY, ATTACK = range(4)
_JUST_BELOW = 0.499


def verdict_of(
    p: NDArray[np.float64],
    alpha: float,
    hit: NDArray[np.float64],
    flagged_as: NDArray[np.uint8],
    known: NDArray[np.bool_],
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The verdict on each of n rows, uint8 [n], and its score in 0..1, float64 [n].

    `p` is nan where no member judges, `hit` the confidence of the surest rule that matched, 0: none did; `flagged_as`
    is what the session was flagged as by then, NORMAL: it was not; `known` whether the model in force has seen the
    line's template.

    A line that a rule matched is an attack. From the line on at which the members flag a session, its other lines have
    the session's verdict; in other sessions a line whose template the model never saw is novel. A score of .5 and more
    comes from a rule or a p below `alpha`; where a known cause explains such a p, the score stays just below.
    """
    verdict = np.where(known, NORMAL, NOVEL).astype(np.uint8)
    verdict = np.where(flagged_as > 0, flagged_as, verdict)
    verdict[hit > 0.0] = ATTACK
    surprise = np.where(np.isnan(p) | (alpha <= 0.0), 0.0, alpha / (alpha + np.where(np.isnan(p), 1.0, p)))
    explained = (p < alpha) & (flagged_as == 0)
    surprise = np.where(explained, np.minimum(surprise, _JUST_BELOW), surprise)
    return verdict, np.maximum(surprise, hit)
