"""Turns at the journal: shares by user, then by connection."""

from collections import Counter

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from actors.connection_turns import CHUNK_BYTES, ROUND_BYTES, SHARED_CHUNK_BYTES, Turns

TURNS_A_ROUND = ROUND_BYTES // SHARED_CHUNK_BYTES


class Journal:
    """Connections that take turns. `taken` is who had one, in order."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.turns = Turns()
        self.taken: list[str] = []
        self._nursery = nursery
        self._durable = trio.Event()

    def send(self, name: str, uid: int, size: int, times: int = 1000) -> None:
        """A connection of `uid` has so many chunks to send, as large as it may but of at most `size` bytes."""

        async def run() -> None:
            flow = self.turns.join_connection(uid)
            for _ in range(times):
                most = await self.turns.wait_for_turn(flow)
                self.taken.append(name)
                self.turns.use_turn(flow, min(size, most))
                await self._durable.wait()
                self.turns.end_turn(flow)
            self.turns.leave_connection(flow)

        self._nursery.start_soon(run)

    async def confirm(self, rounds: int = 1) -> None:
        """What is under way is durable, so many times."""
        for _ in range(rounds):
            await wait_all_tasks_blocked()
            self._durable.set()
            self._durable = trio.Event()
            await wait_all_tasks_blocked()


@pytest.fixture
def journal(nursery: trio.Nursery) -> Journal:
    return Journal(nursery)


async def test_one_that_is_alone_takes_large_chunks_and_several_take_small_ones() -> None:
    turns = Turns()
    first, second = turns.join_connection(1), turns.join_connection(1)
    assert await turns.wait_for_turn(first) == CHUNK_BYTES
    turns.use_turn(first, CHUNK_BYTES)
    assert await turns.wait_for_turn(second) == SHARED_CHUNK_BYTES, (
        "at once, whatever the first took while it was alone"
    )
    turns.end_turn(first)
    turns.end_turn(second)
    assert await turns.wait_for_turn(second) == CHUNK_BYTES


async def test_one_that_comes_anew_is_next_however_many_flood(journal: Journal) -> None:
    for n in range(50):
        journal.send(f"flooder {n}", 1, CHUNK_BYTES)
    await journal.confirm(rounds=20)
    before = len(journal.taken)
    journal.send("light", 1, 10, times=3)
    journal.send("of another user", 2, 10)
    await wait_all_tasks_blocked()
    assert journal.taken[before:] == ["of another user"], "its share is its own"
    await journal.confirm()
    assert "light" in journal.taken
    await journal.confirm(rounds=4)
    assert journal.taken.count("light") == 3, "of the 50 others a round serves four"


async def test_flooders_have_turns_in_turn(journal: Journal) -> None:
    for n in range(8):
        journal.send(f"flooder {n}", 1, CHUNK_BYTES)
    await journal.confirm(rounds=40)
    turns = Counter(journal.taken)
    assert len(turns) == 8 and max(turns.values()) - min(turns.values()) <= 1
    assert len(journal.taken) == pytest.approx(40 * TURNS_A_ROUND, abs=TURNS_A_ROUND)


async def test_users_have_equal_shares_whatever_the_number_of_their_connections(journal: Journal) -> None:
    for n in range(20):
        journal.send(f"many {n}", 1, CHUNK_BYTES)
    for n in range(2):
        journal.send(f"few {n}", 2, CHUNK_BYTES)
    await journal.confirm(rounds=30)
    few = sum(name.startswith("few") for name in journal.taken)
    assert few == pytest.approx(len(journal.taken) / 2, abs=TURNS_A_ROUND)


async def test_many_that_send_a_little_do_not_wait_for_each_other(journal: Journal) -> None:
    for n in range(1000):
        journal.send(f"light {n}", 1, 10, times=1)
    await wait_all_tasks_blocked()
    assert len(journal.taken) == 1000


async def test_one_that_gives_up_waiting_leaves_its_turn_to_others(journal: Journal) -> None:
    for n in range(TURNS_A_ROUND):
        journal.send(f"flooder {n}", 1, CHUNK_BYTES)
    await wait_all_tasks_blocked()
    flow = journal.turns.join_connection(1)
    with trio.move_on_after(0) as gave_up:
        await journal.turns.wait_for_turn(flow)
    assert gave_up.cancelled_caught
    journal.turns.leave_connection(flow)
    journal.send("last", 1, 10)
    await journal.confirm()
    assert "last" in journal.taken
