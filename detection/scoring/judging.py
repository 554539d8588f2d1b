"""One batch of lines against the open sessions: what each line makes of its session, and what closes.

Everything is columns. A *row* is a line or the closing of a session by silence; a *piece* is the part of
one session that lies in the batch (`sessions.Cut`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.causes.fingerprints import SHAPE, source_causes
from detection.causes.known import KnownCauses
from detection.columns.runs import first_true, rank_in_run, repeat_per_row
from detection.learning import history as flag
from detection.learning.history import History
from detection.members.registry import NAMES, ONLINE_NAMES
from detection.members.transformer.scoring import window_start
from detection.members.view import CLOSING as CLOSING_TEMPLATE
from detection.members.view import Carry, Standing, View, counted
from detection.scoring.attribution import Reasons, muted
from detection.scoring.ensemble import Ensemble, Judgement
from detection.sessions.table import WINDOW_TOKENS, Cut, SessionTable

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Batch:
    """n lines as columns. `clock` is the log clock at each line, non-decreasing; `hit` the confidence of
    the surest rule that matched it, 0 where none did; `online` [n, K] what the online members said of it; `origins` who
    did it, b"" where nobody is named."""

    first_line: int
    ids: NDArray[np.int32]
    errors: Bools
    clock: Floats
    hit: Floats
    online: Floats
    origins: Sequence[bytes]

    @classmethod
    def empty(cls, line: int) -> "Batch":
        """No lines; what closes now closes at `line`."""
        none = np.zeros(0)
        nothing = np.zeros((0, len(ONLINE_NAMES)))
        return cls(line, none.astype(np.int32), none.astype(np.bool_), none, none, nothing, ())


@dataclass(frozen=True, slots=True)
class Closings:
    """Sessions that closed, one row each; p and reached are the session's final ones."""

    line: Ints  # at which the closing showed
    serial: Ints
    first_line: Ints
    last_line: Ints
    time: Floats
    session: NDArray[np.bytes_]
    p: Floats
    reached: Floats  # [m, M]
    hit: Floats
    verdict: NDArray[np.uint8]  # what the session was flagged as, 0: it was not
    flagged: Bools  # by the closing itself; a session flagged earlier is not flagged again
    cause: NDArray[np.uint64]  # of that
    kind: NDArray[np.uint8]
    about: NDArray[np.int32]  # the template that the cause is about
    shapes: NDArray[np.uint64]  # [m, 2] see `Reasons`
    worst_line: Ints

    def and_also(self, other: "Closings") -> "Closings":
        """Both, ordered by line and then by the order in which the sessions began."""
        together = {
            name: np.concatenate((getattr(self, name), getattr(other, name)))
            for name in (column.name for column in fields(Closings))
        }
        order = np.lexsort((together["serial"], together["line"]))
        return Closings(**{name: values[order] for name, values in together.items()})


@dataclass(frozen=True, slots=True)
class LineStates:
    """For each line of a batch, how its session stands after it; columns [n] in line order."""

    serial: Ints
    first_line: Ints
    session: NDArray[np.bytes_]
    p: Floats
    reached: Floats  # [n, M]
    members: Floats  # [n, M] their p-values
    verdict: NDArray[np.uint8]  # what the session is flagged as by now, 0: it is not
    flagged: Bools  # it was, here
    cause: NDArray[np.uint64]  # of that
    kind: NDArray[np.uint8]
    about: NDArray[np.int32]  # the template that the cause is about
    shapes: NDArray[np.uint64]  # [n, 2] see `Reasons`


@dataclass(frozen=True, slots=True)
class Judged:
    """A batch judged: its lines, the closings in it, and for explanations what the members saw."""

    states: LineStates
    closings: Closings
    view: View
    standing: Standing
    judgement: Judgement
    row_of_line: Ints
    row_of_serial: dict[int, int]  # the closing rows, by their sessions


@dataclass(frozen=True, slots=True)
class _Scored:
    """Rows as the members see them: running values of the session at that row."""

    standing: Standing
    judgement: Judgement
    crossing: Bools
    excused: Floats  # [P] the p that known causes explain, after the batch
    reasons: Reasons


@dataclass(frozen=True, slots=True)
class _Standing:
    """Pieces after the batch."""

    serial: Ints
    first_line: Ints
    last_line: Ints
    worst_line: Ints
    hit: Floats
    verdict: NDArray[np.uint8]
    cause: NDArray[np.uint64]  # of that verdict
    excused: Floats
    novel: NDArray[np.int32]  # the first template that nobody knew, plus 1, 0: none


@dataclass(frozen=True, slots=True)
class Remembered:
    """Where a batch is remembered for training. `flags_count` says whether what was flagged is kept from the next
    model: an incomplete one's flags are not. `closing_flags` are put on every closing (`history.VOUCHED`)."""

    history: History
    flags_count: bool = False
    closing_flags: int = 0


def judge(
    sessions: SessionTable,
    ensemble: Ensemble | None,
    known: KnownCauses,
    alpha: float,
    batch: Batch,
    pieces: Cut,
    remembered: Remembered | None,
) -> Judged:
    """Score a batch, move the sessions on, and remember it for training. Without an ensemble p is nan."""
    brought = _Brought(sessions, pieces)
    view = view_of(sessions, ensemble, known, batch, pieces, brought)
    serial, first_line = _begun(sessions, batch, pieces, brought)
    scored = _score(ensemble, known, alpha, sessions, pieces, brought, view, serial, batch.origins)
    standing = _stand(batch, pieces, brought, scored, serial, first_line)
    key = sessions.column["key"][pieces.slot]
    if remembered is not None:
        _remember(remembered, batch, pieces, standing, source_causes(key))
    closings = _closings(batch, pieces, scored, standing, key)

    line_rows = np.flatnonzero(~pieces.row_closing)
    row_of_line = np.empty(len(batch.ids), dtype=np.int64)
    row_of_line[pieces.order] = line_rows
    piece_of_line = repeat_per_row(pieces.offsets)[row_of_line]
    states = LineStates(
        serial=standing.serial[piece_of_line],
        first_line=standing.first_line[piece_of_line],
        session=key[piece_of_line],
        p=scored.judgement.p[row_of_line],
        reached=scored.standing.reached[row_of_line],
        members=scored.judgement.members[row_of_line],
        verdict=_verdicts_so_far(pieces, brought, scored)[row_of_line],
        flagged=scored.crossing[row_of_line],
        cause=scored.reasons.alert_cause[row_of_line],
        kind=scored.reasons.kind[row_of_line],
        about=scored.reasons.about[row_of_line],
        shapes=scored.reasons.shapes[row_of_line],
    )
    _store(sessions, pieces, scored, standing, view)
    sessions.release(pieces.vacated)
    row_closing = np.flatnonzero(scored.crossing & pieces.row_closing)
    closing_serials = standing.serial[repeat_per_row(pieces.offsets)[row_closing]]
    return Judged(
        states,
        closings,
        view,
        scored.standing,
        scored.judgement,
        row_of_line,
        dict(zip(closing_serials.tolist(), row_closing.tolist(), strict=True)),
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


class _Brought:
    """What each piece's session brings along from the table; fresh sessions bring nothing."""

    def __init__(self, sessions: SessionTable, pieces: Cut) -> None:
        self._slot = pieces.slot
        self._table = sessions.column
        self._goes_on = pieces.goes_on

    def __call__(self, name: str, fresh: Any = 0) -> NDArray[Any]:
        column = self._table[name]
        goes_on = self._goes_on if column.ndim == 1 else self._goes_on[:, None]
        return np.where(goes_on, column[self._slot], np.asarray(fresh, dtype=column.dtype))


def view_of(
    sessions: SessionTable,
    ensemble: Ensemble | None,
    known: KnownCauses,
    batch: Batch,
    pieces: Cut,
    brought: _Brought,
) -> View:
    """The batch as members see it."""
    tokens, offsets, held = _sequences(sessions, batch, pieces)
    rows = len(pieces.row_line)
    line_rows = ~pieces.row_closing

    def spread(column: NDArray[Any], fresh: Any) -> NDArray[Any]:
        found = np.full((rows, *column.shape[1:]), fresh, dtype=column.dtype)
        found[line_rows] = column[pieces.order]
        return found

    row_piece = repeat_per_row(pieces.offsets)
    return View(
        tokens=tokens,
        token_offsets=offsets,
        held=held,
        starts=pieces.starts,
        ends=pieces.ends,
        complete=pieces.ends | pieces.split,
        offsets=pieces.offsets,
        templates=spread(batch.ids, CLOSING_TEMPLATE),
        errors=spread(batch.errors, False),
        times=pieces.row_time,
        muted=muted(known, ensemble, tokens),
        online=spread(batch.online, 0.0),
        counts=counted(brought("counts"), batch.ids[pieces.order], row_piece[line_rows]),
        carry=Carry.brought(brought, brought("began", pieces.row_time[pieces.offsets[:-1]])),
    )


def _sequences(sessions: SessionTable, batch: Batch, pieces: Cut) -> tuple[NDArray[np.int32], Ints, Ints]:
    """Each piece's context and new templates in one column, its offsets, and how much of it is context."""
    table = sessions.column
    held = np.where(pieces.goes_on, table["held"][pieces.slot], 0)
    new = np.diff(pieces.line_offsets)
    offsets = np.concatenate(([0], np.cumsum(held + new))).astype(np.int64)
    tokens = np.empty(int(offsets[-1]), dtype=np.int32)
    rank = rank_in_run(np.concatenate(([0], np.cumsum(held))))
    tokens[np.repeat(offsets[:-1], held) + rank] = table["tokens"][np.repeat(pieces.slot, held), rank]
    tokens[np.repeat(offsets[:-1] + held, new) + rank_in_run(pieces.line_offsets)] = batch.ids[pieces.order]
    return tokens, offsets, held


def _begun(sessions: SessionTable, batch: Batch, pieces: Cut, brought: _Brought) -> tuple[Ints, Ints]:
    """Serial and first line of each piece's session; new sessions get theirs."""
    head, fresh = pieces.offsets[:-1], ~pieces.goes_on
    number = batch.first_line + pieces.row_line
    serial, first_line = brought("serial"), brought("first_line")
    serial[fresh] = sessions.new_serials(number[head[fresh]])
    first_line[fresh] = number[head[fresh]]
    return serial, first_line


def _score(
    ensemble: Ensemble | None,
    known: KnownCauses,
    alpha: float,
    sessions: SessionTable,
    pieces: Cut,
    brought: _Brought,
    view: View,
    serial: Ints,
    origins: Sequence[bytes],
) -> _Scored:
    rows = len(view)
    if ensemble is None or not rows:
        unready = np.full(rows, np.nan)
        return _Scored(
            Standing(view, NAMES),
            Judgement(np.full((rows, len(NAMES)), np.nan), np.zeros(rows), unready),
            np.zeros(rows, dtype=np.bool_),
            brought("excused"),
            Reasons.none(rows, brought("novel")),
        )
    standing = ensemble.score(view)
    judgement = ensemble.judge(standing.reached)
    key, windowed = sessions.column["key"][pieces.slot], sessions.column["windowed"][pieces.slot]
    reasons = Reasons(
        ensemble,
        known,
        view,
        standing,
        judgement,
        key,
        windowed,
        serial,
        brought("novel"),
        pieces.row_line,
        origins,
    )
    reasons.report_new_templates(brought("counts"), sessions.next_serial)
    excused = brought("excused")
    row_piece = repeat_per_row(pieces.offsets)
    level = np.where(excused > 0.0, np.minimum(excused, alpha), alpha)[row_piece]
    strange = (judgement.p < level) & (brought("verdict") == 0)[row_piece]
    reported, told_at_end = excused > 0.0, np.zeros(len(excused), dtype=np.bool_)
    crossing = np.zeros(rows, dtype=np.bool_)
    tail = pieces.offsets[1:] - 1
    while strange.any():
        first = np.flatnonzero(first_true(strange, pieces.offsets))
        piece = row_piece[first]
        reasons.name(first)
        reasons.report_shapes(first[~reported[piece]], sessions.next_serial)
        at_end = (first == tail[piece]) & (reasons.kind[first] == SHAPE) & (view.templates[first] == CLOSING_TEMPLATE)
        told_at_end[piece] |= at_end & ~reported[piece]
        reported[piece] = True
        explained = reasons.normal(first)
        crossing[first[~explained]] = True
        # What is known as normal explains this p; only a smaller one is a reason to flag.
        excused[row_piece[first[explained]]] = judgement.p[first[explained]]
        done = np.ones(len(excused), dtype=np.bool_)
        done[row_piece[first[explained]]] = False
        strange &= ~done[row_piece] & (judgement.p < np.where(excused > 0.0, excused, alpha)[row_piece])
    crossed = (brought("verdict") > 0) | (excused > 0.0)
    crossed[row_piece[crossing]] = True
    reasons.report_finished(np.flatnonzero(crossed & view.complete & ~told_at_end), sessions.next_serial, alpha)
    return _Scored(standing, judgement, crossing, excused, reasons)


def _verdicts_so_far(pieces: Cut, brought: _Brought, scored: _Scored) -> NDArray[np.uint8]:
    """What each row's session is flagged as by then: uint8 [rows]."""
    row_piece, head = repeat_per_row(pieces.offsets), pieces.offsets[:-1]
    if not len(row_piece):
        return np.zeros(0, dtype=np.uint8)
    sums = np.cumsum(scored.reasons.verdict * scored.crossing)  # at most one a piece
    within = sums - (sums[head] - scored.reasons.verdict[head] * scored.crossing[head])[row_piece]
    return (brought("verdict")[row_piece] + within).astype(np.uint8)


def _stand(batch: Batch, pieces: Cut, brought: _Brought, scored: _Scored, serial: Ints, first_line: Ints) -> _Standing:
    head, tail = pieces.offsets[:-1], pieces.offsets[1:] - 1
    fresh = ~pieces.goes_on
    number = batch.first_line + pieces.row_line
    last_line = brought("last_line")
    last = tail - pieces.ends
    has_lines = last >= head
    last_line[has_lines] = number[last[has_lines]]

    hit = np.zeros(len(pieces.row_line))
    hit[~pieces.row_closing] = batch.hit[pieces.order]
    worst_line = brought("worst_line")
    strangeness = scored.judgement.strangeness
    if len(head):
        before = np.empty(len(number))
        before[1:] = strangeness[:-1]
        before[head] = np.where(fresh, -1.0, brought("strangeness"))
        rows = np.arange(len(number))
        record = np.maximum.reduceat(np.where(strangeness > before, rows, -1), head)
        renewed = record >= 0
        by_closing = pieces.row_closing[record]
        worst_line = np.where(renewed, np.where(by_closing, last_line, number[record]), worst_line)
        hit = np.maximum.reduceat(hit, head)
    cause = brought("cause")
    cause[repeat_per_row(pieces.offsets)[scored.crossing]] = scored.reasons.session_cause[scored.crossing]
    return _Standing(
        serial=serial,
        first_line=first_line,
        last_line=last_line,
        worst_line=worst_line,
        hit=np.maximum(brought("hit", 0.0), hit[: len(head)]),
        verdict=_verdicts_so_far(pieces, brought, scored)[tail] if len(head) else np.zeros(0, dtype=np.uint8),
        cause=cause,
        excused=scored.excused,
        novel=scored.reasons.novel,
    )


def _remember(remembered: Remembered, batch: Batch, pieces: Cut, standing: _Standing, keys: NDArray[np.uint64]) -> None:
    """Add the lines, in their order, and then the closings to what the next model learns from.

    What an incomplete ensemble flags is alerted, and still learned from: it has seen little, so most of what it has
    not seen is normal, and of all sessions together those that are strange are told better (`training.run`, trimming).
    """
    line_rows = np.flatnonzero(~pieces.row_closing)
    row_piece = repeat_per_row(pieces.offsets)
    head = pieces.offsets[:-1]
    flags = np.zeros(len(row_piece), dtype=np.uint8)
    begins = ~pieces.goes_on
    flags[head[begins]] |= flag.BEGINS
    flags[head[begins & pieces.starts]] |= flag.STARTS
    flags[line_rows] |= np.where(batch.errors[pieces.order], flag.ERROR, 0).astype(np.uint8)
    flags[line_rows] |= np.where(batch.hit[pieces.order] > 0.0, flag.TAINTED, 0).astype(np.uint8)

    in_line_order = np.empty(len(batch.ids), dtype=np.int64)
    in_line_order[pieces.order] = line_rows
    remembered.history.append(
        standing.serial[row_piece[in_line_order]],
        batch.ids,
        batch.clock,
        flags[in_line_order],
        batch.online,
        keys[row_piece[in_line_order]],
    )
    closed = np.flatnonzero(pieces.ends | pieces.split)
    tail = pieces.offsets[1:] - 1
    closed = closed[np.lexsort((standing.serial[closed], pieces.row_line[tail[closed]]))]
    how = np.where(pieces.ends[closed], flag.ENDS, flag.SPLITS).astype(np.uint8)
    how[remembered.flags_count & (standing.verdict[closed] > 0)] |= flag.FLAGGED
    how |= np.uint8(remembered.closing_flags)
    remembered.history.close(standing.serial[closed], pieces.row_time[tail[closed]], how, standing.cause[closed])


def _closings(batch: Batch, pieces: Cut, scored: _Scored, standing: _Standing, key: NDArray[np.bytes_]) -> Closings:
    closed = np.flatnonzero(pieces.ends | pieces.split)
    tail = pieces.offsets[1:][closed] - 1
    return Closings(
        line=batch.first_line + pieces.row_line[tail],
        serial=standing.serial[closed],
        first_line=standing.first_line[closed],
        last_line=standing.last_line[closed],
        time=pieces.row_time[tail],
        session=key[closed],
        p=scored.judgement.p[tail],
        reached=scored.standing.reached[tail],
        hit=standing.hit[closed],
        verdict=standing.verdict[closed],
        flagged=scored.crossing[tail] & pieces.row_closing[tail],
        cause=scored.reasons.alert_cause[tail],
        kind=scored.reasons.kind[tail],
        about=scored.reasons.about[tail],
        shapes=scored.reasons.shapes[tail],
        worst_line=standing.worst_line[closed],
    )


def _store(sessions: SessionTable, pieces: Cut, scored: _Scored, standing: _Standing, view: View) -> None:
    """Write back what stays open: the last piece of each slot, unless silence ended it.

    After a cut by count the row waits, empty, for the first line of the next session of its key.
    """
    table, after, tokens, offsets = sessions.column, scored.standing.after(), view.tokens, view.token_offsets
    has_lines = np.diff(pieces.line_offsets) > 0
    # Pieces with lines are ordered by slot, so a slot's last one is the one before another slot's.
    stays = has_lines & ~pieces.ends
    stays[:-1] &= (pieces.slot[1:] != pieces.slot[:-1]) | ~has_lines[1:]
    piece = np.flatnonzero(stays)
    slot, over, tail = pieces.slot[piece], pieces.split[piece], pieces.offsets[1:][piece] - 1
    values: dict[str, NDArray[Any]] = {
        **{column.name: getattr(standing, column.name) for column in fields(_Standing)},
        **{column.name: getattr(after, column.name) for column in fields(Carry)},
        "counts": view.counts,
    }
    for name, value in values.items():
        gone = over if value.ndim == 1 else over[:, None]
        table[name][slot] = np.where(gone, np.zeros(1, dtype=table[name].dtype), value[piece])
    table["strangeness"][slot] = np.where(over, 0.0, scored.judgement.strangeness[tail])
    table["p"][slot] = np.where(over, np.nan, scored.judgement.p[tail])
    table["last_time"][slot] = pieces.row_time[tail]
    table["last_event"][slot] = pieces.row_event[tail]

    # The window that the next template will be predicted from.
    total = np.diff(offsets)[piece]
    start = window_start(total)
    keep = np.where(over, 0, total - start)
    table["held"][slot] = keep
    table["opened"][slot] = pieces.starts[piece] & (start == 0) & ~over
    rank = rank_in_run(np.concatenate(([0], np.cumsum(keep))))
    window = np.zeros((len(piece), WINDOW_TOKENS), dtype=np.int32)
    window[np.repeat(np.arange(len(piece)), keep), rank] = tokens[np.repeat(offsets[piece] + start, keep) + rank]
    table["tokens"][slot] = window
