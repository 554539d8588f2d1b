"""What the columns of a state and of a model may hold, checked once when they are loaded.

A checksum proves that a file is what was written, not that it is a state: NaN in a model makes every comparison with it
false, so nothing is flagged any more, and an index that points nowhere raises at some frame much later. So what comes
from a file is compared with the declarations below; what breaks one is damage like a checksum that is wrong. Names and
dtypes of columns are those of a layout (`columns.layout_upgrades`) before anything here is looked at.

A bound is no proof either. It says what the code that reads the column takes for granted: that a number is finite, an
index points at something, a count is not negative, rows belong together, JSON is of the type that it is decoded to.
Values that merely mislead pass.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from detection.causes.fingerprints import KINDS as CAUSE_KINDS
from detection.causes.fingerprints import WHAT_BYTES
from detection.causes.known_causes import OperatorAnswer
from detection.columns.state_columns import Columns, Value, columns_under
from detection.detection_settings import BOUNDS as SETTINGS_BOUNDS
from detection.detection_settings import DetectionSettings, RuleText
from detection.formats.kinds import KINDS
from detection.frames import ModelFrame
from detection.members.failing_members import Withdrawn
from detection.members.fitted_member_view import CLOSING, COUNT_BUCKETS
from detection.members.isolation_forest.features import FEATURES, JUDGED
from detection.members.origins.background import BINS, COUNTERS, DAY
from detection.models.generation_list import Generation
from detection.sessions.key_pattern import KeyPattern
from detection.templates.masks import MAX_TOKENS
from detection.templates.table import MAX_ID
from detection.templates.tree import ACCESS, TEXT

LARGEST = 1 << 62  # of counts and line numbers: so far away that nothing overflows
LATEST = 1e15  # seconds, either way: no time that a line can hold comes near it
LARGEST_SCORE = 1e30
LARGEST_WEIGHT = 1e4  # of a network: sums of their products stay finite
LARGEST_CAPACITY = 1 << 24
# Of modules whose imports are heavy: a start checks a snapshot before it has time for torch.
MEMBERS = ("ngram", "counts", "values", "sources", "transformer", "isolation_forest")  # `members.registry`
VERDICTS = 3  # `scoring.verdict_and_score`
SESSIONS, SESSION_KEY_BYTES, LONGEST_SESSION, HELD_TOKENS = 1 << 16, 65, 1000, 63  # `sessions.session_table`
VOUCHED_SESSIONS = 1 << 14  # `learning.vouched_lines`
HISTORY_ROWS = 1 << 18  # `sessions.history`
RECENT_LINES, RECENT_BYTES, RECENT_LINE_BYTES = 1 << 16, 4 << 20, 2048  # `sessions.recent_lines`
AGREEING_LINES = 20  # `sessions.log_clock`
SOURCES, SOURCE_KEY_BYTES = 1 << 14, 24  # `members.origins.source_counters`
SHARE_UNIT = 1 << 10  # `members.origins.background`
INCIDENTS, SAMPLES, SHOWN = 4096, 4, 1 << 16  # `verdicts.incidents`
COUNTED_RUNS, COUNTED_CAUSES = 32, 8  # `verdicts.counted_alerts`
VALUE_KINDS, VALUE_CLASSES = 2, 40  # `members.parameter_values.character_model`
LARGEST_VOCABULARY = 1020  # `members.transformer.windows`
WIDTH, LAYERS, FEED, POSITIONS = 64, 2, 256, 64  # `members.transformer.network`
FIRST_TOKEN = 4  # `members.transformer.windows`
_FIRST_VOUCHED = -(1 << 62)
ANY = -1  # of a dimension: whatever it is


@dataclass(frozen=True, slots=True)
class Bound:
    """Values from `low` to `high`, both inclusive; a name is that of the scalar which is the end, or of the array in
    which each value's end is; a vouched file has its own. `nan`: or nan. The type of `low` says of a scalar whether it
    is a truth, a whole number or any number. `rising`: no value is less than the one before it; `apart`: nor equal.

    Of arrays: `rows` is their number, or the name of the rows that the column shares, "" being those of its part;
    `rest` are the dimensions after the first; `bytes` the size of byte strings, which are UTF-8 if `utf8`. `distinct`:
    no row is twice there; a name is that of the column of truths that says in which rows."""

    low: float = 0
    high: float | str = LARGEST
    nan: bool = False
    rising: bool = False
    apart: bool = False
    rows: int | str = ""
    rest: tuple[int, ...] = ()
    bytes: int = 0
    utf8: bool = False
    distinct: bool | str = False


_COUNT = Bound()
_TIME = Bound(-LATEST, LATEST)
_TIME_OR_NONE = Bound(-LATEST, LATEST, nan=True)
_SCORE = Bound(-LARGEST_SCORE, LARGEST_SCORE)
_SHARE = Bound(0.0, 1.0)
_TRUTH = Bound(False, True)
_ANY_BITS = Bound(0, (1 << 64) - 1)
_BYTE = Bound(0, 255)
_LINES_OF_SOURCES = Bound(0, "origins.line")


def _columns(part: str, names: str, bound: Bound) -> dict[str, Bound]:
    return {f"{part}{name}": bound for name in names.split()}


# Every column of `Detector.export` but texts and JSON.
BOUNDS: Mapping[str, Bound] = {
    **_columns("", "seq line closings_at_line generations restored", _COUNT),
    "received": _TIME_OR_NONE,
    **_columns("counters.", "cut_lines unterminated_lines future_lines rule_hits flagged sessions lost_lines", _COUNT),
    **_columns("counters.", "value_lines vouched_lines vouched_rule_hits vouched_sessions", _COUNT),
    **_columns("schedule.", "trained_at admissions_at vouched_at", _COUNT),
    "schedule.fulfilled": _TRUTH,
    "rate.sessions": Bound(0.0, 1e18),
    "rate.days": Bound(0.0, LATEST),
    "rate.clock": _TIME_OR_NONE,
    "sources.full": _TRUTH,
    "sources.parity": Bound(0, 1),
    "sources.lines": _COUNT,
    "sources.sizes": Bound(0, 1 << 31),
    "sources.tails": Bound(0, 255, rows="bytes"),
    "clock.now": _TIME_OR_NONE,
    "clock.timed": _TRUTH,
    "clock.ahead": Bound(-LATEST, LATEST, rows="ahead"),
    "templates.capacity": Bound(1, LARGEST_CAPACITY),
    "templates.created": Bound(0, MAX_ID),
    "templates.evicted": _COUNT,
    "templates.lines": _COUNT,
    "templates.id": Bound(0, "templates.created", apart=True),
    "templates.family": Bound(0, TEXT),
    "templates.wild": _BYTE,
    "templates.rest": _TRUTH,
    "templates.count": _COUNT,
    "templates.used": _COUNT,
    "templates.tokens": Bound(0, 255, rows="tokens"),
    "sessions.next_serial": _COUNT,
    "sessions.evicted": _COUNT,
    "sessions.key": Bound(bytes=SESSION_KEY_BYTES, distinct=True),
    "sessions.serial": Bound(0, "sessions.next_serial", rising=True),
    "sessions.last_time": Bound(-LATEST, np.inf),  # inf: a session that has no line yet
    "sessions.last_event": _TIME_OR_NONE,
    "sessions.began": _TIME_OR_NONE,
    **_columns("sessions.", "first_line last_line worst_line muted errors", _COUNT),
    "sessions.lines": Bound(0, LONGEST_SESSION),
    **_columns("sessions.", "windowed opened", _TRUTH),
    "sessions.held": Bound(0, HELD_TOKENS),
    "sessions.tokens": Bound(CLOSING, "templates.created", rest=(HELD_TOKENS,)),
    "sessions.counts": Bound(0, 255, rest=(COUNT_BUCKETS,)),
    "sessions.reached": Bound(-LARGEST_SCORE, LARGEST_SCORE, rest=(len(MEMBERS),)),
    "sessions.strangeness": _SCORE,
    "sessions.p": Bound(0.0, 1.0, nan=True),  # nan: no member judged it
    "sessions.excused": _SHARE,
    "sessions.novel": Bound(0, MAX_ID),
    "sessions.hit": _SHARE,
    "sessions.verdict": Bound(0, VERDICTS),
    **_columns("sessions.", "shape cause", _ANY_BITS),
    "history.written": _COUNT,
    "history.mark": _COUNT,
    "history.serials": Bound(_FIRST_VOUCHED, LARGEST),
    "history.templates": Bound(CLOSING, "templates.created"),
    "history.times": _TIME,
    "history.flags": _BYTE,
    "history.values": _SCORE,
    "history.sources": _SCORE,
    "history.about": _ANY_BITS,
    "recent.written": _COUNT,
    "recent.last": _COUNT,
    "recent.bytes": Bound(0, 255, rows=RECENT_BYTES),
    "recent.starts": Bound(0, "recent.written", rows=RECENT_LINES),
    "recent.sizes": Bound(-1, RECENT_LINE_BYTES, rows=RECENT_LINES),
    "recent.serials": Bound(0, LARGEST, rows=RECENT_LINES),
    **_columns("known.", "answers_dropped admissions admitted_dropped", _COUNT),
    "known.ring.place": Bound(rising=True),
    **_columns("known.ring.", "cause key", _ANY_BITS),
    "known.admitted": Bound(0, (1 << 64) - 1, rows="admitted"),
    **_columns("incidents.", "opened digested evicted evicted_open recorded counted counts", _COUNT),
    **_columns("incidents.", "line k last_line last_k", _COUNT),
    **_columns("incidents.", "sample_line sample_k", Bound(rest=(SAMPLES,))),
    "incidents.count": Bound(1, LARGEST),
    "incidents.kind": Bound(0, len(CAUSE_KINDS) - 1),
    "incidents.cause": Bound(0, (1 << 64) - 1, distinct="by_cause"),
    "incidents.source": Bound(0, (1 << 64) - 1, distinct="by_source"),
    **_columns("incidents.", "by_cause by_source exempt digest", _TRUTH),
    "incidents.what": Bound(bytes=WHAT_BYTES, utf8=True),
    **_columns("incidents.", "first_time last_time now counted_time", _TIME),
    "incidents.shown": Bound(-LATEST, LATEST, rows="shown"),
    "incidents.counted_causes": Bound(0, COUNTED_CAUSES),
    "incidents.counted_number": _COUNT,
    **_columns("incidents.", "group_cause group_shape group_open_shape", Bound(0, (1 << 64) - 1, rows="groups")),
    "incidents.group_kind": Bound(0, len(CAUSE_KINDS) - 1, rows="groups"),
    "incidents.group_verdict": Bound(0, VERDICTS, rows="groups"),
    "incidents.group_about": Bound(CLOSING, MAX_ID, rows="groups"),
    "incidents.group_what": Bound(rows="groups", bytes=WHAT_BYTES, utf8=True),
    "incidents.group_runs": Bound(1, COUNTED_RUNS, rows="groups"),
    "incidents.runs": Bound(rows="runs", rest=(4,)),
    "models.refused": _COUNT,
    "values.counts": Bound(0, 1 << 24, rows=VALUE_KINDS, rest=(VALUE_CLASSES,) * 3),
    "origins.line": _COUNT,
    "origins.evicted": _COUNT,
    "origins.key": Bound(bytes=SOURCE_KEY_BYTES, distinct=True),
    "origins.last_line": _LINES_OF_SOURCES,
    "origins.minute": Bound(-LATEST, LATEST),
    **_columns("origins.", "long_lines day_lines", _LINES_OF_SOURCES),
    "origins.lines": Bound(0, "origins.line", rest=(2,)),
    "origins.failures": Bound(0, "origins.lines", rest=(2,)),
    "origins.long_failures": Bound(0, "origins.long_lines"),
    "origins.day_failures": Bound(0, "origins.day_lines"),
    "origins.things": Bound(0, (1 << 64) - 1, rest=(2,)),
    "origins.long_things": _ANY_BITS,
    **_columns("origins.", "peak record", Bound(0, BINS - 1, rest=(DAY,))),
    "origins.day_peak": Bound(0, BINS - 1),
    **_columns("origins.", "given days", Bound(0, (1 << 16) - 1)),
    **_columns("origins.background.", "counts pending", Bound(0, 1 << 48, rows=len(COUNTERS), rest=(BINS,))),
    "origins.background.shares": Bound(0, 1 << 58, rows=4),
}

# A vouched file has parts of its own, which are like those of the stream.
_VOUCHED = {
    "vouching.living": "sources",
    "vouching.clock": "clock",
    "vouching.sessions": "sessions",
    "vouching.counters": "origins",
}
_VOUCHED_BOUNDS = {
    "vouching.at_line": _COUNT,
    "vouching.sessions.next_serial": Bound(_FIRST_VOUCHED, 0),
    "vouching.sessions.serial": Bound(_FIRST_VOUCHED, 0, rising=True),
}

Part = Callable[[str], Any]  # from the name of a column in a part to that column


@dataclass(frozen=True, slots=True)
class Rows:
    """How many rows there are at most, and how many there must be as other columns of the part tell."""

    most: int = LARGEST
    told: Callable[[Part], int] | None = None


_ROWS: Mapping[str, Rows] = {
    "sources": Rows(told=lambda part: _texts(part("names"))),
    "sources.bytes": Rows(told=lambda part: int(part("sizes").sum())),
    "clock.ahead": Rows(AGREEING_LINES - 1),
    "templates": Rows(told=lambda part: 1 + int(np.count_nonzero(part("tokens") == ord("\n")))),
    "sessions": Rows(SESSIONS),
    "vouching.sessions": Rows(VOUCHED_SESSIONS),
    "history": Rows(told=lambda part: min(part("written"), HISTORY_ROWS)),
    "incidents": Rows(INCIDENTS),
    "incidents.shown": Rows(SHOWN),
    "incidents.groups": Rows(told=lambda part: int(part("counted_causes").sum())),
    "incidents.runs": Rows(told=lambda part: int(part("group_runs").sum())),
    "origins": Rows(SOURCES),
}


def _texts(joined: str) -> int:
    return joined.count("\n") + 1 if joined else 0


# What each column of JSON decodes to, and the bounds of what is in it.
_JSON: Mapping[str, Any] = {
    "settings": DetectionSettings,
    "rules": tuple[RuleText, ...],
    "model": ModelFrame,
    "known.answers": list[OperatorAnswer],
    "models.entries": list[Generation],
    "withdrawn.entries": list[Withdrawn],
}
# By column: fields that are numbers, and texts that are one of a few. A path leads to the field, in each of a list.
_NUMBERS_IN_JSON: Mapping[str, Mapping[str, Bound]] = {
    "settings": {name: Bound(low, high) for name, (low, high) in SETTINGS_BOUNDS.items()},
    "model": {"generation": _COUNT},
    "known.answers": {
        "cause": _ANY_BITS,
        "kind": Bound(0, len(CAUSE_KINDS) - 1),
        "line": _COUNT,
        "template": Bound(0, MAX_ID),
        "shapes": _ANY_BITS,
    },
    "models.entries": {"generation": _COUNT, "line": _COUNT},
    "withdrawn.entries": {"seq": _COUNT},
}
_TEXTS_IN_JSON: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "settings": {"format.kind": ("auto", *KINDS)},
    "withdrawn.entries": {"member": MEMBERS},
}


class DamagedError(ValueError):
    """A sentence: which column cannot be, and why."""


def check_state(state: Columns) -> None:
    """`state` is of this version's layout. Raises DamagedError for the first column that cannot be."""
    _check_columns(state, _declared_in_state)
    decoded = {name: _check_json(name, state[name], kind) for name, kind in _JSON.items()}
    _check_session_key(decoded["settings"].session.key)
    for part in ("sources", "vouching.living"):
        if f"{part}.names" in state:
            names, kinds = (str(state[f"{part}.{column}"]) for column in ("names", "kinds"))
            if _texts(names) != _texts(kinds):
                raise DamagedError(f"column {part}.kinds has {_texts(kinds)} rows and not {_texts(names)}")
            for kind in kinds.split("\n") if kinds else ():
                _check_text(f"{part}.kinds", kind, KINDS)
    if np.any(np.asarray(state["incidents.sample_line"])[:, 0] == 0):
        raise DamagedError("column incidents.sample_line holds an incident without an alert")
    for part in ("origins", "vouching.counters"):
        if f"{part}.background.shares" in state:
            failed, samples, *pending = np.asarray(state[f"{part}.background.shares"]).tolist()
            if failed > SHARE_UNIT * samples or pending[0] > SHARE_UNIT * pending[1]:
                raise DamagedError(f"column {part}.background.shares holds more failures than lines")
    _check_templates(state)


@dataclass(frozen=True, slots=True)
class _Declared:
    """A column's bound, its part, and the name and number of the rows that it shares with others; whether its values
    are compared with each other or those of another column."""

    bound: Bound
    part: str
    group: str
    rows: Rows
    related: bool

    @classmethod
    def of(cls, bound: Bound, part: str, rows_of: Callable[[str], Rows]) -> "_Declared":
        group = f"{part}.{bound.rows}" if bound.rows else part
        return cls(bound, part, group, rows_of(group), bool(bound.distinct) or isinstance(bound.high, str))


@lru_cache(maxsize=1024)  # the names are those of a layout
def _declared_in_state(name: str) -> _Declared | None:
    bound = _bound_of_column(name)
    return _Declared.of(bound, name.rpartition(".")[0], _rows_of_state) if bound is not None else None


def _bound_of_column(name: str) -> Bound | None:
    """What the column called `name` of a state may hold; None: it has no bound (JSON, texts)."""
    return BOUNDS.get(name) or _VOUCHED_BOUNDS.get(name) or BOUNDS.get(_like_of_stream(name))


def _rows_of_state(group: str) -> Rows:
    return _ROWS.get(group) or _ROWS.get(_like_of_stream(group)) or Rows()


def _like_of_stream(name: str) -> str:
    """The stream's part or column that the vouched file's `name` is like; else `name`."""
    for mine, theirs in _VOUCHED.items():
        if name == mine or name.startswith(f"{mine}."):
            return theirs + name.removeprefix(mine)
    return name


def _check_columns(columns: Columns, declared_of: Callable[[str], _Declared | None]) -> None:
    # Scalars first, some are the ends of arrays; then values, some tell the number of other columns' rows.
    arrays: list[tuple[str, NDArray[Any], _Declared]] = []
    for name, value in columns.items():
        declared = declared_of(name)
        if declared is None:
            continue
        if isinstance(value, np.ndarray):
            arrays.append((name, value, declared))
        else:
            _check_scalar(name, value, declared.bound)
    for name, value, declared in arrays:
        _check_within(name, value, declared.bound, columns)
    held: dict[str, int] = {}
    for name, value, declared in arrays:
        _check_shape(name, value, declared, held, columns)
    for name, value, declared in (each for each in arrays if each[2].related):
        bound = declared.bound
        if isinstance(bound.high, str):
            end = _end_in_columns(name, bound.high, columns)
            if isinstance(end, np.ndarray) and np.any(value > end):
                raise DamagedError(f"column {name} holds more than {bound.high}")
        if bound.distinct:
            rows: Any = value
            if isinstance(bound.distinct, str):
                rows = value[np.asarray(columns[f"{declared.part}.{bound.distinct}"])]
            if len(np.unique(rows)) != len(rows):
                raise DamagedError(f"column {name} holds a value twice")


def _check_shape(name: str, value: NDArray[Any], declared: _Declared, held: dict[str, int], columns: Columns) -> None:
    """`held` are the numbers of rows known so far, by group; one that is not is added."""
    bound, group, rows = declared.bound, declared.group, declared.rows
    shape = value.shape
    if not shape or not (shape[1:] == bound.rest or (ANY in bound.rest and len(shape) == 1 + len(bound.rest))):
        raise DamagedError(f"column {name} has the shape {shape} and not {('rows', *bound.rest)}")
    if isinstance(bound.rows, int):
        wanted = bound.rows
    else:
        if group not in held:
            told = rows.told
            held[group] = shape[0] if told is None else told(partial(_column_of_part, columns, declared.part))
            if held[group] > rows.most:
                raise DamagedError(f"column {name} has {held[group]} rows, and {rows.most} are the most")
        wanted = held[group]
    if shape[0] != wanted:
        raise DamagedError(f"column {name} has {shape[0]} rows and not {wanted}")


def _column_of_part(columns: Columns, part: str, name: str) -> Any:
    return columns[f"{part}.{name}"]


def _check_scalar(name: str, value: Any, bound: Bound) -> None:
    kind = bool if isinstance(bound.low, bool) else int if isinstance(bound.low, int) and not bound.nan else float
    fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise DamagedError(f"column {name} is to be a {'truth' if kind is bool else 'number'}, not {value!r:.40}")
    _check_number(name, value, bound)


def _check_number(name: str, value: float, bound: Bound) -> None:
    assert not isinstance(bound.high, str), "no scalar's end is another one"
    if not (bound.low <= value <= bound.high or (bound.nan and value != value)):
        raise DamagedError(f"column {name} is {str(value)[:40]}, outside of {bound.low} to {bound.high}")


def _check_within(name: str, values: NDArray[Any], bound: Bound, columns: Columns) -> None:
    """Check the values of an array, whatever its shape."""
    if values.dtype.kind == "S":
        if values.dtype.itemsize != bound.bytes:
            raise DamagedError(f"column {name} is of {values.dtype.itemsize} bytes a row and not of {bound.bytes}")
        if bound.utf8:
            _check_utf8(name, values)
        return
    if not values.size or values.dtype.kind == "b":
        return
    high: Any = _end_in_columns(name, bound.high, columns) if isinstance(bound.high, str) else bound.high
    if isinstance(high, np.ndarray):
        high = LARGEST  # shapes first
    if values.dtype.kind == "u" and bound.low == 0 and high >= (1 << 8 * values.itemsize) - 1:
        return  # whatever it holds: raw bytes are most of a state
    # Both are nan where one value is, unless nan is among what may be; a comparison with nan is false.
    least, most = (np.fmin.reduce, np.fmax.reduce) if bound.nan else (np.minimum.reduce, np.maximum.reduce)
    unsigned = values.dtype.kind == "u" and bound.low == 0
    smallest, largest = 0 if unsigned else least(values, axis=None), most(values, axis=None)
    fits = smallest >= bound.low and largest <= high
    if not (fits or (bound.nan and np.isnan(smallest) and np.isnan(largest))):
        raise DamagedError(f"column {name} holds {smallest} to {largest}, outside of {bound.low} to {high}")
    if bound.rising and np.any(values[1:] < values[:-1]):
        raise DamagedError(f"column {name} falls, and must rise")
    if bound.apart and np.any(values[1:] <= values[:-1]):
        raise DamagedError(f"column {name} falls or repeats a value, and must rise")


def _end_in_columns(name: str, high: str, columns: Columns) -> Any:
    """The column `high`, of the part of column `name` if that has one of this name."""
    own = name.rpartition(".")[0] + "." + high.rpartition(".")[2]
    return columns[own if own in columns else high]


def _check_utf8(name: str, values: NDArray[Any]) -> None:
    try:
        b"\n".join(values.reshape(-1).tolist()).decode()
    except UnicodeDecodeError as exc:
        raise DamagedError(f"column {name} holds bytes that are not UTF-8") from exc


def _check_json(name: str, value: Value, kind: Any) -> Any:
    """What the column of JSON decodes to."""
    raw = value.tobytes() if isinstance(value, np.ndarray) else value
    try:
        decoded = msgspec.json.decode(raw if isinstance(raw, bytes) else b"", type=kind)
    except (ValueError, RecursionError) as exc:
        raise DamagedError(f"column {name} is not JSON of its kind: {exc}") from exc
    for field, bound in _NUMBERS_IN_JSON.get(name, {}).items():
        if found := _fields_of_json(decoded, field):
            for each in (min(found), max(found)):
                _check_number(f"{name}.{field}", each, bound)
    for field, allowed in _TEXTS_IN_JSON.get(name, {}).items():
        for text in set(_fields_of_json(decoded, field)):
            _check_text(f"{name}.{field}", text, allowed)
    return decoded


def _fields_of_json(decoded: Any, path: str) -> list[Any]:
    """The values of the field `path` in an object or in each of a list; of a field that is a list, what is in it."""
    found = decoded if isinstance(decoded, list) else [decoded]
    for step in path.split("."):
        found = [getattr(each, step) for each in found]
    if found and isinstance(found[0], tuple):
        found = [value for each in found for value in each]
    return [value for value in found if value is not None]


def _check_session_key(key: str) -> None:
    try:
        if key != "auto":
            KeyPattern(key)
    except ValueError as exc:
        raise DamagedError(f"column settings: {exc}") from exc


def _check_text(name: str, text: str, allowed: tuple[str, ...]) -> None:
    if text not in allowed:
        raise DamagedError(f"column {name} holds {text!r:.40}, which is none of {', '.join(allowed)}")


def _check_templates(columns: Columns) -> None:
    """The paths of templates through the tree: a request has a status and a method, and nodes are shared (`wild`) below
    the level that tells how many words a message has."""
    tokens, family, wild = (np.asarray(columns[f"templates.{name}"]) for name in ("tokens", "family", "wild"))
    ends = np.append(np.flatnonzero(tokens == ord("\n")), len(tokens))
    spaces = np.diff(np.searchsorted(np.flatnonzero(tokens == ord(" ")), ends), prepend=0)
    request = family == ACCESS
    if np.any(request & (spaces == 0)):
        raise DamagedError("column templates.tokens holds a request without a method")
    if np.any(wild & np.where(request, 0xFF, 0xF1)):
        raise DamagedError("column templates.wild marks a level that is never shared")
    if np.any(~request & (spaces >= MAX_TOKENS)):
        raise DamagedError(f"column templates.tokens holds a message of more than {MAX_TOKENS} words")


# Of a model -------------------------------------------------------------------------------------------------------


def _weights(rows: int | str, *rest: int) -> Bound:
    return Bound(-LARGEST_WEIGHT, LARGEST_WEIGHT, rows=rows, rest=rest)


_NGRAM: Mapping[str, Bound] = {
    f"parts.ngram/{name}.{order}": bound
    for order in (1, 2, 3)
    for name, bound in {
        "grams": Bound(0, (1 << 30) - 1, apart=True, rows=f"grams.{order}"),
        "counts": Bound(1, LARGEST, rows=f"grams.{order}"),
        "after": Bound(0, (1 << 30) - 1, apart=True, rows=f"after.{order}"),
        **dict.fromkeys(("total", "kinds"), Bound(1, LARGEST, rows=f"after.{order}")),
    }.items()
}
_NETWORK: Mapping[str, Bound] = {
    "embedding": _weights("tokens", WIDTH),
    "position": _weights(POSITIONS, WIDTH),
    "output.weight": _weights("tokens", WIDTH),
    "output.bias": _weights("tokens"),
    **dict.fromkeys(("norm.scale", "norm.shift"), _weights(WIDTH)),
    **{
        f"{layer}.{name}": bound
        for layer in range(LAYERS)
        for name, bound in {
            "qkv.weight": _weights(3 * WIDTH, WIDTH),
            "qkv.bias": _weights(3 * WIDTH),
            "mix.weight": _weights(WIDTH, WIDTH),
            "mix.bias": _weights(WIDTH),
            "up.weight": _weights(FEED, WIDTH),
            "up.bias": _weights(FEED),
            "down.weight": _weights(WIDTH, FEED),
            "down.bias": _weights(WIDTH),
            **dict.fromkeys(("attend.scale", "attend.shift", "feed.scale", "feed.shift"), _weights(WIDTH)),
        }.items()
    },
}
# Every column of `models.model.to_columns` but the calibration scores and what is in "meta".
MODEL_BOUNDS: Mapping[str, Bound] = {
    "generation": Bound(1, LARGEST),
    "line": _COUNT,
    "vocabulary": Bound(0, MAX_ID, apart=True, rows="vocabulary"),
    "parts.anchor/offsets": Bound(0, LARGEST, rising=True, rows="anchor offsets"),
    "parts.anchor/tokens": Bound(0, MAX_ID, rows="anchor tokens"),
    **_columns("parts.anchor/", "starts ends", Bound(rows="anchor sessions")),
    "parts.isolation_forest/feature": Bound(0, len(JUDGED) - 1, rows="trees", rest=(ANY,)),
    # A leaf has none: everything is below it.
    "parts.isolation_forest/threshold": Bound(-np.inf, np.inf, rows="trees", rest=(ANY,)),
    "parts.isolation_forest/path": Bound(0.0, LARGEST_SCORE, rows="trees", rest=(ANY,)),
    "parts.isolation_forest/scale": Bound(1e-9, LARGEST_SCORE, rows=1),
    "parts.isolation_forest/usual": Bound(-LARGEST_SCORE, LARGEST_SCORE, rows=len(FEATURES), rest=(3,)),
    "parts.counts/vectors": Bound(0, 255, rows="vectors", rest=(COUNT_BUCKETS,)),
    **_NGRAM,
    **{f"parts.transformer/{name}": bound for name, bound in _NETWORK.items()},
    **{name: bound for name, bound in BOUNDS.items() if name.startswith("templates.")},
}


def check_model(columns: Columns) -> None:
    """`columns` are of this version's layout. Raises DamagedError for the first column that cannot be."""
    if "rings.ensemble" not in columns:
        raise DamagedError("column rings.ensemble is missing")
    for name, value in columns_under("rings", columns).items():  # these are part of no layout
        if not isinstance(value, np.ndarray) or value.dtype != np.float64 or value.ndim != 1:
            raise DamagedError(f"column rings.{name} is to be float64 [n]")
    vocabulary = np.size(np.asarray(columns["vocabulary"]))
    rows = {
        "templates": _ROWS["templates"],
        "parts.tokens": Rows(told=lambda _: vocabulary + FIRST_TOKEN),
        ".vocabulary": Rows(LARGEST_VOCABULARY),
    }

    def declared_of(name: str) -> _Declared | None:
        bound, part = _bound_of_model_column(name), name.partition(".")[0] if "." in name else ""
        return _Declared.of(bound, part, lambda group: rows.get(group, Rows())) if bound is not None else None

    _check_columns(columns, declared_of)
    _check_templates(columns)
    if "parts.anchor/offsets" in columns:
        offsets, tokens, starts = (
            np.asarray(columns[f"parts.anchor/{name}"]) for name in ("offsets", "tokens", "starts")
        )
        if len(offsets) != len(starts) + 1 or offsets[0] != 0 or offsets[-1] != len(tokens):
            cut = f"{len(tokens)} tokens into {len(starts)} sessions"
            raise DamagedError(f"column parts.anchor/offsets does not cut {cut}")
    if "parts.isolation_forest/path" in columns:
        leaves = np.shape(np.asarray(columns["parts.isolation_forest/path"]))[1]
        for name in ("feature", "threshold"):
            nodes = np.shape(np.asarray(columns[f"parts.isolation_forest/{name}"]))[1]
            if leaves.bit_count() != 1 or nodes != leaves - 1:
                raise DamagedError(f"column parts.isolation_forest/{name} is not of trees with {leaves} leaves")


def _bound_of_model_column(name: str) -> Bound | None:
    if name.startswith("rings."):
        return Bound(-LARGEST_SCORE, LARGEST_SCORE, rising=True, rows=name)
    return MODEL_BOUNDS.get(name)
