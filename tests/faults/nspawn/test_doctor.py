"""`vigilctl doctor` under the shipped units and a real systemd: one thing is broken, and exactly that is reported."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.nspawn.container import Container, container
from tests.faults.service_manager import SETTINGS
from tests.system.machine import START_SECONDS, why_not

pytestmark = [
    pytest.mark.skipif("VIGILD_FAULTS" not in os.environ, reason="the long form only: VIGILD_FAULTS=500 and more"),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.timeout(20 * 60),
]
TOKEN = "a-token-of-many-letters"
DROP_IN = (
    "mkdir -p /run/systemd/system/vigild.{0}.d; "
    "printf '{1}\\n' > /run/systemd/system/vigild.{0}.d/x.conf; systemctl daemon-reload"
)


class Fault(NamedTuple):
    """`break_it` and `mend_it` are scripts; `check` is the one that must say `said`, and none but it and what it
    `also` breaks may change."""

    check: str
    said: str
    break_it: str
    mend_it: str
    also: str = ""


FAULTS = [
    Fault("log.sock", "0660", "chmod 666 /run/vigild/log.sock", "chmod 660 /run/vigild/log.sock"),
    Fault(
        "log.sock",
        "group must be vigild-log",
        "chgrp vigild /run/vigild/log.sock",
        "chgrp vigild-log /run/vigild/log.sock",
    ),
    Fault("runtime directory", "cannot pass", "chmod 700 /run/vigild", "chmod 755 /run/vigild", also="log.sock"),
    Fault("state directory", "others can read", "chmod 755 /var/lib/vigild", "chmod 700 /var/lib/vigild"),
    Fault(
        "settings",
        "LoadCredential=token:/etc/vigild/token",
        f"cd /etc/vigild; cp vigild.toml kept; umask 077; echo {TOKEN} > token; "
        "sed -i '/^bind/a token_file = \"token\"' vigild.toml",
        "cd /etc/vigild; mv kept vigild.toml; rm token",
    ),
    Fault(
        "vigild.service",
        "MemoryDenyWriteExecute=yes",
        DROP_IN.format("service", "[Service]\\nMemoryDenyWriteExecute=yes"),
        "rm -r /run/systemd/system/vigild.service.d; systemctl daemon-reload",
    ),
]


def test_each_fault_is_named_and_nothing_else_is(tmp_path: Path) -> None:
    with container(tmp_path, SETTINGS) as machine:
        # What this test is not about: the units may hold it until their own test forbids it.
        machine.run("sed", "-i", "/^MemoryDenyWriteExecute/d", "/etc/systemd/system/vigild.service")
        machine.run("systemctl", "daemon-reload")
        before = doctor(machine)
        assert before["vigild.service"][0] == before["daemon"][0] == "fail", before
        machine.run("systemctl", "enable", "--now", "vigild.socket", "vigild.service")
        machine.wait(lambda: machine.serving(after="0"), START_SECONDS)
        well = doctor(machine)
        assert {name: found for name, found in well.items() if found[0] != "ok"} == {}
        # Who is neither root nor of a group sees less, and nothing is wrong by that.
        seen = doctor(machine, "setpriv --reuid=65534 --regid=65534 --clear-groups ")
        assert {found[0] for found in seen.values()} == {"ok", "warn"}, seen
        assert all("not checked" in found[1] for found in seen.values() if found[0] == "warn"), seen
        for fault in FAULTS:
            machine.run("sh", "-c", fault.break_it)
            ill = doctor(machine)
            assert ill[fault.check][0] == "fail" and fault.said in ill[fault.check][1], (fault, ill)
            assert {name for name in ill if ill[name][0] != "ok"} == {fault.check, fault.also} - {""}, (fault, ill)
            machine.run("sh", "-c", fault.mend_it)
            assert {name for name, found in doctor(machine).items() if found[0] != "ok"} == set(), fault

        # The socket unit could not start: the daemon has one of its own, and says so itself.
        machine.run("systemctl", "stop", "vigild.service", "vigild.socket")
        machine.run("sh", "-c", DROP_IN.format("socket", "[Socket]\\nExecStartPre=/bin/false"))
        machine.run("systemctl", "start", "vigild.service")
        machine.wait(lambda: machine.serving(after="0"), START_SECONDS)
        assert machine.status()["ingest"]["exactly_once"] is False
        ill = doctor(machine)
        failing = {name for name, found in ill.items() if found[0] == "fail"}
        assert failing == {"vigild.socket", "log.sock", "exactly once"}, ill
        assert "made by the daemon" in ill["log.sock"][1]


def doctor(machine: Container, as_somebody: str = "") -> dict[str, tuple[str, str]]:
    """The status and text of every check; the worst one of a check with several findings."""
    said = machine.run("sh", "-c", f"{as_somebody}/opt/vigild/bin/vigilctl --json doctor 2>&1 || test $? = 1")
    assert said.startswith("["), said
    worst: Callable[[dict[str, str]], int] = lambda each: ["ok", "warn", "fail"].index(each["status"])  # noqa: E731
    return {each["check"]: (each["status"], each["found"]) for each in sorted(json.loads(said), key=worst)}
