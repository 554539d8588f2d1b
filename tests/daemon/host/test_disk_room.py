"""A journal without room: the oldest part of the records goes, and what then fails is the journal's failure."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from daemon.host.disk_room import append_before_records
from persistence.journal import JournalError
from persistence.journal_segment import Entry
from persistence.record_space import RecordSpace
from tests.persistence.disks import FaultyDisk

ENTRIES = [Entry(1, 1, 1, b"a frame")]


class Journal:
    """Without room until `room` is true; `code` is why."""

    def __init__(self, path: Path, code: int = errno.ENOSPC) -> None:
        self.path, self.code = path, code
        self.tries = 0

    def append(self, entries: Sequence[Entry]) -> None:
        self.tries += 1
        if self.path.exists():
            raise JournalError("journal not written") from OSError(self.code, os.strerror(self.code))


@pytest.fixture
def part(tmp_path: Path) -> Path:
    path = tmp_path / "alerts.jsonl.00000001"
    path.write_bytes(b"{}\n")
    return path


def space(directory: Path, disk: FaultyDisk) -> RecordSpace:
    return RecordSpace(directory, ["alerts.jsonl"], max_bytes=1 << 30, disk=disk, sleep=lambda _: None)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_the_oldest_part_goes_and_the_same_frames_are_written_at_once(part: Path, code: int) -> None:
    journal = Journal(part, code)
    append_before_records(journal.append, space(part.parent, FaultyDisk()), ENTRIES)
    assert journal.tries == 2 and not part.exists()


def test_a_disk_that_fails_otherwise_costs_no_record(part: Path) -> None:
    journal = Journal(part, errno.EIO)
    with pytest.raises(JournalError):
        append_before_records(journal.append, space(part.parent, FaultyDisk()), ENTRIES)
    assert journal.tries == 1 and part.exists()


def test_a_part_that_cannot_be_removed_is_the_journals_failure_and_nothing_worse(
    part: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The sequencer tries again after a JournalError; any other would end the daemon."""
    disk = FaultyDisk(lambda _number, name, _path: errno.EROFS if name == "unlink" else None)
    journal = Journal(part)
    with pytest.raises(JournalError) as failed:
        append_before_records(journal.append, space(part.parent, disk), ENTRIES)
    assert isinstance(failed.value.__cause__, OSError) and failed.value.__cause__.errno == errno.ENOSPC
    assert journal.tries == 1 and part.exists() and "Read-only file system" in caplog.text
