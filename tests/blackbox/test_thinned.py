"""Alerts that are not all recorded in full: over kills each is in one record, and can be asked for and answered."""

import json
from pathlib import Path
from typing import Any

from benchmarks.running import Vigild, vigild
from persistence.jsonl import record_files

FLOOD = 2500
ATTACK = b'192.0.2.%d - - [17/May/2015:10:05:03 +0000] "GET /.env?%d HTTP/1.1" 404 1 "-" "-"'


def records(daemon: Vigild) -> list[dict[str, Any]]:
    path = daemon.state / "alerts.jsonl"
    return [json.loads(line) for file in record_files(path) for line in file.read_bytes().splitlines()]


def ids_in(record: dict[str, Any]) -> list[str]:
    runs = [run.partition("-") for group in record["alerts"] for run in group["ids"].split(",")]
    assert all("." not in first for first, _, _ in runs), "the attacks are lines"
    return [str(line) for first, _, last in runs for line in range(int(first), int(last or first) + 1)]


def test_a_flood_over_kills_is_recorded_once_and_every_alert_can_be_answered(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        daemon.start()
        for begin in range(0, FLOOD, 500):
            daemon.send_lines([ATTACK % (1 + n // 1300, n) for n in range(begin, begin + 500)])
            daemon.kill()
            daemon.start()
        daemon.applied(FLOOD)
        alarms = daemon.status()["alarms"]
        assert alarms["flagged"] == FLOOD == alarms["recorded"] + alarms["counted"] + alarms["counting"]
        assert alarms["counting"] > 0

        under_way = daemon.api.get(f"/anomalies/{FLOOD - 1}").json()
        assert (under_way["counted_in"], under_way["cause_kind"]) == (None, "rule")
        daemon.post("/flush")
        daemon.kill()
        daemon.start()
        alarms = daemon.status()["alarms"]
        assert (alarms["flagged"], alarms["counting"]) == (FLOOD, 0)
        daemon.stop()

        written = records(daemon)
        in_full = [record["id"] for record in written if "stands_for" not in record]
        counts = [record for record in written if "stands_for" in record]
        counted = [each for record in counts for each in ids_in(record)]
        assert sorted(in_full + counted, key=int) == [str(n) for n in range(1, FLOOD + 1)]
        assert (len(in_full), len(counted)) == (alarms["recorded"], alarms["counted"])
        assert len(written) < 50
        assert (daemon.state / "alerts.jsonl").stat().st_size < 100_000

        daemon.start()
        found = daemon.api.get(f"/anomalies/{counted[0]}").json()
        assert found["counted_in"] == counts[0]["id"] and found["incident"] == counts[0]["incident"]
        said = daemon.post("/feedback", {"id": counted[-1], "answer": "normal"})
        assert (said["id"], said["kind"]) == (counted[-1], "rule")
        assert daemon.api.get(f"/anomalies/{FLOOD + 1}").status_code == 404
        daemon.send_lines([ATTACK % (9, n) for n in range(50)])
        daemon.applied(FLOOD + 50)
        assert daemon.status()["alarms"]["flagged"] == FLOOD, "the answer holds for the cause of all of them"


def test_files_of_records_are_rotated_bounded_and_counted(tmp_path: Path) -> None:
    with vigild(tmp_path, verdicts="all", more="\n[alerts]\nmax_bytes = 800000\n") as daemon:
        daemon.start()
        for begin in range(0, 4000, 250):
            daemon.send_lines([b"%d GET /%d-%s" % (n, n, b"x" * 60) for n in range(begin, begin + 250)])
            daemon.applied(begin + 250)
        daemon.post("/checkpoint")
        use = daemon.status()["alarms"]["verdicts.jsonl"]
        files = record_files(daemon.state / "verdicts.jsonl")
        assert use["parts_removed"] > 0 and sum(file.stat().st_size for file in files) == use["bytes"]
        assert use["bytes"] < 1_000_000
        assert f"vigild_records_removed_bytes_total {float(use['bytes_removed'])}" in daemon.api.get("/metrics").text
        said = [json.loads(line) for file in files for line in file.read_bytes().splitlines()]
        lines = [record["line"] for record in said if not record["closed"]]
        assert lines == list(range(lines[0], 4001))
        daemon.kill()
        daemon.start()
        daemon.send_lines([b"one more"])
        daemon.stop()
        again = [json.loads(line) for line in files[-1].read_bytes().splitlines()]
        ids = [record["id"] for record in again]
        assert "4001" in ids and len(set(ids)) == len(ids)
