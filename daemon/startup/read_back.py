"""When the running daemon cannot apply a frame: read the state back from disk and apply it as `failing_frames` says.

This is what recovery does with such a frame (`daemon.startup.detector_recovery`), without the restart: connections stay
open, and a sender that sends the same poison again costs a reload each time, not the daemon.
"""

import logging
from collections.abc import Callable
from itertools import chain

from daemon.startup.detector_recovery import Fold, Recovered, Report
from daemon.startup.failing_frames import ApplyError, Replay
from detection.detector import Detector
from detection.frames import Sequenced, count_lines, encode_frame
from detection.verdicts.verdict_records import Verdicts
from persistence.journal_segment import Entry
from persistence.state_directory import StoreError
from persistence.store import Store

log = logging.getLogger(__name__)


class ReadBack:
    """Called when `apply` raised. `deliver` takes the verdicts of earlier frames that are judged again because of it;
    `alive` is called between frames, for this may take a while. Both are called in the calling thread."""

    def __init__(
        self,
        store: Store,
        recovered: Recovered,
        deliver: Callable[[Verdicts], None],
        alive: Callable[[], None],
    ) -> None:
        self._store = store
        self._report = recovered.report
        self._ladder = recovered.ladder
        self._deliver = deliver
        self._alive = alive

    def __call__(self, item: Sequenced, error: Exception) -> tuple[Detector, Verdicts]:
        """A detector that has applied everything through `item`, and the verdicts of `item`; the decision about it is
        journaled. Blocking.

        From here on no snapshot of the failed detector may be written. Raises StoreError or JournalError when the
        disk does not return what is needed.
        """
        entry = Entry(item.seq, item.line, count_lines(item.frame), encode_frame(item.frame))
        report = Report()
        failed = ApplyError(entry)
        failed.__cause__ = error
        self._ladder.record_failure(failed)
        with self._store.reading_back(item.seq) as (columns, entries):
            since = 0 if columns is None else int(columns["seq"])  # type: ignore[arg-type]
            if since < self._ladder.since:
                # The newer snapshots are damaged, and the start did not read the decisions from before them.
                with self._store.reading_back(item.seq) as (_, before):
                    self._ladder.read_decisions(since, before)
            replay = Replay(Fold(self._store, report, columns, item), self._ladder, self._alive, copies=True)
            for each in chain(entries, [entry]):
                applied = replay.apply(each)
                for verdicts in applied.reapplied:
                    self._deliver(verdicts)
                if replay.changed <= each.seq < item.seq:
                    self._deliver(applied.verdicts)
        if replay.fold.lost:
            raise StoreError(f"{self._store.directory}: {'; '.join(report.notes)}")
        self._report.retried_frames = self._ladder.retried
        log.warning("the state of frame %d was read back from disk", item.seq)
        return replay.fold.detector, applied.verdicts
