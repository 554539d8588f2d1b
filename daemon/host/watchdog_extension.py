"""Keeps the service manager from taking us for hung, or for failed, while something takes long."""

import time
from collections.abc import Callable

import trio

from daemon.host.notify import Notifier

ALIVE_SECONDS = 2.0  # how often the manager is notified
ALIVE_GRACE_SECONDS = 30.0


class WatchdogExtension:
    """`alive` (the watchdog) and `extend` (more time to start) may be called from any thread, as often as one likes."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self.alive = _at_most_every(ALIVE_SECONDS, notifier.watchdog)
        self.extend = _at_most_every(ALIVE_SECONDS, self._extend_start_time)

    async def extend_until(self, event: trio.Event) -> None:
        """Ask for more time to start, until `event`. The watchdog is fed by others."""
        while not event.is_set():
            self._extend_start_time()
            with trio.move_on_after(ALIVE_SECONDS):
                await event.wait()

    async def hold_until(self, event: trio.Event) -> None:
        """Say that we are alive and need more time, until `event`: what goes on is waiting, for a disk for instance."""
        while not event.is_set():
            self.alive()
            self._extend_start_time()
            with trio.move_on_after(ALIVE_SECONDS):
                await event.wait()

    def _extend_start_time(self) -> None:
        self._notifier.extend(ALIVE_GRACE_SECONDS)


def _at_most_every(seconds: float, act: Callable[[], None]) -> Callable[[], None]:
    """`act`, but at most once in `seconds` however often it is called."""
    last = -seconds

    def act_if_due() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            act()

    return act_if_due
