import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from persistence import model_file
from persistence.array_bytes import Value
from persistence.directory_contents import snapshot_paths
from persistence.disk import REAL
from persistence.format_preamble import pack_preamble
from persistence.journal import JournalError
from persistence.journal_segment import Entry
from persistence.model_file import ModelError, ModelFile
from persistence.snapshot_file import SnapshotError
from persistence.state_directory import StoreError
from persistence.store import MODELS_KEPT, Store, open_store
from persistence.training_files import Attempts, read_training_attempts, write_training_attempts
from tests.persistence.disks import FaultyDisk, fail_at, fail_from, fail_nth
from tests.persistence.ledger import toy_model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


def begin(store: Store) -> list[Entry]:
    found = store.recover()
    entries = list(found.entries)
    store.start_journal(found.last_seq, found.last_line)
    return entries


def append(store: Store, seq: int, count: int = 1) -> None:
    """One frame of ten lines at `seq` and at each of the `count - 1` after it."""
    store.append([Entry(n, 10 * n, 10, b"frame %d" % n) for n in range(seq, seq + count)])


def names(directory: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in directory.glob(pattern))


def snapshot_name(seq: int) -> str:
    return f"snapshot-{seq:020d}.msgpack"


def journal_name(seq: int) -> str:
    return f"journal-{seq:020d}.log"


def test_a_fresh_directory_is_private_and_empty(directory: Path) -> None:
    with open_store(directory) as store:
        found = store.recover()
        assert (found.snapshot, list(found.entries), found.models) == (None, [], [])
        assert (found.last_seq, found.last_line, found.lost_lines) == (0, 0, 0)
        assert (found.set_aside, found.notes) == ([], [])
        store.start_journal(0, 0)
        append(store, 1)
        store.write_snapshot(1, 10, {"a": 1})
    for path in [directory, *directory.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_snapshot_and_the_frames_after_it_come_back(directory: Path) -> None:
    with open_store(directory) as store:
        begin(store)
        append(store, 1, 3)
        store.rotate()
        info = store.write_snapshot(2, 20, {"a": np.arange(3)})
        assert (info.name, info.seq, info.line, info.notes) == (snapshot_name(2), 2, 20, ())
        assert info.bytes == (directory / info.name).stat().st_size
        append(store, 4)
    with open_store(directory) as store:
        found = store.recover()
        assert found.snapshot is not None and found.snapshot[:2] == (2, 20)
        assert found.snapshot_name == snapshot_name(2)
        assert [entry.seq for entry in found.entries] == [3, 4]
        assert (found.last_seq, found.last_line) == (4, 40)


def test_the_journal_starts_only_after_recovery_and_never_goes_back(directory: Path) -> None:
    with open_store(directory) as store:
        with pytest.raises(RuntimeError, match="after recovery"):
            store.start_journal(0, 0)
        with pytest.raises(RuntimeError, match="not open"):
            append(store, 1)
        begin(store)
        append(store, 1)
    with open_store(directory) as store:
        found = store.recover()
        with pytest.raises(RuntimeError, match="after its entries were read"):
            store.start_journal(1, 10)
        list(found.entries)
        for seq, line in ((0, 10), (1, 9)):
            with pytest.raises(ValueError, match="go back"):
                store.start_journal(seq, line)


@pytest.mark.slow
def test_a_second_process_is_refused_with_the_holders_pid(directory: Path) -> None:
    with open_store(directory):
        with (
            pytest.raises(
                StoreError,
                match=rf"^{directory}: in use by process {os.getpid()}; stop that one, or name another directory$",
            ),
            open_store(directory),
        ):
            pass
        code = "import pathlib, sys, persistence.store as s\nwith s.open_store(pathlib.Path(sys.argv[1])): pass"
        done = subprocess.run([sys.executable, "-c", code, str(directory)], capture_output=True, text=True, check=False)
        assert f"in use by process {os.getpid()}" in done.stderr
    with open_store(directory):
        pass


def test_a_directory_that_is_not_safely_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name, why in [
        ("link", "is a symbolic link"),
        ("file", "is not a directory"),
        ("open", "others may write in it"),
    ]:
        with pytest.raises(StoreError, match=rf"^{tmp_path / name}: {why}"), open_store(tmp_path / name):
            pass
    (tmp_path / "readable").mkdir()
    (tmp_path / "readable").chmod(0o755)
    with open_store(tmp_path / "readable"):
        assert (tmp_path / "readable").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_a_foreign_owner_is_named(directory: Path) -> None:
    directory.mkdir(0o700)
    (directory / snapshot_name(1)).touch()
    os.chown(directory / snapshot_name(1), 7, 7)
    with pytest.raises(StoreError, match=rf"{snapshot_name(1)}: is owned by uid 7, not 0$"), open_store(directory):
        pass
    os.chown(directory, 7, 7)
    with pytest.raises(StoreError, match=rf"^{directory}: is owned by uid 7, not 0$"), open_store(directory):
        pass


@pytest.mark.parametrize(
    "name", [snapshot_name(1), journal_name(1), "model-1-0123456789abcdef.pt", "lock", "alerts.jsonl"]
)
def test_a_planted_link_or_device_is_refused(directory: Path, name: str) -> None:
    directory.mkdir(0o700)
    (directory / name).symlink_to("/etc/passwd")
    with pytest.raises(StoreError, match="is a symbolic link"), open_store(directory):
        pass
    (directory / name).unlink()
    os.mkfifo(directory / name, 0o600)
    with pytest.raises(StoreError, match="is not a regular file"), open_store(directory):
        pass


@pytest.mark.parametrize(("name", "magic"), [(snapshot_name(1), b"VIGILSNP"), (journal_name(1), b"VIGILJNL")])
def test_files_of_a_newer_format_are_refused_and_nothing_is_touched(directory: Path, name: str, magic: bytes) -> None:
    directory.mkdir(0o700)
    (directory / name).write_bytes(pack_preamble(magic, 9) + b"whatever")
    (directory / snapshot_name(7)).write_bytes(b"damaged")
    (directory / (snapshot_name(8) + ".tmp")).write_bytes(b"unfinished")
    before = names(directory, "[!lt]*")
    with open_store(directory) as store, pytest.raises(StoreError, match=rf"{name}: has format 9.*use a newer vigild"):
        store.recover()
    assert names(directory, "[!lt]*") == before


def test_the_last_snapshots_and_the_journal_behind_two_of_them_are_kept(directory: Path) -> None:
    with open_store(directory, keep=3) as store:
        begin(store)
        for seq in range(1, 9):
            append(store, seq)
            store.rotate()
            store.write_snapshot(seq, 10 * seq, {"a": seq})
        assert [info.seq for info in store.snapshots()] == [8, 7, 6]
        # The newest two need what is after frame 7; one more segment stays to announce the last.
        assert names(directory, "journal-*") == [journal_name(8), journal_name(9)]
    for name, entries in [(snapshot_name(8), []), (snapshot_name(7), [8])]:
        with open_store(directory) as store:
            found = store.recover()
            assert found.snapshot_name == name
            assert [entry.seq for entry in found.entries] == entries
            assert found.lost_lines == 0
        (directory / name).write_bytes(b"rot")


def test_a_single_snapshot_prunes_no_journal(directory: Path) -> None:
    with open_store(directory) as store:
        begin(store)
        append(store, 1)
        store.rotate()
        append(store, 2)
        store.rotate()
        store.write_snapshot(2, 20, {})
    (directory / snapshot_name(2)).unlink()
    with open_store(directory) as store:
        assert [entry.seq for entry in store.recover().entries] == [1, 2]


def test_pruning_finds_a_damaged_snapshot_and_does_not_rely_on_it(directory: Path) -> None:
    with open_store(directory) as store:
        begin(store)
        for seq in (1, 2, 3):
            append(store, seq)
            store.rotate()
            store.write_snapshot(seq, 10 * seq, {"a": seq})
    with open_store(directory) as store:
        begin(store)
        (directory / snapshot_name(2)).write_bytes(b"rot")
        append(store, 4)
        store.rotate()
        info = store.write_snapshot(4, 40, {})
        assert "set aside" in info.notes[0]
        assert [info.seq for info in store.snapshots()] == [4, 3, 1]


def seqs(store: Store) -> list[int]:
    return [info.seq for info in store.snapshots()]


def test_extra_snapshots_push_out_none_that_would_be_there_without_them(directory: Path) -> None:
    with open_store(directory, keep=2) as store, open_store(directory / "plain", keep=2) as plain:
        for each in (store, plain):
            begin(each)
        for seq in range(1, 13):
            extra = seq % 4 != 0
            for each in (store, plain):
                append(each, seq)
            store.rotate()
            store.write_snapshot(seq, 10 * seq, {}, extra=extra)
            if not extra:
                plain.rotate()
                plain.write_snapshot(seq, 10 * seq, {})
            assert set(seqs(store)) - {seq} == set(seqs(plain)) - {seq}, "beside the others there is the last one alone"
        with store.reading_back(before=13) as (_, entries):
            assert list(entries) == []
        for name in (snapshot_name(12), snapshot_name(8)):
            assert store.has_snapshot(name)
        oldest = min(int(path.stem.split("-")[1]) for path in directory.glob("journal-*.log"))
        assert oldest <= 9, "the journal reaches back to the older of the two"


def test_an_extra_snapshot_at_the_frame_of_another_makes_that_no_extra_one(directory: Path) -> None:
    with open_store(directory, keep=2) as store:
        begin(store)
        append(store, 1)
        store.write_snapshot(1, 10, {})
        store.write_snapshot(1, 10, {}, extra=True)
        append(store, 2)
        store.write_snapshot(2, 20, {}, extra=True)
        store.write_snapshot(2, 20, {})
        append(store, 3)
        store.write_snapshot(3, 30, {}, extra=True)
        assert seqs(store) == [3, 2, 1]


def test_pinned_snapshots_and_their_models_stay(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persistence.store.MODELS_KEPT", 1)
    with open_store(directory, keep=2) as store:
        begin(store)
        models = []
        for seq in range(1, 7):
            path = toy_model(REAL, store.training, seq, b"model %d" % seq)
            models.append(store.adopt_model(path).name)
            append(store, seq)
            store.rotate()
            store.write_snapshot(seq, 10 * seq, {}, [models[-1]])
            if seq == 2:
                store.pin_snapshot(snapshot_name(2))
        assert [(info.seq, info.pinned) for info in store.snapshots()] == [(6, False), (5, False), (2, True)]
        assert [model.generation for model in store.models()] == [6, 5, 2]
        store.unpin_snapshot(snapshot_name(2))
        store.unpin_snapshot(snapshot_name(2))
        store.write_snapshot(6, 60, {}, [models[-1]])
        assert [model.generation for model in store.models()] == [6, 5]
        with pytest.raises(FileNotFoundError):
            store.pin_snapshot(snapshot_name(2))
        with pytest.raises(ValueError, match="not the name of a snapshot"):
            store.pin_snapshot("../lock")


def test_the_last_generations_stay_to_go_back_to_though_nothing_needs_them(directory: Path) -> None:
    with open_store(directory, keep=2) as store:
        begin(store)

        def train(generation: int) -> ModelFile:
            return store.adopt_model(
                store.training / model_file.write_model(store.training, {"generation": generation}).name
            )

        for seq in range(1, MODELS_KEPT + 4):
            model = train(seq)
            append(store, seq)
            store.rotate()
            store.write_snapshot(seq, 10 * seq, {}, [model.name])
        newest = list(range(MODELS_KEPT + 3, 3, -1))
        assert [model.generation for model in store.models()] == newest and len(newest) == MODELS_KEPT
        back = store.models()[-1]
        store.load_model(back.name, back.sha256)
        for seq in range(MODELS_KEPT + 4, MODELS_KEPT + 8):
            train(seq)
            append(store, seq)
            store.rotate()
            store.write_snapshot(seq, 10 * seq, {}, [back.name])
        assert back.name in names(directory, "model-*")  # in force again, so it outlives newer ones
        assert [model.generation for model in store.models()] == [*range(MODELS_KEPT + 7, 7, -1), back.generation]


def test_old_models_go_when_neither_snapshot_nor_journal_needs_them(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persistence.store.MODELS_KEPT", 1)
    with open_store(directory, keep=2) as store:
        begin(store)
        columns: dict[str, Value] = {"generation": 1, "w": np.zeros(3, np.float32)}
        first = store.adopt_model(store.training / model_file.write_model(store.training, columns).name)
        second = store.adopt_model(toy_model(REAL, store.training, 2, b"2"))
        for seq in (1, 2):
            append(store, seq)
            store.rotate()
            store.write_snapshot(seq, 10 * seq, {}, [second.name])
        assert [model.name for model in store.models()] == [second.name]
        assert not (directory / first.name).exists()
        third = store.adopt_model(directory / model_file.write_model(directory, {**columns, "generation": 3}).name)
        store.adopt_model(toy_model(REAL, store.training, 4, b"4"))
        # Generation 3 is in force from frame 2 to frame 4: only frames refer to it.
        assert store.load_model(third.name, third.sha256)["generation"] == 3
        append(store, 3)
        append(store, 4)
        store.rotate()
        store.write_snapshot(4, 40, {}, [second.name])
        assert third.name in names(directory, "model-*")
        for seq in (5, 6):
            append(store, seq)
            store.rotate()
            store.write_snapshot(seq, 10 * seq, {}, [second.name])
        assert third.name not in names(directory, "model-*")


def test_a_damaged_model_is_set_aside_at_recovery_or_when_it_is_read(directory: Path) -> None:
    with open_store(directory) as store:
        begin(store)
        made = [
            store.adopt_model(store.training / model_file.write_model(store.training, {"generation": n}).name)
            for n in (1, 2)
        ]
    (directory / made[0].name).write_bytes(b"rot")
    with open_store(directory) as store:
        found = store.recover()
        assert found.models == [made[1]]
        assert found.set_aside == [made[0].name]
        with pytest.raises(ModelError, match="is missing"):
            store.load_model(made[0].name)
        with pytest.raises(ModelError, match="checksum"):
            store.load_model(made[1].name, "0" * 64)
        assert (directory / made[1].name).exists()
        (directory / made[1].name).write_bytes(b"rot")
        with pytest.raises(ModelError, match="checksum"):
            store.load_model(made[1].name, made[1].sha256)
        assert found.set_aside == [model.name for model in made]
        assert (directory / (made[1].name + ".bad")).exists()
        # A second recovery in the same process still reports the faults of the first one.
        assert store.recover().set_aside == [model.name for model in made]


def test_verify_names_what_is_wrong(directory: Path) -> None:
    with open_store(directory) as store:
        begin(store)
        model = store.adopt_model(toy_model(REAL, store.training, 1, b"1"))
        for seq in (1, 2, 3):
            store.write_snapshot(seq, 10 * seq, {}, [model.name] if seq == 3 else [])
        (directory / model.name).unlink()
        data = bytearray((directory / snapshot_name(2)).read_bytes())
        data[-1] ^= 1
        (directory / snapshot_name(2)).write_bytes(data)
        found = {info.seq: error for info, error in store.verify_snapshots()}
        assert found[1] is None
        assert found[2] is not None and found[2].startswith(f"{directory / snapshot_name(2)}: ")
        assert found[3] is not None and found[3].endswith("is missing")


def test_leftovers_and_the_trainers_files_are_removed(directory: Path) -> None:
    directory.mkdir(0o700)
    (directory / "training" / "deep").mkdir(parents=True)
    (directory / "training" / "deep" / "file").touch()
    (directory / "training").chmod(0o700)
    (directory / (snapshot_name(3) + ".tmp")).touch()
    (directory / "mine.tmp").touch()
    with open_store(directory) as store:
        assert list(store.training.iterdir()) == []
        assert store.recover().notes == [f"{snapshot_name(3)}.tmp: removed, an unfinished write"]
    assert names(directory, "*.tmp") == ["mine.tmp"]


def test_the_newest_training_run_and_the_count_of_failures_are_kept(directory: Path) -> None:
    with open_store(directory) as store:
        for generation in (1, 2):
            (store.training / f"training-{generation}.msgpack").touch(0o600)
            (store.training / f"training-{generation}.part").touch(0o600)
        write_training_attempts(store.training, Attempts(failures=2, failures_total=3, error="out of cheese"))
        (store.training / "training-2.part.tmp").touch(0o600)
        (store.training / "model-2-0123456789abcdef.pt").touch(0o600)
        (store.training / "training-3.msgpack").symlink_to(directory / "lock")
        (store.training / "training-4.msgpack").touch()
        (store.training / "training-4.msgpack").chmod(0o666)
    with open_store(directory) as store:
        stay = {"training-2.msgpack", "training-2.part", "attempts.json"}
        assert {path.name for path in store.training.iterdir()} == stay
        assert read_training_attempts(store.training).failures == 2
        (store.training / "attempts.json").write_bytes(b"{rot")
        assert read_training_attempts(store.training) == Attempts()
        for count in (-1, 1 << 64):  # the next count could not be written
            (store.training / "attempts.json").write_text(f'{{"failures": {count}}}')
            assert read_training_attempts(store.training) == Attempts()
    assert (directory / "lock").exists()


def test_a_segment_whose_creation_was_interrupted_is_removed_with_a_note_and_a_truncated_one_is_damage(
    directory: Path,
) -> None:
    with open_store(directory) as store:
        begin(store)
        append(store, 1, 3)
    unborn = directory / f"{journal_name(4)}.tmp"
    unborn.write_bytes(b"VIGIL")
    with open_store(directory) as store:
        found = store.recover()
        assert len(list(found.entries)) == 3
        assert (found.set_aside, found.notes) == ([], [f"{unborn.name}: removed, an unfinished write"])
        store.start_journal(found.last_seq, found.last_line)
    os.truncate(directory / journal_name(4), 0)
    with open_store(directory) as store:
        found = store.recover()
        assert len(list(found.entries)) == 3
        assert found.set_aside == [journal_name(4)]


def test_losing_everything_is_not_taken_for_a_fresh_start(directory: Path) -> None:
    with open_store(directory) as store:
        begin(store)
        append(store, 1)
    for name in names(directory, "journal-*"):
        (directory / name).unlink()
    with open_store(directory) as store:
        assert store.recover().notes == ["neither snapshot nor journal is left of what this directory held"]


def test_numbers_do_not_go_back_behind_those_of_damaged_files(directory: Path) -> None:
    with open_store(directory) as store:
        begin(store)
        append(store, 1, 5)
        store.write_snapshot(5, 50, {"a": 1})
    data = (directory / snapshot_name(5)).read_bytes()
    (directory / snapshot_name(5)).write_bytes(data[:-1] + b"?")
    (directory / journal_name(1)).unlink()
    for _ in range(2):
        with open_store(directory) as store:
            found = store.recover()
            assert list(found.entries) == []
            assert (found.last_seq, found.last_line, found.lost_lines) == (5, 50, 50)
    with open_store(directory) as store:
        begin(store)
        append(store, 6)
    with open_store(directory) as store:
        found = store.recover()
        assert [entry.seq for entry in found.entries] == [6]
        assert (found.last_line, found.lost_lines) == (60, 50)


def test_a_frame_that_cannot_be_applied_is_kept(directory: Path) -> None:
    with open_store(directory) as store:
        for _ in range(2):
            name = store.set_frame_aside(Entry(12, 100, 5, b"poison"))
            assert name == f"frame-{12:020d}.bad"
    assert (directory / name).read_bytes() == b"poison"


def test_of_many_frames_that_cannot_be_applied_the_last_are_kept(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("persistence.store.FRAMES_SET_ASIDE", 5)
    with open_store(directory) as store:
        begin(store)
        (directory / "snapshot-1.bad").touch()
        for seq in range(1, 21):
            store.set_frame_aside(Entry(seq, 10 * seq, 10, b"frame %d" % seq))
        assert names(directory, "frame-*.bad") == [f"frame-{seq:020d}.bad" for seq in range(16, 21)]
        assert (directory / "snapshot-1.bad").exists() and len(caplog.records) == 15
        assert caplog.records[0].message.startswith(f"frame-{1:020d}.bad is removed: ")


def test_a_frame_is_set_aside_though_older_ones_cannot_be_removed(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("persistence.store.FRAMES_SET_ASIDE", 1)
    disk = FaultyDisk(lambda _number, name, path: errno.EPERM if (name, path.suffix) == ("unlink", ".bad") else None)
    with open_store(directory, disk=disk) as store:
        begin(store)
        for seq in (1, 2):
            assert store.set_frame_aside(Entry(seq, 10 * seq, 10, b"frame")) == f"frame-{seq:020d}.bad"
    assert len(names(directory, "frame-*.bad")) == 2
    assert f"frame-{1:020d}.bad cannot be removed" in caplog.text


def test_recovery_may_be_repeated_while_the_journal_is_open(directory: Path) -> None:
    with open_store(directory) as store:
        begin(store)
        append(store, 1, 2)
        assert [entry.seq for entry in begin(store)] == [1, 2]
        append(store, 3)
        assert [entry.seq for entry in begin(store)] == [1, 2, 3]


@pytest.mark.parametrize("call", ["create", "write", "sync file", "rename", "sync path"])
def test_a_snapshot_that_fails_leaves_the_journal_and_the_last_one_usable(directory: Path, call: str) -> None:
    with open_store(directory, disk=(disk := FaultyDisk())) as store:
        begin(store)
        append(store, 1)
        store.write_snapshot(1, 10, {"a": 1})
        append(store, 2)
        disk.fault = fail_nth(call, 1, errno.ENOSPC)
        with pytest.raises(OSError, match="No space left"):
            store.write_snapshot(2, 20, {"a": 2})
        append(store, 3)
    with open_store(directory) as store:
        found = store.recover()
        assert found.snapshot is not None
        assert found.snapshot[0] + len(list(found.entries)) == 3
        assert found.set_aside == []


def test_a_snapshot_is_safe_though_tidying_up_after_it_fails(directory: Path) -> None:
    with open_store(directory, keep=1, disk=(disk := FaultyDisk())) as store:
        begin(store)
        store.write_snapshot(1, 10, {"a": 1})
        disk.fault = lambda _number, name, path: errno.EIO if name == "unlink" and path.suffix != ".tmp" else None
        info = store.write_snapshot(2, 20, {"a": 2})
        assert len(info.notes) == 1 and info.notes[0].startswith("not tidied up: ")
        disk.fault = None
        assert store.write_snapshot(3, 30, {"a": 3}).notes == ()
        assert [info.seq for info in store.snapshots()] == [3]


@pytest.mark.slow
def test_every_call_of_a_process_may_fail_and_nothing_accepted_is_lost(tmp_path: Path) -> None:
    """The n-th call fails, for every n, for good or once; the next life on a sound disk has it all."""
    number, failed = 0, True
    while failed:
        for forever in (False, True):
            directory = tmp_path / f"{number}-{forever}"
            disk = FaultyDisk(fail_from(number, errno.EIO) if forever else fail_at(number, errno.EIO))
            accepted = _live(directory, disk)
            failed = len(disk.calls) > number
            with open_store(directory, keep=2) as store:
                found = store.recover()
                first = found.snapshot[0] if found.snapshot is not None else 0
                seqs = [entry.seq for entry in found.entries]
                assert seqs == list(range(first + 1, first + 1 + len(seqs)))
                assert first + len(seqs) >= accepted, disk.calls[number]
                assert found.lost_lines == 0, disk.calls[number]
        number += 1
    assert number > 60


def _live(directory: Path, disk: FaultyDisk) -> int:
    """Three short processes with two snapshots each; returns the last seq that was durable."""
    accepted = 0
    for _ in range(3):
        with open_store(directory, keep=2, disk=disk) as store:
            try:
                begin(store)
            except (StoreError, JournalError):
                continue
            assert store._journal is not None
            for _ in range(2):
                seq = store._journal.seq + 1
                try:
                    append(store, seq)
                    accepted = seq
                    store.rotate()
                    store.write_snapshot(seq, 10 * seq, {"a": seq})
                except (JournalError, OSError):
                    continue
    return accepted


def test_a_snapshot_that_a_frame_needs_is_kept_until_two_states_after_it_are(directory: Path) -> None:
    with open_store(directory, keep=2) as store:
        begin(store)
        for seq in (1, 2):
            append(store, seq)
            store.write_snapshot(seq, 10 * seq, {"seq": seq})
        store.hold_snapshot(snapshot_name(1))
        sha256, columns = store.load_snapshot(snapshot_name(1))
        assert columns == {"seq": 1}
        append(store, 3)  # the frame that names it
        store.release_snapshot(snapshot_name(1))
        held = []
        for seq in (3, 4, 5):
            if seq > 3:
                append(store, seq)
            store.write_snapshot(seq, 10 * seq, {"seq": seq})
            held.append((directory / snapshot_name(1)).exists())
    # The older of the last two states must be past the frame.
    assert held == [True, True, False]
    with open_store(directory) as store, pytest.raises(FileNotFoundError):
        begin(store)
        store.load_snapshot(snapshot_name(1), sha256)


def test_a_snapshot_is_restored_by_its_contents_not_by_its_name_alone(directory: Path) -> None:
    with open_store(directory) as store:
        begin(store)
        store.write_snapshot(0, 0, {"a": 1})
        sha256, _ = store.load_snapshot(snapshot_name(0))
        assert store.load_snapshot(snapshot_name(0), sha256)[1] == {"a": 1}
        with pytest.raises(SnapshotError, match="another snapshot"):
            store.load_snapshot(snapshot_name(0), "0" * 64)
        with pytest.raises(ValueError, match="not the name"):
            store.load_snapshot("../" + snapshot_name(0))


def test_frames_are_read_back_while_the_journal_is_written(directory: Path) -> None:
    with open_store(directory) as store:
        begin(store)
        append(store, 1, 3)
        store.write_snapshot(2, 20, {"a": 1})
        store.rotate()
        append(store, 4, 4)
        with store.reading_back(6) as (columns, entries):
            assert columns == {"a": 1}
            assert [entry.seq for entry in entries] == [3, 4, 5]
        append(store, 8)
        assert [entry.seq for entry in store.recover().entries] == [3, 4, 5, 6, 7, 8]


def test_a_start_on_a_full_disk_opens_the_journal_once_there_is_room(directory: Path) -> None:
    with open_store(directory) as store:
        begin(store)
        append(store, 1)
    disk = FaultyDisk()
    with open_store(directory, disk=disk) as store:
        found = store.recover()
        assert [entry.seq for entry in found.entries] == [1]
        disk.fault = lambda _number, name, _path: errno.ENOSPC if name == "write" else None
        with pytest.raises(JournalError):
            store.start_journal(1, 10)
        with pytest.raises(JournalError):
            append(store, 2)
        disk.fault = None
        append(store, 2)
    with open_store(directory) as store:
        found = store.recover()
        assert [entry.seq for entry in found.entries] == [1, 2]
        assert found.notes == []


def test_a_snapshot_that_is_pruned_while_they_are_listed_is_left_out(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(directory) as store:
        begin(store)
        for seq in (1, 2):
            append(store, seq)
            store.write_snapshot(seq, seq, {})

        def pruned_meanwhile(where: Path) -> list[tuple[int, Path]]:
            found = snapshot_paths(where)
            found[-1][1].unlink()
            return found

        monkeypatch.setattr("persistence.store.snapshot_paths", pruned_meanwhile)
        assert [info.seq for info in store.snapshots()] == [2]


def test_files_are_loaded_and_released_by_threads_while_another_prunes(directory: Path) -> None:
    """Training loads its model in a thread of its own. Each file that was asked for is one more to look through."""
    interval = sys.getswitchinterval()
    with open_store(directory) as store, ThreadPoolExecutor(2) as pool:
        begin(store)
        stop = threading.Event()

        def load_models() -> None:
            asked = 0
            while not stop.is_set():
                asked += 1
                with pytest.raises(ModelError, match="is missing"):
                    store.load_model(f"model-{asked}-{asked:016x}.pt")

        def release_snapshots() -> None:
            released = 0
            while not stop.is_set():
                released += 1
                store.release_snapshot(snapshot_name(released % 10_000))

        sys.setswitchinterval(1e-6)
        try:
            users = [pool.submit(load_models), pool.submit(release_snapshots)]
            for seq in range(1, 60):
                append(store, seq)
                assert store.write_snapshot(seq, 10 * seq, {"a": seq}).notes == ()
        finally:
            sys.setswitchinterval(interval)
            stop.set()
        for user in users:
            user.result()
