"""The machine of the system test: what is on it before vigild is, and what its users do.

`alice` administers it, with sudo; `www-data` is the web server whose log vigild is to watch; `mallory` is nobody. The
administrator's checkout of the project is /home/alice/vigild, the logs are in /srv/logs, and pip finds its packages in
/wheels and nowhere else.
"""

import functools
import gzip
import importlib.resources
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from detection.verdicts.verdict_records import shown_text
from tests.system.documents import Command, commands
from tests.system.machine import Machine

PROJECT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/systemd.md")
ADMIN, SENDER, STRANGER = "alice", "www-data", "mallory"
CHECKOUT, LOGS, SOCKET = f"/home/{ADMIN}/vigild", "/srv/logs", "/run/vigild/log.sock"
ACCESS, MESSAGES, CLIENT = f"{LOGS}/access.log", f"{LOGS}/messages.log", f"{LOGS}/client.py"
STATE = "var/lib/vigild"
ROUNDS = 3
_NOT_PROJECT = (".git", ".venv", ".run", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "__pycache__")
# Where files come and go by themselves, at midnight by Debian's timers.
_PASSING = (
    *("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/var/log", "/var/cache", "/home", "/root", "/wheels"),
    *("/var/lib/apt", "/var/lib/logrotate", "/var/lib/systemd", "/var/backups"),
)
# nc and socat, where this host's /usr is the machine's and has none: whatever comes in goes to the socket named last.
_STAND_IN = """#!/usr/bin/python3
import socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[-1].removeprefix("UNIX-CONNECT:"))
    while piece := sys.stdin.buffer.raw.read(65536):
        connection.sendall(piece)
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
"""
# Whose business a command is, by its first words; everything else is root's.
_TYPISTS = {
    "sudo": ADMIN,
    "vigilctl send": SENDER,
    "tail -F": SENDER,
    "vigilctl": ADMIN,
    "curl": ADMIN,
}


def sample(rounds: int) -> bytes:
    """The bundled real log of four days, and again as if it had gone on: the same lines, `rounds` times four days."""
    packed = importlib.resources.files("daemon").joinpath("sample/access.log.gz").read_bytes()
    text = gzip.decompress(packed)

    def later(stamp: re.Match[bytes], days: int) -> bytes:
        return f"[{date(2015, 5, int(stamp[1])) + timedelta(days):%d/%b/%Y}:".encode()

    return b"".join(
        re.sub(rb"\[(\d\d)/May/2015:", functools.partial(later, days=4 * number), text) for number in range(rounds)
    )


class Sending:
    """A client at work in the machine: sends the lines of `log`, so many a second, until it is finished."""

    def __init__(self, story: "Story", log: str, rate: int, socket: str = SOCKET) -> None:
        self._story, self._log = story, log
        command = ["/usr/bin/python3", CLIENT, socket, log, str(rate)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process = subprocess.Popen(story.machine.inside(command, SENDER), **pipes)  # type: ignore[call-overload]
        story.sendings.append(self)

    def end(self) -> None:
        """End it anyhow, if it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def finish(self) -> None:
        """Return when all that it sent is confirmed, and noted as sent."""
        said, complaint = self._process.communicate(timeout=180.0)
        assert self._process.returncode == 0, complaint.decode(errors="replace")
        lines = self._story.lines(self._log)
        self._story.note(self._log, list(itertools.islice(itertools.cycle(lines), int(said))))


class Story:
    """The machine, and what was done to it so far.

    `sent` is what log.sock got since the state was empty, by log; `before` the files that were there without vigild;
    `passed` the tests that need not be run again.
    """

    def __init__(self, machine: Machine, *, host: bool) -> None:
        self.machine, self.host = machine, host
        self.sent: dict[str, list[str]] = {ACCESS: [], MESSAGES: []}
        self.before: list[str] = []
        self.passed: list[str] = []
        self.sendings: list[Sending] = []

    # --- before vigild is there ---------------------------------------------------------------------

    def prepare(self) -> None:
        """Users, the checkout, the logs and pip's packages."""
        root = self.machine.root
        (root / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        for user in (ADMIN, STRANGER):
            self.machine.run("useradd", "--create-home", "--shell", "/bin/bash", user)
        if self.host:
            self._stand_in("nc", "socat")
        else:
            (root / "etc/sudoers.d/admin").write_text(f"{ADMIN} ALL=(ALL:ALL) NOPASSWD: ALL\n")
        self.check_out(PROJECT)
        (root / LOGS[1:]).mkdir(parents=True)
        (root / ACCESS[1:]).write_bytes(sample(ROUNDS))
        (root / LOGS[1:] / "last-week.log.gz").write_bytes(gzip.compress(sample(1)))
        (root / MESSAGES[1:]).write_bytes(self._messages())
        (root / CLIENT[1:]).write_bytes((PROJECT / "tests/system/client.py").read_bytes())
        self.before = sorted(self.files())

    def _stand_in(self, *programs: str) -> None:
        place = self.machine.root / "usr/local/bin"
        place.mkdir(exist_ok=True)
        for program in programs:
            if self.machine.attempt("which", program).returncode:
                (place / program).write_text(_STAND_IN)
                (place / program).chmod(0o755)

    def check_out(self, source: Path) -> None:
        """Put the project of `source` where the administrator has it."""
        place = self.machine.root / CHECKOUT[1:]
        if place.exists():
            shutil.rmtree(place)
        shutil.copytree(source, place, symlinks=True, ignore=shutil.ignore_patterns(*_NOT_PROJECT))
        self.machine.run("chown", "--recursive", f"{ADMIN}:", CHECKOUT)

    def _messages(self) -> bytes:
        """Real lines of other formats, of a day of the access log: what package and service manager here wrote."""
        package_log = self.machine.root / "var/log/dpkg.log"
        written = package_log.read_text() if package_log.exists() else ""
        written += self.machine.run("journalctl", "--no-pager", "--output=short-iso") + "\n"
        return re.sub(r"^\d{4}-\d\d-\d\d", "2015-05-17", written, flags=re.MULTILINE).encode()

    def files(self) -> set[str]:
        """Every path in the machine but those of logs, temporary files and homes."""
        but = [word for path in _PASSING for word in ("-path", path, "-prune", "-o")]
        return set(self.machine.run("find", "/", *but, "-print", seconds=300.0).splitlines())

    # --- what users do ------------------------------------------------------------------------------

    def follow(self, words: str, *, whole: bool = False) -> str:
        """Type the first command of the documents that holds `words`, or `whole` is them; what it wrote."""
        given = [command.text for page in PAGES for command in documented(page)]
        found = [text for text in given if (text == words if whole else words in text)]
        assert found, f"no document says how to: {words}"
        return self.type(found[0])

    def type(self, text: str, *, user: str = "", place: str = "", seconds: float = 300.0) -> str:
        """Type `text` as whose business it is, where it is; what it wrote. Fails when it fails."""
        done = self.attempt(text, user=user, place=place, seconds=seconds)
        said = (done.stdout + done.stderr).decode(errors="replace")
        assert done.returncode == 0, f"`{text}` ended with {done.returncode}: {said}\n{self.machine.journal()}"
        return said

    def attempt(
        self, text: str, *, user: str = "", place: str = "", limit: int = 0, seconds: float = 300.0
    ) -> subprocess.CompletedProcess[bytes]:
        """As `type`, whatever comes of it; ended after `limit` seconds with status 124."""
        user = user or next((name for words, name in _TYPISTS.items() if text.startswith(words)), "root")
        if self.host and text.startswith("sudo "):  # this host's /usr without its /etc: no PAM, so no sudo
            user, text = "root", text.removeprefix("sudo ")
        place = place or (CHECKOUT if "./install.sh" in text or text.startswith("make ") else LOGS)
        ended = ["timeout", str(limit)] if limit else []
        return self.machine.attempt(*ended, "bash", "-c", f"cd {place} && {text}", user=user, seconds=seconds)

    def settings(self, text: str, instance: str = "vigild") -> None:
        place = self.machine.root / "etc/vigild"
        place.mkdir(exist_ok=True)
        (place / f"{instance}.toml").write_text(text)

    # --- what was sent ------------------------------------------------------------------------------

    def lines(self, log: str) -> list[str]:
        """The lines of `log` as verdicts show them."""
        return [shown_text(line) for line in (self.machine.root / log[1:]).read_bytes().splitlines()]

    def note(self, log: str, lines: Sequence[str]) -> None:
        self.sent[log] += lines

    def judged(self) -> dict[str, list[dict[str, Any]]]:
        """Every verdict on a line that is on disk, by the log that the line is of, in their order."""
        of_access = set(self.lines(ACCESS))
        found: dict[str, list[dict[str, Any]]] = {ACCESS: [], MESSAGES: []}
        for record in self.verdicts():
            found[ACCESS if record["text"] in of_access else MESSAGES].append(record)
        return found

    def verdicts(self) -> list[dict[str, Any]]:
        """Every verdict on a line, in the order of the lines; fails unless each line has one and no more."""
        files = [self.machine.root / STATE / name for name in ("verdicts.jsonl.1", "verdicts.jsonl")]
        text = b"".join(file.read_bytes() for file in files if file.exists())
        records = [record for record in map(json.loads, text.splitlines()) if not record["closed"]]
        numbers = [record["line"] for record in records]
        assert numbers == list(range(1, len(numbers) + 1)), "every line has one verdict, in their order"
        return records

    def applied(self) -> None:
        """Return when all that was sent is judged and its verdicts are on disk."""
        wanted = sum(map(len, self.sent.values()))
        self.machine.wait(lambda: self.machine.status()["logs_processed"] >= wanted, 120.0)
        self.machine.answer("/checkpoint", body={})

    # --- keeping it ---------------------------------------------------------------------------------

    def save(self, notes: Path) -> None:
        kept = {"leader": self.machine.leader, "host": self.host, "sent": self.sent}
        notes.write_text(json.dumps({**kept, "before": self.before, "passed": self.passed}))

    @classmethod
    def load(cls, notes: Path) -> "Story":
        kept = json.loads(notes.read_text())
        story = cls(Machine.again(kept["leader"]), host=kept["host"])
        story.sent, story.before, story.passed = (kept[name] for name in ("sent", "before", "passed"))
        return story


def documented(page: str) -> list[Command]:
    return list(commands(page, (PROJECT / page).read_text()))


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
