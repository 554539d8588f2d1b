"""The units under a real systemd: kills under senders at full rate, `systemctl restart`, a hang. Minutes long."""

import math
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from persistence.journal_segment import HEADER_BYTES
from tests.faults.nspawn.container import container
from tests.faults.service_manager import SETTINGS
from tests.faults.test_exactly_once import STEADY_SENDERS, Senders, differences, journal_grows, verdicts
from tests.system.machine import START_SECONDS, why_not

FAULTS = os.environ.get("VIGILD_FAULTS")
KILLS, RESTARTS = max(int(FAULTS or 0) // 100, 5), 5
WATCHDOG_SECONDS = 20.0
GAP_SECONDS = 3.0

pytestmark = [
    pytest.mark.skipif(FAULTS is None, reason="the long form only: VIGILD_FAULTS=500 and more"),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.timeout(60 * 60),
]


def test_under_a_real_systemd_no_line_is_lost_or_counted_twice(tmp_path: Path) -> None:
    with container(tmp_path, SETTINGS) as machine:
        machine.run("systemctl", "start", "vigild.socket", "vigild.service")
        machine.wait(lambda: machine.serving(after="0"), START_SECONDS)
        ingest = machine.status()["ingest"]
        assert ingest["exactly_once"] is True, ingest
        chance = random.Random(0)
        senders = Senders(machine, 0)
        machine.wait(lambda: machine.stored() == STEADY_SENDERS)

        silent: list[float] = []
        gaps: list[float] = []
        recognised = 0
        for number in range(KILLS + RESTARTS):
            threading.Event().wait(chance.uniform(0.2, 1.0))
            machine.wait(lambda: machine.stored() == STEADY_SENDERS)
            absent = machine.connect()
            process, main = machine.shows("MainPID"), machine.main_process()
            if number % 2:
                journal_grows(machine.state)
            began = time.monotonic()
            if number < KILLS:
                os.kill(main, signal.SIGKILL)
                began = time.monotonic()
                known = {path.name for path in machine.state.glob("journal-*.log")}
                senders.send_and_close(f"absent-{number}", absent)
            else:
                machine.run("systemctl", "restart", "vigild.service")
            if number < KILLS:
                machine.wait(lambda known=known: journaled(machine.state, known), START_SECONDS)  # type: ignore[misc]
                silent.append(time.monotonic() - began)
            machine.wait(lambda process=process: machine.serving(after=process), START_SECONDS)  # type: ignore[misc]
            gaps.append(time.monotonic() - began)
            if number >= KILLS:
                senders.send_and_close(f"restarted-{number}", absent)
            recognised += machine.status()["ingest"]["chunks_recognised"]

        hung = machine.shows("MainPID")
        began = time.monotonic()
        os.kill(machine.main_process(), signal.SIGSTOP)
        machine.wait(lambda: machine.serving(after=hung), 3 * WATCHDOG_SECONDS)
        hang = time.monotonic() - began
        senders.finish()
        machine.wait(lambda: machine.stored() == 0)
        machine.run("systemctl", "stop", "vigild.service")

        judged = verdicts(machine.state)
    kills, restarts = sorted(gaps[:KILLS]), sorted(gaps[KILLS:])
    silent.sort()
    print(
        f"{KILLS} kills, {RESTARTS} restarts, {len(judged):,} lines, {recognised} chunks recognised; "
        f"kill to lines being journaled {spread(silent)}; kill to serving {spread(kills)}; "
        f"restart {spread(restarts)}; hang {hang:.1f} s"
    )
    assert senders.errors == []
    assert differences(senders.sent, judged) == (0, 0)
    assert recognised > 0
    assert hang <= 2 * WATCHDOG_SECONDS
    assert share(silent, 0.99) < GAP_SECONDS


def journaled(state: Path, known: set[str]) -> bool:
    """Whether a segment that is not `known` holds anything."""
    fresh = [path for path in state.glob("journal-*.log") if path.name not in known]
    return any(path.stat().st_size > HEADER_BYTES for path in fresh)


def spread(seconds: list[float]) -> str:
    return f"p50 {share(seconds, 0.5):.2f} s, p99 {share(seconds, 0.99):.2f} s, worst {seconds[-1]:.2f} s"


def share(seconds: list[float], part: float) -> float:
    """What `part` of the sorted `seconds` do not exceed."""
    return seconds[math.ceil(part * len(seconds)) - 1]
