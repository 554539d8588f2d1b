"""What the daemon knows after a clean stop, after SIGKILL, and when its files are damaged."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.running import Vigild, sample_lines, vigild
from tests.faults.altered import BRIEF_TRAINING, alter

pytestmark = pytest.mark.timeout(900)  # some wait for a trainer, which yields to everyone

WARMUP = 3000


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state directory with an ensemble, two snapshots, and lines after them in the journal."""
    home = tmp_path_factory.mktemp("trained")
    lines = sample_lines()
    with vigild(home, warmup=WARMUP, every_lines=100_000) as daemon:
        alter(daemon, BRIEF_TRAINING)
        daemon.start()
        daemon.send_lines(lines[:WARMUP])
        daemon.wait_for_model()
        daemon.wait(lambda: daemon.status()["checkpoint"]["last_line"] == WARMUP)
        daemon.send_lines(lines[WARMUP : WARMUP + 500])
        daemon.post("/checkpoint")
        daemon.send_lines(lines[WARMUP + 500 : WARMUP + 600])
        daemon.applied(WARMUP + 600)
        daemon.kill()
    yield home


@pytest.fixture
def again(trained: Path, tmp_path: Path) -> Iterator[Vigild]:
    """A daemon, not started, on a copy of the trained state."""
    shutil.copytree(trained / "state", tmp_path / "state")
    with vigild(tmp_path, warmup=WARMUP, every_lines=100_000) as daemon:
        yield daemon


def asked(daemon: Vigild) -> list[dict[str, object]]:
    lines = [line.decode() for line in sample_lines()[5000:5100]]
    answers: list[dict[str, object]] = daemon.post("/detect/batch", {"log_lines": lines})["results"]
    for answer in answers:
        del answer["timestamp"]
    return answers


def test_a_stop_and_a_start_lose_nothing(again: Vigild) -> None:
    again.start()
    before = asked(again)
    assert any(answer["is_anomaly"] for answer in before) or all("p" in answer for answer in before)
    digest = again.post("/checkpoint")["digest"]
    assert again.stop() == 0
    again.start()
    status = again.status()
    assert (status["state_digest"], status["digest_line"]) == (digest, WARMUP + 600)
    assert status["recovery"]["tier"] == "full" and status["recovery"]["replayed_lines"] == 0
    assert asked(again) == before


def test_a_forced_checkpoint_followed_by_a_kill_loses_nothing(again: Vigild) -> None:
    again.start()
    again.send_lines(sample_lines()[4000:4300])
    before = asked(again)
    digest = again.post("/checkpoint")["digest"]
    again.kill()
    again.start()
    assert again.status()["state_digest"] == digest
    assert asked(again) == before


def test_lines_after_the_last_snapshot_are_replayed_to_the_same_state(again: Vigild) -> None:
    again.start()
    again.send_lines(sample_lines()[4000:4500])
    again.applied(WARMUP + 1100)
    again.kill()
    again.start()
    status = again.status()
    assert status["recovery"]["tier"] == "full"
    assert status["recovery"]["replayed_lines"] == 600
    replayed = status["state_digest"]
    # The process that never died gives the same answers: a second recovery starts from other caches.
    again.kill()
    again.start()
    assert again.status()["state_digest"] == replayed
    assert again.status()["logs_processed"] == WARMUP + 1100


def snapshots(daemon: Vigild) -> list[Path]:
    return sorted(daemon.state.glob("snapshot-*.msgpack"))


def models(daemon: Vigild) -> list[Path]:
    return sorted(daemon.state.glob("model-*.pt"))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def cut_in_half(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip_a_bit, cut_in_half])
def test_a_damaged_newest_snapshot_costs_time_and_no_data(again: Vigild, damage: Callable[[Path], None]) -> None:
    newest = snapshots(again)[-1]
    damage(newest)
    again.start()
    recovery = again.status()["recovery"]
    assert recovery["tier"] == "full"
    assert newest.name in recovery["set_aside"]
    assert again.status()["logs_processed"] == WARMUP + 600
    assert recovery["lost_lines"] == 0
    assert again.status()["phase"] == "ensemble"
    assert list(again.state.glob("*.bad"))


def test_a_damaged_model_leaves_the_rest_and_is_trained_again(again: Vigild) -> None:
    for path in models(again):
        flip_a_bit(path)
    alter(again, BRIEF_TRAINING)
    again.start()
    status = again.status()
    assert status["recovery"]["tier"] == "partial"
    assert status["logs_processed"] == WARMUP + 600
    assert models(again) == [] or status["recovery"]["set_aside"]
    again.wait_for_model()


def test_a_model_without_a_state_is_used_as_far_as_it_goes(again: Vigild) -> None:
    for path in (*snapshots(again), *again.state.glob("journal-*.log")):
        flip_a_bit(path) if path.suffix == ".msgpack" else path.unlink()
    again.start()
    status = again.status()
    assert status["recovery"]["tier"] == "partial"
    assert status["transformer_ready"]
    assert any("state is lost" in note for note in status["recovery"]["notes"])
    answer = again.post("/detect", {"log_line": sample_lines()[1].decode()})  # a style sheet everyone asks for
    assert answer["details"]["log_data"]["known_template"]


def test_an_empty_directory_is_a_fresh_start_and_reported_as_one(again: Vigild) -> None:
    for path in (*snapshots(again), *again.state.glob("journal-*.log"), *models(again)):
        path.write_bytes(b"")
    again.start()
    status = again.status()
    assert status["recovery"]["tier"] == "fresh"
    assert status["recovery"]["set_aside"]
    assert not status["transformer_ready"]


def test_the_daemon_stops_quickly_while_it_trains(tmp_path: Path) -> None:
    with vigild(tmp_path, warmup=2000) as daemon:
        daemon.start()
        daemon.send_lines(sample_lines()[:2000])
        daemon.wait(lambda: daemon.status()["training_in_progress"])
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 4.0  # 2 s promised; the machine may be busy
        daemon.start()
        assert daemon.status()["logs_processed"] == 2000
        daemon.wait(lambda: daemon.status()["training_in_progress"])


def test_a_killed_trainer_is_reported_and_started_again(tmp_path: Path) -> None:
    with vigild(tmp_path, warmup=1500) as daemon:
        alter(daemon, BRIEF_TRAINING)
        daemon.start()
        daemon.send_lines(sample_lines()[:1500])
        daemon.wait(lambda: daemon.status()["training_in_progress"])
        trainer = child_of(daemon)
        os.kill(trainer, signal.SIGKILL)
        daemon.wait(lambda: daemon.status()["training"]["error"] is not None)
        assert "signal 9" in daemon.status()["training"]["error"]
        daemon.send_lines(sample_lines()[1500:1600])
        daemon.wait_for_model()
        assert daemon.status()["logs_processed"] == 1600


def child_of(daemon: Vigild) -> int:
    assert daemon.process is not None
    task = Path(f"/proc/{daemon.process.pid}/task")
    while True:
        for children in task.glob("*/children"):
            if found := children.read_text().split():
                return int(found[0])
        time.sleep(0.01)


def test_a_second_daemon_on_the_same_directory_is_refused_with_the_others_pid(tmp_path: Path) -> None:
    with vigild(tmp_path) as first:
        first.start()
        assert first.process is not None
        with vigild(tmp_path) as second:
            second.launch()
            assert second.process is not None
            assert second.process.wait(30.0) == 1
        assert f"in use by process {first.process.pid}" in first.log
        assert "Traceback" not in first.log


def test_what_was_flagged_is_written_once_over_a_kill(tmp_path: Path) -> None:
    with vigild(tmp_path, verdicts="all") as daemon:
        daemon.start()
        for count in range(1, 4):
            daemon.send_lines([*sample_lines()[:50], ATTACK])
            daemon.applied(51 * count)
            daemon.kill()
            daemon.start()
        daemon.stop()
        ids = [json.loads(line)["id"] for line in (daemon.state / "alerts.jsonl").read_bytes().splitlines()]
        assert ids == ["51", "102", "153"]
        everything = [json.loads(line) for line in (daemon.state / "verdicts.jsonl").read_bytes().splitlines()]
        assert [r["line"] for r in everything if not r["closed"]] == list(range(1, 154))


def written(daemon: Vigild) -> int:
    """How many alerts this process has written, the mark beside the file included."""
    count: int = daemon.status()["alarms"]["alerts.jsonl"]["written"]
    return count


def test_rotated_alerts_are_not_written_again_after_a_kill(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        alerts = daemon.state / "alerts.jsonl"
        daemon.start()
        for number in range(1, 4):
            daemon.send_lines([ATTACK])
            daemon.applied(number)
            daemon.wait(lambda: written(daemon) == 1)
            # As logrotate does it: moved away and created anew, compressed at once; then a kill, all to be replayed.
            os.replace(alerts, tmp_path / f"rotated.{number}")
            alerts.touch(mode=0o600)
            daemon.kill()
            daemon.start()
            assert daemon.status()["recovery"]["replayed_lines"] == number
        daemon.send_lines([ATTACK])
        daemon.stop()
        files = [*(tmp_path / f"rotated.{number}" for number in range(1, 4)), alerts]
        ids = [[json.loads(line)["id"] for line in path.read_bytes().splitlines()] for path in files]
        assert ids == [["1"], ["2"], ["3"], ["4"]]


def test_without_the_mark_rotated_alerts_would_be_written_again(tmp_path: Path) -> None:
    """The control of the test above."""
    with vigild(tmp_path) as daemon:
        alerts = daemon.state / "alerts.jsonl"
        daemon.start()
        daemon.send_lines([ATTACK])
        daemon.applied(1)
        daemon.wait(lambda: written(daemon) == 1)
        daemon.kill()
        alerts.write_bytes(b"")
        (daemon.state / "alerts.mark").unlink()
        daemon.start()
        daemon.wait(lambda: alerts.stat().st_size > 0)


ATTACK = b'192.0.2.1 - - [17/May/2015:10:05:03 +0000] "GET /?q=<script>alert(1)</script> HTTP/1.1" 200 1 "-" "-"'


@pytest.mark.parametrize("tail", [b'{"id": "\xff"}\n', b'{"x":1}\n', b'{"id":5}\n', b"{]}\n", b'{"id":"abc"}\n'])
def test_damaged_records_do_not_prevent_a_start_and_alerts_go_on(tmp_path: Path, tail: bytes) -> None:
    with vigild(tmp_path) as daemon:
        daemon.start()
        daemon.send_lines([ATTACK] * 2)
        daemon.applied(2)
        assert daemon.stop() == 0
        alerts = daemon.state / "alerts.jsonl"
        alerts.write_bytes(alerts.read_bytes().replace(b'"id":"1"', b'"id";"1"') + tail)
        daemon.start()
        daemon.send_lines([ATTACK])
        daemon.wait(lambda: b'"id":"3"' in alerts.read_bytes())
        assert [record["id"] for record in daemon.api.get("/anomalies").json()["anomalies"]] == ["2", "3"]


def test_an_id_that_was_altered_in_the_file_hides_no_later_alert(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        daemon.start()
        daemon.send_lines([ATTACK] * 2)
        daemon.applied(2)
        assert daemon.stop() == 0
        alerts = daemon.state / "alerts.jsonl"
        alerts.write_bytes(alerts.read_bytes().replace(b'"id":"2"', b'"id":"9"'))
        daemon.start()
        daemon.send_lines([ATTACK])
        daemon.wait(lambda: b'"id":"3"' in alerts.read_bytes())


def test_a_missing_journal_is_reported_and_numbers_do_not_go_back(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        daemon.start()
        daemon.send_lines([ATTACK] * 3)
        daemon.post("/checkpoint")
        daemon.send_lines([ATTACK] * 3)
        daemon.wait(lambda: daemon.status()["alarms"]["alerts.jsonl"]["written"] == 6)
        daemon.kill()
        for path in daemon.state.glob("journal-*.log"):
            path.unlink()
        daemon.start()
        status = daemon.status()
        assert (status["recovery"]["tier"], status["recovery"]["lost_lines"]) == ("partial", 3)
        assert any("no journal is left" in note for note in status["recovery"]["notes"])
        assert status["logs_processed"] == 6
        daemon.send_lines([ATTACK])
        daemon.wait(lambda: daemon.status()["logs_processed"] == 7)
        assert daemon.status()["lost_lines"] == 3
        daemon.wait(lambda: daemon.status()["alarms"]["alerts.jsonl"]["written"] == 1)
        assert b'"id":"7"' in (daemon.state / "alerts.jsonl").read_bytes()


def test_a_model_is_used_when_the_snapshots_and_some_of_the_journal_are_gone(again: Vigild) -> None:
    for path in (*snapshots(again), min(again.state.glob("journal-*.log"))):
        path.unlink()
    again.start()
    status = again.status()
    assert status["recovery"]["tier"] == "partial"
    assert status["recovery"]["lost_lines"] > 0
    assert status["transformer_ready"]
    assert status["logs_processed"] == WARMUP + 600


def test_a_stop_under_load_is_clean_and_saves(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        daemon.start()
        daemon.send_lines(sample_lines() * 2)
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log
        daemon.start()
        recovery = daemon.status()["recovery"]
        assert (recovery["tier"], recovery["snapshot_line"], recovery["replayed_lines"]) == ("full", 20_000, 0)
