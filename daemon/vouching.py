"""`POST /train-from`: the bytes of a vouched file, a chunk a request, into frames.

Each upload is a source like a connection: lines are cut where they are too long, a tail waits for its rest. The
frames must hold a source's bytes in order and without gaps, so a chunk is taken by a copy of what is known of the
upload, and that copy counts only when its frames are on their way: a client that hangs up costs nothing but its
own chunk. One chunk at a time, so that what a chunk came to can be told from the counts before and after.
"""

import copy
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from actors.lines import Recognise, Source
from actors.sequencer import FRAME_BYTES
from detection.frames import Segment, VouchedFrame
from detection.summary import Summary

MAX_CHUNK_BYTES = 512 * 1024
MAX_UPLOADS = 8  # begun and not ended; then the one silent the longest is ended

# Has a frame journaled and applied; returns the summary after it. Once it is on its way, `sent` is called.
Apply = Callable[[VouchedFrame, Callable[[], None]], Awaitable[Summary]]


class Vouching:
    """The uploads under way. `salt` differs between starts, `now` is the wall clock in seconds since the epoch."""

    def __init__(
        self, recognise: Recognise, kind: str, max_line_bytes: int, salt: str, now: Callable[[], float]
    ) -> None:
        self._recognise = recognise
        self._kind = kind
        self._max_line_bytes = max_line_bytes
        self._salt = salt
        self._now = now
        self._begun = 0
        self._uploads: OrderedDict[str, Source] = OrderedDict()
        self._turn = trio.Lock()

    async def take(
        self, upload: str, data: bytes, last: bool, summary: Callable[[], Summary], apply: Apply
    ) -> dict[str, Any]:
        """The next `data` of `upload`, and its end with `last`; what they came to, as `Control.train_from` has it.

        Raises what `apply` raises. Cancelled, the chunk has its place in the journal or is as if it never came.
        """
        async with self._turn:
            if upload not in self._uploads and len(self._uploads) >= MAX_UPLOADS:
                await self._end(next(iter(self._uploads)), apply)
            before = after = summary()
            if upload not in self._uploads:
                self._uploads[upload] = self._new()
            self._uploads.move_to_end(upload)
            for start in range(0, len(data), FRAME_BYTES):
                advanced = copy.deepcopy(self._uploads[upload])
                segment = advanced.feed(data[start : start + FRAME_BYTES])
                if segment is None:  # all of it is the rest of a line that is full already
                    self._uploads[upload] = advanced
                else:
                    after = await self._apply(upload, advanced, segment, False, apply)
            if last:
                after = await self._end(upload, apply) or after
        return {
            "lines": after.vouched_lines - before.vouched_lines,
            "rule_hits": after.vouched_rule_hits - before.vouched_rule_hits,
            "sessions": after.vouched_sessions - before.vouched_sessions,
        }

    async def _end(self, upload: str, apply: Apply) -> Summary | None:
        advanced = copy.deepcopy(self._uploads[upload])
        segment = advanced.finish()
        after = None if segment is None else await self._apply(upload, advanced, segment, True, apply)
        self._uploads.pop(upload, None)
        return after

    async def _apply(self, upload: str, advanced: Source, segment: Segment, done: bool, apply: Apply) -> Summary:
        def sent() -> None:
            if done:
                del self._uploads[upload]
            else:
                self._uploads[upload] = advanced

        return await apply(VouchedFrame(self._now(), segment, done), sent)

    def _new(self) -> Source:
        self._begun += 1
        return Source(f"vouched-{self._salt}-{self._begun}", self._kind, self._recognise, self._max_line_bytes)
