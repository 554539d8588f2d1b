"""What the rest of the daemon may know of the detector at any time: plain numbers as of one frame."""

from dataclasses import dataclass

from detection.members.failing import Withdrawn


@dataclass(frozen=True, slots=True)
class Summary:
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
