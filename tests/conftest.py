"""For all tests."""

from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).parent
# What starts processes, trains or installs as a rule. Elsewhere single tests are marked where they take over a second.
SLOW = (
    "benchmarks",
    "blackbox",
    "faults",
    "golden",
    "install",
    "interpreters",
    "system",
    "daemon/test_trainer.py",
    "daemon/test_vigilctl.py",
    "detection/learning/test_training_resumed.py",
    "detection/learning/test_training_run.py",
)

# An example that takes long says that the machine is busy. What hangs is ended by pytest-timeout.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        where = item.path.relative_to(HERE)
        if str(where) in SLOW or where.parts[0] in SLOW:
            item.add_marker("slow")
