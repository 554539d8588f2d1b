import os
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.default_directories import make_private_directory, runtime_directory, state_directory


@pytest.fixture
def uid(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    return 4321


def test_the_directories_that_systemd_passes_win(uid: int) -> None:
    env = {"STATE_DIRECTORY": "/var/lib/vigild/web:/var/lib/more", "RUNTIME_DIRECTORY": "/run/vigild/web"}
    assert state_directory(env) == Path("/var/lib/vigild/web")
    assert runtime_directory(env) == Path("/run/vigild/web")


def test_root_has_the_directories_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    env = {"XDG_STATE_HOME": "/home/x", "XDG_RUNTIME_DIR": "/run/user/0"}
    assert state_directory(env) == Path("/var/lib/vigild")
    assert runtime_directory(env) == Path("/run/vigild")


def test_others_have_the_xdg_directories(uid: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_directory({"XDG_STATE_HOME": "/elsewhere"}) == Path("/elsewhere/vigild")
    assert runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "vigild"

    monkeypatch.setenv("HOME", "/home/somebody")
    usual = Path("/home/somebody/.local/state/vigild")
    assert state_directory({}) == usual
    assert state_directory({"XDG_STATE_HOME": "relative/is/invalid"}) == usual


def test_without_a_login_session_the_sockets_go_to_a_directory_of_the_users_own(
    uid: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert runtime_directory({}) == tmp_path / "vigild-4321"
    assert runtime_directory({"XDG_RUNTIME_DIR": str(tmp_path / "gone")}) == tmp_path / "vigild-4321"


def test_a_private_directory_is_made_with_its_parents_and_keeps_its_mode_later(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    make_private_directory(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o755)
    make_private_directory(directory)
    assert directory.stat().st_mode & 0o777 == 0o755


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, uid: int) -> None:
    if tmp_path.stat().st_uid == 0:
        os.chown(tmp_path, 1234, -1)
    with pytest.raises(PermissionError, match=r"is owned by user \d+, not by us"):
        make_private_directory(tmp_path)


@pytest.mark.slow
def test_the_command_line_tool_can_import_it_without_weight() -> None:
    heavy = ("numpy", "trio", "msgspec")
    code = f"import sys, daemon.default_directories; print(any(name in sys.modules for name in {heavy}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
