"""A frame on which `apply` raises, in the real daemon: it costs its own lines, neither daemon nor connections."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.running import Vigild, sample_lines, vigild
from tests.faults.altered import alter

# The state is spoilt by then: the frame was applied, in part or as a whole.
PLANTED = """
from detection.detector import Detector
apply = Detector.apply
def raising(self, item):
    verdicts = apply(self, item)
    if {condition}:
        raise RuntimeError("planted")
    return verdicts
Detector.apply = raising
"""
LINES = PLANTED.format(condition="any(b'POISON' in s.data for s in getattr(item.frame, 'segments', ()))")
WITHOUT_RELOAD = """
import actors.scoring
init = actors.scoring.Scoring.__init__
actors.scoring.Scoring.__init__ = lambda self, detector, read_back=None: init(self, detector)
"""
POISON = b'203.0.113.1 - - [17/May/2015:10:05:03 +0000] "GET /POISON HTTP/1.1" 200 1 "-" "-"'


def ids(daemon: Vigild) -> list[str]:
    """Of all lines with a verdict, in the order of the file."""
    records = map(json.loads, (daemon.state / "verdicts.jsonl").read_bytes().splitlines())
    return [record["id"] for record in records if not record["closed"]]


def test_lines_before_and_after_are_intact_and_the_connections_stay(tmp_path: Path) -> None:
    lines = sample_lines()
    with vigild(tmp_path, verdicts="all") as daemon:
        alter(daemon, LINES)
        daemon.start()
        assert daemon.process is not None
        pid = daemon.process.pid
        with daemon.connect() as other:
            other.sendall(lines[0] + b"\nthe beginning of ")
            daemon.applied(1)
            daemon.send_lines(lines[1:100])
            for lost in range(1, 4):
                daemon.send_lines([POISON])
                daemon.send_lines(lines[100 * lost : 100 * lost + 100])
                daemon.applied(101 * lost + 100)
                assert daemon.status()["recovery"]["lost_lines"] == lost
            other.sendall(b"a line\n")
            daemon.applied(404)
        status = daemon.status()
        assert daemon.process.poll() is None and daemon.process.pid == pid
        assert status["lost_lines"] == 3
        assert len(status["recovery"]["set_aside"]) == len(list(daemon.state.glob("frame-*.bad"))) == 3
        assert daemon.health()["status"] == "serving"
        expected = [str(n) for n in range(1, 405) if n not in (101, 202, 303)]
        # The log says that the connection ended, so everything is in the file.
        daemon.wait(lambda: ids(daemon) == expected)
        assert daemon.log.count("it is set aside and skipped") == 3

        shutil.copytree(daemon.state, tmp_path / "copy" / "state")
        digest = daemon.post("/checkpoint")["digest"]
        daemon.kill()
    # A program that can apply them comes to the same state, and writes no record again.
    with vigild(tmp_path / "copy", verdicts="all") as healthy:
        healthy.start()
        status = healthy.status()
        assert (status["state_digest"], status["recovery"]["lost_lines"]) == (digest, 0)
        assert ids(healthy) == expected


def test_every_start_may_be_poisoned_and_the_daemon_comes_up(tmp_path: Path) -> None:
    """The settings frame that a changed file brings is one that cannot be applied."""
    with vigild(tmp_path) as daemon:
        alter(daemon, PLANTED.format(condition="type(item.frame).__name__ == 'SettingsFrame'"))
        for start in range(1, 3):
            daemon.start()
            daemon.send_lines(sample_lines()[:50])
            daemon.applied(50 * start)
            daemon.kill()
        assert len(list(daemon.state.glob("frame-*.bad"))) == 2


@pytest.mark.parametrize("kind", ["FlushFrame", "RestoreFrame"])
def test_a_request_that_cannot_be_applied_is_answered(tmp_path: Path, kind: str) -> None:
    with vigild(tmp_path) as daemon:
        alter(daemon, PLANTED.format(condition=f"type(item.frame).__name__ == '{kind}'"))
        daemon.start()
        daemon.send_lines(sample_lines()[:50])
        name = Path(daemon.post("/checkpoint")["path"]).name
        path = "/flush" if kind == "FlushFrame" else f"/snapshots/{name}/restore"
        assert daemon.api.post(path).status_code == (200 if kind == "FlushFrame" else 500)
        daemon.send_lines(sample_lines()[50:100])
        daemon.applied(100)
        assert daemon.status()["lost_lines"] == 0


def test_without_reading_the_state_back_the_daemon_dies(tmp_path: Path) -> None:
    """The control: what the daemon is protected from."""
    with vigild(tmp_path) as daemon:
        alter(daemon, LINES + WITHOUT_RELOAD)
        daemon.start()
        daemon.send_lines([POISON])
        assert daemon.process is not None
        assert daemon.process.wait(30.0) == 1
        assert "planted" in daemon.log
