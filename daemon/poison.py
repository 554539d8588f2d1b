"""A frame that the running daemon cannot apply: the state is taken from disk again, and goes on without it.

The same as what recovery does with such a frame (`daemon.recovery`), without the restart: connections stay, and a
sender who sends the same poison again costs a reload each time, not the daemon.
"""

import logging
from collections.abc import Callable

from daemon.recovery import Fold, Poison, Recovered, Report, set_aside
from detection.detector import Detector
from detection.frames import Sequenced, count_lines, encode
from persistence.directory import StoreError
from persistence.segment import Entry
from persistence.store import Store

log = logging.getLogger(__name__)


class LeaveOut:
    """`skipped(seq)` is told of every frame that was left out and is to be journaled as such; `alive` is called
    between frames, a reload may take a while. Both are called in the thread that calls this."""

    def __init__(
        self, store: Store, recovered: Recovered, skipped: Callable[[int], None], alive: Callable[[], None]
    ) -> None:
        self._store = store
        self._report = recovered.report
        self._out = set(recovered.skipped)
        self._skipped = skipped
        self._alive = alive

    def __call__(self, item: Sequenced, error: Exception) -> Detector:
        """A detector that has seen everything before `item`, and `item` left out. Blocking.

        Raises StoreError or JournalError when the disk does not give back what is needed.
        """
        entry = Entry(item.seq, item.line, count_lines(item.frame), encode(item.frame))
        self._leave_out(entry, error)
        while True:
            try:
                detector = self._read_back(entry)
                break
            except Poison as poison:
                # It was applied before: by another process, perhaps of another version.
                self._leave_out(poison.entry, poison.__cause__)
        log.warning("the state of frame %d was read back from disk, without it", entry.seq)
        return detector

    def _leave_out(self, entry: Entry, error: BaseException | None) -> None:
        log.error("frame %d cannot be applied; it is set aside and skipped", entry.seq, exc_info=error)
        set_aside(self._store, entry, self._report)
        self._out.add(entry.seq)
        self._skipped(entry.seq)

    def _read_back(self, poison: Entry) -> Detector:
        report = Report()
        with self._store.reading_back(poison.seq) as (columns, entries):
            fold = Fold(self._store, report, columns)
            for entry in entries:
                if entry.seq in self._out:
                    fold.skip(entry)
                else:
                    fold.apply(entry)
                self._alive()
        if fold.lost:
            raise StoreError(f"{self._store.directory}: {'; '.join(report.notes)}")
        fold.skip(poison)
        return fold.detector
