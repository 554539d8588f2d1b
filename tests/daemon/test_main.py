"""The entry point: what is said and how it ends when it cannot start."""

from pathlib import Path

import pytest

import daemon.main


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
    if managed:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    else:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert daemon.main.main(["--config", str(tmp_path / "none.toml")]) == 1
    assert slept == pauses
    assert capsys.readouterr().err.count("\n") == 1
