"""A toy daemon as a process of its own, which the fault tests kill, starve and cut off from its disk:

    python -m tests.faults.worker DIRECTORY LIFE ROUNDS [SABOTAGE]

It recovers DIRECTORY, then appends frames, writes alerts, installs models and saves snapshots as the daemon does,
in one thread. Its state is a hash chain (tests/persistence/ledger.py), so a wrong recovery cannot look right. Of
every frame it says what the state will be, and later that the frame is durable; one line each on standard output:

    began SEQ LINE DIGEST | state SEQ LINE DIGEST | durable SEQ | failed WHY | ended

LIFE seeds the contents; ROUNDS is how many times it goes through frames, model, frames, snapshot; with 0 it only
recovers. What it began with counts as promised: a daemon has told others by then.
SABOTAGE is "early" (says durable before it appends) or "no recovery sync".
Exit status: 0 ended, 74 the disk failed at the start; anything else is a fault of ours.
"""

import json
import random
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from persistence import record_space
from persistence.disk import REAL, Disk, File
from persistence.journal import JournalError
from persistence.journal_segment import Entry
from persistence.jsonl import JsonlWriter, open_jsonl
from persistence.record_space import RecordSpace
from persistence.state_directory import StoreError
from persistence.store import Store, open_store
from tests.persistence.ledger import State, restored, save, toy_model

FAILED = 74
PARTS = 100_000  # in its process, so that small parts are rotated and none is removed
ALERT_BYTES = PARTS * 1000
KEEP = 2
APPENDS = 4  # before and after the model of a round


def main(arguments: list[str]) -> int:
    directory, life, rounds = Path(arguments[0]), arguments[1], int(arguments[2])
    sabotage = arguments[3] if len(arguments) > 3 else ""
    record_space.PARTS = PARTS
    disk: Disk = _WithoutRecoverySync() if sabotage == "no recovery sync" else REAL
    try:
        with open_store(directory, keep=KEEP, disk=disk) as store, open_alerts(directory) as alerts:
            worker = Worker(store, alerts, random.Random(life), early=sabotage == "early")
            worker.begin()
            if rounds:
                worker.open_journal()
            for _ in range(rounds):
                worker.go_round()
            say("ended")
    except (StoreError, JournalError, OSError) as exc:
        say("failed", exc)
        return FAILED
    return 0


def open_alerts(directory: Path) -> AbstractContextManager[JsonlWriter]:
    space = RecordSpace(directory, ["alerts.jsonl"], max_bytes=ALERT_BYTES)
    return open_jsonl(directory / "alerts.jsonl", space=space, keep_free=0)


def say(*words: object) -> None:
    print(" ".join(map(str, words)), flush=True)


class Worker:
    """The daemon's order: frames are durable, then confirmed, then alerts are written, durable before a snapshot is."""

    def __init__(self, store: Store, alerts: JsonlWriter, rng: random.Random, *, early: bool) -> None:
        self._store = store
        self._rng = rng
        self._early = early
        self._alerts = Records(alerts)
        self._state = State()
        self._last = (0, 0)
        self._generation = 0
        self._models: tuple[str, ...] = ()

    def begin(self) -> None:
        found = self._store.recover()
        self._state = restored(found)
        self._generation = max((model.generation for model in found.models), default=0)
        self._models = tuple(model.name for model in found.models[:1])
        for entry in found.entries:
            self._apply(entry)
        self._last = (found.last_seq, found.last_line)
        say("began", self._state.seq, self._state.line, self._state.digest.hex())

    def open_journal(self) -> None:
        self._store.start_journal(*self._last)

    def go_round(self) -> None:
        for _ in range(APPENDS):
            self._append([self._entry(self._state)])
        self._install_model()
        for _ in range(APPENDS):
            first = self._entry(self._state)
            self._append([first, self._entry(self._state.after(first))])
        self._save()

    def _entry(self, state: State, payload: bytes = b"") -> Entry:
        count = self._rng.randint(0, 5)
        payload += self._rng.randbytes(self._rng.choice([0, 20, 3000]))
        return Entry(state.seq + 1, state.line + count, count, payload)

    def _append(self, entries: list[Entry]) -> None:
        state = self._state
        for entry in entries:
            state = state.after(entry)
            say("state", state.seq, state.line, state.digest.hex())
        if self._early:
            say("durable", state.seq)
        try:
            self._store.append(entries)
        except JournalError:
            # As the sequencer: try the same frames again. After two failures the disk is not coming back.
            self._store.append(entries)
        say("durable", state.seq)
        for entry in entries:
            self._apply(entry)

    def _apply(self, entry: Entry) -> None:
        self._state = self._state.after(entry)
        self._alerts.write([self._state])

    def _install_model(self) -> None:
        self._generation += 1
        content = self._rng.randbytes(400)
        try:
            name = self._store.adopt_model(toy_model(REAL, self._store.training, self._generation, content)).name
        except OSError:
            return  # as when a training run fails: the model before stays in force
        self._append([self._entry(self._state, name.encode() + b"\n")])
        self._models = (name,)

    def _save(self) -> None:
        try:
            self._alerts.sync()
            save(self._store, self._state, self._models)
        except (OSError, JournalError):
            return  # as a periodic snapshot that fails: the one before stays, the next one comes


class Records:
    """The alerts of a chain of states, each written once, whatever fails in between."""

    def __init__(self, writer: JsonlWriter) -> None:
        self._writer = writer
        in_file = json.loads(writer.last)["id"] if writer.last is not None else 0
        # Either may be behind: the mark after a kill between the two writes, the file after a rotation.
        self._last = max(in_file, int(writer.last_id or 0))
        self._pending: list[bytes] = []

    def write(self, states: Iterable[State]) -> None:
        for state in states:
            if state.seq > self._last:
                self._last = state.seq
                self._pending.append(json.dumps({"id": state.seq, "digest": state.digest.hex()}).encode())
        try:
            self._flush()
        except OSError:
            return  # they wait for the next write

    def sync(self) -> None:
        """Raises OSError."""
        self._flush()
        self._writer.sync()

    def _flush(self) -> None:
        if self._pending:
            self._writer.append(self._pending, str(self._last))
            self._pending = []


class _WithoutRecoverySync:
    """The real disk, but a file that is there already is never made durable before it is read."""

    def create(self, path: Path) -> File:
        return REAL.create(path)

    def append(self, path: Path) -> File:
        return REAL.append(path)

    def rename(self, source: Path, target: Path) -> None:
        REAL.rename(source, target)

    def unlink(self, path: Path) -> None:
        REAL.unlink(path)

    read = staticmethod(REAL.read)

    def sync(self, path: Path) -> None:
        if not path.name.startswith("journal-"):
            REAL.sync(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
