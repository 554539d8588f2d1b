"""The state as plain columns: what `Detector.export` gives, snapshots hold and the digest covers.

A state is a flat mapping from dotted names ("sessions.last_time") to numpy arrays and scalars. Parts of
the detector export their own columns and are joined under a prefix. Arrays are C-contiguous, little
endian, and of a fixed-size dtype (never object).
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, fields
from typing import Any, ClassVar, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

Scalar = int | float | str | bytes | bool | None
Value = NDArray[np.generic] | Scalar
State = dict[str, Value]
Columns = Mapping[str, Value]
Kind = TypeVar("Kind", int, float, str, bytes, bool)
Decoded = TypeVar("Decoded")
Self = TypeVar("Self", bound="Scalars")


class OtherVersionError(Exception):
    """Sound, but exported by another version of the program, and not to be brought to this one. The message says why,
    `advice` what to do where nothing else can be done."""

    advice = "use the vigild that wrote it, or another state directory"


class NewerVersionError(OtherVersionError):
    """A later version of the program exported it: it is to be left as it is."""

    advice = "use a newer vigild"


@contextmanager
def of_this_version() -> Iterator[None]:
    """Loading what is sound: where it cannot be taken for what this version exports, raises OtherVersionError."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as exc:
        raise OtherVersionError(f"this program cannot load it: {type(exc).__name__}: {exc}") from exc


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


def array(columns: Columns, name: str) -> NDArray[Any]:
    """The array called `name`. Raises KeyError where there is none, TypeError where it is a scalar."""
    value = columns[name]
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} is to be an array, not {type(value).__name__}")
    return value


def scalar(columns: Columns, name: str, kind: type[Kind]) -> Kind:
    """The scalar called `name`: an int is a float, too. Raises KeyError where there is none, TypeError where it is
    not of this kind."""
    value = columns[name]
    if isinstance(value, kind):
        return value
    if kind is float and isinstance(value, int):
        return kind(value)
    raise TypeError(f"{name} is to be {kind.__name__}, not {type(value).__name__}")


def decoded(columns: Columns, name: str, kind: type[Decoded]) -> Decoded:
    """What the column called `name` holds as JSON. Raises as `scalar` does, and `msgspec.DecodeError`, a ValueError."""
    return msgspec.json.decode(scalar(columns, name, bytes), type=kind)


def arrays(columns: Columns) -> dict[str, NDArray[Any]]:
    """All of `columns`, which are arrays; else raises TypeError."""
    return {name: array(columns, name) for name in columns}


def scalars(columns: Columns) -> dict[str, Any]:
    """All of `columns`, which are scalars, for a dataclass of them; else raises TypeError."""
    for name, value in columns.items():
        if isinstance(value, np.ndarray):
            raise TypeError(f"{name} is to be a scalar, not an array")
    return dict(columns)


class Scalars:
    """What a dataclass inherits that is a part of the state, a column a field, and holds nothing but scalars."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def export(self) -> State:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def load(cls: type[Self], columns: Columns) -> Self:
        """Raises TypeError where a column is an array, or is of no field."""
        return cls(**scalars(columns))


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
