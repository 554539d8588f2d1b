"""Adding a member of either kind is one file and one line of the registry; what the registry derives from its lines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from detection.members.registry import FITTED, IN_NATS, LOOKS_AT, MEMBERS, NAMES, OFTEN_SILENT, ONLINE, ONLINE_NAMES

ROOT = Path(__file__).parents[3]
TOYS = Path(__file__).parent / "toys"


def copy_of_the_program(to: Path) -> Path:
    """The pure part of the program, where a member can be added as a developer would add one."""
    shutil.copytree(ROOT / "detection", to / "detection", ignore=shutil.ignore_patterns("__pycache__"))
    return to


def added(program: Path, file: str, member: str, kind: str) -> None:
    """Add the toy `file`, and put its class into the tuple `kind` of the registry."""
    members = program / "detection" / "members"
    shutil.copy(TOYS / file, members / file)
    registry = (members / "registry.py").read_text()
    (line,) = [line for line in registry.splitlines() if line.startswith(f"{kind}: ")]
    text = registry.replace(line, f"{line}\n    {member},")
    (members / "registry.py").write_text(f"from detection.members.{file[:-3]} import {member}\n{text}")


def run_in(program: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("torch")  # the scenario trains
    paths = os.pathsep.join((str(program), str(ROOT)))
    return subprocess.run(
        [sys.executable, str(TOYS / "scenario.py")],
        env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=program, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.mark.slow
def test_a_member_of_either_kind_is_one_file_and_one_line(tmp_path: Path) -> None:
    """They learn, are calibrated, score, explain, are saved, are withdrawn, and name themselves when they fail."""
    program = copy_of_the_program(tmp_path)
    added(program, "unheard.py", "Unheard", "FITTED")
    added(program, "length.py", "Length", "ONLINE")
    done = run_in(program)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "member", "kind"), [("unheard.py", "Unheard", "FITTED"), ("length.py", "Length", "ONLINE")]
)
def test_what_is_not_in_the_registry_is_no_member(tmp_path: Path, file: str, member: str, kind: str) -> None:
    """The control: with one of the two alone, the other one's part of the same story is missed."""
    program = copy_of_the_program(tmp_path)
    added(program, file, member, kind)
    done = run_in(program)
    assert done.returncode != 0 and "AssertionError" in done.stderr


def test_members_come_in_the_order_in_which_states_have_them() -> None:
    assert NAMES == ("ngram", "counts", "values", "sources", "transformer", "isolation_forest")
    assert ONLINE_NAMES == ("values", "sources")
    assert set(MEMBERS) == {*FITTED, *ONLINE} and len(set(NAMES)) == len(NAMES)


def test_a_member_looks_at_those_before_it_only() -> None:
    for name, looks_at in LOOKS_AT.items():
        assert set(looks_at) <= set(NAMES[: NAMES.index(name)])


def test_the_registry_agrees_with_the_attributes_of_the_classes() -> None:
    assert [*IN_NATS, *OFTEN_SILENT] == ["sources", "values"]
    assert LOOKS_AT == {"isolation_forest": ("transformer", "ngram", "counts")}
