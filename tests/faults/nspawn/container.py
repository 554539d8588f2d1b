"""A machine of its own with a real systemd as process 1, this host's /usr, and the project's units as they are.

Everything but /usr and the daemon's state is in memory and gone at the end: the state lies on this host's disk, so
that syncing it takes its time. Files and sockets are reached from here through /proc/PID/root, so senders and
questions need nothing in there.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[3]
BOOT_SECONDS = 60.0
START_SECONDS = 90.0
_PACKAGES = ("actors", "daemon", "detection", "persistence")
# What an installation into /opt/vigild provides, from the interpreter and packages that run this test.
_EXECUTABLE = f"""#!/bin/sh
export PYTHONPATH=/opt/vigild/src:/opt/vigild/packages PYTHONDONTWRITEBYTECODE=1
export LD_LIBRARY_PATH=/opt/python/lib
exec /opt/python/bin/python{sys.version_info.major}.{sys.version_info.minor} -m daemon.%s "$@"
"""


def why_not() -> str | None:
    """None when this host can run it."""
    if os.geteuid():
        return "a container needs root"
    for program in ("systemd-nspawn", "nsenter"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian: apt install systemd-container)"
    return None if Path("/usr/lib/systemd/systemd").exists() else "systemd is not installed"


class Container:
    """A machine on which, once it has booted, `vigild.socket` and `vigild.service` are installed and not started.

    `home` gets the output of the boot and the directory `state`.
    """

    def __init__(self, home: Path, settings: str) -> None:
        log, self.state = home / "boot.log", home / "state"
        self.state.mkdir()
        binds = {
            sys.base_prefix: "/opt/python",
            sysconfig.get_paths()["platlib"]: "/opt/vigild/packages",
            **{str(PROJECT / name): f"/opt/vigild/src/{name}" for name in _PACKAGES},
        }
        with open(log, "wb") as output:
            self._nspawn = subprocess.Popen(
                ["systemd-nspawn", "--quiet", "--directory=/", "--volatile=yes", "--register=no", "--keep-unit"]
                + ["--private-network", f"--machine=vigild-test-{os.getpid()}", "--console=pipe"]
                + [f"--bind={self.state}:/var/lib/vigild"]
                + [f"--bind-ro={here}:{there}" for here, there in binds.items()]
                + ["--boot", "systemd.unit=basic.target", "systemd.firstboot=no"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._log = log
        self._leader = 0
        self._settings = settings

    def boot(self) -> None:
        self.wait(self._booted, BOOT_SECONDS)
        self.root = Path(f"/proc/{self._leader}/root")
        self._install(self._settings)

    def run(self, *command: str) -> str:
        """Run `command` in the machine; what it wrote. Fails when it fails."""
        inside = ["nsenter", "--target", str(self._leader), "--all"]
        done = subprocess.run([*inside, *command], capture_output=True, text=True, timeout=120.0)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self._journal()}"
        return done.stdout.strip()

    def shows(self, name: str) -> str:
        """A property of the service."""
        return self.run("systemctl", "show", "vigild.service", "--value", f"--property={name}")

    def connect(self) -> socket.socket:
        """A connection that the daemon has accepted and stored. One at a time."""
        before = self.status()["ingest"]["connections_total"]
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60.0)
        connection.connect(str(self.root / "run/vigild/log.sock"))
        # Not by the number of stored ones: the daemon stores something else now and then, to see whether it can.
        self.wait(lambda: self.status()["ingest"]["connections_total"] > before)
        return connection

    def main_process(self) -> int:
        """The daemon's process, by the number it has here."""
        inner, namespace = self.shows("MainPID"), os.readlink(f"/proc/{self._leader}/ns/pid")
        for process in Path("/proc").glob("[0-9]*"):
            try:
                numbers = (process / "status").read_text().partition("NSpid:")[2].partition("\n")[0].split()
                if numbers[-1:] == [inner] and os.readlink(process / "ns/pid") == namespace:
                    return int(process.name)
            except (FileNotFoundError, ProcessLookupError):  # it ended as we looked
                continue
        raise AssertionError(f"process {inner} of the machine is not among ours\n{self._journal()}")

    def stored(self) -> int:
        return int(self.shows("NFileDescriptorStore"))

    def status(self) -> dict[str, Any]:
        """What GET /status says. Raises OSError or HTTPException when the daemon is not quite there."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60.0)
            connection.connect(str(self.root / "run/vigild/admin.sock"))
            connection.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            with closing(HTTPResponse(connection)) as response:
                response.begin()
                found: dict[str, Any] = json.loads(response.read())
                return found

    def serving(self, *, after: str) -> bool:
        """Whether a process serves that has not the MainPID `after`."""
        try:
            serving = self.status()["status"] == "serving"
        except (OSError, HTTPException):
            return False
        return serving and self.shows("MainPID") not in ("0", after)

    def wait(self, happened: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert self._nspawn.poll() is None, self._log.read_text(errors="replace")
            assert time.monotonic() < deadline, f"nothing for {seconds} s\n{self._journal()}"
            time.sleep(0.02)

    def close(self) -> None:
        if self._leader:
            # The machine would outlive the program that started it; with its first process all of it ends.
            os.kill(self._leader, signal.SIGKILL)
        self._nspawn.kill()
        self._nspawn.wait(30.0)

    def _journal(self) -> str:
        """The newest lines of the machine's journal."""
        inside = ["nsenter", "--target", str(self._leader), "--all", "journalctl", "--no-pager", "--lines=60"]
        return subprocess.run(inside, capture_output=True, text=True, timeout=60.0).stdout

    def _booted(self) -> bool:
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        if not children:
            return False
        self._leader = int(children[0])
        inside = ["nsenter", "--target", str(self._leader), "--all", "systemctl", "is-active", "basic.target"]
        return subprocess.run(inside, capture_output=True).stdout == b"active\n"

    def _install(self, settings: str) -> None:
        units = self.root / "etc/systemd/system"
        for unit in ("vigild.service", "vigild.socket"):
            shutil.copy(PROJECT / "systemd" / unit, units / unit)
        programs = {"opt/vigild/bin/vigild": _EXECUTABLE % "main", "opt/vigild/bin/vigilctl": _EXECUTABLE % "vigilctl"}
        places = {**programs, "etc/vigild/vigild.toml": settings}
        users = (PROJECT / "systemd/vigild.sysusers").read_text()
        for name, text in {**places, "etc/sysusers.d/vigild.conf": users}.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text)
        for name in programs:
            (self.root / name).chmod(0o755)
        self.run("systemd-sysusers")
        self.run("systemctl", "daemon-reload")


@contextmanager
def container(home: Path, settings: str) -> Iterator[Container]:
    machine = Container(home, settings)
    try:
        machine.boot()
        yield machine
    finally:
        machine.close()
