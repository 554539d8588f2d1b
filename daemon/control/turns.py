"""Requests that read much of the disk: one at a time of a kind, in a thread, and few may wait for it."""

from collections.abc import Callable
from typing import TypeVar

import trio

from daemon.control.control_interface import ControlError

T = TypeVar("T")


class Turns:
    """`doing` names the kind of work in the refusal; `waiting` requests may wait for the one that has its turn."""

    def __init__(self, doing: str, waiting: int) -> None:
        self._doing = doing
        self._waiting = waiting
        self._limiter = trio.CapacityLimiter(1)

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`, which blocks. When the caller is cancelled, a `work` that calls
        `trio.from_thread.check_cancelled` ends there, any other at its own end.

        Raises `ControlError` 503 "busy" when too many wait already.
        """
        if self._limiter.statistics().tasks_waiting >= self._waiting:
            raise ControlError(503, "busy", f"the daemon is {self._doing} for others; try again in a moment")
        return await trio.to_thread.run_sync(work, limiter=self._limiter)
