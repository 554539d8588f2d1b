"""One batch of lines against the open sessions: what each line makes of its session, and what closes.

Everything is columns. A *row* is a line or the closing of a session by silence; a *piece* is the part of
one session that lies in the batch (`sessions.Cut`).
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection import history as flag
from detection.ensemble import MEMBERS, Ensemble
from detection.members.view import CLOSING as CLOSING_TEMPLATE
from detection.features import Carry, running
from detection.history import History
from detection.segments import first_true, rank_in_run, repeat_per_row, running_max
from detection.sessions import WINDOW_TOKENS, Cut, SessionTable
from detection.transformer import window_start

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Batch:
    """n lines as columns. `clock` is the log clock at each line, non-decreasing; `hit` the confidence of
    the surest rule that matched it, 0 where none did."""

    first_line: int
    ids: NDArray[np.int32]
    errors: Bools
    clock: Floats
    hit: Floats

    @classmethod
    def empty(cls, line: int) -> "Batch":
        """No lines; what closes now closes at `line`."""
        none = np.zeros(0)
        return cls(line, none.astype(np.int32), none.astype(np.bool_), none, none)


@dataclass(frozen=True, slots=True)
class Closings:
    """Sessions that closed, one row each; p, worst and oddity are the session's final ones."""

    line: Ints  # at which the closing showed
    serial: Ints
    first_line: Ints
    last_line: Ints
    time: Floats
    session: NDArray[np.bytes_]
    p: Floats
    worst: Floats
    oddity: Floats
    hit: Floats
    flagged: Bools  # by the closing itself; a session flagged earlier is not flagged again
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

    first_line: Ints
    session: NDArray[np.bytes_]
    p: Floats
    worst: Floats
    oddity: Floats
    member_ps: dict[str, Floats]
    flagged: Bools  # the session's p fell below alpha here, for the first time


@dataclass(frozen=True, slots=True)
class _Scored:
    """Rows as the members see them: running values of the session at that row."""

    worst: Floats
    oddity: Floats
    p: Floats
    member_ps: dict[str, Floats]
    crossing: Bools
    after: Carry


@dataclass(frozen=True, slots=True)
class _Standing:
    """Pieces after the batch."""

    serial: Ints
    first_line: Ints
    last_line: Ints
    worst_line: Ints
    hit: Floats
    flagged: Bools


def judge(
    sessions: SessionTable,
    history: History,
    ensemble: Ensemble | None,
    alpha: float,
    batch: Batch,
    pieces: Cut,
) -> tuple[LineStates, Closings]:
    """Score a batch, move the sessions on, remember it for training. Without an ensemble p is nan."""
    tokens, offsets, held = _sequences(sessions, batch, pieces)
    brought = _Brought(sessions, pieces)
    scored = _score(ensemble, alpha, batch, pieces, brought, (tokens, offsets, held))
    standing = _stand(sessions, batch, pieces, brought, scored)
    _remember(history, batch, pieces, standing)
    key = sessions.column["key"][pieces.slot]
    closings = _closings(batch, pieces, scored, standing, key)

    line_rows = np.flatnonzero(~pieces.row_closing)
    row_of_line = np.empty(len(batch.ids), dtype=np.int64)
    row_of_line[pieces.order] = line_rows
    piece_of_line = repeat_per_row(pieces.offsets)[row_of_line]
    states = LineStates(
        first_line=standing.first_line[piece_of_line],
        session=key[piece_of_line],
        p=scored.p[row_of_line],
        worst=scored.worst[row_of_line],
        oddity=scored.oddity[row_of_line],
        member_ps={name: values[row_of_line] for name, values in scored.member_ps.items()},
        flagged=scored.crossing[row_of_line],
    )
    _store(sessions, pieces, scored, standing, tokens, offsets)
    sessions.release(pieces.vacated)
    return states, closings


def closed_as_they_are(sessions: SessionTable, slots: Ints, line: int) -> Closings:
    """Close sessions at `line` without scoring the closing: they did not end, they were ended."""
    table = sessions.column
    slots = slots[table["lines"][slots] > 0]
    at = {column.name: table[column.name][slots] for column in fields(Closings) if column.name in table}
    at["line"] = np.full(len(slots), line)
    at["time"] = table["last_time"][slots]
    at["session"] = table["key"][slots]
    at["flagged"] = np.zeros(len(slots), dtype=np.bool_)
    return Closings(**at)


class _Brought:
    """What each piece's session brings along from the table; fresh sessions bring nothing."""

    def __init__(self, sessions: SessionTable, pieces: Cut) -> None:
        self._slot = pieces.slot
        self._table = sessions.column
        self._goes_on = pieces.goes_on

    def __call__(self, name: str, fresh: Any = 0) -> NDArray[Any]:
        return np.where(self._goes_on, self._table[name][self._slot], fresh)


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


def _score(
    ensemble: Ensemble | None,
    alpha: float,
    batch: Batch,
    pieces: Cut,
    brought: _Brought,
    sequences: tuple[NDArray[np.int32], Ints, Ints],
) -> _Scored:
    rows = len(pieces.row_line)
    head = pieces.offsets[:-1]
    surprise = np.zeros(rows)
    if ensemble is not None and rows:
        surprise = ensemble.sequence.surprises(*sequences, pieces.starts, pieces.ends).astype(np.float64)
    template = np.full(rows, CLOSING_TEMPLATE, dtype=np.int32)
    error = np.zeros(rows, dtype=np.bool_)
    template[~pieces.row_closing] = batch.ids[pieces.order]
    error[~pieces.row_closing] = batch.errors[pieces.order]
    features, after = running(
        surprise,
        error,
        template,
        pieces.row_time,
        pieces.offsets,
        Carry.brought(brought, brought("began", pieces.row_time[head])),
    )
    worst = features[:, 0]
    if ensemble is None or not rows:
        unready = np.full(rows, np.nan)
        nothing = np.zeros(rows, dtype=np.bool_)
        return _Scored(worst, np.zeros(rows), unready, dict.fromkeys(MEMBERS, unready), nothing, after)
    oddity = ensemble.forest.scores(features)
    oddity[head] = np.maximum(oddity[head], brought("oddity"))
    oddity = running_max(oddity, pieces.offsets)
    judgement = ensemble.judge(worst, oddity)
    unflagged = ~brought("flagged", False).astype(np.bool_)
    strange = (judgement.p < alpha) & unflagged[repeat_per_row(pieces.offsets)]
    crossing = first_true(strange, pieces.offsets)
    return _Scored(worst, oddity, judgement.p, judgement.members, crossing, after)


def _stand(sessions: SessionTable, batch: Batch, pieces: Cut, brought: _Brought, scored: _Scored) -> _Standing:
    head, tail = pieces.offsets[:-1], pieces.offsets[1:] - 1
    fresh = ~pieces.goes_on
    number = batch.first_line + pieces.row_line
    serial, first_line, last_line = brought("serial"), brought("first_line"), brought("last_line")
    serial[fresh] = sessions.new_serials(number[head[fresh]])
    first_line[fresh] = number[head[fresh]]
    last = tail - pieces.ends
    has_lines = last >= head
    last_line[has_lines] = number[last[has_lines]]

    hit = np.zeros(len(pieces.row_line))
    hit[~pieces.row_closing] = batch.hit[pieces.order]
    worst_line = brought("worst_line")
    if len(head):
        before = np.empty(len(number))
        before[1:] = scored.worst[:-1]
        before[head] = np.where(fresh, -1.0, brought("worst"))
        rows = np.arange(len(number))
        record = np.maximum.reduceat(np.where(scored.worst > before, rows, -1), head)
        renewed = record >= 0
        by_closing = pieces.row_closing[record]
        worst_line = np.where(renewed, np.where(by_closing, last_line, number[record]), worst_line)
        hit = np.maximum.reduceat(hit, head)
    flagged = np.zeros(len(head), dtype=np.bool_)
    flagged[repeat_per_row(pieces.offsets)[scored.crossing]] = True
    return _Standing(
        serial=serial,
        first_line=first_line,
        last_line=last_line,
        worst_line=worst_line,
        hit=np.maximum(brought("hit", 0.0), hit[: len(head)]),
        flagged=flagged | brought("flagged", False).astype(np.bool_),
    )


def _remember(history: History, batch: Batch, pieces: Cut, standing: _Standing) -> None:
    """Add the lines, in their order, and then the closings to what the next model learns from."""
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
    history.append(standing.serial[row_piece[in_line_order]], batch.ids, batch.clock, flags[in_line_order])
    closed = np.flatnonzero(pieces.ends | pieces.split)
    tail = pieces.offsets[1:] - 1
    closed = closed[np.lexsort((standing.serial[closed], pieces.row_line[tail[closed]]))]
    history.append(
        standing.serial[closed],
        np.full(len(closed), CLOSING_TEMPLATE, dtype=np.int32),
        pieces.row_time[tail[closed]],
        np.where(pieces.ends[closed], flag.ENDS, flag.SPLITS).astype(np.uint8),
    )


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
        p=scored.p[tail],
        worst=scored.worst[tail],
        oddity=scored.oddity[tail],
        hit=standing.hit[closed],
        flagged=scored.crossing[tail] & pieces.row_closing[tail],
        worst_line=standing.worst_line[closed],
    )


def _store(
    sessions: SessionTable,
    pieces: Cut,
    scored: _Scored,
    standing: _Standing,
    tokens: NDArray[np.int32],
    offsets: Ints,
) -> None:
    """Write back what stays open: the last piece of each slot, unless silence ended it.

    After a cut by count the row waits, empty, for the first line of the next session of its key.
    """
    table, after = sessions.column, scored.after
    has_lines = np.diff(pieces.line_offsets) > 0
    # Pieces with lines are ordered by slot, so a slot's last one is the one before another slot's.
    stays = has_lines & ~pieces.ends
    stays[:-1] &= (pieces.slot[1:] != pieces.slot[:-1]) | ~has_lines[1:]
    piece = np.flatnonzero(stays)
    slot, over, tail = pieces.slot[piece], pieces.split[piece], pieces.offsets[1:][piece] - 1
    values: dict[str, NDArray[Any]] = {
        **{column.name: getattr(standing, column.name) for column in fields(_Standing)},
        **{column.name: getattr(after, column.name) for column in fields(Carry)},
    }
    for name, value in values.items():
        table[name][slot] = np.where(over, np.zeros(1, dtype=table[name].dtype), value[piece])
    table["oddity"][slot] = np.where(over, 0.0, scored.oddity[tail])
    table["p"][slot] = np.where(over, np.nan, scored.p[tail])
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
