"""A machine with a real systemd, this host's /usr, and the project's units as they are.

Everything but /usr and the daemon's state is in memory and gone at the end: the state lies on this host's disk, so
that syncing it takes its time. The interpreter and its packages are those that run the test: this is for faults by the
thousand; `tests/system` installs as a user does.
"""

import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.system.machine import Machine

PROJECT = Path(__file__).parents[3]
_PACKAGES = ("actors", "daemon", "detection", "persistence")
# What an installation into /opt/vigild provides, from the interpreter and packages that run this test.
_EXECUTABLE = f"""#!/bin/sh
export PYTHONPATH=/opt/vigild/src:/opt/vigild/packages PYTHONDONTWRITEBYTECODE=1
export LD_LIBRARY_PATH=/opt/python/lib
exec /opt/python/bin/python{sys.version_info.major}.{sys.version_info.minor} -m daemon.%s "$@"
"""


class Container(Machine):
    """A machine on which, once it has booted, `vigild.socket` and `vigild.service` are installed and not started.

    `home` gets the output of the boot and the directory `state`.
    """

    def __init__(self, home: Path, settings: str) -> None:
        self.state = home / "state"
        self.state.mkdir()
        binds = {
            sys.base_prefix: "/opt/python",
            sysconfig.get_paths()["platlib"]: "/opt/vigild/packages",
            **{str(PROJECT / name): f"/opt/vigild/src/{name}" for name in _PACKAGES},
        }
        options = [
            *("--directory=/", "--volatile=yes", f"--bind={self.state}:/var/lib/vigild"),
            *(f"--bind-ro={here}:{there}" for here, there in binds.items()),
        ]
        arguments = ["systemd.unit=basic.target", "systemd.firstboot=no"]
        super().__init__(home / "boot.log", options, arguments=arguments, target="basic.target")
        self._settings = settings

    def boot(self) -> None:
        super().boot()
        self._install(self._settings)

    def _install(self, settings: str) -> None:
        units = self.root / "etc/systemd/system"
        for unit in ("vigild.service", "vigild.socket"):
            shutil.copy(PROJECT / "systemd" / unit, units / unit)
        programs = {"opt/vigild/bin/vigild": _EXECUTABLE % "main", "opt/vigild/bin/vigilctl": _EXECUTABLE % "vigilctl"}
        places = {**programs, "etc/vigild/vigild.toml": settings}
        users = (PROJECT / "systemd/vigild.sysusers").read_text()
        for name, text in {**places, "etc/sysusers.d/vigild.conf": users}.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text)
        for name in programs:
            (self.root / name).chmod(0o755)
        self.run("systemd-sysusers")
        self.run("systemctl", "daemon-reload")


@contextmanager
def container(home: Path, settings: str) -> Iterator[Container]:
    machine = Container(home, settings)
    try:
        machine.boot()
        yield machine
    finally:
        machine.close()
