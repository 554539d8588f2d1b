"""A member that cannot run on this machine, in the real daemon: a process that may not make memory executable.

Then torch compiles no kernels: everything else runs, and the transformer raises "could not create a primitive". So it
was under `MemoryDenyWriteExecute=yes` of systemd.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.running import Vigild, sample_lines, vigild
from tests.faults.altered import alter, restore

WARMUP = 1500
# prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN): inherited, and kept over exec.
REFUSED = """
import ctypes
if ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0):
    raise SystemExit("no PR_SET_MDWE")
"""
NO_WITHDRAWAL = """
import daemon.ladder
daemon.ladder.NAMES = ()
daemon.ladder.MemberError = ()
"""


def ids(daemon: Vigild) -> list[str]:
    """Of all lines with a verdict, in the order of the file."""
    records = map(json.loads, (daemon.state / "verdicts.jsonl").read_bytes().splitlines())
    return [record["id"] for record in records if not record["closed"]]


def members_of(daemon: Vigild, line: int) -> set[str]:
    records = map(json.loads, (daemon.state / "verdicts.jsonl").read_bytes().splitlines())
    return {name for record in records if record["id"] == str(line) for name in record["members"]} - {"rules"}


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[Vigild]:
    """A daemon with a model of all members, killed with a hundred lines after its last snapshot."""
    with vigild(tmp_path, warmup=WARMUP, every_lines=10**9, verdicts="all") as daemon:
        daemon.start()
        daemon.send_lines(sample_lines()[:WARMUP])
        daemon.wait_for_model()
        daemon.post("/checkpoint")
        daemon.send_lines(sample_lines()[WARMUP : WARMUP + 100])
        daemon.applied(WARMUP + 100)
        daemon.kill()
        yield daemon


def test_where_the_transformer_cannot_run_every_line_is_judged_by_the_others_and_it_is_back_when_it_can(
    trained: Vigild,
) -> None:
    daemon, lines = trained, sample_lines()
    alter(daemon, REFUSED)
    daemon.launch()
    daemon.wait(lambda: bool(daemon.health()) and daemon.health()["status"] not in ("starting",), 120.0)
    for start in range(WARMUP + 100, WARMUP + 400, 100):
        daemon.send_lines(lines[start : start + 100])
    daemon.applied(WARMUP + 400)
    status = daemon.status()
    assert (status["lost_lines"], status["recovery"]["lost_lines"]) == (0, 0)
    assert not list(daemon.state.glob("*.bad"))
    assert "transformer" not in members_of(daemon, WARMUP + 400) and "ngram" in members_of(daemon, WARMUP + 400)
    assert any("transformer does not judge from frame" in note for note in status["recovery"]["notes"])
    assert "could not create a primitive" in daemon.log
    active = daemon.post("/detect", {"log_line": lines[0].decode()})["details"]["ensemble"]["active_models"]
    assert "transformer" not in active and "ngram" in active
    # Withdrawn once, and not for every frame.
    assert daemon.log.count("transformer does not judge from frame") <= 3
    daemon.kill()
    restore(daemon)
    daemon.start()
    daemon.send_lines(lines[WARMUP + 400 : WARMUP + 500])
    daemon.applied(WARMUP + 500)
    assert daemon.status()["lost_lines"] == 0
    assert daemon.status()["phase"] == "ensemble"
    daemon.wait(lambda: ids(daemon) == [str(n) for n in range(1, WARMUP + 501)])
    assert "transformer" in members_of(daemon, WARMUP + 500)


def test_without_withdrawing_it_every_line_is_lost(trained: Vigild) -> None:
    """The control: what a failure of the machine costs when it is taken for one of the frame."""
    daemon = trained
    alter(daemon, NO_WITHDRAWAL + REFUSED)
    daemon.launch()
    daemon.wait(lambda: bool(daemon.health()) and daemon.health()["status"] not in ("starting",), 120.0)
    daemon.send_lines(sample_lines()[WARMUP + 100 : WARMUP + 200])
    daemon.wait(lambda: daemon.status()["lost_lines"] == 200)
