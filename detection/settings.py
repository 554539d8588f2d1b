"""The settings that change verdicts; the rest of the daemon's settings live in `daemon/settings.py`.

They are part of the state: a change is a frame, and a replay sees the settings that were in force.
"""

from typing import Literal

import msgspec


class FormatSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`kind`: "auto" (decided per connection from its first lines) or one of `detection.formats.KINDS`."""

    kind: str = "auto"


class SessionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`key`: "auto" (by format) or a regular expression with one group, searched in the whole line."""

    key: str = "auto"
    idle_seconds: float = 60.0
    window: int = 50


class LearningSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The quick members learn from `early_lines` on and again whenever the lines have doubled; all of them from
    `warmup_lines` on. 0 `early_lines`: the quick ones wait for the others. 0 `retrain_lines`: what is normal stays as
    all of them first learned it, whatever the stream does; answers and vouched lines count as ever."""

    early_lines: int = 5_000
    warmup_lines: int = 50_000
    retrain_lines: int = 50_000
    retrain_seconds: float = 3600.0


class AlarmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`per_day`: how many false alarms a day are acceptable; `alpha` (per session) overrides it."""

    per_day: float = 20.0
    alpha: float | None = None
    verdicts: Literal["flagged", "all"] = "flagged"


class DetectionSettings(msgspec.Struct, frozen=True):
    format: FormatSettings = FormatSettings()
    session: SessionSettings = SessionSettings()
    learning: LearningSettings = LearningSettings()
    alarms: AlarmSettings = AlarmSettings()


class RuleText(msgspec.Struct, frozen=True):
    """One rules file: `name` for messages ("builtin" for our own pack), `text` its TOML."""

    name: str
    text: str
