"""Versions fixed for everything, links that lead somewhere, and a make that says what is missing."""

import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def canonical(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonical(line): line for line in lines if line and not line.startswith("#")}


def needed(name: str, seen: set[str]) -> set[str]:
    """`name` and what it needs on this machine, as far as it is installed."""
    if name in seen:
        return seen
    seen.add(name)
    try:
        wanted = requires(name) or []
    except PackageNotFoundError:
        return seen - {name}
    for requirement in wanted:
        if "extra ==" not in requirement and "platform_system" not in requirement:
            needed(canonical(requirement), seen)
    return seen


def test_everything_that_is_installed_for_us_has_its_version_fixed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [canonical(each) for each in project["dependencies"] + project["optional-dependencies"]["dev"]]
    fixed = pins()
    assert set(direct) <= set(fixed)
    installed: set[str] = set()
    for name in direct:
        needed(name, installed)
    unfixed = {name for name in installed if name not in fixed and _is_installed(name)}
    assert unfixed == set()


def _is_installed(name: str) -> bool:
    try:
        requires(name)
    except PackageNotFoundError:
        return False
    return True


def test_pins_are_exact_and_name_no_place() -> None:
    for line in pins().values():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line
    assert pins()["torch"] == "torch==2.13.0"


@pytest.mark.parametrize("page", ["README.md", "docs/settings.md", "docs/systemd.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    assert links
    for link in links:
        assert ((ROOT / page).parent / link).exists(), link


@pytest.mark.slow
def test_make_says_what_is_missing_in_one_line(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2\nexit 1\n')
    old.chmod(0o755)
    for python, said in ((str(old), "Python 3.9.2 is too old"), (str(tmp_path / "none"), "install Python 3.11")):
        command = ["make", "-C", str(ROOT), "setup", f"PYTHON={python}", f"VENV={tmp_path}/venv"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode != 0
        assert said in done.stderr.splitlines()[0]
        assert not (tmp_path / "venv").exists()
