"""`vigilctl doctor` without a real system: recorded `systemctl show`, simulated environments and answers."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.client.admin_client import Admin
from daemon.client.doctor import (
    all_checks,
    machine_checks,
    package_checks,
    permission_checks,
    status_checks,
    unit_checks,
)
from daemon.client.doctor.finding import Finding
from daemon.client.doctor.python_environment import Environment
from daemon.client.doctor.target_daemon import Target, inspect_daemon
from daemon.client.doctor.unit_checks import Unit, read_units

# `systemctl show` of systemd 252 in a container, shortened to what is read.
SHOWN = """\
NRestarts=0
ExecStart={ path=/opt/vigild/bin/vigild ; argv[]=/opt/vigild/bin/vigild --config /etc/v.toml ; pid=0 }
Result=success
MainPID=412
ControlGroup=/system.slice/vigild.service
FileDescriptorStoreMax=1100
Environment=
User=vigild
Group=vigild
ProtectHome=yes
MemoryDenyWriteExecute=no
StateDirectory=vigild
RuntimeDirectory=vigild
ConfigurationDirectory=vigild
Id=vigild.service
LoadState=loaded
ActiveState=active
SubState=running
FragmentPath=/etc/systemd/system/vigild.service
UnitFileState=enabled
DropInPaths=
NeedDaemonReload=no

Result=success
Listen=/run/vigild/log.sock (Stream)
SocketUser=vigild
SocketGroup=vigild-log
SocketMode=0660
Id=vigild.socket
LoadState=loaded
ActiveState=active
SubState=running
FragmentPath=/etc/systemd/system/vigild.socket
UnitFileState=enabled
NeedDaemonReload=no
"""
ABSENT = """\
Id=vigild.service
LoadState=not-found
ActiveState=inactive
SubState=dead

Id=vigild.socket
LoadState=not-found
ActiveState=inactive
SubState=dead
"""
STATUS: Mapping[str, Any] = {
    "status": "serving",
    "version": "0.1.0",
    "uptime_seconds": 100.0,
    "logs_processed": 20_000,
    "warmup_target": 50_000,
    "training_in_progress": False,
    "active_models": {"rule_based": True, "transformer": False},
    "training": {"attempts": 0, "error": None, "generation_in_force": 0},
    "checkpoint": {"last_line": 19_000, "last_time": time.time() - 30, "error": None, "failures": 0},
    "ingest": {"exactly_once": True, "exactly_once_reason": None},
    "recovery": {"tier": "full", "lost_lines": 0, "set_aside": []},
}


def service(**changed: str) -> list[Finding]:
    """The findings about the recorded service with some properties changed."""
    found = read_units(SHOWN)
    found["vigild.service"] = with_properties(found["vigild.service"], changed)
    return list(unit_checks.check_units(found, found["vigild.service"]))


def log_socket(**changed: str) -> list[Finding]:
    found = read_units(SHOWN)
    found["vigild.socket"] = with_properties(found["vigild.socket"], changed)
    return list(unit_checks.check_units(found, found["vigild.service"]))


def with_properties(unit: Unit, changed: Mapping[str, str]) -> Unit:
    return Unit(unit.name, {**unit.properties, **changed})


def bad(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    return [(each.check, each.status) for each in findings if each.status != "ok"]


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """A plain daemon that serves."""
    here = Environment.at(None)
    health = {"status": "serving"}
    return Target(
        STATUS, health, None, {}, "no systemd", None, tmp_path / "state", tmp_path / "run", None, here, here, {}
    )


def saying(target: Target, name: str, **changed: Any) -> Target:
    """`target`, with one object of its status changed."""
    return replace(target, status={**target.status, name: {**target.status[name], **changed}})


def test_intact_units_are_ok() -> None:
    assert bad(service()) == []
    assert {each.check for each in service()} == {"vigild.service", "vigild.socket"}


@pytest.mark.parametrize(
    ("changed", "status", "word", "do"),
    [
        ({"MemoryDenyWriteExecute": "yes"}, "fail", "MemoryDenyWriteExecute=yes", "MemoryDenyWriteExecute=no"),
        ({"FileDescriptorStoreMax": "1024"}, "warn", "FileDescriptorStoreMax=1024", "FileDescriptorStoreMax=1100"),
        ({"NeedDaemonReload": "yes"}, "warn", "changed on disk", "systemctl daemon-reload"),
        ({"UnitFileState": "disabled"}, "warn", "not enabled", "systemctl enable vigild.service"),
        ({"NRestarts": "900"}, "warn", "restarted 900 times", "journalctl"),
        (
            {"ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code", "NRestarts": "3"},
            "fail",
            "3 restarts",
            "journalctl",
        ),
        ({"ActiveState": "failed", "SubState": "failed", "Result": "exit-code"}, "fail", "exit-code", "journalctl"),
        ({"ActiveState": "activating", "SubState": "start"}, "warn", "activating", "wait a moment"),
        ({"ActiveState": "inactive", "SubState": "dead"}, "fail", "nothing watches", "systemctl enable --now"),
        ({"LoadState": "masked", "ActiveState": "inactive"}, "fail", "masked", "systemctl unmask"),
        ({"LoadState": "bad-setting"}, "fail", "bad-setting", "systemd-analyze verify"),
    ],
)
def test_a_service_that_does_not_run_is_a_fault_with_advice(
    changed: dict[str, str], status: str, word: str, do: str
) -> None:
    (finding,) = [each for each in service(**changed) if each.check == "vigild.service" and each.status != "ok"]
    assert finding.status == status and word in finding.found and do in str(finding.do)


@pytest.mark.parametrize(
    ("changed", "status", "word"),
    [
        ({"ActiveState": "failed", "Result": "resources"}, "fail", "members of vigild-log cannot send"),
        ({"LoadState": "not-found", "ActiveState": "inactive"}, "fail", "not installed"),
        ({"UnitFileState": "disabled"}, "warn", "not enabled"),
    ],
)
def test_a_socket_that_does_not_listen_is_named(changed: dict[str, str], status: str, word: str) -> None:
    (finding,) = [each for each in log_socket(**changed) if each.status != "ok"]
    assert (finding.check, finding.status) == ("vigild.socket", status) and word in finding.found


def test_units_that_are_not_installed_or_not_used_are_no_fault() -> None:
    assert list(unit_checks.check_units(read_units(ABSENT), None)) == []
    found = read_units(SHOWN.replace("=active", "=inactive").replace("=enabled", "=disabled"))
    instance = with_properties(read_units(SHOWN)["vigild.service"], {"Id": "vigild@web.service"})
    instance_socket = with_properties(read_units(SHOWN)["vigild.socket"], {"Id": "vigild@web.socket"})
    both = {"vigild@web.service": Unit("vigild@web.service", instance.properties)}
    both |= {"vigild@web.socket": Unit("vigild@web.socket", instance_socket.properties)}
    assert bad(unit_checks.check_units({**found, **both}, both["vigild@web.service"])) == []
    assert both["vigild@web.service"].instance == "web" and found["vigild.service"].instance is None


def test_a_service_that_does_not_answer_has_the_directories_of_its_unit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = read_units(SHOWN)
    monkeypatch.setattr("daemon.client.doctor.target_daemon.ask_systemd", lambda instance: (shown, None))
    monkeypatch.setattr(
        "daemon.client.doctor.target_daemon._ask_status_and_health", lambda admin: ({}, {}, "no daemon answers")
    )
    nobody = Admin([])
    found = inspect_daemon(nobody, None, None, {})
    assert found.service is shown["vigild.service"] and found.unreachable is not None
    assert (str(found.state), str(found.runtime), str(found.config)) == (
        "/var/lib/vigild",
        "/run/vigild",
        "/etc/v.toml",
    )
    assert found.pid == 412
    # A daemon that the user names is the one that is checked.
    assert inspect_daemon(nobody, "unix:/x", None, {}).service is None
    assert inspect_daemon(nobody, None, None, {"RUNTIME_DIRECTORY": str(tmp_path)}).service is None
    web = inspect_daemon(nobody, None, "web", {})
    assert str(web.state) == "/var/lib/vigild/web" and web.env["VIGILD_INSTANCE"] == "web"
    assert web.service is not None
    assert bad(unit_checks.check_units({web.service.name: web.service}, web.service)) == [
        ("vigild@web.service", "fail")
    ]


@pytest.mark.slow
def test_the_reason_why_systemd_cannot_be_asked_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "systemctl"
    program.write_text("#!/bin/sh\necho 'Failed to connect to bus: No medium found' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(unit_checks, "SYSTEMD_RUNS", tmp_path / "none")
    assert unit_checks.ask_systemd(None) == ({}, "systemd does not run here")
    monkeypatch.setattr(unit_checks, "SYSTEMD_RUNS", tmp_path)
    assert unit_checks.ask_systemd(None) == ({}, "systemctl: Failed to connect to bus: No medium found")


# --- the environment, made up ---------------------------------------------------------------------------------------


def environment_at(home: Path, python: str = "3.11.2", cuda: str = "None", torch: str = "2.13.0+cpu") -> Environment:
    folder = home / "lib/python3.11/site-packages"
    for name, version, needs in (
        ("vigild", "0.1.0", ["torch==2.13.0", "trio", "pytest; extra == 'dev'"]),
        ("torch", torch, []),
        ("trio", "0.35.0", []),
    ):
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {each}" for each in needs)]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
    (folder / "torch").mkdir(exist_ok=True)
    (folder / "torch/version.py").write_text(f"__version__ = '{torch}'\ncuda: Optional[str] = {cuda}\n")
    (home / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {python}\n")
    (home / "constraints.txt").write_text("# tested\ntorch==2.13.0\ntrio==0.35.0\nnumpy==2.4.6\n")
    return Environment.at(str(home))


def of_environment(target: Target, made: Environment) -> list[Finding]:
    there = replace(target, environment=made, installed=made)
    checks = (
        package_checks.check_python,
        package_checks.check_torch,
        package_checks.check_packages,
        package_checks.check_version,
    )
    return [finding for check in checks for finding in check(there)]


def test_an_environment_as_installed_is_ok_and_the_bug_of_re_is_a_remark(target: Target, tmp_path: Path) -> None:
    found = of_environment(target, environment_at(tmp_path))
    assert bad(found) == []
    assert "gh-106052" in found[0].found
    assert "gh-106052" not in of_environment(target, environment_at(tmp_path, "3.11.7"))[0].found


@pytest.mark.parametrize(
    ("changed", "check", "status", "word"),
    [
        ({"python": "3.10.1"}, "python", "fail", "too old"),
        ({"python": "3.13.0"}, "python", "warn", "proven on 3.11"),
        ({"torch": "2.13.0", "cuda": "'13.0'"}, "torch", "warn", "CUDA 13.0"),
    ],
)
def test_another_interpreter_or_torch_is_named(
    changed: dict[str, str], check: str, status: str, word: str, target: Target, tmp_path: Path
) -> None:
    (finding,) = [each for each in of_environment(target, environment_at(tmp_path, **changed)) if each.status != "ok"]
    assert (finding.check, finding.status) == (check, status) and word in finding.found and finding.do


def test_an_old_torch_and_what_else_was_not_tested_is_named(target: Target, tmp_path: Path) -> None:
    made = environment_at(tmp_path, torch="2.1.0+cpu")
    assert bad(of_environment(target, made)) == [("torch", "fail"), ("packages", "warn")]
    # No name that an index could have for something else.
    assert (of_environment(target, made)[2].do or "").endswith("/bin/pip install torch==2.13.0")
    (tmp_path / "lib/python3.11/site-packages/trio-0.35.0.dist-info/METADATA").write_text("Name: other\nVersion: 1\n")
    found = of_environment(target, Environment.at(str(tmp_path)))
    assert ("packages", "fail") in bad(found) and "missing: trio" in found[2].found


def test_a_daemon_of_another_version_than_is_installed_wants_a_restart(target: Target, tmp_path: Path) -> None:
    made = environment_at(tmp_path)
    older = replace(target, status={**STATUS, "version": "0.0.9"}, environment=made, installed=made)
    assert bad(package_checks.check_version(older)) == [("version", "warn")]


# --- the machine ----------------------------------------------------------------------------------------------------


def test_limits_locks_and_control_groups_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "Limit    Soft Limit   Hard Limit   Units\nMax open files            256                  unlimited    files\n"
    )
    assert machine_checks.open_file_limits(text) == (256, 1 << 20)
    locks = "1: POSIX  ADVISORY  WRITE 7 08:01:99 0 EOF\n2: FLOCK  ADVISORY  WRITE 42 08:01:1234 0 EOF\n"
    assert permission_checks._lock_holder_pid(locks, os.makedev(8, 1), 1234) == 42
    assert permission_checks._lock_holder_pid(locks, os.makedev(8, 1), 99) is None


def test_little_room_on_the_disk_is_a_fault_before_it_is_full(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    target.state.mkdir()
    real = os.statvfs(target.state)

    def with_free(blocks: int) -> list[tuple[str, str]]:
        fields = list(real)
        fields[3] = fields[4] = blocks
        monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
        return bad(machine_checks.check_disk(target))

    assert with_free((1 << 30) // real.f_frsize) == []
    assert with_free((256 << 20) // real.f_frsize) == [("disk", "warn")]
    assert with_free((1 << 20) // real.f_frsize) == [("disk", "fail")]


def test_files_that_were_set_aside_are_listed(target: Target) -> None:
    target.state.mkdir()
    assert bad(machine_checks.check_disk(target)) == []
    (target.state / "frame-12.bad").touch()
    (finding,) = [each for each in machine_checks.check_disk(target) if each.status != "ok"]
    assert finding.status == "warn" and "frame-12.bad" in finding.found


def test_a_log_from_the_future_and_another_clock_are_named(target: Target) -> None:
    now = time.time()
    well = replace(target, status={**STATUS, "time": now, "log_time": now - 5e6})
    clocks = [each for each in machine_checks.check_clock(well) if each.check == "log clock"]
    assert bad(clocks) == [] and " d behind" in clocks[0].found
    ahead = replace(target, status={**STATUS, "log_time": now + 9000})
    assert ("log clock", "warn") in bad(machine_checks.check_clock(ahead))
    off = replace(target, status={**STATUS, "time": now - 60})
    assert ("clock", "warn") in bad(machine_checks.check_clock(off))


# --- what the daemon says -------------------------------------------------------------------------------------------


def of_daemon(target: Target) -> Iterator[Finding]:
    for check in all_checks.CHECKS:
        if check.__module__ == status_checks.__name__:
            yield from check(target)


def test_a_daemon_that_is_well_is_ok(target: Target) -> None:
    assert bad(of_daemon(target)) == []


def test_each_failure_in_the_status_is_a_finding_of_its_own(target: Target) -> None:
    failed = saying(target, "training", error="could not create a primitive", attempts=5)
    assert bad(of_daemon(failed)) == [("training", "fail")]
    assert "MemoryDenyWriteExecute" in str(next(status_checks.check_training(failed)).do)
    assert bad(of_daemon(saying(target, "checkpoint", error="no space left", failures=2))) == [("checkpoint", "fail")]
    late = saying(target, "checkpoint", last_time=time.time() - 5000)
    assert bad(of_daemon(late)) == [("checkpoint", "warn")]
    assert bad(of_daemon(saying(target, "recovery", lost_lines=3001))) == [("last start", "warn")]
    withdrawn = saying(target, "training", withdrawn=[{"member": "transformer", "seq": 7, "reason": "it raised"}])
    assert bad(of_daemon(withdrawn)) == [("detectors", "fail")]
    unfitted = saying(target, "training", unfitted={"transformer": "could not create a primitive"})
    assert bad(of_daemon(unfitted)) == [("detectors", "fail")]
    assert "MemoryDenyWriteExecute" in str(next(status_checks.check_detectors(unfitted)).do)


def test_what_is_promised_of_a_service_only_is_no_fault_of_a_plain_daemon(target: Target) -> None:
    plain = saying(target, "ingest", exactly_once=False, exactly_once_reason="no service manager")
    assert bad(of_daemon(plain)) == []
    managed = replace(plain, service=read_units(SHOWN)["vigild.service"])
    assert bad(of_daemon(managed)) == [("exactly once", "fail")]


def test_the_reasons_of_a_degraded_daemon_are_each_a_finding(target: Target) -> None:
    reasons = [
        {"code": "alerts", "text": "alerts.jsonl cannot be written"},
        {"code": "limits", "text": "1,024 connected"},
    ]
    degraded = replace(target, health={"status": "degraded", "reasons": reasons})
    assert bad(of_daemon(degraded)) == [("daemon", "fail"), ("daemon", "warn")]
    twice = saying(target, "training", error="killed", failures=3)
    twice = replace(twice, health={"status": "degraded", "reasons": [{"code": "training", "text": "training failed"}]})
    assert bad(of_daemon(twice)) == [("daemon", "warn"), ("training", "fail")]
    assert bad(of_daemon(replace(target, health={"status": "degraded", "reason": "lines wait"}))) == [
        ("daemon", "fail")
    ]
    assert bad(of_daemon(replace(target, health={"status": "starting"}))) == [("daemon", "warn")]


def test_a_check_that_breaks_is_a_finding_and_the_others_are_made(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(target: Target) -> Iterator[Finding]:
        yield Finding("one", "ok", "seen")
        raise KeyError("kept")

    monkeypatch.setattr(all_checks, "CHECKS", (breaks, status_checks.check_training))
    found = all_checks.run_checks(target)
    assert bad(found) == [("breaks", "fail")] and "KeyError: 'kept'" in found[1].found
    assert found[-1].check == "training"


def test_a_check_without_permission_is_reported_as_not_checked(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(target: Target) -> Iterator[Finding]:
        raise PermissionError(13, "Permission denied", "/var/lib/vigild/lock")
        yield

    monkeypatch.setattr(all_checks, "CHECKS", (forbidden,))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (finding,) = all_checks.run_checks(target)
    assert finding.status == "warn" and "not checked" in finding.found and finding.do == "sudo vigilctl doctor"


def test_a_socket_that_everybody_may_open_is_a_fault(target: Target) -> None:
    target.runtime.mkdir()
    with socket.socket(socket.AF_UNIX) as log, socket.socket(socket.AF_UNIX) as admin:
        for listener, name in ((log, "log.sock"), (admin, "admin.sock")):
            listener.bind(str(target.runtime / name))
            (target.runtime / name).chmod(0o660)
        assert bad(permission_checks.check_sockets(target)) == []
        (target.runtime / "admin.sock").chmod(0o666)
        assert bad(permission_checks.check_sockets(target)) == [("admin.sock", "fail")]


@pytest.mark.slow
def test_it_starts_fast_and_looks_at_torch_without_importing_it() -> None:
    heavy = "{'torch', 'numpy', 'trio', 'scipy', 'httpx'}"
    code = f"import sys, daemon.client.doctor.all_checks; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60.0, check=False).returncode == 0
