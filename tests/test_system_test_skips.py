"""The system test where it cannot run: it says why, and where somebody counts on it, it fails."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def system_test(directory: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """It, as on a host without containers: there is nothing on the PATH."""
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment |= {"PATH": str(directory), "VIGILD_SYSTEM_CACHE": str(directory / "cache"), **variables}
    command = [sys.executable, "-m", "pytest", "tests/system", "-p", "no:cacheprovider", "--exitfirst", "-ra"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120.0)


def test_it_skips_with_the_reason_where_there_are_no_containers(tmp_path: Path) -> None:
    done = system_test(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no system test: a container needs root" in done.stdout or "systemd-nspawn is not installed" in done.stdout
    closing = done.stdout.splitlines()[-1]
    assert " skipped in " in closing and "passed" not in closing


def test_in_ci_a_skip_is_a_failure(tmp_path: Path) -> None:
    done = system_test(tmp_path, CI="true")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no system test: " in done.stdout
    assert not (tmp_path / "cache").exists()
