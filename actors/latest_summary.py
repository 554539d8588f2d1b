"""The latest summary of the state, for everyone who is not allowed at the detector."""

from typing import Generic, Protocol, TypeVar

import trio


class Summary(Protocol):
    """What the actors need of a summary; the detector's own holds more. Immutable."""

    @property
    def seq(self) -> int: ...

    @property
    def line(self) -> int: ...

    @property
    def training_due(self) -> bool: ...

    @property
    def training_urgent(self) -> bool: ...

    @property
    def restored(self) -> int: ...


S = TypeVar("S", bound=Summary)


class Published(Generic[S]):
    """One writer (scoring), any number of readers; reading `summary` never waits.

    Readers see the latest summary, not each: who is slow skips some.
    """

    def __init__(self, summary: S) -> None:
        self.summary = summary
        self._changed = trio.Event()
        self._closed = False

    def publish(self, summary: S) -> None:
        self.summary = summary
        self._wake()

    def close(self) -> None:
        """No summary will follow: who waits for one gets `trio.EndOfChannel`. Idempotent."""
        self._closed = True
        self._wake()

    async def newer(self, than: S) -> S:
        """The summary, as soon as it is another one than `than`."""
        while self.summary is than:
            await self._change()
        return self.summary

    async def wait_for(self, seq: int) -> S:
        """A summary at `seq` or later: everything through frame `seq` has been applied."""
        while self.summary.seq < seq:
            await self._change()
        return self.summary

    async def _change(self) -> None:
        if self._closed:
            raise trio.EndOfChannel
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
