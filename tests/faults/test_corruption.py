"""Rot: whatever happens to one file, recovery gives a correct state, or reports what is missing."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from persistence.disk import REAL
from persistence.journal_segment import HEADER_BYTES, Entry, scan_segment
from persistence.model_file import ModelError
from persistence.snapshot_file import check_snapshot
from persistence.store import open_store
from tests.persistence.ledger import Ledger, State, fold, restored, save, toy_model

DAMAGES = int(os.environ.get("VIGILD_FAULTS", "500"))

Damage = Callable[[Path, random.Random], None]


class Original:
    """A directory with every kind of file: what it holds, frame by frame."""

    def __init__(self, directory: Path) -> None:
        rng = random.Random(5)
        ledger = Ledger()
        self.directory = directory
        self.entries: dict[int, Entry] = {}
        self.states = {0: State()}
        state = State()
        for life in range(3):
            with open_store(directory, keep=3) as store:
                found = store.recover()
                state = fold(restored(found), list(found.entries))
                store.start_journal(found.last_seq, found.last_line)
                model = store.adopt_model(toy_model(REAL, store.training, life + 1, rng.randbytes(300)))
                for step in range(8):
                    entries = ledger.next_entries(rng, state, largest=600)
                    store.append(entries)
                    for entry in entries:
                        state = state.after(entry)
                        self.entries[entry.seq], self.states[entry.seq] = entry, state
                    if step in (2, 5):
                        save(store, state, (model.name,))
        self.last = state
        self.models = {path.name for path in directory.glob("model-*.pt")}
        # Older generations are kept to go back to; nothing that is known depends on them.
        self.named = {name for path in directory.glob("snapshot-*") for name in check_snapshot(path)[1]}
        self.files = sorted(path.name for path in directory.iterdir() if path.is_file())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return Original(tmp_path_factory.mktemp("original") / "state")


def _cut(path: Path, rng: random.Random) -> None:
    size = path.stat().st_size
    os.truncate(path, rng.choice([0, 1, size // 2, size - 1, rng.randint(0, size - 1)]))


def _delete(path: Path, _rng: random.Random) -> None:
    path.unlink()


def _flip_a_bit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _extend(path: Path, rng: random.Random) -> None:
    with path.open("ab") as file:
        file.write(rng.choice([b"\0", rng.randbytes(1), bytes(4096), rng.randbytes(300)]))


def _zero(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    stop = min(start + rng.choice([1, 64, 512, 4096]), len(data))
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)


def _swap_parts(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    a, b = sorted(rng.sample(range(len(data) + 1), 2))
    path.write_bytes(data[:a] + data[b:] + data[a:b])


def _swap_with_a_sibling(path: Path, rng: random.Random) -> None:
    kind = path.name.partition("-")[0]
    sibling = rng.choice(sorted(path.parent.glob(kind + "*")))
    mine, other = path.read_bytes(), sibling.read_bytes()
    sibling.write_bytes(mine)
    path.write_bytes(other)


_DAMAGES: list[Damage] = [_cut, _delete, _flip_a_bit, _extend, _zero, _swap_parts, _swap_with_a_sibling]


def _check(original: Original, directory: Path, damaged: set[str]) -> None:
    """Recover, compare the result with the original, and continue from it."""
    with open_store(directory, keep=3) as store:
        found = store.recover()
        state = restored(found)
        assert state == original.states[state.seq]
        lines, last_seq = state.line, state.seq
        for entry in found.entries:
            assert entry == original.entries[entry.seq]
            assert entry.seq > last_seq
            lines, last_seq = lines + entry.count, entry.seq
            state = state.after(entry)
        # Every line is either in the state or counted as lost.
        assert lines + found.lost_lines == found.last_line
        reported = "; ".join(found.set_aside + found.notes)
        ends_early = any(_ends_with_an_earlier_frame(original.directory / name, directory / name) for name in damaged)
        if state != original.last:
            assert reported or ends_early, "a loss and not a word"
        for name in original.models - {model.name for model in found.models}:
            if name not in found.set_aside:
                with pytest.raises(ModelError, match="is missing"):
                    store.load_model(name)
        if (found.last_seq != original.last.seq or found.last_line != original.last.line) and not ends_early:
            assert any(word in reported for word in ("never confirmed", "missing", "set aside", "neither")), reported
        errors = [error for _, error in store.verify_snapshots() if error is not None]
        # Damage in what recovery did not read is found by `verify_snapshots`.
        unread = [name for name in damaged if name.startswith("snapshot-") and (directory / name).exists()]
        assert bool(errors) == bool(unread or damaged & original.named), errors
        store.start_journal(found.last_seq, found.last_line)
        more = Entry(found.last_seq + 1, found.last_line + 7, 7, b"more")
        store.append([more])
    with open_store(directory, keep=3) as store:
        again = store.recover()
        entries = list(again.entries)
        assert entries[-1:] == [more]
        assert (again.last_seq, again.last_line) == (more.seq, more.line)


def _ends_with_an_earlier_frame(whole: Path, now: Path) -> bool:
    """The last segment, cut exactly where a frame ends, is what it was when it ended there: nothing can tell."""
    if not now.exists() or whole.name != max(path.name for path in whole.parent.glob("journal-*")):
        return False
    data = now.read_bytes()
    if len(data) < HEADER_BYTES or not whole.read_bytes().startswith(data):
        return False
    found = scan_segment(data, now)
    return (found.torn, found.rotten) == (0, 0)


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_one_damage_anywhere_is_survived_and_never_silent(original: Original, tmp_path: Path) -> None:
    rng = random.Random(11)
    for number in range(DAMAGES):
        directory = tmp_path / "state"
        shutil.copytree(original.directory, directory)
        name = rng.choice(original.files)
        damage = rng.choice(_DAMAGES)
        before = _contents(directory)
        damage(directory / name, rng)
        damaged = {name for name, _ in before.items() ^ _contents(directory).items()}
        try:
            _check(original, directory, damaged)
        except Exception as exc:
            exc.add_note(f"damage {number}: {damage.__name__} of {name}")
            raise
        shutil.rmtree(directory)


def test_one_damaged_snapshot_costs_nothing(original: Original, tmp_path: Path) -> None:
    rng = random.Random(2)
    newest = max(name for name in original.files if name.startswith("snapshot-"))
    for number in range(40):
        directory = tmp_path / f"state-{number}"
        shutil.copytree(original.directory, directory)
        (_delete if number == 0 else _flip_a_bit)(directory / newest, rng)
        with open_store(directory, keep=3) as store:
            found = store.recover()
            assert fold(restored(found), list(found.entries)) == original.last
            assert found.lost_lines == 0
            assert found.set_aside == ([] if number == 0 else [newest])
            assert number == 0 or (directory / (newest + ".bad")).exists()


def test_the_check_would_notice_a_frame_that_is_left_out(original: Original, tmp_path: Path) -> None:
    """The control: a recovery that lacks one frame must fail the check above."""
    directory = tmp_path / "state"
    shutil.copytree(original.directory, directory)
    poorer = Original.__new__(Original)
    vars(poorer).update(vars(original), entries=dict(original.entries))
    del poorer.entries[original.last.seq]
    with pytest.raises(KeyError):
        _check(poorer, directory, set())
