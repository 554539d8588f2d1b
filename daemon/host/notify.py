"""The service manager's notification protocol, sd_notify(3): datagrams of VARIABLE=value lines.

Without `NOTIFY_SOCKET` all of this does nothing, so callers need not check whether a manager is there.
"""

import logging
import os
import select
import socket
import time
from collections.abc import MutableMapping, Sequence

# A manager that does not read must not block the daemon; systemd reads within microseconds.
SEND_TIMEOUT_SECONDS = 0.2
# How long a manager may take to process earlier messages; one that is busy booting a system needs time.
BARRIER_SECONDS = 5.0
PROBE_NAME = "vigild-probe"

log = logging.getLogger(__name__)


class Notifier:
    """Sends the state of this process to the service manager.

    A send takes microseconds, SEND_TIMEOUT_SECONDS at worst. A failed send is logged, not raised, and only the first
    of several in a row. `watchdog_seconds` is how long the manager waits for `watchdog()` before it kills us, None
    without a watchdog: call it at least twice as often.
    """

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        # Linux's abstract sockets are written with "@" where the kernel wants a NUL.
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self.watchdog_seconds = watchdog_seconds
        self._failing = False

    @classmethod
    def from_environment(cls, env: MutableMapping[str, str] = os.environ) -> "Notifier":
        """Remove the variables from `env`: a child process must not send in our name, nor be watched."""
        address = env.pop("NOTIFY_SOCKET", None)
        microseconds, watched = env.pop("WATCHDOG_USEC", None), env.pop("WATCHDOG_PID", None)
        if address is None or microseconds is None or (watched is not None and watched != str(os.getpid())):
            return cls(address)
        return cls(address, int(microseconds) / 1e6)

    def ready(self, status: str) -> None:
        """The start, or the reload announced by `reloading`, is over."""
        self.send("READY=1", f"STATUS={_status_on_one_line(status)}")

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self.send(f"STATUS={_status_on_one_line(status)}")

    def stopping(self) -> None:
        self.send("STOPPING=1")

    def reloading(self) -> None:
        """Follow it with `ready`."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def extend(self, seconds: float) -> None:
        """Starting or stopping goes on: extend the time limit to `seconds` from now."""
        self.send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def watchdog(self) -> None:
        """We are alive. Sends nothing without a watchdog."""
        if self.watchdog_seconds is not None:
            self.send("WATCHDOG=1")

    def keep(self, name: str, descriptor: int) -> None:
        """Store a reference to `descriptor` until `forget`: it is passed to the process after us, under `name`.

        FDPOLL=0, or the manager would drop a connection whose sender has closed, with the bytes we have not read.
        """
        self.send("FDSTORE=1", "FDPOLL=0", f"FDNAME={name}", fds=[descriptor])

    def forget(self, name: str) -> None:
        self.send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def why_nothing_is_kept(self) -> str | None:
        """None when `keep` works, else why not. Blocks until the manager has answered, BARRIER_SECONDS at most."""
        if self._address is None:
            return "no service manager (NOTIFY_SOCKET is not set)"
        has_room = self.has_room()
        if has_room is None:
            return "the service manager does not answer (BARRIER=1)"
        return None if has_room else "the service manager stores no descriptors for us (FileDescriptorStoreMax=0)"

    def has_room(self) -> bool | None:
        """Whether the manager's file descriptor store has room, once it has processed earlier messages; None when it
        does not answer.

        Blocks as `why_nothing_is_kept` does. A manager gives no answer, it closes a descriptor that it has no room
        for. So it is sent one end of a socket pair, and after a barrier the other end shows whether it was closed.
        """
        ours, given = socket.socketpair()
        self.forget(PROBE_NAME)  # one left by a process that was killed right here
        with ours:
            with given:
                self.send("FDSTORE=1", f"FDNAME={PROBE_NAME}", fds=[given.fileno()])
            if not self._wait_for_manager():
                return None
            ours.setblocking(False)
            try:
                ours.recv(1)
            except BlockingIOError:
                self.forget(PROBE_NAME)
                return True
        return False

    def _wait_for_manager(self) -> bool:
        """Wait until the manager has processed every message so far. False after BARRIER_SECONDS."""
        reading, writing = os.pipe()
        try:
            try:
                self.send("BARRIER=1", fds=[writing])
            finally:
                os.close(writing)
            poll = select.poll()
            poll.register(reading, 0)  # a hang-up is always reported
            return bool(poll.poll(BARRIER_SECONDS * 1000))
        finally:
            os.close(reading)

    def send(self, *variables: str, fds: Sequence[int] = ()) -> None:
        """Send one datagram of `variables`, with the descriptors `fds` attached."""
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
                manager.settimeout(SEND_TIMEOUT_SECONDS)
                manager.connect(self._address)
                socket.send_fds(manager, ["\n".join(variables).encode()], list(fds))
        except OSError as exc:
            # A lost status message must not end the daemon; if the watchdog is not reached, the manager acts.
            if not self._failing:
                log.warning("service manager not notified of %s: %s", variables[0], exc)
            self._failing = True
        else:
            self._failing = False


def _status_on_one_line(text: str) -> str:
    # A line break would begin a variable of its own.
    return " ".join(text.splitlines())
