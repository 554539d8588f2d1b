"""Alerts: verdicts become lines in files, a list of recent ones, and live streams.

Not every alert has a record of its own: counting records stand for the others (`detection.verdicts.counted_alerts`).
Every record has an id, and ids ascend (`actors.record_ids`). A replay after a crash gives the same
records again; those up to the last id on disk are not written twice. No snapshot is published before
`Alerts.sync_through` its frame: what a replay will not give again is durable.

A file that cannot be written never stops scoring: its lines wait in memory, at most `PENDING_RECORDS`, and
are tried again. Beyond that the oldest are lost, counted and logged.
"""

import json
import logging
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec
import trio

from actors.record_ids import NO_KEY, Key, counted_alert, record_id_key, record_id_of_key

if TYPE_CHECKING:  # heavy imports come with it, and this actor begins before those are done
    from detection.verdicts.verdict_records import Verdicts

RECENT_RECORDS = 1000
PENDING_RECORDS = 10_000
SUBSCRIBER_RECORDS = 256
# How many records of one frame that are not flagged a stream of everything gets.
SAMPLED_RECORDS = 100
# Of a record in a file, in memory and in a stream. A longer one has its long texts cut, the more the longer it is: to
# so many characters.
RECORD_BYTES = 16_384
CUT_TO = (2048, 512, 128)
RETRY_SECONDS = 5.0

log = logging.getLogger(__name__)
Record = dict[str, Any]


class Writer(Protocol):
    """An append-only file of records; both calls block and raise OSError.

    `last_id` is the id of the last of `records`. After a failed `append` none of its records counts as written;
    after a failed `sync` all that was appended is still the writer's, and the next `sync` makes it durable.
    """

    def append(self, records: Sequence[bytes], last_id: str | None = None) -> None: ...

    def sync(self) -> None: ...

    def usage(self) -> dict[str, int]:
        """How much room the file and what was rotated of it take, and what was removed. Does not block."""


class Outlet:
    """One file of records. `name` is for messages, `last` the id of the last record already in it."""

    def __init__(self, name: str, writer: Writer, last: str | None = None) -> None:
        self.name = name
        self.written = self.errors = self.lost = 0
        self.error: str | None = None
        self._writer = writer
        self._last = record_id_key(last) if last is not None else NO_KEY
        self._pending: deque[Line] = deque()
        self._turn = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)

    def limit_last_id_to_line(self, line: int) -> None:
        """No record was ever written about a line after `line`, so a last id beyond it is damaged."""
        limit: Key = (line, sys.maxsize)
        if self._last > limit:
            log.warning("%s: its last id speaks of line %d, but the last line is %d", self.name, self._last[0], line)
            self._last = limit

    def add_records(self, lines: Sequence["Line"]) -> None:
        """Take what is not on disk yet; it waits for `flush`."""
        for line in lines:
            if line.key > self._last:
                self._last = line.key
                self._pending.append(line)
        self._drop_oldest_pending()

    async def flush(self) -> None:
        """Write what is pending. What cannot be written stays pending, and `error` says why."""
        try:
            # After an error with a sync: it shows that the file is well even when nothing is pending.
            await self._write_pending(sync=self.error is not None)
        except OSError:
            # Logged and counted in `_note_write_failure`; the next `flush` tries again.
            return

    async def sync(self) -> None:
        """Write what is pending and make the file durable. Raises OSError."""
        await self._write_pending(sync=True)

    async def _write_pending(self, *, sync: bool) -> None:
        async with self._turn:
            batch = list(self._pending)
            if not batch and not sync:
                return
            self._pending.clear()
            taken = 0

            def write_batch() -> None:
                nonlocal taken
                if batch:
                    self._writer.append([line.encoded for line in batch], record_id_of_key(batch[-1].key))
                    taken = len(batch)
                if sync:
                    self._writer.sync()

            try:
                await trio.to_thread.run_sync(write_batch, limiter=self._limiter)
            except BaseException as exc:
                # What the writer took is its own to write again: twice in the file would be worse.
                self._pending.extendleft(reversed(batch[taken:]))
                if isinstance(exc, OSError):
                    self._note_write_failure(exc)
                raise
            finally:
                self.written += taken
            if self.error is not None:
                log.warning("%s: written again", self.name)
                self.error = None

    def _note_write_failure(self, exc: OSError) -> None:
        if self.error is None:
            log.error("%s: not written, kept in memory, retrying: %s", self.name, exc)
        self.errors += 1
        self.error = str(exc)
        self._drop_oldest_pending()

    def _drop_oldest_pending(self) -> None:
        # Only a failing file has a bound: a frame may close any number of sessions at once.
        if self.error is None or len(self._pending) <= PENDING_RECORDS:
            return
        if not self.lost:
            log.error("%s: more than %d records wait, the oldest are lost", self.name, PENDING_RECORDS)
        while len(self._pending) > PENDING_RECORDS:
            self._pending.popleft()
            self.lost += 1

    def status(self) -> Record:
        return {
            "written": self.written,
            "pending": len(self._pending),
            "lost": self.lost,
            "errors": self.errors,
            "error": self.error,
            **self._writer.usage(),
        }


class Alerts:
    """The outlets, the recent records and the streams. `seq` is the last frame whose verdicts went through here.

    `write_all` says whether `verdicts` gets every record; it may be changed at any time. `recent` are
    flagged records of an earlier process, oldest first.
    """

    def __init__(
        self,
        alerts: Outlet,
        verdicts: Outlet | None = None,
        *,
        seq: int,
        write_all: bool = False,
        recent: Iterable[Record] = (),
    ) -> None:
        self.seq = seq
        self.write_all = write_all
        self.flagged = 0
        self._outlets = [alerts] if verdicts is None else [alerts, verdicts]
        self._recent: deque[Record] = deque(recent, maxlen=RECENT_RECORDS)
        self._recent_last = record_id_key(self._recent[-1]["id"]) if self._recent else NO_KEY
        self._streams: set[_AlertStream] = set()
        self._ended = False
        self._progress = trio.Event()
        self._limiter = trio.CapacityLimiter(1)

    async def take_verdicts(self, verdicts: "Verdicts") -> None:
        """Put one frame's verdicts where they belong. Never fails because a file does."""
        streams = list(self._streams)
        watched = any(stream.everything for stream in streams)
        writing = self.write_all and len(self._outlets) > 1
        # Here and not in scoring: that goes on with the next frame, and most rows are never rendered.
        rendered = await trio.to_thread.run_sync(_render_verdicts, verdicts, writing, watched, limiter=self._limiter)
        self.flagged += verdicts.alerts
        self._remember_recent_alerts(rendered)
        for stream in streams:
            stream.offer_records(rendered)
        for outlet, lines in zip(self._outlets, (rendered.alerts, rendered.verdicts), strict=False):
            outlet.add_records(lines)
            if outlet.error is None:  # else the retry writes it: no error a frame on a full disk
                await outlet.flush()
        self.seq = verdicts.seq
        self._note_frame_done()

    def _remember_recent_alerts(self, rendered: "_RenderedVerdicts") -> None:
        for record, line in zip(rendered.recorded, rendered.alerts, strict=True):
            if line.key > self._recent_last:  # a replay gives again what the file already gave
                self._recent_last = line.key
                self._recent.append(record)

    def begin_after_snapshot(self, seq: int, line: int) -> None:
        """The process starts from a snapshot at `seq`, recovered through `line`: all records through the snapshot are
        durable already, and there is none about a line after `line`."""
        self.seq = max(self.seq, seq)
        for outlet in self._outlets:
            outlet.limit_last_id_to_line(line)
        self._note_frame_done()

    async def wait_for_frame(self, seq: int) -> None:
        """Return when the records through frame `seq` are among the recent ones. Raises RuntimeError when alerts has
        ended before that frame."""
        while self.seq < seq:
            if self._ended:
                raise RuntimeError(f"alerts ended at frame {self.seq}, before {seq}")
            await self._progress.wait()

    async def sync_through(self, seq: int) -> None:
        """Return when every record through frame `seq` is durable. Raises OSError; RuntimeError when
        alerts has ended before that frame."""
        await self.wait_for_frame(seq)
        for outlet in self._outlets:
            await outlet.sync()

    def recent_records(self, after: str | None = None, limit: int = RECENT_RECORDS) -> list[Record]:
        """Records of alerts with ids beyond `after`, oldest first, at most the first `limit` of them; without
        `after` the last `limit`. Raises ValueError when `after` is no id."""
        if after is None:
            return list(self._recent)[max(len(self._recent) - limit, 0) :]
        key = record_id_key(after)
        return list(islice((record for record in self._recent if record_id_key(record["id"]) > key), limit))

    def find_record(self, record_id: str) -> Record | None:
        """The record of the alert with this id, or the part of a counting record about it, if that is among the recent
        ones. Raises ValueError when it is no id."""
        for record in reversed(self._recent):
            if record["id"] == record_id:
                return record
            if (counted := counted_alert(record, record_id)) is not None:
                return counted
        return None

    @contextmanager
    def subscribe(self, *, everything: bool = False) -> "Iterator[trio.MemoryReceiveChannel[Record]]":
        """A live stream of the records of alerts, or of everything: each flagged row, a sample of the others.

        Nothing waits for a subscriber: what does not fit its SUBSCRIBER_RECORDS is left out, and
        {"left_out": n} says how many before the next record. The stream ends when alerts ends.
        """
        send, receive = trio.open_memory_channel[Record](SUBSCRIBER_RECORDS)
        stream = _AlertStream(send, everything)
        self._streams.add(stream)
        if self._ended:
            send.close()
        try:
            with send, receive:
                yield receive
        finally:
            self._streams.discard(stream)

    async def retry_failing_outlets(self) -> None:
        """Try failing outlets again, for ever."""
        while True:
            await trio.sleep(RETRY_SECONDS)
            for outlet in self._outlets:
                if outlet.error is not None:
                    await outlet.flush()

    def end_streams(self) -> None:
        self._ended = True
        for stream in self._streams:
            stream.send.close()
        self._note_frame_done()

    def _note_frame_done(self) -> None:
        self._progress.set()
        self._progress = trio.Event()

    def outlets(self) -> dict[str, Record]:
        """How each file of records is, by its name."""
        return {outlet.name: outlet.status() for outlet in self._outlets}

    def status(self) -> Record:
        outlets = self.outlets()
        return {
            "flagged": self.flagged,
            "streams": len(self._streams),
            "records_waiting": sum(outlet["pending"] for outlet in outlets.values()),
            "record_bytes": sum(outlet["bytes"] for outlet in outlets.values()),
            "bytes_removed": sum(outlet["bytes_removed"] for outlet in outlets.values()),
            "records_lost": sum(outlet["lost"] for outlet in outlets.values()),
            **outlets,
        }


async def run_alerts(
    alerts: Alerts,
    verdicts: "trio.MemoryReceiveChannel[Verdicts]",
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Take verdicts until scoring is gone; then end the streams. Takes ownership of the channel end.

    `alerts.sync_through` goes on working afterwards, for the last checkpoint.
    """
    with verdicts:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(alerts.retry_failing_outlets)
                task_status.started()
                async for item in verdicts:
                    await alerts.take_verdicts(item)
                nursery.cancel_scope.cancel()
        finally:
            alerts.end_streams()


class Line(NamedTuple):
    """A record as a line of a file, and the key that orders it."""

    key: Key
    encoded: bytes


@dataclass(frozen=True, slots=True)
class _RenderedVerdicts:
    """One frame's verdicts; `records` and `verdicts` are empty when no file or stream takes them."""

    recorded: list[Record]
    records: list[Record]
    alerts: list[Line]
    verdicts: list[Line]


def _render_verdicts(verdicts: "Verdicts", writing: bool, watched: bool) -> _RenderedVerdicts:
    recorded = [_bounded_record(record) for record in verdicts.recorded()]
    records = [_bounded_record(record) for record in verdicts.records()] if writing or watched else []
    return _RenderedVerdicts(
        [record for record, _ in recorded],
        [record for record, _ in records],
        [line for _, line in recorded],
        [line for _, line in records if writing],
    )


def _bounded_record(record: Record) -> tuple[Record, Line]:
    """The record as it is written, kept in memory and streamed: with long texts cut if it is too large."""
    bounded, encoded = record, _encode_record(record)
    for characters in CUT_TO:
        if len(encoded) <= RECORD_BYTES:
            break
        bounded = _cut_long_texts(record, characters)
        encoded = _encode_record(bounded)
    return bounded, Line(record_id_key(record["id"]), encoded)


def _encode_record(record: Record) -> bytes:
    """ASCII only: no control sequence of a log line reaches the terminal of a reader."""
    encoded = msgspec.json.encode(record)
    if not encoded.isascii():
        encoded = json.dumps(msgspec.json.decode(encoded), separators=(",", ":")).encode()
    return encoded


def _cut_long_texts(value: Any, characters: int) -> Any:
    """With a mark at the end of each text that was cut."""
    match value:
        case str() if len(value) > characters:
            return f"{value[:characters]}[{len(value) - characters} more characters]"
        case dict():
            return {name: _cut_long_texts(each, characters) for name, each in value.items()}
        case list() | tuple():
            return [_cut_long_texts(each, characters) for each in value]
        case _:
            return value


@dataclass(eq=False, slots=True)
class _AlertStream:
    send: "trio.MemorySendChannel[Record]"
    everything: bool
    dropped: int = 0

    def offer_records(self, rendered: _RenderedVerdicts) -> None:
        if not self.everything:
            for record in rendered.recorded:
                self._offer_record(record)
            return
        sampled = 0
        for record in rendered.records:
            if record["flagged"] or sampled < SAMPLED_RECORDS:
                sampled += not record["flagged"]
                self._offer_record(record)
            else:
                self.dropped += 1

    def _offer_record(self, record: Record) -> None:
        try:
            if self.dropped:
                self.send.send_nowait({"left_out": self.dropped})
                self.dropped = 0
            self.send.send_nowait(record)
        except trio.WouldBlock:
            self.dropped += 1
        except trio.BrokenResourceError:
            # The subscriber closed its end; leaving its `with` takes the stream away.
            self.send.close()
        except trio.ClosedResourceError:
            # Closed just above, or left while this frame was being rendered.
            return
