"""One machine for the whole story.

VIGILD_SYSTEM_KEEP=DIRECTORY   keep it there, and do not run again on it what has passed
VIGILD_SYSTEM_HOST=1           make it of this host's /usr, as is done without a Debian mirror
"""

import os
import shutil
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.system import debian
from tests.system.machine import Machine, why_not
from tests.system.story import Story, alive

KEEP = os.environ.get("VIGILD_SYSTEM_KEEP")
_PASSED = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(1800))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_PASSED] = report.passed
    return report


@pytest.fixture(scope="session")
def possible() -> None:
    """Skips where this host cannot; where somebody counts on the test it fails instead."""
    reason = why_not()
    if reason is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no system test: {reason}")


@pytest.fixture(scope="session")
def home(possible: None) -> Iterator[Path]:
    """Where the machine's tree and notes lie. Beside the kept ones, which it is a copy of."""
    place = Path(KEEP) if KEEP else debian.cache() / f"run-{os.getpid()}"
    for left in debian.cache().glob("run-*"):
        if not alive(int(left.name.removeprefix("run-"))):
            shutil.rmtree(left)
    place.mkdir(parents=True, exist_ok=True)
    yield place
    if not KEEP:
        shutil.rmtree(place)


@pytest.fixture(scope="session")
def machine_and_story(home: Path) -> Iterator[Story]:
    notes = home / "notes.json"
    if notes.exists():
        yield Story.load(notes)
        return
    machine, host = _machine(home)
    try:
        machine.boot()
        story = Story(machine, host=host)
        story.prepare()
        yield story
    finally:
        if KEEP:
            machine.leave()
        else:
            machine.close()


@pytest.fixture
def story(machine_and_story: Story, home: Path, request: pytest.FixtureRequest) -> Iterator[Story]:
    name = request.node.name
    if name in machine_and_story.passed:
        pytest.skip("passed before, on the machine that was kept")
    yield machine_and_story
    for sending in machine_and_story.sendings:  # of a test that failed
        sending.end()
    if KEEP and request.node.stash.get(_PASSED, False):
        machine_and_story.passed.append(name)
        machine_and_story.save(home / "notes.json")


def _machine(home: Path) -> tuple[Machine, bool]:
    """A machine that boots, and whether its /usr is this host's for want of a Debian mirror."""
    base = None if os.environ.get("VIGILD_SYSTEM_HOST") else debian.tree()
    packages = f"--bind-ro={debian.wheels()}:/wheels"
    if base is not None:
        tree = home / "tree"
        subprocess.run(["cp", "--archive", str(base), str(tree)], check=True)
        (tree / "etc/hostname").write_text("debian\n")
        (tree / "etc/hosts").write_text("127.0.0.1 localhost debian\n")
        return Machine(home / "boot.log", [f"--directory={tree}", packages]), False
    options = [
        "--directory=/",
        "--volatile=yes",
        "--tmpfs=/usr/local:mode=0755",
        "--bind-ro=/etc/alternatives",
        packages,
    ]
    # No further than that: what else this host has as services is no business of ours.
    arguments = ["systemd.unit=basic.target", "systemd.firstboot=no"]
    return Machine(home / "boot.log", options, arguments=arguments, target="basic.target"), True
