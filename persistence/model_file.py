"""Model files: the arrays of one model generation, immutable, named by their contents.

    name  model-<generation>-<first 16 hex digits of the file's SHA-256>.pt
    file  torch.save of {"format": 1, "columns": {name: column}}, zip members stored, never compressed
    column := tensor                                         bool, int8-64, uint8, float16-64 arrays
            | {"dtype": "<U7", "shape": [...], "raw": uint8 tensor}     every other dtype
            | {"text": uint8 tensor} | {"bytes": uint8 tensor}          str (UTF-8), bytes
            | None, bool, int, float

The name holds the hash, so a model can be trusted without the state that refers to it. Nothing is unpickled
before the hash of exactly these bytes was found right, and then only as plain weights (`weights_only`).
"""

import hashlib
import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persistence.array_bytes import Columns, Value, array_bytes, empty_array, writable_bytes
from persistence.disk import REAL, Disk, read_with_patience, replace_file
from persistence.format_preamble import NewerFormatError

if TYPE_CHECKING:
    import torch

FORMAT = 1
MAX_BYTES = 1 << 30
NAME = re.compile(r"model-([1-9][0-9]{0,17})-([0-9a-f]{16})\.pt")

_MAX_MEMBERS = 100_000
_NATIVE = frozenset(["|b1", "|i1", "|u1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8"])


class ModelError(Exception):
    """The file is damaged or not a model. The message is `path: what is wrong`."""


@dataclass(frozen=True)
class ModelFile:
    """`name` is the file's, with the generation and the first 16 digits of `sha256`, the file's hash in hex."""

    name: str
    sha256: str

    @property
    def generation(self) -> int:
        return generation_of_model_file(self.name)


def generation_of_model_file(name: str) -> int:
    """The generation in `name`. Raises ValueError when that is not the name of a model file."""
    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not the name of a model file")
    return int(match[1])


def write_model(directory: Path, columns: Columns, *, disk: Disk = REAL) -> ModelFile:
    """Write `columns`, with "generation" (an int from 1 on) among them, durably to a file in `directory`.

    Blocking. Raises ValueError without a generation, TypeError for a value that the format has no type for, OSError.
    """
    import torch

    generation = columns.get("generation")
    if type(generation) is not int or not 0 < generation < 10**18:
        raise ValueError(f"a model's generation is an integer from 1, not {generation!r}")
    packed = {name: _pack_model_column(name, value) for name, value in columns.items()}
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "columns": packed}, buffer)
    sha256 = hashlib.sha256(buffer.getbuffer()).hexdigest()
    name = f"model-{generation}-{sha256[:16]}.pt"
    replace_file(disk, directory / name, [buffer.getbuffer()])
    return ModelFile(name, sha256)


def read_model(path: Path, sha256: str | None = None, *, disk: Disk = REAL) -> dict[str, Value]:
    """The columns in the model file at `path`, whose hash must match its name and `sha256`. Blocking.

    Raises `ModelError` on any damage, `NewerFormatError` for a later format, OSError (`UnreadableError` when the
    medium fails).
    """
    data = _read_verified_model(path, sha256, disk)
    try:
        content = _load_torch_file(data)
        version = content.get("format")
        if type(version) is int and version > FORMAT:
            raise NewerFormatError(
                f"{path}: has format {version}, this program knows formats up to {FORMAT}; use a newer vigild"
            )
        columns = content.get("columns")
        if type(version) is not int or version < 1 or not isinstance(columns, dict):
            raise ValueError("not a model of ours")
        return {str(name): _unpack_model_column(column, len(data)) for name, column in columns.items()}
    except ValueError as exc:
        raise ModelError(f"{path}: {exc}") from exc


def hash_model(path: Path, *, disk: Disk = REAL) -> ModelFile:
    """The name and hash of the model file at `path`. Raises `ModelError` when they do not match, OSError."""
    return ModelFile(path.name, hashlib.sha256(_read_verified_model(path, None, disk)).hexdigest())


def _read_verified_model(path: Path, sha256: str | None, disk: Disk) -> bytes:
    match = NAME.fullmatch(path.name)
    if match is None:
        raise ModelError(f"{path}: is not named like a model file")

    def read_model_bytes() -> bytes:
        with disk.read(path) as file:
            return file.read(MAX_BYTES + 1)

    data = read_with_patience(path, read_model_bytes)
    if len(data) > MAX_BYTES:
        raise ModelError(f"{path}: is larger than {MAX_BYTES} bytes")
    found = hashlib.sha256(data).hexdigest()
    if found[:16] != match[2] or (sha256 is not None and found != sha256):
        raise ModelError(f"{path}: checksum mismatch over {len(data)} bytes")
    return data


def _load_torch_file(data: bytes) -> dict[str, Any]:
    import torch

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as exc:
        raise ValueError(f"not a torch file: {exc}") from exc
    # A compressed member may expand without bound.
    if len(members) > _MAX_MEMBERS or any(
        member.compress_type != zipfile.ZIP_STORED or member.file_size > len(data) for member in members
    ):
        raise ValueError("its members are too many, too large or compressed")
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as exc:
        # The hash proves that the name belongs to these bytes, not that vigild wrote them; on a foreign
        # archive torch raises nearly any exception.
        raise ValueError(f"torch refuses it: {type(exc).__name__}: {str(exc).partition(chr(10))[0]}") from exc
    if not isinstance(content, dict):
        raise ValueError("not a model of ours")
    return content


def _pack_model_column(name: str, value: Value) -> object:
    if isinstance(value, np.ndarray):
        raw = array_bytes(name, value)
        if value.dtype.str not in _NATIVE:
            return {"dtype": value.dtype.str, "shape": list(value.shape), "raw": _bytes_tensor(raw)}
        import torch

        # A copy: torch warns about memory it must not write, and keeps what it is given.
        return torch.from_numpy(np.array(value, order="C"))
    if type(value) is str:
        return {"text": _bytes_tensor(memoryview(value.encode()))}
    if type(value) is bytes:
        return {"bytes": _bytes_tensor(memoryview(value))}
    if value is None or type(value) in (bool, int, float):
        return value
    raise TypeError(f"column {name}: a model file cannot hold a {type(value).__name__}")


def _bytes_tensor(raw: memoryview) -> "torch.Tensor":
    import torch

    return torch.from_numpy(np.frombuffer(raw, np.uint8).copy())


def _unpack_model_column(column: object, max_bytes: int) -> Value:
    import torch

    if column is None or isinstance(column, bool | int | float):
        return column
    if isinstance(column, torch.Tensor):
        return _array_of_tensor(column, max_bytes)
    if isinstance(column, dict):
        for kind in ("text", "bytes", "raw"):
            held = column.get(kind)
            if isinstance(held, torch.Tensor):
                raw = _array_of_tensor(held, max_bytes)
                if raw.dtype != np.uint8 or raw.ndim != 1:
                    raise ValueError("a column's bytes are damaged")
                if kind != "raw":
                    return raw.tobytes().decode() if kind == "text" else raw.tobytes()
                array = empty_array(column.get("dtype"), column.get("shape"), max_bytes)
                if array.nbytes != raw.nbytes:
                    raise ValueError(f"an array of {array.nbytes} bytes in {raw.nbytes}")
                writable_bytes(array)[:] = raw.data
                return array
    raise ValueError(f"a column of unknown type {type(column).__name__}")


def _array_of_tensor(tensor: "torch.Tensor", max_bytes: int) -> np.ndarray[Any, Any]:
    # A tensor may be a view that repeats few bytes many times (stride 0): check the size it claims.
    if tensor.layout is not _strided_tensor_layout() or tensor.numel() * tensor.element_size() > max_bytes:
        raise ValueError("a tensor that is larger than its file")
    try:
        return np.array(tensor.numpy(), order="C")
    except (TypeError, RuntimeError) as exc:
        raise ValueError(f"a tensor that is not an array: {exc}") from exc


def _strided_tensor_layout() -> "torch.layout":
    import torch

    return torch.strided
