"""Where vigild keeps its state and its sockets when nobody says otherwise.

systemd says it (`STATE_DIRECTORY`, `RUNTIME_DIRECTORY`); root has the system's directories; anyone else has
the directories of the XDG base directory specification. Nothing heavy is imported here: `vigilctl` starts
with it.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

SYSTEM_STATE = Path("/var/lib/vigild")
SYSTEM_RUNTIME = Path("/run/vigild")


def state_directory(env: Mapping[str, str] = os.environ) -> Path:
    """The directory of what is remembered. It need not exist."""
    given = _given_by_systemd(env, "STATE_DIRECTORY")
    if given is not None:
        return given
    if os.geteuid() == 0:
        return SYSTEM_STATE
    return (_absolute(env.get("XDG_STATE_HOME")) or Path.home() / ".local" / "state") / "vigild"


def runtime_directory(env: Mapping[str, str] = os.environ) -> Path:
    """The directory of the sockets. It need not exist."""
    given = _given_by_systemd(env, "RUNTIME_DIRECTORY")
    if given is not None:
        return given
    if os.geteuid() == 0:
        return SYSTEM_RUNTIME
    user = os.geteuid()
    session = _absolute(env.get("XDG_RUNTIME_DIR")) or Path(f"/run/user/{user}")
    if session.is_dir():
        return session / "vigild"
    # No login session (cron, a bare container). The name is ours alone, and `make_private` refuses the
    # directory when somebody else got there first.
    return Path(tempfile.gettempdir()) / f"vigild-{user}"


def make_private(directory: Path) -> None:
    """Create `directory` with mode 0700 unless it is there; refuse one that another user owns.

    Raises PermissionError with a sentence in the latter case, NotADirectoryError for a file or a symbolic
    link that leads nowhere, and any other OSError as it comes. An existing directory keeps its mode: systemd
    and administrators choose it.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = directory.stat().st_uid
    if owner not in (os.geteuid(), 0):
        raise PermissionError(f"{directory}: is owned by user {owner}, not by us ({os.geteuid()})")


def _given_by_systemd(env: Mapping[str, str], name: str) -> Path | None:
    # Several StateDirectory= entries arrive separated by colons; the first is the main one.
    return _absolute(env.get(name, "").split(":")[0])


def _absolute(text: str | None) -> Path | None:
    # The XDG specification: relative paths are invalid and to be ignored. systemd's are always absolute.
    return Path(text) if text and os.path.isabs(text) else None
