"""Not a test: the real daemon with a fault built in, which is no switch of the product."""

from benchmarks.running import Vigild

_RUN = """
import sys
from daemon.main import main
sys.exit(main(sys.argv[1:]))
"""


def alter(daemon: Vigild, code: str) -> None:
    """Have `code` run in the process of `daemon` before anything else, from its next start on."""
    python, *_, config_flag, config, state_flag, state = daemon.command
    daemon.command = [python, "-c", code + _RUN, config_flag, config, state_flag, state]
