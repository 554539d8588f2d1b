"""For all tests."""

import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).parent
# What starts processes, trains or installs as a rule. Elsewhere single tests are marked.
SLOW = (
    "benchmarks",
    "blackbox",
    "faults",
    "fuzz",
    "golden",
    "install",
    "interpreters",
    "soak",
    "system",
    "test_faults_parts.py",
    "test_system_test_skips.py",
    "test_systemd.py",
    "actors/test_training.py",
    "daemon/demo/test_demo.py",
    "daemon/startup/test_withdrawn.py",
    "daemon/test_main.py",
    "daemon/test_trainer.py",
    "daemon/test_vigilctl.py",
    "detection/learning/test_training.py",
    "detection/learning/test_training_resumed.py",
    "detection/learning/test_training_run.py",
)
LONGEST = ("faults/test_exactly_once.py", "blackbox/test_memory.py")  # more than a minute and a half
TRAINED = {"model", "habitual", "briefly"}  # fixtures that train a transformer, or let a test do so

_started = time.monotonic()

# An example that takes long says that the machine is busy. What hangs is ended by pytest-timeout.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _in_slow_place(item) or TRAINED & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    # Files that take long come first: so two processes end at about the same time.
    items.sort(key=lambda item: (str(item.path.relative_to(HERE)) not in LONGEST, not _in_slow_place(item)))


def _in_slow_place(item: pytest.Item) -> bool:
    where = item.path.relative_to(HERE)
    return str(where) in SLOW or where.parts[0] in SLOW


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What running in two processes saves, measured in this very run."""
    if not terminalreporter.config.getoption("numprocesses", None):
        return
    tests = sum(getattr(report, "duration", 0.0) for each in terminalreporter.stats.values() for report in each)
    wall = time.monotonic() - _started
    terminalreporter.write_line(f"{tests:.0f} s of tests in {wall:.0f} s: {tests and wall / tests:.2f} of the time")


_begun: list[str] = []  # processes, by the test that runs
sys.addaudithook(lambda event, _: _begun.append(event) if event in ("subprocess.Popen", "os.fork") else None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """A test that starts a process is marked as slow, so that `make quick` stays what it is."""
    _begun.clear()
    yield
    if _begun and item.get_closest_marker("slow") is None:
        pytest.fail("it starts a process: mark it as slow", pytrace=False)
