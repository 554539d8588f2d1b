"""What can be said of a line or a session: the four verdicts, and the contract's score."""

VERDICTS = ("normal", "novel", "anomaly", "attack")
NORMAL, NOVEL, ANOMALY, ATTACK = range(4)


def severity_score(p: float, alpha: float, confidence: float) -> float:
    """The contract's score in 0..1: .5 and more is flagged, by a p below `alpha` or by a rule's confidence."""
    surprise = alpha / (alpha + p) if p == p and alpha > 0.0 else 0.0
    return max(surprise, confidence)
