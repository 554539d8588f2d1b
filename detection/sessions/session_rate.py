"""How many sessions a day of log time close: the alarm budget is divided by it."""

import math
from dataclasses import dataclass

from detection.columns.state_columns import Scalars

_DAY = 86_400.0
_MEMORY_DAYS = 7.0


@dataclass(slots=True)
class SessionRate(Scalars):
    """The past week's sessions and days, older ones fading."""

    sessions: float = 0.0
    days: float = 0.0
    clock: float = math.nan

    def observe(self, closed: int, now: float) -> None:
        if not math.isnan(self.clock) and now > self.clock:
            self.days += (now - self.clock) / _DAY
        self.clock = now
        self.sessions += closed
        if self.days > _MEMORY_DAYS:
            self.sessions, self.days = self.sessions / 2, self.days / 2

    def per_day(self) -> float:
        """As if an hour had passed at least, so that the first minutes give no extreme rate."""
        return self.sessions / max(self.days, 1 / 24)
