"""Recovery beside everything else: a thread imports the heavy libraries and reads the state, while lines are journaled.

What it does is `daemon.startup.detector_recovery`; here is what connects that with the running actors.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from actors.scoring import Scoring
from actors.sequencer import Request, Sequencer, submit_frame
from daemon.host.watchdog_extension import WatchdogExtension
from daemon.startup.startup_scan import Found
from detection.frames import Frame, ModelFrame, SettingsFrame
from detection.models.model import Model
from persistence.journal import JournalError
from persistence.state_directory import StoreError
from persistence.store import Store

if TYPE_CHECKING:  # heavy imports come with them
    from daemon.startup.detector_recovery import Recovered
    from detection.verdicts.verdict_records import Verdicts

DEGRADED_DRAIN_SECONDS = 5.0  # what cannot be journaled now was never confirmed; a disk gets one more chance

log = logging.getLogger("vigild")


class BackgroundRecovery:
    """Reads the state of what was `found` in `store`; `stop` is set when the daemon is to stop."""

    def __init__(
        self, store: Store, found: Found, sequencer: Sequencer, watchdog: WatchdogExtension, stop: trio.Event
    ) -> None:
        self._store = store
        self._found = found
        self._sequencer = sequencer
        self._watchdog = watchdog
        self._stop = stop

    async def run(self, deliver: "Callable[[Verdicts], None]") -> "Recovered":
        """The state, read in a thread, in which `deliver` is called with replayed verdicts.

        Raises StoreError and JournalError when the disk fails, StoreError also when a stop comes while a decision
        cannot be journaled.
        """

        def deliver_replayed(verdicts: "Verdicts") -> None:
            deliver(verdicts)
            self._found.reading.note_replayed(verdicts.seq)

        def journal_from_thread(frame: Frame) -> None:
            trio.from_thread.run(self._journal_decision, frame)

        def recover_in_thread() -> "Recovered":
            # Imported while lines are taken already. torch is a second and more of that, and is imported with a model.
            from daemon.startup.detector_recovery import recover_detector

            return recover_detector(
                self._store, self._found, deliver_replayed, self._watchdog.extend, journal_from_thread
            )

        return await trio.to_thread.run_sync(recover_in_thread)

    async def _journal_decision(self, frame: Frame) -> None:
        """Have journaled what was decided about a frame that failed; nothing may go on without it.

        The disk may be full for a while; then this waits, and all that needs the state waits behind it, but for a stop.
        Raises StoreError when that comes.
        """
        with trio.CancelScope() as until_stop:
            async with trio.open_nursery() as waiting:
                waiting.start_soon(self._wait_for_stop, until_stop)
                if self._found.only_models_left and not self._store.is_journaling:
                    await start_journal(self._store, self._found)
                await self._sequencer.interject_frame(frame)
                waiting.cancel_scope.cancel()
        if until_stop.cancelled_caught:
            failure = self._sequencer.failure
            why = failure.error if failure is not None else "stopped"
            raise StoreError(f"what was decided about a frame that failed could not be journaled: {why}")

    async def _wait_for_stop(self, scope: trio.CancelScope) -> None:
        """When we are to stop, cancel `scope` a little later."""
        await self._watchdog.hold_until(self._stop)
        await trio.sleep(DEGRADED_DRAIN_SECONDS)
        scope.cancel()


async def start_journal(store: Store, found: Found) -> None:
    """Begin a new segment of the journal behind what was found."""
    try:
        await trio.to_thread.run_sync(store.start_journal, found.seq, found.line)
    except JournalError as exc:
        # There is a state to query; the sequencer tries again with the first frame, and says that lines wait.
        log.error("%s", exc)


async def bring_up_to_date(
    found: Found,
    recovered: "Recovered",
    settings: SettingsFrame,
    requests: "trio.MemorySendChannel[Request]",
    scoring: Scoring,
) -> None:
    """Apply what this start changes: a model lost or found, settings whose own frame could not be applied, members
    that were withdrawn before it. `settings` are those of this process."""
    detector = recovered.detector
    changes: list[tuple[Frame, Model | None]] = []
    if found.settings == settings and detector.settings != settings:
        changes.append((settings, None))
    if recovered.withdraw is not None:
        changes.append((ModelFrame(recovered.withdraw.generation, "", ""), None))
    if recovered.model is not None:
        changes.append(recovered.model)
    if recovered.members is not None:
        changes.append((recovered.members, None))
    for frame, model in changes:
        seq, _ = await submit_frame(requests, frame, model)
        await scoring.published.wait_for_frame(seq)


def known_through(found: Found, recovered: "Recovered") -> int:
    """The frame through which the state is what it was in the process before; 0 when something of it is missing.

    Template ids may have been given twice then, and what was learned from the old ones must not meet the new ones.
    """
    lost = found.lost_lines or found.frames_missing or recovered.report.lost_lines or recovered.report.set_aside
    return 0 if lost else found.seq
