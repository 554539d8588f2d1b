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
    "detector": "bf04b913",
    "counters": "8bc92ead",
    "schedule": "023b3e27",
    "rate": "8bd70574",
    "sources": "91a19d8d",
    "clock": "b8a3b41c",
    "templates": "d4200551",
    "sessions": "f3a49674",
    "history": "7f33db02",
    "recent": "aa10576c",
    "known": "a1bffafa",
    "incidents": "b5e448a7",
    "models": "9256de93",
    "values": "805c56b5",
    "origins": "788b1d97",
    "vouching": "02918738",
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
    """A short digest of which columns there are: names, types, and shapes but for the number of rows."""
    return hashlib.sha256(repr(sorted((name, *_kind(columns[name])) for name in columns)).encode()).hexdigest()[:8]


def _kind(value: Value) -> tuple[str, int, tuple[int, ...]]:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.ndim, value.shape[1:]
    return type(value).__name__, 0, ()


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
