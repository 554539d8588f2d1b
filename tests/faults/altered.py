"""Not a test: the real daemon with a fault built in, which is no switch of the product."""

from benchmarks.running import Vigild

_RUN = """
import sys
from daemon.main import main
sys.exit(main(sys.argv[1:]))
"""


def alter(daemon: Vigild, code: str) -> None:
    """Have `code` run in the process of `daemon` before anything else, from its next start on."""
    daemon.command[1:3] = ["-c", code + _RUN]


def restore(daemon: Vigild) -> None:
    """Undo `alter`."""
    daemon.command[1:3] = ["-m", "daemon.main"]
