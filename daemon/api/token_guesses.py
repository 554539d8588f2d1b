"""Wrong tokens: each network that sends them waits longer for its next answer, and the log says so.

The wait comes before the token is looked at, so hanging up and asking anew is no faster. It is bounded, and only for
requests with a token from that network: all others, and those without one, never wait. A right token from the same
network waits MAX_WAIT_SECONDS at most, or is refused like the others when too many wait already.
"""

import logging
from dataclasses import dataclass

import trio

from daemon.api.peers import Peer
from daemon.api.waiting import GivingWay, WaitingRequests

FREE_GUESSES = 3  # a mistyped or outdated token
FIRST_WAIT_SECONDS = 0.25  # after those; it doubles with each guess
MAX_WAIT_SECONDS = 2.0
FORGET_SECONDS = 60.0  # without a guess
MAX_NETWORKS = 1024  # remembered; the one that has not guessed for the longest makes room

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Guesser:
    guesses: int = 0
    last_time: float = 0.0


class TokenGuesses:
    """Counts wrong tokens by the network that they come from."""

    def __init__(self) -> None:
        self._guessers: dict[str, _Guesser] = {}
        self._waiting = WaitingRequests("for their tokens, after wrong ones,")

    async def wait_before_answer(self, peer: Peer, giving_way: GivingWay) -> None:
        """To be awaited before a token of `peer` is looked at. Raises `ControlError` 429 when too many wait."""
        guesser = self._known_guesser(peer)
        over = guesser.guesses - FREE_GUESSES if guesser else -1
        if over >= 0:
            with self._waiting.waiting(peer, giving_way):
                await trio.sleep(min(MAX_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(over, 10)))

    def count_wrong_token(self, peer: Peer, request: str) -> None:
        """A token of `peer` was wrong. Logged at the first, second, fourth, eighth... of a network."""
        guesser = self._known_guesser(peer) or _Guesser()
        guesser.guesses += 1
        guesser.last_time = trio.current_time()
        self._guessers.pop(peer.network, None)  # to the end: the first is the one that makes room
        self._guessers[peer.network] = guesser
        if len(self._guessers) > MAX_NETWORKS:
            del self._guessers[next(iter(self._guessers))]
        if guesser.guesses & (guesser.guesses - 1) == 0:
            log.warning(
                "audit: %s sent a wrong token with %s; %d from %s so far",
                *(peer.name, request, guesser.guesses, peer.network or "there"),
            )

    def _known_guesser(self, peer: Peer) -> _Guesser | None:
        guesser = self._guessers.get(peer.network)
        if guesser is None or trio.current_time() - guesser.last_time > FORGET_SECONDS:
            return None
        return guesser
