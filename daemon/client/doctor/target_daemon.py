"""The target of the checks: which daemon, which unit runs it, where its files are, and its status.

A daemon that answers tells all this itself. For one that does not, the directories are those of the service if a unit
is installed, else the defaults of the user who runs the doctor.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from daemon.client.admin_client import Admin, Failure
from daemon.client.doctor.python_environment import Environment
from daemon.client.doctor.unit_checks import Unit, ask_systemd, socket_of
from daemon.default_directories import SYSTEM_RUNTIME, SYSTEM_STATE, runtime_directory, state_directory
from daemon.file_access import User, service_user
from daemon.settings_file import SYSTEM_DIRECTORY, Settings, SettingsError, load_settings


@dataclass(frozen=True)
class Target:
    """`status` and `health` are the daemon's answers; both are empty if it did not answer, and `unreachable` says why.

    `service` is the unit that runs this daemon, None for a daemon without one; `no_systemd` says why systemd could not
    be queried, None if it was. `environment` is the one the daemon runs with, `installed` the one that it would be
    started with now: they differ after an upgrade without a restart.
    """

    status: Mapping[str, Any]
    health: Mapping[str, Any]
    unreachable: str | None
    units: Mapping[str, Unit]
    no_systemd: str | None
    service: Unit | None
    state: Path
    runtime: Path
    config: Path | None
    environment: Environment
    installed: Environment
    env: Mapping[str, str]

    @property
    def root(self) -> bool:
        return os.geteuid() == 0

    @cached_property
    def user(self) -> User | None:
        """The user who runs the daemon, or would."""
        if self.service is not None:
            return User.named(self.service["User"] or "root")
        return service_user(self.state) or User.named(str(os.geteuid()))

    @property
    def log_socket(self) -> Unit | None:
        """The socket unit of `service`, None if it is not installed."""
        unit = self.units.get(socket_of(self.service)) if self.service is not None else None
        return unit if unit is not None and unit.installed else None

    @property
    def pid(self) -> int | None:
        """The daemon's process id, None if none is known to run."""
        pid = status_part(self.status, "process").get("pid")
        if isinstance(pid, int):
            return pid
        return self.service.number("MainPID") or None if self.service is not None else None

    @cached_property
    def settings(self) -> Settings | SettingsError:
        try:
            return load_settings(self.config, self.env)
        except SettingsError as exc:
            return exc


def status_part(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object `name` of a status; empty when it is absent."""
    found = status.get(name)
    return found if isinstance(found, Mapping) else {}


def inspect_daemon(admin: Admin, chosen: str | None, instance: str | None, env: Mapping[str, str]) -> Target:
    """Ask systemd and the daemon. `chosen` is the admin address that the user gave, None without one."""
    units, no_systemd = ask_systemd(instance)
    status, health, unreachable = _ask_status_and_health(admin)
    service = _service_of_daemon(units, status, unreachable, chosen, instance, env)
    if service is not None:
        state, runtime, config, env = _service_directories(service, env)
    else:
        state, runtime, config = state_directory(env), runtime_directory(env), None
        if (
            unreachable is not None
            and not runtime.exists()
            and SYSTEM_RUNTIME.is_dir()
            and "RUNTIME_DIRECTORY" not in env
        ):
            state, runtime = SYSTEM_STATE, SYSTEM_RUNTIME  # the user has no daemon, so the machine's is meant
    places = status_part(status, "places")
    if reported := places.get("state"):
        state, runtime = Path(reported), Path(places["runtime"])
        config = Path(places["settings"]) if places.get("settings") else config
    installed = Environment.at(_environment_of_unit(service) if service is not None else None)
    running = Environment.at(prefix) if (prefix := status_part(status, "process").get("prefix")) else installed
    return Target(
        status, health, unreachable, units, no_systemd, service, state, runtime, config, running, installed, env
    )


def _ask_status_and_health(admin: Admin) -> tuple[Mapping[str, Any], Mapping[str, Any], str | None]:
    try:
        status, health = admin.get("/status").body, admin.health()
    except Failure as exc:
        return {}, {}, str(exc)
    if not isinstance(status, dict) or not isinstance(health, dict):
        return {}, {}, "what answers is not vigild"
    return status, health, None


def _service_of_daemon(
    units: Mapping[str, Unit],
    status: Mapping[str, Any],
    unreachable: str | None,
    chosen: str | None,
    instance: str | None,
    env: Mapping[str, str],
) -> Unit | None:
    if instance is not None:
        name = f"vigild@{instance}.service"
        return units.get(name) or (Unit(name) if units else None)
    services = [unit for name, unit in units.items() if name.endswith(".service")]
    if unreachable is None:
        pid = status_part(status, "process").get("pid")
        return next((unit for unit in services if pid is not None and unit.number("MainPID") == pid), None)
    single = units.get("vigild.service")
    elsewhere = chosen is not None or "RUNTIME_DIRECTORY" in env
    return single if single is not None and single.installed and not elsewhere else None


def _service_directories(unit: Unit, env: Mapping[str, str]) -> tuple[Path, Path, Path | None, dict[str, str]]:
    """State directory, runtime directory and settings file of the daemon that `unit` starts, and its environment."""
    instance = unit.instance
    inside = dict(pair.partition("=")[::2] for pair in unit["Environment"].split())
    inside["CONFIGURATION_DIRECTORY"] = (
        f"/etc/{unit['ConfigurationDirectory'].split()[0]}" if unit["ConfigurationDirectory"] else SYSTEM_DIRECTORY
    )
    state = Path("/var/lib") / unit["StateDirectory"].split()[0] if unit["StateDirectory"] else SYSTEM_STATE
    runtime = Path("/run") / unit["RuntimeDirectory"].split()[0] if unit["RuntimeDirectory"] else SYSTEM_RUNTIME
    if instance is not None and not unit.installed:
        inside["VIGILD_INSTANCE"] = instance
        state, runtime = SYSTEM_STATE / instance, SYSTEM_RUNTIME / instance
    config = _command_line_option(unit.program, "--config")
    given = _command_line_option(unit.program, "--state-dir")
    return Path(given) if given else state, runtime, Path(config) if config else None, inside


def _command_line_option(command: list[str], name: str) -> str | None:
    for word, following in zip(command, [*command[1:], ""], strict=False):
        if word == name:
            return following or None
        if word.startswith(name + "="):
            return word.partition("=")[2]
    return None


def _environment_of_unit(unit: Unit) -> str | None:
    """The virtual environment of the unit's program, links resolved; None when it cannot be seen."""
    program = Path(os.path.realpath(unit.program[0])) if unit.program else None
    if program is None or not (program.parents[1] / "pyvenv.cfg").is_file():
        return None
    return str(program.parents[1])
