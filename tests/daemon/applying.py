"""A small process that applies frames as the daemon does, each journaled first, and that can be killed anywhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daemon.startup.detector_recovery import Recovered, recover_detector
from daemon.startup.read_back import ReadBack
from daemon.startup.startup_scan import Found, scan_directory
from detection.columns.state_columns import digest
from detection.detector import Detector
from detection.frames import Frame, Sequenced, SkipFrame, WithdrawnFrame, count_lines, encode_frame
from detection.models.model import Model
from detection.verdicts.verdict_records import Verdicts
from persistence.journal_segment import Entry
from persistence.store import Store, open_store


class Killed(BaseException):
    """The process ends here."""


class Process:
    """`decided` are the frames that say what was done about others. `records` is what was flagged, as the file of
    alerts has it: of what is delivered again, nothing that is not behind the last id. `moment` is called at every
    moment at which a kill makes a difference, with a word for it. Members that were withdrawn come back at a start,
    unless not `bring_back`."""

    def __init__(
        self, store: Store, records: list[dict[str, Any]], moment: Callable[[str], None], *, bring_back: bool = True
    ) -> None:
        self.store = store
        self.records = records
        self.live = False  # False while it replays
        self.delivered: list[Verdicts] = []
        self.decided: list[Frame] = []
        self._moment = moment
        self._pending: list[Sequenced] = []
        self.found: Found = scan_directory(store)
        self.seq, self.line = self.found.seq, self.found.line
        store.start_journal(self.seq, self.line)
        self.recovered: Recovered = recover_detector(store, self.found, self._deliver, lambda: None, self._say)
        self.detector: Detector = self.recovered.detector
        self.recovered_digest = self.digest
        # The scan knows them before any frame is applied, poison or not.
        assert self.found.living == self.detector.living_sources()
        self._read_back = ReadBack(store, self.recovered, self._deliver, lambda: None)
        self._apply_pending()
        if bring_back and self.recovered.members is not None:
            self.apply(self.recovered.members)

    def apply(self, *frames: Frame, model: Model | None = None) -> None:
        for frame in frames:
            item = self._journaled(frame, model)
            self._apply(item)
            self._apply_pending()

    def _apply(self, item: Sequenced) -> None:
        self._moment("journaled")
        self.live = True
        try:
            verdicts = self.detector.apply(item)
        except Exception as exc:
            self.live = False
            self.detector, verdicts = self._read_back(item, exc)
        self._deliver(verdicts)

    def _apply_pending(self) -> None:
        while self._pending:
            self._apply(self._pending.pop(0))

    def _journaled(self, frame: Frame, model: Model | None = None) -> Sequenced:
        self.seq, self.line = self.seq + 1, self.line + count_lines(frame)
        self.store.append([Entry(self.seq, self.line, count_lines(frame), encode_frame(frame))])
        return Sequenced(self.seq, self.line, frame, model)

    def _say(self, frame: Frame) -> None:
        assert isinstance(frame, SkipFrame | WithdrawnFrame)
        self._moment("deciding")
        self.decided.append(frame)
        self._pending.append(self._journaled(frame))
        self._moment("decided")

    def _deliver(self, verdicts: Verdicts) -> None:
        self._moment("delivering")
        self.delivered.append(verdicts)
        last = (self.records[-1]["line"], self.records[-1]["id"]) if self.records else (0, "")
        self.records += [record for record in verdicts.flagged() if (record["line"], record["id"]) > last]
        self._moment("delivered")

    def save(self) -> None:
        name = self.detector.model.name
        self.store.write_snapshot(
            self.detector.seq, self.detector.line, self.detector.export(), models=[name] if name else []
        )

    @property
    def digest(self) -> str:
        return digest(self.detector.export())


@contextmanager
def process(
    directory: Path,
    records: list[dict[str, Any]] | None = None,
    moment: Callable[[str], None] = lambda _: None,
    *,
    bring_back: bool = True,
) -> Iterator[Process]:
    with open_store(directory) as store:
        yield Process(store, [] if records is None else records, moment, bring_back=bring_back)
