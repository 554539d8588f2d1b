import os
from pathlib import Path

import pytest

from daemon.host.page_token import TOKEN_NAME, open_page_token


def test_a_token_is_new_each_time_readable_by_the_group_and_gone_at_the_end(tmp_path: Path) -> None:
    path, tokens = tmp_path / TOKEN_NAME, set()
    before = os.umask(0o077)
    try:
        for _ in range(3):
            with open_page_token(tmp_path) as token:
                assert token is not None and len(token) > 40 and token.replace("-", "_").replace("_", "a").isalnum()
                assert path.read_text() == f"{token}\n"
                assert path.stat().st_mode & 0o777 == 0o640
                tokens.add(token)
            assert list(tmp_path.iterdir()) == []
    finally:
        os.umask(before)
    assert len(tokens) == 3


def test_what_a_killed_process_left_is_replaced_and_no_link_is_followed(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("mine")
    (tmp_path / TOKEN_NAME).symlink_to(target)
    (tmp_path / f".{TOKEN_NAME}.{os.getpid()}.tmp").symlink_to(target)
    with open_page_token(tmp_path) as token:
        assert (tmp_path / TOKEN_NAME).read_text() == f"{token}\n" and not (tmp_path / TOKEN_NAME).is_symlink()
    assert target.read_text() == "mine"


def test_the_token_of_another_daemon_in_the_same_directory_stays(tmp_path: Path) -> None:
    with open_page_token(tmp_path):
        other = open_page_token(tmp_path)
        token = other.__enter__()
    assert (tmp_path / TOKEN_NAME).read_text() == f"{token}\n"


def test_without_room_for_it_there_is_none_and_the_log_says_what_that_means(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_page_token(tmp_path / "missing") as token:
        assert token is None
    assert "page.token: not written (No such file or directory): the page cannot answer alerts" in caplog.text
