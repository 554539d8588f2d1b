"""Signals become calls. SIGTERM and SIGINT stop the daemon, SIGHUP reloads its settings, and what log rotation sends is
ignored."""

import logging
import signal
from collections.abc import Callable
from types import FrameType

import trio

STOPPING = (signal.SIGTERM, signal.SIGINT)
# Programs that rotate logs may send them, and left alone they would end us.
HARMLESS = (signal.SIGUSR1, signal.SIGUSR2)

log = logging.getLogger("vigild")


async def run_signals(
    stop: Callable[[str], None],
    reload: Callable[[], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call `stop` with the name of each signal that asks for it, and `reload`, until cancelled. Neither may wait.

    Once it is cancelled a signal that asks for a stop does nothing: all is saved then, and only closing remains.
    """
    # One that comes while this is set up is held back.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    for each in STOPPING:
        signal.signal(each, _ignore_signal)  # what the receiver puts back when it is left
    with trio.open_signal_receiver(*STOPPING, signal.SIGHUP, *HARMLESS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        task_status.started()
        async for number in signals:
            name = signal.Signals(number).name
            if number in HARMLESS:
                log.info("%s: nothing to do, a file that was rotated is noticed by itself", name)
            elif number == signal.SIGHUP:
                reload()
            else:
                stop(name)


def ignore_stop_signals() -> None:
    """From here on, also while Python ends, which takes away its own handlers."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)


def _ignore_signal(number: int, frame: FrameType | None) -> None:
    pass
