"""The state as plain columns: what `Detector.export` gives, snapshots hold and the digest covers.

A state is a flat mapping from dotted names ("sessions.last_time") to numpy arrays and scalars. Parts of
the detector export their own columns and are joined under a prefix. Arrays are C-contiguous, little
endian, and of a fixed-size dtype (never object).
"""

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Scalar = int | float | str | bytes | bool | None
Value = NDArray[np.generic] | Scalar
State = dict[str, Value]
Columns = Mapping[str, Value]

FORMAT = 1  # of the columns of `Detector.export`; a change that `Detector.load` must know of raises it


class NewerStateError(ValueError):
    """A state that a later version of the program exported. The message says so."""


def check_format(state: Columns) -> None:
    """Raises NewerStateError, KeyError or TypeError when `state` is no export of a detector."""
    found = int(state["format"])  # type: ignore[arg-type]
    if found > FORMAT:
        raise NewerStateError(
            f"the state has format {found}, this program knows formats up to {FORMAT}; use a newer vigild"
        )


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
