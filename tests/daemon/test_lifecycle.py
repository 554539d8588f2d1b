"""The last record of an earlier process, from whatever is left of the file and its mark."""

from pathlib import Path
from typing import NoReturn

import pytest

from daemon.startup.resumed_alerts import last_record_ids
from persistence.disk import REAL
from persistence.high_water_mark import HighWaterMark
from persistence.jsonl import JsonlWriter


class Killed(BaseException):
    pass


def test_a_kill_between_the_records_and_their_mark_leaves_both_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "alerts.jsonl"
    writer = JsonlWriter(path, REAL)
    writer.append([b'{"id":"1"}'], "1")
    writer.sync()

    def die(mark: HighWaterMark, last: str) -> NoReturn:
        raise Killed

    with monkeypatch.context() as killed:
        killed.setattr(HighWaterMark, "note_written", die)
        with pytest.raises(Killed):
            writer.append([b'{"id":"2"}'], "2")
    writer.close()
    again = JsonlWriter(path, REAL)
    assert last_record_ids(again) == ("1", "2")
    again.close()


@pytest.mark.parametrize("last", [b'{"id":5}', b'{"x":1}', b'{"id":"abc"}', b'{"id":"\xff"}'])
def test_a_last_record_of_another_program_is_ignored(tmp_path: Path, last: bytes) -> None:
    path = tmp_path / "alerts.jsonl"
    path.write_bytes(b'{"id":"1"}\n' + last + b"\n")
    writer = JsonlWriter(path, REAL)
    assert last_record_ids(writer) == (None, None)
    writer.close()
