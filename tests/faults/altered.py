"""Not a test: runs the real daemon with a fault, or with brief trainings, patched in from outside."""

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
from daemon.startup.background_recovery import BackgroundRecovery
recover = BackgroundRecovery.run
async def late(self, *args):
    import trio
    while not Path({gate!r}).exists():
        await trio.sleep(0.02)
    return await recover(self, *args)
BackgroundRecovery.run = late
"""
# A tenth of the steps: for what needs a model, and none that has learned well.
BRIEF_TRAINING = """
import actors.training
train = actors.training.train_in_child
trainer = '''
import sys
import daemon.trainer as trainer
yield_to_everyone = trainer._take_lowest_priority
def before_the_libraries_are_imported():
    yield_to_everyone()
    from detection.members.transformer import fitting
    fitting.FEWEST_STEPS = fitting.MOST_STEPS = 20
trainer._take_lowest_priority = before_the_libraries_are_imported
sys.exit(trainer.main(sys.argv[1:]))
'''
async def train_briefly(command, *rest):
    assert command[1:3] == ["-m", "daemon.trainer"], command
    return await train([command[0], "-c", trainer, *command[3:]], *rest)
actors.training.train_in_child = train_briefly
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
