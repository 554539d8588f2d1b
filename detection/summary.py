"""The summary of the detector for the rest of the daemon: plain numbers as of one frame."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from detection.learning.training_schedule import LearnedSoFar
from detection.members.failing_members import Withdrawn
from detection.models.model import Model

if TYPE_CHECKING:  # readers of a summary need not import what the parts import
    from detection.detector_state import Parts


@dataclass(frozen=True, slots=True)
class Summary:
    """The facts as of frame `seq` and line `line`; the defaults are those of an empty state."""

    seq: int = 0
    line: int = 0
    log_time: float | None = None  # the log clock, seconds since the epoch
    warmup_lines: int = 0
    lines_since_training: int = 0
    training_due: bool = False
    training_urgent: bool = False  # due, and not to wait for `retrain_seconds`
    generation: int = 0
    model_line: int = 0
    members: tuple[str, ...] = ()  # of the model in force that judge
    unfitted: tuple[tuple[str, str], ...] = ()  # those that it was trained without, each with the reason
    withdrawn: tuple[Withdrawn, ...] = ()  # those that do not
    templates: int = 0
    templates_created: int = 0
    templates_evicted: int = 0
    vocabulary: int = 0  # templates the model in force was trained on
    sessions_open: int = 0
    sessions_closed: int = 0
    sessions_evicted: int = 0
    sources_evicted: int = 0  # whose counters made room for others
    history_sessions: int = 0  # closed sessions held for the next training
    history_rows: int = 0
    rules: int = 0
    rule_hits: int = 0
    flagged: int = 0
    cut_lines: int = 0
    unterminated_lines: int = 0
    future_lines: int = 0  # whose time lay more than a day ahead and was not believed
    lost_lines: int = 0
    alpha: float = 0.0
    floor_binding: bool = False
    sessions_per_day: float = 0.0
    calibration: int = 0
    restored: int = 0  # seq of the last restore
    incidents_opened: int = 0
    incidents_open: int = 0
    incidents_digest: int = 0  # of those opened, how many wait in the digest
    incidents_evicted: int = 0  # made room in the table
    alerts_recorded: int = 0  # in full
    alerts_counted: int = 0  # in counting records
    alerts_waiting: int = 0  # in counts under way
    counting_records: int = 0
    answers: int = 0  # the operator's, in force
    answers_dropped: int = 0
    admitted: int = 0  # causes that are normal by their share of the stream
    admitted_dropped: int = 0
    models_refused: int = 0
    refusal: str = ""  # why the last model that came does not take effect, "" when it does
    vouched_lines: int = 0
    vouched_rule_hits: int = 0  # of those lines, how many a rule matched: they are not learned from
    vouched_sessions: int = 0
    vouched_waiting: bool = False  # a vouched file has ended that no model has learned from


def summary_of(
    parts: "Parts",
    model: Model | None,
    members: tuple[str, ...],
    rules: int,
    so_far: LearnedSoFar,
    level: tuple[float, bool],
) -> Summary:
    """The summary as of the last frame.

    `members` are those that judge; `rules` is the number of rules; `level` is alpha, and whether it is at its floor.
    """
    learning, counters, now = parts.settings.learning, parts.counters, parts.clock.now
    alpha, floor_binding = level
    return Summary(
        seq=parts.seq,
        line=parts.line,
        log_time=None if math.isnan(now) else now,
        warmup_lines=learning.warmup_lines,
        lines_since_training=parts.learned - parts.schedule.trained_at,
        training_due=parts.schedule.training_due(learning, so_far),
        training_urgent=parts.schedule.training_urgent(learning, so_far),
        generation=model.generation if model else 0,
        model_line=model.line if model else 0,
        members=members,
        unfitted=tuple(model.unfitted.items()) if model else (),
        withdrawn=tuple(parts.withdrawn.entries()),
        templates=len(parts.templates),
        templates_created=parts.templates.created,
        templates_evicted=parts.templates.evicted,
        vocabulary=len(model.vocabulary) if model else 0,
        sessions_open=len(parts.sessions),
        sessions_closed=counters.sessions,
        sessions_evicted=parts.sessions.evicted,
        sources_evicted=parts.online.evicted,
        history_sessions=parts.history.closed,
        history_rows=len(parts.history),
        rules=rules,
        rule_hits=counters.rule_hits,
        flagged=counters.flagged,
        cut_lines=counters.cut_lines,
        unterminated_lines=counters.unterminated_lines,
        future_lines=counters.future_lines,
        lost_lines=counters.lost_lines,
        alpha=alpha,
        floor_binding=floor_binding,
        sessions_per_day=parts.rate.per_day(),
        calibration=len(model.calibration["ensemble"]) if model else 0,
        restored=parts.restored,
        incidents_opened=parts.incidents.opened,
        incidents_open=parts.incidents.open_count(now),
        incidents_digest=parts.incidents.digested,
        incidents_evicted=parts.incidents.evicted,
        alerts_recorded=parts.incidents.recorded,
        alerts_counted=parts.incidents.counted,
        alerts_waiting=parts.incidents.waiting,
        counting_records=parts.incidents.counts,
        answers=len(parts.known.answers()),
        answers_dropped=parts.known.answers_dropped,
        admitted=parts.known.admitted,
        admitted_dropped=parts.known.admitted_dropped,
        models_refused=parts.models.refused,
        refusal=parts.models.refusal,
        vouched_lines=counters.vouched_lines,
        vouched_rule_hits=counters.vouched_rule_hits,
        vouched_sessions=counters.vouched_sessions,
        vouched_waiting=parts.schedule.vouched_at > 0,
    )
