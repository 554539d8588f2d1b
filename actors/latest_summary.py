"""The latest summary of the state, for every reader that does not own the detector."""

import trio

from detection.summary import Summary


class LatestSummary:
    """One writer (scoring), any number of readers; reading `summary` never waits.

    Readers see the latest summary, not every one: a slow reader skips some.
    """

    def __init__(self, summary: Summary) -> None:
        self.summary = summary
        self._changed = trio.Event()
        self._closed = False

    def publish_summary(self, summary: Summary) -> None:
        self.summary = summary
        self._wake_summary_readers()

    def close(self) -> None:
        """No summary will follow: a reader that waits for one gets `trio.EndOfChannel`. Idempotent."""
        self._closed = True
        self._wake_summary_readers()

    async def newer_summary(self, than: Summary) -> Summary:
        """The latest summary, as soon as it is not `than` itself. Raises `trio.EndOfChannel` after `close`."""
        while self.summary is than:
            await self._next_summary()
        return self.summary

    async def wait_for_frame(self, seq: int) -> Summary:
        """A summary at `seq` or later: everything through frame `seq` is applied. Raises as `newer_summary`."""
        while self.summary.seq < seq:
            await self._next_summary()
        return self.summary

    async def _next_summary(self) -> None:
        if self._closed:
            raise trio.EndOfChannel
        await self._changed.wait()

    def _wake_summary_readers(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
