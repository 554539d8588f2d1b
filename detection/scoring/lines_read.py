"""Lines as they were read, before they are judged: those of a frame, and those of a query."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from detection.causes.known_causes import KnownCauses
from detection.members.all_online_members import OnlineMembers, Read
from detection.members.fitted_member_view import Floats
from detection.members.parsed_lines import ParsedLines
from detection.rules.rule_matching import Hits, RuleSet
from detection.scoring.batch import Batch
from detection.sessions.intake import Intake, TemplateIds, read_lines

CHUNK_LINES = 4096  # judged at a time


@dataclass(frozen=True, slots=True)
class LinesRead:
    """n lines. `hits` are those of rules that the operator has not called normal, `hit` float64 [n] the confidence of
    the surest of them, 0 where there is none; `read` is what online members read of the lines."""

    intake: Intake
    parsed: ParsedLines
    hits: Hits
    hit: Floats
    read: Read

    @classmethod
    def of(cls, intake: Intake, ids_of: TemplateIds, rules: RuleSet, known: KnownCauses, online: OnlineMembers) -> Self:
        """Read the lines of `intake`. Changes nothing, unless `ids_of` learns new templates."""
        parsed = read_lines(intake, ids_of, rules)
        hits = known.without_normal(rules, parsed.hits, parsed.ids)
        return cls(intake, parsed, hits, rules.surest_confidences(hits, len(parsed.ids)), online.read(parsed))

    def __len__(self) -> int:
        return len(self.parsed.ids)

    def chunks(self) -> Iterator[slice]:
        """What is judged at a time."""
        return (slice(start, start + CHUNK_LINES) for start in range(0, len(self), CHUNK_LINES))

    def hits_in(self, chunk: slice) -> Hits:
        """The hits on the lines of a chunk, which are numbered from its start."""
        low, high = np.searchsorted(self.hits.lines, [chunk.start, chunk.stop])
        return Hits(lines=self.hits.lines[low:high] - chunk.start, rules=self.hits.rules[low:high])

    def batch(self, chunk: slice, first_line: int, clock: Floats, online: Floats) -> Batch:
        """A chunk to judge, with the log clock at each of its lines, and their online scores [n, K]."""
        return Batch(
            first_line=first_line,
            ids=self.parsed.ids[chunk],
            errors=self.intake.errors[chunk],
            clock=clock,
            hit=self.hit[chunk],
            online=online,
            origins=self.parsed.origins[chunk],
        )
