"""Requests that are made to wait: they take nobody's place, and few of a network wait at once.

A request waits for its answer with a place (`daemon/api/http_connections.py`). Where the daemon only lets time pass, or
lets others go first, it says so: then the connection gives way when others need its place.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from daemon.api.peers import Peer
from daemon.control.control_interface import ControlError

MAX_WAITING_OF_A_NETWORK = 8

GivingWay = Callable[[], AbstractContextManager[None]]
NOBODY_ELSE: GivingWay = nullcontext  # for requests without a connection, such as a test makes


class WaitingRequests:
    """Counts the requests that wait for one thing, by network. Those on the Unix socket are not counted."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._of_network: Counter[str] = Counter()

    @contextmanager
    def waiting(self, peer: Peer, giving_way: GivingWay) -> Iterator[None]:
        """To be held while a request of `peer` waits. Raises `ControlError` 429 when too many of its network do."""
        if peer.over_unix:
            yield
            return
        if self._of_network[peer.network] >= MAX_WAITING_OF_A_NETWORK:
            raise ControlError(
                429,
                "too_many_waiting",
                f"{self._of_network[peer.network]} requests from there wait {self._what} already",
            )
        self._of_network[peer.network] += 1
        try:
            with giving_way():
                yield
        finally:
            self._of_network[peer.network] -= 1
            if not self._of_network[peer.network]:
                del self._of_network[peer.network]
