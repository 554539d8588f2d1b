"""The entry point: messages and exit status when the daemon cannot start."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import daemon.main

NOBODY = 65534


@pytest.mark.parametrize(("managed", "pauses"), [(True, [daemon.main.FAILED_PAUSE_SECONDS]), (False, [])])
def test_under_a_manager_that_starts_it_again_at_once_it_does_not_fail_ten_times_a_second(
    managed: bool,
    pauses: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("daemon.main.time.sleep", slept.append)
    monkeypatch.setattr("daemon.main.signal.signal", lambda *_: None)
    if managed:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    else:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert daemon.main.main(["--config", str(tmp_path / "none.toml")]) == 1
    assert slept == pauses
    assert capsys.readouterr().err.count("\n") == 1


def test_signals_at_the_very_start_neither_end_it_nor_make_it_print_a_traceback() -> None:
    code = """
import signal, sys
import daemon.main
assert "msgspec" not in sys.modules, "what takes long to import is imported before signals are seen to"
import daemon.settings_file
def load(*_):
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.raise_signal(number)
daemon.settings_file.load_settings = load
sys.exit(daemon.main.main([]))
"""
    env = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60.0)
    assert (done.returncode, done.stderr) == (130, "vigild: interrupted before it began\n")


def check(config: Path, state: Path) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "daemon.main", "--check", "--config", str(config), "--state-dir", str(state)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60.0, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can reach, with settings that name a token, and a state directory owned by nobody."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        home.chmod(0o755)
        (home / "vigild.toml").write_text('[admin]\ntoken_file = "token"\n')
        (home / "token").write_text("a-token-of-many-letters\n")
        (home / "token").chmod(0o600)
        (home / "state").mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(home / "state", NOBODY, NOBODY)
        yield home


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can find out what others may read")
def test_a_check_by_root_is_one_for_the_user_who_runs_the_service(place: Path) -> None:
    config, token, state = place / "vigild.toml", place / "token", place / "state"
    status, _, said = check(config, state)
    assert status == 1 and said.count("\n") == 1
    assert f"{token}: nobody, who runs the service, cannot read the token (permission denied)" in said
    assert f"LoadCredential=token:{token}" in said and 'token_file = "/run/credentials/vigild.service/token"' in said
    os.chown(token, NOBODY, NOBODY)
    assert check(config, state)[0] == 0
    # The directories on the path count, not the file's mode alone.
    place.chmod(0o700)
    status, _, said = check(config, state)
    assert status == 1 and f"{config}: nobody, who runs the service, cannot read it" in said
    # For a daemon that root runs, root's files are valid.
    os.chown(state, 0, 0)
    assert check(config, state)[0] == 0


def test_a_check_reads_settings_rules_and_token(place: Path) -> None:
    config, state = place / "vigild.toml", place / "none"
    status, said, _ = check(config, state)
    assert status == 0 and "rules are in order" in said
    (place / "token").write_text("short\n")
    assert check(config, state)[0] == 1
    config.write_text('[rules]\npaths = ["mine.toml"]\n')
    (place / "mine.toml").write_text("[[rule]]\nnonsense = 1\n")
    status, _, said = check(config, state)
    assert status == 1 and "mine.toml" in said
    config.write_text('[admin]\ntoken_file = "/run/credentials/vigild-not-there.service/token"\n')
    status, said, _ = check(config, state)
    assert status == 0 and "only while the service runs" in said


@pytest.mark.parametrize("kind", ["endless", "full", "fifo", "directory named like a file"])
def test_a_check_refuses_rules_and_settings_that_are_no_regular_file_instead_of_waiting(
    kind: str, tmp_path: Path
) -> None:
    path = {"endless": Path("/dev/zero"), "full": Path("/dev/full")}.get(kind, tmp_path / "rules" / "odd.toml")
    (tmp_path / "rules").mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    elif not path.exists():
        path.mkdir()
    config = tmp_path / "vigild.toml"
    config.write_text(f'[rules]\npaths = ["{path.parent if path.parent.name == "rules" else path}"]\n')
    assert check(config, tmp_path / "none") == (1, "", f"vigild: {path}: is not a regular file\n")
    assert check(path, tmp_path / "none") == (1, "", f"vigild: {path}: is not a regular file\n")


def test_a_link_to_a_rules_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.toml").write_text("")
    (tmp_path / "link.toml").symlink_to("real.toml")
    (tmp_path / "vigild.toml").write_text('[rules]\npaths = ["link.toml"]\n')
    assert check(tmp_path / "vigild.toml", tmp_path / "none")[0] == 0


def test_a_bad_session_key_prints_one_line(tmp_path: Path) -> None:
    config = tmp_path / "vigild.toml"
    config.write_text("[session]\nkey = '('\n")
    status, _, said = check(config, tmp_path / "none")
    assert status == 1 and said.count("\n") == 1 and "no regular expression that RE2 knows: missing )" in said
    # The control: RE2 has a line of its own to say, on descriptor 2.
    alone = [sys.executable, "-c", "import re2\ntry: re2.compile('(')\nexcept re2.error: pass"]
    assert "missing )" in subprocess.run(alone, capture_output=True, text=True, timeout=60.0, check=True).stderr
