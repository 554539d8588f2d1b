"""One batch of lines against the open sessions: the judgement of each session after each line, and the closings.

Everything is columns. A *row* is a line or the closing of a session by silence; a *piece* is the part of
one session that lies in the batch (`sessions.table.Cut`).
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.causes.fingerprints import SHAPE, source_causes
from detection.causes.known_causes import KnownCauses
from detection.columns.runs import first_true, rank_in_run, repeat_per_row
from detection.members.fitted_member_view import CLOSING as CLOSING_TEMPLATE
from detection.members.fitted_member_view import Bools, Carry, Floats, Ints, Standing, View, with_templates_counted
from detection.members.registry import NAMES
from detection.members.transformer.windows import window_start
from detection.scoring.attribution import Reasons, RowSessions, muted_templates
from detection.scoring.batch import Batch, Closings, Judged, LineStates
from detection.scoring.ensemble import Ensemble, Judgement
from detection.sessions import history as flag
from detection.sessions.history import History
from detection.sessions.session_table import WINDOW_TOKENS, Cut, SessionTable


@dataclass(frozen=True, slots=True)
class Recording:
    """Where a batch is recorded for training. `flags_count` says whether what was flagged is kept from the next
    model: an incomplete one's flags are not. `closing_flags` are put on every closing (`history.VOUCHED`)."""

    history: History
    flags_count: bool = False
    closing_flags: int = 0


def judge_batch(
    sessions: SessionTable,
    ensemble: Ensemble | None,
    known: KnownCauses,
    alpha: float,
    batch: Batch,
    cut: Cut,
    recording: Recording | None,
) -> Judged:
    """Score a batch, update the sessions, and record it for training. Without an ensemble p is nan."""
    pieces = _Pieces(sessions, batch, cut)
    view = _view_of_batch(ensemble, known, pieces)
    scored = _score_pieces(ensemble, known, alpha, pieces, view)
    after = _sessions_after(pieces, scored)
    if recording is not None:
        _record_for_training(recording, pieces, after)
    states, closings = _states_of_lines(pieces, scored, after), _closings_of_batch(pieces, scored, after)
    _store_open_sessions(pieces, scored, after, view)
    sessions.release(cut.vacated)
    row_closing = np.flatnonzero(scored.flagged & cut.row_closing)
    return Judged(
        states,
        closings,
        view,
        scored.standing,
        scored.judgement,
        pieces.row_of_line,
        row_of_serial=dict(zip(after.serial[pieces.of_row[row_closing]].tolist(), row_closing.tolist(), strict=True)),
    )


def closed_as_they_are(sessions: SessionTable, slots: Ints, line: int) -> Closings:
    """Close sessions at `line` without scoring the closing: they did not end, they were ended."""
    table = sessions.column
    slots = slots[table["lines"][slots] > 0]
    at = {column.name: table[column.name][slots] for column in fields(Closings) if column.name in table}
    at["line"] = np.full(len(slots), line)
    at["time"] = table["last_time"][slots]
    at["session"] = table["key"][slots]
    at["flagged"] = np.zeros(len(slots), dtype=np.bool_)
    at["cause"], at["kind"] = np.zeros(len(slots), dtype=np.uint64), np.zeros(len(slots), dtype=np.uint8)
    at["about"] = np.full(len(slots), CLOSING_TEMPLATE, dtype=np.int32)
    at["shapes"] = np.zeros((len(slots), 2), dtype=np.uint64)
    return Closings(**at)


class _Pieces:
    """The pieces of a batch, and the sessions that they are of; new sessions get their serials here.

    By piece [P]: `head` and `tail`, its first and its last row, and its session's `key`, `serial` and `first_line`.
    By row: `of_row`, its piece, and `number`, that of its line, or of the line that showed the silence. By line [n]:
    `row_of_line`.
    """

    def __init__(self, sessions: SessionTable, batch: Batch, cut: Cut) -> None:
        self.sessions, self.batch, self.cut = sessions, batch, cut
        self.head, self.tail = cut.offsets[:-1], cut.offsets[1:] - 1
        self.of_row = repeat_per_row(cut.offsets)
        self.number = batch.first_line + cut.row_line
        self.line_rows = np.flatnonzero(~cut.row_closing)
        self.row_of_line = np.empty(len(batch.ids), dtype=np.int64)
        self.row_of_line[cut.order] = self.line_rows
        self.closed = np.flatnonzero(cut.ends | cut.split)
        self.key = sessions.column["key"][cut.slot]
        fresh = ~cut.goes_on
        begins = self.number[self.head[fresh]]
        self.serial, self.first_line = self.before("serial"), self.before("first_line")
        self.serial[fresh], self.first_line[fresh] = sessions.new_serials(begins), begins

    def __len__(self) -> int:
        return len(self.head)

    def before(self, name: str, fresh: Any = 0) -> NDArray[Any]:
        """Column `name` of the sessions as it was before the batch, `fresh` for new ones: [P]."""
        column = self.sessions.column[name]
        goes_on = self.cut.goes_on if column.ndim == 1 else self.cut.goes_on[:, None]
        return np.where(goes_on, column[self.cut.slot], np.asarray(fresh, dtype=column.dtype))

    def by_row(self, column: NDArray[Any], closing: Any) -> NDArray[Any]:
        """A column of lines as one of rows, with `closing` on closing rows."""
        found = np.full((len(self.number), *column.shape[1:]), closing, dtype=column.dtype)
        found[self.line_rows] = column[self.cut.order]
        return found


@dataclass(frozen=True, slots=True)
class _Scored:
    """Rows as the members see them."""

    standing: Standing
    judgement: Judgement
    flagged: Bools  # rows at which their session is flagged, at most one a piece
    excused: Floats  # [P] the p that known causes explain, after the batch
    reasons: Reasons


@dataclass(frozen=True, slots=True)
class _SessionsAfter:
    """The sessions after the batch, by piece [P]; each field is a column of the table."""

    serial: Ints
    first_line: Ints
    last_line: Ints
    worst_line: Ints
    hit: Floats
    verdict: NDArray[np.uint8]
    cause: NDArray[np.uint64]  # of that verdict
    excused: Floats
    novel: NDArray[np.int32]  # the first template that the model did not know, plus 1, 0: none


def _view_of_batch(ensemble: Ensemble | None, known: KnownCauses, pieces: _Pieces) -> View:
    """The batch as members see it."""
    batch, cut = pieces.batch, pieces.cut
    tokens, offsets, held = _template_sequences(pieces)
    return View(
        tokens=tokens,
        token_offsets=offsets,
        held=held,
        starts=cut.starts,
        ends=cut.ends,
        complete=cut.ends | cut.split,
        offsets=cut.offsets,
        templates=pieces.by_row(batch.ids, CLOSING_TEMPLATE),
        errors=pieces.by_row(batch.errors, False),
        times=cut.row_time,
        muted=muted_templates(known, ensemble, tokens),
        online=pieces.by_row(batch.online, 0.0),
        counts=with_templates_counted(pieces.before("counts"), batch.ids[cut.order], pieces.of_row[pieces.line_rows]),
        carry=Carry.brought(pieces.before, pieces.before("began", cut.row_time[pieces.head])),
    )


def _template_sequences(pieces: _Pieces) -> tuple[NDArray[np.int32], Ints, Ints]:
    """Each piece's context and new templates in one column, its offsets, and how much of it is context."""
    cut, table = pieces.cut, pieces.sessions.column
    held = pieces.before("held")
    new = np.diff(cut.line_offsets)
    offsets = np.concatenate(([0], np.cumsum(held + new))).astype(np.int64)
    tokens = np.empty(int(offsets[-1]), dtype=np.int32)
    rank = rank_in_run(np.concatenate(([0], np.cumsum(held))))
    tokens[np.repeat(offsets[:-1], held) + rank] = table["tokens"][np.repeat(cut.slot, held), rank]
    tokens[np.repeat(offsets[:-1] + held, new) + rank_in_run(cut.line_offsets)] = pieces.batch.ids[cut.order]
    return tokens, offsets, held


def _score_pieces(ensemble: Ensemble | None, known: KnownCauses, alpha: float, pieces: _Pieces, view: View) -> _Scored:
    rows = len(view)
    if ensemble is None or not rows:
        return _Scored(
            Standing(view, NAMES),
            Judgement(np.full((rows, len(NAMES)), np.nan), np.zeros(rows), np.full(rows, np.nan)),
            np.zeros(rows, dtype=np.bool_),
            pieces.before("excused"),
            Reasons.none(rows, pieces.before("novel")),
        )
    standing = ensemble.score(view)
    judgement = ensemble.judge(standing.reached)
    windowed = pieces.sessions.column["windowed"][pieces.cut.slot]
    of_rows = RowSessions(pieces.key, windowed, pieces.serial, pieces.cut.row_line, pieces.batch.origins)
    reasons = Reasons(ensemble, known, view, judgement, of_rows, pieces.before("novel"))
    reasons.report_new_templates(pieces.before("counts"), pieces.sessions.next_serial)
    flagged, excused = _flag_sessions(pieces, view, judgement.p, alpha, reasons)
    return _Scored(standing, judgement, flagged, excused, reasons)


def _flag_sessions(pieces: _Pieces, view: View, p: Floats, alpha: float, reasons: Reasons) -> tuple[Bools, Floats]:
    """The rows at which their session is flagged, and the p of each piece's session that known causes explain.

    A session is flagged at the first row where p is below the level, once. If what is found there is known to be
    normal, it explains this p: the search goes on from there for a smaller one.
    """
    before, of_row, next_serial = pieces.before, pieces.of_row, pieces.sessions.next_serial
    excused = before("excused")
    level = np.where(excused > 0.0, np.minimum(excused, alpha), alpha)[of_row]
    unusual = (p < level) & (before("verdict") == 0)[of_row]
    reported, reported_at_end = excused > 0.0, np.zeros(len(pieces), dtype=np.bool_)
    flagged = np.zeros(len(view), dtype=np.bool_)
    while unusual.any():
        first = np.flatnonzero(first_true(unusual, view.offsets))
        piece = of_row[first]
        reasons.name_causes(first)
        reasons.report_shapes(first[~reported[piece]], next_serial)
        by_shape_at_end = (reasons.kind[first] == SHAPE) & (view.templates[first] == CLOSING_TEMPLATE)
        by_shape_at_end &= first == pieces.tail[piece]
        reported_at_end[piece] |= by_shape_at_end & ~reported[piece]
        reported[piece] = True
        explained = reasons.with_normal_causes(first)
        flagged[first[~explained]] = True
        excused[piece[explained]] = p[first[explained]]
        done = np.ones(len(pieces), dtype=np.bool_)
        done[piece[explained]] = False
        unusual &= ~done[of_row] & (p < np.where(excused > 0.0, excused, alpha)[of_row])
    ever_unusual = (before("verdict") > 0) | (excused > 0.0)
    ever_unusual[of_row[flagged]] = True
    reasons.report_finished_shapes(np.flatnonzero(ever_unusual & view.complete & ~reported_at_end), next_serial, alpha)
    return flagged, excused


def _verdicts_so_far(pieces: _Pieces, scored: _Scored) -> NDArray[np.uint8]:
    """The verdict on each row's session as of that row: uint8 [rows]."""
    if not len(pieces.of_row):
        return np.zeros(0, dtype=np.uint8)
    here = scored.reasons.verdict * scored.flagged
    sums = np.cumsum(here)  # at most one a piece
    within = sums - (sums[pieces.head] - here[pieces.head])[pieces.of_row]
    return (pieces.before("verdict")[pieces.of_row] + within).astype(np.uint8)


def _sessions_after(pieces: _Pieces, scored: _Scored) -> _SessionsAfter:
    cut, head, tail, number = pieces.cut, pieces.head, pieces.tail, pieces.number
    last_line = pieces.before("last_line")
    last = tail - cut.ends
    has_lines = last >= head
    last_line[has_lines] = number[last[has_lines]]

    hit, worst_line = pieces.by_row(pieces.batch.hit, 0.0), pieces.before("worst_line")
    strangeness = scored.judgement.strangeness
    if len(pieces):
        previous = np.empty(len(number))
        previous[1:] = strangeness[:-1]
        previous[head] = np.where(cut.goes_on, pieces.before("strangeness"), -1.0)
        # The last row at which the session became stranger than it had been.
        record = np.maximum.reduceat(np.where(strangeness > previous, np.arange(len(number)), -1), head)
        at_record = np.where(cut.row_closing[record], last_line, number[record])
        worst_line = np.where(record >= 0, at_record, worst_line)
        hit = np.maximum.reduceat(hit, head)
    cause = pieces.before("cause")
    cause[pieces.of_row[scored.flagged]] = scored.reasons.session_cause[scored.flagged]
    return _SessionsAfter(
        serial=pieces.serial,
        first_line=pieces.first_line,
        last_line=last_line,
        worst_line=worst_line,
        hit=np.maximum(pieces.before("hit", 0.0), hit[: len(pieces)]),
        verdict=_verdicts_so_far(pieces, scored)[tail],
        cause=cause,
        excused=scored.excused,
        novel=scored.reasons.novel,
    )


def _record_for_training(recording: Recording, pieces: _Pieces, after: _SessionsAfter) -> None:
    """Add the lines, in their order, and then the closings to what the next model learns from.

    What an incomplete ensemble flags is alerted, and still learned from: it has seen little, so most of what it has
    not seen is normal, and the trainer, which sees all sessions together, better tells those that are strange
    (`training_run.train`, trimming).
    """
    batch, cut = pieces.batch, pieces.cut
    flags = np.where(pieces.by_row(batch.errors, False), flag.ERROR, 0).astype(np.uint8)
    flags |= np.where(pieces.by_row(batch.hit, 0.0) > 0.0, flag.TAINTED, 0).astype(np.uint8)
    begins = ~cut.goes_on
    flags[pieces.head[begins]] |= flag.BEGINS
    flags[pieces.head[begins & cut.starts]] |= flag.STARTS

    keys, piece = source_causes(pieces.key), pieces.of_row[pieces.row_of_line]
    recording.history.append(
        after.serial[piece], batch.ids, batch.clock, flags[pieces.row_of_line], batch.online, keys[piece]
    )
    closed, tail = pieces.closed, pieces.tail
    closed = closed[np.lexsort((after.serial[closed], cut.row_line[tail[closed]]))]
    how = np.where(cut.ends[closed], flag.ENDS, flag.SPLITS).astype(np.uint8)
    how[recording.flags_count & (after.verdict[closed] > 0)] |= flag.FLAGGED
    how |= np.uint8(recording.closing_flags)
    recording.history.close(after.serial[closed], cut.row_time[tail[closed]], how, after.cause[closed])


def _states_of_lines(pieces: _Pieces, scored: _Scored, after: _SessionsAfter) -> LineStates:
    row, reasons = pieces.row_of_line, scored.reasons
    piece = pieces.of_row[row]
    return LineStates(
        serial=after.serial[piece],
        first_line=after.first_line[piece],
        session=pieces.key[piece],
        p=scored.judgement.p[row],
        reached=scored.standing.reached[row],
        members=scored.judgement.members[row],
        verdict=_verdicts_so_far(pieces, scored)[row],
        flagged=scored.flagged[row],
        cause=reasons.alert_cause[row],
        kind=reasons.kind[row],
        about=reasons.about[row],
        shapes=reasons.shapes[row],
    )


def _closings_of_batch(pieces: _Pieces, scored: _Scored, after: _SessionsAfter) -> Closings:
    closed, reasons = pieces.closed, scored.reasons
    tail = pieces.tail[closed]
    return Closings(
        line=pieces.number[tail],
        serial=after.serial[closed],
        first_line=after.first_line[closed],
        last_line=after.last_line[closed],
        time=pieces.cut.row_time[tail],
        session=pieces.key[closed],
        p=scored.judgement.p[tail],
        reached=scored.standing.reached[tail],
        hit=after.hit[closed],
        verdict=after.verdict[closed],
        flagged=scored.flagged[tail] & pieces.cut.row_closing[tail],
        cause=reasons.alert_cause[tail],
        kind=reasons.kind[tail],
        about=reasons.about[tail],
        shapes=reasons.shapes[tail],
        worst_line=after.worst_line[closed],
    )


def _store_open_sessions(pieces: _Pieces, scored: _Scored, after: _SessionsAfter, view: View) -> None:
    """Write back what stays open: the last piece of each slot, unless silence ended it.

    After a cut by count the row waits, empty, for the first line of the next session of its key.
    """
    cut, table, carry = pieces.cut, pieces.sessions.column, scored.standing.after()
    has_lines = np.diff(cut.line_offsets) > 0
    # Pieces with lines are ordered by slot, so a slot's last one is the one before another slot's.
    stays = has_lines & ~cut.ends
    stays[:-1] &= (cut.slot[1:] != cut.slot[:-1]) | ~has_lines[1:]
    piece = np.flatnonzero(stays)
    slot, over, tail = cut.slot[piece], cut.split[piece], pieces.tail[piece]
    values: dict[str, NDArray[Any]] = {
        **{column.name: getattr(after, column.name) for column in fields(_SessionsAfter)},
        **{column.name: getattr(carry, column.name) for column in fields(Carry)},
        "counts": view.counts,
    }
    for name, value in values.items():
        gone = over if value.ndim == 1 else over[:, None]
        table[name][slot] = np.where(gone, np.zeros(1, dtype=table[name].dtype), value[piece])
    table["strangeness"][slot] = np.where(over, 0.0, scored.judgement.strangeness[tail])
    table["p"][slot] = np.where(over, np.nan, scored.judgement.p[tail])
    table["last_time"][slot] = cut.row_time[tail]
    table["last_event"][slot] = cut.row_event[tail]

    # The window that the next template will be predicted from.
    tokens, offsets = view.tokens, view.token_offsets
    total = np.diff(offsets)[piece]
    start = window_start(total)
    keep = np.where(over, 0, total - start)
    table["held"][slot] = keep
    table["opened"][slot] = cut.starts[piece] & (start == 0) & ~over
    rank = rank_in_run(np.concatenate(([0], np.cumsum(keep))))
    window = np.zeros((len(piece), WINDOW_TOKENS), dtype=np.int32)
    window[np.repeat(np.arange(len(piece)), keep), rank] = tokens[np.repeat(offsets[piece] + start, keep) + rank]
    table["tokens"][slot] = window
