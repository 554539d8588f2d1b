"""Alerts over an upgrade from a version that recorded each of them in full.

What that version journaled after its last snapshot is replayed by this one, which decides by the counts in the state
which alerts it records in full. Those of the replay that the file has already may be in a counting record, too: the
limit that docs/guarantees.md names. None is missing, none that came later is there twice, and the sums of the state
are exact.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.alerts import Alerts, Outlet
from daemon.startup.detector_recovery import recover_detector
from daemon.startup.startup_scan import scan_directory
from detection.frames import FlushFrame, Frame, LinesFrame, Sequenced, count_lines, encode_frame
from detection.verdicts.verdict_records import Verdicts
from persistence.journal_segment import Entry
from persistence.store import Store, open_store
from tests.actors.fakes import FakeWriter
from tests.detection.journal import ATTACK, RECEIVED, segment
from tests.detection.verdicts.test_counted_alerts import ids

HERE = Path(__file__).parent
FLOOD = 60
MORE = 30


@pytest.fixture(params=["state-1", "state-2"])  # the layouts before alerts were counted
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(HERE / f"{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path / "state", filter="data")
    (tmp_path / "state").chmod(0o700)
    return tmp_path / "state"


def replay(store: Store, take: Callable[[Verdicts], None]) -> Callable[[Frame], Verdicts]:
    """Recover; returns a function that journals and applies a frame."""
    found = scan_directory(store)
    detector = recover_detector(store, found, take, lambda: None).detector
    store.start_journal(found.seq, found.line)

    def apply(frame: Frame) -> Verdicts:
        seq, line = detector.seq + 1, detector.line + count_lines(frame)
        store.append([Entry(seq, line, count_lines(frame), encode_frame(frame))])
        verdicts = detector.apply(Sequenced(seq, line, frame))
        summary = detector.summary()
        assert summary.flagged == summary.alerts_recorded + summary.alerts_counted + summary.alerts_waiting
        return verdicts

    return apply


def flood(lines: int) -> LinesFrame:
    return LinesFrame(RECEIVED, (segment([ATTACK] * lines),))


def ids_in_full(records: list[bytes]) -> Counter[str]:
    return Counter(record["id"] for record in map(json.loads, records) if "stands_for" not in record)


def ids_counted(records: list[bytes]) -> Counter[str]:
    groups = [group for record in map(json.loads, records) for group in record.get("alerts", ())]
    return Counter(f"{line}.{k}" if k else f"{line}" for group in groups for line, k in ids(group))


async def test_after_a_kill_of_that_version_none_is_missing_and_only_what_is_replayed_may_be_there_twice(
    directory: Path,
) -> None:
    # That version after its last snapshot: it took a flood, recorded each alert in full, and was killed.
    replayed: list[Verdicts] = []
    with open_store(directory) as store:
        replayed_and_flood = [replay(store, replayed.append)(flood(FLOOD))]
    file = FakeWriter(
        [json.dumps(record).encode() for verdicts in replayed + replayed_and_flood for record in verdicts.flagged()]
    )
    old = ids_in_full(file.records)
    assert len(old) >= FLOOD and max(old.values()) == 1

    with open_store(directory) as store:
        again: list[Verdicts] = []
        apply = replay(store, again.append)
        alerts = Alerts(Outlet("alerts.jsonl", file, json.loads(file.records[-1])["id"]), seq=0)
        new = [apply(flood(MORE)), apply(FlushFrame(RECEIVED))]
        for verdicts in again + new:
            await alerts.take_verdicts(verdicts)
    came = {record["id"] for verdicts in new for record in verdicts.flagged()}
    assert len(came) >= MORE
    full, counted = ids_in_full(file.records), ids_counted(file.records)
    assert full.keys() | counted.keys() == old.keys() | came, "none is missing"
    assert max(full.values()) == max(counted.values()) == 1
    twice = full.keys() & counted.keys()
    assert twice <= old.keys(), "each that came later is there once"
    assert len(twice) > FLOOD // 2, "should this fail, the limit is gone: say so in docs/guarantees.md"
