"""What an operator does, with the real daemon and the real vigilctl."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.running import Vigild, sample_lines, vigild
from tests.faults.altered import BRIEF_TRAINING, alter

ATTACK = "GET /?id=1%27%20UNION%20SELECT%20password%20FROM%20users-- HTTP/1.1"
ATTACK_LINE = f'192.0.2.7 - - [17/May/2015:10:05:03 +0000] "{ATTACK}" 200 1 "-" "-"'


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vigild]:
    with vigild(tmp_path_factory.mktemp("operator")) as daemon:
        yield daemon.start()


def test_repeated_signals_during_a_stop_do_not_interrupt_the_stop(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        process = daemon.start().process
        assert process is not None
        process.terminate()
        while process.poll() is None:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                process.send_signal(number)
            time.sleep(0.001)
        assert process.returncode == 0 and "Traceback" not in daemon.log, daemon.log
        assert daemon.log.count("stopped at line") == 1


def vigilctl(daemon: Vigild, *arguments: str, sent: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "daemon.vigilctl", *arguments]
    env = {**os.environ, "RUNTIME_DIRECTORY": str(daemon.runtime)}
    return subprocess.run(command, env=env, input=sent, capture_output=True, timeout=60.0, check=False)


def test_a_file_is_sent_and_counted_and_its_attack_is_found(daemon: Vigild, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.write_bytes(b"\n".join([*sample_lines()[:300], ATTACK_LINE.encode()]))
    before = daemon.status()["logs_processed"]
    sent = vigilctl(daemon, "send", str(log))
    assert (sent.returncode, sent.stderr.count(b"Traceback")) == (0, 0), sent.stderr
    daemon.applied(before + 301)
    status = json.loads(vigilctl(daemon, "--json", "status").stdout)
    assert status["logs_processed"] == before + 301
    daemon.wait(lambda: bool(daemon.api.get("/anomalies").json()))
    (found,) = [a for a in daemon.api.get("/anomalies").json()["anomalies"] if a["line"] == before + 301]
    assert found["verdict"] == "attack" and "sql_injection" in " ".join(found["attack_types"])


def test_judging_a_line_changes_nothing(daemon: Vigild) -> None:
    before = daemon.status()["logs_processed"]
    asked = vigilctl(daemon, "--json", "detect", ATTACK_LINE)
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert answer["is_anomaly"] is True and answer["anomaly_score"] >= 0.5
    assert answer["rule_based"]["is_attack"] and answer["details"]["ensemble"]["votes"]["rule_based"] == 1
    harmless = json.loads(vigilctl(daemon, "--json", "detect", "-", sent=sample_lines()[0]).stdout)
    assert harmless["is_anomaly"] is False
    assert daemon.status()["logs_processed"] == before


@pytest.mark.parametrize("request_line", ["GET /?id=1 UNION SELECT 1", "GET /../../etc/passwd", ATTACK])
def test_a_bare_request_line_is_judged_as_a_request(daemon: Vigild, request_line: str) -> None:
    answer = daemon.post("/detect", {"log_line": request_line})
    assert answer["verdict"] == "attack", answer


def test_a_request_recorded_in_json_meets_the_rules_for_requests(daemon: Vigild) -> None:
    line = {
        "remote_addr": "192.0.2.7",
        "method": "GET",
        "uri": "/?id=1%27%20UNION%20SELECT%20password%20FROM%20users--",
        "status": 200,
    }
    assert daemon.post("/detect", {"log_line": json.dumps(line)})["verdict"] == "attack"


def test_many_large_questions_do_not_keep_lines_from_being_scored(daemon: Vigild) -> None:
    lines = [line.decode() for line in sample_lines()[:4000]]
    asking = [threading.Thread(target=daemon.ask, args=(lines,)) for _ in range(6)]
    for thread in asking:
        thread.start()
    before = daemon.status()["logs_processed"]
    daemon.send_lines(sample_lines()[:100])
    daemon.wait(lambda: daemon.status()["logs_processed"] == before + 100)
    assert any(thread.is_alive() for thread in asking), "the questions were over before the lines: ask more"
    for thread in asking:
        thread.join()


def test_a_snapshot_is_forced_listed_and_verified(daemon: Vigild) -> None:
    saved = json.loads(vigilctl(daemon, "--json", "checkpoint").stdout)
    assert saved["line"] == daemon.status()["logs_processed"] and Path(saved["path"]).exists()
    listed = vigilctl(daemon, "snapshots", "list")
    assert listed.returncode == 0 and Path(saved["path"]).name.encode() in listed.stdout
    assert vigilctl(daemon, "snapshots", "verify").returncode == 0


def test_a_sender_whose_daemon_dies_learns_how_many_lines_are_durable_at_least(tmp_path: Path) -> None:
    block = b"".join(line + b"\n" for line in sample_lines()[:2000])
    with vigild(tmp_path) as daemon:
        daemon.start()
        command = [sys.executable, "-m", "daemon.vigilctl", "send", "--socket", str(daemon.runtime / "log.sock"), "-"]
        sender = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert sender.stdin is not None
        for blocks in range(1, 6):
            sender.stdin.write(block)
            sender.stdin.flush()
            daemon.applied(2000 * blocks - 200)  # a last part may wait in the pipe
        daemon.kill()
        _, said = sender.communicate(block)
        told = re.search(rb"not confirmed: .*, at least ([0-9,]+) lines of it durable", said)
        assert sender.returncode == 1 and told, said
        safe = int(told[1].replace(b",", b""))
        daemon.start()
        assert 4000 < safe <= daemon.status()["logs_processed"]


def test_rules_are_reloaded_and_bad_ones_leave_the_old_in_force(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.mkdir()
    mine = rules / "mine.toml"
    line = b'192.0.2.7 - - [17/May/2015:10:05:03 +0000] "GET /teapot HTTP/1.1" 418 1 "-" "-"'
    with vigild(tmp_path, more=f'[rules]\npaths = ["{rules}"]\n') as daemon:
        daemon.start()

        def attack() -> bool:
            found: bool = daemon.post("/detect", {"log_line": line.decode()})["rule_based"]["is_attack"]
            return found

        assert not attack()
        mine.write_text(
            '[[rule]]\nname = "teapot"\ntype = "teapot"\nseverity = "low"\nconfidence = 0.6\nfield = "target"\n'
            'pattern = "^/teapot"\ntests.match = ["/teapot"]\ntests.silent = ["/coffee"]\n'
        )
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait(attack)
        mine.write_text(mine.read_text().replace('["/teapot"]', '["/coffee"]'))
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait(lambda: "mine.toml" in daemon.log and "not reloaded" in daemon.log)
        assert attack()


def test_a_reload_while_it_starts_waits_for_the_start(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        daemon.launch()
        daemon.wait(lambda: "listening on" in daemon.log)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait(lambda: daemon.health().get("status") == "starting")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait(lambda: " reloaded" in daemon.log)
        assert "Traceback" not in daemon.log


@pytest.mark.parametrize("text", ['[rules]\npaths = ["\\u0000"]\n', f"x = {'9' * 5000}\n", f"a = {'[' * 5000}"])
def test_settings_that_do_not_parse_are_an_error_of_one_line(tmp_path: Path, text: str) -> None:
    config = tmp_path / "vigild.toml"
    config.write_text(text)
    command = [sys.executable, "-m", "daemon.main", "--config", str(config), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60.0, check=False)
    assert (done.returncode, done.stderr.strip().count("\n")) == (1, 0), done.stderr[-2000:]


def test_wrong_settings_are_one_line_with_file_and_line(tmp_path: Path) -> None:
    config = tmp_path / "vigild.toml"
    config.write_text("[learning]\nwarmup_line = 5\n")
    for more in ([], ["--check"]):
        command = [
            sys.executable,
            "-m",
            "daemon.main",
            "--config",
            str(config),
            "--state-dir",
            str(tmp_path / "s"),
            *more,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60.0, check=False)
        assert done.returncode == 1
        assert done.stderr.strip().count("\n") == 0
        assert f"{config}:2" in done.stderr and "warmup_lines" in done.stderr


def test_without_a_daemon_the_error_is_one_line(tmp_path: Path) -> None:
    env = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path)}
    command = [sys.executable, "-m", "daemon.vigilctl", "--admin", f"unix:{tmp_path}/admin.sock", "status"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60.0, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().count("\n") == 0 and str(tmp_path) in done.stderr


def test_a_vouched_file_full_of_attacks_is_reported_before_anything_is_learned_and_nothing_is_learned(
    tmp_path: Path,
) -> None:
    attacks = "".join(ATTACK_LINE.replace("192.0.2.7", f"192.0.2.{n % 250}") + "\n" for n in range(500))
    with vigild(tmp_path) as daemon:
        daemon.start()
        told = vigilctl(daemon, "train-from", "--no-wait", "-", sent=attacks.encode())
        assert told.returncode == 0 and b"100.0% of the lines look like attacks" in told.stderr
        assert b"500 of them matched a rule" in told.stdout
        daemon.wait(lambda: "clean sessions are too few" in (daemon.status()["training"]["error"] or ""), 60.0)
        status = daemon.status()
        assert (status["vouched"]["lines"], status["vouched"]["rule_hits"]) == (500, 500)
        assert status["training"]["generation_in_force"] == 0 and status["alarms"]["flagged"] == 0


def test_a_vouched_file_is_learned_from_within_the_hour_after_a_training_and_the_daemon_answers_meanwhile(
    tmp_path: Path,
) -> None:
    clean = [line for line in sample_lines() if b"?" not in line]
    daemon = Vigild(tmp_path, settings='[learning]\nwarmup_lines = 1500\n[admin]\nbind = ["unix:admin.sock"]\n')
    alter(daemon, BRIEF_TRAINING)
    try:
        daemon.start()
        assert vigilctl(daemon, "send", "-", sent=b"\n".join(clean[:1600])).returncode == 0
        daemon.wait(lambda: bool(daemon.status()["transformer_ready"]), 120.0)
        told = vigilctl(daemon, "train-from", "--no-wait", "-", sent=b"\n".join(clean[1600:2200]))
        assert told.returncode == 0, told.stderr
        daemon.wait(lambda: not daemon.status()["vouched"]["waiting"], 180.0)
        trained = [model["generation"] for model in daemon.api.get("/models").json()["models"]]
        assert trained == [2, 1], "promoted or refused, it took place"
    finally:
        daemon.close()


def test_train_from_takes_no_archive_and_reads_utf_16(daemon: Vigild, tmp_path: Path) -> None:
    def train_from(source: Path) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "daemon.vigilctl", "--json", "train-from", "--no-wait", str(source)]
        env = {**os.environ, "RUNTIME_DIRECTORY": str(daemon.runtime)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120.0, check=False)
        return done.returncode, done.stdout, done.stderr

    lines = [line.decode() for line in sample_lines()[:50]]
    before = daemon.status()["vouched"]["lines"]
    archive, packed, windows = tmp_path / "model.pt", tmp_path / "log.tar.gz", tmp_path / "log.txt"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("data.pkl", "\n".join(lines))
    with tarfile.open(packed, "w:gz") as tarred:
        tarred.add(archive, "model.pt")
    windows.write_text("\n".join(lines) + "\n", "utf-16")
    for source, what in ((archive, "a zip archive"), (packed, "a tar archive")):
        status, out, err = train_from(source)
        assert status and not out and err.count("\n") == 1 and what in err, err
    answer = daemon.api.post("/train-from?source=x&last=1", content=archive.read_bytes())
    assert answer.status_code == 415 and answer.json()["error"]["code"] == "not_text"
    assert daemon.status()["vouched"]["lines"] == before
    behind = tmp_path / "behind.log"
    behind.write_bytes(("\n".join(lines) + "\n").encode() * 40 + os.urandom(25 * 1024))
    text_pickle = tmp_path / "lines"
    text_pickle.write_bytes(pickle.dumps(lines, protocol=0))
    for source, what in ((behind, "control characters"), (text_pickle, "a pickle")):
        status, out, err = train_from(source)
        assert status and not out and err.count("\n") == 1 and what in err, err
        answer = daemon.api.post("/train-from?source=x&last=1", content=source.read_bytes())
        assert answer.status_code == 415 and answer.json()["error"]["code"] == "not_text"
    assert daemon.status()["vouched"]["lines"] == before, "also of the text before binary data"
    status, out, err = train_from(windows)
    assert (status, err, json.loads(out)["lines"]) == (0, "", 50)
    assert "Traceback" not in daemon.log


def test_compressed_files_are_sent_line_by_line_and_archives_of_models_are_not_sent(
    daemon: Vigild, tmp_path: Path
) -> None:
    lines = b"\n".join(sample_lines()[:200]) + b"\n"
    before = daemon.status()["logs_processed"]
    sent = 0
    for packed in (gzip.compress(lines) * 2, lzma.compress(lines), bz2.compress(lines)):
        source = tmp_path / "rotated"
        source.write_bytes(packed)
        for done in (vigilctl(daemon, "send", str(source)), vigilctl(daemon, "send", "-", sent=packed)):
            assert done.returncode == 0, done.stderr
            sent += 400 if packed.startswith(b"\x1f\x8b") else 200
    with zipfile.ZipFile(tmp_path / "logs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("access.log", lines)
    assert vigilctl(daemon, "send", str(tmp_path / "logs.zip")).returncode == 0
    sent += 200
    daemon.applied(before + sent)
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps([1]))
    for content, what in (
        ((tmp_path / "model.pt").read_bytes(), b"a zip archive of a model"),
        (pickle.dumps(lines.decode().split("\n"), protocol=0), b"a pickle"),
    ):
        source.write_bytes(content)
        refused = vigilctl(daemon, "send", str(source))
        assert refused.returncode == 1 and what in refused.stderr and refused.stderr.count(b"\n") == 1
    assert daemon.status()["logs_processed"] == before + sent
