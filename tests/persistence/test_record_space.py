"""One room for all files of records: the oldest part goes first, and what is removed is removed for something."""

import os
from contextlib import closing
from pathlib import Path

import pytest

from persistence.disk import REAL
from persistence.jsonl import JsonlWriter, record_files
from persistence.record_space import PAUSE_SECONDS, RecordSpace, rotated_parts

MB = 1 << 20
DISK = 1 << 40
RECORD = b'{"id":"%06d","text":"' + b"." * 60 + b'"}'


def at_once(seconds: float) -> None:
    """Instead of sleeping."""


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def part(directory: Path, name: str, number: int, written: int, size: int = 100) -> Path:
    path = directory / f"{name}.{number:08d}"
    path.write_bytes(b"x" * size)
    os.utime(path, (written, written))
    return path


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_two_files_share_one_bound_and_the_oldest_part_of_either_goes(tmp_path: Path) -> None:
    alerts, verdicts = tmp_path / "alerts.jsonl", tmp_path / "verdicts.jsonl"
    space = RecordSpace(tmp_path, [alerts.name, verdicts.name], max_bytes=8000, space=lambda _: (DISK, DISK))
    with (
        closing(JsonlWriter(alerts, REAL, "", space=space)) as few,
        closing(JsonlWriter(verdicts, REAL, "", space=space)) as many,
    ):
        few.append([RECORD % n for n in range(11)])
        few.append([RECORD % 11])  # rotates
        assert len(rotated_parts(alerts)) == 1
        for n in range(300):
            many.append([RECORD % n])
        held = few.usage()["bytes"] + many.usage()["bytes"]
        assert held == sum(each.stat().st_size for each in tmp_path.glob("*.jsonl*")) <= 8000
        assert rotated_parts(alerts) == [] and few.usage()["parts_removed"] == 1, "the oldest, though of the quiet file"
        assert many.usage()["parts_removed"] > 10 and held > 5000


def test_what_logrotate_dates_and_what_others_number_is_no_part(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    for name in ("alerts.jsonl.20261130", "alerts.jsonl.1", "alerts.jsonl.00000001.gz", "verdicts.jsonl.00000001"):
        (tmp_path / name).write_bytes(b"{}\n")
    path.write_bytes(b"{}\n" * 10)
    space = RecordSpace(tmp_path, [path.name], max_bytes=8, space=lambda _: (0, DISK))
    assert rotated_parts(path) == []
    assert not space.give_way_to_journal() and space.make_room(MB) == MB
    space.rotate(path)
    assert len(names(tmp_path)) == 4 and not path.exists(), "its own part, beyond the bound, went"


def test_numbers_beyond_seven_digits_stay_parts_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    part(tmp_path, path.name, 9_999_999, 1)
    path.write_bytes(b"new")
    RecordSpace(tmp_path, [path.name], max_bytes=1 << 20, space=lambda _: (DISK, DISK)).rotate(path)
    assert [each.name for each in rotated_parts(path)] == ["alerts.jsonl.09999999", "alerts.jsonl.010000000"]


def test_parts_go_until_there_is_room_and_it_is_said_how_much_is_missing(tmp_path: Path) -> None:
    for number in range(1, 9):
        part(tmp_path, "alerts.jsonl", number, written=number)
    free = [100 * MB]

    def space(_: Path) -> tuple[int, int]:
        return free[0] + 10 * MB * (8 - len(rotated_parts(tmp_path / "alerts.jsonl"))), DISK

    room = RecordSpace(tmp_path, ["alerts.jsonl"], max_bytes=1 << 30, space=space)
    assert room.make_room(120 * MB) is None and room.shortage is None
    assert names(tmp_path)[0] == "alerts.jsonl.00000003"
    assert room.make_room(400 * MB) == 400 * MB
    assert names(tmp_path) == []
    assert room.shortage is not None and room.shortage.startswith("180 MB are free on the disk")
    free[0] = 500 * MB
    assert room.make_room(400 * MB) is None and room.shortage is None


def test_a_removal_that_frees_nothing_is_the_last_one_for_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when something holds the file, or the room is somewhere else."""
    clock = Clock()
    for number in range(1, 9):
        part(tmp_path, "alerts.jsonl", number, written=number)
    room = RecordSpace(
        tmp_path, ["alerts.jsonl"], max_bytes=1 << 30, space=lambda _: (MB, DISK), now=clock, sleep=at_once
    )
    for _ in range(5):
        assert room.make_room(256 * MB) == 256 * MB
    assert len(names(tmp_path)) == 7
    assert caplog.text.count("freed nothing") == 1
    clock.seconds += PAUSE_SECONDS
    room.make_room(256 * MB)
    assert len(names(tmp_path)) == 6
    assert room.give_way_to_journal() and len(names(tmp_path)) == 5, "but for the journal, whatever the disk says"
    assert not any(room.give_way_to_journal() for _ in range(5)) and len(names(tmp_path)) == 5, "as long as it helps"
    assert caplog.text.count("freed nothing") == 3
    clock.seconds += PAUSE_SECONDS
    assert room.give_way_to_journal() and len(names(tmp_path)) == 4


def test_a_journal_at_a_quota_gets_a_part_with_each_try_while_that_frees_something(tmp_path: Path) -> None:
    for number in range(1, 5):
        part(tmp_path, "alerts.jsonl", number, written=number)
    room = RecordSpace(
        tmp_path,
        ["alerts.jsonl"],
        max_bytes=1 << 30,
        space=lambda _: (DISK - len(names(tmp_path)), DISK),
        sleep=at_once,
    )
    assert [room.give_way_to_journal() for _ in range(6)] == [True] * 4 + [False] * 2
    assert room.status()["parts_removed"] == {"max_bytes": 0, "disk": 0, "journal": 4}


def test_what_is_freed_a_little_later_is_waited_for(tmp_path: Path) -> None:
    free, freed = [MB], [0]
    for number in range(1, 9):
        part(tmp_path, "alerts.jsonl", number, written=number)

    def time_passes(seconds: float) -> None:
        free[0] = MB * (1 + 8 - len(names(tmp_path)))
        freed[0] += 1

    room = RecordSpace(
        tmp_path, ["alerts.jsonl"], max_bytes=1 << 30, space=lambda _: (free[0], DISK), sleep=time_passes
    )
    assert room.make_room(4 * MB) is None
    assert len(names(tmp_path)) == 5 and freed == [3]


def test_what_verdicts_leave_free_beyond_the_journals_room_is_no_shortage(tmp_path: Path) -> None:
    room = RecordSpace(tmp_path, ["verdicts.jsonl"], space=lambda _: (300 * MB, DISK))
    assert room.make_room(512 * MB) == 512 * MB and room.shortage is None
    assert room.status() == {
        "max_bytes": None,
        "parts_removed": {"max_bytes": 0, "disk": 0, "journal": 0},
        "disk_free": 300 * MB,
        "disk_kept_free": 256 * MB,
    }


def test_where_others_rotate_nothing_is_removed(tmp_path: Path) -> None:
    part(tmp_path, "alerts.jsonl", 1, written=1)
    room = RecordSpace(tmp_path, ["alerts.jsonl"], space=lambda _: (0, DISK))
    assert room.make_room(MB) == MB and not room.give_way_to_journal()
    assert len(names(tmp_path)) == 1


def test_torn_pieces_beside_a_file_do_not_pile_up(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    for n in range(20):
        with open(path, "ab") as file:
            file.write(RECORD % n + b'\n{"torn')
        with closing(JsonlWriter(path, REAL, "")) as writer:
            assert writer.note is not None
    assert len(list(tmp_path.glob("alerts.jsonl.*.bad"))) == 8
    assert (tmp_path / "alerts.jsonl").read_bytes().count(b"\n") == 20


def test_a_new_file_with_the_inode_of_a_removed_part_is_not_taken_for_it(tmp_path: Path) -> None:
    """Else an error would cut it to what was durable of the other, and records would be there twice."""
    path = tmp_path / "alerts.jsonl"
    free = [DISK]
    space = RecordSpace(tmp_path, [path.name], max_bytes=8 * 800, space=lambda _: (free[0], DISK), sleep=at_once)
    with closing(JsonlWriter(path, REAL, "", space=space)) as writer:
        writer.append([RECORD % n for n in range(9)])
        inode = path.stat().st_ino
        free[0] = 0
        with pytest.raises(OSError, match="kept for the journal"):
            writer.append([RECORD % 9])
        assert names(tmp_path) == [], "it was rotated, and removed as a part"
        free[0] = DISK
        writer.append([RECORD % n for n in range(9, 19)])
        if path.stat().st_ino != inode:
            pytest.skip("this file system does not use the number of an inode again at once")
        writer.close()  # as any error does
        writer.append([RECORD % 19])
    written = [line for each in record_files(path) for line in each.read_bytes().splitlines()]
    assert written == [RECORD % n for n in range(9, 20)]
