import errno
import struct
import tempfile
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from persistence import journal_segment
from persistence.disk import Disk
from persistence.format_preamble import NewerFormatError, pack_preamble
from persistence.journal import JournalError, JournalReader, JournalWriter, segment_paths
from persistence.journal_segment import FRAME_BYTES, HEADER_BYTES, Entry, scan_segment
from tests.persistence.disks import FaultyDisk, fail_at, fail_from, fail_nth

SALT = b"0123456789abcdef"


def entries_of(*payloads: bytes, seq: int = 0, line: int = 0) -> list[Entry]:
    """One line each, after `seq` and `line`."""
    return [Entry(seq + n, line + n, 1, payload) for n, payload in enumerate(payloads, 1)]


def read(directory: Path, seq: int = 0, line: int = 0) -> tuple[list[Entry], JournalReader, list[str]]:
    aside: list[str] = []

    def set_aside(path: Path, why: str) -> None:
        aside.append(f"{path.name}: {why}")
        path.rename(path.with_name(path.name + ".bad"))

    reading = JournalReader(directory, seq, line, set_aside=set_aside)
    return list(reading), reading, aside


def write(directory: Path, *batches: Sequence[Entry], rotate: bool = False) -> JournalWriter:
    first = batches[0][0]
    writer = JournalWriter(directory, first.seq - 1, first.line - first.count)
    for batch in batches:
        writer.append(batch)
        if rotate:
            writer.rotate()
    return writer


def test_a_segment_is_what_the_specification_says(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, 4, 40, new_salt=lambda: SALT)
    writer.append([Entry(5, 42, 2, b"one"), Entry(6, 42, 0, b"")])
    writer.rotate()
    writer.close()

    header = pack_preamble(b"VIGILJNL", 2) + SALT + struct.pack("<QQ", 5, 40)
    expected = header + struct.pack("<I", zlib.crc32(header))
    for kind, seq, line, count, durable, payload in [
        (1, 5, 42, 2, 52, b"one"),
        (1, 6, 42, 0, 52, b""),
        (2, 6, 42, 0, 52 + 52 + 3 + 52, b""),
    ]:
        fields = struct.pack("<4sIIQQQQ", b"VJF\xf1", kind, len(payload), seq, line, count, durable)
        head = zlib.crc32(SALT + struct.pack("<Q", len(expected)) + fields)
        expected += fields + struct.pack("<II", head, zlib.crc32(payload, head)) + payload
    assert [path.name for _, path in segment_paths(tmp_path)] == [
        "journal-00000000000000000005.log",
        "journal-00000000000000000007.log",
    ]
    assert segment_paths(tmp_path)[0][1].read_bytes() == expected
    assert segment_paths(tmp_path)[1][1].stat().st_size == HEADER_BYTES


def test_append_is_one_write_and_one_sync(tmp_path: Path) -> None:
    disk = FaultyDisk()
    writer = JournalWriter(tmp_path, 0, 0, disk=disk)
    writer.rotate()
    disk.calls.clear()
    writer.append(entries_of(b"a", b"b", b"c"))
    assert [name for name, _ in disk.calls] == ["write", "sync file"]
    writer.close()


class Journal(RuleBasedStateMachine):
    """Appends, rotations, restarts and crashes against a plain list."""

    @initialize()
    def start(self) -> None:
        self._temporary = tempfile.TemporaryDirectory()
        self.directory = Path(self._temporary.name)
        self.accepted: list[Entry] = []
        self.disk = FaultyDisk()
        self.writer = JournalWriter(self.directory, 0, 0, disk=self.disk)
        self.writer.rotate()

    def teardown(self) -> None:
        self.writer.close()
        self._temporary.cleanup()

    def _next(self, payloads: list[tuple[int, bytes]]) -> list[Entry]:
        seq, line = (self.accepted[-1].seq, self.accepted[-1].line) if self.accepted else (0, 0)
        batch = []
        for count, payload in payloads:
            seq, line = seq + 1, line + count
            batch.append(Entry(seq, line, count, payload))
        return batch

    @rule(payloads=st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=60)), max_size=4))
    def append(self, payloads: list[tuple[int, bytes]]) -> None:
        batch = self._next(payloads)
        self.writer.append(batch)
        self.accepted += batch

    @rule()
    def rotate(self) -> None:
        self.writer.rotate()

    @rule(
        payloads=st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=60)), min_size=1, max_size=4),
        cut=st.integers(0, 300),
    )
    def crash_in_the_middle_of_an_append(self, payloads: list[tuple[int, bytes]], cut: int) -> None:
        batch = self._next(payloads)
        path = segment_paths(self.directory)[-1][1]
        before = path.stat().st_size
        self.writer.append(batch)
        self.writer.close()
        with path.open("r+b") as file:
            file.truncate(min(before + cut, path.stat().st_size))
        found, reading, _ = read(self.directory)
        assert found[: len(self.accepted)] == self.accepted
        extra = found[len(self.accepted) :]
        assert extra == batch[: len(extra)]
        self.accepted += extra
        self._restart(reading)

    @rule()
    def restart(self) -> None:
        self.writer.close()
        self._restart(read(self.directory)[1])

    @rule(code=st.sampled_from([errno.EIO, errno.ENOSPC]), call=st.sampled_from(["write", "sync file"]))
    def heal_from_one_write_error(self, code: int, call: str) -> None:
        self.disk.fault = fail_nth(call, 1, code)
        batch = self._next([(1, b"written twice"), (0, b"")])
        self.writer.append(batch)
        self.disk.fault = None
        self.accepted += batch

    def _restart(self, reading: JournalReader) -> None:
        self.writer = JournalWriter(
            self.directory, reading.last_seq, reading.last_line, tail=reading.tail, disk=self.disk
        )
        self.writer.rotate()

    @invariant()
    def reads_back_what_was_accepted(self) -> None:
        found, reading, aside = read(self.directory)
        assert found == self.accepted
        assert (reading.lost_lines, aside) == (0, [])
        last = self.accepted[-1] if self.accepted else Entry(0, 0, 0, b"")
        assert (reading.last_seq, reading.last_line) == (last.seq, last.line)
        middle = self.accepted[len(self.accepted) // 2].seq if self.accepted else 0
        assert read(self.directory, middle)[0] == [entry for entry in self.accepted if entry.seq > middle]


TestJournal = Journal.TestCase
TestJournal.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_a_torn_tail_is_dropped_with_a_note_and_only_once(tmp_path: Path) -> None:
    write(tmp_path, entries_of(b"a" * 100), entries_of(b"b" * 100, b"c" * 100, seq=1, line=1)).close()
    path = segment_paths(tmp_path)[0][1]
    data = bytearray(path.read_bytes())
    # The disk wrote the pages of the last append out of order: its first frame is missing.
    start = HEADER_BYTES + FRAME_BYTES + 100
    data[start : start + 60] = bytes(60)
    path.write_bytes(data)
    found, reading, _ = read(tmp_path)
    assert [entry.payload[:1] for entry in found] == [b"a"]
    assert reading.notes == [f"{path.name}: the last 304 bytes are a write that was never confirmed; dropped"]
    assert (reading.lost_lines, reading.last_seq, reading.last_line) == (0, 1, 1)
    JournalWriter(tmp_path, 1, 1, tail=reading.tail).append(entries_of(b"x", seq=1, line=1))
    found, reading, _ = read(tmp_path)
    assert [entry.payload[:1] for entry in found] == [b"a", b"x"]
    assert reading.notes == []


def test_rot_in_the_middle_is_skipped_and_its_lines_are_counted(tmp_path: Path) -> None:
    write(tmp_path, *[[Entry(n, 10 * n, 10, bytes([n]) * 50)] for n in range(1, 6)]).close()
    path = segment_paths(tmp_path)[0][1]
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 2 * (FRAME_BYTES + 50) - 1] ^= 1
    path.write_bytes(data)
    found, reading, _ = read(tmp_path)
    assert [entry.seq for entry in found] == [1, 3, 4, 5]
    assert reading.lost_lines == 10
    assert reading.notes == [f"{path.name}: 102 bytes are damaged", "frames 2 to 2 are lost, 10 lines with them"]


def test_swapped_frames_of_one_size_are_not_trusted(tmp_path: Path) -> None:
    write(tmp_path, *[entries_of(bytes([n]) * 50, seq=n, line=n) for n in range(4)]).close()
    path = segment_paths(tmp_path)[0][1]
    data, size = path.read_bytes(), FRAME_BYTES + 50
    cuts = [HEADER_BYTES + n * size for n in range(5)]
    frames = [data[a:b] for a, b in pairwise(cuts)]
    path.write_bytes(data[:HEADER_BYTES] + frames[0] + frames[2] + frames[1] + frames[3])
    found, reading, _ = read(tmp_path)
    assert [entry.seq for entry in found] == [1, 4]
    assert reading.lost_lines == 2


def test_a_log_line_that_holds_a_frame_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", entries_of(b"evil", b"evil")).close()
    evil = segment_paths(tmp_path / "other")[0][1].read_bytes()
    write(tmp_path, entries_of(evil * 3), entries_of(b"good", seq=1, line=1)).close()
    path = segment_paths(tmp_path)[0][1]
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 4] ^= 1
    path.write_bytes(data)
    found, reading, _ = read(tmp_path)
    assert [entry.payload for entry in found] == [b"good"]
    assert reading.lost_lines == 1


def test_a_vanished_segment_is_noticed(tmp_path: Path) -> None:
    batches = [[Entry(n, 10 * n, 10, b"p")] for n in range(1, 5)]
    write(tmp_path, *batches, rotate=True).close()
    row = segment_paths(tmp_path)
    row[2][1].unlink()
    found, reading, _ = read(tmp_path)
    assert [entry.seq for entry in found] == [1, 2, 4]
    assert reading.lost_lines == 10
    assert "the segment after it, from frame 3 and line 21 on, is missing" in reading.notes[0]
    row[3][1].unlink()
    row[4][1].unlink()
    found, reading, _ = read(tmp_path)
    assert [entry.seq for entry in found] == [1, 2]
    assert "from frame 3" in reading.notes[0]


def test_the_lost_last_segment_of_a_crashed_process_is_noticed_too(tmp_path: Path) -> None:
    write(tmp_path, entries_of(b"a")).close()
    _, reading, _ = read(tmp_path)
    writer = JournalWriter(tmp_path, 1, 1, tail=reading.tail)
    writer.append(entries_of(b"b", seq=1, line=1))
    writer.close()
    segment_paths(tmp_path)[-1][1].unlink()
    assert "from frame 2 and line 2 on, is missing" in read(tmp_path)[1].notes[0]


def test_a_damaged_header_costs_its_segment_and_the_numbers_do_not_go_back(tmp_path: Path) -> None:
    write(tmp_path, *[[Entry(n, 10 * n, 10, b"p")] for n in range(1, 4)], rotate=True).close()
    path = segment_paths(tmp_path)[1][1]
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    found, reading, aside = read(tmp_path)
    assert [entry.seq for entry in found] == [1, 3]
    assert (reading.lost_lines, reading.last_seq, reading.last_line) == (10, 3, 30)
    assert aside == [f"{path.name}: checksum mismatch in its header"]


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    later = journal_segment.VERSION + 1
    with pytest.raises(NewerFormatError, match=rf"j\.log: has format {later}"):
        scan_segment(pack_preamble(b"VIGILJNL", later) + bytes(100), tmp_path / "j.log")


def test_segments_of_an_older_format_are_read_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = journal_segment.VERSION - 1  # in which no member was withdrawn
    monkeypatch.setattr(journal_segment, "VERSION", older)
    write(tmp_path, entries_of(b"a", b"bb")).close()
    monkeypatch.undo()
    found, reading, aside = read(tmp_path)
    assert [entry.payload for entry in found] == [b"a", b"bb"] and not aside
    later = JournalWriter(tmp_path, reading.last_seq, reading.last_line, tail=reading.tail)
    later.rotate()
    later.append(entries_of(b"ccc", seq=reading.last_seq, line=reading.last_line))
    later.close()
    assert [entry.payload for entry in read(tmp_path)[0]] == [b"a", b"bb", b"ccc"]
    monkeypatch.setattr(journal_segment, "VERSION", older)  # the control: the later segment says that it is one
    with pytest.raises(NewerFormatError, match=f"has format {older + 1}"):
        read(tmp_path)


@pytest.mark.parametrize("call", ["write", "sync file"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_after_a_write_error_the_same_frames_go_to_a_new_segment(tmp_path: Path, call: str, code: int) -> None:
    writer = JournalWriter(tmp_path, 0, 0, disk=(disk := FaultyDisk()))
    writer.append(entries_of(b"a"))
    disk.fault = fail_nth(call, 1, code)
    writer.append(entries_of(b"b", b"c", seq=1, line=1))
    writer.append(entries_of(b"d", seq=3, line=3))
    writer.close()
    found, reading, _ = read(tmp_path)
    assert [entry.payload for entry in found] == [b"a", b"b", b"c", b"d"]
    assert reading.lost_lines == 0
    assert len(segment_paths(tmp_path)) == 2


def test_a_full_disk_is_an_error_each_time_until_there_is_room(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, 0, 0, disk=(disk := FaultyDisk()))
    writer.append(entries_of(b"a"))
    full = True
    disk.fault = lambda _number, name, _path: errno.ENOSPC if full and name == "write" else None
    for _ in range(50):
        with pytest.raises(JournalError, match="No space left") as caught:
            writer.append(entries_of(b"b", seq=1, line=1))
        assert isinstance(caught.value.__cause__, OSError)
        with pytest.raises(JournalError):
            writer.rotate()
    # The attempts do not use up the space that becomes free.
    assert len(segment_paths(tmp_path)) == 1
    full = False
    # More lines have come meanwhile, so the next frame differs from the one that failed.
    writer.append(entries_of(b"B", b"c", seq=1, line=1))
    writer.close()
    found, reading, _ = read(tmp_path)
    assert [entry.payload for entry in found] == [b"a", b"B", b"c"]
    assert (reading.lost_lines, reading.notes) == (0, [])


@pytest.mark.parametrize("call", ["create", "write", "sync file", "sync path"])
def test_a_rotation_that_fails_leaves_the_journal_in_use(tmp_path: Path, call: str) -> None:
    writer = JournalWriter(tmp_path, 0, 0, disk=(disk := FaultyDisk()))
    writer.append(entries_of(b"a"))
    disk.fault = fail_nth(call, 1, errno.EIO)
    with pytest.raises(JournalError, match="no new journal segment"):
        writer.rotate()
    writer.append(entries_of(b"b", seq=1, line=1))
    writer.close()
    assert [entry.payload for entry in read(tmp_path)[0]] == [b"a", b"b"]


@pytest.mark.slow
def test_every_call_of_a_run_may_fail_and_nothing_accepted_is_lost(tmp_path: Path) -> None:
    """EIO at the n-th call for every n, once with and once without everything after it failing too."""
    number, failed = 0, True
    while failed:
        for forever in (False, True):
            directory = tmp_path / f"{number}-{forever}"
            directory.mkdir()
            disk, accepted = FaultyDisk(), list[Entry]()
            disk.fault = fail_from(number, errno.EIO) if forever else fail_at(number, errno.EIO)
            _live(directory, disk, accepted)
            failed = len(disk.calls) > number
            found, reading, aside = read(directory)
            assert found[: len(accepted)] == accepted, disk.calls[number]
            assert reading.lost_lines == 0
            # With every call failing, not even an unfinished segment can be removed.
            assert aside == [] or (forever and all("cut off" in line for line in aside))
        number += 1
    assert number > 20


def _live(directory: Path, disk: Disk, accepted: list[Entry]) -> None:
    for life in range(3):
        found, reading, _ = read(directory)
        assert found[: len(accepted)] == accepted
        accepted[:] = found
        try:
            writer = JournalWriter(directory, reading.last_seq, reading.last_line, tail=reading.tail, disk=disk)
            for _ in range(3):
                batch = entries_of(b"x" * 30, b"y" * life, seq=writer.seq, line=writer.line)
                writer.append(batch)
                accepted += batch
                writer.rotate()
        except JournalError:
            continue


def test_a_journal_that_goes_back_or_skips_is_a_programming_error(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path, 10, 100)
    for entry in (Entry(10, 101, 1, b""), Entry(12, 101, 1, b""), Entry(11, 102, 1, b""), Entry(11, 99, -1, b"")):
        with pytest.raises(ValueError, match=f"frame {entry.seq} "):
            writer.append([entry])
    writer.append([])
    writer.close()


def test_starts_that_journal_nothing_leave_one_file(tmp_path: Path) -> None:
    write(tmp_path, entries_of(b"a")).close()
    for _ in range(5):
        _, reading, _ = read(tmp_path)
        writer = JournalWriter(tmp_path, 1, 1, tail=reading.tail)
        writer.rotate()
        writer.close()
    assert len(segment_paths(tmp_path)) == 2
    assert [entry.payload for entry in read(tmp_path)[0]] == [b"a"]
    assert read(tmp_path)[1].notes == []


def test_a_segment_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persistence.journal.SEGMENT_BYTES", 1000)
    write(tmp_path, *[entries_of(b"x" * 300, seq=n, line=n) for n in range(12)]).close()
    assert [path.stat().st_size for _, path in segment_paths(tmp_path)][:-1] == [
        HEADER_BYTES + 3 * 352 + FRAME_BYTES
    ] * 3
    found, reading, _ = read(tmp_path)
    assert len(found) == 12
    assert reading.notes == []
