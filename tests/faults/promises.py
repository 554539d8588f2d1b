"""What a worker (tests/faults/worker.py) reported as durable before it died, and whether its directory has it."""

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from persistence.journal_segment import Entry
from persistence.jsonl import open_jsonl, record_files
from persistence.store import open_store
from tests.faults.worker import KEEP, Records
from tests.persistence.ledger import State, fold, recovered, restored

ROOT = Path(__file__).parents[2]


def worker_command(directory: Path, life: str, rounds: int, sabotage: str = "") -> list[str]:
    return [sys.executable, "-m", "tests.faults.worker", str(directory), life, str(rounds), sabotage]


@dataclass
class Promises:
    """The reports of all processes on one directory: `states` by seq, `durable` the last seq reported as durable."""

    states: dict[int, State] = field(default_factory=lambda: {0: State()})
    durable: int = 0
    ended: bool = False

    def hear(self, lines: Iterable[str]) -> list[str]:
        """Add the reports of a worker, oldest first; returns contradictions to earlier reports."""
        wrong = []
        self.ended = False
        for line in lines:
            match line.split():
                case ["began", seq, line_number, digest]:
                    state = State(int(seq), int(line_number), bytes.fromhex(digest))
                    if self.states.get(state.seq) != state or state.seq < self.durable:
                        wrong.append(f"a life began at {state}, {self.durable} was durable")
                    self.durable = state.seq  # from here on others know it
                case ["state", seq, line_number, digest]:
                    self.states[int(seq)] = State(int(seq), int(line_number), bytes.fromhex(digest))
                case ["durable", seq]:
                    self.durable = int(seq)
                case ["ended"]:
                    self.ended = True
                case ["failed", *_]:
                    self.ended = False
                case _:
                    wrong.append(f"the worker said {line!r}")
        return wrong

    def broken_in(self, directory: Path) -> list[str]:
        """Recover `directory`, append a frame, and return what differs from the reports. May be called again."""
        with open_store(directory, keep=KEEP) as store:
            state, found = recovered(store)
            wrong = [f"not sound: {error}" for _, error in store.verify_snapshots() if error is not None]
            if state.seq < self.durable or self.states.get(state.seq) != state:
                wrong.append(f"recovered {state.seq}, durable was {self.durable}: {found.notes}")
            if found.lost_lines or found.set_aside:
                wrong.append(f"{found.lost_lines} lines lost, set aside {found.set_aside}: {found.notes}")
            store.start_journal(found.last_seq, found.last_line)
            more = Entry(found.last_seq + 1, found.last_line + 1, 1, b"more")
            store.append([more])
            self.states[more.seq] = state.after(more)
            self.durable = more.seq
        with open_store(directory, keep=KEEP) as store:
            found = store.recover()
            start, entries = restored(found), list(found.entries)
            present = {model.name for model in found.models}
            named = {entry.payload.partition(b"\n")[0].decode() for entry in entries if entry.payload[:6] == b"model-"}
            if missing := named - present:
                wrong.append(f"models that frames name are gone: {missing}")
            if fold(start, entries) != state.after(more):
                wrong.append(f"life after it does not end at {more.seq}: {found.notes}")
        return wrong + self._wrong_alerts(directory, start, entries)

    def _wrong_alerts(self, directory: Path, state: State, entries: list[Entry]) -> list[str]:
        with open_jsonl(directory / "alerts.jsonl") as writer:
            records = Records(writer)
            for entry in entries:
                state = state.after(entry)
                records.write([state])
        files = record_files(directory / "alerts.jsonl")
        lines = [line for file in files for line in file.read_bytes().splitlines()]
        written = [(record["id"], record["digest"]) for record in map(json.loads, lines)]
        expected = [(seq, self.states[seq].digest.hex()) for seq in range(1, state.seq + 1)]
        return [] if written == expected else [f"alerts {_difference(written, expected)}"]


def _difference(written: list[tuple[int, str]], expected: list[tuple[int, str]]) -> str:
    if len(set(written)) < len(written):
        return "are there twice"
    extra, missing = set(written) - set(expected), set(expected) - set(written)
    return f"lacking {sorted(missing)[:5]}, wrong {sorted(extra)[:5]}"


def live(promises: Promises, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run a worker until it ends, in whatever way."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]
    said: subprocess.CompletedProcess[str] = done
    wrong = promises.hear(said.stdout.splitlines())
    assert not wrong, wrong
    return said
