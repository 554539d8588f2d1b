"""Not a benchmark: starts the real daemon on a directory of its own, feeds it over its socket, queries its API and
kills it. Benchmarks and the black-box tests share it."""

import contextlib
import gzip
import importlib.resources
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

START_SECONDS = 60.0
TRAINING_SECONDS = 600.0  # seconds of work, but next to busy processes the trainer hardly gets a processor
_POLL_SECONDS = 0.02

QUICK = """
[learning]
warmup_lines = {warmup}
retrain_lines = {retrain}
retrain_seconds = 0
[checkpoint]
every_lines = {every_lines}
[admin]
bind = ["unix:admin.sock"]
[alarms]
verdicts = "{verdicts}"
"""


def sample_lines() -> list[bytes]:
    """The bundled real log."""
    packed = importlib.resources.files("daemon").joinpath("sample/access.log.gz").read_bytes()
    return gzip.decompress(packed).splitlines()


class Vigild:
    """One daemon process; `log` is its stderr so far."""

    def __init__(self, home: Path, *, settings: str, env: Mapping[str, str] = {}) -> None:
        self.state = home / "state"
        # The path of a Unix socket is short; pytest's temporary directories are not.
        self._runtime = tempfile.TemporaryDirectory(prefix="vigild-")
        self.runtime = Path(self._runtime.name)
        self._log = home / "log"
        self._config = home / "vigild.toml"
        self._config.write_text(settings)
        self.command = [
            sys.executable,
            "-m",
            "daemon.main",
            "--config",
            str(self._config),
            "--state-dir",
            str(self.state),
        ]
        self._env = {**os.environ, **env, "RUNTIME_DIRECTORY": str(self.runtime)}
        self._env.pop("STATE_DIRECTORY", None)
        self.process: subprocess.Popen[bytes] | None = None
        transport = httpx.HTTPTransport(uds=str(self.runtime / "admin.sock"))
        self.api = httpx.Client(transport=transport, base_url="http://localhost", timeout=60.0)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def launch(self) -> "Vigild":
        """Start the process and return at once."""
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(self.command, env=self._env, stdin=subprocess.DEVNULL, stderr=log)
        return self

    def start(self) -> "Vigild":
        """Start the process and return when it serves."""
        self.launch()
        self.wait(lambda: bool(self.health().get("serving")), START_SECONDS)
        return self

    def wait(self, happened: Callable[[], bool], seconds: float = 60.0) -> None:
        """Poll until `happened`; fails with the log when the daemon died or the time is over."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process is not None
            assert self.process.poll() is None, f"vigild ended with {self.process.returncode}:\n{self.log}"
            assert time.monotonic() < deadline, f"nothing for {seconds} s:\n{self.log}"
            time.sleep(_POLL_SECONDS)

    def wait_for_model(self) -> None:
        """Return when a model of all members judges. That may take long, as the trainer has the lowest priority."""
        self.wait(lambda: self.status()["phase"] == "ensemble", TRAINING_SECONDS)

    def change_settings(self, settings: str) -> None:
        """Write the settings, reload them, and return when they are in force."""
        assert self.process is not None
        self._config.write_text(settings)
        before = self.log.count(" reloaded")
        self.process.send_signal(signal.SIGHUP)
        self.wait(lambda: self.log.count(" reloaded") > before)

    def health(self) -> dict[str, Any]:
        # A plain connection first: httpx leaves its socket open when nobody listens.
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.runtime / "admin.sock")):
                return {}
        found: dict[str, Any] = self.api.get("/health").json()
        return found

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get("/status").json()
        return found

    def post(self, path: str, body: Any = None) -> Any:
        answer = self.api.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def ask(self, lines: list[str]) -> list[dict[str, Any]]:
        """The judgement of each line, over a connection of its own, so that threads may call it."""
        transport = httpx.HTTPTransport(uds=str(self.runtime / "admin.sock"))
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=120.0) as api:
            answer = api.post("/detect/batch", json={"log_lines": lines})
        assert answer.status_code == 200, answer.text
        results: list[dict[str, Any]] = answer.json()["results"]
        return results

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60.0)
        try:
            connection.connect(str(self.runtime / "log.sock"))
        except OSError:
            connection.close()
            raise
        return connection

    def send(self, data: bytes) -> None:
        """Send, and return when the daemon has confirmed that all of it is durable."""
        with self.connect() as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""

    def send_lines(self, lines: list[bytes]) -> None:
        self.send(b"".join(line + b"\n" for line in lines))

    def applied(self, line: int) -> None:
        self.wait(lambda: self.status()["logs_processed"] >= line)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        return self.signal(signal.SIGTERM)

    def signal(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30.0)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(30.0)
        self.api.close()
        with contextlib.suppress(OSError):
            self._runtime.cleanup()


@contextmanager
def vigild(
    home: Path, *, warmup: int = 1_000_000, every_lines: int = 10_000, verdicts: str = "flagged", more: str = ""
) -> Iterator[Vigild]:
    """A daemon, not started yet; killed afterwards whatever happens."""
    settings = QUICK.format(warmup=warmup, every_lines=every_lines, verdicts=verdicts, retrain=1_000_000) + more
    daemon = Vigild(home, settings=settings)
    try:
        yield daemon
    finally:
        daemon.close()
