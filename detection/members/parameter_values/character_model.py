"""The spelling of web parameter values: a 3-gram model of characters, by classes.

A value is the text after `name=` in the query of a target, or a part of the query without a name. It is decoded twice,
since payloads often are encoded twice, and `+` is a space. A name with other characters than names have is part of the
value (`?' or 1=1`, `?a[$ne]=1`). A segment of the path is a value, too, if it has any byte but the unreserved ones of
RFC 3986: a quarter of a real scanner's injections were in paths. Such segments are rare and mixed, so they are a kind
with counts of its own: compared with a site's many query values all of them would look unusual, attacks or not.

Letters are one class, digits another, and every other ASCII character is its own: 40 classes in all, so that a table is
256 KB and represents a site's values after some hundred of them. A character's surprise is -ln P(class | the two before
it), the edge of the value being a class, too. P is interpolated over orders 3-2-1-uniform as by Witten and Bell (1991,
their method C; see Chen and Goodman, 1998), but from the square roots of counts: one value that occurs ten thousand
times is no evidence against others (Rennie et al., 2003, damp repeated words likewise). The score of a value is the
mean of its `WORST` largest surprises, in nats: a payload is unusual in a few places only, which a mean over the whole
value would hide. Before anything is learned every surprise is ln 40.

Surprises are multiples of 2^-20 nats, so sums of them are exact: a score depends on the value and the counts alone.
Counts are halved when a kind's total exceeds `HALVED_ABOVE`, so old values fade.

State: `counts` int32 [2, 40, 40, 40] (kind, two classes of context, class).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.columns.runs import rank_in_run, repeat_per_row
from detection.columns.state_columns import Columns, State

TARGET_BYTES = 4096  # of each target, as it was sent
VALUE_BYTES = 1024  # of each value, decoded
WORST = 3  # with 5, .969 and .960 of payloads stand out on two real sites, not .977 and .971 (benchmarks.values)
HALVED_ABOVE = 1 << 22  # characters

QUERY, PATH = range(2)
_KINDS = 2

_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_DIGITS = b"0123456789"
_UNRESERVED = _LETTERS + _DIGITS + b"-._~"
_OTHERS = bytes(byte for byte in range(0x20, 0x7F) if byte not in _LETTERS + _DIGITS)
_BREAKS = b"\t\r\n"

# EDGE is before a value and after it, CUT is the end of one that was too long.
EDGE, CUT, LETTER, DIGIT, BREAK, HIGH, NO_TEXT = range(7)
CLASSES = 7 + len(_OTHERS)


def _class_of_byte() -> NDArray[np.uint8]:
    classes = np.full(256, NO_TEXT, np.uint8)  # control bytes, and those that UTF-8 never has
    classes[0x80:0xC0] = classes[0xC2:0xF5] = HIGH
    for members, number in ((_LETTERS, LETTER), (_DIGITS, DIGIT), (_BREAKS, BREAK)):
        classes[list(members)] = number
    classes[list(_OTHERS)] = np.arange(7, CLASSES)
    return classes


def _byte_set_marks(members: bytes) -> NDArray[np.bool_]:
    """bool [256]: which bytes are among `members`."""
    marks = np.zeros(256, np.bool_)
    marks[list(members)] = True
    return marks


def _digit_values() -> NDArray[np.uint8]:
    values = np.full(256, 16, np.uint8)
    for digits in (b"0123456789abcdef", b"0123456789ABCDEF"):
        values[list(digits)] = np.arange(16)
    return values


_CLASS = _class_of_byte()
_PLAIN_PATH = _UNRESERVED + b"/"
_IS_ODD = ~_byte_set_marks(_PLAIN_PATH)
_IN_NO_NAME = ~_byte_set_marks(_UNRESERVED + b"[]")
_HEX = _digit_values()
_FRAME = 3  # two edges before a value, the second order's context; one class after it


@dataclass(frozen=True)
class Values:
    """The v values of a batch of lines, in the order of lines and of their positions in the line; none is empty.

    Value i is at offsets[i]:offsets[i+1] (int64 [v+1]) of both flat columns, with two places before it and one after
    it: `codes` uint8, the classes, EDGE and EDGE and then EDGE or CUT there; `text` uint8, its bytes, 0 there.
    `lines` int64 [v]: the line's place in the batch. `kinds` uint8 [v]: QUERY or PATH.
    """

    codes: NDArray[np.uint8]
    text: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    lines: NDArray[np.int64]
    kinds: NDArray[np.uint8]

    def of_lines(self, start: int, stop: int) -> "Values":
        """Those of the lines start..stop - 1, which are then numbered from 0."""
        if start == 0 and (not len(self.lines) or self.lines[-1] < stop):
            return self
        first, last = np.searchsorted(self.lines, [start, stop]).tolist()
        offsets = self.offsets[first : last + 1]
        places = slice(int(offsets[0]), int(offsets[-1]))
        return Values(
            codes=self.codes[places],
            text=self.text[places],
            offsets=offsets - offsets[0],
            lines=self.lines[first:last] - start,
            kinds=self.kinds[first:last],
        )


@dataclass(frozen=True)
class Strangest:
    """The value with the highest score in a line: its decoded bytes, its kind, and where it is unusual.

    `places` are those of its most surprising characters, ascending; len(value) stands for its end. value[start:end] has
    them all.
    """

    value: bytes
    kind: int
    score: float
    places: tuple[int, ...]

    @property
    def start(self) -> int:
        return self.places[0]

    @property
    def end(self) -> int:
        return min(self.places[-1] + 1, len(self.value))

    @property
    def characters(self) -> bytes:
        return self.value[self.start : self.end]


def values_of(targets: Sequence[bytes], web: NDArray[np.bool_]) -> Values:
    """The values of those `targets` that are requests (`web`, bool [n]). Targets may be any bytes.

    Time and memory are linear in the first `TARGET_BYTES` of each target that has values.
    """
    # One pass in C over each target: those with bytes left have a query or an unusual segment.
    lines = [line for line, target in enumerate(targets) if target.translate(None, _PLAIN_PATH) and web[line]]
    if not lines:
        nothing = np.zeros(0, np.int64)
        return _values_framed_by_edges(
            np.zeros(0, np.uint8), nothing, nothing, nothing, nothing > 0, nothing.astype(np.uint8)
        )
    kept = [targets[line][:TARGET_BYTES] for line in lines]
    data = np.frombuffer(b"&".join(kept) + b"&", np.uint8).copy()
    ends = np.cumsum(np.fromiter(map(len, kept), np.int64, len(kept)) + 1) - 1
    starts, stops, row, in_query = _possible_values(data, ends)

    equals = np.append(np.flatnonzero(data == ord("=")), len(data))
    equal = equals[np.searchsorted(equals, starts)]
    named = in_query & (equal < stops)
    is_long = np.array([len(targets[line]) > TARGET_BYTES for line in lines])
    cut = is_long[row] & (stops == ends[row])
    begins = np.where(named, equal + 1, starts)
    for _ in range(2):
        data, (starts, begins, stops) = _percent_decoded(data, (starts, begins, stops))
    strange = _marks_before(_IN_NO_NAME[data])
    begins = np.where(named & (strange[np.maximum(begins - 1, starts)] > strange[starts]), starts, begins)

    cut |= stops - begins > VALUE_BYTES
    filled = stops > begins
    kinds = np.where(in_query, QUERY, PATH).astype(np.uint8)
    at = np.array(lines, np.int64)[row]
    return _values_framed_by_edges(
        data, begins[filled], np.minimum(stops, begins + VALUE_BYTES)[filled], at[filled], cut[filled], kinds[filled]
    )


_Ints = NDArray[np.int64]


def _possible_values(data: NDArray[np.uint8], ends: _Ints) -> tuple[_Ints, _Ints, _Ints, NDArray[np.bool_]]:
    """Starts, stops and rows of everything that may be a value, and whether it is in the query.

    `ends` are those of the rows. `+` in a query becomes a space, in place.
    """
    marks = np.flatnonzero(data == ord("?"))
    rows = np.searchsorted(ends, marks)
    question = ends.copy()  # the first `?` of each row
    question[rows[::-1]] = marks[::-1]
    pluses = np.flatnonzero(data == ord("+"))
    data[pluses[pluses > question[np.searchsorted(ends, pluses)]]] = ord(" ")

    bounds = np.flatnonzero((data == ord("&")) | (data == ord("/")) | (data == ord("?")))
    rows = np.searchsorted(ends, bounds)
    at, byte = question[rows], data[bounds]
    divides = (bounds == at) | (bounds == ends[rows]) | (byte == np.where(bounds > at, ord("&"), ord("/")))
    stops, rows = bounds[divides], rows[divides]
    starts = np.concatenate(([0], stops[:-1] + 1))
    in_query = stops > question[rows]
    odd = _marks_before(_IS_ODD[data])
    wanted = (starts < stops) & (in_query | (odd[stops] > odd[starts]))
    return starts[wanted], stops[wanted], rows[wanted], in_query[wanted]


def _marks_before(marks: NDArray[np.bool_]) -> NDArray[np.int32]:
    """How many of `marks` are set before each place, and before the end."""
    return np.concatenate((np.zeros(1, np.int32), np.cumsum(marks, dtype=np.int32)))


def _percent_decoded(data: NDArray[np.uint8], places: tuple[_Ints, ...]) -> tuple[NDArray[np.uint8], tuple[_Ints, ...]]:
    """`data` with every escape such as `%41` decoded once, and the new positions of `places`, none in an escape.

    Separators of values are not hexadecimal digits, so no escape reaches from one value into the next.
    """
    escapes = np.flatnonzero(data[:-2] == ord("%"))
    high, low = _HEX[data[escapes + 1]], _HEX[data[escapes + 2]]
    valid = (high < 16) & (low < 16)
    escapes = escapes[valid]
    if not len(escapes):
        return data, places
    decoded = data.copy()
    decoded[escapes] = high[valid] << 4 | low[valid]
    stays = np.ones(len(data), np.bool_)
    stays[escapes + 1] = stays[escapes + 2] = False
    return decoded[stays], tuple(place - 2 * np.searchsorted(escapes, place) for place in places)


def _values_framed_by_edges(
    data: NDArray[np.uint8], starts: _Ints, stops: _Ints, lines: _Ints, cut: NDArray[np.bool_], kinds: NDArray[np.uint8]
) -> Values:
    inner = np.concatenate((np.zeros(1, np.int64), np.cumsum(stops - starts)))
    offsets = inner + _FRAME * np.arange(len(inner))
    value = repeat_per_row(inner)
    rank = rank_in_run(inner)
    text = np.zeros(offsets[-1], np.uint8)
    text[offsets[value] + 2 + rank] = data[starts[value] + rank]
    codes = _CLASS[text]
    codes[offsets[:-1]] = codes[offsets[:-1] + 1] = EDGE
    codes[offsets[1:] - 1] = np.where(cut, CUT, EDGE)
    return Values(codes, text, offsets, lines, kinds)


_GRAIN = 2.0**20
_SHAPE = (_KINDS, CLASSES, CLASSES, CLASSES)


class ValueModel:
    """Counts of 3-grams, one table for each kind of value: always 512,000 bytes of state."""

    def __init__(self) -> None:
        self._counts = np.zeros(_SHAPE, np.int32)
        self._totals = np.zeros(_KINDS, np.int64)
        # Surprises follow from the counts; they are computed when needed.
        self._nats = np.zeros(_SHAPE, np.int32)
        self._known = np.zeros(_KINDS * CLASSES**2, np.bool_)
        self._lower: NDArray[np.float64] | None = None

    def scores(self, values: Values, lines: int) -> NDArray[np.float64]:
        """The highest score of the values of each line, in nats: float64 [lines]; 0.0 for a line without values."""
        scores = np.zeros(lines)
        np.maximum.at(scores, values.lines, self._value_scores(values))
        return scores

    def learn(self, values: Values, keep: NDArray[np.bool_]) -> None:
        """Learn the values of the lines that `keep` (bool [lines]) marks. Their order does not matter."""
        counted = np.repeat(keep[values.lines], np.diff(values.offsets)) & _places_scored(values)
        grams, times = np.unique(_gram_indices(values)[counted], return_counts=True)
        if not len(grams):
            return
        self._counts.reshape(-1)[grams] += times.astype(np.int32)
        self._totals += np.bincount(grams // CLASSES**3, weights=times, minlength=_KINDS).astype(np.int64)
        for kind in range(_KINDS):
            while self._totals[kind] > HALVED_ABOVE:
                self._counts[kind] >>= 1
                self._totals[kind] = self._counts[kind].sum(dtype=np.int64)
        self._known[:] = False
        self._lower = None

    def explain(self, values: Values, line: int) -> Strangest | None:
        """The value of `line` with the highest score, the first of equals; None for a line without values."""
        mine = np.flatnonzero(values.lines == line)
        if not len(mine):
            return None
        scores = self._value_scores(values)[mine]
        best = int(np.argmax(scores))
        begin, end = (int(offset) for offset in values.offsets[mine[best] : mine[best] + 2])
        nats = self._surprises_at_places(values)[begin + 2 : end]
        places = np.sort(np.argsort(-nats, kind="stable")[:WORST])
        text = values.text[begin + 2 : end - 1].tobytes()
        kind = int(values.kinds[mine[best]])
        return Strangest(text, kind, float(scores[best]), tuple(int(place) for place in places))

    def export(self) -> State:
        return {"counts": self._counts.copy()}

    @classmethod
    def load(cls, columns: Columns) -> "ValueModel":
        """The inverse of `export`. Raises KeyError, TypeError or ValueError if `columns` is not an export."""
        counts: object = columns["counts"]
        if not isinstance(counts, np.ndarray) or counts.dtype != np.int32 or counts.shape != _SHAPE:
            raise TypeError(f"counts of a value model are int32 {_SHAPE}")
        if counts.min() < 0:
            raise ValueError("counts of a value model are never negative")
        model = cls()
        model._counts[:] = counts
        model._totals[:] = counts.sum(axis=(1, 2, 3), dtype=np.int64)
        return model

    def _value_scores(self, values: Values) -> NDArray[np.float64]:
        sizes = np.diff(values.offsets)
        # Sorted by value, then by surprise: the largest of each value come last.
        keys = repeat_per_row(values.offsets) << 32 | self._surprises_at_places(values)
        keys.sort()
        # A value's first key is an edge with a surprise of 0, so it adds nothing where a value is short.
        last = np.maximum(values.offsets[1:, None] - np.arange(1, WORST + 1), values.offsets[:-1, None])
        worst = keys[last]
        sums = (worst & 0xFFFFFFFF).sum(axis=1)
        return np.asarray(sums / (np.minimum(sizes - 2, WORST) * _GRAIN), np.float64)

    def _surprises_at_places(self, values: Values) -> NDArray[np.int32]:
        """The surprise at each place in `values.codes`, in units of 2^-20 nats: int32; 0 at the edges before values."""
        grams = _gram_indices(values)
        self._fill_nats_of_contexts(grams // CLASSES)
        nats = self._nats.reshape(-1)[grams]
        nats[~_places_scored(values)] = 0
        return nats

    def _fill_nats_of_contexts(self, contexts: NDArray[np.int32]) -> None:
        """Fill `_nats` for these contexts (pairs of classes) where it is not; a small batch needs few of them."""
        wanted = np.zeros(len(self._known), np.bool_)
        wanted[contexts] = True
        rows = np.flatnonzero(wanted & ~self._known)
        if self._lower is None:
            pairs = self._counts.sum(axis=1, dtype=np.int64)
            single = _interpolated_probability(pairs.sum(axis=1), np.full(CLASSES, 1.0 / CLASSES))
            self._lower = _interpolated_probability(pairs, single[:, None])
        # 40 classes are whole vectors of any width: a row's bits do not depend on the rows beside it.
        lower = self._lower[rows // CLASSES**2, rows % CLASSES]
        p = _interpolated_probability(self._counts.reshape(-1, CLASSES)[rows], lower)
        self._nats.reshape(-1, CLASSES)[rows] = np.rint(-np.log(p) * _GRAIN)
        self._known[rows] = True


def _interpolated_probability(counts: NDArray[np.integer], lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """Witten and Bell's estimate from counts [..., 40] and the estimate of the order below; the latter if all are 0."""
    damped = np.rint(np.sqrt(counts) * _GRAIN) / _GRAIN  # multiples of 2^-20: sums do not depend on their order
    types = np.maximum((counts > 0).sum(axis=-1, keepdims=True), 1)
    p: NDArray[np.float64] = (damped + types * lower) / (damped.sum(axis=-1, keepdims=True) + types)
    return p


def _gram_indices(values: Values) -> NDArray[np.int32]:
    """The flat index in the counts of each place's class after the two before it: int32; 0 for the first two places."""
    codes = values.codes.astype(np.int32)
    grams = np.zeros(len(codes), np.int32)
    grams[2:] = (codes[:-2] * CLASSES + codes[1:-1]) * CLASSES + codes[2:]
    grams += np.repeat(values.kinds.astype(np.int32) * CLASSES**3, np.diff(values.offsets))
    return grams


def _places_scored(values: Values) -> NDArray[np.bool_]:
    scored = np.ones(len(values.codes), np.bool_)
    scored[values.offsets[:-1]] = scored[values.offsets[:-1] + 1] = False
    return scored
