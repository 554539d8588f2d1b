"""The settings that affect verdicts; the daemon's other settings are in `daemon/settings_file.py`.

They are part of the state: a change is a frame, so a replay uses the settings that were in force.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec


class FormatSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`kind`: "auto" (decided per connection from its first lines) or one of `detection.formats.kinds.KINDS`."""

    kind: str = "auto"


class SessionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`key`: "auto" (by format) or a regular expression with one group, searched in the whole line."""

    key: str = "auto"
    idle_seconds: float = 60.0
    window: int = 50


class LearningSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When models are trained (`detection.learning.training_schedule`).

    early_lines      the early members are trained from here on, and again whenever the lines have doubled; 0: never
                     before the others
    warmup_lines     all members are trained from here on
    retrain_lines    at least, between two trainings; 0: nothing is learned from the stream after the first full
                     training, only answers and vouched lines count
    retrain_seconds  at least, between two trainings
    """

    early_lines: int = 5_000
    warmup_lines: int = 50_000
    retrain_lines: int = 50_000
    retrain_seconds: float = 3600.0


class AlarmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`per_day`: the alarm budget, in incidents a day; `alpha`, the level for a session, overrides it. `verdicts`:
    which ones are written."""

    per_day: float = 20.0
    alpha: float | None = None
    verdicts: Literal["flagged", "all"] = "flagged"


class DetectionSettings(msgspec.Struct, frozen=True):
    """All of them, as a settings frame holds them."""

    format: FormatSettings = FormatSettings()
    session: SessionSettings = SessionSettings()
    learning: LearningSettings = LearningSettings()
    alarms: AlarmSettings = AlarmSettings()


# Of values, by section and key; both ends inclusive.
BOUNDS: Mapping[str, tuple[float, float]] = {
    "session.idle_seconds": (0.1, 604_800),
    "session.window": (2, 1000),
    "learning.early_lines": (0, 100_000_000),
    "learning.warmup_lines": (100, 100_000_000),
    "learning.retrain_lines": (0, 1_000_000_000),
    "learning.retrain_seconds": (0, 31_536_000),
    "alarms.per_day": (0.001, 1_000_000),
    "alarms.alpha": (1e-9, 0.5),
}


class RuleText(msgspec.Struct, frozen=True):
    """One rules file: `name` for messages ("builtin" for our own pack), `text` its TOML."""

    name: str
    text: str
