"""A library to preload: it makes writes short, kills in the middle of one, lets syncs do nothing, moves the clock."""

import shutil
import subprocess
from pathlib import Path

import pytest


def built_shim(directory: Path) -> Path:
    """Compiled into `directory`; the test is skipped where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    target = directory / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(target), str(source), "-ldl"], check=True)
    return target
