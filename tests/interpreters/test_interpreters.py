"""Every other Python of this machine runs what needs no torch: formats, rules, templates, the journal, the actors.

torch has a wheel for each Python apart, and only one of them is here; what imports it is skipped there
(`without_torch.py`). An environment for each interpreter is made once and kept in the user's cache, under a name that
changes with what is to be in it. With VIGILD_INTERPRETERS=all (`make test-interpreters`) each one runs SUITE; without
it Debian's own 3.11.2 runs all but the actors, and the others the part in which interpreters are known to differ.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITE = ("tests/detection", "tests/persistence", "tests/actors")
DEBIANS = SUITE[:2]
PATTERNS = ("tests/detection/formats", "tests/detection/templates", "tests/detection/test_patterns.py")
DEBIAN = "3.11.2"
NAMED = ("3.11.2", "3.12", "3.13")

_SAY = "import json, sys, ensurepip, venv; print(json.dumps([sys.version_info[:3], sys.prefix == sys.base_prefix]))"


def interpreters() -> dict[str, Path]:
    """By version, those from 3.11 on that are not ours: on PATH, in /usr/bin, and in pyenv's directory."""
    places = [Path(place) for place in (*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin") if place]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    places += sorted(pyenv.glob("versions/3.*/bin"))
    found: dict[str, Path] = {}
    for path in sorted({path.resolve() for place in places for path in place.glob("python3.[0-9]*")}):
        if not path.name.removeprefix("python3.").isdigit() or path.parent.name == "shims":
            continue
        said = subprocess.run([path, "-c", _SAY], capture_output=True, text=True, timeout=60)
        if said.returncode == 0:  # else it is broken, or cannot make environments
            version, its_own = json.loads(said.stdout)
            if its_own and (3, 11) <= tuple(version) != tuple(sys.version_info[:3]):
                found.setdefault(".".join(map(str, version)), path)
    return found


FOUND = interpreters()


def requirements() -> list[str]:
    """What the package and its tests need, less torch and the tools that only look at the source."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    return [each for each in wanted if not each.startswith(("torch", "mypy", "ruff", "flake8", "pyyaml"))]


def environment(version: str) -> Path:
    """The python of an environment of that version; made anew when what belongs into it has changed."""
    wanted = requirements()
    what = "\n".join([*wanted, (ROOT / "constraints.txt").read_text(), str(FOUND[version])])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vigild-interpreters"
    place = cache / f"{version}-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    done = place / "done"
    if not done.exists():
        for older in cache.glob(f"{version}-*"):
            shutil.rmtree(older)
        subprocess.run([FOUND[version], "-m", "venv", place], check=True, timeout=120)
        pip = [str(place / "bin/python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, "--constraint", str(ROOT / "constraints.txt"), *wanted], check=True, timeout=600)
        done.touch()
    return place / "bin" / "python"


def missing() -> list[str]:
    versions = [*FOUND, ".".join(map(str, sys.version_info[:3]))]
    return [named for named in NAMED if not any(f"{version}.".startswith(f"{named}.") for version in versions)]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", sorted(FOUND) or [pytest.param("none", marks=pytest.mark.skip("no other Python"))])
def test_what_needs_no_torch_passes_on_every_python_of_this_machine(version: str, tmp_path: Path) -> None:
    python = environment(version)
    parts, fewest = (DEBIANS, 400) if version == DEBIAN else (PATTERNS, 100)
    if os.environ.get("VIGILD_INTERPRETERS") == "all":
        parts, fewest = SUITE, 600
    options = ["-q", "-p", "no:cacheprovider", "-p", "tests.interpreters.without_torch", f"--basetemp={tmp_path}/t"]
    command = [str(python), "-m", "pytest", *options, *parts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    closing = done.stdout.strip().splitlines()[-1]
    print(f"Python {version}: {closing}")
    passed = int(closing.partition(" passed")[0].split()[-1])
    assert passed > fewest, closing


@pytest.mark.parametrize("named", NAMED)
def test_the_interpreters_that_the_readme_names_are_here(named: str) -> None:
    if named in missing():
        pytest.skip(f"no Python {named} on this machine: nothing is proven for it here")


def test_the_check_finds_what_depends_on_the_fault() -> None:
    """The control: the pattern that read every access line's client as `-` does so on 3.11.2 and nowhere else."""
    code = 'import re; print(re.match(rb"(?:\\S++ (?=\\d+ ))?+(\\S++)", b"a b c")[1].decode())'
    said = {
        version: subprocess.run([path, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
        for version, path in FOUND.items()
    }
    assert said == {version: "b" if version == DEBIAN else "a" for version in FOUND}
