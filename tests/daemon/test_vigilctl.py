"""vigilctl as its users run it: a process, its output, its exit status."""

import gzip
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from daemon.api import server
from daemon.api.app import create_app
from daemon.client import send_command
from daemon.client.admin_client import DEFAULT_URL, Admin, Failure, admin_urls
from daemon.client.commands import BATCH_BYTES
from daemon.client.text.explanation_text import explanation_lines
from daemon.client.text.formatting import Style, printable
from daemon.control.control_interface import ControlError
from daemon.control.vouched_uploads import MAX_CHUNK_BYTES
from tests.daemon.fake_control import FakeControl, incident, record

VIGILCTL = (sys.executable, "-m", "daemon.vigilctl")
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


def run(*arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [*VIGILCTL, *arguments],
        input=stdin,
        capture_output=True,
        timeout=60,
        env={**os.environ, **(env or {})},
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@asynccontextmanager
async def daemon(tmp_path: Path, token: str | None = None) -> AsyncIterator[tuple[FakeControl, dict[str, str]]]:
    """A served fake daemon and the environment in which vigilctl finds it."""
    control, stop = FakeControl(), trio.Event()
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "admin.sock"))
    unix.listen()
    app = create_app(control, hosts=(), token=token)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run_server, app, [unix], stop.wait)
        yield control, {"RUNTIME_DIRECTORY": str(tmp_path), "VIGILD_ADMIN": ""}
        control.stop()
        stop.set()


async def ask(*arguments: str, stdin: bytes = b"", env: dict[str, str]) -> tuple[int, str, str]:
    return await trio.to_thread.run_sync(partial(run, *arguments, stdin=stdin, env=env))


class Peer:
    """A log.sock or admin.sock: `serve` gets the one connection that comes, in a thread."""

    def __init__(self, path: Path, serve: Callable[[socket.socket], object]) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run, args=(serve,), daemon=True)
        self._thread.start()

    def _run(self, serve: Callable[[socket.socket], object]) -> None:
        connection, _ = self._listener.accept()
        with connection, self._listener:
            serve(connection)

    def join(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_help_teaches_and_nothing_heavy_is_imported() -> None:
    status, out, _ = run("--help")
    assert status == 0 and "examples:" in out and "Exit status" in out
    listing = "import sys, daemon.vigilctl; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", listing], capture_output=True, check=True, timeout=60)
    heavy = {"torch", "numpy", "trio", "quart", "httpx", "rich", "msgspec"}
    assert heavy.isdisjoint(loaded.stdout.decode().split())


@pytest.mark.parametrize(
    "arguments",
    [
        *((), ("dance",), ("status", "x"), ("snapshots",), ("--admin", "ftp://x", "status")),
        *(("--admin", "http://h:port", "status"), ("--admin", "unix:/" + "a" * 200, "status")),
        *(("--admin", "http://u:p@h", "status"), ("--admin", "http://h/x", "status")),
        *(("--admin", "http://127.0.0.1:99999", "status"), ("--admin", f"http://{'a' * 70}", "status")),
        *(("feedback", "7", "perhaps"), ("feedback", "7"), ("feedback", "7", "undo", "--note", "x")),
        *(("models",), ("models", "rollback"), ("models", "rollback", "x"), ("models", "rollback", "0")),
        *(("train-from",), ("incidents", "--limit", "x"), ("tail", "--some")),
    ],
)
def test_wrong_usage_is_exit_2(arguments: tuple[str, ...]) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "") and "error: " in err and "Traceback" not in err


def test_without_a_daemon_one_line_says_which_addresses_were_tried(tmp_path: Path) -> None:
    for arguments in (("status",), ("detect", "x"), ("tail",), ("incidents",), ("feedback",), ("train-from", "-")):
        status, out, err = run("--admin", NOBODY, *arguments)
        assert (status, out) == (1, "")
        assert err == f"vigilctl: no daemon answers; tried {NOBODY} (connection refused)\n"
    absent = tmp_path / "admin.sock"
    assert run("status", env={"VIGILD_ADMIN": f"unix:{absent}"})[2].count(str(absent)) == 1
    assert str(tmp_path / "log.sock") in run("send", "--socket", f"{tmp_path}/log.sock", stdin=b"x")[2]


def test_addresses_are_tried_in_order() -> None:
    env = {"RUNTIME_DIRECTORY": "/run/one", "VIGILD_ADMIN": "unix:/b"}
    assert admin_urls("unix:/a", env) == ["unix:/a"]
    assert admin_urls(None, env) == ["unix:/b"]
    del env["VIGILD_ADMIN"]
    assert admin_urls(None, env) == ["unix:/run/one/admin.sock", "unix:/run/vigild/admin.sock", DEFAULT_URL]


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: "
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("command", "answer", "said"),
    [
        ("status", HEAD + b"2\r\n\r\nhi", "what answers is not vigild (HTTP 200, not JSON)"),
        ("status", HEAD + b"5\r\n\r\n{}", "the daemon hung up: "),
        ("status", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "the daemon hung up: "),
        ("status", b"", "the daemon hung up: "),
        ("status", b"HTTP/1.1 500 No\r\n\r\n{}", "the daemon answered HTTP 500"),
        ("tail", CHUNKED + b"6\r\n: hi\n\n\r\n", "the stream broke off: "),
        ("tail", HEAD + b"7\r\n\r\ndata: x", "the stream is not vigild's (not JSON)"),
        ("tail", b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", "what answers is not vigild (HTTP 302, not JSON)"),
    ],
)
def test_an_answer_of_another_program_is_an_error_of_one_line(
    tmp_path: Path, command: str, answer: bytes, said: str
) -> None:
    def reply(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    peer = Peer(tmp_path / "admin.sock", reply)
    status, out, err = run("--admin", f"unix:{tmp_path}/admin.sock", command)
    peer.join()
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"vigilctl: {said}")


@pytest.mark.parametrize("stream", [False, True])
def test_a_silent_daemon_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr("daemon.client.admin_client.ANSWER_SECONDS", 0.05)
    monkeypatch.setattr("daemon.client.admin_client.SILENCE_SECONDS", 0.05)
    told = threading.Event()
    peer = Peer(tmp_path / "admin.sock", lambda connection: told.wait(30))
    admin = Admin([f"unix:{tmp_path}/admin.sock"])
    with pytest.raises(Failure, match="the daemon went silent" if stream else "no answer within"):
        next(admin.events("/events")) if stream else admin.get("/status")
    told.set()
    peer.join()


def test_the_token_goes_along_and_no_proxy_is_asked(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-of-16-characters\n")
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                requests.append(connection.recv(65536))
                connection.sendall(HEAD + b"2\r\n\r\n{}")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        env = {"http_proxy": NOBODY, "all_proxy": NOBODY, "VIGILD_TOKEN_FILE": str(tmp_path / "token")}
        assert run("--json", "--admin", f"http://127.0.0.1:{port}", "flush", env=env) == (0, "{}\n", "")
        thread.join(30)
    [request] = requests
    assert request.startswith(b"POST /flush HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer a-token-of-16-characters\r\n" in request


@pytest.mark.parametrize("content", [b"two\nlines", b"\xff", "tök".encode()])
def test_an_invalid_token_is_an_error_of_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    status, out, err = run("--admin", NOBODY, "--token-file", str(tmp_path / "token"), "status")
    assert (status, out, err.count("\n")) == (1, "", 1) and str(tmp_path / "token") in err


async def test_status_is_a_summary_or_the_daemon_s_own_json(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (control, env):
        status, out, err = await ask("status", env=env)
        assert (status, err) == (0, "")
        assert "serving, training, 42 %, epoch 3 of 8, 38 s left" in out and "1,234 lines at risk" in out
        assert ", 1 lines cut, 2 lines with times in the future\n" in out
        assert "17 in 9 incidents, 2 open, 3 over budget, budget 20 a day" in out
        assert "! the last model trained was refused, the one before stays: the anchor set got worse" in out
        control.status_extra = {"status": "degraded", "reason": "disk \x1b[31m full"}
        assert "! disk \\x1b[31m full" in (await ask("status", env=env))[1]
        control.status_extra = {
            "status": "degraded",
            "reasons": [{"code": "training", "text": "training failed: \x1b no"}, {"code": "alerts", "text": "full"}],
            "reason": "training failed: \x1b no; full",
            "training": {"error": "\x1b no"},
        }
        out = (await ask("status", env=env))[1]
        assert "! training failed: \\x1b no\n! full\n" in out and out.count("failed") == 1
        for arguments in (("--json", "status"), ("status", "--json")):
            assert json.loads((await ask(*arguments, env=env))[1]) == control.status()


async def test_while_the_state_is_read_status_says_how_far_that_is_and_nothing_else(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (control, env):
        control.status_extra = {
            "status": "starting",
            "reason": "reading the state: 40 %, 12,000 lines to replay",
            "phase": "warmup",
            "logs_processed": 51234,
        }
        status, out, _ = await ask("status", env=env)
        assert status == 0 and "starting, reading the state: 40 %, 12,000 lines to replay\n" in out
        assert "  lines      51,234\n" in out
        assert "50,000" not in out and "warm-up" not in out and "learning" not in out


@pytest.mark.parametrize(
    ("listening", "address"),
    [
        (["/run/log.sock", "/run/admin.sock", "127.0.0.1:8765"], "http://127.0.0.1:8765/"),
        (["/run/admin.sock", "192.0.2.7:1", "0.0.0.0:2", "[::1]:3"], "http://[::1]:3/"),
        (["/run/admin.sock", "0.0.0.0:2"], "http://127.0.0.1:2/"),
        (["/run/admin.sock", "[::]:2"], "http://[::1]:2/"),
    ],
)
async def test_page_is_the_address_with_the_token_in_its_fragment(
    tmp_path: Path, listening: list[str], address: str
) -> None:
    (tmp_path / "page.token").write_text("the-token\n")
    places = {"listening": listening, "token": str(tmp_path / "page.token"), "token_of": "vigild"}
    async with daemon(tmp_path) as (control, env):
        control.status_extra = {"places": places}
        assert await ask("page", env=env) == (0, f"{address}#token=the-token\n", "")
        status, out, _ = await ask("--json", "page", env=env)
        assert (status, json.loads(out)) == (0, {"address": f"{address}#token=the-token"})

        (tmp_path / "page.token").unlink()
        status, out, err = await ask("page", env=env)
        assert (status, out) == (1, "") and "cannot read the token file" in err and "no such file" in err

        places["token_of"] = "settings"
        status, out, err = await ask("page", env=env)
        assert (status, out) == (0, f"{address}\n"), "a secret of the operator's is not printed"
        assert err.count("\n") == 1 and f"a password: the token in {tmp_path}/page.token" in err

        places["listening"] = ["/run/log.sock", "/run/admin.sock"]
        status, out, err = await ask("page", env=env)
        assert (status, out) == (1, "") and "has no page: it listens on no port" in err


async def test_checkpoint_flush_and_snapshots(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (control, env):
        assert "saved through line 51,234" in (await ask("checkpoint", env=env))[1]
        assert "sessions closed 12" in (await ask("flush", env=env))[1]
        assert "snapshot-812.msgpack" in (await ask("snapshots", "list", env=env))[1]
        assert (await ask("snapshots", "verify", env=env))[0] == 0
        name = "snapshot-00000000000000000812.msgpack"
        assert "kept for ever" in (await ask("snapshots", "pin", name, env=env))[1]
        assert "as long as the others" in (await ask("snapshots", "unpin", f"/s/{name}", env=env))[1]
        status, out, _ = await ask("snapshots", "restore", name, env=env)
        assert status == 0 and f"restored {name}: its knowledge is in force again from line 51,234 on" in out
        assert ("restore", name) in control.asked
        status, _, err = await ask("snapshots", "restore", "../lock", env=env)
        assert (status, err) == (1, "vigilctl: 'lock' is not the name of a snapshot\n")
        control.broken_snapshot = "checksum mismatch"
        status, out, err = await ask("snapshots", "verify", env=env)
        assert (status, err) == (
            1,
            "vigilctl: damaged: snapshot-700.msgpack\n",
        ) and "checksum mismatch" in out


async def test_detect_prints_one_line_in_full_and_many_as_rows(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (control, env):
        out = (await ask("detect", "a UNION b", env=env))[1]
        assert out.startswith("attack ") and "sql_injection, confidence 0.95" in out and "5.11, threshold 3.40" in out
        assert "0.41, threshold none" in out
        await ask("detect", "--session", "s1", "x", env=env)
        lines = [b"a", b"\xff UNION \x1b[2J", b"", b"x" * BATCH_BYTES, b"last"]
        status, out, _ = await ask("detect", stdin=b"\n".join(lines), env=env)
        rows = out.splitlines()
        assert status == 0 and len(rows) == 5
        assert rows[1].startswith("attack ") and rows[1].endswith("\\xff UNION \\x1b[2J")
    assert control.asked[1] == ("detect", [b"x"], "s1")
    assert [line for _, batch, _ in control.asked[2:] for line in batch] == lines
    assert len(control.asked) > 3  # in more than one request


async def test_a_refusal_prints_the_message_of_the_daemon(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (_, env):
        status, out, err = await ask("detect", "a\nb", env=env)
        assert (status, out) == (1, "")
        assert err == "vigilctl: a log line holds a newline; send the lines one by one\n"


async def test_tail_follows_until_the_daemon_stops(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (control, env):
        async with trio.open_nursery() as nursery:
            follow = partial(trio.run_process, capture_stdout=True, capture_stderr=True, env={**os.environ, **env})
            results: list[subprocess.CompletedProcess[bytes]] = []

            async def tail() -> None:
                results.append(await follow([*VIGILCTL, "tail", "--all"]))

            nursery.start_soon(tail)
            with trio.fail_after(30):
                await control.subscribed.wait()
                control.publish(record(7, text="\x1b]0;owned\x07 \u2028data: \x85"))
                control.publish({"left_out": 12})
                control.stop()
    [done] = results
    out = done.stdout.decode()
    assert done.returncode == 0 and control.asked == [("events", True)]
    assert (
        "rule sqli-union on GET /item 200" in out
        and "\\x1b]0;owned\\x07 \\u2028data: \\x85" in out
        and "(12 more not shown)" in out
    )


async def tailed(tmp_path: Path, *arguments: str, records: Sequence[dict[str, Any]]) -> list[str]:
    """The lines that `vigilctl tail` prints of `records`."""
    async with daemon(tmp_path) as (control, env), trio.open_nursery() as nursery:
        results: list[tuple[int, str, str]] = []

        async def tail() -> None:
            results.append(await ask("tail", *arguments, env=env))

        nursery.start_soon(tail)
        with trio.fail_after(30):
            await control.subscribed.wait()
        for one in records:
            control.publish(one)
        control.stop()
    return results[0][1].splitlines()


async def test_tail_shows_incidents_as_they_grow_and_with_every_each_alert(tmp_path: Path) -> None:
    growing = [record(n, incident="1", incident_count=n, text=f"alert {n}.") for n in range(1, 121)]
    waiting = record(200, digest=True, incident="200", text="waits.")
    sampled = record(201, flagged=False, verdict="normal", text="sampled.")
    old = {name: value for name, value in record(202, text="old.").items() if "incident" not in name}
    records = [*growing, waiting, sampled, old]
    shown = await tailed(tmp_path, records=records)
    assert [row.rpartition("  ")[2] for row in shown] == ["alert 1.", "alert 10.", "alert 100.", "sampled.", "old."]
    assert "alert 100 of incident 1" in shown[2] and "of incident" not in shown[0]
    (tmp_path / "admin.sock").unlink()
    assert len(await tailed(tmp_path, "--every", records=records)) == len(records)


def test_the_likeliest_template_is_not_reported_as_unexpected() -> None:
    for p, title in ((0.7, "  came as expected; the next likely"), (0.1, "  expected instead")):
        explain = {"expected": [{"template": "a", "p": 0.2}], "found": {"template": "b", "p": p}}
        assert next(explanation_lines(explain, (), Style(io.StringIO()))) == title


async def test_detect_explains_itself(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (control, env):
        out = (await ask("detect", "--explain", "a UNION b", env=env))[1]
        for said in (
            "  new template: GET /item 500\n", "transformer            9.25    0.0001      6.50  over\n",
            "source rates           1.50      0.40      none\n",
            "rule sqli-union in target\n    /item?id=1 >>union select<< password\\x1b[2J\n",
            "  expected instead\n      71.0%  GET /item 200\n", "    < 0.1%  <end of session>\n",
            "    < 0.1%  GET /item 500  came\n", "  the oddest value: 1 union select, odd in it: ' o\n",
            "    share of errors 0.80; usual are 0.01, at most 0.05\n",
            "    seconds a line 0.02; usual are 3.00, at most 60.00\n",
            "  its source\n    distinct things 311.00; usual are 4.00\n",
            ">       51,233  GET /item?id=1+union+select HTTP/1.1 500\n", "        51,230  GET / HTTP/1.1 200\n",
            "         asked  GET /item\n",
        ):  # fmt: skip
            assert said in out, (said, out)
        assert "failures" not in out  # fewer than usual
        out = (await ask("detect", "--explain", "-", stdin=b"one\ntwo\n", env=env))[1]
        assert out.count("expected instead") == 2
        answers = (await ask("--json", "detect", "--explain", "x", env=env))[1]
        assert json.loads(answers)["explain"]["expected"][0]["p"] == 0.71
    assert control.asked[1:3] == [("detect", [b"one"], None, "explain"), ("detect", [b"two"], None, "explain")]


async def test_alerts_are_answered_listed_and_undone(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (control, env):
        said = await ask("feedback", "1207.1", "normal", "--note", "a deploy", env=env)
        assert said == (
            0, "new template: GET /beta 200: normal from now on, and not raised again (after line 51,234)\n", "",
        )  # fmt: skip
        assert "GET /beta 200: an anomaly" in (await ask("feedback", "7", "anomaly", env=env))[1]
        assert "GET /beta 200: unanswered again" in (await ask("feedback", "7", "undo", env=env))[1]
        listed = (await ask("feedback", env=env))[1].splitlines()
        assert listed[1].split()[:3] == ["1207.1", "normal", "50,001"] and listed[1].endswith(
            "sessions like this one  (deploy of \\x1b[31mTuesday)"
        )
        assert json.loads((await ask("--json", "feedback", env=env))[1])["feedback"][0]["note"].endswith("Tuesday")
        assert control.asked == [
            ("feedback", "1207.1", "normal", "a deploy"), ("feedback", "7", "anomaly", ""), ("undo", "7"),
        ]  # fmt: skip
        status, _, err = await ask("feedback", "../x", "normal", env=env)
        assert (status, err) == (1, "vigilctl: '../x' is not an alert's id, such as 1207 or 1207.1\n")
        control.error = ControlError(404, "gone", "its record was rotated away")
        status, _, err = await ask("feedback", "7", "undo", env=env)
        assert (status, err) == (1, "vigilctl: its record was rotated away\n")


async def test_incidents_and_models_are_tables(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (control, env):
        control.grouped = [incident(900, what="new template: \x1b[2J", kind="new"), incident(7, digest=True)]
        rows = (await ask("incidents", "--limit", "7", env=env))[1].splitlines()
        assert len(rows) == 3 and rows[1].split()[:2] == ["900", "37"]
        assert rows[1].endswith("new template: \\x1b[2J  open") and rows[2].endswith("GET /item 200  over budget")
        rows = (await ask("models", "list", env=env))[1].splitlines()
        assert rows[1].endswith("in force: transformer, isolation forest")
        assert rows[2].endswith("refused: the anchor set got worse: .91 to .84") and "file is gone" in rows[2]
        assert rows[3].endswith("was in force")
        assert "generation 1 is in force again, after line 51,234" in (await ask("models", "rollback", "1", env=env))[1]
        assert control.asked == [("incidents", 7), ("rollback", 1)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("piped", [False, True])
async def test_train_from_uploads_every_byte_and_waits_for_the_model(tmp_path: Path, packed: bool, piped: bool) -> None:
    text = b"".join(b"line %d \xff%s\r\n" % (n, b" union" * (n < 40)) for n in range(60_000)) + b"no newline"
    source = tmp_path / "log"
    source.write_bytes(gzip.compress(text, 1) if packed else text)
    async with daemon(tmp_path) as (control, env):
        arguments, stdin = (["-"], source.read_bytes()) if piped else ([str(source)], b"")
        status, out, err = await ask("train-from", *arguments, stdin=stdin, env=env)
        assert (status, err) == (0, "") and control.vouched == text
        assert out.splitlines() == [
            "60,001 lines in 60,000 sessions taken",
            "40 of them matched a rule; the sessions they are in will not be learned from",
            "model generation 4 is in force",
        ]
        assert len({name for _, name, *_ in control.asked}) == 1 and len(control.asked) > 1
        assert max(size for _, _, size, _ in control.asked) <= MAX_CHUNK_BYTES
        assert [last for *_, last in control.asked] == [False] * (len(control.asked) - 1) + [True]


async def test_train_from_says_when_the_file_looks_like_attacks_and_need_not_wait(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (control, env):
        control.trains = False
        said = await ask("train-from", "--no-wait", "-", stdin=b"a union b\nplain\n", env=env)
        assert said[:2] == (
            0,
            "2 lines in 0 sessions taken\n"
            "1 of them matched a rule; the sessions they are in will not be learned from\n",
        )
        assert said[2] == "vigilctl: 50.0% of the lines look like attacks: is this file clean?\n"
        said = await ask("--json", "train-from", "--no-wait", "-", stdin=b"", env=env)
        assert said == (0, '{"lines": 0, "rule_hits": 0, "sessions": 0}\n', "")
        said = await ask("train-from", "-", stdin=b"", env=env)
        assert said == (0, "no lines in it: nothing to learn\n", ""), "there is no training to wait for"


@pytest.mark.parametrize(
    ("training", "status", "said"),
    [
        ({"refused": 2, "refusal": "worse"}, 1, "vigilctl: the new model was refused, the old one stays: worse\n"),
        ({"due": False}, 0, "no training is due yet: the lines wait for the next one\n"),
        ({"generation_in_force": 9}, 0, "model generation 9 is in force\n"),
    ],
)
async def test_train_from_reports_the_result_of_the_training(
    tmp_path: Path, training: dict[str, Any], status: int, said: str
) -> None:
    async with daemon(tmp_path) as (control, env):
        control.trains = False
        control.after_vouching = {"training_in_progress": False, "training": control.status()["training"] | training}
        found, out, err = await ask("train-from", "-", stdin=b"one\n", env=env)
        assert (found, (out + err).endswith(said)) == (status, True), (out, err)


@pytest.mark.parametrize(
    ("others", "its_own", "status", "said"),
    [
        ({"generation_in_force": 8}, {"generation_in_force": 9}, 0, "model generation 9 is in force\n"),
        ({"refused": 2}, {"refused": 2, "generation_in_force": 9}, 0, "model generation 9 is in force\n"),
        ({"generation_in_force": 8}, {"refused": 2, "generation_in_force": 8}, 1, "stays: the anchor set got worse"),
    ],
)
async def test_train_from_reports_the_model_trained_from_the_file_and_not_an_earlier_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    others: dict[str, Any],
    its_own: dict[str, Any],
    status: int,
    said: str,
) -> None:
    async with daemon(tmp_path) as (control, env):
        control.trains = False
        shown = control.status()
        nothing: dict[str, Any] = {}
        early = others | {"due": True}, {"waiting": True}
        answers = iter([(nothing, nothing), early, early, (its_own, nothing)])

        def told() -> dict[str, Any]:
            training, vouched = next(answers)
            return {**shown, "training": shown["training"] | training, "vouched": shown["vouched"] | vouched}

        monkeypatch.setattr(control, "status", told)
        found, out, err = await ask("train-from", "-", stdin=b"one\n", env=env)
        assert found == status and said in out + err, (out, err)


async def test_train_from_ends_what_it_has_begun_when_the_file_is_damaged(tmp_path: Path) -> None:
    damaged = gzip.compress(b"".join(b"line %d\n" % n for n in range(100_000)))[:-8]
    async with daemon(tmp_path) as (control, env):
        status, _, err = await ask("train-from", "-", stdin=damaged, env=env)
        assert status == 1 and "the gzip data is damaged" in err
        assert len({name for _, name, *_ in control.asked}) == 1 and len(control.asked) > 1
        assert control.asked[-1][2:] == (0, True), "or the next file would be refused for a minute"
        asked = len(control.asked)
        assert (await ask("train-from", "-", stdin=damaged[:20], env=env))[0] == 1
        assert len(control.asked) == asked, "nothing was begun"


async def test_train_from_reports_that_it_was_interrupted(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (control, env):
        control.error_after = 1, ControlError(503, "degraded", "nothing can be changed now: disk full")
        status, out, err = await ask("train-from", "-", stdin=b"0123456789abcde\n" * 100_000, env=env)
        assert (status, out) == (1, "")
        assert err.startswith("vigilctl: nothing can be changed now: disk full; ")
        assert err.endswith(f"{control.vouched.count(10):,} lines were taken until then\n")
        assert "cannot read" in (await ask("train-from", str(tmp_path / "absent"), env=env))[2]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("piped", [False, True])
def test_send_delivers_every_byte_and_waits_for_the_end_of_file(tmp_path: Path, packed: bool, piped: bool) -> None:
    text = b"".join(b"line %d \xff\x00\r\n" % n for n in range(30_000)) + b"no newline"
    source = tmp_path / "log"
    source.write_bytes(gzip.compress(text, 1) if packed else text)
    got: list[bytes] = []

    def take_all(connection: socket.socket) -> None:
        while chunk := connection.recv(65536):
            got.append(chunk)

    log = Peer(tmp_path / "log.sock", take_all)
    arguments = ["-"] if piped else [str(source)]
    stdin = source.read_bytes() if piped else b""
    status, out, err = run("send", *arguments, stdin=stdin, env={"RUNTIME_DIRECTORY": str(tmp_path)})
    log.join()
    assert (status, err) == (0, "") and b"".join(got) == text
    assert out.startswith("30,001 lines (") and out.endswith("all durable\n")


def test_send_waits_for_a_daemon_that_is_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        meanwhile = iter([lambda: listener.bind(str(path)), listener.listen])
        monkeypatch.setattr(time, "sleep", lambda seconds: next(meanwhile)())
        with send_command._connect_to_log_socket([path]) as connection:
            assert connection.getpeername() == str(path)
    with pytest.raises(Failure, match="path too long"):  # of no use to wait for
        send_command._connect_to_log_socket([tmp_path / ("a" * 200)])
    monkeypatch.setattr(send_command, "STARTING_SECONDS", 0.0)
    with pytest.raises(Failure, match="connection refused"):
        send_command._connect_to_log_socket([path])


def test_send_is_not_confirmed_when_the_daemon_dies(tmp_path: Path) -> None:
    log = Peer(tmp_path / "log.sock", lambda connection: connection.recv(10))
    source = tmp_path / "log"
    source.write_bytes(b"a line\n" * 200_000)
    status, out, err = run("send", str(source), "--socket", str(tmp_path / "log.sock"))
    log.join()
    assert (status, out) == (1, "") and err.startswith("vigilctl: not confirmed: ") and err.count("\n") == 1


def test_send_is_not_confirmed_when_the_end_is_a_reset(tmp_path: Path) -> None:
    """Everything was sent, but the daemon closed with bytes unread: recv raises a reset instead of returning an end."""
    log = Peer(tmp_path / "log.sock", lambda connection: connection.recv(1))
    status, _, err = run("send", "--socket", str(tmp_path / "log.sock"), stdin=b"a line\nanother\n")
    log.join()
    assert status == 1 and "not confirmed: connection reset by peer" in err


def test_send_says_so_when_the_gzip_data_is_damaged(tmp_path: Path) -> None:
    source = tmp_path / "log.gz"
    source.write_bytes(gzip.compress(b"a line\n" * 1000)[:-9])
    log = Peer(tmp_path / "log.sock", lambda connection: connection.recv(1 << 20))
    status, _, err = run("send", str(source), "--socket", str(tmp_path / "log.sock"))
    log.join()
    assert status == 1 and "the gzip data is damaged" in err
    assert "cannot read" in run("send", str(tmp_path / "absent"))[2]


def test_send_interrupted_says_that_nothing_is_confirmed(tmp_path: Path) -> None:
    connected = threading.Event()

    def stall(connection: socket.socket) -> None:
        connection.recv(1)
        connected.set()
        process.wait(30)

    log = Peer(tmp_path / "log.sock", stall)
    source = tmp_path / "log"
    source.write_bytes(b"a line\n" * 200_000)
    command = [*VIGILCTL, "send", str(source), "--socket", str(tmp_path / "log.sock")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert connected.wait(30)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    log.join()
    assert process.returncode == 1
    assert err.startswith(b"vigilctl: interrupted; not confirmed: ") and err.count(b"\n") == 1


def test_send_shows_a_bar_on_a_terminal_only(tmp_path: Path) -> None:
    def take_all(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    log = Peer(tmp_path / "log.sock", take_all)
    source = tmp_path / "log"
    source.write_bytes(b"a line\n" * 1000)
    ours, theirs = pty.openpty()
    command = [*VIGILCTL, "send", str(source), "--socket", str(tmp_path / "log.sock")]
    done = subprocess.run(
        command, stderr=theirs, stdout=subprocess.PIPE, timeout=60, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    log.join()
    shown = os.read(ours, 65536)
    os.close(ours)
    assert done.returncode == 0 and b"1,000 lines" in shown and b"all durable" in done.stdout


def test_printable_leaves_text_alone_and_disarms_the_rest() -> None:
    assert printable("é ünï 日本 ~") == "é ünï 日本 ~"
    assert printable("\x1b[2J\r\n\udcff\u202e\ud800") == "\\x1b[2J\\r\\n\\xff\\u202e\\ud800"


async def test_output_into_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    async with daemon(tmp_path) as (_, env):
        # The reader ends at once, before the writer, which takes a while to start, writes anything.
        command = f"( sleep 0.2; {' '.join(VIGILCTL)} snapshots list; echo status $? >&2 ) | true"
        done = await trio.run_process(["bash", "-c", command], capture_stderr=True, env={**os.environ, **env})
    assert done.stderr == b"status 1\n"
