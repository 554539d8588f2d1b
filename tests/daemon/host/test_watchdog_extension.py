"""What the service manager hears while something takes long: often enough, and not more often."""

from types import SimpleNamespace
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from daemon.host import watchdog_extension
from daemon.host.notify import Notifier
from daemon.host.watchdog_extension import ALIVE_GRACE_SECONDS, ALIVE_SECONDS, WatchdogExtension


class Manager:
    """Stands for the notifier, and notes what it is to send."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def watchdog(self) -> None:
        self.told.append("alive")

    def extend(self, seconds: float) -> None:
        assert seconds == ALIVE_GRACE_SECONDS
        self.told.append("extend")


@pytest.fixture
def manager() -> Manager:
    return Manager()


@pytest.fixture
def extension(manager: Manager) -> WatchdogExtension:
    return WatchdogExtension(cast(Notifier, manager))


def test_however_often_it_is_called_the_manager_hears_it_every_two_seconds(
    manager: Manager, extension: WatchdogExtension, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(watchdog_extension, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for _ in range(100):  # ten seconds of them
        extension.alive()
        extension.extend()
        now[0] += 0.1
    assert manager.told.count("alive") == manager.told.count("extend") <= 10.0 / ALIVE_SECONDS
    assert manager.told.count("alive") >= 4


async def test_the_start_is_extended_until_the_event_and_the_watchdog_is_left_to_others(
    manager: Manager, extension: WatchdogExtension, autojump_clock: MockClock
) -> None:
    event = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(extension.extend_until, event)
        await trio.sleep(4.5 * ALIVE_SECONDS)
        event.set()
    assert manager.told == ["extend"] * 5
    assert trio.current_time() % ALIVE_SECONDS == pytest.approx(ALIVE_SECONDS / 2), "it ended at once"


async def test_who_waits_for_a_disk_is_alive_and_needs_more_time(
    manager: Manager, extension: WatchdogExtension, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog_extension, "time", SimpleNamespace(monotonic=trio.current_time))
    event = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(extension.hold_until, event)
        await trio.sleep(3.5 * ALIVE_SECONDS)
        event.set()
    assert manager.told.count("extend") == 4 and manager.told.count("alive") >= 3


async def test_nothing_is_said_once_it_has_happened(manager: Manager, extension: WatchdogExtension) -> None:
    event = trio.Event()
    event.set()
    await extension.extend_until(event)
    await extension.hold_until(event)
    assert manager.told == []
