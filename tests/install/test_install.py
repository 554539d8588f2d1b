"""install.sh into a DESTDIR, with a small wheel in place of ours; on a running system it is tested in a container."""

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from persistence.jsonl import open_jsonl

ROOT = Path(__file__).parents[2]
UNITS = ["vigild.service", "vigild.socket", "vigild@.service", "vigild@.socket"]
PREFIX = "opt/vigild"


def wheel(directory: Path, version: str, *, whole: bool = True) -> Path:
    """A wheel that calls itself vigild, with both programs; not `whole`, it needs what nobody has."""
    path = directory / f"vigild-{version}-py3-none-any.whl"
    info = f"vigild-{version}.dist-info"
    needs = "" if whole else "Requires-Dist: no-such-package-anywhere\n"
    members = {
        "vigild_stand_in.py": "def main():\n    print('here')\n",
        "vigild_of_later_python.py": "def of every[version] is this no module\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: vigild\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nvigild=vigild_stand_in:main\nvigilctl=vigild_stand_in:main\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*members, f"{info}/RECORD"]))
    return path


class Installer:
    """install.sh in a checkout that has no torch to install, on a host where nothing of systemd may be called."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.checkout = home / "checkout"
        self.stage = home / "stage"
        self.prefix = self.stage / PREFIX
        self.programs = home / "programs"
        for directory in (self.checkout / "install", self.programs):
            directory.mkdir(parents=True)
        for name in ("install.sh", "constraints.txt"):
            shutil.copy(ROOT / name, self.checkout / name)
        shutil.copytree(ROOT / "systemd", self.checkout / "systemd")
        (self.checkout / "install/cpu_torch.sh").write_text("#!/bin/sh\n")
        for name in ("systemctl", "systemd-sysusers", "systemd-tmpfiles"):
            self.program(name, f"echo {name} >>{home}/called")
        self.free_mib(100_000)

    def program(self, name: str, text: str) -> Path:
        """A program found before those of the host."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def free_mib(self, count: int) -> None:
        self.program("df", f"echo Filesystem; echo /dev/x 1 1 {count * 1024} 1% /")

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        environment |= {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "DESTDIR": str(self.stage),
            "PIP_NO_INDEX": "1",
        }
        environment |= {"LC_ALL": "C", "PIP_CONFIG_FILE": os.devnull, **(env or {})}
        environment.pop("PYTHON", None)
        return subprocess.Popen(
            ["sh", str(self.checkout / "install.sh"), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments, env=env)
        output, errors = process.communicate(timeout=240)
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    def install(self, version: str) -> "subprocess.CompletedProcess[str]":
        done = self.run("--python", sys.executable, "--from", str(wheel(self.home, version)))
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def files(self) -> set[str]:
        """What is in the stage besides the environments and the installer's own notes."""
        every = {
            str(path.relative_to(self.stage)) for path in self.stage.rglob("*") if path.is_symlink() or path.is_file()
        }
        return {name for name in every if not name.startswith(f"{PREFIX}/versions/")}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installer]:
    installer = Installer(tmp_path_factory.mktemp("installed"))
    installer.install("1.0")
    yield installer


def test_every_file_is_where_it_belongs_with_its_mode(installed: Installer) -> None:
    expected = {
        **{f"usr/local/lib/systemd/system/{unit}": 0o644 for unit in UNITS},
        "usr/local/lib/sysusers.d/vigild.conf": 0o644,
        "usr/local/lib/tmpfiles.d/vigild.conf": 0o644,
    }
    links = {f"usr/local/bin/{name}": f"/opt/vigild/bin/{name}" for name in ("vigild", "vigilctl")}
    links |= {f"{PREFIX}/bin/{name}": f"../current/bin/{name}" for name in ("vigild", "vigilctl")}
    links |= {f"{PREFIX}/current": "versions/1.0"}
    notes = {f"{PREFIX}/{name}" for name in ("installed", ".lock")}
    assert installed.files() == expected.keys() | links.keys() | notes
    for name, mode in expected.items():
        assert stat.S_IMODE((installed.stage / name).stat().st_mode) == mode, name
    for name, target in links.items():
        assert os.readlink(installed.stage / name) == target
    for directory in (installed.prefix, installed.prefix / "versions/1.0", installed.prefix / "versions/1.0/bin"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o755, "the service's user must get there"


def test_nothing_that_is_staged_names_the_place_where_it_was_staged(installed: Installer) -> None:
    script = (installed.prefix / "bin/vigild").read_text()
    assert script.startswith("#!/opt/vigild/versions/1.0/bin/python")
    named = [
        path
        for path in installed.stage.rglob("*")
        if path.is_file() and not path.is_symlink() and bytes(installed.stage) in path.read_bytes()
    ]
    assert named == []


def test_staging_leaves_the_running_system_alone(installed: Installer) -> None:
    assert not (installed.home / "called").exists()


def copied(installed: Installer, home: Path) -> Installer:
    """The same installation once more, for a test that changes it."""
    installer = Installer(home)
    shutil.copytree(installed.stage, installer.stage, symlinks=True)
    return installer


def test_installing_again_replaces_the_version_and_what_it_no_longer_has(installed: Installer, tmp_path: Path) -> None:
    installer = copied(installed, tmp_path)
    gone = installer.stage / "usr/local/share/man/man1/vigild.1"
    gone.parent.mkdir(parents=True)
    gone.write_text("")
    with open(installer.prefix / "installed", "a") as notes:
        notes.write("/usr/local/share/man/man1/vigild.1\n")
    before = installer.files() - {str(gone.relative_to(installer.stage))}
    installer.install("1.1")
    assert installer.files() == before
    assert os.readlink(installer.prefix / "current") == "versions/1.1"
    assert os.listdir(installer.prefix / "versions") == ["1.1"]
    # The same version again is built beside the one in place.
    installer.install("1.1")
    assert os.readlink(installer.prefix / "current") == "versions/1.1-2"
    assert os.listdir(installer.prefix / "versions") == ["1.1-2"]


def test_an_upgrade_that_fails_leaves_the_version_before(installed: Installer, tmp_path: Path) -> None:
    installer = copied(installed, tmp_path)
    before = installer.files()
    broken = wheel(tmp_path, "1.1", whole=False)
    done = installer.run("--python", sys.executable, "--from", str(broken))
    assert done.returncode != 0
    assert "no-such-package-anywhere" in done.stderr and "is as it was" in done.stderr
    assert os.readlink(installer.prefix / "current") == "versions/1.0"
    assert os.listdir(installer.prefix / "versions") == ["1.0"]
    assert installer.files() == before


def test_a_first_installation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    installer = Installer(tmp_path)
    done = installer.run("--python", sys.executable, "--from", str(wheel(tmp_path, "1.0", whole=False)))
    assert done.returncode != 0 and "not installed" in done.stderr
    assert installer.files() == set() and not installer.prefix.exists()


def test_an_upgrade_that_is_ended_half_way_leaves_the_version_before(installed: Installer, tmp_path: Path) -> None:
    installer = copied(installed, tmp_path)
    process, worker = half_way(installer)
    assert (installer.prefix / "versions/1.1").is_dir()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "is as it was" in errors
    assert os.listdir(installer.prefix / "versions") == ["1.0"]
    await_end(worker)


def test_what_a_killed_one_leaves_is_waited_for_and_swept_up(installed: Installer, tmp_path: Path) -> None:
    installer = copied(installed, tmp_path)
    process, worker = half_way(installer)
    process.kill()
    process.communicate(timeout=60)
    # What it had begun still writes into its version.
    refused = installer.run("--python", sys.executable, "--from", str(wheel(tmp_path, "1.1")))
    assert refused.returncode == 1 and "try again when it has ended" in refused.stderr
    os.kill(worker, signal.SIGKILL)
    await_end(worker)
    (installer.checkout / "install/cpu_torch.sh").write_text("#!/bin/sh\n")
    installer.install("1.1")
    assert os.listdir(installer.prefix / "versions") == ["1.1"]
    assert not list(installer.prefix.glob(".install-*"))


def test_a_first_installation_that_was_killed_can_be_removed(tmp_path: Path) -> None:
    installer = Installer(tmp_path)
    process, worker = half_way(installer)
    process.kill()
    process.communicate(timeout=60)
    os.kill(worker, signal.SIGKILL)
    await_end(worker)
    done = installer.run("--uninstall")
    assert done.returncode == 0, done.stderr
    assert not installer.prefix.exists() and "vigild is removed; nothing of it is left" in done.stdout


def half_way(installer: Installer) -> "tuple[subprocess.Popen[str], int]":
    """An installation of 1.1 that takes very long, and a process that one of its steps has started."""
    reached = installer.home / "reached"
    script = f"sleep 300 & echo $! >{reached}.new; mv {reached}.new {reached}; wait\n"
    (installer.checkout / "install/cpu_torch.sh").write_text(script)
    process = installer.start("--python", sys.executable, "--from", str(wheel(installer.home, "1.1")))
    deadline = time.monotonic() + 120.0
    while not reached.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process, int(reached.read_text())


def await_end(process: int) -> None:
    """A process that is no child of ours."""
    deadline = time.monotonic() + 60.0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # gone, the latter while we read
        while " Z " not in Path(f"/proc/{process}/stat").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("changed", [False, True])
def test_an_earlier_versions_logrotate_file_goes_unless_it_was_changed(
    installed: Installer, tmp_path: Path, changed: bool
) -> None:
    installer = copied(installed, tmp_path)
    there, shipped = installer.stage / "etc/logrotate.d/vigild", installer.stage / PREFIX / "shipped-logrotate"
    there.parent.mkdir(parents=True)
    there.write_text("# mine\n" if changed else "# shipped\n")
    shipped.write_text("# shipped\n")
    said = installer.install("1.1").stdout
    assert ("left alone: /etc/logrotate.d/vigild" in said, there.exists(), shipped.exists()) == (
        changed,
        changed,
        False,
    )
    done = installer.run("--uninstall")
    assert there.exists() == changed and (str(there) in done.stdout) == changed


def test_uninstalling_removes_everything_but_state_and_settings_and_says_so(
    installed: Installer, tmp_path: Path
) -> None:
    installer = copied(installed, tmp_path)
    kept = [installer.stage / "etc/vigild/vigild.toml", installer.stage / "var/lib/vigild/alerts.jsonl"]
    for path in kept:
        path.parent.mkdir(parents=True)
        path.write_text("")
    done = installer.run("--uninstall")
    assert done.returncode == 0, done.stderr
    assert installer.files() == {str(path.relative_to(installer.stage)) for path in kept}
    assert not installer.prefix.exists()
    assert f"rm -r {kept[1].parent} {kept[0].parent}" in done.stdout
    again = installer.run("--uninstall")
    assert again.returncode == 1 and len(again.stderr.splitlines()) == 1


def test_prefix_is_honoured_in_the_units_and_the_links(tmp_path: Path) -> None:
    installer = Installer(tmp_path)
    done = installer.run(
        "--python", sys.executable, "--from", str(wheel(tmp_path, "1.0")), env={"PREFIX": "/srv/vigild"}
    )
    assert done.returncode == 0, done.stderr
    unit = (installer.stage / "usr/local/lib/systemd/system/vigild@.service").read_text()
    assert "ExecStart=/srv/vigild/bin/vigild\n" in unit and "/opt/vigild" not in unit
    assert os.readlink(installer.stage / "usr/local/bin/vigilctl") == "/srv/vigild/bin/vigilctl"


def refusals(installer: Installer) -> dict[str, tuple[list[str], dict[str, str], str]]:
    """Arguments, environment and what is to be said."""
    old = installer.program("python3.9", '[ "$1" = --version ] && echo Python 3.9.2 || echo python False')
    bare = installer.program("python-bare", 'case "$2" in *ensurepip*) exit 1 ;; *) echo python True ;; esac')
    at_home = installer.program(
        "python-home",
        'case "$2" in *base_prefix*) echo /home/alice/python ;; *version_info*) echo python True ;; esac',
    )
    occupied = installer.home / "occupied"
    (occupied / "bin").mkdir(parents=True)
    package = ["--from", str(wheel(installer.home, "1.0"))]
    python = ["--python", sys.executable]
    return {
        # Without an interpreter that works: were it not refused, this host is not to be changed.
        "no root": (["--python", "/none"], {"DESTDIR": ""}, "has to be run as root: sudo ./install.sh"),
        "old python": (["--python", str(old)], {}, "Python 3.9.2 (.*) is too old: vigild needs 3.11"),
        "no python": (["--python", "/none"], {}, "there is no /none: .*apt install python3 python3-venv"),
        "no venv": (["--python", str(bare)], {}, "cannot make environments: .*apt install python3-venv"),
        "python out of sight": (["--python", str(at_home)], {"DESTDIR": ""}, "which the service cannot see"),
        "no such wheel": ([*python, "--from", "/none.whl"], {}, "/none.whl: no such wheel"),
        "no checkout": ([*python, "--from", "/etc"], {}, "/etc: is neither a wheel nor a checkout"),
        "occupied": ([*python, *package], {"PREFIX": str(occupied), "DESTDIR": "/"}, "holds something else"),
        "relative": (python, {"PREFIX": "opt"}, "'opt': PREFIX and DESTDIR are absolute paths"),
        "no interpreter": ([*package, "--python", "/bin/true"], {}, "/bin/true is not a Python interpreter that runs"),
        "no name": ([*python, "--from", ""], {}, "--from wants a wheel or a directory"),
        "root as prefix": (python, {"PREFIX": "/"}, "PREFIX is /, but must be a directory for vigild alone"),
        "blank": (python, {"PREFIX": "/opt/a b"}, "/opt/a b: PREFIX and DESTDIR may hold"),
    }


REFUSALS = ["no root", "old python", "no python", "no venv", "python out of sight", "no such wheel", "no checkout"]
REFUSALS += ["no interpreter", "no name", "root as prefix", "relative", "blank", "no space"]


@pytest.mark.parametrize("why", REFUSALS)
def test_it_refuses_in_one_line_before_it_changes_anything(why: str, tmp_path: Path) -> None:
    installer = Installer(tmp_path)
    cases = refusals(installer)
    package = ["--from", str(wheel(tmp_path, "1.0"))]
    cases["no space"] = (["--python", sys.executable, *package], {}, "has 17 MiB free, installing takes")
    arguments, env, said = cases[why]
    if why == "no space":
        installer.free_mib(17)
    installer.program("id", f"echo {0 if why == 'python out of sight' else 1000}")
    if "DESTDIR" in env:
        arguments = [*arguments, *([] if "--from" in arguments else package)]
    elif why in ("old python", "no python", "no venv"):
        arguments = [*arguments, *package]
    done = installer.run(*arguments, env=env)
    assert done.returncode == 1
    assert re.search(said, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""
    assert not installer.stage.exists()


def test_it_does_not_install_into_a_directory_that_holds_something_else(tmp_path: Path) -> None:
    installer = Installer(tmp_path)
    (installer.prefix / "share").mkdir(parents=True)
    done = installer.run("--python", sys.executable, "--from", str(wheel(tmp_path, "1.0")))
    assert done.returncode == 1 and "holds something else" in done.stderr
    assert [path.name for path in installer.prefix.iterdir()] == ["share"]


def test_its_help_names_every_option_and_variable(tmp_path: Path) -> None:
    text = (ROOT / "install.sh").read_text()
    done = Installer(tmp_path).run("--help")
    assert done.returncode == 0 and done.stderr == ""
    for option in set(re.findall(r"^ +(--[a-z-]+)(?: \| -h)?\)", text, re.MULTILINE)):
        assert option in done.stdout, option
    for variable in ("PREFIX", "DESTDIR", "TORCH_INDEX", "PIP_NO_INDEX"):
        assert variable in done.stdout
    assert Installer(tmp_path / "again").run("--nonsense").returncode == 2


def test_make_installs_and_uninstalls_by_it() -> None:
    for target, command in (("install", "./install.sh"), ("uninstall", "./install.sh --uninstall")):
        done = subprocess.run(["make", "-n", "-C", str(ROOT), target], capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines()[-2 if "Leaving" in done.stdout else -1].strip() == command, done.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run(["shellcheck", str(ROOT / "install.sh")], capture_output=True, text=True, timeout=60)
    assert done.stdout == ""


@pytest.mark.skipif(shutil.which("logrotate") is None, reason="logrotate is not installed")
def test_rotating_by_logrotate_loses_no_record_and_doubles_none(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    configuration = tmp_path / "vigild.logrotate"
    text = (ROOT / "systemd/vigild.logrotate").read_text().replace("/var/lib/vigild", str(state))
    configuration.write_text(re.sub(r"\n +su .*", "", text))
    configuration.chmod(0o644)
    records = [b'{"id": "%d"}' % number for number in range(4)]
    with open_jsonl(state / "alerts.jsonl") as writer:
        for record in records[:3]:
            writer.append([record])
            writer.sync()
            command = ["logrotate", "--force", "--state", str(tmp_path / "rotated"), str(configuration)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0 and "error" not in done.stderr, done.stderr
        writer.append(records[3:])
    names = ["alerts.jsonl.3.gz", "alerts.jsonl.2.gz", "alerts.jsonl.1", "alerts.jsonl"]
    found = [subprocess.run(["zcat", "-f", str(state / name)], capture_output=True).stdout for name in names]
    assert found == [record + b"\n" for record in records]
