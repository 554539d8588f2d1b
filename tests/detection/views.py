"""Views made by hand: rows of sessions, whole or a part at a time, with the lines before as context."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.columns.runs import repeat_per_row
from detection.members.fitted_member_view import CLOSING, COUNT_BUCKETS, Carry, View, with_templates_counted
from detection.members.registry import ONLINE_NAMES


@dataclass(frozen=True)
class Line:
    template: int
    gap: float = 1.0  # seconds since the line before
    error: bool = False


@dataclass(frozen=True)
class Session:
    """Its lines, whether it ends by silence after them, and whether the first of them is its true beginning."""

    lines: Sequence[Line]
    ends: bool = True
    starts: bool = True

    @property
    def rows(self) -> int:
        return len(self.lines) + (self.ends and len(self.lines) > 0)


def sessions(*templates: Sequence[int], ends: bool = True, starts: bool = True) -> list[Session]:
    return [Session([Line(template) for template in each], ends, starts) for each in templates]


class Growing:
    """Sessions of which a part is seen at a time; what they bring along is kept in between."""

    def __init__(self, whole: Sequence[Session], members: int, muted: Collection[int] = ()) -> None:
        self._whole, self._muted = whole, muted
        self._done = [0] * len(whole)
        self.carry = Carry.new(len(whole), members)
        self._counts = np.zeros((len(whole), COUNT_BUCKETS), dtype=np.uint8)

    def see(self, rows: Sequence[int] | None = None) -> View:
        """The next `rows` of each session, by default all that are left. Put `Standing.after()` into `carry` then."""
        stops = [session.rows if rows is None else min(done + more, session.rows)
                 for session, done, more in zip(self._whole, self._done, rows or self._done, strict=True)]  # fmt: skip
        tokens: list[int] = []
        templates: list[int] = []
        errors: list[bool] = []
        times: list[float] = []
        held, sizes, lengths = [], [], []
        for session, begin, stop in zip(self._whole, self._done, stops, strict=True):
            clock = np.cumsum([line.gap for line in session.lines]).tolist()
            through = min(stop, len(session.lines))
            lines = session.lines[begin:through]
            closing = session.ends and begin < stop == session.rows
            held.append(min(begin, len(session.lines)))
            tokens += [line.template for line in session.lines[:through]]
            lengths.append(through)
            sizes.append(stop - begin)
            templates += [line.template for line in lines] + [CLOSING] * closing
            errors += [line.error for line in lines] + [False] * closing
            times += clock[begin:through] + clock[-1:] * closing
        offsets, token_offsets = _offsets(sizes), _offsets(lengths)
        piece = repeat_per_row(offsets)
        of_lines = np.array(templates, dtype=np.int32)
        is_line = of_lines != CLOSING
        self._counts = with_templates_counted(self._counts, of_lines[is_line], piece[is_line])
        view = View(
            tokens=np.array(tokens, dtype=np.int32),
            token_offsets=token_offsets,
            held=np.array(held, dtype=np.int64),
            starts=np.array([session.starts for session in self._whole]),
            ends=np.array([s.ends and stop == s.rows > 0 for s, stop in zip(self._whole, stops, strict=True)]),
            complete=np.array([stop == s.rows > 0 for s, stop in zip(self._whole, stops, strict=True)]),
            offsets=offsets,
            templates=of_lines,
            errors=np.array(errors, dtype=np.bool_),
            times=np.array(times, dtype=np.float64),
            muted=np.isin(np.array(tokens, dtype=np.int32), list(self._muted)),
            online=np.zeros((len(of_lines), len(ONLINE_NAMES))),
            counts=self._counts,
            carry=self.carry,
        )
        self._done = stops
        return view


def whole(drawn: Sequence[Session], members: int = 0, muted: Collection[int] = ()) -> View:
    return Growing(drawn, members, muted).see()


def _offsets(sizes: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
