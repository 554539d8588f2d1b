import errno
import json
import os
import random
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from persistence import jsonl
from persistence.disk import REAL, Disk
from persistence.jsonl import JsonlWriter, last_records, open_jsonl, record_files, records_from
from persistence.record_space import RecordSpace, rotated_parts
from tests.persistence.disks import FaultyDisk, fail_from, fail_nth


def record(number: int, size: int = 0) -> bytes:
    return b'{"id": "%d", "text": "%s"}' % (number, b"x" * size)


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def write(path: Path, *records: bytes) -> None:
    with open_jsonl(path) as writer:
        writer.append(records)


def test_records_are_appended_and_the_last_one_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    with open_jsonl(path) as writer:
        assert (writer.last, writer.note) == (None, None)
        writer.append([record(1), record(2)])
        writer.append([])
    with open_jsonl(path) as writer:
        assert (writer.last, writer.note) == (record(2), None)
        writer.append([record(3, 300_000)])
    with open_jsonl(path) as writer:
        assert writer.last == record(3, 300_000)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(lines(path)) == 3


@pytest.mark.parametrize("bad", [b"", b"[]", b'{"a": 1', b'{"a":\n1}', b"{\0}"])
def test_bytes_that_are_no_record_are_refused(tmp_path: Path, bad: bytes) -> None:
    with open_jsonl(tmp_path / "a.jsonl") as writer, pytest.raises(ValueError, match="not a record"):
        writer.append([record(1), bad])
    assert lines(tmp_path / "a.jsonl") == []


@pytest.mark.parametrize(
    "tail", [b"{", b"\0" * 5000, record(9), record(9)[:-1] + b"\n", b"\0" * 700 + b"}\n", b"\n\n", b"x" * 200_000]
)
def test_a_torn_tail_is_cut_off_and_kept(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "alerts.jsonl"
    write(path, record(1), record(2))
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with open_jsonl(path) as writer:
        assert writer.last == record(2)
        kept = f"alerts.jsonl.{len(whole)}.bad"
        assert writer.note == f"alerts.jsonl: its last {len(tail)} bytes are no whole record; kept as {kept}"
        assert (tmp_path / kept).read_bytes() == tail
        writer.append([record(3)])
    assert lines(path) == [record(1), record(2), record(3)]


@pytest.mark.parametrize("call", ["create", "write", "sync file"])
def test_on_a_full_disk_a_torn_tail_is_cut_off_though_it_cannot_be_kept(tmp_path: Path, call: str) -> None:
    """A full disk tears records; the daemon must start all the same, to be there when there is room again."""
    path = tmp_path / "alerts.jsonl"
    write(path, record(1))
    with open(path, "ab") as file:
        file.write(b'{"id": "2", "te')

    def failing(code: int) -> FaultyDisk:
        return FaultyDisk(lambda _number, name, file: code if name == call and ".bad" in file.name else None)

    with open_jsonl(path, disk=failing(errno.ENOSPC)) as writer:
        assert writer.last == record(1)
        assert writer.note is not None and writer.note.endswith("could not be kept: No space left on device")
        writer.append([record(2)])
    assert lines(path) == [record(1), record(2)]
    assert [each.name for each in tmp_path.glob("*.bad*")] == []
    with open(path, "ab") as file:
        file.write(b'{"id": "3", "te')
    with pytest.raises(OSError), open_jsonl(path, disk=failing(errno.EIO)):
        pass
    assert path.read_bytes().endswith(b'"te'), "a disk that fails otherwise is another matter"


def test_a_cut_anywhere_leaves_the_whole_records_before_it(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    write(path, *[record(n, n) for n in range(4)])
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        expected = whole[:size].split(b"\n")[:-1]
        with open_jsonl(path) as writer:
            assert writer.last == (expected[-1] if expected else None)
            assert (writer.note is None) == (size == 0 or whole[size - 1 : size] == b"\n")
        assert lines(path) == expected


@pytest.mark.parametrize("create", [False, True])
def test_rotation_from_outside_is_followed(tmp_path: Path, create: bool) -> None:
    path = tmp_path / "alerts.jsonl"
    with open_jsonl(path) as writer:
        writer.append([record(1)])
        path.rename(tmp_path / "alerts.jsonl.1")
        if create:
            path.touch(0o600)
        writer.append([record(2)])
        writer.sync()
        os.truncate(path, 0)  # logrotate's copytruncate
        writer.append([record(3)])
    assert lines(tmp_path / "alerts.jsonl.1") == [record(1)]
    assert lines(path) == [record(3)]


def test_a_rotated_file_is_synced_before_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    with open_jsonl(path, disk=(disk := FaultyDisk())) as writer:
        writer.append([record(1)])
        path.rename(tmp_path / "alerts.jsonl.1")
        disk.calls.clear()
        writer.append([record(2)])
        assert [name for name, _ in disk.calls[:3]] == ["sync file", "append", "create"]


@pytest.mark.parametrize("call", ["write", "sync file"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_after_an_error_every_record_is_there_once(tmp_path: Path, call: str, code: int) -> None:
    path = tmp_path / "alerts.jsonl"
    with open_jsonl(path, disk=(disk := FaultyDisk())) as writer:
        writer.append([record(1)])
        writer.sync()
        writer.append([record(2)])
        disk.fault = fail_nth(call, 1, code)
        with pytest.raises(OSError):
            writer.append([record(3), record(4)])
            writer.sync()
        writer.append([record(3), record(4)] if call == "write" else [])
        writer.sync()
    assert lines(path) == [record(n) for n in (1, 2, 3, 4)]


def test_any_sequence_of_errors_loses_and_repeats_nothing(tmp_path: Path) -> None:
    rng = random.Random(4)
    path = tmp_path / "alerts.jsonl"
    disk = FaultyDisk(lambda _number, name, _path: errno.EIO if name != "unlink" and rng.random() < 0.3 else None)
    expected: list[bytes] = []
    fault, disk.fault = disk.fault, None
    with open_jsonl(path, disk=disk) as writer:
        disk.fault = fault
        for number in range(300):
            try:
                writer.append([record(number)])
                expected.append(record(number))
                if number % 3 == 0:
                    writer.sync()
            except OSError:
                continue
        disk.fault = None
    assert lines(path) == expected
    assert 50 < len(expected) < 250


def test_records_of_a_killed_process_are_made_durable_before_they_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    write(path, record(1))
    with open_jsonl(path, disk=(disk := FaultyDisk())):
        assert disk.calls[:2] == [("read", "alerts.mark"), ("sync path", "alerts.jsonl")]


def test_records_are_found_from_the_end_of_a_file_that_grows_and_no_further_back_than_asked(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    lines = [b'{"id":"%d"}' % number for number in range(20_000)]
    path.write_bytes(b"not a record\n" + b"\n".join(lines) + b"\n" + b'{"id":"torn')
    assert list(last_records(path, 1 << 30)) == lines[::-1]
    size = path.stat().st_size
    within = list(last_records(path, 1000))
    assert within == lines[: -len(within) - 1 : -1] and 980 <= sum(len(line) + 1 for line in within) <= 1020
    assert list(last_records(path, size)) == lines[::-1] and list(last_records(path, 5)) == []
    found = last_records(path, 1 << 30)
    assert next(found) == lines[-1]
    with open(path, "ab") as file:
        file.write(b'"}\n{"id":"new"}\n')
    assert next(found) == lines[-2] and next(last_records(path, 100)) == b'{"id":"new"}'
    with pytest.raises(FileNotFoundError):
        next(last_records(tmp_path / "absent", 100))


def number_is_below(wanted: int) -> Callable[[bytes], bool | None]:
    def is_before(line: bytes) -> bool | None:
        try:
            return int(json.loads(line)["id"]) < wanted
        except (ValueError, TypeError, KeyError):
            return None

    return is_before


@pytest.mark.parametrize("seed", range(40))
def test_the_records_from_an_id_on_are_those_of_reading_everything(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the file and its parts, with gaps, damage, lines that are too long, and a record torn at the end."""
    monkeypatch.setattr(jsonl, "MAX_RECORD_BYTES", 300)
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", 64)
    drawn = random.Random(seed)
    path, number, kept = tmp_path / "alerts.jsonl", 0, []
    names = ["alerts.jsonl.00000001", "alerts.jsonl.00000002", "alerts.jsonl"][drawn.randrange(3) :]
    for name in names:
        content = b""
        for _ in range(drawn.choice([0, 1, 5, 60])):
            number += drawn.randrange(1, 4)
            one = record(number, drawn.choice([0, 10, 200]))
            damage = [b"{}", b"", b"{torn", b"\0" * 70, b"{" + b"x" * drawn.randrange(299, 900) + b"}", record(5, 400)]
            content += (
                b"".join(each + b"\n" for each in drawn.sample(damage, drawn.choice([0, 0, 0, 1, 3]))) + one + b"\n"
            )
            kept.append(one)
        (tmp_path / name).write_bytes(content + drawn.choice([b"", b'{"id": "9999"', b"x" * 500]))
    for wanted in range(number + 3):
        from_there = [each for each in kept if int(json.loads(each)["id"]) >= wanted]
        found = list(records_from(path, number_is_below(wanted)))
        assert [each for each in found if each != b"{}"] == from_there, wanted
        holding = b'x"}' if seed % 2 else b"not there"
        expected = from_there[:1] + [each for each in from_there[1:] if holding in each]
        assert list(records_from(path, number_is_below(wanted), holding)) == expected, wanted


def peak_memory(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bounded", [True, False])
def test_a_line_of_any_length_is_passed_over_in_bounded_memory_and_would_not_be_without_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounded: bool
) -> None:
    path = tmp_path / "alerts.jsonl"
    with open(path, "wb") as file:
        file.write(record(1) + b"\n{")
        file.seek(12 << 20, os.SEEK_CUR)
        file.write(b"}\n" + record(2) + b"\n")
    if not bounded:
        monkeypatch.setattr(jsonl, "MAX_RECORD_BYTES", 1 << 40)
    searches: list[tuple[Callable[[], list[bytes]], list[bytes]]] = [
        (lambda: list(last_records(path, 1 << 30)), [record(2), record(1)]),
        (lambda: list(records_from(path, number_is_below(1))), [record(1), record(2)]),
        (lambda: list(records_from(path, number_is_below(2))), [record(2)]),
    ]
    for search, found in searches:
        assert search() == found
        assert (peak_memory(search) < 6 << 20) == bounded


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "alerts.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(OSError), open_jsonl(tmp_path / "alerts.jsonl"):
        pass
    assert not (tmp_path / "other").exists()


BOOT = "b00t-1"


def written(path: Path, *numbers: int, boot: str = BOOT, kill: bool = True) -> str | None:
    """The last id that a process finds which then appends `numbers`, one by one, and is killed (or stops)."""
    with open_jsonl(path, boot=boot) as writer:
        found = writer.last_id
        for number in numbers:
            writer.append([record(number)], str(number))
        if kill:
            writer.sync = lambda: None  # type: ignore[method-assign]
    return found


def test_the_last_id_outlives_a_kill_and_a_rotation_of_any_kind(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    assert written(path, 1, 2) is None
    path.rename(tmp_path / "alerts.jsonl.1")
    path.touch(mode=0o600)
    assert written(path, 3) == "2"
    path.unlink()
    assert written(path) == "3"
    os.truncate(path, 0)
    assert written(path, 4, kill=False) == "3"
    assert written(path) == "4"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["alerts.jsonl", "alerts.jsonl.1", "alerts.mark"]


def test_after_a_power_cut_only_what_was_synced_counts(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    written(path, 1, 2, kill=False)
    written(path, 3)
    assert written(path, boot="b00t-2") == "2"


def test_a_rotation_that_is_noticed_leaves_nothing_to_a_power_cut(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    with open_jsonl(path, boot=BOOT) as writer:
        writer.append([record(1)], "1")
        path.rename(tmp_path / "rotated")
        writer.append([record(2)], "2")
        writer.sync = lambda: None  # type: ignore[method-assign]
    assert written(path, boot="b00t-2") == "1"


def test_what_was_rotated_away_unsynced_is_made_durable_before_it_counts(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    written(path, 1)
    path.rename(tmp_path / "alerts.jsonl-20261123")
    with open_jsonl(path, disk=(disk := FaultyDisk()), boot=BOOT) as writer:
        assert writer.last_id == "1"
        assert ("sync path", "alerts.jsonl-20261123") in disk.calls


def test_no_damage_to_the_mark_makes_it_claim_more(tmp_path: Path) -> None:
    path, mark = tmp_path / "alerts.jsonl", tmp_path / "alerts.mark"
    written(path, 100, 200, kill=False)
    written(path, 300, 400)
    whole = mark.read_bytes()
    assert written(path) == "400"
    for at in range(len(whole)):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
            mark.write_bytes(damaged)
            assert written(path) in (None, "200", "300", "400"), damaged
    mark.write_bytes(b"\0" * 5000)
    assert written(path) is None


@pytest.mark.parametrize("call", ["create", "append", "write", "sync file", "rename", "sync path"])
def test_a_mark_that_cannot_be_written_costs_no_record_and_claims_nothing_false(tmp_path: Path, call: str) -> None:
    path = tmp_path / "alerts.jsonl"
    disk = FaultyDisk()
    with open_jsonl(path, disk=disk, boot=BOOT) as writer:
        disk.fault = lambda _n, name, found: errno.EIO if name == call and ".mark" in found.name else None
        writer.append([record(1)], "1")
        disk.fault = None
        writer.sync()
    assert written(path) == "1"
    assert lines(path) == [record(1)]


def test_records_about_to_be_written_again_do_not_count_as_written(tmp_path: Path) -> None:
    """A sync fails, the file is cut back, and the process is killed before the records are in it again."""
    path = tmp_path / "alerts.jsonl"
    disk = FaultyDisk()
    with pytest.raises(OSError), open_jsonl(path, disk=disk, boot=BOOT) as writer:
        writer.append([record(1)], "1")
        writer.sync()
        writer.append([record(2)], "2")
        disk.fault = fail_nth("sync file", 1, errno.EIO)
        with pytest.raises(OSError):
            writer.sync()
        disk.fault = lambda _n, name, found: errno.EIO if name == "write" and found.name == path.name else None
        writer.sync()
    os.truncate(path, len(record(1)) + 1)
    assert written(path) == "1"


# --- rotation by the writer itself ----------------------------------------------------------------

RECORD = b'{"id":"%06d","text":"............................................................"}'
EIGHTH = 800  # bytes: eight records and a bit


def rotating(path: Path, disk: Disk = REAL) -> JsonlWriter:
    space = RecordSpace(path.parent, [path.name], max_bytes=8 * EIGHTH, disk=disk, space=lambda _: (1 << 40, 1 << 40))
    return JsonlWriter(path, disk, BOOT, space=space)


def held(path: Path) -> list[bytes]:
    """Every record in the parts and the file, in order."""
    files = record_files(path)
    return [record for each in files for record in each.read_bytes().splitlines()]


def test_it_rotates_by_itself_and_the_oldest_go_first_and_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    writer = rotating(path)
    assert writer.usage() == {"bytes": 0, "rotations": 0, "parts_removed": 0, "bytes_removed": 0}
    for n in range(300):
        writer.append([RECORD % n], str(n))
    writer.close()
    kept = held(path)
    assert kept == [RECORD % n for n in range(300 - len(kept), 300)]
    usage = writer.usage()
    assert usage["bytes"] == sum(len(record) + 1 for record in kept) <= EIGHTH * 8
    assert len(kept) > 50 and usage["bytes_removed"] == (300 - len(kept)) * (len(RECORD % 0) + 1)
    assert usage["rotations"] == usage["parts_removed"] + len(rotated_parts(path))
    assert list(last_records(path, 1 << 30)) == kept[::-1]
    last_two_files = list(last_records(path, path.stat().st_size + 10))
    assert last_two_files == kept[: -len(last_two_files) - 1 : -1] and len(last_two_files) < 12


def test_without_a_bound_nothing_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    with open_jsonl(path) as writer:
        for n in range(300):
            writer.append([RECORD % n])
    assert rotated_parts(path) == [] and len(held(path)) == 300


def test_a_start_just_after_a_rotation_knows_the_last_record_and_the_size(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    with closing(rotating(path)) as writer:
        for n in range(20):
            writer.append([RECORD % n], str(n))
        size = writer.usage()["bytes"]
    path.rename(tmp_path / "alerts.jsonl.00000099")
    (tmp_path / "alerts.mark").unlink()
    (tmp_path / "alerts.jsonl.1").write_bytes(b'{"id":"of logrotate"}\n')
    with closing(rotating(path)) as again:
        assert (again.last, again.usage()["bytes"]) == (RECORD % 19, size)
        for n in range(20, 40):
            again.append([RECORD % n])
    assert [part.name for part in rotated_parts(path)][-1] > "alerts.jsonl.00000099"
    assert held(path) == [RECORD % n for n in range(40)]


@pytest.mark.parametrize("mark", [True, False])
def test_each_record_is_there_once_whichever_operation_of_a_rotation_is_the_last(tmp_path: Path, mark: bool) -> None:
    """The process dies at each call; the next one writes what is after the last id that it finds, as a replay does."""
    calls = 1
    while calls < 200:
        path = tmp_path / str(calls) / "alerts.jsonl"
        path.parent.mkdir()
        disk = FaultyDisk(fail_from(calls, errno.EIO))
        written = 0
        try:
            writer = rotating(path, disk)
            for n in range(20):
                writer.append([RECORD % n], str(n))
                written = n + 1
        except OSError:
            pass
        done = written == 20
        if not mark:
            (path.parent / "alerts.mark").unlink(missing_ok=True)
        with closing(rotating(path)) as again:
            last = json.loads(again.last)["id"] if again.last is not None else "-1"
            after = max(int(last), int(again.last_id or -1))
            assert after + 1 >= written
            for n in range(after + 1, 25):
                again.append([RECORD % n], str(n))
        assert held(path) == [RECORD % n for n in range(25)], calls
        if done:
            break
        calls += 1
    assert 50 < calls < 200


def test_records_give_way_before_the_disk_is_full(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    free = [1 << 40]
    disk_size = 1 << 30  # so a twentieth of it is kept free

    def space(directory: Path) -> tuple[int, int]:
        # Others take what the removal of a part frees, but for a byte.
        return free[0] + 20 - len(rotated_parts(directory / "alerts.jsonl")), disk_size

    room = RecordSpace(tmp_path, [path.name], max_bytes=8 * EIGHTH, space=space)
    with closing(JsonlWriter(path, REAL, BOOT, space=room)) as writer:
        for n in range(30):
            writer.append([RECORD % n])
        before = len(rotated_parts(path))
        free[0] = disk_size // 20 - 21
        with pytest.raises(OSError, match="less than 51 MB are free, which are kept for the journal") as full:
            writer.append([RECORD % 30])
        assert full.value.errno == errno.ENOSPC and rotated_parts(path) == []
        assert writer.usage()["parts_removed"] == before > 1
        free[0] = disk_size // 20 + 1000
        writer.append([RECORD % 30])
        assert held(path)[-1] == RECORD % 30


def test_where_others_rotate_records_are_refused_and_none_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    (tmp_path / "alerts.jsonl.00000001").write_bytes(b'{"id":"1"}\n')
    room = RecordSpace(tmp_path, [path.name], space=lambda _: (0, 1 << 40))
    with closing(JsonlWriter(path, REAL, BOOT, space=room)) as writer:
        with pytest.raises(OSError, match="kept for the journal"):
            writer.append([b'{"id":"2"}'])
    assert held(path) == [b'{"id":"1"}']
