"""The log clock: the largest event time seen, robust against a line from the future.

It is the only time `apply` knows. It never goes back. A time more than an hour ahead moves it only when
20 lines in a row are as far ahead, to the earliest of them and those within an hour of it: so one line with a wrong
year closes no session, and a log of a few lines a day is followed all the same, a few lines late.
Until a line brings a time there is only the time at which lines were received. That is provisional: the
first time in the log, which may be of years ago, takes its place, and from then on no receive time does.

A time that lies more than a day ahead of when the line was received is none (`from_the_future`): the first line of a
log, or 20 in a row, could otherwise set the clock so far ahead that nothing moves it again. A day, for times without a
zone may be of any.
"""

import math
from copy import copy

import numpy as np
from numpy.typing import NDArray

from detection.columns.state_columns import Columns, State, array_column, scalar_column

LEAP_SECONDS_ALLOWED = 3600.0
AGREEING_LINES = 20
AHEAD_SECONDS_ALLOWED = 86_400.0


def from_the_future(times: NDArray[np.float64], received: float) -> NDArray[np.bool_]:
    """Which of `times` (float64 [n], nan: none) are not to be believed of lines received then: bool [n]."""
    return times > received + AHEAD_SECONDS_ALLOWED


class LogClock:
    """`now` is seconds since the epoch, nan until the first line; `timed` whether a line brought a time."""

    def __init__(self) -> None:
        self.now = math.nan
        self.timed = False
        self._ahead: list[float] = []  # the times of the last lines, all from the future

    def advance(self, times: NDArray[np.float64], received: float) -> NDArray[np.float64]:
        """The clock at each line of `times` (float64 [n], nan: the line has no time), after that line.

        `received` is when the lines came. Goes back only with the first time in the log; the lines of `times` that
        lie before that one are of the same moment.
        """
        if not len(times):
            return times.copy()
        if not self.timed:
            seen = times[~np.isnan(times)]
            if not len(seen):
                self.now = float(np.fmax(self.now, received))
                return np.full(len(times), self.now)
            self.now, self.timed = float(seen[0]), True
        known = np.where(np.isnan(times), -np.inf, times)
        running = np.maximum.accumulate(np.concatenate(([self.now], known)))
        if np.all(known - running[:-1] <= LEAP_SECONDS_ALLOWED):
            if np.any(known >= running[:-1] - LEAP_SECONDS_ALLOWED):
                self._ahead = []
            self.now = float(running[-1])
            return running[1:]
        return np.array([self._step_to_time(time) for time in times.tolist()], dtype=np.float64)

    def after_each(self, times: NDArray[np.float64], received: float) -> NDArray[np.float64]:
        """What `advance` would give for each of `times` as the next line, alone; moves nothing."""
        if not self.timed:
            return np.where(np.isnan(times), np.fmax(self.now, received), times)
        after: NDArray[np.float64] = np.fmax(self.now, times)
        for place in np.flatnonzero(times > self.now + LEAP_SECONDS_ALLOWED).tolist():
            clock = copy(self)
            clock._ahead = self._ahead.copy()
            after[place] = clock._step_to_time(float(times[place]))
        return after

    def pass_silence(self, seconds: float) -> None:
        """Move by wall time that passed without a line that has a time."""
        if seconds > 0.0:
            self.now += seconds

    def _step_to_time(self, time: float) -> float:
        """Move by one line's time; a leap ahead is believed only when several lines agree on it."""
        if math.isnan(time):
            return self.now
        if time <= self.now + LEAP_SECONDS_ALLOWED:
            if time >= self.now - LEAP_SECONDS_ALLOWED:
                self._ahead = []
            self.now = max(self.now, time)
        else:
            self._ahead.append(time)
            if len(self._ahead) == AGREEING_LINES:
                limit = min(self._ahead) + LEAP_SECONDS_ALLOWED
                self.now = max(each for each in self._ahead if each <= limit)
                self._ahead = [each for each in self._ahead if each > limit]
        return self.now

    def export(self) -> State:
        return {"now": self.now, "timed": self.timed, "ahead": np.array(self._ahead, dtype=np.float64)}

    @classmethod
    def load(cls, columns: Columns) -> "LogClock":
        clock = cls()
        clock.now = scalar_column(columns, "now", float)
        clock.timed = bool(columns["timed"])
        clock._ahead = array_column(columns, "ahead").tolist()
        return clock
