"""The input of fitted members: a batch of rows, grouped by session, with what each session carries from earlier rows.

A *row* is a line, or the closing of a session by silence. A *piece* is the part of one session that lies in
the batch. The trainer builds a view of whole sessions as the scorer builds one of pieces, so members score in
service the same kind of rows that they were fitted and calibrated on.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.columns.runs import rank_in_run, repeat_per_row, running_max, running_or
from detection.models.training_set import ClosedSessions

CLOSING = -1  # the template of a row that is a session's end and not a line
COUNT_BUCKETS = 64  # the first 64 templates of a stream have one each: ids are given in order
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # Knuth's multiplicative hash: the high bits mix all the others

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Carry:
    """What each of S sessions carries over from earlier rows; all zero for a new session.

    lines    int64 [S]; errors int64 [S]: lines that report an error
    muted    int64 [S]: lines of templates that were admitted after the model in force was made
    shape    uint64 [S]: a bitmap of hashed templates
    began    float64 [S]: time of the first line in seconds
    reached  float64 [S, M]: the running maximum of each of M members
    """

    lines: Ints
    muted: Ints
    errors: Ints
    shape: NDArray[np.uint64]
    began: Floats
    reached: Floats

    @staticmethod
    def new(sessions: int, members: int) -> "Carry":
        """That of sessions without a line."""
        whole, real, wide = np.zeros(sessions, np.int64), np.zeros(sessions), np.zeros((sessions, members))
        return Carry(whole, whole, whole, np.zeros(sessions, np.uint64), real, wide)

    @staticmethod
    def brought(column: Callable[[str], NDArray[Any]], began: Floats) -> "Carry":
        """From the columns that `column` returns by name, and `began`."""
        names = ("lines", "muted", "errors", "reached")
        return Carry(**{name: column(name) for name in names}, shape=column("shape").astype(np.uint64), began=began)


@dataclass(frozen=True)
class View:
    """R rows of P pieces: piece i is rows offsets[i]:offsets[i+1].

    tokens      int32 [T] template ids, piece by piece: up to 63 lines of context and then the new lines
    token_offsets int64 [P+1] over `tokens`; held int64 [P]: the number of a piece's tokens that are context
    starts      bool [P]: the piece's tokens begin where the session really began; ends: the last row is its closing
    complete    bool [P]: the session is over after this piece, by silence or because it was cut
    offsets     int64 [P+1] over rows; templates int32 [R], CLOSING on closing rows; errors bool [R]
    times       float64 [R], non-decreasing in a piece; a closing row has that of the session's last line
    muted       bool [T]: tokens of templates that were admitted as normal since the model was made
    online      float64 [R, K]: the score of the line by each online member, 0 on closing rows
    counts      uint8 [P, 64]: the lines of each template (by id modulo 64) in the session up to the end of this piece
    """

    tokens: NDArray[np.int32]
    token_offsets: Ints
    held: Ints
    starts: Bools
    ends: Bools
    complete: Bools
    offsets: Ints
    templates: NDArray[np.int32]
    errors: Bools
    times: Floats
    muted: Bools
    online: Floats
    counts: NDArray[np.uint8]
    carry: Carry

    def __len__(self) -> int:
        return len(self.templates)

    def token_places(self) -> Ints:
        """The index of each row in `tokens`, int64 [R]; on a closing row one after the piece's last token."""
        first = self.token_offsets[:-1] + self.held
        return first[repeat_per_row(self.offsets)] + rank_in_run(self.offsets)

    def muted_rows(self) -> Bools:
        """Which rows are lines of muted templates: bool [R]."""
        return self._muted_at_places(self.token_places(), self.templates != CLOSING)

    def behind_muted_rows(self) -> Bools:
        """Which rows directly follow a line of a muted template, in this piece or in its context: bool [R]."""
        before = self.token_places() - 1
        return self._muted_at_places(before, before >= self.token_offsets[:-1][repeat_per_row(self.offsets)])

    def _muted_at_places(self, places: Ints, where: Bools) -> Bools:
        result = np.zeros(len(places), dtype=np.bool_)
        if self.muted.any():
            result[where] = self.muted[places[where]]
        return result

    def final_rows(self) -> Ints:
        """The last row of each complete piece that has rows: int64."""
        return (self.offsets[1:] - 1)[self.complete & (np.diff(self.offsets) > 0)]


class Standing:
    """The state of each row's session after that row. Members' scores are added one after another with `put`.

    reached      float64 [R, M]: the session's running maximum of each member's scores; `column` maps names to columns
    log_length   float64 [R]: ln(1 + lines); rate float64 [R]: ln(1 + lines a second)
    distinct     float64 [R]: occupied bits of 64 in the bitmap of templates, so it saturates
    error_share  float64 [R]; muted int64 [R]: lines of muted templates

    All of it is the same to the bit however sessions are cut into batches.
    """

    def __init__(self, view: View, names: Sequence[str]) -> None:
        carry, offsets = view.carry, view.offsets
        sizes, piece = np.diff(offsets), repeat_per_row(offsets)
        self._view, self._sizes, self._piece, self._first = view, sizes, piece, offsets[:-1][piece]
        is_line = view.templates != CLOSING

        began = carry.began.copy()
        # A session without earlier lines begins with its first row here.
        fresh = (carry.lines == 0) & (sizes > 0)
        began[fresh] = view.times[offsets[:-1][fresh]]
        bit = np.uint64(1) << ((view.templates.astype(np.uint64) * _SPREAD) >> np.uint64(58))
        shape = running_or(np.where(is_line, bit, np.uint64(0)), offsets) | carry.shape[piece]
        lines = self._sums_within_pieces(is_line.astype(np.int64)) + carry.lines[piece]
        failed = self._sums_within_pieces((view.errors & is_line).astype(np.int64)) + carry.errors[piece]
        muted = self._sums_within_pieces(view.muted_rows().astype(np.int64)) + carry.muted[piece]

        self.log_length: Floats = np.log1p(lines)
        self.distinct: Floats = np.bitwise_count(shape).astype(np.float64)
        self.error_share: Floats = failed / np.maximum(lines, 1)
        self.rate: Floats = np.log1p(lines / np.maximum(view.times - began[piece], 1.0))
        self.column = {name: number for number, name in enumerate(names)}
        self.reached = np.zeros((len(view), len(names)))
        self.muted = muted
        self._lines, self._failed, self._shape, self._began = lines, failed, shape, began

    def put(self, name: str, scores: Floats) -> None:
        """Add the scores of a member: float64 [R], >= 0."""
        member = self.column[name]
        before = self._view.carry.reached[:, member][self._piece]
        self.reached[:, member] = np.maximum(running_max(scores, self._view.offsets), before)

    def only(self, rows: Bools | Ints) -> "Standing":
        """A copy with only these rows (bool [R] or indices), for reading: `put` does not work on it."""
        chosen = copy(self)
        for name in ("reached", "log_length", "distinct", "error_share", "rate", "muted"):
            setattr(chosen, name, getattr(self, name)[rows])
        return chosen

    def after(self) -> Carry:
        """What the sessions carry over to the next batch."""
        carry = self._view.carry
        return Carry(
            lines=self._last_value_of_pieces(self._lines, carry.lines),
            muted=self._last_value_of_pieces(self.muted, carry.muted),
            errors=self._last_value_of_pieces(self._failed, carry.errors),
            shape=self._last_value_of_pieces(self._shape, carry.shape),
            began=self._began,
            reached=self._last_value_of_pieces(self.reached, carry.reached),
        )

    def _last_value_of_pieces(self, column: NDArray[Any], before: NDArray[Any]) -> NDArray[Any]:
        """The value of `column` at each piece's last row; of a piece without rows that of `before`."""
        result = before.copy()
        some = self._sizes > 0
        result[some] = column[(self._view.offsets[1:] - 1)[some]]
        return result

    def _sums_within_pieces(self, values: NDArray[Any]) -> NDArray[Any]:
        """Running sums within pieces. `values` are integers, so the difference of two sums is exact."""
        if not len(values):
            return values
        sums = np.cumsum(values)
        within: NDArray[Any] = sums - (sums[self._first] - values[self._first])
        return within


def with_templates_counted(before: NDArray[np.uint8], tokens: NDArray[np.int32], piece: Ints) -> NDArray[np.uint8]:
    """`before` uint8 [P, 64] plus the counts of the templates `tokens` [n] of the pieces `piece` [n], at most 255
    each."""
    pieces = len(before)
    place = piece * COUNT_BUCKETS + tokens.astype(np.int64) % COUNT_BUCKETS
    new = np.bincount(place, minlength=pieces * COUNT_BUCKETS).reshape(pieces, COUNT_BUCKETS)
    after: NDArray[np.uint8] = np.minimum(before + new, 255).astype(np.uint8)
    return after


def view_of_whole_sessions(data: ClosedSessions, members: int) -> View:
    """The view that the scorer would build of `data` if each session were one piece."""
    sessions, sizes = len(data.starts), np.diff(data.offsets)
    offsets = np.concatenate(([0], np.cumsum(sizes + data.ends))).astype(np.int64)
    session, rank = repeat_per_row(offsets), rank_in_run(offsets)
    closing = rank == sizes[session]
    # A closing row has the time of the last line, so it does not change the rate.
    source = data.offsets[:-1][session] + rank - closing
    none = np.zeros((sessions, COUNT_BUCKETS), dtype=np.uint8)
    return View(
        tokens=data.tokens,
        token_offsets=data.offsets,
        held=np.zeros(sessions, dtype=np.int64),
        starts=data.starts,
        ends=data.ends,
        complete=np.ones(sessions, dtype=np.bool_),
        offsets=offsets,
        templates=np.where(closing, CLOSING, data.tokens[source]).astype(np.int32),
        errors=data.errors[source] & ~closing,
        times=data.times[source],
        muted=np.zeros(len(data.tokens), dtype=np.bool_),
        online=np.where(closing[:, None], 0.0, data.online[source]),
        counts=with_templates_counted(none, data.tokens, repeat_per_row(data.offsets)),
        carry=Carry.new(sessions, members),
    )
