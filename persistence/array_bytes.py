"""Columns: the flat mapping of names to arrays and scalars that snapshots and model files hold.

Arrays are little endian and of a fixed-size dtype. They are read back writable and C-contiguous, with the same
dtype, shape and bits. Scalars are read back with the same type; numpy scalars are refused, because they
would be read back as Python's.
"""

import math
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Scalar = int | float | str | bytes | bool | None
Value = NDArray[np.generic] | Scalar
Columns = Mapping[str, Value]

# Booleans, integers, floats, complex numbers, byte strings and texts; structured, time and object
# dtypes are not state.
_DTYPE = re.compile(r"\|b1|\|[iu]1|<[iu][248]|<f[248]|<c(?:8|16)|(?:\|S|<U)[1-9][0-9]{0,6}")
_MAX_DIMENSIONS = 16


def array_bytes(name: str, array: NDArray[np.generic]) -> memoryview:
    """The bits of `array` in C order, without a copy where it is contiguous already.

    Raises TypeError for a dtype that is not written, and for more than 16 dimensions.
    """
    if not _DTYPE.fullmatch(array.dtype.str) or array.ndim > _MAX_DIMENSIONS:
        raise TypeError(f"column {name}: no file can hold {array.ndim} dimensions of dtype {array.dtype.str}")
    if not array.size:
        return memoryview(b"")
    # reshape first: ascontiguousarray would turn an array without dimensions into one of length 1.
    return np.ascontiguousarray(array.reshape(-1)).view(np.uint8).data


def empty_array(dtype: object, shape: object, max_bytes: int) -> NDArray[np.generic]:
    """An uninitialised array of a dtype and shape that were read from a file.

    Raises ValueError, before anything is allocated, when they are not plausible or need more than `max_bytes`.
    """
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        raise ValueError(f"dtype {dtype!r} is not one we write")
    if not isinstance(shape, list | tuple) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError("a shape is a short list")
    if not all(type(side) is int and 0 <= side < 1 << 40 for side in shape):
        raise ValueError(f"impossible shape {shape!r}")
    kind = np.dtype(dtype)
    if math.prod(shape) * kind.itemsize > max_bytes:
        raise ValueError(f"{shape!r} of {dtype} is more than the {max_bytes} bytes there are")
    return np.empty(tuple(shape), kind)


def writable_bytes(array: NDArray[np.generic]) -> memoryview:
    """The memory of a C-contiguous `array`, for filling it in place."""
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(bytearray())
