"""The state as plain columns: what `Detector.export` returns, snapshots store and the digest covers.

A state is a flat mapping from dotted names ("sessions.last_time") to numpy arrays and scalars. Each part of the
detector exports its own columns; in the state their names have the part's name as a prefix. Arrays are C-contiguous,
little endian, and of a fixed-size dtype (never object).
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
    """The columns are intact, but another version of the program exported them, and they cannot be upgraded to this
    one. The message says why; `advice` says what the operator can do."""

    advice = "use the vigild that wrote it, or another state directory"


class NewerVersionError(OtherVersionError):
    """A later version of the program exported the columns: leave the file as it is."""

    advice = "use a newer vigild"


@contextmanager
def of_this_version() -> Iterator[None]:
    """Load intact columns in this context: a LookupError, TypeError or ValueError becomes an OtherVersionError."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as exc:
        raise OtherVersionError(f"this program cannot load it: {type(exc).__name__}: {exc}") from exc


def layouts_of_parts(state: Columns) -> dict[str, str]:
    """The `layout_hash` of each part by its prefix; columns without a prefix are the part "detector"."""
    parts: defaultdict[str, State] = defaultdict(dict)
    for name, value in state.items():
        prefix, dot, rest = name.partition(".")
        parts[prefix if dot else "detector"][rest if dot else name] = value
    return {name: layout_hash(columns) for name, columns in parts.items()}


def layout_hash(columns: Columns) -> str:
    """A short hash (8 hexadecimal digits) of the names and kinds of `columns`.

    It leaves out whatever depends on the stream, or an intact state would be refused: the number of rows, the size of
    a forest's trees, the length of a text.
    """
    return hashlib.sha256(repr(sorted((name, *_column_kind(columns[name])) for name in columns)).encode()).hexdigest()[
        :8
    ]


def _column_kind(value: Value) -> tuple[str, int]:
    if isinstance(value, np.ndarray):
        return value.dtype.kind if value.dtype.kind in "SU" else value.dtype.str, value.ndim
    return "number" if isinstance(value, int | float | np.number | np.bool_) else type(value).__name__, 0


def array_column(columns: Columns, name: str) -> NDArray[Any]:
    """The array called `name`. Raises KeyError if there is none, TypeError if it is a scalar."""
    value = columns[name]
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} is to be an array, not {type(value).__name__}")
    return value


def scalar_column(columns: Columns, name: str, kind: type[Kind]) -> Kind:
    """The scalar called `name`; an int counts as a float, too. Raises KeyError if there is none, TypeError if it is of
    another kind."""
    value = columns[name]
    if isinstance(value, kind):
        return value
    if kind is float and isinstance(value, int):
        return kind(value)
    raise TypeError(f"{name} is to be {kind.__name__}, not {type(value).__name__}")


def json_column(columns: Columns, name: str, kind: type[Decoded]) -> Decoded:
    """The value that the column called `name` holds as JSON. Raises KeyError and TypeError as `scalar_column` does, and
    `msgspec.DecodeError` (a ValueError) if the JSON is not of this kind."""
    return msgspec.json.decode(scalar_column(columns, name, bytes), type=kind)


def array_columns(columns: Columns) -> dict[str, NDArray[Any]]:
    """All of `columns`. Raises TypeError if one of them is a scalar."""
    return {name: array_column(columns, name) for name in columns}


def scalar_columns(columns: Columns) -> dict[str, Any]:
    """All of `columns`, as arguments for a dataclass. Raises TypeError if one of them is an array."""
    for name, value in columns.items():
        if isinstance(value, np.ndarray):
            raise TypeError(f"{name} is to be a scalar, not an array")
    return dict(columns)


class Scalars:
    """Base of a dataclass that is a part of the state and holds scalars only, one column for each field."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def export(self) -> State:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def load(cls: type[Self], columns: Columns) -> Self:
        """The inverse of `export`. Raises TypeError if a column is an array, is missing or has no field."""
        return cls(**scalar_columns(columns))


def with_prefix(prefix: str, columns: Columns) -> State:
    """`columns` with `prefix` and a dot before every name."""
    return {f"{prefix}.{name}": value for name, value in columns.items()}


def columns_under(prefix: str, state: Columns) -> State:
    """The inverse of `with_prefix`: the columns whose names begin with `prefix` and a dot, without these."""
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
