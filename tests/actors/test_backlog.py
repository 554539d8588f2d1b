import trio
from trio.testing import wait_all_tasks_blocked

from actors.backlog import Backlog, run_backlog
from detection.frames import LinesFrame, Segment, Sequenced

KIB = 1024


def frame(seq: int, size: int) -> Sequenced:
    return Sequenced(seq, seq, LinesFrame(0.0, (Segment("s", "plain", b"x" * size, 1),)))


async def test_it_holds_what_there_is_room_for_and_then_nobody_hurries(nursery: trio.Nursery) -> None:
    backlog = Backlog(100 * KIB)
    frames_in, frames = trio.open_memory_channel[Sequenced](0)
    onward, out = trio.open_memory_channel[Sequenced](0)
    await nursery.start(run_backlog, backlog, frames, onward)
    sent: list[int] = []

    async def send() -> None:
        with frames_in:
            for seq in range(1, 31):
                await frames_in.send(frame(seq, 10 * KIB))
                sent.append(seq)

    nursery.start_soon(send)
    await wait_all_tasks_blocked()
    # Seven of ten KiB and something each are held; the eighth waits where it is, nobody takes the ninth.
    assert sent == list(range(1, 9))

    backlog.room = 0
    await wait_all_tasks_blocked()
    assert len(sent) == 8
    assert [(await out.receive()).seq for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    await wait_all_tasks_blocked()
    assert len(sent) == 8, "it must be empty first"
    assert (await out.receive()).seq == 7
    await wait_all_tasks_blocked()
    assert len(sent) == 9, "one at a time now"
    assert [item.seq async for item in out] == list(range(8, 31))
    assert sent == list(range(1, 31))


async def test_a_frame_larger_than_the_room_passes_alone(nursery: trio.Nursery) -> None:
    backlog = Backlog(KIB)
    frames_in, frames = trio.open_memory_channel[Sequenced](0)
    onward, out = trio.open_memory_channel[Sequenced](0)
    await nursery.start(run_backlog, backlog, frames, onward)

    async def send() -> None:
        with frames_in:
            for seq in (1, 2):
                await frames_in.send(frame(seq, 10 * KIB))

    nursery.start_soon(send)
    assert [item.seq async for item in out] == [1, 2]
