import errno
import hashlib
import io
import math
import struct
import zlib
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from persistence import snapshot_file
from persistence.array_bytes import Value
from persistence.disk import UnreadableError
from persistence.format_preamble import NewerFormatError, pack_preamble
from persistence.snapshot_file import (
    CHUNK_BYTES,
    SnapshotError,
    check_snapshot,
    read_snapshot,
    read_snapshot_header,
    write_snapshot,
)
from tests.persistence.disks import FaultyDisk, fail_nth

COLUMNS: dict[str, Value] = {
    "counts": np.array([[1, 2], [3, 1 << 63]], dtype=np.uint64),
    "flags": np.array([True, False]),
    "none": None,
    "name": "Zürich",
    "raw": b"\x00\xff",
    "yes": True,
    "big": 1 << 100,
    "nan": math.nan,
    "line": -3,
}


def same(a: Value, b: Value) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    return type(a) is type(b) and bool(a == b)


def sealed(body: bytes, version: int = 1, seq: int = 5, line: int = 50) -> bytes:
    """A file with a valid header around any body, written from the specification alone."""
    header = pack_preamble(b"VIGILSNP", version)
    header += struct.pack("<QQQ", seq, line, len(body)) + hashlib.sha256(body).digest()
    return header + struct.pack("<I", zlib.crc32(header)) + body


def test_every_kind_of_column_comes_back_bit_for_bit(tmp_path: Path) -> None:
    size = write_snapshot(tmp_path / "s", 7, 70, COLUMNS, models=["model-1-0123456789abcdef.pt"])
    seq, line, columns = read_snapshot(tmp_path / "s")
    assert (seq, line, list(columns)) == (7, 70, list(COLUMNS))
    assert all(same(columns[name], value) for name, value in COLUMNS.items())
    header, models = check_snapshot(tmp_path / "s")
    assert (header.seq, header.line, header.size) == (7, 70, size) == (7, 70, (tmp_path / "s").stat().st_size)
    assert models == ("model-1-0123456789abcdef.pt",)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


_DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="<"),
    hnp.unsigned_integer_dtypes(endianness="<"),
    hnp.floating_dtypes(endianness="<", sizes=(16, 32, 64)),
    hnp.byte_string_dtypes(min_len=1),
    hnp.unicode_string_dtypes(endianness="<", min_len=1),
)


@given(hnp.arrays(_DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)))
def test_any_array_comes_back_in_any_layout(array: np.ndarray) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "s"
        write_snapshot(path, 1, 1, {"a": array, "transposed": array.T, "strided": array[..., ::2] if array.ndim else 0})
        columns = read_snapshot(path)[2]
    assert same(columns["a"], array)
    assert same(columns["transposed"], np.array(array.T, order="C"))
    assert isinstance(columns["a"], np.ndarray) and columns["a"].flags.writeable


def test_the_file_is_what_the_specification_says(tmp_path: Path) -> None:
    packed = b"".join(
        [
            msgpack.packb({"columns": 2, "models": ["m"]}),
            msgpack.packb({"name": "a", "type": "array", "dtype": "<i2", "shape": [2], "bytes": 4}),
            b"\xc6\x00\x00\x00\x04\x01\x00\x02\x00",
            msgpack.packb({"name": "b", "type": "value", "value": 1.5}),
        ]
    )
    write_snapshot(tmp_path / "s", 5, 50, {"a": np.array([1, 2], dtype="<i2"), "b": 1.5}, models=["m"])
    assert (tmp_path / "s").read_bytes() == sealed(packed)


def test_no_msgpack_item_is_over_one_mebibyte(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "s", 1, 1, {"a": np.arange(400_000, dtype=np.float64), "t": "é" * CHUNK_BYTES})
    body = (tmp_path / "s").read_bytes()[76:]
    items = list(msgpack.Unpacker(io.BytesIO(body), max_bin_len=CHUNK_BYTES))
    assert sum(len(item) for item in items if isinstance(item, bytes)) == 3_200_000 + 2 * CHUNK_BYTES


@pytest.mark.parametrize(
    "value", [np.array([None]), np.array(["2020"], dtype="M8[s]"), np.float64(1), np.arange(3, dtype=">i4"), [1]]
)
def test_values_that_would_not_round_trip_are_refused(tmp_path: Path, value: Value) -> None:
    with pytest.raises(TypeError, match="column x"):
        write_snapshot(tmp_path / "s", 1, 1, {"x": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_any_bit_flipped_and_any_cut_is_damage(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "s", 7, 70, COLUMNS)
    whole = (tmp_path / "s").read_bytes()
    for index in range(len(whole) * 8):
        data = bytearray(whole)
        data[index // 8] ^= 1 << index % 8
        (tmp_path / "s").write_bytes(data)
        with pytest.raises(SnapshotError, match=r"/s: "):
            read_snapshot(tmp_path / "s")
    for size in range(len(whole)):
        (tmp_path / "s").write_bytes(whole[:size])
        with pytest.raises(SnapshotError):
            check_snapshot(tmp_path / "s")
    (tmp_path / "s").write_bytes(whole + b"\0")
    with pytest.raises(SnapshotError):
        read_snapshot(tmp_path / "s")


_MANIFEST = msgpack.packb({"columns": 1, "models": []})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x91" * 100_000,
        msgpack.packb([1]),
        msgpack.packb({"columns": 1 << 40, "models": []}),
        _MANIFEST + msgpack.packb({"name": "a", "type": "array", "dtype": "<f8", "shape": [1 << 39], "bytes": 1 << 42}),
        _MANIFEST
        + msgpack.packb({"name": "a", "type": "array", "dtype": "|O8", "shape": [1], "bytes": 8})
        + b"\xc4\x08"
        + bytes(8),
        _MANIFEST
        + msgpack.packb({"name": "a", "type": "array", "dtype": "<f8", "shape": [-1], "bytes": 8})
        + b"\xc4\x08"
        + bytes(8),
        _MANIFEST + msgpack.packb({"name": "a", "type": "array", "dtype": "<f8", "shape": [0, -1], "bytes": 0}),
        _MANIFEST + msgpack.packb({"name": "a", "type": "str", "bytes": 1 << 60}),
        _MANIFEST + msgpack.packb({"name": "a", "type": "str", "bytes": 1}) + b"\xc4\x01\xff",
        _MANIFEST + msgpack.packb({"name": "a", "type": "bigint", "bytes": 1}) + b"\xc4\x01x",
        _MANIFEST + msgpack.packb({"name": "a", "type": "value", "value": [1]}),
        _MANIFEST + msgpack.packb({"name": "a", "type": "value", "value": 1}) + b"\x01",
        _MANIFEST + b"\xc6\x7f\xff\xff\xff",
    ],
)
def test_a_forged_body_under_a_right_checksum_is_damage_too(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "s").write_bytes(sealed(body))
    with pytest.raises(SnapshotError):
        read_snapshot(tmp_path / "s")


def test_an_older_format_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_snapshot(tmp_path / "s", 1, 2, {"a": 3})
    monkeypatch.setattr(snapshot_file, "VERSION", 2)
    assert read_snapshot(tmp_path / "s") == (1, 2, {"a": 3})


def test_a_newer_format_is_refused_and_a_rotten_version_number_is_damage(tmp_path: Path) -> None:
    newer = sealed(_MANIFEST, version=2)
    (tmp_path / "s").write_bytes(newer)
    for read in (read_snapshot, read_snapshot_header, check_snapshot):
        with pytest.raises(NewerFormatError, match=r"/s: has format 2, this program knows formats up to 1"):
            read(tmp_path / "s")
    assert (tmp_path / "s").read_bytes() == newer
    (tmp_path / "s").write_bytes(newer[:8] + b"\x03" + newer[9:])
    with pytest.raises(SnapshotError):
        read_snapshot(tmp_path / "s")


def test_a_snapshot_with_a_damaged_body_still_gives_its_seq_and_line(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "s", 7, 70, COLUMNS)
    data = bytearray((tmp_path / "s").read_bytes())
    data[-1] ^= 1
    (tmp_path / "s").write_bytes(data)
    assert (read_snapshot_header(tmp_path / "s").seq, read_snapshot_header(tmp_path / "s").line) == (7, 70)


@pytest.mark.parametrize("call", ["create", "write", "sync file", "rename", "sync path"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failed_write_leaves_a_whole_snapshot_and_no_other_file(tmp_path: Path, call: str, code: int) -> None:
    write_snapshot(tmp_path / "s", 1, 10, {"a": 1})
    with pytest.raises(OSError) as caught:
        write_snapshot(tmp_path / "s", 2, 20, {"a": 2}, disk=FaultyDisk(fail_nth(call, 1, code)))
    assert caught.value.errno == code
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    # Only when the last sync fails is the new one already there.
    assert read_snapshot(tmp_path / "s") == ((2, 20, {"a": 2}) if call == "sync path" else (1, 10, {"a": 1}))


def test_neither_a_medium_that_fails_nor_a_missing_file_is_damage(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "s", 1, 10, {"a": 1})
    assert read_snapshot(tmp_path / "s", disk=FaultyDisk(fail_nth("read", 1, errno.EIO))) == (1, 10, {"a": 1})
    with pytest.raises(UnreadableError, match="s: cannot be read: Input/output error; it was left as it is"):
        read_snapshot(
            tmp_path / "s", disk=FaultyDisk(lambda _number, name, _path: errno.EIO if name == "read" else None)
        )
    with pytest.raises(FileNotFoundError):
        read_snapshot(tmp_path / "other")
    (tmp_path / "link").symlink_to(tmp_path / "s")
    with pytest.raises(OSError):
        read_snapshot(tmp_path / "link")
