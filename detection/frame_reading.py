"""The lines of a frame, read: their templates, the rules that hit them, and what online members read of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from detection.detector_state import Parts
from detection.frames import Segment
from detection.members.online import OnlineMembers, Read
from detection.members.parsed_lines import ParsedLines
from detection.rules.engine import Hits, RuleSet
from detection.scoring.batch import Batch
from detection.sessions.connections import LivingSources
from detection.sessions.intake import Intake, KeyPattern, read_lines, take_in_segments
from detection.settings import DetectionSettings, RuleText
from detection.verdicts.alerting import LinesOfBatch

CHUNK_LINES = 4096  # judged at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FrameLines:
    """The n lines of a frame. `hits` are those of rules that the operator has not called normal, `hit` float64 [n] the
    confidence of the surest of them, 0 where there is none; `read` is what online members read of the lines."""

    intake: Intake
    parsed: ParsedLines
    hits: Hits
    hit: Floats
    read: Read

    def __len__(self) -> int:
        return len(self.parsed.ids)

    def chunks(self) -> Iterator[slice]:
        """What is judged at a time."""
        return (slice(start, start + CHUNK_LINES) for start in range(0, len(self), CHUNK_LINES))

    def hits_in(self, chunk: slice) -> Hits:
        """The hits on the lines of a chunk, which are numbered from its start."""
        low, high = np.searchsorted(self.hits.lines, [chunk.start, chunk.stop])
        return Hits(lines=self.hits.lines[low:high] - chunk.start, rules=self.hits.rules[low:high])

    def shown(self, chunk: slice, clock: Floats) -> "ShownLines":
        """A chunk for its verdicts; a line without a time is shown with the log `clock` at it."""
        times = self.intake.times[chunk]
        return ShownLines(
            texts=self.intake.lines[chunk],
            times=np.where(np.isnan(times), clock, times),
            hits=self.hits_in(chunk),
            lines=LinesOfBatch(self.parsed, chunk.start, self.read),
        )

    def batch(self, chunk: slice, first_line: int, clock: Floats, online: OnlineMembers) -> Batch:
        """A chunk to judge, with the log clock at each of its lines; `online` members observe it."""
        return Batch(
            first_line=first_line,
            ids=self.parsed.ids[chunk],
            errors=self.intake.errors[chunk],
            clock=clock,
            hit=self.hit[chunk],
            online=online.observe(self.read, chunk, clock),
            origins=self.parsed.origins[chunk],
        )


@dataclass(frozen=True, slots=True)
class ShownLines:
    """What verdicts show of n lines: their texts, their times float64 [n] and the rules that hit them. `lines` is None
    where there are none, only closings."""

    texts: list[bytes]
    times: Floats
    hits: Hits
    lines: LinesOfBatch | None

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
        return cls(_compiled_rules(rules), None if key == "auto" else KeyPattern(key))

    def read(
        self, parts: Parts, segments: Sequence[Segment], living: LivingSources, clock: float, received: float
    ) -> FrameLines:
        """The lines that `segments` complete in `living`. Nothing is learned of them but their templates.

        `clock` is the log clock before them, `received` when they came.
        """
        intake = take_in_segments(segments, living, self.pattern, clock=clock, received=received)
        parsed = read_lines(intake, parts.templates.assign, self.rules)
        hits = parts.known.without_normal(self.rules, parsed.hits, parsed.ids)
        hit = self.rules.surest_confidences(hits, len(parsed.ids))
        return FrameLines(intake, parsed, hits, hit, parts.online.without(parts.withdrawn).read(parsed))


# Compiling takes a tenth of a second, and a state that is loaded, or reloaded, mostly has the same rules.
_compiled_rules = lru_cache(maxsize=4)(RuleSet.compile)
