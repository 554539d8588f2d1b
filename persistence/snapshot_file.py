"""Snapshot files: the state at one sequence number, whole or not at all.

    file     := header body                             all integers little endian
    header   := preamble (magic "VIGILSNP", version 1; see persistence/format_preamble.py)
                seq u64, line u64, body length u64, SHA-256 of the body (32 bytes),
                CRC-32 of all header bytes before it u32
    body     := msgpack stream: manifest, then `columns` times: column, then its bins
    manifest := {"columns": count, "models": [name of a model file, ...]}
    column   := {"name", "type": "array", "dtype": "<f4", "shape": [...], "bytes": n}
              | {"name", "type": "str" (UTF-8) | "bytes" | "bigint" (decimal digits), "bytes": n}
              | {"name", "type": "value", "value": nil, bool, int or float}
    bins     := msgpack bin 32 items of 1 MiB, the last one shorter, n bytes together

    write_snapshot(path, seq=7, line=40, columns={"p": np.zeros(3)})       # durable when it returns
    seq, line, columns = read_snapshot(path)                                # or SnapshotError

The file ends with the body. Why it is as it is:

- The columns are written as they are, without a copy of the whole: a state may be most of the memory.
- No msgpack call handles more than 1 MiB: packing holds the interpreter's lock, and scoring waits for it.
- The header has a checksum of its own, so a snapshot with a damaged body still gives its seq and line.
- A reader bounds every length by the file's own size before it allocates, and believes nothing until the
  SHA-256 of the whole body matches.
"""

import hashlib
import io
import struct
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from persistence.array_bytes import Columns, Value, array_bytes, empty_array, writable_bytes
from persistence.disk import REAL, Buffer, Disk, read_with_patience, replace_file
from persistence.format_preamble import check_preamble, pack_preamble

MAGIC = b"VIGILSNP"
VERSION = 1
CHUNK_BYTES = 1 << 20

_FIELDS = struct.Struct("<QQQ32s")
_CRC = struct.Struct("<I")
_BIN32 = struct.Struct(">BI")
_HEADER_BYTES = 16 + _FIELDS.size + _CRC.size


class SnapshotError(Exception):
    """The file is damaged. The message is `path: what is wrong`."""


@dataclass(frozen=True)
class Header:
    """`size` is that of the whole file in bytes, `sha256` the hash of the body in hex."""

    seq: int
    line: int
    size: int
    sha256: str


def write_snapshot(
    path: Path, seq: int, line: int, columns: Columns, *, models: Collection[str] = (), disk: Disk = REAL
) -> int:
    """Write `columns` as the state at `seq`, `line` to `path`, durably; returns the file's size.

    `models` names the model files that the state needs. After a crash either the old or the new file is there,
    whole. The columns are not copied and must not change until this returns. Blocking. Raises OSError (see
    `replace_file` for what is left then) and TypeError for a value that the format has no type for.
    """
    body = list(_snapshot_body(columns, models))
    sha = hashlib.sha256()
    for chunk in body:
        sha.update(chunk)
    fields = _FIELDS.pack(seq, line, sum(len(chunk) for chunk in body), sha.digest())
    header = pack_preamble(MAGIC, VERSION) + fields
    return replace_file(disk, path, [header + _CRC.pack(zlib.crc32(header)), *body])


def read_snapshot(path: Path, *, disk: Disk = REAL) -> tuple[int, int, dict[str, Value]]:
    """The seq, line and columns that were passed to `write_snapshot`. Blocking.

    Raises `SnapshotError` on any damage, `NewerFormatError` for a later format, OSError (`UnreadableError` when
    the medium fails).
    """
    header, _, columns = _load_snapshot(path, disk, _read_snapshot_columns)
    return header.seq, header.line, columns


def check_snapshot(path: Path, *, disk: Disk = REAL) -> tuple[Header, tuple[str, ...]]:
    """The header and the names of the models, after the whole file was checked against its checksums.

    Keeps no column in memory. Raises as `read_snapshot` does.
    """
    header, models, _ = _load_snapshot(path, disk, lambda _unpacker, _body, _count: {})
    return header, models


def read_snapshot_header(path: Path, *, disk: Disk = REAL) -> Header:
    """The verified header alone; the body may still be damaged. Raises as `read_snapshot` does."""

    def read_header() -> Header:
        with disk.read(path) as file:
            return _read_verified_snapshot_header(file, path)

    try:
        return read_with_patience(path, read_header)
    except ValueError as exc:
        raise SnapshotError(f"{path}: {exc}") from exc


def _snapshot_body(columns: Columns, models: Collection[str]) -> Iterator[Buffer]:
    yield msgpack.packb({"columns": len(columns), "models": sorted(models)})
    for name, value in columns.items():
        described, raw = _describe_snapshot_column(name, value)
        yield msgpack.packb({"name": name, **described})
        for start in range(0, len(raw), CHUNK_BYTES):
            chunk = raw[start : start + CHUNK_BYTES]
            yield _BIN32.pack(0xC6, len(chunk))
            yield chunk


def _describe_snapshot_column(name: str, value: Value) -> tuple[dict[str, Any], memoryview]:
    if isinstance(value, np.ndarray):
        raw = array_bytes(name, value)
        shape = list(value.shape)
        return {"type": "array", "dtype": value.dtype.str, "shape": shape, "bytes": len(raw)}, raw
    # Exact types: isinstance takes a numpy float for a float, and it would come back as one.
    if value is None or type(value) in (bool, float):
        return {"type": "value", "value": value}, memoryview(b"")
    if type(value) is int:
        if -(1 << 63) <= value < 1 << 64:
            return {"type": "value", "value": value}, memoryview(b"")
        kind, raw = "bigint", memoryview(b"%d" % value)
    elif type(value) is str:
        kind, raw = "str", memoryview(value.encode())
    elif type(value) is bytes:
        kind, raw = "bytes", memoryview(value)
    else:
        raise TypeError(f"column {name}: a snapshot cannot hold a {type(value).__name__}")
    return {"type": kind, "bytes": len(raw)}, raw


class _SnapshotBodyReader:
    """The file that the unpacker reads: ends where the body is declared to end, and hashes what is read."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file = file
        self.sha = hashlib.sha256()
        self.length = length
        self.unread = length

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self.unread))
        self.unread -= len(data)
        self.sha.update(data)
        return data


_ReadColumns = Callable[["msgpack.Unpacker", _SnapshotBodyReader, int], dict[str, Value]]


def _load_snapshot(
    path: Path, disk: Disk, read_columns: _ReadColumns
) -> tuple[Header, tuple[str, ...], dict[str, Value]]:
    return read_with_patience(path, lambda: _load_snapshot_once(path, disk, read_columns))


def _load_snapshot_once(
    path: Path, disk: Disk, read_columns: _ReadColumns
) -> tuple[Header, tuple[str, ...], dict[str, Value]]:
    try:
        with disk.read(path) as file:
            header = _read_verified_snapshot_header(file, path)
            size = file.seek(0, io.SEEK_END)
            if size != header.size:
                raise ValueError(f"{size} bytes long instead of {header.size}")
            file.seek(_HEADER_BYTES)
            body = _SnapshotBodyReader(file, header.size - _HEADER_BYTES)
            unpacker = msgpack.Unpacker(
                body,
                read_size=1 << 16,
                max_buffer_size=4 * CHUNK_BYTES,
                max_bin_len=CHUNK_BYTES,
                max_str_len=1 << 16,
                max_array_len=1 << 16,
                max_map_len=16,
                max_ext_len=0,
            )
            # Parsed and hashed in one pass, so that the bytes that were parsed are the bytes that were
            # hashed. The checksum comes last, so every length has to be checked on its own.
            manifest = _require_msgpack_map(unpacker.unpack())
            count, models = manifest.get("columns"), manifest.get("models")
            if type(count) is not int or not isinstance(models, list):
                raise ValueError("damaged manifest")
            columns = read_columns(unpacker, body, count)
            while body.read(CHUNK_BYTES):
                pass
            if body.unread or body.sha.hexdigest() != header.sha256:
                raise ValueError(f"checksum mismatch over {body.length} bytes")
    except (ValueError, msgpack.UnpackException) as exc:
        raise SnapshotError(f"{path}: {exc or type(exc).__name__}") from exc
    return header, tuple(str(name) for name in models), columns


def _read_verified_snapshot_header(file: BinaryIO, path: Path) -> Header:
    data = file.read(_HEADER_BYTES)
    check_preamble(data, MAGIC, VERSION, path)
    if len(data) < _HEADER_BYTES:
        raise ValueError("cut off in its header")
    (crc,) = _CRC.unpack_from(data, _HEADER_BYTES - _CRC.size)
    if crc != zlib.crc32(data[: -_CRC.size]):
        raise ValueError("checksum mismatch in its header")
    seq, line, length, sha = _FIELDS.unpack_from(data, 16)
    return Header(seq, line, _HEADER_BYTES + length, sha.hex())


def _read_snapshot_columns(unpacker: "msgpack.Unpacker", body: _SnapshotBodyReader, count: int) -> dict[str, Value]:
    columns: dict[str, Value] = {}
    for _ in range(count):
        column = _require_msgpack_map(unpacker.unpack())
        name, kind = column.get("name"), column.get("type")
        if not isinstance(name, str) or name in columns:
            raise ValueError(f"damaged column after {len(columns)}")
        columns[name] = _read_snapshot_column(unpacker, body, column, kind)
    if unpacker.tell() != body.length:
        raise ValueError(f"{body.length - unpacker.tell()} bytes after the last column")
    return columns


def _read_snapshot_column(
    unpacker: "msgpack.Unpacker", body: _SnapshotBodyReader, column: dict[str, Any], kind: object
) -> Value:
    if kind == "value":
        value = column.get("value")
        if value is None or type(value) in (bool, int, float):
            return value
        raise ValueError("a scalar of an unknown type")
    size = column.get("bytes")
    if type(size) is not int or not 0 <= size <= body.length:
        raise ValueError(f"impossible size {size!r} of a column")
    if kind == "array":
        array = empty_array(column.get("dtype"), column.get("shape"), body.length)
        if array.nbytes != size:
            raise ValueError(f"an array of {array.nbytes} bytes in {size}")
        _fill_snapshot_column(unpacker, writable_bytes(array))
        return array
    raw = bytearray(size)
    _fill_snapshot_column(unpacker, memoryview(raw))
    if kind == "bytes":
        return bytes(raw)
    if kind == "str":
        return raw.decode()
    if kind == "bigint":
        return int(raw)
    raise ValueError(f"a column of unknown type {kind!r}")


def _fill_snapshot_column(unpacker: "msgpack.Unpacker", target: memoryview) -> None:
    done = 0
    while done < len(target):
        chunk = unpacker.unpack()
        if not isinstance(chunk, bytes) or not 0 < len(chunk) <= len(target) - done:
            raise ValueError("damaged bytes of a column")
        target[done : done + len(chunk)] = chunk
        done += len(chunk)


def _require_msgpack_map(item: object) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError("a map was expected")
    return item
