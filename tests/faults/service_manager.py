"""A minimal service manager: it holds the log socket, receives notifications, and stores the daemon's connections.

It implements systemd's protocols (sd_notify(3), sd_listen_fds(3)); the daemon and its senders
notice no difference. See `nspawn/` for the real one.
"""

import array
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.running import START_SECONDS, Vigild
from daemon.host.notify import PROBE_NAME

SETTINGS = """
[learning]
warmup_lines = 1000000
[checkpoint]
every_lines = 5000
[admin]
bind = ["unix:admin.sock"]
[alarms]
verdicts = "all"
"""
FIRST_FD = 3
# Above the numbers that the daemon gets them under, so that none is overwritten before it is moved.
_HIGH_FD = 400


class Managed(Vigild):
    """One daemon that is started with the log socket and everything in `stored`.

    `program` is Python that runs the daemon, by default as its own entry point does. The manager stores `places`
    descriptors and closes what it is given beyond, as systemd does by its FileDescriptorStoreMax. One that does not
    `listen` leaves the log socket to the daemon, as systemd does when the socket unit could not start.
    """

    def __init__(
        self, home: Path, *, settings: str, places: int = 1100, program: str = "", listen: bool = True
    ) -> None:
        super().__init__(home, settings=settings)
        self._places = places
        self._paths = ["--config", str(home / "vigild.toml"), "--state-dir", str(self.state)]
        self.use_program(program)
        self._output = home / "log"
        self._listener = socket.socket(socket.AF_UNIX)
        self._given = [self._listener] if listen else []
        if listen:
            self._listener.bind(str(self.runtime / "log.sock"))
            self._listener.listen(1024)
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._told.bind(str(self.runtime / "notify"))
        variables = {"RUNTIME_DIRECTORY": str(self.runtime), "NOTIFY_SOCKET": str(self.runtime / "notify")}
        self._environment = {name: value for name, value in os.environ.items() if name != "STATE_DIRECTORY"} | variables
        self.stored: dict[str, int] = {}
        self.ever_stored = 0
        self.said: list[str] = []  # the status lines
        self._changed = threading.Condition()
        self._ready = self._caught_up = False
        # Held by who connects, until the connection is stored, and by who kills: the moment between accepting
        # and storing is the one in which a kill may take a connection along, and it is documented.
        self._calm = threading.Lock()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def use_program(self, program: str) -> None:
        """What later starts run."""
        entry = ["-c", program] if program else ["-m", "daemon.main"]
        self._start = [sys.executable, *entry, *self._paths]

    def launch(self) -> "Managed":
        self._catch_up()
        self._ready = False
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, _HIGH_FD) for fd in self._passed()]
        moves = "; ".join(f"exec {FIRST_FD + n}<&{fd} {fd}<&-" for n, fd in enumerate(high))
        names = ":".join([*("log" for _ in self._given), *self.stored])
        script = f'{moves or ":"}; export LISTEN_PID=$$ LISTEN_FDS={len(high)} LISTEN_FDNAMES={names}; exec "$@"'
        with open(self._output, "ab") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", script, "bash", *self._start],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stderr=log,
                pass_fds=high,
            )
        for fd in high:
            os.close(fd)
        return self

    def _passed(self) -> list[int]:
        return [*(each.fileno() for each in self._given), *self.stored.values()]

    def start(self) -> "Managed":
        self.launch()
        self.wait(lambda: self._ready, START_SECONDS)
        return self

    def connect(self) -> socket.socket:
        """A connection that the daemon has accepted and stored."""
        with self._calm:
            before = self.ever_stored
            connection = super().connect()
            with self._changed:
                stored = self._changed.wait_for(lambda: self.ever_stored > before, 60.0)
            if not stored:
                connection.close()
                raise AssertionError(self.log)
        return connection

    def signal(self, number: int) -> int:
        with self._calm:
            return super().signal(number)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self._tell(b"CLOSE")
        self._thread.join(30.0)
        super().close()
        for fd in self.stored.values():
            os.close(fd)
        self._told.close()
        self._listener.close()

    def _catch_up(self) -> None:
        """Process every message of the previous process: the store must be as that process left it."""
        self._caught_up = False
        self._tell(b"CATCH UP")
        with self._changed:
            assert self._changed.wait_for(lambda: self._caught_up, 30.0)

    def _tell(self, message: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ourselves:
            ourselves.sendto(message, str(self.runtime / "notify"))

    def _listen(self) -> None:
        while True:
            message, ancillary, _, _ = self._told.recvmsg(4096, socket.CMSG_SPACE(16))
            fds = array.array("i")
            for _, _, data in ancillary:
                fds.frombytes(data)
            if message == b"CLOSE":
                return
            with self._changed:
                for fd in self._heard(message, list(fds)):
                    os.close(fd)
                self._changed.notify_all()

    def _heard(self, message: bytes, fds: list[int]) -> list[int]:
        """Obey `message`; returns the descriptors that are no longer needed."""
        said = dict(line.split("=", 1) for line in message.decode().splitlines() if "=" in line)
        name = said.get("FDNAME", "")
        self._ready |= "READY" in said
        self.said += [said["STATUS"]] if "STATUS" in said else []
        self._caught_up |= message == b"CATCH UP"
        if "FDSTOREREMOVE" in said and name in self.stored:
            return [self.stored.pop(name)]
        if "FDSTORE" in said and name not in self.stored and len(self.stored) < self._places:
            (self.stored[name],) = fds
            self.ever_stored += name != PROBE_NAME
            return []
        return fds


@contextmanager
def managed(home: Path, *, places: int = 1100, program: str = "", listen: bool = True) -> Iterator[Managed]:
    """A daemon that writes every verdict and saves often, not started; whatever happens it is dead afterwards."""
    daemon = Managed(home, settings=SETTINGS, places=places, program=program, listen=listen)
    try:
        yield daemon
    finally:
        daemon.close()
