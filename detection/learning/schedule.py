"""When the next model is to be trained, and why.

Counted in lines there were to learn from (`learned`): those of the stream and those vouched for. The quick members are
due at `early_lines` and whenever the lines have doubled, all of them at `warmup_lines` and then every `retrain_lines`;
at once when a vouched file has ended; and soon when something has been admitted that the model in force does not know.

With `retrain_lines` 0 nothing more is learned from the stream once a full model has been in force, and nothing is
admitted; a vouched file still is what the operator wants learned, beside what that model was.
"""

from dataclasses import dataclass

from detection.columns.state import Scalars
from detection.frames import TrainingCutoff
from detection.settings import LearningSettings

REFRESH_LINES = 1000  # between two trainings because something new was admitted


@dataclass(frozen=True, slots=True)
class LearnedSoFar:
    """`learned` lines there were to learn from; `admissions` counts causes admitted; a model is in force, of all
    members; a vouched file is on its way."""

    learned: int
    admissions: int
    has_model: bool
    complete: bool
    uploading: bool


@dataclass(slots=True)
class Schedule(Scalars):
    """trained_at     how much had been learned when the last training set was taken
    admissions_at  how many causes had been admitted then
    vouched_at     seq at which a vouched file ended that is to be learned from now, 0: there is none
    fulfilled      a model of all members has been in force
    """

    trained_at: int = 0
    admissions_at: int = 0
    vouched_at: int = 0
    fulfilled: bool = False

    def trained(self, cutoff: TrainingCutoff, learned: int) -> None:
        """A training that knew the stream up to `cutoff` is over: count from there to the next one.

        What came while the model was trained is still to be learned from.
        """
        self.trained_at, self.admissions_at = min(cutoff.learned, learned), cutoff.admissions
        if self.vouched_at <= cutoff.seq:
            self.vouched_at = 0

    def closed(self, learning: LearningSettings) -> bool:
        """What is normal was learned once, and the settings say that it stays so. The operator is still heard."""
        return learning.retrain_lines == 0 and self.fulfilled

    def urgent(self, learning: LearningSettings, now: LearnedSoFar) -> bool:
        """Something has been called normal that the model in force does not know: by the operator, or by the stream."""
        admitted = now.has_model and now.admissions > self.admissions_at and not self.closed(learning)
        return self.vouched_at > 0 or (admitted and now.learned - self.trained_at >= REFRESH_LINES)

    def due(self, learning: LearningSettings, now: LearnedSoFar) -> bool:
        """Time for the quick members, for all of them for the first time, or for all of them again."""
        if self.urgent(learning, now):
            return True
        if now.uploading:
            return False  # more is on its way, and there is a better moment than in the middle of it
        if self.closed(learning):
            return not now.has_model
        # With nothing to come after it, a first full model that was refused or lost is tried again like the first.
        again = now.learned - self.trained_at >= (learning.retrain_lines or learning.warmup_lines)
        if now.complete:
            return again
        if now.learned < learning.warmup_lines:
            return 0 < learning.early_lines <= now.learned and now.learned >= 2 * self.trained_at
        # `trained_at` reaches the warm-up when a first full model was refused or lost: then as after any other.
        return self.trained_at < learning.warmup_lines or not now.has_model or again
