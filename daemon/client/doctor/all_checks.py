"""`vigilctl doctor`: all checks, in the order in which an operator would look, run and printed."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

from daemon.client.admin_client import Admin
from daemon.client.doctor import (
    machine_checks,
    package_checks,
    permission_checks,
    settings_checks,
    status_checks,
    unit_checks,
)
from daemon.client.doctor.finding import Finding, fail_finding, ok_finding, unchecked_finding
from daemon.client.doctor.target_daemon import Target, inspect_daemon
from daemon.client.text.formatting import Style, printable

ANSWER_SECONDS = 20.0
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def _check_all_units(target: Target) -> Iterator[Finding]:
    if target.no_systemd is not None:
        if unit_checks.SYSTEMD_RUNS.is_dir():
            yield unchecked_finding("units", target.no_systemd)
        else:
            yield ok_finding("units", f"{target.no_systemd}: this is a plain daemon")
    elif target.service is None and not any(unit.installed for unit in target.units.values()):
        yield ok_finding("units", "vigild is not installed as a service: this is a plain daemon")
    yield from unit_checks.check_units(target.units, target.service)


CHECKS: tuple[Callable[[Target], Iterator[Finding]], ...] = (
    package_checks.check_python,
    package_checks.check_torch,
    package_checks.check_packages,
    package_checks.check_version,
    _check_all_units,
    permission_checks.check_groups,
    permission_checks.check_directories,
    permission_checks.check_sockets,
    permission_checks.check_lock,
    settings_checks.check_settings,
    machine_checks.check_disk,
    machine_checks.check_descriptors,
    machine_checks.check_memory,
    machine_checks.check_kernel,
    machine_checks.check_clock,
    status_checks.check_daemon,
    status_checks.check_exactly_once,
    status_checks.check_training,
    status_checks.check_detectors,
    status_checks.check_checkpoint,
    status_checks.check_recovery,
)


def run_checks(target: Target) -> list[Finding]:
    """The findings of every check. A check that lacks permission, or raises, is a finding itself."""
    found: list[Finding] = []
    for check in CHECKS:
        name = check.__name__.removeprefix("check_").strip("_")
        try:
            found += check(target)
        except PermissionError as exc:
            found.append(
                unchecked_finding(name, f"{exc.filename}: permission denied")
                if not target.root
                else _finding_of_broken_check(name, exc)
            )
        except Exception as exc:  # the other checks matter all the more
            found.append(_finding_of_broken_check(name, exc))
    return found


def _finding_of_broken_check(name: str, exc: Exception) -> Finding:
    return fail_finding(
        name, f"the check itself failed: {type(exc).__name__}: {exc}", "please report it with this line"
    )


def doctor_command(
    admin: Admin, chosen: str | None, instance: str | None, env: Mapping[str, str], as_json: bool
) -> int:
    """Run the checks and print the findings; returns the exit status, 1 when one fails, else 0."""
    findings = run_checks(inspect_daemon(admin, chosen, instance, env))
    if as_json:
        print(json.dumps([asdict(each) for each in findings]))
    else:
        _print_findings(findings)
    return int(any(each.status == "fail" for each in findings))


def _print_findings(findings: list[Finding]) -> None:
    style = Style(sys.stdout)
    width = max(len(each.check) for each in findings)
    for each in findings:
        print(f"{style(f'{each.status:<4}', _COLOURS[each.status])}  {each.check:<{width}}  {printable(each.found)}")
        if each.do is not None:
            print(f"{'':<{width + 6}}  do: {printable(each.do)}")
    counts = {status: sum(each.status == status for each in findings) for status in _COLOURS}
    print(", ".join(f"{number} {status}" for status, number in counts.items() if number or status == "ok"))
