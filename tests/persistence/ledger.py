"""A toy daemon over the store: its state is a hash chain, so a wrong recovery cannot look right.

state(seq) = SHA-256(state(seq - 1) + payload). The ledger knows every state that was ever written
towards, and its parent, and the last one that was promised to be durable.
"""

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path

from persistence.directory_contents import Recovery
from persistence.disk import Disk, replace_file
from persistence.journal_segment import Entry
from persistence.store import Store

START = b"\0" * 32


@dataclass(frozen=True)
class State:
    seq: int = 0
    line: int = 0
    digest: bytes = START

    def after(self, entry: Entry) -> "State":
        return State(entry.seq, entry.line, hashlib.sha256(self.digest + entry.payload).digest())


@dataclass
class Ledger:
    """`parents` holds every state ever attempted; `accepted` is the last one reported as durable."""

    parents: dict[State, State] = field(default_factory=dict)
    accepted: State = State()

    def accept(self, state: State) -> None:
        self.accepted = state

    def next_entries(self, rng: random.Random, state: State, *, largest: int = 2000) -> list[Entry]:
        entries = []
        for _ in range(rng.randint(1, 4)):
            count = rng.randint(0, 5)
            payload = rng.randbytes(rng.choice([0, 20, rng.randint(1, largest)]))
            entry = Entry(state.seq + 1, state.line + count, count, payload)
            self.parents[state.after(entry)] = state
            state = state.after(entry)
            entries.append(entry)
        return entries

    def descends(self, state: State, ancestor: State) -> bool:
        while state != ancestor and state in self.parents:
            state = self.parents[state]
        return state == ancestor


def fold(state: State, entries: list[Entry]) -> State:
    for entry in entries:
        state = state.after(entry)
    return state


def restored(found: Recovery) -> State:
    """The state in a recovery's snapshot."""
    if found.snapshot is None:
        return State()
    seq, line, columns = found.snapshot
    digest = columns["digest"]
    assert isinstance(digest, bytes)
    return State(seq, line, digest)


def recovered(store: Store) -> tuple[State, Recovery]:
    """The state of a daemon after recovery; gaps are skipped."""
    found = store.recover()
    return fold(restored(found), list(found.entries)), found


def save(store: Store, state: State, models: tuple[str, ...] = ()) -> None:
    store.rotate()
    store.write_snapshot(
        state.seq, state.line, {"digest": state.digest, "filler": b"x" * 300, "seq": state.seq}, models
    )


def toy_model(disk: Disk, directory: Path, generation: int, content: bytes) -> Path:
    """A file with the name and hash of a model file, without torch in it."""
    path = directory / f"model-{generation}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    replace_file(disk, path, [content])
    return path


def work(store: Store, disk: Disk, ledger: Ledger, rng: random.Random, steps: int) -> State:
    """Recover, then append, save and install models at random; `accepted` is what was durable."""
    state, found = recovered(store)
    ledger.accept(state)  # what is replayed may be reported to others, so it must not vanish again
    store.start_journal(found.last_seq, found.last_line)
    generation = max((model.generation for model in found.models), default=0)
    models: tuple[str, ...] = ()
    for _ in range(steps):
        kind = rng.random()
        if kind < 0.75:
            entries = ledger.next_entries(rng, state)
            store.append(entries)
            state = fold(state, entries)
            ledger.accept(state)
        elif kind < 0.93:
            save(store, state, models)
        else:
            generation += 1
            path = toy_model(disk, store.training, generation, rng.randbytes(400))
            models = (store.adopt_model(path).name,)
    return state
