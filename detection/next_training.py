"""The next training: its training set, its cutoff, and the facts that its schedule depends on.

All are functions of the state's parts and of `model`, the one in force (None if there is none).
"""

from detection.detector_state import Parts
from detection.learning.excluded_sessions import bad_and_flagged
from detection.learning.training_schedule import LearnedSoFar
from detection.models.model import Model
from detection.models.training_set import TrainingCutoff, TrainingSet
from detection.sessions.history import History

UPLOAD_GONE_LINES = 5000  # since the last vouched line; after that the rest of the file is not waited for


def training_set(parts: Parts, model: Model | None, alpha: float) -> TrainingSet:
    """The training set of the next generation; a copy. `alpha` is the level in force."""
    sessions = parts.history.closed_sessions()
    bad, flagged = bad_and_flagged(sessions, parts.known)
    generation = parts.generations + 1
    return TrainingSet(
        **{**vars(sessions), "tainted": bad, "flagged": flagged},
        generation=generation,
        line=parts.line,
        seed=generation,
        full=parts.learned >= parts.settings.learning.warmup_lines or parts.schedule.fulfilled,
        alpha=alpha,
        templates=parts.templates.export(),
        previous=model,
        studied=training_cutoff(parts),
    )


def training_cutoff(parts: Parts) -> TrainingCutoff:
    """The cutoff of a training set that is taken now."""
    return TrainingCutoff(parts.seq, parts.learned, parts.known.admissions)


def history_of_stream(parts: Parts, model: Model | None) -> History | None:
    """The history that lines of the stream are added to; None while nothing more is learned from the stream.

    What it holds already stays: vouched files add to it, and a lost model can be trained again.
    """
    closed = model is not None and parts.schedule.learning_ended(parts.settings.learning)
    return None if closed else parts.history


def learned_so_far(parts: Parts, model: Model | None) -> LearnedSoFar:
    """The facts that the schedule depends on, as of the last frame."""
    file = parts.vouching.file
    return LearnedSoFar(
        learned=parts.learned,
        admissions=parts.known.admissions,
        has_model=model is not None,
        complete=model is not None and model.complete,
        uploading=file is not None and parts.line - file.at_line < UPLOAD_GONE_LINES,
    )
