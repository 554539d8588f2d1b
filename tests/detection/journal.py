"""A journal of frames and the detector that applies them, for tests; and the bundled real log to feed it."""

import gzip
import importlib.resources
from collections.abc import Iterator, Sequence
from typing import Any

from detection.detection_settings import DetectionSettings, LearningSettings, RuleText
from detection.detector import Detector
from detection.frames import Frame, LinesFrame, Segment, Sequenced, SettingsFrame, count_lines
from detection.models.model import Model
from detection.verdicts.verdict_records import Verdicts

RECEIVED = 1_700_100_000.0  # after all that the lines of tests are of
WARMUP = 3000
ATTACK = b'203.0.113.9 - - [17/May/2015:10:05:03 +0000] "GET /x?id=1%27%20UNION%20SELECT%201-- HTTP/1.1" 200 1 "-" "-"'


def sample() -> list[bytes]:
    packed = importlib.resources.files("daemon").joinpath("sample/access.log.gz").read_bytes()
    return gzip.decompress(packed).split(b"\n")[:-1]


def rules() -> tuple[RuleText, ...]:
    pack = importlib.resources.files("detection").joinpath("rulepack.toml").read_text("utf-8")
    return (RuleText("builtin", pack),)


def segment(lines: Sequence[bytes], source: str = "a-1", kind: str = "access", last: bool = False) -> Segment:
    return Segment(source, kind, b"".join(line + b"\n" for line in lines), len(lines), last=last)


class Journal:
    """Applies frames in order to one detector and remembers them."""

    def __init__(self, detector: Detector | None = None) -> None:
        self.detector = detector or Detector()
        self.items: list[Sequenced] = []

    def apply(self, frame: Frame, model: Model | None = None) -> Verdicts:
        line = self.detector.line + count_lines(frame)
        item = Sequenced(self.detector.seq + 1, line, frame, model)
        self.items.append(item)
        return self.detector.apply(item)

    def feed(
        self, lines: Sequence[bytes], *, kind: str = "access", source: str = "a-1", batch: int = 500
    ) -> list[dict[str, Any]]:
        """Apply `lines` in frames of `batch`; the records of what they flag."""
        found: list[dict[str, Any]] = []
        for start in range(0, len(lines), batch):
            frame = LinesFrame(RECEIVED, (segment(lines[start : start + batch], source, kind),))
            found += self.apply(frame).flagged()
        return found


def started(**changes: object) -> Journal:
    journal = Journal()
    journal.apply(SettingsFrame(replace_settings(**changes), rules()))
    return journal


def replace_settings(**changes: object) -> DetectionSettings:
    return DetectionSettings(**{"learning": LearningSettings(warmup_lines=WARMUP), **changes})  # type: ignore[arg-type]


def frames_of(lines: Sequence[bytes], sizes: Sequence[int]) -> Iterator[LinesFrame]:
    at = 0
    while at < len(lines):
        for size in sizes:
            if lines[at : at + size]:
                yield LinesFrame(RECEIVED + at, (segment(lines[at : at + size]),))
            at += size
