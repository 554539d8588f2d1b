"""Dockerfile and compose.yaml name what the program really has, and the healthcheck says what `/health` says."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon.default_directories import runtime_directory, state_directory
from daemon.lifecycle import DRAIN_SECONDS
from daemon.settings_file import load_settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
VIGILD: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["vigild"]
STARTS_SECONDS = 60


def instructions(name: str, text: str = DOCKERFILE) -> list[str]:
    return re.findall(rf"^{name} +(.+)$", text, re.M)


def variables() -> dict[str, str]:
    return dict(pair.split("=", 1) for each in instructions("ENV") for pair in shlex.split(each))


def test_every_file_that_is_copied_is_there_and_reaches_the_build() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source for each in instructions("COPY") if not each.startswith("--from=") for source in shlex.split(each)[:-1]
    }
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*wheel["packages"], "pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert Path(source).parts[0] in let_through, source


def test_state_and_log_socket_lie_where_the_volumes_are() -> None:
    env = variables()
    settings = load_settings(ROOT / "install/container.toml", {})
    state, runtime = state_directory(env), runtime_directory(env)
    log_directory = Path(settings.ingest.socket).parent
    [volumes] = instructions("VOLUME")
    assert yaml.safe_load(volumes) == [str(state), str(log_directory)]
    assert [volume.split(":")[1] for volume in VIGILD["volumes"]] == [str(state), str(log_directory)]
    # The rest of the root is read-only. Senders share the directory of the log socket and not that of admin.sock.
    assert VIGILD["read_only"] is True
    assert str(runtime.parent) in VIGILD["tmpfs"]
    assert log_directory != runtime
    assert list(settings.admin.bind) == ["unix:admin.sock", "127.0.0.1:8765"]


def test_it_runs_as_a_user_without_rights_who_owns_its_directories() -> None:
    [made] = [each for each in instructions("RUN") if "useradd" in each]
    assert instructions("USER") == ["vigild"]
    assert "useradd --uid 990 --gid vigild " in made
    assert "groupadd --gid 991 vigild-log" in made
    # The group of what is made in the directory is the directory's: whoever is in it may write to log.sock.
    assert "install -d -o vigild -g vigild-log -m 2750 /run/vigild-log" in made
    assert "install -d -o vigild -g vigild -m 700 /var/lib/vigild" in made
    assert VIGILD["cap_drop"] == ["ALL"]
    assert VIGILD["security_opt"] == ["no-new-privileges:true"]
    assert VIGILD["network_mode"] == "none"
    assert "ports" not in VIGILD


def test_the_commands_are_the_packages_own() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    [command] = instructions("CMD")
    assert yaml.safe_load(command) == ["/opt/vigild/bin/vigild"]
    assert "vigild" in scripts and "vigilctl" in scripts
    assert variables()["PATH"].startswith("/opt/vigild/bin:")
    [check] = instructions("HEALTHCHECK")
    words = check.partition(" CMD ")
    assert VIGILD["healthcheck"]["test"] == ["CMD", *yaml.safe_load(words[2])]
    told = dict(option.removeprefix("--").split("=") for option in words[0].split())
    assert told == {
        name.replace("_", "-"): str(value) for name, value in VIGILD["healthcheck"].items() if name != "test"
    }


def test_it_is_given_longer_to_stop_than_it_takes() -> None:
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    grace = VIGILD["stop_grace_period"]
    assert grace.endswith("s") and int(grace[:-1]) >= 2 * DRAIN_SECONDS


def test_the_healthcheck_is_0_while_a_daemon_serves_and_1_when_none_does(tmp_path: Path) -> None:
    settings = tmp_path / "vigild.toml"
    settings.write_text('[admin]\nbind = ["unix:admin.sock"]\n')
    runtime = tmp_path / "r"
    env = os.environ | {"RUNTIME_DIRECTORY": str(runtime), "STATE_DIRECTORY": str(tmp_path / "state")}
    module = VIGILD["healthcheck"]["test"][2:]

    def check() -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, *module], env=env, cwd=ROOT, capture_output=True, text=True, timeout=30)

    before = check()
    assert before.returncode == 1 and "admin.sock" in before.stdout
    command = [sys.executable, "-m", "daemon.main", "--config", str(settings)]
    with subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE) as daemon:
        try:
            deadline = time.monotonic() + STARTS_SECONDS
            while (said := check()).returncode:
                assert time.monotonic() < deadline and daemon.poll() is None, said.stdout
            assert '"status":"serving"' in said.stdout
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.communicate(timeout=60)
    assert daemon.returncode == 0
    assert check().returncode == 1


@pytest.mark.parametrize("answer", ["503 Service Unavailable", "200 OK"])
def test_the_healthcheck_goes_by_the_status_and_not_by_the_words(answer: str, tmp_path: Path) -> None:
    """A daemon that is degraded answers 200 and is left alone."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "admin.sock"))
        listener.listen()
        env = os.environ | {"RUNTIME_DIRECTORY": str(tmp_path)}
        command = [sys.executable, *VIGILD["healthcheck"]["test"][2:]]
        with subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True) as checking:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(4096).startswith(b"GET /health HTTP/1.1\r\n")
                body = '{"status":"degraded"}'
                connection.sendall(f"HTTP/1.1 {answer}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
                said, _ = checking.communicate(timeout=30)
        assert said == body + "\n"
        assert checking.returncode == (0 if answer.startswith("200") else 1)
