"""A machine of its own with a real systemd as process 1, in a container of systemd-nspawn.

Files and sockets of the machine are reached from here through /proc/PID/root, processes by their number here; what
runs in there is started with nsenter, in an environment as a login would give it and with nothing of ours.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

BOOT_SECONDS = 60.0
START_SECONDS = 90.0
_ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_USER_PATH = "/usr/local/bin:/usr/bin:/bin"


def why_not() -> str | None:
    """None when this host can run one."""
    if os.geteuid():
        return "a container needs root"
    for program in ("systemd-nspawn", "nsenter"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian: apt install systemd-container)"
    return None


class Machine:
    """A machine that boots from the time it is made; `options` are those of systemd-nspawn, the tree among them.

    `log` gets the output of the boot, `arguments` go to its process 1, which has booted when `target` is reached.
    """

    def __init__(
        self, log: Path, options: Sequence[str], *, arguments: Sequence[str] = (), target: str = "multi-user.target"
    ) -> None:
        self._log, self._target, self.leader = log, target, 0
        with open(log, "wb") as output:
            # A session of its own: what interrupts the test does not end a machine that is to be kept.
            self._nspawn: subprocess.Popen[bytes] | None = subprocess.Popen(
                [
                    *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network"),
                    *("--console=pipe", f"--machine=vigild-test-{os.getpid()}"),
                    *(*options, "--boot", *arguments),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @classmethod
    def again(cls, leader: int) -> "Machine":
        """The one that runs already, whose process 1 has the number `leader` here."""
        machine = cls.__new__(cls)
        machine._nspawn, machine.leader, machine.root = None, leader, Path(f"/proc/{leader}/root")
        return machine

    def boot(self) -> None:
        """Return when it has booted."""
        self.wait(self._booted, BOOT_SECONDS)
        self.root = Path(f"/proc/{self.leader}/root")

    def inside(self, command: Sequence[str], user: str = "root") -> list[str]:
        """The command that runs `command` in the machine as `user`, in all of the user's groups and at home."""
        home = "/root" if user == "root" else f"/home/{user}"
        path = _ROOT_PATH if user == "root" else _USER_PATH
        identity = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user != "root" else []
        environment = ["env", "--ignore-environment", f"PATH={path}", f"HOME={home}", f"USER={user}", "LANG=C.UTF-8"]
        return ["nsenter", "--target", str(self.leader), "--all", *identity, *environment, *command]

    def run(self, *command: str, user: str = "root", stdin: bytes | None = None, seconds: float = 120.0) -> str:
        """Run `command` in the machine; what it wrote. Fails when it fails."""
        done = self.attempt(*command, user=user, stdin=stdin, seconds=seconds)
        said = (done.stdout + done.stderr).decode(errors="replace")
        assert done.returncode == 0, f"{command} as {user} ended with {done.returncode}: {said}\n{self.journal()}"
        return done.stdout.decode(errors="replace").strip()

    def attempt(
        self, *command: str, user: str = "root", stdin: bytes | None = None, seconds: float = 120.0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `command` in the machine, whatever comes of it."""
        return subprocess.run(self.inside(command, user), capture_output=True, timeout=seconds, input=stdin or b"")

    def shows(self, name: str, unit: str = "vigild.service") -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", unit, "--value", f"--property={name}")

    def connect(self) -> socket.socket:
        """A connection that the daemon has accepted and stored. One at a time."""
        before = self.status()["ingest"]["connections_total"]
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60.0)
        connection.connect(str(self.root / "run/vigild/log.sock"))
        # Not by the number of stored ones: the daemon stores something else now and then, to see whether it can.
        self.wait(lambda: self.status()["ingest"]["connections_total"] > before)
        return connection

    def main_process(self, unit: str = "vigild.service") -> int:
        """The unit's process, by the number it has here."""
        inner, namespace = self.shows("MainPID", unit), os.readlink(f"/proc/{self.leader}/ns/pid")
        for process in Path("/proc").glob("[0-9]*"):
            try:
                numbers = (process / "status").read_text().partition("NSpid:")[2].partition("\n")[0].split()
                if numbers[-1:] == [inner] and os.readlink(process / "ns/pid") == namespace:
                    return int(process.name)
            except (FileNotFoundError, ProcessLookupError):  # it ended as we looked
                continue
        raise AssertionError(f"process {inner} of the machine is not among ours\n{self.journal()}")

    def stored(self) -> int:
        return int(self.shows("NFileDescriptorStore"))

    def answer(self, path: str, instance: str = "", body: Any = None) -> tuple[int, Any]:
        """Status and JSON of a request over admin.sock. Raises OSError or HTTPException when nobody answers."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60.0)
            connection.connect(str(self.root / "run/vigild" / instance / "admin.sock"))
            content = b"" if body is None else json.dumps(body).encode()
            head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            with closing(HTTPResponse(connection)) as response:
                response.begin()
                return response.status, json.loads(response.read())

    def status(self, instance: str = "") -> dict[str, Any]:
        """What GET /status says. Raises OSError or HTTPException when the daemon is not quite there."""
        found: dict[str, Any] = self.answer("/status", instance)[1]
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
            assert self._nspawn is None or self._nspawn.poll() is None, self._log.read_text(errors="replace")
            assert time.monotonic() < deadline, f"nothing for {seconds} s\n{self.journal()}"
            time.sleep(0.02)

    def leave(self) -> None:
        """Let it run on when we end."""
        if self._nspawn is not None:
            self._nspawn.returncode = 0  # or its object would complain, as it is deleted, that the process runs

    def close(self) -> None:
        """End it as a power cut would."""
        if self.leader:
            # The machine would outlive the program that started it; with its first process all of it ends.
            os.kill(self.leader, signal.SIGKILL)
        if self._nspawn is not None:
            self._nspawn.kill()
            self._nspawn.wait(30.0)

    def journal(self, lines: int = 60) -> str:
        """The newest lines of the machine's journal."""
        done = self.attempt("journalctl", "--no-pager", f"--lines={lines}")
        return done.stdout.decode(errors="replace")

    def _booted(self) -> bool:
        assert self._nspawn is not None
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        if not children:
            return False
        self.leader = int(children[0])
        return self.attempt("systemctl", "is-active", self._target).stdout == b"active\n"
