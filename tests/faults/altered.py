"""Not a test: runs the real daemon with a fault patched in from outside."""

from pathlib import Path

from benchmarks.running import Vigild

_RUN = """
import sys
from daemon.main import main
sys.exit(main(sys.argv[1:]))
"""
# The state is read only when the test allows it.
STATE_WAITS = """
import time
from pathlib import Path
from daemon.startup.recovery import BackgroundRecovery
recover = BackgroundRecovery.run
async def late(self, *args):
    import trio
    while not Path({gate!r}).exists():
        await trio.sleep(0.02)
    return await recover(self, *args)
BackgroundRecovery.run = late
"""


def waiting(gate: Path) -> str:
    """Code for a start that has no state before `gate` exists."""
    return STATE_WAITS.format(gate=str(gate))


def alter(daemon: Vigild, code: str) -> None:
    """Make `daemon` execute `code` before anything else, from its next start on."""
    daemon.command[1:3] = ["-c", code + _RUN]


def restore(daemon: Vigild) -> None:
    """Undo `alter`."""
    daemon.command[1:3] = ["-m", "daemon.main"]
