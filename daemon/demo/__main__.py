"""`make run`: a demonstration on 10,000 real lines, from an empty state to one that outlives a restart.

The first run starts the daemon with an empty state directory and a small warm-up, sends it the first part of
the bundled log, waits for the training, sends the rest, and prints what was flagged. At the end it notes the
judgements of a hundred lines. A later run starts on the same state, sends no line twice, gets the judgements
of the same hundred lines, and compares. Its files are in .run; removing that starts over.
"""

import contextlib
import gzip
import importlib.resources
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from daemon.default_directories import make_private_directory
from daemon.demo.demo_text import (
    commands_to_try,
    flagged_record_lines,
    remembered_state_lines,
    state_size_lines,
    training_progress_text,
)
from daemon.host.listeners import PATH_BYTES
from daemon.host.page_token import TOKEN_NAME

if TYPE_CHECKING:
    import httpx  # slow to import, so Ctrl-C would often interrupt the import

WARMUP_LINES = 4_000
LEARNED_FIRST = 6_000  # lines sent before the training; all detectors judge the others
COMPARED_LINES = 100
PORTS = range(8765, 8785)
START_SECONDS = 120.0
STOP_SECONDS = 60.0
POLL_SECONDS = 0.5

Say = Callable[[str], None]


class DemoError(Exception):
    """The demonstration cannot go on. The message is one or more lines that say why."""


def main() -> int:
    """The exit status: 0 after Ctrl-C, 1 when the demonstration failed."""
    signal.signal(signal.SIGTERM, _interrupt_on_sigterm)
    try:
        run_demonstration(Path.cwd() / ".run", _print_at_once)
    except DemoError as exc:
        print(exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the daemon served, or while it stopped
        return 0
    return 0


def run_demonstration(directory: Path, say: Say) -> None:
    """Run the demonstration in `directory`, until an interrupt stops the daemon. Raises DemoError."""
    runtime = runtime_directory(directory)
    for each in (directory, runtime):
        make_private_directory(each)
    port = free_port()
    say(f"vigild, with its state in {directory}/state and its log in {directory}/vigild.log.")
    if port != PORTS[0]:
        say(f"Port {PORTS[0]} is taken; the admin API gets {port}.")
    with _daemon_process(directory, runtime, port) as process, _admin_client(runtime) as api:
        try:
            send_sample(Daemon(process, api, directory, runtime), sample_lines(), say)
            say(commands_to_try(runtime, port, page_token(runtime)))
            process.wait()
            raise DemoError(_daemon_ended_text(process, directory))
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would interrupt the stop
            say("\nStopping: saving what was learned...")
            note_judgements(api, directory)
            _stop_daemon(process, directory)
            say("Stopped. Run it again: it will remember.")


def sample_lines() -> list[bytes]:
    """The bundled lines, each with its newline."""
    packed = importlib.resources.files("daemon").joinpath("sample", "access.log.gz").read_bytes()
    return gzip.decompress(packed).splitlines(keepends=True)


def runtime_directory(directory: Path) -> Path:
    """`directory`, or if its path is too long for a Unix socket, a short one derived from it."""
    if len(os.fsencode(directory / "admin.sock")) <= PATH_BYTES:
        return directory
    mark = zlib.crc32(os.fsencode(directory))
    return Path(tempfile.gettempdir()) / f"vigild-run-{os.geteuid()}-{mark:08x}"


def page_token(runtime: Path) -> str | None:
    """The token by which the page may answer alerts, None when the daemon could not write it."""
    try:
        return (runtime / TOKEN_NAME).read_text("ascii").strip()
    except FileNotFoundError:
        return None


def free_port(ports: Sequence[int] = PORTS) -> int:
    """The first of `ports` that nobody listens on. Raises DemoError."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise DemoError(f"all ports from {ports[0]} to {ports[-1]} are taken on 127.0.0.1")


class Daemon:
    """The running daemon: its process, its API, and sending it lines."""

    def __init__(self, process: subprocess.Popen[bytes], api: "httpx.Client", directory: Path, runtime: Path) -> None:
        self.process = process
        self.api = api
        self.directory = directory
        self.runtime = runtime

    def status(self) -> dict[str, Any]:
        if self.process.poll() is not None:
            raise DemoError(_daemon_ended_text(self.process, self.directory))
        return _answer_or_error(self.api.get("/status"))

    def send(self, name: str, lines: Sequence[bytes]) -> None:
        """Send `lines` with vigilctl, which shows progress; returns when all of them are durable."""
        part = self.directory / name
        part.write_bytes(b"".join(lines))
        command = [_installed_program("vigilctl"), "send", "--socket", str(self.runtime / "log.sock"), str(part)]
        if subprocess.run(command).returncode:
            raise DemoError(f"vigilctl could not send {part}")

    def flagged(self) -> list[dict[str, Any]]:
        """The flagged records, oldest first."""
        found: list[dict[str, Any]] = _answer_or_error(self.api.get("/anomalies", params={"limit": 1000}))["anomalies"]
        return found


def send_sample(daemon: Daemon, lines: Sequence[bytes], say: Say) -> None:
    """Send the lines of the sample that the state does not have yet, and print what comes of it. Raises DemoError."""
    status = daemon.status()
    known = status["logs_processed"]
    if known:
        for line in remembered_state_lines(status, compare_noted_judgements(daemon.api, daemon.directory)):
            say(line)
    else:
        say(
            f"It knows nothing yet. For this demonstration it trains after {WARMUP_LINES:,} lines; "
            "the default is 50,000.\nOnly the rules judge until then."
        )
    if known < LEARNED_FIRST:
        say(f"\nSending lines {known + 1:,} to {LEARNED_FIRST:,} of the bundled access log:")
        daemon.send("first.log", lines[known:LEARNED_FIRST])
    if known < len(lines):
        _await_ensemble(daemon, say)
        begin = max(known, LEARNED_FIRST)
        say(f"\nSending lines {begin + 1:,} to {len(lines):,}, which meet all detectors:")
        daemon.send("second.log", lines[begin:])
        # The end of the file ends its sessions; a stream would go on.
        _answer_or_error(daemon.api.post("/flush"))
    for line in flagged_record_lines(daemon.flagged()):
        say(line)
    _answer_or_error(daemon.api.post("/checkpoint"))
    for line in state_size_lines(daemon.status(), daemon.directory / "state"):
        say(line)


def _await_ensemble(daemon: Daemon, say: Say) -> None:
    printed = ""
    while (status := daemon.status())["phase"] != "ensemble":
        words = training_progress_text(status.get("training") or {})
        if words != printed:
            say(words)
            printed = words
        time.sleep(POLL_SECONDS)
    say("Trained: the Isolation Forest and the transformer judge from here on.")


def note_judgements(api: "httpx.Client", directory: Path) -> None:
    """Save, and note the digest and the judgements of the sample's last lines for `compare_noted_judgements`."""
    import httpx

    try:
        saved = _answer_or_error(api.post("/checkpoint"))
        note = {"digest": saved["digest"], "line": saved["line"], "answers": _judge_last_sample_lines(api)}
    except (httpx.HTTPError, DemoError) as exc:
        # The daemon still saves when it stops; only the comparison is lost.
        print(f"nothing noted for the next run: {exc}", file=sys.stderr)
        return
    (directory / "remembered.json").write_text(json.dumps(note))


def compare_noted_judgements(api: "httpx.Client", directory: Path) -> dict[str, Any] | None:
    """The note of `note_judgements`, None without one; "same" counts the lines whose judgement is the same now."""
    try:
        note: dict[str, Any] = json.loads((directory / "remembered.json").read_text())
    except FileNotFoundError:
        return None
    answers = _judge_last_sample_lines(api)
    note["same"] = sum(one == other for one, other in zip(note["answers"], answers, strict=True))
    return note


def _judge_last_sample_lines(api: "httpx.Client") -> list[list[Any]]:
    lines = [line.decode("utf-8", "surrogateescape").rstrip("\n") for line in sample_lines()[-COMPARED_LINES:]]
    results = _answer_or_error(api.post("/detect/batch", json={"log_lines": lines}))["results"]
    return [[each["verdict"], each["anomaly_score"], each["p"]] for each in results]


@contextmanager
def _daemon_process(directory: Path, runtime: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The process of a daemon that serves. Killed at the end if it still runs."""
    settings = directory / "vigild.toml"
    settings.write_text(
        "# Written by `make run`: the defaults, but for a warm-up that the bundled 10,000 lines can fill.\n"
        f"[learning]\nwarmup_lines = {WARMUP_LINES}\n\n"
        f'[admin]\nbind = ["unix:admin.sock", "127.0.0.1:{port}"]\n'
    )
    ours = ("VIGILD_", "LISTEN_", "STATE_DIRECTORY", "CONFIGURATION_DIRECTORY", "WATCHDOG_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env |= {"RUNTIME_DIRECTORY": str(runtime), "NOTIFY_SOCKET": f"@vigild-demo-{os.getpid()}"}
    command = [_installed_program("vigild"), "--config", str(settings), "--state-dir", str(directory / "state")]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        # We act as its service manager: it notifies us when it serves, so nobody has to poll.
        manager.bind(f"\0vigild-demo-{os.getpid()}")
        manager.settimeout(POLL_SECONDS)
        with open(directory / "vigild.log", "ab") as log:
            # In a session of its own, so that Ctrl-C reaches only us and we stop it.
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        # It keeps notifying, and would log errors if nobody read.
        listener = threading.Thread(target=_drain_notifications, args=(process, manager), daemon=True)
        try:
            _await_ready(process, manager, directory)
            listener.start()
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            if listener.is_alive():
                listener.join()  # it ends with the process


def _await_ready(process: subprocess.Popen[bytes], manager: socket.socket, directory: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(_daemon_ended_text(process, directory))
        try:
            words = manager.recv(4096).split(b"\n")
        except TimeoutError:
            continue
        if b"READY=1" in words:
            return
    raise DemoError(f"vigild does not serve after {START_SECONDS:.0f} s; see {directory}/vigild.log")


def _drain_notifications(process: subprocess.Popen[bytes], manager: socket.socket) -> None:
    while process.poll() is None:
        with contextlib.suppress(TimeoutError):
            manager.recv(4096)


def _stop_daemon(process: subprocess.Popen[bytes], directory: Path) -> None:
    process.terminate()
    try:
        status = process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        raise DemoError(f"vigild still runs after {STOP_SECONDS:.0f} s; see {directory}/vigild.log") from None
    if status:
        raise DemoError(_daemon_ended_text(process, directory))


def _daemon_ended_text(process: subprocess.Popen[bytes], directory: Path) -> str:
    last = (directory / "vigild.log").read_text("utf-8", "replace").splitlines()[-5:]
    return "\n".join([f"vigild ended with status {process.returncode}; the end of its log says:", *last])


def _admin_client(runtime: Path) -> "httpx.Client":
    import httpx

    transport = httpx.HTTPTransport(uds=str(runtime / "admin.sock"))
    return httpx.Client(transport=transport, base_url="http://localhost", timeout=60.0)


def _answer_or_error(response: "httpx.Response") -> dict[str, Any]:
    answer: dict[str, Any] = response.json()
    if response.is_error:
        raise DemoError(f"{response.request.url.path}: {answer['error']['message']}")
    return answer


def _installed_program(name: str) -> str:
    return str(Path(sysconfig.get_path("scripts")) / name)


def _print_at_once(text: str) -> None:
    print(text, flush=True)


def _interrupt_on_sigterm(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
