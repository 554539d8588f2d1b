"""Whether the service manager's descriptor store really holds the connections that were given to it.

It does not report that. A store that is full (systemd's FileDescriptorStoreMax=) silently closes what it has no room
for. So after connections were given to it, we test whether it has room for one more: if so it had room for them. If
not, connections go on being accepted, as they would without a store: a kill resets them, and what was accepted of them
counts once. How many they are is reported, and they are given to the store again until there is room.

The test takes a place itself, so a store with room for exactly the connections there are counts as full.
"""

import logging
from collections.abc import Callable

import trio

from actors.journaled_mark import Keeper

PAUSE_SECONDS = 0.2  # one test serves all connections of that time
RETRY_SECONDS = 5.0

log = logging.getLogger(__name__)


class StoredConnections:
    """Connections given to `keeper`; `on_missing(n)` is called when `n` of them, at most, would not outlive us."""

    def __init__(self, keeper: Keeper, on_missing: Callable[[int], None]) -> None:
        self._keeper = keeper
        self._on_missing = on_missing
        self._unsure: dict[str, int] = {}
        self._missing = 0
        self._forgotten = 0
        self._came = trio.Event()

    def keep(self, name: str, descriptor: int) -> None:
        """Give it to the store, until `forget`. To be called at once: a kill before this ends the connection."""
        self._keeper.keep(name, descriptor)
        self._unsure[name] = descriptor
        self._came.set()

    def forget(self, name: str) -> None:
        self._keeper.forget(name)
        self._forgotten += 1

    def note_closed(self, name: str) -> None:
        """To be called before it is closed: its descriptor may soon be another connection's."""
        self._unsure.pop(name, None)

    async def watch_room(self) -> None:
        """Test after connections came, until there was room for all of them. Until cancelled."""
        while True:
            with trio.move_on_after(RETRY_SECONDS if self._missing else float("inf")):
                await self._came.wait()
            self._came = trio.Event()
            await self._test_store_for_room()
            await trio.sleep(PAUSE_SECONDS)

    async def _test_store_for_room(self) -> None:
        if self._missing:
            # What found no room is given again once there is some: room that came later does not hold it yet.
            if not await self._store_has_room():
                self._report_missing_connections(len(self._unsure))
                return
            for name, descriptor in self._unsure.items():
                self._keeper.keep(name, descriptor)
        tested, forgotten = list(self._unsure), self._forgotten
        has_room = await self._store_has_room()
        if has_room and forgotten == self._forgotten:
            for name in tested:
                self._unsure.pop(name, None)
            self._report_missing_connections(0)
        elif has_room is False:
            self._report_missing_connections(len(self._unsure))
        else:
            # No answer; or a place became free in between, and may be all the room there is.
            self._came.set()

    async def _store_has_room(self) -> bool | None:
        return await trio.to_thread.run_sync(self._keeper.has_room, abandon_on_cancel=True)

    def _report_missing_connections(self, missing: int) -> None:
        if missing and not self._missing:
            log.warning("the service manager's store is full: %d connections would not outlive this process", missing)
        elif self._missing and not missing:
            log.info("the service manager's store has room again")
        if missing != self._missing:
            self._missing = missing
            self._on_missing(missing)
