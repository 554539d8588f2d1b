"""The default directories for state and sockets.

Those that systemd passes (`STATE_DIRECTORY`, `RUNTIME_DIRECTORY`); else for root the system's, for other users those
of the XDG base directory specification. Nothing heavy is imported here, as `vigilctl` imports this module.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

SYSTEM_STATE = Path("/var/lib/vigild")
SYSTEM_RUNTIME = Path("/run/vigild")


def state_directory(env: Mapping[str, str] = os.environ) -> Path:
    """The state directory. It need not exist."""
    given = _directory_given_by_systemd(env, "STATE_DIRECTORY")
    if given is not None:
        return given
    if os.geteuid() == 0:
        return SYSTEM_STATE
    return (_absolute_directory(env.get("XDG_STATE_HOME")) or Path.home() / ".local" / "state") / "vigild"


def runtime_directory(env: Mapping[str, str] = os.environ) -> Path:
    """The directory of the sockets. It need not exist."""
    given = _directory_given_by_systemd(env, "RUNTIME_DIRECTORY")
    if given is not None:
        return given
    if os.geteuid() == 0:
        return SYSTEM_RUNTIME
    user = os.geteuid()
    session = _absolute_directory(env.get("XDG_RUNTIME_DIR")) or Path(f"/run/user/{user}")
    if session.is_dir():
        return session / "vigild"
    # No login session (cron, a bare container). The name contains the user id, and `make_private_directory` refuses
    # the directory if another user created it first.
    return Path(tempfile.gettempdir()) / f"vigild-{user}"


def make_private_directory(directory: Path) -> None:
    """Create `directory` with mode 0700 unless it exists; refuse one that another user owns.

    Raises PermissionError with a sentence in the latter case, NotADirectoryError for a file or a dangling
    symbolic link, and other OSErrors unchanged. An existing directory keeps its mode: systemd and
    administrators choose it.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = directory.stat().st_uid
    if owner not in (os.geteuid(), 0):
        raise PermissionError(f"{directory}: is owned by user {owner}, not by us ({os.geteuid()})")


def _directory_given_by_systemd(env: Mapping[str, str], name: str) -> Path | None:
    # Several StateDirectory= entries arrive separated by colons; the first is the main one.
    return _absolute_directory(env.get(name, "").split(":")[0])


def _absolute_directory(text: str | None) -> Path | None:
    # The XDG specification: ignore relative paths, they are invalid. systemd's are always absolute.
    return Path(text) if text and os.path.isabs(text) else None
