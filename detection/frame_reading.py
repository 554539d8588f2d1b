"""From a frame to its lines as read, and to what verdicts show of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.detection_settings import DetectionSettings, RuleText
from detection.detector_state import Parts
from detection.frames import Segment
from detection.rules.rule_matching import Hits, RuleSet, compiled_rules
from detection.scoring.lines_read import LinesRead
from detection.sessions.intake import take_in_segments
from detection.sessions.key_pattern import KeyPattern
from detection.sessions.living_sources import LivingSources
from detection.verdicts.alerting import LinesOfBatch

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ShownLines:
    """What verdicts show of n lines: their texts, their times float64 [n] and the rules that hit them. `lines` is None
    where there are none, only closings."""

    texts: list[bytes]
    times: Floats
    hits: Hits
    lines: LinesOfBatch | None

    @classmethod
    def of_chunk(cls, lines: LinesRead, chunk: slice, clock: Floats) -> "ShownLines":
        """A chunk of `lines`; a line without a time is shown with the log `clock` at it."""
        times = lines.intake.times[chunk]
        return cls(
            texts=lines.intake.lines[chunk],
            times=np.where(np.isnan(times), clock, times),
            hits=lines.hits_in(chunk),
            lines=LinesOfBatch(lines.parsed, chunk.start, lines.read),
        )

    @classmethod
    def nothing(cls) -> "ShownLines":
        return cls([], np.zeros(0), Hits.none(), None)


@dataclass(frozen=True, slots=True)
class FrameReader:
    """What lines are read with: the compiled rules, and the pattern of session keys (None: the formats' own keys)."""

    rules: RuleSet
    pattern: KeyPattern | None

    @classmethod
    def of(cls, settings: DetectionSettings, rules: tuple[RuleText, ...]) -> "FrameReader":
        key = settings.session.key
        return cls(compiled_rules(rules), None if key == "auto" else KeyPattern(key))

    def read(
        self, parts: Parts, segments: Sequence[Segment], living: LivingSources, clock: float, received: float
    ) -> LinesRead:
        """The lines that `segments` complete in `living`. Nothing is learned of them but their templates.

        `clock` is the log clock before them, `received` when they came.
        """
        intake = take_in_segments(segments, living, self.pattern, clock=clock, received=received)
        online = parts.online.without(parts.withdrawn)
        return LinesRead.of(intake, parts.templates.assign, self.rules, parts.known, online)
