"""vigild, the daemon: reads its settings, opens its sockets, recovers its state, runs the actors, stops in order.

The sockets listen before anything heavy is imported: a sender may connect within milliseconds of the
start, and what it sends waits in the kernel until the state is there.
"""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daemon.settings_file import Settings

# A service manager starts us again at once, which is right when we were killed. What failed mostly fails again.
FAILED_PAUSE_SECONDS = 1.0

log = logging.getLogger("vigild")

_EPILOG = """\
Without a settings file everything has a default. Files are looked for in --config, $VIGILD_CONFIG and
/etc/vigild/vigild.toml. The state lives in --state-dir, $STATE_DIRECTORY, /var/lib/vigild (as root) or
~/.local/state/vigild; the sockets log.sock and admin.sock in $RUNTIME_DIRECTORY, /run/vigild or
$XDG_RUNTIME_DIR/vigild.

  vigild &                            start; then
  vigilctl send access.log            feed it a file,
  vigilctl status                     see what it knows,
  vigilctl tail                       and what it flags.

SIGTERM stops it with a last snapshot; SIGHUP reads the settings and rules again.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 a clean stop, 1 failed (one line on stderr says why), 2 wrong usage, 130 interrupted
    before it had anything to save."""
    managed = "NOTIFY_SOCKET" in os.environ
    status = 1
    try:
        status = _run_vigild(arguments)
    except KeyboardInterrupt:  # the event loop, which stops in order, had not taken the signal over yet
        print("vigild: interrupted before it began", file=sys.stderr)
        status = 130
    finally:
        if managed and status:
            time.sleep(FAILED_PAUSE_SECONDS)
    return status


def _run_vigild(arguments: Sequence[str] | None) -> int:
    # Until the event loop takes them: the settings have only just been read, there is nothing to reload. First of
    # all, for by default they would end us.
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    from daemon.default_directories import state_directory
    from daemon.host.process_limits import LimitError, refuse_small_limits
    from daemon.settings_file import SettingsError, load_settings, read_rules, read_token

    options = _vigild_parser().parse_args(arguments)
    _log_to_stderr()
    try:
        settings = load_settings(options.config, os.environ)
        if options.check:
            return _check_config(settings, options.state_dir or state_directory())
        rules = read_rules(settings)
        token = read_token(settings)
        refuse_small_limits()
    except (SettingsError, LimitError) as exc:
        return _print_failure(str(exc))
    from daemon.lifecycle import DaemonFailed, run_daemon

    try:
        run_daemon(
            settings,
            rules,
            token,
            config=options.config,
            state_directory=options.state_dir or state_directory(),
        )
    except DaemonFailed as exc:
        return _print_failure(str(exc))
    return 0


def _vigild_parser() -> argparse.ArgumentParser:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(
        prog="vigild",
        description="Watches log lines, learns what is normal, flags what is not, and never forgets it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (TOML)")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="where to remember")
    parser.add_argument(
        "--check",
        action="store_true",
        help="check settings, rules and token (as root: for the service's user), and exit",
    )
    parser.add_argument("--version", action="version", version=f"vigild {version('vigild')}")
    return parser


def _check_config(settings: "Settings", state: Path) -> int:
    """As root, also whether the user who owns `state`, or will own it, can read what is to be read."""
    from daemon.check_config import check_config
    from daemon.file_access import service_user

    checked = check_config(settings, service_user(state), os.environ.get("VIGILD_INSTANCE"))
    where = settings.path or "no file, defaults"
    print(f"settings ({where}) and {checked.rules} rules are in order")
    if checked.token_later:
        print(f"the token ({checked.token}) is there only while the service runs, and was not read")
    return 0


def _log_to_stderr() -> None:
    """One line an event; under journald with its level, which also knows the time."""
    journal = "JOURNAL_STREAM" in os.environ
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_JournalFormatter() if journal else plain)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


_LEVELS = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


class _JournalFormatter(logging.Formatter):
    """A level prefix on every line, as sd-daemon(3) reads it."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_LEVELS.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def _print_failure(message: str) -> int:
    print(f"vigild: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
