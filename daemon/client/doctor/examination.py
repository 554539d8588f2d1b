"""Every check there is, in the order in which an operator would look."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

from daemon.client.admin import Admin
from daemon.client.doctor import configured, environment, machine, places, running, units
from daemon.client.doctor.finding import Finding, fail, ok, unseen
from daemon.client.doctor.scene import Scene, look
from daemon.client.formatting import Style, printable

ANSWER_SECONDS = 20.0
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def _units(scene: Scene) -> Iterator[Finding]:
    if scene.no_systemd is not None:
        if units.SYSTEMD_RUNS.is_dir():
            yield unseen("units", scene.no_systemd)
        else:
            yield ok("units", f"{scene.no_systemd}: this is a plain daemon")
    elif scene.service is None and not any(unit.installed for unit in scene.units.values()):
        yield ok("units", "vigild is not installed as a service: this is a plain daemon")
    yield from units.check_units(scene.units, scene.service)


CHECKS: tuple[Callable[[Scene], Iterator[Finding]], ...] = (
    environment.check_python,
    environment.check_torch,
    environment.check_packages,
    environment.check_version,
    _units,
    places.check_groups,
    places.check_directories,
    places.check_sockets,
    places.check_lock,
    configured.check_settings,
    machine.check_disk,
    machine.check_descriptors,
    machine.check_memory,
    machine.check_kernel,
    machine.check_clock,
    running.check_daemon,
    running.check_exactly_once,
    running.check_training,
    running.check_detectors,
    running.check_checkpoint,
    running.check_recovery,
)


def examine(scene: Scene) -> list[Finding]:
    """What every check found. One that may not look says so, and one that breaks is a finding itself."""
    found: list[Finding] = []
    for check in CHECKS:
        name = check.__name__.removeprefix("check_").strip("_")
        try:
            found += check(scene)
        except PermissionError as exc:
            found.append(unseen(name, f"{exc.filename}: permission denied") if not scene.root else _broken(name, exc))
        except Exception as exc:  # the other checks are wanted all the more
            found.append(_broken(name, exc))
    return found


def _broken(name: str, exc: Exception) -> Finding:
    return fail(name, f"the check itself failed: {type(exc).__name__}: {exc}", "please report it with this line")


def doctor(admin: Admin, chosen: str | None, instance: str | None, env: Mapping[str, str], as_json: bool) -> int:
    """Print what was found; 1 when something fails, else 0."""
    findings = examine(look(admin, chosen, instance, env))
    if as_json:
        print(json.dumps([asdict(each) for each in findings]))
    else:
        _print(findings)
    return int(any(each.status == "fail" for each in findings))


def _print(findings: list[Finding]) -> None:
    style = Style(sys.stdout)
    width = max(len(each.check) for each in findings)
    for each in findings:
        print(f"{style(f'{each.status:<4}', _COLOURS[each.status])}  {each.check:<{width}}  {printable(each.found)}")
        if each.do is not None:
            print(f"{'':<{width + 6}}  do: {printable(each.do)}")
    counts = {status: sum(each.status == status for each in findings) for status in _COLOURS}
    print(", ".join(f"{number} {status}" for status, number in counts.items() if number or status == "ok"))
