"""Turns: which connection may have its next chunk journaled, so that many fast senders do not keep out a slow one.

The sequencer journals chunks in order, no faster than scoring takes them. So the next sender has to wait for all that
is under way, which is kept small as soon as several want to send: ROUND_BYTES, in equal shares for the users (peers)
behind the connections. Within a peer's share the connection that was served least comes first; one that
comes anew, or has wanted little for a while, counts as served a chunk less than those that have turns. So it is next,
however many others flood. A connection alone takes large chunks.
"""

import heapq
from dataclasses import dataclass, field
from itertools import count

import trio

CHUNK_BYTES = 256 * 1024  # of a connection that is alone
ROUND_BYTES = 128 * 1024  # under way at a time when several want to send
SHARED_CHUNK_BYTES = 32 * 1024
LEAST_SHARE_BYTES = 8 * 1024


@dataclass(eq=False, slots=True)
class Flow:
    """One connection: `served` bytes, by its peer's clock, and how many bytes of a chunk under way count."""

    peer: "_Peer"
    served: int
    under_way: int = 0


@dataclass(eq=False, slots=True)
class _Peer:
    """`clock` is the most that a connection had been served before its turn came."""

    uid: int
    flows: int = 0
    clock: int = 0
    turns: int = 0  # given, and not over
    under_way: int = 0
    waiting: list[tuple[int, int, Flow, trio.Event]] = field(default_factory=list)  # a heap: the least served first


class Turns:
    """A connection joins once, and then takes a turn for each chunk: `take`, `took`, and `over` when it is durable."""

    def __init__(self) -> None:
        self._peers: dict[int, _Peer] = {}
        self._active: set[_Peer] = set()  # with turns, or waiting for one
        self._tickets = count()

    def join_connection(self, uid: int) -> Flow:
        """A connection of the user `uid`, until `leave_connection`."""
        peer = self._peers.setdefault(uid, _Peer(uid))
        peer.flows += 1
        return Flow(peer, peer.clock - SHARED_CHUNK_BYTES)

    def leave_connection(self, flow: Flow) -> None:
        flow.peer.flows -= 1
        if not flow.peer.flows:
            del self._peers[flow.peer.uid]

    async def wait_for_turn(self, flow: Flow) -> int:
        """How many bytes of `flow` may be journaled, once it is its turn; `end_turn` ends that. Cancelled: no turn."""
        peer = flow.peer
        ticket = (max(flow.served, peer.clock - SHARED_CHUNK_BYTES), next(self._tickets), flow, trio.Event())
        heapq.heappush(peer.waiting, ticket)
        self._active.add(peer)
        self._give_turns(peer)
        try:
            await ticket[-1].wait()
        except BaseException:
            if ticket[-1].is_set():
                self.end_turn(flow)
            else:
                peer.waiting.remove(ticket)
                heapq.heapify(peer.waiting)
                self._settle_peer(peer)
            raise
        alone = len(self._active) == 1 and peer.turns == 1 and not peer.waiting
        return CHUNK_BYTES if alone else self._shared_chunk_bytes()

    def use_turn(self, flow: Flow, size: int) -> None:
        """The turn is used for `size` bytes. What is beyond its share of a round (the connection was alone) does not
        count as under way: who comes now is not to wait for it."""
        flow.served += size
        unused = flow.under_way - min(size, flow.under_way)
        flow.under_way -= unused
        flow.peer.under_way -= unused
        self._give_turns(flow.peer)

    def end_turn(self, flow: Flow) -> None:
        """The chunk is durable, or there is none."""
        peer = flow.peer
        peer.turns -= 1
        peer.under_way -= flow.under_way
        flow.under_way = 0
        self._give_turns(peer)
        self._settle_peer(peer)

    def _give_turns(self, peer: _Peer) -> None:
        """Let the connections of `peer` have turns, those served least first, until its share is under way."""
        while peer.waiting and (not peer.turns or peer.under_way < self._peer_share_bytes()):
            served, _, flow, event = heapq.heappop(peer.waiting)
            flow.served = served
            peer.clock = max(peer.clock, served)
            flow.under_way = self._shared_chunk_bytes()
            peer.under_way += flow.under_way
            peer.turns += 1
            event.set()

    def _settle_peer(self, peer: _Peer) -> None:
        """With `peer` done, the shares of the others are larger."""
        if not peer.turns and not peer.waiting and peer in self._active:
            self._active.remove(peer)
            for other in self._active:
                self._give_turns(other)

    def _peer_share_bytes(self) -> int:
        return max(ROUND_BYTES // len(self._active), LEAST_SHARE_BYTES)

    def _shared_chunk_bytes(self) -> int:
        return min(self._peer_share_bytes(), SHARED_CHUNK_BYTES)
