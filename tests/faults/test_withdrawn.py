"""A member that cannot run on this machine, in the real daemon: a process that may not make memory executable.

Then torch compiles no kernels: everything else runs, and the transformer raises "could not create a primitive". So it
was under `MemoryDenyWriteExecute=yes` of systemd.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.running import Vigild, sample_lines, vigild
from tests.faults.altered import alter, restore

GOLDEN = Path(__file__).parent.parent / "golden" / "state-1.tar.xz"
SAVED, KILLED_AT = 1600, 1701  # the lines of that state: at its last snapshot, and when it was killed
# prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN): inherited, and kept over exec.
REFUSED = """
import ctypes
if ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0):
    raise SystemExit("no PR_SET_MDWE")
"""
NO_WITHDRAWAL = """
import daemon.startup.failing_frames
daemon.startup.failing_frames.NAMES = ()
daemon.startup.failing_frames.MemberError = ()
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
    with vigild(tmp_path, every_lines=10**9, verdicts="all") as daemon:
        daemon.state.mkdir(mode=0o700)
        with tarfile.open(GOLDEN) as archive:
            archive.extractall(daemon.state, filter="data")
        for outlet in daemon.state.glob("*.jsonl"):
            outlet.unlink()
        yield daemon


def served(daemon: Vigild) -> None:
    """Start it, and return when it takes and judges lines, degraded or not."""
    daemon.launch()
    daemon.wait(lambda: daemon.health().get("status", "starting") != "starting", 120.0)


def test_where_the_transformer_cannot_run_the_others_judge_every_line_and_it_returns_when_it_can(
    trained: Vigild,
) -> None:
    daemon, lines = trained, sample_lines()
    alter(daemon, REFUSED)
    served(daemon)
    for start in range(0, 300, 100):
        daemon.send_lines(lines[start : start + 100])
    daemon.applied(KILLED_AT + 300)
    status = daemon.status()
    assert (status["lost_lines"], status["recovery"]["lost_lines"]) == (0, 0)
    assert not list(daemon.state.glob("*.bad"))
    assert any("transformer does not judge from frame" in note for note in status["recovery"]["notes"])
    assert "could not create a primitive" in daemon.log
    withdrawn = {each["member"]: each["reason"] for each in status["training"]["withdrawn"]}
    assert withdrawn.keys() == {"transformer", "isolation_forest"}
    assert "could not create a primitive" in withdrawn["transformer"]
    assert daemon.health()["status"] == "degraded" and daemon.api.get("/health").status_code == 200
    answer = daemon.post("/detect", {"log_line": lines[0].decode()})
    active = answer["details"]["ensemble"]["active_models"]
    assert "transformer" not in active and "ngram" in active
    # Withdrawn once, at the first frame that it was to judge, and not for every frame anew.
    assert daemon.log.count("transformer does not judge from frame") == 2, "once as it happened, once in the report"
    # A withdrawn member has no score in the records; the others have.
    daemon.wait(lambda: ids(daemon) == [str(n) for n in range(SAVED + 1, KILLED_AT + 301)])
    assert {"ngram", "counts"} <= members_of(daemon, KILLED_AT + 300)
    assert not {"transformer", "isolation_forest"} & members_of(daemon, KILLED_AT + 300)
    digest = daemon.post("/checkpoint")["digest"]
    daemon.kill()

    restore(daemon)
    daemon.start()
    status = daemon.status()
    assert (status["lost_lines"], status["state_digest"]) == (0, digest)
    daemon.send_lines(lines[300:400])
    daemon.applied(KILLED_AT + 400)
    assert (daemon.status()["lost_lines"], daemon.status()["phase"]) == (0, "ensemble")
    assert daemon.status()["training"]["withdrawn"] == [] and daemon.health()["status"] == "serving"
    daemon.wait(lambda: ids(daemon) == [str(n) for n in range(SAVED + 1, KILLED_AT + 401)])
    assert {"transformer", "isolation_forest"} <= members_of(daemon, KILLED_AT + 400)


def test_without_withdrawing_it_every_line_is_lost(trained: Vigild) -> None:
    """The control: what a failure of the machine costs if it is attributed to the frame."""
    daemon = trained
    alter(daemon, NO_WITHDRAWAL + REFUSED)
    served(daemon)
    daemon.send_lines(sample_lines()[:100])
    daemon.wait(lambda: daemon.status()["lost_lines"] > 0)


def failing_once_there_is(gate: Path) -> str:
    return f"""
from pathlib import Path
from detection.members.transformer.member import Transformer
score = Transformer.score
def failing(self, view, standing):
    if Path({str(gate)!r}).exists():
        raise RuntimeError("planted")
    return score(self, view, standing)
Transformer.score = failing
"""


KILLED = """
import os, signal
from actors.sequencer import Sequencer
interject_frame = Sequencer.interject_frame
async def killed(self, frame):
    if {after}:
        await interject_frame(self, frame)
    os.kill(os.getpid(), signal.SIGKILL)
Sequencer.interject_frame = killed
"""


def test_a_member_that_fails_under_full_load_delays_nobody_and_costs_no_line(trained: Vigild, tmp_path: Path) -> None:
    """Frames wait at every place between the sockets and scoring when the withdrawal is to be journaled."""
    daemon, gate, lines = trained, tmp_path / "gate", sample_lines()
    alter(daemon, failing_once_there_is(gate))
    daemon.start()
    last = KILLED_AT + 3 * len(lines)
    with daemon.connect() as one, daemon.connect() as other:
        for turn in range(3):
            if turn == 1:
                gate.touch()
            for connection in (one, other) if turn % 2 else (other, one):
                connection.sendall(b"".join(line + b"\n" for line in lines[turn % 2 :: 2]))
    daemon.applied(last)
    status = daemon.status()
    assert status["lost_lines"] == 0
    assert any("transformer does not judge from frame" in note for note in status["recovery"]["notes"])
    digest = daemon.post("/checkpoint")["digest"]
    assert len(ids(daemon)) == len(set(ids(daemon))) == last - SAVED
    daemon.kill()
    # The snapshots are taken away: all of it is replayed, on a machine on which it works.
    for snapshot in sorted(daemon.state.glob("snapshot-*"))[-1:]:
        snapshot.unlink()
    restore(daemon)
    daemon.start()
    assert daemon.status()["state_digest"] == digest
    assert len(ids(daemon)) == len(set(ids(daemon))) == last - SAVED


@pytest.mark.parametrize("after", [False, True], ids=["before it is durable", "when it is durable"])
def test_killed_while_the_withdrawal_is_journaled_no_verdict_was_written_that_is_not_replayed(
    trained: Vigild, tmp_path: Path, after: bool
) -> None:
    daemon, gate = trained, tmp_path / "gate"
    alter(daemon, failing_once_there_is(gate) + KILLED.format(after=after))
    daemon.start()
    daemon.post("/checkpoint")  # what is read back is this, and the transformer is not asked about it again
    gate.touch()
    daemon.send_lines(sample_lines()[:100])
    assert daemon.process is not None
    daemon.process.wait(60.0)
    assert ids(daemon) == [str(n) for n in range(SAVED + 1, KILLED_AT + 1)], "nothing of the frame has left"
    restore(daemon)
    daemon.start()
    daemon.applied(KILLED_AT + 100)
    daemon.wait(lambda: ids(daemon) == [str(n) for n in range(SAVED + 1, KILLED_AT + 101)])
    assert ("transformer" in members_of(daemon, KILLED_AT + 100)) is not after
    assert daemon.status()["lost_lines"] == 0
