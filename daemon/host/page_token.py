"""The token that the daemon makes for its page, where the settings name none: `page.token` in the runtime directory.

Whoever may read that file may change the state over TCP. That is the daemon's user and its group, as with admin.sock.
"""

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

TOKEN_NAME = "page.token"
TOKEN_MODE = 0o640
TOKEN_BYTES = 32

log = logging.getLogger(__name__)


@contextlib.contextmanager
def open_page_token(directory: Path) -> Iterator[str | None]:
    """A new token, in `directory` for as long as the context lasts; one that a killed process left is replaced.

    None, and a warning, when it cannot be written: then nothing can be changed over TCP, and everything else works.
    """
    path, token = directory / TOKEN_NAME, secrets.token_urlsafe(TOKEN_BYTES)
    try:
        identity = _write_page_token(path, f"{token}\n".encode())
    except OSError as exc:
        log.warning("%s: not written (%s): the page cannot answer alerts", path, exc.strerror)
        yield None
        return
    try:
        yield token
    finally:
        with contextlib.suppress(OSError):  # another daemon in this directory may have put its own there
            if _page_token_identity(path) == identity:
                path.unlink()


def _write_page_token(path: Path, content: bytes) -> tuple[int, int]:
    # Renamed into place: nobody reads half a token, and a link that somebody left at `path` is not followed.
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):  # left by a killed process that had our number
        temp.unlink()
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), TOKEN_MODE)  # only now, and whatever the umask
        os.replace(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the error that led here is the one to report
            temp.unlink()
        raise
    return _page_token_identity(path)


def _page_token_identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
