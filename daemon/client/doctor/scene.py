"""What the checks look at: which daemon it is, whose service, where its files are, and what it says of itself.

A daemon that answers says all this itself. One that does not is looked for where it would be: the service's places
when a unit is installed, else those of the user who asks.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from daemon.access import User, service_user
from daemon.client.admin import Admin, Failure
from daemon.client.doctor.environment import Environment
from daemon.client.doctor.units import Unit, ask_systemd, socket_of
from daemon.places import SYSTEM_RUNTIME, SYSTEM_STATE, runtime_directory, state_directory
from daemon.settings import SYSTEM_DIRECTORY, Settings, SettingsError, load


@dataclass(frozen=True)
class Scene:
    """`status` and `health` are what the daemon answered, both empty with `silence`, the reason why it did not.

    `service` is the unit whose daemon this is, None for a daemon that is nobody's service; `no_systemd` says why the
    units could not be asked for. `environment` is what the daemon runs with, `installed` what it would be started
    with now: an upgrade that was not followed by a restart lies between.
    """

    status: Mapping[str, Any]
    health: Mapping[str, Any]
    silence: str | None
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
        """Who runs the daemon, or will."""
        if self.service is not None:
            return User.named(self.service["User"] or "root")
        return service_user(self.state) or User.named(str(os.geteuid()))

    @property
    def log_socket(self) -> Unit | None:
        """The socket unit that belongs to `service`, when it is installed."""
        unit = self.units.get(socket_of(self.service)) if self.service is not None else None
        return unit if unit is not None and unit.installed else None

    @property
    def pid(self) -> int | None:
        """The daemon's process, when one is known to run."""
        said = part(self.status, "process").get("pid")
        if isinstance(said, int):
            return said
        return self.service.number("MainPID") or None if self.service is not None else None

    @cached_property
    def settings(self) -> Settings | SettingsError:
        try:
            return load(self.config, self.env)
        except SettingsError as exc:
            return exc


def part(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """One object of /status; empty when it is not there."""
    found = status.get(name)
    return found if isinstance(found, Mapping) else {}


def look(admin: Admin, chosen: str | None, instance: str | None, env: Mapping[str, str]) -> Scene:
    """Ask systemd and the daemon. `chosen` is the admin address somebody gave, None when `admin` looks by itself."""
    units, no_systemd = ask_systemd(instance)
    status, health, silence = _ask(admin)
    service = _service(units, status, silence, chosen, instance, env)
    if service is not None:
        state, runtime, config, env = _service_places(service, env)
    else:
        state, runtime, config = state_directory(env), runtime_directory(env), None
        if silence is not None and not runtime.exists() and SYSTEM_RUNTIME.is_dir() and "RUNTIME_DIRECTORY" not in env:
            state, runtime = SYSTEM_STATE, SYSTEM_RUNTIME  # the user has none of his own, so he means the machine's
    places = part(status, "places")
    if said := places.get("state"):
        state, runtime = Path(said), Path(places["runtime"])
        config = Path(places["settings"]) if places.get("settings") else config
    installed = Environment.at(_prefix(service) if service is not None else None)
    running = Environment.at(prefix) if (prefix := part(status, "process").get("prefix")) else installed
    return Scene(status, health, silence, units, no_systemd, service, state, runtime, config, running, installed, env)


def _ask(admin: Admin) -> tuple[Mapping[str, Any], Mapping[str, Any], str | None]:
    try:
        status, health = admin.get("/status").body, admin.health()
    except Failure as exc:
        return {}, {}, str(exc)
    if not isinstance(status, dict) or not isinstance(health, dict):
        return {}, {}, "what answers is not vigild"
    return status, health, None


def _service(
    units: Mapping[str, Unit],
    status: Mapping[str, Any],
    silence: str | None,
    chosen: str | None,
    instance: str | None,
    env: Mapping[str, str],
) -> Unit | None:
    if instance is not None:
        name = f"vigild@{instance}.service"
        return units.get(name) or (Unit(name) if units else None)
    services = [unit for name, unit in units.items() if name.endswith(".service")]
    if silence is None:
        pid = part(status, "process").get("pid")
        return next((unit for unit in services if pid is not None and unit.number("MainPID") == pid), None)
    single = units.get("vigild.service")
    elsewhere = chosen is not None or "RUNTIME_DIRECTORY" in env
    return single if single is not None and single.installed and not elsewhere else None


def _service_places(unit: Unit, env: Mapping[str, str]) -> tuple[Path, Path, Path | None, dict[str, str]]:
    """State, runtime directory, settings and the variables that decide them, of the daemon that `unit` starts."""
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
    config = _option(unit.program, "--config")
    given = _option(unit.program, "--state-dir")
    return Path(given) if given else state, runtime, Path(config) if config else None, inside


def _option(command: list[str], name: str) -> str | None:
    for word, following in zip(command, [*command[1:], ""], strict=False):
        if word == name:
            return following or None
        if word.startswith(name + "="):
            return word.partition("=")[2]
    return None


def _prefix(unit: Unit) -> str | None:
    """The environment that the unit's program lies in, by way of any links; None when it is not to be seen."""
    program = Path(os.path.realpath(unit.program[0])) if unit.program else None
    if program is None or not (program.parents[1] / "pyvenv.cfg").is_file():
        return None
    return str(program.parents[1])
