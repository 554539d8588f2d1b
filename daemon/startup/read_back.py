"""A frame that the running daemon cannot apply: the state is read back, and goes on as `daemon.startup.ladder` says.

The same as what recovery does with such a frame (`daemon.startup.replay`), without the restart: connections stay, and a
sender who sends the same poison again costs a reload each time, not the daemon.
"""

import logging
from collections.abc import Callable
from itertools import chain

from daemon.startup.ladder import ApplyError, Replay
from daemon.startup.replay import Fold, Recovered, Report
from detection.detector import Detector
from detection.frames import Sequenced, count_lines, encode
from detection.verdicts.records import Verdicts
from persistence.directory import StoreError
from persistence.segment import Entry
from persistence.store import Store

log = logging.getLogger(__name__)


class ReadBack:
    """What the running daemon does when `apply` raised. `deliver` gets the verdicts of frames that are judged anew
    because of it, all before this one; `alive` is called between frames, for this may take a while. Both are called
    in the thread that calls this."""

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
        """A detector that has seen everything through `item`, and the verdicts of that; with whatever was decided
        about it journaled. Blocking.

        No snapshot of the spoilt detector's may be written from here on. Raises StoreError or JournalError when the
        disk does not give back what is needed.
        """
        entry = Entry(item.seq, item.line, count_lines(item.frame), encode(item.frame))
        report = Report()
        failed = ApplyError(entry)
        failed.__cause__ = error
        self._ladder.failed(failed)
        with self._store.reading_back(item.seq) as (columns, entries):
            since = 0 if columns is None else int(columns["seq"])  # type: ignore[arg-type]
            if since < self._ladder.since:
                # The snapshots since are damaged; of what was decided before them the start did not have to know.
                with self._store.reading_back(item.seq) as (_, before):
                    self._ladder.learn(since, before)
            replay = Replay(Fold(self._store, report, columns, item), self._ladder, self._alive, copies=True)
            for each in chain(entries, [entry]):
                taken = replay.take(each)
                for verdicts in taken.again:
                    self._deliver(verdicts)
                if replay.changed <= each.seq < item.seq:
                    self._deliver(taken.verdicts)
        if replay.fold.lost:
            raise StoreError(f"{self._store.directory}: {'; '.join(report.notes)}")
        self._report.retried_frames = self._ladder.retried
        log.warning("the state of frame %d was read back from disk", item.seq)
        return replay.fold.detector, taken.verdicts
