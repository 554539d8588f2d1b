"""The first 16 bytes of snapshots and journal segments, the same in every version. (Model files have none.)

    magic    8 bytes, one per kind of file
    version  u32 little endian
    crc      u32 little endian, CRC-32 of the 12 bytes before it

The checksum tells a damaged version number from a real one: a damaged file is set aside, a file of a
newer version is refused and left untouched.
"""

import struct
import zlib
from pathlib import Path

SIZE = 16

_HEAD = struct.Struct("<8sI")
_CRC = struct.Struct("<I")


class NewerFormatError(Exception):
    """An intact file that a later version of the program wrote. The message is one sentence with the path."""


def pack_preamble(magic: bytes, version: int) -> bytes:
    """The preamble, SIZE bytes."""
    head = _HEAD.pack(magic, version)
    return head + _CRC.pack(zlib.crc32(head))


def check_preamble(data: bytes, magic: bytes, newest: int, path: Path) -> int:
    """The version in `data`, the first bytes of `path`.

    Raises ValueError on damage (the message lacks the path), `NewerFormatError` for a version above `newest`.
    """
    if len(data) < SIZE:
        raise ValueError(f"cut off in its first {SIZE} bytes")
    found, version = _HEAD.unpack_from(data)
    (crc,) = _CRC.unpack_from(data, _HEAD.size)
    if found != magic or crc != zlib.crc32(data[: _HEAD.size]):
        raise ValueError("does not begin like a file of this kind")
    if version > newest:
        raise NewerFormatError(
            f"{path}: has format {version}, this program knows formats up to {newest}; use a newer vigild"
        )
    if version < 1:
        raise ValueError(f"unknown format {version}")
    return int(version)
