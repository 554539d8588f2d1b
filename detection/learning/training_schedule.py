"""When the next training is due.

The schedule counts lines to learn from (`learned`), those of the stream and vouched ones. A training of the early
members is due at `early_lines` and whenever the lines have doubled; one of all members at `warmup_lines`, and then
every `retrain_lines`. A training is due at once when a vouched file has ended, and soon after the admission of a cause
that the model in force does not know.

With `retrain_lines` 0 nothing more is learned from the stream, and nothing admitted, once a full model has been in
force. A vouched file is still learned from, in addition to what that model learned from.
"""

from dataclasses import dataclass

from detection.columns.state_columns import Scalars
from detection.detection_settings import LearningSettings
from detection.models.training_set import TrainingCutoff

REFRESH_LINES = 1000  # at least, between the last training and one because of an admission


@dataclass(frozen=True, slots=True)
class LearnedSoFar:
    """The facts that the schedule depends on.

    learned     lines to learn from so far; `admissions`: causes admitted so far
    has_model   a model is in force; `complete`: it has the members that need the whole warm-up
    uploading   a vouched file has begun and not ended
    """

    learned: int
    admissions: int
    has_model: bool
    complete: bool
    uploading: bool


@dataclass(slots=True)
class Schedule(Scalars):
    """trained_at     `learned` when the last training set was taken; `admissions_at`: `admissions` at that time
    vouched_at     seq at which a vouched file ended that no model has learned from yet, 0 if there is none
    fulfilled      a model of all members has been in force
    """

    trained_at: int = 0
    admissions_at: int = 0
    vouched_at: int = 0
    fulfilled: bool = False

    def note_training(self, cutoff: TrainingCutoff, learned: int) -> None:
        """A training is over whose set was taken at `cutoff`: count from there to the next one, so that lines that came
        during the training count."""
        self.trained_at, self.admissions_at = min(cutoff.learned, learned), cutoff.admissions
        if self.vouched_at <= cutoff.seq:
            self.vouched_at = 0

    def learning_ended(self, learning: LearningSettings) -> bool:
        """Whether learning from the stream has ended: `retrain_lines` is 0, and a full model has been in force."""
        return learning.retrain_lines == 0 and self.fulfilled

    def training_urgent(self, learning: LearningSettings, now: LearnedSoFar) -> bool:
        """Whether a training is due that does not wait for `retrain_seconds`: after a vouched file, or an admission."""
        admitted = now.has_model and now.admissions > self.admissions_at and not self.learning_ended(learning)
        return self.vouched_at > 0 or (admitted and now.learned - self.trained_at >= REFRESH_LINES)

    def training_due(self, learning: LearningSettings, now: LearnedSoFar) -> bool:
        """Whether a training is due, for any of the reasons in the module's text."""
        if self.training_urgent(learning, now):
            return True
        if now.uploading:
            return False  # a training is due anyway when the file has ended
        if self.learning_ended(learning):
            return not now.has_model
        # If nothing is to follow it, a first full model that was refused or lost is due again after another warm-up.
        again = now.learned - self.trained_at >= (learning.retrain_lines or learning.warmup_lines)
        if now.complete:
            return again
        if now.learned < learning.warmup_lines:
            return 0 < learning.early_lines <= now.learned and now.learned >= 2 * self.trained_at
        # `trained_at` is past the warm-up if the first full model was refused or lost; then the usual interval holds.
        return self.trained_at < learning.warmup_lines or not now.has_model or again
