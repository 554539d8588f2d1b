"""`POST /train-from`: the bytes of a vouched file, a chunk a request, into frames.

An upload is a source like a connection: lines are cut where they are too long, a tail waits for its rest. The
frames must hold a source's bytes in order and without gaps, so a chunk is taken by a copy of what is known of the
upload, and that copy counts only when its frames are on their way: a client that hangs up costs nothing but its
own chunk. There is one upload at a time: its end is the end of all vouched sessions and makes training due, and
what a chunk came to is the difference of the counts before and after. One that is abandoned is ended by the next.
"""

import copy
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import trio

from actors.sequencer import FRAME_BYTES
from actors.source_lines import Recognise, Source
from daemon.control.control_interface import ControlError
from daemon.file_contents import NotTextError, TextReader
from detection.frames import Segment, VouchedFrame
from detection.summary import Summary

MAX_CHUNK_BYTES = 512 * 1024
ABANDONED_SECONDS = 60.0  # without a chunk

# Has a frame journaled and applied; returns the summary after it. Once it is on its way, `sent` is called.
Apply = Callable[[VouchedFrame, Callable[[], None]], Awaitable[Summary]]


@dataclass(slots=True)
class _Upload:
    name: str
    source: Source
    last_chunk: float  # on trio's clock
    text: TextReader = field(default_factory=TextReader)


class VouchedUploads:
    """One upload after the other. `salt` differs between starts, `now` is the wall clock in seconds since the epoch."""

    def __init__(
        self, recognise: Recognise, kind: str, max_line_bytes: int, salt: str, now: Callable[[], float]
    ) -> None:
        self._recognise = recognise
        self._kind = kind
        self._max_line_bytes = max_line_bytes
        self._salt = salt
        self._now = now
        self._begun = 0
        self._upload: _Upload | None = None
        self._turn = trio.Lock()

    async def take_chunk(
        self, name: str, data: bytes, last: bool, summary: Callable[[], Summary], apply: Apply
    ) -> dict[str, Any]:
        """The next `data` of upload `name`, its end with `last`; what they came to, as `Control.train_from` has it.

        Raises what `apply` raises, and `ControlError` 409 "busy" while another upload goes on, 415 "not_text" for a
        chunk that is not text, of which nothing is taken. Cancelled, the chunk has its place in the journal or is as if
        it never came.
        """
        async with self._turn:
            upload = await self._upload_under_way(name, apply)
            read = copy.deepcopy(upload.text)
            try:
                text = read.text_in_chunk(data, last)
            except NotTextError as exc:
                if not upload.source.begun:
                    self._upload = None  # the next file need not wait for this one
                raise ControlError(415, "not_text", str(exc)) from exc
            before = after = summary()
            for start in range(0, len(text), FRAME_BYTES):
                advanced = copy.deepcopy(upload.source)
                segment = advanced.feed(text[start : start + FRAME_BYTES])
                if segment is None:  # all of it is the rest of a line that is full already
                    upload.source = advanced
                else:
                    after = await self._apply_vouched(upload, advanced, segment, False, apply)
            upload.text = read
            if last:
                after = await self._end_upload(upload, apply) or after
        return {
            "lines": after.vouched_lines - before.vouched_lines,
            "rule_hits": after.vouched_rule_hits - before.vouched_rule_hits,
            "sessions": after.vouched_sessions - before.vouched_sessions,
        }

    async def _upload_under_way(self, name: str, apply: Apply) -> _Upload:
        """Upload `name`, begun now if it is not the one under way."""
        now = trio.current_time()
        if self._upload is not None and self._upload.name != name:
            if now - self._upload.last_chunk < ABANDONED_SECONDS:
                raise ControlError(409, "busy", "another file is being learned from; try again when it is done")
            await self._end_upload(self._upload, apply)
        if self._upload is None:
            self._begun += 1
            source = Source(f"vouched-{self._salt}-{self._begun}", self._kind, self._recognise, self._max_line_bytes)
            self._upload = _Upload(name, source, now)
        self._upload.last_chunk = now
        return self._upload

    async def _end_upload(self, upload: _Upload, apply: Apply) -> Summary | None:
        advanced = copy.deepcopy(upload.source)
        segment = advanced.finish()
        after = None if segment is None else await self._apply_vouched(upload, advanced, segment, True, apply)
        self._upload = None
        return after

    async def _apply_vouched(
        self, upload: _Upload, advanced: Source, segment: Segment, done: bool, apply: Apply
    ) -> Summary:
        def sent() -> None:
            upload.source = advanced
            if done:
                self._upload = None

        return await apply(VouchedFrame(self._now(), segment, done), sent)
