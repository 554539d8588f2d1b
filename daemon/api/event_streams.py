"""`GET /events`: live records as server-sent events.

    stream := "retry: 2000\\n: connected\\n\\n" event*
    event  := ["id: " id "\\n"] "data: " record as JSON "\\n\\n" | ": still here\\n\\n"

The first comment comes at once, so that a client sees the open stream; ": still here" after `HEARTBEAT_SECONDS`
without a record. The stream ends when the daemon stops, so that it does not delay the stop.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any
from weakref import WeakSet

import trio
from quart.wrappers.response import ResponseBody

from daemon.api.json_bodies import encode_answer
from daemon.api.list_body import PIECE_BYTES
from daemon.control.control_interface import Control, ControlError

HEARTBEAT_SECONDS = 15.0
MAX_STREAMS = 16


class Streams:
    """Opens event streams, at most `most` (`MAX_STREAMS`) at once over TCP, and as many over the Unix socket."""

    def __init__(self, control: Control, most: int | None = None) -> None:
        self._most = most or MAX_STREAMS
        self._control = control
        # Weak: a response that is dropped before its body is entered was no stream.
        self._open: dict[bool, WeakSet[EventStream]] = {True: WeakSet(), False: WeakSet()}

    def open_stream(self, *, everything: bool, unix: bool) -> "EventStream":
        """Raises `ControlError` 503 when all streams are taken. The stream counts from now on."""
        taken = self._open[unix]
        if len(taken) >= self._most:
            raise ControlError(503, "too_many_streams", f"all {self._most} event streams are taken; try again later")
        stream = EventStream(taken, self._control.events(everything=everything))
        taken.add(stream)
        return stream


class EventStream(ResponseBody):
    """One response body. A class and not an async generator, so that the end of the response closes the
    subscription at once, and no cancel scope is open across a yield.
    """

    def __init__(
        self,
        open_streams: "WeakSet[EventStream]",
        subscription: AbstractAsyncContextManager[trio.MemoryReceiveChannel[dict[str, Any]]],
    ) -> None:
        self._open_streams = open_streams
        self._subscription = subscription
        self._records: trio.MemoryReceiveChannel[dict[str, Any]] | None = None
        self._greeted = False

    async def __aenter__(self) -> "EventStream":
        self._records = await self._subscription.__aenter__()
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
                events = bytearray(_server_sent_event(await self._records.receive()))
            except trio.EndOfChannel:
                raise StopAsyncIteration from None
            # Records that wait already go into the same write.
            while len(events) < PIECE_BYTES and self._records.statistics().current_buffer_used:
                events += _server_sent_event(self._records.receive_nowait())
            return bytes(events)
        return b": still here\n\n"


def _server_sent_event(record: dict[str, Any]) -> bytes:
    name = record.get("id")
    head = f"id: {name}\n".encode() if isinstance(name, str) and name.isprintable() else b""
    return head + b"data: " + encode_answer(record) + b"\n\n"
