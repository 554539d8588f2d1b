"""Checks of the daemon's interpreter and packages, from the files of its environment."""

import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution
from pathlib import Path

from daemon.client.doctor.finding import Finding, fail_finding, ok_finding, warn_finding
from daemon.client.doctor.python_environment import Environment, normalised_package_name
from daemon.client.doctor.target_daemon import Target

PROVEN = (3, 11)
RE_FIXED = (3, 11, 5)  # CPython gh-106052
_PATTERN, _TEXT, _RIGHT = rb"(?:\S++ (?=\d+ ))?+(\S++)", b"a b c", b"a"


def version_without_build(version: str) -> str:
    """A version without its build: 2.13.0 of 2.13.0+cpu."""
    return version.partition("+")[0]


def check_python(target: Target) -> Iterator[Finding]:
    environment = target.environment
    version = environment.python
    if version is None:
        yield warn_finding(
            "python", f"{environment.place}: is no virtual environment; its version is unknown", "install with make"
        )
        return
    numbers = tuple(map(int, version.split(".")))
    note = (
        ""
        if _python_re_is_right(environment, numbers)
        else "; its re has the bug gh-106052, which vigild does not depend on"
    )
    found = f"{version} ({environment.place}){note}"
    if numbers < PROVEN:
        yield fail_finding(
            "python", f"{found}: too old, vigild needs 3.11", "install again with a newer one: PYTHON=python3.11"
        )
    elif numbers[:2] != PROVEN:
        yield warn_finding(
            "python", f"{found}: wheels exist, but vigild is proven on 3.11", "where there is one: PYTHON=python3.11"
        )
    else:
        yield ok_finding("python", found)


def _python_re_is_right(environment: Environment, version: tuple[int, ...]) -> bool:
    if environment.prefix is not None or sys.version_info < (3, 11):
        return version >= RE_FIXED
    found = re.match(_PATTERN, _TEXT)
    return found is not None and found[1] == _RIGHT


def check_torch(target: Target) -> Iterator[Finding]:
    """From the package's files; importing it takes a second and 250 MB."""
    environment = target.environment
    again = f"{environment.place}/bin/pip install --force-reinstall --no-deps torch=={{}}"
    torch = environment.packages.get("torch")
    wanted = _exactly_required_packages(environment).get("torch", "")
    if torch is None:
        found = f"not in {environment.place}: no model can be trained or loaded"
        yield fail_finding("torch", found, again.format(wanted or "VERSION") + " (see README, Install it)")
        return
    cuda = _cuda_version_of_torch(torch)
    found = f"{torch.version}, " + ("for CPUs" if cuda is None else f"for CUDA {cuda}")
    if wanted and version_without_build(torch.version) != version_without_build(wanted):
        yield fail_finding("torch", f"{found}, but vigild needs {wanted}", again.format(wanted))
    elif cuda is not None:
        yield warn_finding(
            "torch",
            f"{found}: it works, but only the CPU is used, and its packages take several GB",
            f"{again.format(version_without_build(torch.version))} --index-url https://download.pytorch.org/whl/cpu",
        )
    else:
        yield ok_finding("torch", found)


def _cuda_version_of_torch(torch: Distribution) -> str | None:
    """The CUDA version that torch was built for, None for a CPU build."""
    try:
        text = Path(str(torch.locate_file("torch/version.py"))).read_text()
    except OSError:
        local = torch.version.partition("+")[2]
        return local.removeprefix("cu") if local.startswith("cu") else None
    found = re.search(r"^cuda\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def _exactly_required_packages(environment: Environment) -> dict[str, str]:
    """The requirements of the installed vigild that allow exactly one version."""
    return {name: version for name, version in _run_time_requirements(environment) if version}


def _packages_needed_at_run_time(environment: Environment) -> set[str]:
    """The installed packages that vigild needs at run time, directly or not; build tools are not among them."""
    seen, waiting = set[str](), ["vigild"]
    while waiting:
        name = waiting.pop()
        if name in environment.packages and name not in seen:
            seen.add(name)
            waiting += [each for each, _ in _run_time_requirements(environment, name)]
    return seen


def _run_time_requirements(environment: Environment, name: str = "vigild") -> Iterable[tuple[str, str]]:
    """(name, exact version or "") of each run-time requirement of the installed package `name`."""
    package = environment.packages.get(name)
    for requirement in (package.requires if package is not None else None) or []:
        wanted, _, marker = requirement.partition(";")
        if "extra" in marker:
            continue
        name, _, version = wanted.partition("==")
        yield normalised_package_name(re.split(r"[<>=!~ (\[]", name)[0]), version.strip(" )")


def check_packages(target: Target) -> Iterator[Finding]:
    environment = target.environment
    packages, required = environment.packages, [name for name, _ in _run_time_requirements(environment)]
    used = _packages_needed_at_run_time(environment)
    tested = {name: version for name, version in environment.constraints().items() if name in used}
    pip = f"{environment.place}/bin/pip install"
    if "vigild" not in packages:
        yield warn_finding("packages", f"vigild itself is not installed in {environment.place}", f"{pip} .")
        return
    if missing := [name for name in required if name not in packages]:
        yield fail_finding("packages", f"missing: {', '.join(missing)}", f"{pip} {' '.join(missing)}")
        return
    others = [
        name
        for name in sorted(tested)
        if version_without_build(packages[name].version) != version_without_build(tested[name])
    ]
    if others:
        shown = (f"{name} {packages[name].version} ({tested[name]})" for name in others)
        yield warn_finding(
            "packages",
            f"not what vigild was tested with (in brackets): {', '.join(shown)}",
            f"{pip} {' '.join(f'{name}=={tested[name]}' for name in others)}",
        )
    else:
        known = f", {len(tested)} packages are of the versions it was tested with" if tested else ""
        yield ok_finding("packages", f"all {len(required)} required are there{known}")


def check_version(target: Target) -> Iterator[Finding]:
    vigild = target.installed.packages.get("vigild")
    installed, running = vigild.version if vigild is not None else None, target.status.get("version")
    again = f"systemctl restart {target.service.name}" if target.service is not None else "restart the daemon"
    if running is None or installed is None:
        yield ok_finding(
            "version", f"{installed or 'unknown'} installed; none is running" if running is None else str(running)
        )
    elif running != installed:
        yield warn_finding("version", f"{running} runs, {installed} is installed in {target.installed.place}", again)
    elif target.service is not None and not target.environment.same_as(target.installed):
        found = f"{running} runs from {target.environment.place}, and was installed anew in {target.installed.place}"
        yield warn_finding("version", found, again)
    else:
        yield ok_finding("version", running)
