"""The state as plain columns: what `Detector.export` gives, snapshots hold and the digest covers.

A state is a flat mapping from dotted names ("sessions.last_time") to numpy arrays and scalars. Parts of
the detector export their own columns and are joined under a prefix. Arrays are C-contiguous, little
endian, and of a fixed-size dtype (never object).
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

Scalar = int | float | str | bytes | bool | None
Value = NDArray[np.generic] | Scalar
State = dict[str, Value]
Columns = Mapping[str, Value]

FORMAT = 1  # of the columns of `Detector.export`; a change that `Detector.load` must know of raises it

# The `layout` of each part of `Detector.export`: a change of columns that forgets `FORMAT` must not be taken for
# damage, nor be read as if it were none. A test compares it with what is exported, and says what to put here.
LAYOUT: Mapping[str, str] = {
    "detector": "e7431dfa",
    "counters": "466f7ece",
    "schedule": "35d34109",
    "rate": "3e4f91b6",
    "sources": "191e2bd9",
    "clock": "96665cbe",
    "templates": "0ebff859",
    "sessions": "85c65d6c",
    "history": "d5fc97de",
    "recent": "ec7739f4",
    "known": "22917e71",
    "incidents": "b3393ae9",
    "models": "c6b95611",
    "values": "757b9666",
    "origins": "261b90ab",
    "vouching": "48d2286a",
}
_SOMETIMES = ("vouching",)  # parts that are not in every state


class OtherVersionError(Exception):
    """Sound, but exported by another version of the program. The message says so, and what to do."""


def check_format(state: Columns) -> None:
    """Raises OtherVersionError when `state` is no export of this version's detector."""
    found = state.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise OtherVersionError(
            f"the state has format {found}, this program knows formats up to {FORMAT}; use a newer vigild"
        )
    parts = {name: LAYOUT[name] for name in _SOMETIMES} | layouts(state)
    if other := sorted(name for name in LAYOUT.keys() | parts.keys() if LAYOUT.get(name) != parts.get(name)):
        raise other_version(f"the columns of its {', '.join(other)} are not those that this program keeps")


def other_version(why: str) -> OtherVersionError:
    return OtherVersionError(f"{why}; use the vigild that wrote it, or another state directory")


@contextmanager
def of_this_version() -> Iterator[None]:
    """Loading what is sound: where it cannot be taken for what this version exports, raises OtherVersionError."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as exc:
        raise other_version(f"this program cannot load it: {type(exc).__name__}: {exc}") from exc


def layouts(state: Columns) -> dict[str, str]:
    """The `layout` of each part; that of the columns under no prefix is the "detector"'s."""
    parts: defaultdict[str, State] = defaultdict(dict)
    for name, value in state.items():
        prefix, dot, rest = name.partition(".")
        parts[prefix if dot else "detector"][rest if dot else name] = value
    return {name: layout(columns) for name, columns in parts.items()}


def layout(columns: Columns) -> str:
    """A short digest of which columns there are: their names, and of what kind they are. Nothing that a stream has a
    say in, or a sound state would be refused: how many rows, how wide a forest's trees, how long a text."""
    return hashlib.sha256(repr(sorted((name, *_kind(columns[name])) for name in columns)).encode()).hexdigest()[:8]


def _kind(value: Value) -> tuple[str, int]:
    if isinstance(value, np.ndarray):
        return value.dtype.kind if value.dtype.kind in "SU" else value.dtype.str, value.ndim
    return "number" if isinstance(value, int | float | np.number | np.bool_) else type(value).__name__, 0


def joined(prefix: str, columns: Columns) -> State:
    """`columns` with every name put under `prefix`."""
    return {f"{prefix}.{name}": value for name, value in columns.items()}


def part(prefix: str, state: Columns) -> State:
    """The inverse of `joined`: the columns under `prefix`, without it."""
    dotted = prefix + "."
    return {name[len(dotted) :]: value for name, value in state.items() if name.startswith(dotted)}


def digest(state: Columns) -> str:
    """A SHA-256 over every name, type, shape and bit of `state`: equal digests mean equal states.

    Costs about a millisecond per megabyte and releases the GIL on large arrays.
    """
    sha = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if isinstance(value, np.ndarray):
            array = np.ascontiguousarray(value)
            sha.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
            sha.update(array.reshape(-1).view(np.uint8).data if array.size else b"")
        else:
            sha.update(f"{name}\0{type(value).__name__}\0{value!r}\0".encode())
    return sha.hexdigest()
