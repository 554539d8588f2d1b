"""The real daemon, killed at random moments under load: what was confirmed is there once, and its state, its alerts
and its verdicts are those of one process that applied the same journal and was never killed.

Lines come from several senders at once, models are trained and installed, snapshots are taken all the time. Kills hit
starts, too. VIGILD_KILLS is how many (`make faults`: 1000), in rounds of KILLS_A_ROUND, each in a new directory.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.running import QUICK, Vigild
from tests.faults.altered import BRIEF_TRAINING, alter
from tests.faults.senders import Senders, Sending
from tests.faults.witness import Account, Witness, account_of, records_in

KILLS = int(os.environ.get("VIGILD_KILLS", "14"))
KILLS_A_ROUND = 50
ROUNDS = -(-KILLS // KILLS_A_ROUND)
WARMUP = 1000
EVERY_LINES = 300
RETRAIN_LINES = 2000

# A journal that now and then says "durable" and has written nothing.
FORGETFUL = """
from persistence.journal import JournalWriter
append = JournalWriter.append
def forget(self, entries):
    if entries[-1].seq % 4:
        return append(self, entries)
    self.seq, self.line = entries[-1].seq, entries[-1].line
JournalWriter.append = forget
"""


@contextmanager
def watched(home: Path, warmup: int, rng: random.Random) -> Iterator[tuple[Vigild, Senders, Witness]]:
    """A daemon that is not started yet, senders not at work yet, a witness that watches."""
    (home / "state").mkdir(mode=0o700)
    settings = QUICK.format(warmup=warmup, retrain=RETRAIN_LINES, every_lines=EVERY_LINES, verdicts="all")
    daemon = Vigild(home, settings=settings)
    alter(daemon, BRIEF_TRAINING)
    try:
        with Witness(daemon.state, home / "kept").watching() as witness:
            yield daemon, Senders(daemon.runtime / "log.sock", rng), witness
    finally:
        daemon.close()


def load_and_kill(daemon: Vigild, senders: Senders, kills: int, rng: random.Random) -> None:
    """Kill `daemon` `kills` times; every fourth kill hits a start, and one waits for a model to be in force.

    A training that is interrupted again and again backs off, so without that wait there might be none in time.
    """
    for number in range(kills):
        if number % 4 == 3:
            daemon.launch()
            time.sleep(rng.uniform(0.1, 3.0))
        else:
            daemon.start()
            if number == kills // 2:
                daemon.wait(lambda: daemon.status()["training"]["generation_in_force"] > 0, 180.0)
            time.sleep(rng.uniform(0.0, 2.5) ** 2 / 2.5)
        daemon.kill()
    daemon.start()
    before = senders.confirmed
    daemon.wait(lambda: senders.confirmed > before)


def wrong_with(sendings: Sequence[Sending], account: Account, state: Path, status: dict[str, Any]) -> list[str]:
    """Every disagreement between senders, journal, files and the daemon's status."""
    wrong = list(account.wrong)
    sources = {data.partition(b"\n")[0]: data for data in account.sources.values()}
    if len(sources) < len(account.sources):
        wrong.append("a connection is in the journal twice")
    for sending in sendings:
        journaled = sources.pop(sending.key, b"")
        if not sending.data.startswith(journaled):
            wrong.append(f"{sending.key!r}: other bytes than were sent")
        elif sending.confirmed and journaled != sending.data:
            wrong.append(f"{sending.key!r}: {len(journaled)} of {len(sending.data)} confirmed bytes")
    if sources:
        wrong.append(f"connections that nobody made: {list(sources)}")
    lines = [record["line"] for record in account.records if not record["closed"]]
    if lines != list(range(1, account.line + 1)):
        wrong.append(f"{len(lines)} verdicts on {account.line} lines")
    if (status["logs_processed"], status["lost_lines"]) != (account.line, 0):
        wrong.append(f"{status['logs_processed']} lines counted, {status['lost_lines']} lost, of {account.line}")
    if status["state_digest"] != account.digest:
        wrong.append("the last state is another one")
    wrong += wrong_file(state / "verdicts.jsonl", account.records)
    alerts = records_in(state / "alerts.jsonl")
    stood_for = sum(record.get("stands_for", 1) for record in alerts) + account.counting
    of_alerts = wrong_file(state / "alerts.jsonl", account.recorded)
    if not of_alerts and stood_for != len(account.flagged):
        of_alerts = [f"records stand for {stood_for} of {len(account.flagged)} alerts"]
    return wrong + of_alerts


def wrong_file(path: Path, expected: list[dict[str, Any]]) -> list[str]:
    written = records_in(path)
    if written == expected:
        return []
    ids = Counter(record["id"] for record in written)
    twice = [number for number, count in ids.items() if count > 1]
    missing = [record["id"] for record in expected if record["id"] not in ids]
    other = [record for record in written if record not in expected] if len(expected) < 1000 else "..."
    return [f"{path.name}: {len(written)} of {len(expected)}, twice {twice[:5]}, missing {missing[:5]}, other {other}"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("round_", range(ROUNDS))
def test_random_kills_lose_nothing_and_repeat_nothing(
    tmp_path: Path, round_: int, record_property: Callable[[str, object], None]
) -> None:
    rng = random.Random(round_)
    kills = min(KILLS_A_ROUND, KILLS - round_ * KILLS_A_ROUND)
    with watched(tmp_path, WARMUP, rng) as (daemon, senders, witness):
        with senders.at_work():
            load_and_kill(daemon, senders, kills, rng)
        status = settled(daemon)
        assert daemon.stop() == 0
    account = account_of(witness.kept)
    assert wrong_with(senders.sendings, account, daemon.state, status) == []
    assert "Traceback" not in daemon.log
    # At least this much must have happened, or the round proves little.
    assert account.generations and account.snapshots > kills / 2 and account.line > WARMUP
    assert senders.confirmed > kills
    record_property("kills", kills)
    record_property("lines", account.line)
    hold_the_check_itself(senders.sendings, account, daemon.state, status)


def test_a_journal_that_does_not_write_is_caught(tmp_path: Path) -> None:
    """The control: the same load, the same check."""
    with watched(tmp_path, 1_000_000, random.Random(1)) as (daemon, senders, witness):
        alter(daemon, FORGETFUL)
        with senders.at_work():
            daemon.start()
            # Many, for what was forgotten must be of those that a sender holds for durable.
            daemon.wait(lambda: senders.confirmed > 60)
            daemon.kill()
            daemon.start()
        status = settled(daemon)
        assert daemon.stop() == 0
    wrong = wrong_with(senders.sendings, account_of(witness.kept), daemon.state, status)
    assert any("confirmed bytes" in what for what in wrong), wrong


def settled(daemon: Vigild) -> dict[str, Any]:
    """The status when nothing is under way: every line applied, the state saved."""
    while True:
        daemon.post("/checkpoint")
        status = daemon.status()
        training = status["training_in_progress"] or status["training"]["due"]  # it may be backing off
        if status["digest_line"] == status["logs_processed"] and not training:
            return status
        time.sleep(0.1)


def hold_the_check_itself(sendings: list[Sending], account: Account, state: Path, status: dict[str, Any]) -> None:
    """The controls that need no other daemon: each small inconsistency must be found."""
    confirmed = next(sending for sending in sendings if sending.confirmed)
    longer = [*(other for other in sendings if other is not confirmed), Sending(confirmed.data + b"more\n", True)]
    assert len(wrong_with(longer, account, state, status)) == 1
    assert len(wrong_with(sendings, account, state, {**status, "state_digest": ""})) == 1
    alerts = state / "alerts.jsonl"
    lines = alerts.read_bytes().splitlines(keepends=True)
    for untrue in (lines[:-1], [*lines, lines[-1]], [*lines[:-2], lines[-1], lines[-2]]):
        alerts.write_bytes(b"".join(untrue))
        assert len(wrong_with(sendings, account, state, status)) == 1
