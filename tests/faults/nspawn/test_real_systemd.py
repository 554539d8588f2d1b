"""The units under a real systemd: kills under senders at full rate, `systemctl restart`, a hang. Minutes long."""

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.faults.nspawn.container import START_SECONDS, container, why_not
from tests.faults.service_manager import SETTINGS
from tests.faults.test_exactly_once import STEADY_SENDERS, Senders, differences, journal_grows, verdicts

FAULTS = os.environ.get("VIGILD_FAULTS")
KILLS, RESTARTS = max(int(FAULTS or 0) // 50, 5), 3
WATCHDOG_SECONDS = 20.0

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
                senders.send_and_close(f"absent-{number}", absent)
            else:
                machine.run("systemctl", "restart", "vigild.service")
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
    print(
        f"{KILLS} kills, {RESTARTS} restarts, {len(judged):,} lines, {recognised} chunks recognised; kill to serving "
        f"median {kills[len(kills) // 2]:.1f} s, worst {kills[-1]:.1f} s; restart {restarts[-1]:.1f} s; "
        f"hang {hang:.1f} s"
    )
    assert senders.errors == []
    assert differences(senders.sent, judged) == (0, 0)
    assert recognised > 0
    assert hang <= 2 * WATCHDOG_SECONDS
