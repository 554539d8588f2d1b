"""A Debian 12 made from nothing and the packages that pip installs into it: both made once and kept in a cache.

The cache is $VIGILD_SYSTEM_CACHE, or vigild-system-test in the user's cache directory. In it lie `debian-KEY`, a tree
by debootstrap that nothing ever boots or writes, and `wheels-KEY`; the key is a hash of what each was made of, so a
change makes a new one and the old one goes. Both appear by a rename, whole or not at all.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from install.cpu_torch import CPU_INDEX

PROJECT = Path(__file__).parents[2]
SUITE = "bookworm"
# A minimal Debian with a service manager, what docs/systemd.md asks for, and the clients that the docs use.
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "python3", "python3-venv", "sudo", "logrotate", "make"),
    *("curl", "netcat-openbsd", "socat"),
)
MIRROR_SECONDS = 10.0
_PYTHON = "3.11"  # of Debian 12


def cache() -> Path:
    users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VIGILD_SYSTEM_CACHE") or Path(users) / "vigild-system-test")


def tree() -> Path | None:
    """The tree; None where it is not there and no mirror answers to make it from."""

    def make(place: Path) -> None:
        source = _mirror()
        if source is None:
            raise LookupError
        _run(["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(place), source])
        for package in (place / "var/cache/apt/archives").glob("*.deb"):
            package.unlink()

    try:
        return _made("debian", [SUITE, platform.machine(), *PACKAGES], make)
    except LookupError:
        return None


def _mirror() -> str | None:
    """The mirror that this host's apt takes Debian from, where it answers."""
    if shutil.which("debootstrap") is None or shutil.which("apt-get") is None:
        return None
    asked = ["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI)", "Created-By: Packages"]
    addresses = subprocess.run(asked, capture_output=True, text=True).stdout.split()
    return next((each for each in dict.fromkeys(addresses) if _serves_debian(each)), None)


def _serves_debian(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/dists/{SUITE}/Release", timeout=MIRROR_SECONDS) as response:
            return b"\nLabel: Debian\n" in response.read(4096)
    except (OSError, ValueError):  # also an address that is no HTTP
        return False


def wheels() -> Path:
    """Everything that pip installs for vigild on Debian 12, torch for CPUs, fetched unless it is there."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    constraints = PROJECT / "constraints.txt"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    pip += ["--python-version", _PYTHON, "--constraint", str(constraints)]

    def make(place: Path) -> None:
        to = [*pip, "--dest", str(place), "--find-links", str(place)]
        torch = next(name for name in wanted if name.startswith("torch"))
        index = os.environ.get("TORCH_INDEX", CPU_INDEX)
        # Whether it answers or not: what it did not give is found where pip is set up to look.
        asked = [*to, "--no-deps", "--retries", "0", "--timeout", "5", "--index-url", index, torch]
        if index:
            subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True)
        _run([*to, *wanted])

    return _made("wheels", [_PYTHON, platform.machine(), *wanted, constraints.read_text()], make)


def _made(kind: str, key: list[str], make: Callable[[Path], None]) -> Path:
    """What `make` makes of `key`, kept under a name of `kind`; the kept ones of another key are removed."""
    place = cache() / f"{kind}-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}"
    cache().mkdir(parents=True, exist_ok=True)
    with _alone(cache() / f"{kind}.lock"):
        if not place.exists():
            begun = place.with_name(f"{kind}.part")
            shutil.rmtree(begun, ignore_errors=True)
            begun.mkdir()
            make(begun)
            for other in cache().glob(f"{kind}-*"):
                shutil.rmtree(other)
            begun.rename(place)
    return place


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
    assert done.returncode == 0, f"{command} ended with {done.returncode}: {(done.stdout + done.stderr)[-4000:]}"
