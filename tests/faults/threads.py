"""Clients that are threads: they go on until an event is set, and then have to end."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def running(threads: Sequence[threading.Thread], over: threading.Event, seconds: float = 60.0) -> Iterator[None]:
    """Start the threads; at the end set `over`, and fail if one goes on for longer than `seconds`."""
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(seconds)
            assert not thread.is_alive(), "a client waits for ever"
