"""States and models that a detector cannot have exported, each one change away from one that it has: the change is of
one column's shape, values or JSON. And what a detector does next, which none of them may break.
"""

import json
import math
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.startup.startup_scan import check_snapshot_columns
from detection.column_bounds import DamagedError, check_model
from detection.columns.layout_upgrades import STATES
from detection.columns.state_columns import Columns, OtherVersionError, State, digest
from detection.detector import Detector
from detection.frames import (
    FeedbackFrame,
    FlushFrame,
    Frame,
    Knowledge,
    LinesFrame,
    ModelFrame,
    RestoreFrame,
    Segment,
    Sequenced,
    TickFrame,
    VouchedFrame,
    count_lines,
)
from detection.models.model import Model, from_columns, to_columns
from persistence.model_file import read_model
from persistence.snapshot_file import read_snapshot
from tests.detection.journal import ATTACK, sample, segment

GOLDEN = Path(__file__).parents[1] / "golden" / "state-3.tar.xz"
RECEIVED = 1_796_010_000.0  # after the golden state
AHEAD = b'7.7.7.7 - - [19/May/2015:23:05:03 +0000] "GET /ahead?q=1 HTTP/1.1" 200 1 "-" "-"'
ODD = b'7.7.7.8 - - [18/May/2015:02:05:03 +0000] "GET /odd/%d/x?name=%%24%%7Bjndi%d HTTP/1.1" 500 1 "-" "-"'
PLAIN = b"May 18 00:14:15 host sshd[230]: Failed password for root from 10.0.0.9 port %d ssh2"


@dataclass(frozen=True)
class Genuine:
    """A state that has a row at least in every column, and its model, both as they were exported."""

    state: State
    model: Model


@cache
def golden() -> Genuine:
    with tempfile.TemporaryDirectory() as home, tarfile.open(GOLDEN) as archive:
        archive.extractall(home, filter="data")
        directory = Path(home)
        _, _, columns = read_snapshot(max(directory.glob("snapshot-*")))
        [model] = directory.glob("model-*.pt")
        return Genuine(STATES.upgraded(columns), from_columns(read_model(model)))


def apply(detector: Detector, frame: Frame, **more: Any) -> list[dict[str, Any]]:
    """The records of the alerts in `frame`."""
    line = detector.line + count_lines(frame)
    verdicts = detector.apply(Sequenced(detector.seq + 1, line, frame, **more))
    list(verdicts.records())
    return verdicts.flagged()


def answer(record: Mapping[str, Any], said: str) -> FeedbackFrame:
    about = str(record["id"]), int(record["cause"], 16), 3, record["what"]
    return FeedbackFrame(*about, said, "a note", record["cause_template"] or 0, (1, 2))  # type: ignore[arg-type]


@cache
def genuine() -> Genuine:
    """Real lines on top of the golden state: attacks, odd lines, open sessions of keys and of windows, unfinished
    lines, answers, a vouched file that has not ended and a member that is withdrawn."""
    then, lines = golden(), sample()
    detector = Detector.load(dict(then.state), then.model)
    apply(detector, ModelFrame(1, detector.model.name, detector.model.sha256), model=then.model)
    odd = [ODD % (number, number) for number in range(40)]
    plain = [PLAIN % number for number in range(30)]
    records: list[dict[str, Any]] = []
    for some in (lines[1700:2200], [ATTACK] * 30, odd, [*lines[2200:2400], ATTACK], odd):
        segments = (segment(some), segment(plain, "b-1", "syslog"), segment(plain, "c-1", "plain"))
        records += apply(detector, LinesFrame(RECEIVED, segments))
    # The incident of these is open, its count under way.
    apply(detector, LinesFrame(RECEIVED + 1, (segment([ATTACK] * 5),)))
    for number, record in enumerate(records[:6]):
        apply(detector, answer(record, "normal" if number % 2 else "anomaly"))
    apply(detector, VouchedFrame(RECEIVED + 2, segment(lines[2500:2700], "vouched"), done=False))
    apply(detector, VouchedFrame(RECEIVED + 2, Segment("vouched", "access", AHEAD + b"\nunfi", 1), done=False))
    apply(detector, LinesFrame(RECEIVED + 3, (segment(lines[2400:2410]),)), without={"counts": "it raised"})
    unfinished = [Segment("a-1", "access", AHEAD + b"\nunfin", 1), Segment("b-1", "syslog", b"Oct", 0, parity=1)]
    apply(detector, LinesFrame(RECEIVED + 4, tuple(unfinished)))
    state = detector.export()
    state["known.admitted"] = np.array([5, 6], dtype=np.uint64)
    empty = [name for name, value in state.items() if isinstance(value, np.ndarray) and not value.size]
    assert not empty, empty
    return Genuine(state, then.model)


def copied(columns: Columns) -> State:
    return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in columns.items()}


def live_on(detector: Detector, then: Genuine) -> None:
    """Whatever a daemon does with a detector: 2,000 real lines, questions, answers, a restore, a copy of the state."""
    lines, known = sample(), then.state
    for source in detector.living_sources():
        ended = Segment(source.name, source.kind, b"the rest\n", 1, last=True, parity=source.parity ^ 1)
        apply(detector, LinesFrame(RECEIVED, (ended,)))
    records: list[dict[str, Any]] = []
    for start in range(2500, 4300, 450):
        some = (segment(lines[start : start + 400]), segment([PLAIN % start] * 25, "b-1", "syslog"))
        records += apply(detector, LinesFrame(RECEIVED + start, (*some, segment([PLAIN % start] * 25, "c-1", "plain"))))
    records += apply(detector, LinesFrame(RECEIVED + 5000, (segment([ATTACK] * 20 + lines[4300:4480]),)))
    asked = [*lines[4500:4510], ATTACK, b"", ODD % (1, 1), PLAIN % 7]
    keys = [None, *(bytes(key).decode("latin-1") for key in np.asarray(known["sessions.key"])[:4].tolist())]
    for key in keys:
        json.dumps(detector.ask(asked, key, explain=True))
    if records:
        for said in ("normal", "anomaly", "undo"):
            apply(detector, answer(records[-1], said))
    apply(detector, VouchedFrame(RECEIVED + 5001, segment(lines[4600:4700], "vouched", last=True), done=True))
    apply(detector, TickFrame(RECEIVED + 5100))
    tell(detector)
    exported = detector.export()
    assert digest(Detector.load(copied(exported), detector.in_force).export()) == digest(exported)
    restore = RestoreFrame("snapshot-5.msgpack", "0" * 64)
    apply(detector, restore, knowledge=Knowledge(copied(exported), detector.in_force))
    apply(detector, LinesFrame(RECEIVED + 5200, (segment([*lines[4700:4800], ATTACK]),)))
    apply(detector, FlushFrame(RECEIVED + 5300))
    tell(detector)


def tell(detector: Detector) -> None:
    """Everything that the API says of it, and the next training set."""
    json.dumps([detector.incidents(1000), detector.answers(), detector.generations()])
    detector.summary()
    detector.living_sources()
    detector.training_set().to_columns()
    for alert in ((1, 0), (detector.line, 0)):
        json.dumps(detector.counting_record(*alert))


def refused_state(state: Columns) -> str | None:
    """The sentence for the operator, None when the state is loaded."""
    try:
        STATES.upgraded(state)
        check_snapshot_columns(state["seq"], state["line"], state)  # type: ignore[arg-type]
    except (DamagedError, OtherVersionError) as exc:
        return str(exc)
    return None


def refused_model(columns: Columns) -> str | None:
    try:
        check_model(to_columns(from_columns(columns)))
    except (DamagedError, OtherVersionError, KeyError, TypeError) as exc:
        return str(exc)
    return None


def live_with_state(state: State) -> None:
    live_on(Detector.load(copied(state), genuine().model), genuine())


def live_with_model(columns: State) -> None:
    live_on(Detector.load(copied(genuine().state), from_columns(copied(columns))), genuine())


# Forgeries ----------------------------------------------------------------------------------------------------------

_JSON: tuple[Any, ...] = (None, 1, "x", [], {}, [None], [[]], [{}], {"a": 1}, True)
_JSON_VALUES: tuple[Any, ...] = (None, -1, 1 << 70, 1e308, "", "\ud800x", [], {}, True, [[-1]])


@dataclass(frozen=True, slots=True)
class Forgery:
    """`change` says what was done, "column: how". Arrays that are not changed are shared: do not write into them."""

    change: str
    columns: State


def forgeries(columns: Columns) -> Iterator[Forgery]:
    """All of them: some 11,000 of a state."""
    for name in columns:
        yield from forgeries_of_column(columns, name)


def a_forgery(columns: Columns, rng: Random) -> Forgery:
    return rng.choice(list(forgeries_of_column(columns, rng.choice(sorted(columns)))))


def forgeries_of_column(columns: Columns, name: str) -> Iterator[Forgery]:
    for change, forged in _forged_values(columns[name]):
        yield Forgery(f"{name}: {change}", {**columns, name: forged})
    yield Forgery(f"{name}: missing", {other: each for other, each in columns.items() if other != name})
    yield Forgery(f"{name}: additional", {**columns, f"{name}2": columns[name]})


def _forged_values(value: Any) -> Iterator[tuple[str, Any]]:
    is_json = (value.tobytes() if isinstance(value, np.ndarray) else value) if _holds_json(value) else None
    if is_json is not None:
        for change, raw in _forged_json(is_json):
            yield change, np.frombuffer(raw, np.uint8).copy() if isinstance(value, np.ndarray) else raw
    if isinstance(value, np.ndarray):
        yield from _forged_shapes(value)
        yield from _forged_elements(value)
        yield from _other_types(value)
    else:
        yield from _forged_scalars(value)


def _holds_json(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype == np.uint8 and value.ndim == 1 and value[:1].tobytes() in (b"[", b"{")
    return isinstance(value, bytes)


def _forged_json(raw: bytes) -> Iterator[tuple[str, bytes]]:
    yield "no JSON", raw[:-1]
    yield "not UTF-8", raw[:-1] + b"\xff" + raw[-1:]
    yield "nothing", b""
    for other in _JSON:
        yield f"JSON {other}", json.dumps(other).encode()
    whole = json.loads(raw)
    for path in list(_paths(whole)):
        for other in _JSON_VALUES:
            yield f"JSON {path} = {other!r}", json.dumps(_replaced(whole, path, other)).encode("utf-8", "surrogatepass")
        if path:
            yield f"JSON {path} doubled", json.dumps(_replaced(whole, path, [_at(whole, path)] * 2)).encode()


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(value, dict):
        for key in value:
            yield from _paths(value[key], (*at, key))
    elif isinstance(value, list) and value:
        yield from _paths(value[0], (*at, 0))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def _replaced(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    if not path:
        return other
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = _replaced(changed[path[0]], path[1:], other)
    return changed


def _forged_shapes(value: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    yield "empty", value[:0].copy()
    yield "one row more", np.concatenate([value, value[-1:]])
    yield "one row less", value[:-1].copy()
    yield "twice", np.concatenate([value, value])
    yield "one dimension more", value[..., None].copy()
    yield "no dimension", value.reshape(-1)[:1].reshape(()).copy()
    yield "flat", value.reshape(-1).copy() if value.ndim > 1 else value[None].copy()
    if value.ndim > 1:
        yield "one column less", value[..., :-1].copy()
        yield "one column more", np.concatenate([value, value[..., -1:]], axis=-1)
        yield "no column", value[..., :0].copy()


def _forged_elements(value: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    kind = value.dtype.kind
    others: list[Any] = []
    if kind in "iu":
        limits, high = np.iinfo(value.dtype), int(value.max())
        others = [limits.min, limits.max, -1, 0, 1, high + 1, 2 * high + 1, 1 << 40, 1 << 62]
        others = sorted({each for each in others if limits.min <= each <= limits.max})
    elif kind == "f":
        others = [np.nan, np.inf, -np.inf, -1.0, 0.0, 1e30, 1e300, -1e300, 0.5]
        others = [each for each in others if not np.isfinite(each) or abs(each) <= float(np.finfo(value.dtype).max)]
    elif kind == "b":
        others = [True, False]
    elif kind == "S":
        others = [b"", b"\xff\xfe\x80", b"\xff" * value.dtype.itemsize, b"a\0b", b"w\xffodd", b"<script>\n"]
    for other in others:
        yield f"all {other}", np.full_like(value, other)
        for which, at in (("first", 0), ("middle", value.size // 2), ("last", -1)):
            changed = value.copy()
            changed.reshape(-1)[at] = other
            yield f"the {which} {other}", changed
    yield "reversed", value[::-1].copy()
    if kind in "iufS" and len(value) > 1:
        yield "all like the first", np.repeat(value[:1], len(value), axis=0)
    if kind in "iuf":
        rng = np.random.default_rng(7)
        yield "shuffled", rng.permutation(value)
    if kind in "iu":
        limits = np.iinfo(value.dtype)
        noise = np.random.default_rng(8).integers(limits.min, limits.max, value.shape, value.dtype, endpoint=True)
        yield "noise", noise


def _other_types(value: NDArray[Any]) -> Iterator[tuple[str, Any]]:
    others = ["<i8", "<i4", "|u1", "<f8", "<f4", "|b1", "|S3", "|S300", "<u8"]
    for other in others:
        if np.dtype(other) != value.dtype:
            with np.errstate(all="ignore"):
                try:
                    yield f"as {other}", np.ascontiguousarray(value.astype(other))
                except ValueError:  # bytes that are no number
                    yield f"as {other}", np.zeros(value.shape, other)
    for name, scalar in {"None": None, "5": 5, "text": "x", "bytes": b"[]", "nan": math.nan}.items():
        yield f"the scalar {name}", scalar


def _forged_scalars(value: Any) -> Iterator[tuple[str, Any]]:
    others: list[Any] = [None, True, False, -1, 0, 1, 1 << 31, 1 << 53, 1 << 62, (1 << 63) - 1, 1 << 64, 1 << 100]
    others += [-(1 << 62), -(1 << 63), 0.5, -1.0, 1e9, 1e17, 1e30, 1e300, math.nan, math.inf, -math.inf]
    others += ["", "x", "x\ny", "\n" * 5, "x\0", "\u2028" * 3, b"", b"\xff", b"[]"]
    if isinstance(value, int) and not isinstance(value, bool):
        others += [value + 1, value - 1, 2 * value + 1]
    if isinstance(value, str):
        others += [value + "\nmore", value.partition("\n")[0], value[::-1], "\n".join([value.partition("\n")[0]] * 2)]
    for other in others:
        if type(other) is not type(value) or repr(other) != repr(value):
            yield f"{other!r}", other
    yield "an array", np.zeros(3)
