"""The units, judged by systemd itself; the daemon under a real systemd is tested elsewhere."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[1] / "systemd"
SERVICES = ["vigild.service", "vigild@.service"]
MOST_EXPOSED = 1.5

analyze = shutil.which("systemd-analyze")
needs_analyze = pytest.mark.skipif(analyze is None, reason="systemd-analyze is not installed")


def settings_of(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        key, sign, value = line.partition("=")
        if sign and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def verify(directory: Path, *units: str) -> str:
    """What systemd has to say about `units`, installed with an executable where they expect one."""
    executable = directory / "vigild"
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    for unit in UNITS.glob("vigild*.*"):
        text = unit.read_text().replace("/opt/vigild/bin/vigild", str(executable))
        (directory / unit.name).write_text(text)
    assert analyze is not None
    command = [analyze, "verify", "--man=no", *(str(directory / unit) for unit in units)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "LC_ALL": "C"})
    return done.stdout + done.stderr + (f"exit {done.returncode}" if done.returncode else "")


@needs_analyze
def test_the_units_are_valid(tmp_path: Path) -> None:
    assert verify(tmp_path, "vigild.service", "vigild.socket", "vigild@.service", "vigild@.socket") == ""


@needs_analyze
def test_an_unknown_setting_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "wrong.service").write_text("[Service]\nExecStart=/bin/sh\nWatchdogSecs=20\n")
    assert "WatchdogSecs" in verify(tmp_path, "wrong/wrong.service")


@needs_analyze
@pytest.mark.parametrize("unit", SERVICES)
def test_the_services_are_locked_in(unit: str) -> None:
    assert analyze is not None
    command = [analyze, "security", "--offline=true", "--no-pager", str(UNITS / unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "LC_ALL": "C"})
    said = re.search(r"Overall exposure level for \S+: (\d+\.\d)", done.stdout)
    assert said is not None, done.stdout + done.stderr
    assert float(said[1]) <= MOST_EXPOSED


@pytest.mark.parametrize("unit", SERVICES)
def test_memory_may_be_written_and_then_executed(unit: str) -> None:
    """torch's oneDNN compiles its kernels as it goes, and so does numba: without it no transformer trains or scores."""
    assert settings_of(unit)["MemoryDenyWriteExecute"] == ["no"]


@pytest.mark.parametrize("unit", SERVICES)
def test_only_programs_that_every_installation_has_are_executed(unit: str) -> None:
    """Not kill(1): Debian has it in procps, which minimal installations lack."""
    commands = [value for key, values in settings_of(unit).items() if key.startswith("Exec") for value in values]
    assert {command.split()[0].lstrip("+") for command in commands} == {"/opt/vigild/bin/vigild", "/bin/sh"}


@pytest.mark.parametrize("unit", SERVICES)
def test_there_is_no_service_without_its_socket_and_enabling_one_enables_the_other(unit: str) -> None:
    settings = settings_of(unit)
    socket = "vigild@%i.socket" if "@" in unit else "vigild.socket"
    assert settings["Requires"] == settings["Sockets"] == settings["Also"] == [socket]
    assert socket in settings["After"][0].split()


@pytest.mark.parametrize("kind", ["service", "socket"])
def test_an_instance_differs_from_the_single_daemon_in_its_places_only(kind: str) -> None:
    single, instance = settings_of(f"vigild.{kind}"), settings_of(f"vigild@.{kind}")
    differing = {key for key in single.keys() | instance.keys() if single.get(key) != instance.get(key)}
    if kind == "service":
        assert differing == {
            "Description",
            "Requires",
            "After",
            "Sockets",
            "Environment",
            "StateDirectory",
            "RuntimeDirectory",
            "Also",
        }
        assert instance["Environment"] == ["VIGILD_INSTANCE=%i"]
        assert instance["StateDirectory"] == instance["RuntimeDirectory"] == ["vigild/%i"]
    else:
        assert differing == {"Description", "ExecStartPre", "ListenStream"}
        assert instance["ListenStream"] == ["/run/vigild/%i/log.sock"]


def test_the_socket_lies_where_the_daemon_would_bind_it_and_has_the_name_it_looks_for() -> None:
    assert settings_of("vigild.socket")["ListenStream"] == ["/run/vigild/log.sock"]
    assert settings_of("vigild.socket")["FileDescriptorName"] == ["log"]
    assert settings_of("vigild.service")["RuntimeDirectory"] == ["vigild"]
    assert settings_of("vigild.service")["RuntimeDirectoryPreserve"] == ["yes"]
