"""Who may change what a running daemon knows: another user of the host, over loopback TCP and on admin.sock."""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.running import Vigild, vigild
from daemon.demo.__main__ import free_port
from daemon.file_access import User, as_user

NOBODY, GROUP = 65534, 64321
VIGILCTL = [sys.executable, "-m", "daemon.vigilctl"]
DETECT = ("POST", "/detect", '{"log_line": "a b"}')
OPEN = [
    *(("GET", path, "") for path in ("/", "/health", "/status", "/metrics", "/snapshots", "/incidents", "/feedback")),
    *(DETECT, ("POST", "/checkpoint", ""), ("POST", "/snapshots/verify", "")),
]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to ask as another user")


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def daemon(tmp_path: Path, port: int) -> Iterator[Vigild]:
    with vigild(tmp_path) as it:
        settings = it._config.read_text().replace('["unix:admin.sock"]', f'["unix:admin.sock", "127.0.0.1:{port}"]')
        it._config.write_text(settings.replace("[checkpoint]", "[checkpoint]\nkeep = 2"))
        it.start()
        it.send(b"one line\nGET /?id=1 UNION SELECT password FROM users\n")
        yield it


def asking(user: int, place: object, *asked: tuple[str, str, str], token: str = "", group: int = NOBODY) -> list[Any]:
    """(status, body) of each request, by `user`, a member of `group` alone. Status 0: could not even connect."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}

    def ask() -> str:
        return json.dumps([_answer(str(place), headers, *each) for each in asked])

    answers: list[Any] = json.loads(as_user(User("somebody", user, group, (group,)), ask) or "")
    return answers


def _answer(place: str, headers: dict[str, str], method: str, path: str, body: str) -> tuple[int, str]:
    client = http.client.HTTPConnection("localhost", timeout=60)
    client.sock = socket.socket(socket.AF_UNIX if place.startswith("/") else socket.AF_INET)
    try:
        client.sock.connect(place if place.startswith("/") else ("127.0.0.1", int(place)))
    except OSError as exc:
        return 0, str(exc)
    client.request(method, path, body, headers)
    answer = client.getresponse()
    return answer.status, answer.read().decode()


def changes(daemon: Vigild) -> list[tuple[str, str, str]]:
    name = Path(daemon.post("/checkpoint")["path"]).name
    flagged = daemon.api.get("/anomalies").json()["anomalies"][0]["id"]
    return [
        ("POST", "/feedback", json.dumps({"id": flagged, "answer": "anomaly"})),
        ("POST", f"/feedback/{flagged}/undo", ""),
        ("POST", "/flush", ""),
        ("POST", "/train-from?source=a&last=1", "a clean line\n"),
        ("POST", f"/snapshots/{name}/pin", ""),
        ("POST", f"/snapshots/{name}/unpin", ""),
        ("POST", f"/snapshots/{name}/restore", ""),
        ("POST", "/models/1/rollback", ""),  # refused by 404 at last: there is none
    ]


def test_another_user_may_read_and_ask_over_tcp_and_change_nothing(daemon: Vigild, port: int) -> None:
    asked = changes(daemon)
    before = daemon.status()["seq"]
    assert [status for status, _ in asking(NOBODY, port, *OPEN)] == [200] * len(OPEN)
    for (_, path, _), (status, body) in zip(asked, asking(NOBODY, port, *asked), strict=True):
        error = json.loads(body)["error"]
        assert (status, error["code"]) == (403, "token_needed"), path
        assert "admin.sock" in error["message"] and "vigilctl page" in error["message"]
    assert daemon.status()["seq"] == before and " audit: " not in daemon.log
    assert asking(NOBODY, daemon.runtime / "admin.sock", DETECT)[0][0] == 0, "and admin.sock is closed to it"
    daemon.runtime.chmod(0o755)  # as systemd makes it
    nobody = User("nobody", NOBODY, NOBODY, (NOBODY,))
    assert as_user(nobody, (daemon.runtime / "page.token").read_text) == "permission denied"


def test_a_member_of_the_group_may_on_admin_sock_and_each_change_is_logged_with_who(daemon: Vigild) -> None:
    path = daemon.runtime / "admin.sock"
    daemon.runtime.chmod(0o755)  # as systemd makes it
    os.chown(path, 0, GROUP)
    asked = changes(daemon)
    statuses = [status for status, _ in asking(NOBODY, path, *asked, group=GROUP)]
    assert statuses == [200] * 7 + [404]
    lines = [line for line in daemon.log.splitlines() if " audit: " in line]
    assert len(lines) == len(asked)
    for (_, path_asked, _), status, line in zip(asked, statuses, lines, strict=True):
        who = rf"audit: uid {NOBODY}, gid {GROUP}, pid \d+ on admin\.sock: POST {re.escape(path_asked)}: {status} "
        assert re.search(who, line), line


def test_the_page_s_token_lets_changes_through_over_tcp(daemon: Vigild, port: int) -> None:
    daemon.runtime.chmod(0o755)
    os.chown(daemon.runtime / "page.token", 0, GROUP)
    env = {**os.environ, "RUNTIME_DIRECTORY": str(daemon.runtime), "VIGILD_ADMIN": "", "VIGILD_TOKEN_FILE": ""}
    printed = subprocess.run([*VIGILCTL, "page"], env=env, capture_output=True, text=True, timeout=60, check=True)
    found = re.fullmatch(rf"http://127\.0\.0\.1:{port}/#token=([\w-]{{43}})\n", printed.stdout)
    assert found and printed.stderr == ""
    assert found[1] == (daemon.runtime / "page.token").read_text().strip()
    asked = changes(daemon)
    statuses = [status for status, _ in asking(NOBODY, port, *asked, token=found[1])]
    assert statuses == [200] * 7 + [404]
    assert asking(NOBODY, port, ("POST", "/flush", ""), token="x" * 43)[0][0] == 401
    command = [*VIGILCTL, "--admin", f"http://127.0.0.1:{port}"]
    done = subprocess.run([*command, "flush"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("vigilctl: over TCP this needs a token"), done.stderr
    token_file = ["--token-file", str(daemon.runtime / "page.token")]
    subprocess.run([*command, *token_file, "flush"], env=env, timeout=60, check=True, capture_output=True)
    assert daemon.log.count("audit: the token from 127.0.0.1:") == len(asked) + 1
    assert daemon.log.count("sent a wrong token with POST /flush; 1 from loopback so far") == 1
    assert found[1] not in daemon.log
    daemon.stop()
    assert not (daemon.runtime / "page.token").exists()


def test_checkpoints_over_tcp_push_out_no_snapshot(daemon: Vigild, port: int) -> None:
    def names() -> list[str]:
        return sorted(path.name for path in daemon.state.glob("snapshot-*.msgpack"))

    kept = []
    for _ in range(2):
        daemon.send(b"x\n")
        kept.append(Path(daemon.post("/checkpoint")["path"]).name)
    assert names() == kept
    for _ in range(4):
        daemon.send(b"x\n")
        status, body = asking(NOBODY, port, ("POST", "/checkpoint", ""))[0]
        answer = json.loads(body)
        assert status == 200 and answer["line"] == daemon.status()["logs_processed"]
        assert names() == [*kept, Path(answer["path"]).name]
    daemon.send(b"x\n")
    daemon.post("/checkpoint")  # control: one asked for on admin.sock counts, and the oldest goes
    assert kept[0] not in names()
