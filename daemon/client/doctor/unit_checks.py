"""Checks of the units, from the output of `systemctl show`."""

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from daemon.client.doctor.finding import Finding, fail_finding, ok_finding, warn_finding

SYSTEMD_RUNS = Path("/run/systemd/system")  # sd_booted(3)
MOST_CONNECTIONS = 1024  # as in actors/ingest.py
MANY_RESTARTS = 20
_SECONDS = 20.0
_PROPERTIES = (
    "Id LoadState ActiveState SubState Result NRestarts UnitFileState FragmentPath DropInPaths NeedDaemonReload "
    "MainPID User Group MemoryDenyWriteExecute FileDescriptorStoreMax LimitNOFILE ExecStart ProtectHome ControlGroup "
    "StateDirectory RuntimeDirectory ConfigurationDirectory Environment Listen SocketUser SocketGroup SocketMode"
).split()


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit's properties as text; no properties for a unit that systemd does not know."""

    name: str
    properties: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> str:
        return self.properties.get(name, "")

    def number(self, name: str) -> int | None:
        return int(self[name]) if self[name].isdecimal() else None

    @property
    def installed(self) -> bool:
        return self["LoadState"] not in ("", "not-found")

    @property
    def running(self) -> bool:
        return self["ActiveState"] in ("active", "reloading")

    @property
    def instance(self) -> str | None:
        """NAME of vigild@NAME.service."""
        _, at, name = self.name.rpartition(".")[0].partition("@")
        return name if at else None

    @property
    def program(self) -> list[str]:
        """The command line of the service."""
        return self["ExecStart"].partition("argv[]=")[2].partition(" ;")[0].split()


def read_units(shown: str) -> dict[str, Unit]:
    """Parse the output of `systemctl show`: blocks of NAME=value lines, separated by empty lines."""
    units = {}
    for block in shown.split("\n\n"):
        properties: dict[str, str] = {}
        for line in block.splitlines():
            name, sign, value = line.partition("=")
            if sign and name in properties:
                properties[name] += "\n" + value  # Listen= comes once for each socket
            elif sign:
                properties[name] = value
        if identity := properties.get("Id"):
            units[identity] = Unit(identity, properties)
    return units


def ask_systemd(instance: str | None) -> tuple[dict[str, Unit], str | None]:
    """vigild's units by name, and None or the reason why systemd could not be queried. Blocks for up to _SECONDS."""
    if not SYSTEMD_RUNS.is_dir():
        return {}, "systemd does not run here"
    names = ["vigild.service", "vigild.socket", "vigild@*.service", "vigild@*.socket"]
    if instance is not None:
        names += [f"vigild@{instance}.service", f"vigild@{instance}.socket"]
    command = ["systemctl", "show", "--no-pager", f"--property={','.join(_PROPERTIES)}", "--", *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, errors="replace")
    except FileNotFoundError:
        return {}, "there is no systemctl"
    except subprocess.TimeoutExpired:
        return {}, f"systemctl did not answer within {_SECONDS:.0f} s"
    if done.returncode:
        return {}, f"systemctl: {' '.join(done.stderr.split()) or f'exit status {done.returncode}'}"
    return read_units(done.stdout), None


def socket_of(service: Unit) -> str:
    return service.name.removesuffix(".service") + ".socket"


def check_units(units: Mapping[str, Unit], service: Unit | None) -> Iterator[Finding]:
    """Check every installed unit. An unused unit beside running instances, or beside a plain daemon, is no fault.

    `service` is the unit of the daemon that is checked, None for a plain daemon.
    """
    instances = any(unit.instance is not None and unit.running for unit in units.values())
    for name, unit in sorted(units.items()):
        if not name.endswith(".service") or not (unit.installed or unit is service):
            continue
        log_socket = units.get(socket_of(unit)) or Unit(socket_of(unit))
        unused = unit["ActiveState"] == "inactive" and unit["UnitFileState"] in ("disabled", "indirect", "")
        if unit is not service and unused and (instances or service is None):
            yield ok_finding(name, "installed, not enabled, not running")
            continue
        yield from check_service(unit, log_socket)
        if unit.installed:
            yield from check_socket(log_socket, unit)


def check_service(unit: Unit, log_socket: Unit) -> Iterator[Finding]:
    name, state = unit.name, f"{unit['ActiveState']} ({unit['SubState']})"
    journal = f"journalctl --unit {name} --lines 50"
    restarts = unit.number("NRestarts") or 0
    if (broken := _finding_if_not_loaded(unit)) is not None:
        yield broken
        return
    if unit["SubState"] == "auto-restart" or unit["ActiveState"] == "failed":
        found = f"{state}, result {unit['Result']}, {restarts:,} restarts: it ends as soon as it is started"
        yield fail_finding(name, found, journal)
    elif unit["ActiveState"] in ("activating", "deactivating"):
        yield warn_finding(name, f"{state}, {restarts:,} restarts", f"wait a moment and ask again; {journal}")
    elif not unit.running:
        also = f" {log_socket.name}" if log_socket.installed else ""
        yield fail_finding(name, f"{state}, nothing watches the log", f"systemctl enable --now{also} {name}")
    elif restarts >= MANY_RESTARTS:
        yield warn_finding(name, f"{state}, restarted {restarts:,} times since it was last started by hand", journal)
    elif unit["UnitFileState"] == "disabled":
        yield warn_finding(
            name, f"{state}, and not enabled: it will not start with the machine", f"systemctl enable {name}"
        )
    else:
        yield ok_finding(
            name, f"{state}, {unit['UnitFileState'] or 'enabled'}" + (f", {restarts} restarts" * bool(restarts))
        )
    yield from _check_unit_settings(unit)


def _check_unit_settings(unit: Unit) -> Iterator[Finding]:
    name, places = unit.name, " ".join([unit["FragmentPath"], *unit["DropInPaths"].split()])
    if unit["NeedDaemonReload"] == "yes":
        yield warn_finding(name, f"changed on disk since systemd read it ({places})", "systemctl daemon-reload")
    if unit["MemoryDenyWriteExecute"] == "yes":
        yield fail_finding(
            name,
            f"MemoryDenyWriteExecute=yes is in force ({places}): torch cannot make its kernels, no model is trained "
            "or judges a line",
            f"remove that line, or: systemctl edit {name}, [Service] MemoryDenyWriteExecute=no; "
            f"systemctl restart {name}",
        )
    stored = unit.number("FileDescriptorStoreMax")
    if stored is not None and stored <= MOST_CONNECTIONS:
        yield warn_finding(
            name,
            f"FileDescriptorStoreMax={stored}: of {MOST_CONNECTIONS:,} connections only so many outlive the daemon",
            f"systemctl edit {name}, [Service] FileDescriptorStoreMax=1100; systemctl restart {name}",
        )
    if unit["DropInPaths"]:
        yield ok_finding(name, f"changed by {unit['DropInPaths']}")


def check_socket(unit: Unit, service: Unit) -> Iterator[Finding]:
    name, state = unit.name, f"{unit['ActiveState']} ({unit['SubState']})"
    again = f"systemctl stop {service.name}; systemctl enable --now {name} {service.name}"
    if not unit.installed:
        yield fail_finding(
            name,
            "not installed, though the service is: senders are refused while it restarts, and members of vigild-log "
            "cannot send",
            f"install it beside {service['FragmentPath'] or service.name}; systemctl daemon-reload; {again}",
        )
    elif (broken := _finding_if_not_loaded(unit)) is not None:
        yield broken
    elif not unit.running and service.running:
        yield fail_finding(
            name,
            f"{state}, result {unit['Result']}, while the service runs: log.sock is the daemon's own, senders are "
            "refused while it restarts, and members of vigild-log cannot send",
            again,
        )
    elif not unit.running:
        yield fail_finding(
            name, f"{state}, result {unit['Result']}: senders are refused", f"systemctl enable --now {name}"
        )
    elif unit["UnitFileState"] == "disabled":
        yield warn_finding(
            name, f"{state}, and not enabled: it will not start with the machine", f"systemctl enable {name}"
        )
    else:
        yield ok_finding(name, f"{state}, {unit['Listen'].partition(' ')[0]}")
    if unit["NeedDaemonReload"] == "yes":
        yield warn_finding(
            name, f"changed on disk since systemd read it ({unit['FragmentPath']})", "systemctl daemon-reload"
        )


def _finding_if_not_loaded(unit: Unit) -> Finding | None:
    if unit["LoadState"] == "loaded":
        return None
    if unit["LoadState"] == "masked":
        return fail_finding(unit.name, "masked", f"systemctl unmask {unit.name}")
    if not unit.installed:
        return fail_finding(unit.name, "systemd knows no such unit", "install it, or leave the instance's name out")
    return fail_finding(
        unit.name, f"not read by systemd: {unit['LoadState']}", f"systemd-analyze verify {unit['FragmentPath']}"
    )
