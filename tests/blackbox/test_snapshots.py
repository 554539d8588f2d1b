"""Snapshots in the real daemon: kept, verified, pinned, restored."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.running import QUICK, Vigild, sample_lines, vigild
from tests.faults.altered import BRIEF_TRAINING, alter

pytestmark = pytest.mark.timeout(900)  # some wait for a trainer, which yields to everyone

ATTACK = b'192.0.2.1 - - [17/May/2015:10:05:03 +0000] "GET /?q=<script>alert(1)</script> HTTP/1.1" 200 1 "-" "-"'


def ctl(daemon: Vigild, *arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "daemon.vigilctl", "--admin", f"unix:{daemon.runtime}/admin.sock", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    return done.returncode, done.stdout, done.stderr


def asked(daemon: Vigild) -> list[dict[str, Any]]:
    # Of other clients: what is known about a client fades with log time, which does not go back.
    lines = [f"203.0.113.{n} {line.decode().partition(' ')[2]}" for n, line in enumerate(sample_lines()[5000:5100])]
    answers = daemon.post("/detect/batch", {"log_lines": lines})["results"]
    # Not when it was asked, after how many lines, nor what is being done meanwhile.
    return [{k: v for k, v in each.items() if k not in ("timestamp", "details", "phase")} for each in answers]


def alert_ids(daemon: Vigild) -> list[str]:
    return [json.loads(line)["id"] for line in (daemon.state / "alerts.jsonl").read_bytes().splitlines()]


def names(daemon: Vigild) -> list[str]:
    return [each["name"] for each in daemon.api.get("/snapshots").json()["snapshots"]]


def test_going_back_and_forth_while_running_and_over_kills(tmp_path: Path) -> None:
    lines = sample_lines()
    with vigild(tmp_path, warmup=1500, every_lines=100_000) as daemon:
        alter(daemon, BRIEF_TRAINING)
        daemon.start()
        daemon.send_lines([*lines[:1000], ATTACK])
        early = Path(daemon.post("/checkpoint")["path"]).name
        without_model = asked(daemon)
        assert ctl(daemon, "snapshots", "pin", early)[0] == 0
        daemon.send_lines(lines[1000:1600])
        daemon.wait_for_model()
        late = Path(daemon.post("/checkpoint")["path"]).name
        with_model = asked(daemon)
        assert with_model != without_model
        # With so few lines it would train again as soon as it has no model.
        daemon.change_settings(
            QUICK.format(warmup=1_000_000, every_lines=100_000, verdicts="flagged", retrain=1_000_000)
        )
        daemon.send_lines([*lines[1600:1700], ATTACK])
        daemon.applied(1702)

        status, out, err = ctl(daemon, "--json", "snapshots", "restore", early)
        assert (status, err) == (0, "")
        answer = json.loads(out)
        assert (answer["name"], answer["line"]) == (early, 1702)
        assert asked(daemon) == without_model
        now = daemon.status()
        assert now["logs_processed"] == now["checkpoint"]["last_line"] == 1702
        assert now["checkpoint"]["digest"] == answer["snapshot"]["digest"]
        daemon.send_lines([ATTACK])
        daemon.applied(1703)

        assert "in force again from line 1,703 on" in ctl(daemon, "snapshots", "restore", late)[1]
        assert asked(daemon) == with_model
        daemon.send_lines([*lines[1700:1800], ATTACK])
        daemon.applied(1804)
        daemon.wait(lambda: "1804" in alert_ids(daemon))  # a line is applied before its record is written
        alerts = alert_ids(daemon)
        assert alerts == sorted(set(alerts), key=lambda each: [*map(int, each.split("."))])
        assert {"1001", "1702", "1703", "1804"} <= set(alerts)
        daemon.kill()

        daemon.start()
        status_then = daemon.status()
        assert status_then["recovery"]["tier"] == "full"
        assert asked(daemon) == with_model
        daemon.kill()
        # Without the snapshots that were written right after the restores, the restores themselves are replayed.
        rotten = [path for path in daemon.state.glob("snapshot-*.msgpack") if path.name > late]
        assert len(rotten) >= 2
        for path in rotten:
            path.write_bytes(b"rot")
        daemon.start()
        replayed = daemon.status()
        assert replayed["state_digest"] == status_then["state_digest"]
        assert (replayed["recovery"]["tier"], replayed["logs_processed"]) == ("full", 1804)
        assert sorted(replayed["recovery"]["set_aside"]) == sorted(path.name for path in rotten)
        assert asked(daemon) == with_model
        assert alert_ids(daemon) == alerts


def test_what_cannot_be_restored_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    lines = sample_lines()
    with vigild(tmp_path, every_lines=100_000) as daemon:
        daemon.start()
        daemon.send_lines(lines[:200])
        name = Path(daemon.post("/checkpoint")["path"]).name
        daemon.send_lines(lines[200:300])
        daemon.post("/checkpoint")  # everything that was confirmed is applied, the end of the sender too
        before = daemon.status()
        data = bytearray((daemon.state / name).read_bytes())
        data[-1] ^= 1
        (daemon.state / name).write_bytes(data)
        assert daemon.api.post(f"/snapshots/{name}/restore").status_code == 409
        for bad in ("snapshot-00000000000000000099.msgpack", "lock", "..%2flock"):
            for action in ("restore", "pin", "unpin"):
                assert daemon.api.post(f"/snapshots/{bad}/{action}").status_code == 404
        status, out, err = ctl(daemon, "snapshots", "verify")
        assert status == 1 and name in err and "checksum mismatch" in out
        after = daemon.status()
        assert (after["seq"], after["sessions"]) == (before["seq"], before["sessions"])
        assert not list(daemon.state.glob("*.pin"))


def test_a_pinned_snapshot_is_not_pruned(tmp_path: Path) -> None:
    with vigild(tmp_path, every_lines=100_000) as daemon:
        daemon.start()
        made = []
        for number in range(8):
            daemon.send_lines(sample_lines()[number : number + 1])
            made.append(Path(daemon.post("/checkpoint")["path"]).name)
            if number == 1:
                daemon.post(f"/snapshots/{made[1]}/pin")
        assert names(daemon) == [made[1], *made[-5:]]
        daemon.post(f"/snapshots/{made[1]}/unpin")
        daemon.send_lines(sample_lines()[8:9])
        daemon.post("/checkpoint")
        assert made[1] not in names(daemon)
