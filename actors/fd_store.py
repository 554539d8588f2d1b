"""Whether the service manager really keeps what it was given to keep.

It never says. A store that is full (systemd's FileDescriptorStoreMax=) closes what it has no room for, and nobody
hears of it. So after connections were given to it, it is asked whether there is room for one more: then there was for
them. If not, connections go on being accepted, as they would without a store: a kill resets them, and what was
accepted of them counts once. How many they are is told, and they are given to the store again until there is room.

The question takes a place itself, so a store with room for exactly the connections there are counts as full.
"""

import logging
from collections.abc import Callable

import trio

from actors.peek_mark import Keeper

PAUSE_SECONDS = 0.2  # one question serves all connections of that time
RETRY_SECONDS = 5.0

log = logging.getLogger(__name__)


class Keeping:
    """Connections in the care of `keeper`; `told(n)` is called when `n` of them, at most, would not outlive us."""

    def __init__(self, keeper: Keeper, told: Callable[[int], None]) -> None:
        self._keeper = keeper
        self._told = told
        self._unsure: dict[str, int] = {}
        self._missing = 0
        self._forgotten = 0
        self._came = trio.Event()

    def keep(self, name: str, descriptor: int) -> None:
        """Until `forget`. At once: killed between accepting and this, we take the connection with us."""
        self._keeper.keep(name, descriptor)
        self._unsure[name] = descriptor
        self._came.set()

    def forget(self, name: str) -> None:
        self._keeper.forget(name)
        self._forgotten += 1

    def closed(self, name: str) -> None:
        """We close it: to be called before, its number may soon be another's."""
        self._unsure.pop(name, None)

    async def watch(self) -> None:
        """Ask, whenever connections came and until there was room for all of them. Until cancelled."""
        while True:
            with trio.move_on_after(RETRY_SECONDS if self._missing else float("inf")):
                await self._came.wait()
            self._came = trio.Event()
            await self._ask()
            await trio.sleep(PAUSE_SECONDS)

    async def _ask(self) -> None:
        if self._missing:
            # What found no room is given again once there is some: room that came later says nothing of it.
            if not await self._has_room():
                self._tell(len(self._unsure))
                return
            for name, descriptor in self._unsure.items():
                self._keeper.keep(name, descriptor)
        asked, forgotten = list(self._unsure), self._forgotten
        has_room = await self._has_room()
        if has_room and forgotten == self._forgotten:
            for name in asked:
                self._unsure.pop(name, None)
            self._tell(0)
        elif has_room is False:
            self._tell(len(self._unsure))
        else:
            # No answer; or a place became free in between, and may be all the room there is.
            self._came.set()

    async def _has_room(self) -> bool | None:
        return await trio.to_thread.run_sync(self._keeper.has_room, abandon_on_cancel=True)

    def _tell(self, missing: int) -> None:
        if missing and not self._missing:
            log.warning("the service manager's store is full: %d connections would not outlive this process", missing)
        elif self._missing and not missing:
            log.info("the service manager's store has room again")
        if missing != self._missing:
            self._missing = missing
            self._told(missing)
