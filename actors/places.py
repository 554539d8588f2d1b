"""Places for connections: a limited number is served at a time, and others wait in the kernel's backlog.

The kernel says that a connection waits there, and not how many do. While one waits it is logged once, and a
connection that has never sent a byte gives way, the oldest first and none before it was silent for SILENT_SECONDS.
Nothing is lost by that: its receiving side is shut down, so that what its sender wrote before is read to the end like
that of any other, and what it writes afterwards fails on its side.
"""

import logging
import select
import socket
from collections.abc import Callable

import trio

SILENT_SECONDS = 10.0
RECHECK_SECONDS = 1.0
# Connections that come and go at the limit are one event and not many.
CALM_SECONDS = 30.0

log = logging.getLogger(__name__)


class Places:
    """`limit` of them. `on_change(waiting, gave_way)` is called when either changes: why connections have to wait, or
    had to within the last CALM_SECONDS, else None; and how many were closed for others so far."""

    def __init__(self, limit: int, on_change: Callable[[str | None, int], None]) -> None:
        self._waiting: str | None = None
        self._gave_way = 0
        self._limit = limit
        self._on_change = on_change
        self._free = trio.Semaphore(limit)
        self._silent: dict[trio.socket.SocketType, float] = {}  # and since when, the oldest first
        self._calm = trio.CancelScope()
        self._crowded = trio.Event()

    async def take(self) -> None:
        """Return when there is a place, which is the caller's until `give_back`. Others may give way for it."""
        try:
            self._free.acquire_nowait()
            return
        except trio.WouldBlock:
            let_go = False
        while True:
            self.short_of(f"all {self._limit:,} connections for log lines are taken, and others wait")
            let_go = let_go or self.let_go()
            with trio.move_on_after(RECHECK_SECONDS):
                await self._free.acquire()
                return

    def give_back(self, connection: trio.socket.SocketType | None = None) -> None:
        """The place is free again; `connection`, which had it, is closed."""
        if connection is not None:
            self._silent.pop(connection, None)
        self._free.release()

    def is_silent(self, connection: trio.socket.SocketType) -> None:
        """It has sent nothing yet."""
        self._silent[connection] = trio.current_time()

    def spoke(self, connection: trio.socket.SocketType) -> None:
        self._silent.pop(connection, None)

    def let_go(self) -> bool:
        """End the connection that has been silent for longest; False when there is none to end."""
        for connection, since in list(self._silent.items()):
            if trio.current_time() < since + SILENT_SECONDS:
                return False
            del self._silent[connection]
            if _readable(connection):
                continue  # it has sent something, or ended: that is not read yet
            connection.shutdown(socket.SHUT_RD)
            self._gave_way += 1
            self._on_change(self._waiting, self._gave_way)
            return True
        return False

    def short_of(self, reason: str) -> None:
        """A connection has to wait, for `reason`."""
        self._calm.deadline = trio.current_time() + CALM_SECONDS
        if self._waiting is None:
            self._waiting = reason
            self._on_change(reason, self._gave_way)
            self._crowded.set()

    async def watch(self) -> None:
        """Log when connections begin to wait, and when they no longer do. Until cancelled."""
        while True:
            await self._crowded.wait()
            before = self._gave_way
            log.warning("%s; those that have sent nothing for %d s give way", self._waiting, SILENT_SECONDS)
            with self._calm:  # until none has had to wait for a while
                await trio.sleep_forever()
            self._crowded, self._waiting, self._calm = trio.Event(), None, trio.CancelScope()
            self._on_change(None, self._gave_way)
            log.info("connections wait no longer; %d that had sent nothing gave way", self._gave_way - before)


def _readable(connection: trio.socket.SocketType) -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
