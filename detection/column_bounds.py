"""What the columns of a state and of a model may hold, checked once when they are loaded.

A checksum proves that a file is what was written, not that it is a state: NaN in a model makes every comparison with it
false, so nothing is flagged any more, and an index that points nowhere raises at some frame much later. So what comes
from a file is compared with the bounds below; what is outside them is damage like a checksum that is wrong.

A bound is no proof either. It says what the code that reads the column takes for granted: that a number is finite, an
index points at something, a count is not negative, rows belong together. Values that merely mislead pass.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from detection.causes.fingerprints import KINDS
from detection.columns.state_columns import Columns, Value
from detection.members.fitted_member_view import CLOSING
from detection.members.isolation_forest.features import JUDGED
from detection.members.origins.background import BINS
from detection.templates.table import MAX_ID
from detection.templates.tree import TEXT

LARGEST = 1 << 62  # of counts and line numbers: so far away that nothing overflows
LATEST = 1e15  # seconds, either way: no time that a line can hold comes near it
LARGEST_SCORE = 1e30
LARGEST_CAPACITY = 1 << 24
# Of modules whose imports are heavy: a start checks a snapshot before it has time for them.
VERDICTS = 3  # `scoring.outcomes`
HISTORY_ROWS = 1 << 18  # `sessions.history`
_FIRST_VOUCHED = -(1 << 62)


@dataclass(frozen=True, slots=True)
class Bound:
    """From `low` to `high`, both inclusive; a name is that of the scalar which is the end. `nan`: or nan. `rising`: no
    value is less than the one before it. `rows`: of an array, as many rows as the part's other such arrays."""

    low: float = 0
    high: float | str = LARGEST
    nan: bool = False
    rising: bool = False
    rows: bool = True


_COUNT = Bound()
_TIME = Bound(-LATEST, LATEST)
_TIME_OR_NONE = Bound(-LATEST, LATEST, nan=True)
_SCORE = Bound(-LARGEST_SCORE, LARGEST_SCORE)
_SHARE = Bound(0.0, 1.0)
_BIN = Bound(0, BINS - 1)
_LINES_OF_SOURCES = Bound(0, "origins.line")
_APART = Bound(rows=False)

# Every column of `Detector.export` but those whose every value is one: truths, bytes of lines and keys, hashes, texts.
BOUNDS: Mapping[str, Bound] = {
    **dict.fromkeys(("seq", "line", "closings_at_line", "generations", "restored"), _COUNT),
    "received": _TIME_OR_NONE,
    **{f"counters.{name}": _COUNT for name in ("cut_lines", "unterminated_lines", "future_lines", "rule_hits")},
    **{f"counters.{name}": _COUNT for name in ("flagged", "sessions", "lost_lines", "value_lines")},
    **{f"counters.{name}": _COUNT for name in ("vouched_lines", "vouched_rule_hits", "vouched_sessions")},
    **{f"schedule.{name}": _COUNT for name in ("trained_at", "admissions_at", "vouched_at")},
    "rate.sessions": Bound(0.0, 1e18),
    "rate.days": Bound(0.0, LATEST),
    "rate.clock": _TIME_OR_NONE,
    "sources.parity": Bound(0, 1),
    "sources.lines": _COUNT,
    "sources.sizes": _COUNT,
    "clock.now": _TIME_OR_NONE,
    "clock.ahead": _TIME,
    "templates.capacity": Bound(1, LARGEST_CAPACITY),
    "templates.created": Bound(0, MAX_ID),
    "templates.evicted": _COUNT,
    "templates.lines": _COUNT,
    "templates.id": Bound(0, "templates.created", rising=True),
    "templates.family": Bound(0, TEXT),
    "templates.count": _COUNT,
    "templates.used": _COUNT,
    "sessions.next_serial": _COUNT,
    "sessions.evicted": _COUNT,
    "sessions.serial": Bound(0, "sessions.next_serial", rising=True),
    "sessions.last_time": Bound(-LATEST, np.inf),  # inf: a session that has no line yet
    "sessions.last_event": _TIME_OR_NONE,
    "sessions.began": _TIME_OR_NONE,
    **{f"sessions.{name}": _COUNT for name in ("first_line", "last_line", "worst_line", "lines", "muted", "errors")},
    "sessions.held": Bound(0, 63),
    "sessions.tokens": Bound(CLOSING, "templates.created"),
    "sessions.reached": _SCORE,
    "sessions.strangeness": _SCORE,
    "sessions.p": Bound(0.0, 1.0, nan=True),  # nan: no member judged it
    "sessions.excused": _SHARE,
    "sessions.novel": Bound(0, MAX_ID),
    "sessions.hit": _SHARE,
    "sessions.verdict": Bound(0, VERDICTS),
    "history.written": _COUNT,
    "history.mark": _COUNT,
    "history.serials": Bound(_FIRST_VOUCHED, LARGEST),
    "history.templates": Bound(CLOSING, "templates.created"),
    "history.times": _TIME,
    "history.values": _SCORE,
    "history.sources": _SCORE,
    "recent.written": _COUNT,
    "recent.last": _COUNT,
    "recent.starts": Bound(0, "recent.written", rows=False),
    "recent.sizes": Bound(-1, 2048, rows=False),
    "recent.serials": Bound(0, LARGEST, rows=False),
    **{f"known.{name}": _COUNT for name in ("answers_dropped", "admissions", "admitted_dropped")},
    "known.ring.place": _COUNT,
    **{f"incidents.{name}": _COUNT for name in ("opened", "digested", "evicted", "evicted_open")},
    **{f"incidents.{name}": _COUNT for name in ("line", "k", "last_line", "last_k", "sample_line", "sample_k")},
    "incidents.count": Bound(1, LARGEST),
    "incidents.kind": Bound(0, len(KINDS) - 1),
    "incidents.first_time": _TIME,
    "incidents.last_time": _TIME,
    "incidents.shown": Bound(-LATEST, LATEST, rows=False),
    "incidents.now": _TIME,
    **{f"incidents.{name}": _COUNT for name in ("recorded", "counted", "counts", "counted_causes", "counted_number")},
    "incidents.counted_time": _TIME,
    "incidents.group_kind": Bound(0, len(KINDS) - 1, rows=False),
    "incidents.group_verdict": Bound(0, VERDICTS, rows=False),
    "incidents.group_about": Bound(CLOSING, MAX_ID, rows=False),
    "incidents.group_runs": _APART,
    "incidents.runs": _APART,
    "models.refused": _COUNT,
    "values.counts": _APART,
    "origins.line": _COUNT,
    "origins.evicted": _COUNT,
    "origins.last_line": _LINES_OF_SOURCES,
    "origins.minute": Bound(-LATEST, LATEST),
    **{f"origins.{name}": _LINES_OF_SOURCES for name in ("lines", "failures", "long_lines", "long_failures")},
    **{f"origins.{name}": _LINES_OF_SOURCES for name in ("day_lines", "day_failures")},
    **{f"origins.{name}": _BIN for name in ("peak", "record", "day_peak")},
    **{f"origins.background.{name}": _APART for name in ("counts", "pending", "shares")},
}

# A vouched file has parts of its own, which are like those of the stream.
_VOUCHED = {
    "vouching.living.": "sources.",
    "vouching.clock.": "clock.",
    "vouching.sessions.": "sessions.",
    "vouching.counters.": "origins.",
}
_VOUCHED_BOUNDS = {
    "vouching.at_line": _COUNT,
    "vouching.sessions.next_serial": Bound(_FIRST_VOUCHED, 0),
    "vouching.sessions.serial": Bound(_FIRST_VOUCHED, 0, rising=True),
}

# Of the part's rows, beside the columns with a bound.
_MORE_ROWS = ("about", "flags", "key", "things", "long_things", "cause", "source", "what", "full", "rest", "wild")
_JSON = ("settings", "rules", "model", "known.answers", "models.entries", "withdrawn.entries")


class DamagedError(ValueError):
    """A sentence: which column cannot be, and why."""


def check_state(state: Columns) -> None:
    """`state` is of this version's layout. Raises DamagedError for the first column that cannot be."""
    # Scalars first: some are the ends of arrays.
    for name, value in sorted(state.items(), key=lambda column: isinstance(column[1], np.ndarray)):
        if (bound := _bound_of_column(name)) is not None:
            _check_column(name, value, bound, state)
        elif name in _JSON:
            _check_json_column(name, value)
    for name, held, wanted in _row_counts_in_common(state):
        if held != wanted:
            raise DamagedError(f"column {name} has {held} rows and not {wanted}")


def _bound_of_column(name: str) -> Bound | None:
    """What the column called `name` of a state may hold; None: it has no bound (JSON)."""
    if name in BOUNDS:
        return BOUNDS[name]
    if name in _VOUCHED_BOUNDS:
        return _VOUCHED_BOUNDS[name]
    return BOUNDS.get(_stream_column_like(name))


def _stream_column_like(name: str) -> str:
    """The stream's column that the vouched file's column `name` is like; else `name`."""
    for prefix, part in _VOUCHED.items():
        if name.startswith(prefix):
            return part + name.removeprefix(prefix)
    return name


def _check_column(name: str, value: Any, bound: Bound, state: Columns) -> None:
    high = bound.high
    if isinstance(high, str):
        own = name.rpartition(".")[0] + "." + high.rpartition(".")[2]
        end = state[own if own in state else high]
        high = end if isinstance(end, int | float) else np.nan
    if isinstance(value, np.ndarray):
        _check_array_within(name, value, bound.low, high, nan=bound.nan)
        if bound.rising and np.any(value[1:] < value[:-1]):
            raise DamagedError(f"column {name} falls, and must rise")
        return
    whole = isinstance(bound.low, int) and not bound.nan
    if not isinstance(value, int if whole else int | float) or isinstance(value, bool):
        raise DamagedError(f"column {name} is to be a number, not {value!r:.40}")
    if not (bound.low <= value <= high or (bound.nan and value != value)):
        raise DamagedError(f"column {name} is {value}, outside of {bound.low} to {high}")


def _check_array_within(name: str, values: NDArray[Any], low: float, high: float, *, nan: bool = False) -> None:
    if not values.size:
        return
    # Both are nan where one value is, unless nan is among what may be; a comparison with nan is false.
    least, most = (np.fmin.reduce, np.fmax.reduce) if nan else (np.min, np.max)
    smallest, largest = least(values, axis=None), most(values, axis=None)
    if not ((smallest >= low and largest <= high) or (nan and np.isnan(smallest) and np.isnan(largest))):
        raise DamagedError(f"column {name} holds {smallest} to {largest}, outside of {low} to {high}")


def _check_json_column(name: str, value: Value) -> None:
    raw = value.tobytes() if isinstance(value, np.ndarray) else value
    try:
        msgspec.json.decode(raw if isinstance(raw, bytes) else b"")
    except ValueError as exc:
        raise DamagedError(f"column {name} is not JSON: {exc}") from exc


def _row_counts_in_common(state: Columns) -> Iterator[tuple[str, int, int]]:
    """Arrays that have rows in common with others: name, rows, rows of the others."""
    rows: dict[str, int] = {}
    for name, value in state.items():
        if not isinstance(value, np.ndarray):
            continue
        part, _, column = name.rpartition(".")
        bound = _bound_of_column(name)
        if (bound is not None and bound.rows and value.ndim) or column in _MORE_ROWS:
            yield name, len(value), rows.setdefault(part, len(value))
    yield "history.serials", rows["history"], min(_count_in_state(state, "history.written"), HISTORY_ROWS)
    yield "templates.id", rows["templates"], 1 + int(np.sum(state["templates.tokens"] == ord("\n")))
    groups = int(np.sum(np.asarray(state["incidents.counted_causes"])))
    for column in ("cause", "kind", "verdict", "about", "shape", "open_shape", "what", "runs"):
        yield f"incidents.group_{column}", len(np.asarray(state[f"incidents.group_{column}"])), groups
    yield (
        "incidents.runs",
        len(np.asarray(state["incidents.runs"])),
        int(np.sum(np.asarray(state["incidents.group_runs"]))),
    )
    for part in ("sources", "vouching.living"):
        if f"{part}.sizes" in state:
            sizes = np.asarray(state[f"{part}.sizes"])
            yield f"{part}.tails", np.size(np.asarray(state[f"{part}.tails"])), int(sizes.sum())
            for texts in ("names", "kinds"):
                if len(sizes):
                    yield f"{part}.{texts}", str(state[f"{part}.{texts}"]).count("\n") + 1, len(sizes)


def _count_in_state(state: Columns, name: str) -> int:
    """The count in the column called `name`; 0 if it is no whole number."""
    value = state[name]
    return value if isinstance(value, int) else 0


_ANY = Bound(-LARGEST_SCORE, LARGEST_SCORE)
_MODEL_BOUNDS: Mapping[str, Bound] = {
    "generation": Bound(1, LARGEST),
    "line": _COUNT,
    "vocabulary": Bound(0, MAX_ID, rising=True),
    "parts.anchor/offsets": Bound(0, LARGEST, rising=True),
    "parts.anchor/tokens": Bound(0, MAX_ID),
    "parts.isolation_forest/threshold": Bound(-np.inf, np.inf),  # a leaf has none: everything is below it
    **{name: bound for name, bound in BOUNDS.items() if name.startswith("templates.")},
}


def check_model(columns: Columns) -> None:
    """`columns` are of this version's layout. Raises DamagedError for the first column that cannot be."""
    for name, value in columns.items():
        bound = _MODEL_BOUNDS.get(name)
        if bound is None and name.startswith("rings."):
            bound = Bound(-LARGEST_SCORE, LARGEST_SCORE, rising=True)
        elif bound is None and isinstance(value, np.ndarray) and value.dtype.kind in "if":
            bound = _FEATURES if name.endswith("/feature") else _ANY
        if bound is not None:
            _check_column(name, value, bound, columns)
    offsets, tokens = (np.asarray(columns.get(f"parts.anchor/{name}", 0)) for name in ("offsets", "tokens"))
    if offsets.ndim and offsets[-1] != tokens.size:
        raise DamagedError(f"column parts.anchor/offsets ends at {offsets[-1]} of {tokens.size} tokens")


_FEATURES = Bound(0, len(JUDGED) - 1)
