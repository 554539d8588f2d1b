"""`GET /events`: live records as server-sent events.

A comment at once, so that a client sees the stream is open; then one ``data:`` line of JSON a record, with
its id where it has one; a comment every `HEARTBEAT_SECONDS` of silence. The stream ends when the daemon
stops: an open stream would otherwise hold up the stop.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

import trio
from quart.wrappers.response import ResponseBody

from daemon.api.bodies import encode
from daemon.control.interface import Control, ControlError

HEARTBEAT_SECONDS = 15.0
MAX_STREAMS = 16
MAX_RECORDS_A_WRITE = 100


class Streams:
    """Opens event streams, at most `MAX_STREAMS` at once."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._open: set[EventStream] = set()

    def open(self, *, everything: bool) -> "EventStream":
        """Raises `ControlError` 503 when all streams are taken.

        A stream takes its place when its first byte is asked for, so a burst may overshoot by as many
        requests as are between here and there; the connection limit bounds those.
        """
        if len(self._open) >= MAX_STREAMS:
            raise ControlError(503, "too_many_streams", f"all {MAX_STREAMS} event streams are taken")
        return EventStream(self._open, self._control.events(everything=everything))


class EventStream(ResponseBody):
    """One response body. A class and not an async generator: whoever ends the response closes the
    subscription there and then, and no cancel scope lives across a yield.
    """

    def __init__(
        self,
        open_streams: set["EventStream"],
        subscription: AbstractAsyncContextManager[trio.MemoryReceiveChannel[dict[str, Any]]],
    ) -> None:
        self._open_streams = open_streams
        self._subscription = subscription
        self._records: trio.MemoryReceiveChannel[dict[str, Any]] | None = None
        self._greeted = False

    async def __aenter__(self) -> "EventStream":
        self._records = await self._subscription.__aenter__()
        self._open_streams.add(self)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._open_streams.discard(self)
        # Only closes a channel: it never waits, so there is nothing to shield.
        await self._subscription.__aexit__(exc_type, exc_value, tb)  # noqa: ASYNC102

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._greeted:
            self._greeted = True
            return b"retry: 2000\n: connected\n\n"
        assert self._records is not None, "entered before it is iterated"
        with trio.move_on_after(HEARTBEAT_SECONDS):
            try:
                events = [_event(await self._records.receive())]
            except trio.EndOfChannel:
                raise StopAsyncIteration from None
            # What waits already goes out in the same write.
            waiting = self._records.statistics().current_buffer_used
            for _ in range(min(waiting, MAX_RECORDS_A_WRITE)):
                events.append(_event(self._records.receive_nowait()))
            return b"".join(events)
        return b": still here\n\n"


def _event(record: dict[str, Any]) -> bytes:
    name = record.get("id")
    head = f"id: {name}\n".encode() if isinstance(name, str) and name.isprintable() else b""
    return head + b"data: " + encode(record) + b"\n\n"
