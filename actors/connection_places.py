"""Places for connections: a limited number is served at a time, shared by the users (peers) behind them.

A connection that comes when all are taken waits at the door: accepted, so that its user is known, and not read. Then
another gives way for it, if one may, of the user who has most places:

- any of them, for a user with fewer places: shares become equal. First those that have sent nothing, then those that
  have completed no line, and of those that are alike the one that has been idle for longest;
- for that user's own newcomers one that is idle: for IDLE_SECONDS, or SILENT_SECONDS if it has completed no line.

Nothing is lost by giving way: the receiving side is shut down, so that what the sender wrote before is read to the end
like that of any other, and what it writes afterwards fails on its side. At the door there is room for a few. Beyond
those one is refused, of the user with most places, first one that has sent nothing: it is closed unread, which resets
it if it has sent something. So neither places nor door can be held against other users. While connections wait that is
said, once.
"""

import fcntl
import logging
import select
import socket
import termios
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum

import trio

SILENT_SECONDS = 10.0
IDLE_SECONDS = 60.0
RECHECK_SECONDS = 1.0
# Connections that come and go at the limit are one event and not many.
CALM_SECONDS = 30.0
# As many wait at the door as one in so many places.
PLACES_TO_ONE_AT_THE_DOOR = 16

log = logging.getLogger(__name__)


class Said(IntEnum):
    """The most that a connection has sent so far."""

    NOTHING = 0
    BYTES = 1
    LINES = 2


@dataclass(eq=False, slots=True)
class Place:
    """A connection of the user `uid`, with a place or waiting for one. `since` is when it was last busy."""

    connection: trio.socket.SocketType
    uid: int
    since: float
    said: Said
    busy: bool = False  # a chunk of it is under way
    leaving: bool = False
    refused: bool = False
    admitted: bool = False
    decided: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True)
class Shortage:
    """`waiting`: why connections have to wait, or had to within the last CALM_SECONDS, else None. Since the start so
    many `gave_way` to others, and so many were `refused` at the door."""

    waiting: str | None = None
    gave_way: int = 0
    refused: int = 0


class Places:
    """`limit` of them. `on_change` is called with what there is a shortage of, whenever that changes."""

    def __init__(self, limit: int, on_change: Callable[[Shortage], None]) -> None:
        self._limit = limit
        self._door_limit = max(1, limit // PLACES_TO_ONE_AT_THE_DOOR)
        self._on_change = on_change
        self._shortage = Shortage()
        self._held: defaultdict[int, dict[Place, None]] = defaultdict(dict)  # by uid, the oldest first
        self._taken = 0
        self._door: dict[Place, None] = {}  # the oldest first
        self._calm = trio.CancelScope()
        self._crowded = trio.Event()

    async def take_place(
        self, connection: trio.socket.SocketType, uid: int, *, said: Said = Said.NOTHING, may_refuse: bool = True
    ) -> Place | None:
        """Its place, when there is one, until `give_place_back`; None when it is refused, and to be closed. Others may
        give way for it."""
        place = Place(connection, uid, trio.current_time(), said)
        if self._taken < self._limit and not self._door:
            self._give_place(place)
            return place
        self._door[place] = None
        try:
            while not place.decided.is_set():
                most = self._user_with_most()
                self.note_shortage(
                    f"all {self._limit:,} connections for log lines are taken, and others wait: user {most} has "
                    f"{self._places_of(most):,} of them"
                )
                self._make_way_for_newcomer(place)
                if may_refuse and len(self._door) > self._door_limit:
                    self._refuse_connection_at_door()
                with trio.move_on_after(RECHECK_SECONDS):
                    await place.decided.wait()
        except BaseException:
            self._door.pop(place, None)
            if place.admitted:
                self.give_place_back(place)
            raise
        return None if place.refused else place

    def give_place_back(self, place: Place) -> None:
        """Its connection is closed."""
        held = self._held[place.uid]
        del held[place]
        if not held:
            del self._held[place.uid]
        self._taken -= 1
        if self._door:
            # Of the user with fewest places; and a place is of no use yet to one that has sent nothing.
            def admission_order(other: Place) -> tuple[bool, int]:
                return not _has_sent_bytes(other.connection), self._places_of(other.uid)

            first = min(self._door, key=admission_order)
            del self._door[first]
            self._give_place(first)

    @contextmanager
    def marked_busy(self, place: Place) -> Iterator[None]:
        """A chunk of it is under way meanwhile."""
        place.busy = True
        try:
            yield
        finally:
            place.busy = False
            place.since = trio.current_time()

    def end_idle_connection(self) -> bool:
        """End the connection that has been idle for longest, of the user with most; False when none is idle."""
        if not self._held:
            return False
        most = self._user_with_most()
        return self._shut_down_connection(self._idle_connection_of(most))

    def note_shortage(self, reason: str) -> None:
        """A connection has to wait, for `reason`."""
        self._calm.deadline = trio.current_time() + CALM_SECONDS
        if self._shortage.waiting is None:
            self._shortage.waiting = reason
            self._on_change(self._shortage)
            self._crowded.set()

    async def log_shortages(self) -> None:
        """Log when connections begin to wait, and when they no longer do. Until cancelled."""
        shortage = self._shortage
        while True:
            await self._crowded.wait()
            gave_way, refused = shortage.gave_way, shortage.refused
            log.warning("%s; those that are idle give way", shortage.waiting)
            with self._calm:  # until none has had to wait for a while
                await trio.sleep_forever()
            self._crowded, self._calm = trio.Event(), trio.CancelScope()
            shortage.waiting = None
            self._on_change(shortage)
            log.info(
                "connections wait no longer; %d gave way, %d were refused",
                shortage.gave_way - gave_way,
                shortage.refused - refused,
            )

    def _places_of(self, uid: int) -> int:
        return len(self._held.get(uid, ()))

    def _user_with_most(self) -> int:
        return max(self._held, key=self._places_of)

    def _give_place(self, place: Place) -> None:
        place.admitted = True
        place.since = trio.current_time()
        self._held[place.uid][place] = None
        self._taken += 1
        place.decided.set()

    def _make_way_for_newcomer(self, newcomer: Place) -> None:
        """Let one more go, unless as many are leaving as wait."""
        most = self._user_with_most()
        leaving = [place for held in self._held.values() for place in held if place.leaving]
        if len(leaving) >= len(self._door):
            return
        # Those that leave soon do not count, or one newcomer after the other would push out too many.
        of_most = [place for place in self._held[most] if not place.leaving]
        fewer = self._places_of(newcomer.uid) + 1 < len(of_most)
        if newcomer.uid != most and fewer and _has_sent_bytes(newcomer.connection):
            self._shut_down_connection(min(of_most, key=_giving_way_order))
        else:
            self._shut_down_connection(self._idle_connection_of(most))

    def _idle_connection_of(self, uid: int) -> Place | None:
        """The one of this user that gives way to those that come after it, if one may."""
        now = trio.current_time()
        idle = [
            place
            for place in self._held[uid]
            if not place.leaving
            and not place.busy
            and now >= place.since + (IDLE_SECONDS if place.said is Said.LINES else SILENT_SECONDS)
        ]
        # One that is readable has sent something, or ended: that is not read yet.
        return next(
            (place for place in sorted(idle, key=_giving_way_order) if not _connection_readable(place.connection)), None
        )

    def _shut_down_connection(self, place: Place | None) -> bool:
        """Let it give way: nothing more can be sent on it, and what was sent is read to the end. False without one."""
        if place is None:
            return False
        place.leaving = True
        place.connection.shutdown(socket.SHUT_RD)
        self._shortage.gave_way += 1
        self._on_change(self._shortage)
        return True

    def _refuse_connection_at_door(self) -> None:
        """Refuse one of those that wait, of the user with most places."""
        most = max(self._places_of(place.uid) for place in self._door)
        door = [place for place in self._door if self._places_of(place.uid) == most]
        # One that has sent something has more to lose; of those it is the last that came.
        silent = (place for place in door if not _has_sent_bytes(place.connection))
        place = next(silent, door[-1])
        del self._door[place]
        place.refused = True
        place.decided.set()
        self._shortage.refused += 1
        self._on_change(self._shortage)


def _giving_way_order(place: Place) -> tuple[Said, float]:
    """The lower, the sooner it gives way."""
    return place.said, place.since


def _connection_readable(connection: trio.socket.SocketType) -> bool:
    """Whether bytes wait to be read, or its end."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _has_sent_bytes(connection: trio.socket.SocketType) -> bool:
    """Whether bytes wait; one that hung up without any has nothing to lose."""
    waiting = fcntl.ioctl(connection.fileno(), termios.FIONREAD, bytes(4))
    return waiting != bytes(4)
