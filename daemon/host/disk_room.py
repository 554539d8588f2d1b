"""The journal has room for as long as there are records that can give way to it."""

import logging
from collections.abc import Callable, Sequence

import trio

from persistence.disk import FULL
from persistence.journal import JournalError
from persistence.journal_segment import Entry
from persistence.record_space import KEEP_FREE_BYTES, RecordSpace

LOOK_SECONDS = 5.0

log = logging.getLogger(__name__)


async def keep_room_for_journal(space: RecordSpace) -> None:
    """Look at the disk, for ever: when it is almost full records give way, though none may be written now."""
    limiter = trio.CapacityLimiter(1)
    shortage: str | None = None
    while True:
        try:
            await trio.to_thread.run_sync(space.make_room, KEEP_FREE_BYTES, limiter=limiter)
        except OSError as exc:
            # The disk fails, which whoever writes to it reports; it may be well again the next time.
            log.warning("no room can be made for the journal: %s", exc)
        if space.shortage is not None and shortage is None:
            log.warning("%s", space.shortage)
        shortage = space.shortage
        await trio.sleep(LOOK_SECONDS)


def append_before_records(
    append: Callable[[Sequence[Entry]], None], space: RecordSpace, entries: Sequence[Entry]
) -> None:
    """`append` the entries; when the journal has no room, once more after the oldest part of the records has gone.

    Blocking. Raises JournalError as `append` does, also when no part is left or it cannot be removed.
    """
    try:
        append(entries)
    except JournalError as exc:
        if not (isinstance(exc.__cause__, OSError) and exc.__cause__.errno in FULL):
            raise
        try:
            removed = space.give_way_to_journal()
        except OSError as why:
            log.warning("no room can be made for the journal: %s", why)
            raise exc from exc.__cause__
        if not removed:
            raise
        append(entries)
