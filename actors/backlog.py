"""The backlog: frames that are journaled before there is a state to apply them to.

It lies between sequencer and scoring, and at a start holds frames in memory, up to a number of bytes; beyond that the
sequencer waits, and so do sources. Once the state has caught up nothing is held any more: then waiting is what bounds
how far the journal may be ahead of the state.
"""

import math

import trio

from detection.frames import LinesFrame, Sequenced

# What a frame takes beside its data: a thousand tiny ones are not nothing.
_FRAME_BYTES = 4096


class Backlog:
    """`room` is how many bytes of frames may wait; one frame always may. It can be changed at any time."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._held = 0
        self._changed = trio.Event()

    @property
    def room(self) -> int:
        return self._room

    @room.setter
    def room(self, room: int) -> None:
        self._room = room
        self._note_room_changed()

    async def wait_for_room(self, item: Sequenced) -> None:
        """Return when there is room for `item`, which counts from now on."""
        while self._held and self._held + _frame_memory_bytes(item) > self._room:
            await self._changed.wait()
        self._held += _frame_memory_bytes(item)

    def release_room(self, item: Sequenced) -> None:
        """`item` has gone on."""
        self._held -= _frame_memory_bytes(item)
        self._note_room_changed()

    def _note_room_changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _frame_memory_bytes(item: Sequenced) -> int:
    frame = item.frame
    data = sum(len(segment.data) for segment in frame.segments) if isinstance(frame, LinesFrame) else 0
    return data + _FRAME_BYTES


async def run_backlog(
    backlog: Backlog,
    frames: trio.MemoryReceiveChannel[Sequenced],
    onward: trio.MemorySendChannel[Sequenced],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Pass frames on in order until there are no more, then close `onward`. Takes ownership of both channel ends."""
    held_in, held = trio.open_memory_channel[Sequenced](math.inf)

    async def take_frames() -> None:
        with frames, held_in:
            async for item in frames:
                await backlog.wait_for_room(item)
                await held_in.send(item)

    with onward, held:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_frames)
            task_status.started()
            async for item in held:
                await onward.send(item)
                backlog.release_room(item)
