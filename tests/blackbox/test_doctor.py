"""`vigilctl doctor` on a daemon that was started as a user starts one: it reports what is broken, and nothing else."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.running import Vigild, sample_lines, vigild

Examined = dict[str, tuple[str, str]]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vigild]:
    with vigild(tmp_path_factory.mktemp("doctor")) as daemon:
        yield daemon.start()


def run(daemon: Vigild, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "RUNTIME_DIRECTORY": str(daemon.runtime), "STATE_DIRECTORY": str(daemon.state)}
    env["NO_COLOR"] = "1"
    command = [sys.executable, "-m", "daemon.vigilctl", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60.0, check=False)


def doctor(daemon: Vigild) -> tuple[int, Examined]:
    """The exit status; of each check the worst finding's status and words."""
    done = run(daemon, "--json", "doctor")
    assert done.stderr == ""
    findings = sorted(json.loads(done.stdout), key=lambda each: ["ok", "warn", "fail"].index(each["status"]))
    for each in findings:
        assert set(each) == {"check", "status", "found", "do"} and (each["do"] is None) == (each["status"] == "ok")
    return done.returncode, {each["check"]: (each["status"], each["found"]) for each in findings}


def changed(before: Examined, after: Examined) -> dict[str, str]:
    """The checks whose status is another, and which."""
    return {name: after[name][0] for name in after if after[name][0] != before.get(name, ("ok", ""))[0]}


def test_a_daemon_that_is_well_has_nothing_that_fails(daemon: Vigild) -> None:
    daemon.send_lines(sample_lines()[:500])
    status, found = doctor(daemon)
    assert status == 0 and not [name for name in found if found[name][0] == "fail"], found
    assert {"python", "torch", "log.sock", "admin.sock", "state directory", "settings", "disk", "daemon"} <= set(found)
    assert {"exactly once", "training", "checkpoint", "clock", "memory", "kernel", "descriptors", "lock"} <= set(found)
    shown = run(daemon, "doctor")
    assert shown.returncode == 0 and shown.stdout.startswith("ok    python") and "\x1b" not in shown.stdout
    assert shown.stdout.splitlines()[-1].endswith("warn") or shown.stdout.splitlines()[-1].endswith("ok")


def test_each_thing_that_is_broken_is_named_and_nothing_else(daemon: Vigild) -> None:
    _, well = doctor(daemon)
    settings = daemon.state.parent / "vigild.toml"
    kept = settings.read_text()
    faults: dict[str, Callable[[], object]] = {
        "log.sock": lambda: (daemon.runtime / "log.sock").chmod(0o600),
        "admin.sock": lambda: (daemon.runtime / "admin.sock").chmod(0o666),
        "state directory": lambda: daemon.state.chmod(0o755),
        "runtime directory": lambda: daemon.runtime.chmod(0o777),
        "settings": lambda: settings.write_text("[learning]\nwarmup_line = 5\n"),
    }
    for check, break_it in faults.items():
        break_it()
        status, ill = doctor(daemon)
        assert (status, changed(well, ill)) == (1, {check: "fail"}), ill[check]
        for path, mode in ((daemon.runtime / "log.sock", 0o660), (daemon.runtime / "admin.sock", 0o660)):
            path.chmod(mode)
        daemon.state.chmod(0o700)
        daemon.runtime.chmod(0o700)
        settings.write_text(kept)
    (daemon.state / "frame-7.bad").touch()
    status, ill = doctor(daemon)
    assert (status, changed(well, ill)) == (0, {"state files": "warn"})
    (daemon.state / "frame-7.bad").unlink()
    status, mended = doctor(daemon)
    assert (status, changed(well, mended)) == (0, {})


def test_a_daemon_that_is_down_is_the_one_thing_that_fails(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        before = doctor(daemon)
        assert (before[0], before[1]["daemon"][0]) == (1, "fail") and "no daemon answers" in before[1]["daemon"][1]
        daemon.launch()
        daemon.wait(lambda: daemon.health() != {})
        during = doctor(daemon)
        assert during[0] == 0 and during[1]["daemon"][0] in ("ok", "warn"), during
        daemon.wait(lambda: daemon.health()["status"] == "serving")
        assert doctor(daemon)[1]["daemon"][0] == "ok"
        daemon.kill()
        after = doctor(daemon)
        assert after[0] == 1 and [name for name in after[1] if after[1][name][0] == "fail"] == ["daemon"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m,mode=700", "none", str(state)], check=True)
    try:
        with vigild(tmp_path) as daemon:
            daemon.start()
            _, small = doctor(daemon)
            assert small["disk"][0] == "warn"
            with open(state / "filling", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, 60 << 20)
            status, full = doctor(daemon)
            assert (status, changed(small, full)) == (1, {"disk": "fail"})
    finally:
        subprocess.run(["umount", "--lazy", str(state)], check=True)
