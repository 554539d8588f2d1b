"""One journal segment as bytes: the format, and how much of a damaged segment can be trusted. Pure functions.

    segment := header frame* [closing]                   all integers little endian
    header  := preamble (magic "VIGILJNL", version 2; see persistence/format_preamble.py)
               salt 16 random bytes, first seq u64, line before it u64, CRC-32 of all before it u32
               Version 1 differs only in what entries may hold: no frame withdraws a member or brings one back
    frame   := marker "VJF\\xf1", kind u32, length u32, seq u64, line u64, count u64, durable u64,
               head crc u32, crc u32, payload (length bytes)
        kind     1 entry, 2 closing (no payload, count 0; the next segment begins at seq + 1)
        line     number of the last log line through this frame; count lines of it are in the frame
        durable  offset up to which the segment was known to be synced when this frame was written
        head crc CRC-32 of salt, the frame's offset u64, and the fields from marker to durable
        crc      CRC-32 of the payload, continued from head crc

The salt and the offset make a frame valid in one place only. That excludes frames of an older file whose
blocks were reused, copies of a frame inside a log line, and swapped frames.

Where bytes are not a valid frame, the scan resumes at the next valid one. The gap is either a torn write,
which a crash cut short, or rot, bytes that changed after they were synced. `durable` tells them apart: if
a frame after the gap was written when the gap was already synced, the gap is rot, and every other frame
counts. If there is no such frame, the gap belongs to the last write, which was never confirmed to anybody:
the segment ends at the gap, even if later parts of that write are intact.
"""

import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from persistence.format_preamble import check_preamble, pack_preamble

MAGIC = b"VIGILJNL"
VERSION = 2
MAX_PAYLOAD_BYTES = 64 << 20
HEADER_BYTES = 52
FRAME_BYTES = 52
NAME = re.compile(r"journal-([0-9]{20})(?:-([1-9][0-9]{0,8}))?\.log")

_MARKER = b"VJF\xf1"
_ENTRY, _CLOSING = 1, 2
_HEADER = struct.Struct("<16sQQ")
_FIELDS = struct.Struct("<4sIIQQQQ")
_SUMS = struct.Struct("<II")
_CRC = struct.Struct("<I")
_OFFSET = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Entry:
    """A frame as the journal sees it: `line` is the number of the last line through it, `count` its number of lines."""

    seq: int
    line: int
    count: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """`line` is the number of the last line before the segment."""

    salt: bytes
    first_seq: int
    line: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What a segment holds.

    `closing` is the closing frame, None without one. `end` is the offset at which the trusted part ends, `torn` the
    number of bytes between `end` and the closing frame or the end of the file, `rotten` the number of damaged bytes
    before `end`.
    """

    header: Header
    entries: list[Entry]
    closing: Entry | None
    end: int
    torn: int
    rotten: int


def segment_name(first_seq: int, attempt: int) -> str:
    """`attempt` numbers the segments that begin at one seq, from 0: after a failed write or an idle start."""
    return f"journal-{first_seq:020d}.log" if attempt == 0 else f"journal-{first_seq:020d}-{attempt}.log"


def pack_segment_header(header: Header) -> bytes:
    """The header, HEADER_BYTES long, in the newest version."""
    data = pack_preamble(MAGIC, VERSION) + _HEADER.pack(header.salt, header.first_seq, header.line)
    return data + _CRC.pack(zlib.crc32(data))


def pack_segment_entries(header: Header, offset: int, entries: Sequence[Entry]) -> bytes:
    """The bytes of `entries`, for one write at `offset`, before which everything is durable."""
    parts = []
    at = offset
    for entry in entries:
        parts += [_pack_journal_frame_head(header.salt, at, _ENTRY, entry, offset), entry.payload]
        at += FRAME_BYTES + len(entry.payload)
    return b"".join(parts)


def pack_closing_frame(header: Header, offset: int, durable: int, seq: int, line: int) -> bytes:
    """The bytes of the closing frame; `seq` and `line` are the last ones before the next segment."""
    return _pack_journal_frame_head(header.salt, offset, _CLOSING, Entry(seq, line, 0, b""), durable)


def unpack_segment_header(data: bytes, path: Path) -> Header:
    """The header in `data`, the first bytes of `path`. Raises ValueError on damage, `NewerFormatError`."""
    check_preamble(data, MAGIC, VERSION, path)
    if len(data) < HEADER_BYTES:
        raise ValueError("cut off in its header")
    (crc,) = _CRC.unpack_from(data, HEADER_BYTES - _CRC.size)
    if crc != zlib.crc32(data[: HEADER_BYTES - _CRC.size]):
        raise ValueError("checksum mismatch in its header")
    return Header(*_HEADER.unpack_from(data, 16))


def scan_segment(data: bytes, path: Path) -> Scan:
    """Everything that can be trusted of the segment at `path`, whose bytes are `data`.

    Raises ValueError when its header is damaged, for then nothing can be trusted; `NewerFormatError`.
    """
    header = unpack_segment_header(data, path)
    frames: list[_Frame] = []
    gaps: list[tuple[int, int]] = []
    at = HEADER_BYTES
    while at < len(data):
        frame = _journal_frame_at(data, at, header.salt)
        if frame is None:
            start = at
            frame, at = _next_valid_journal_frame(data, at + 1, header.salt)
            gaps.append((start, at))
        if frame is not None:
            frames.append(frame)
            at = frame.end
    closing = next((frame for frame in reversed(frames) if frame.kind == _CLOSING), None)
    stop = end = closing.offset if closing is not None else len(data)
    for index, (start, _) in enumerate(gaps):
        # `durable` never decreases, so the last frame decides for all frames after the gap.
        if not frames or frames[-1].offset < start or frames[-1].durable <= start:
            end, gaps = start, gaps[:index]
            break
    return Scan(
        header=header,
        entries=[frame.entry for frame in frames if frame.kind == _ENTRY and frame.offset < end],
        closing=closing.entry if closing is not None else None,
        end=end,
        torn=max(stop - end, 0),
        rotten=sum(after - start for start, after in gaps),
    )


@dataclass(frozen=True, slots=True)
class _Frame:
    offset: int
    end: int
    kind: int
    durable: int
    entry: Entry


def _pack_journal_frame_head(salt: bytes, offset: int, kind: int, entry: Entry, durable: int) -> bytes:
    fields = _FIELDS.pack(_MARKER, kind, len(entry.payload), entry.seq, entry.line, entry.count, durable)
    head_crc = _journal_frame_head_crc(salt, offset, fields)
    return fields + _SUMS.pack(head_crc, zlib.crc32(entry.payload, head_crc))


def _journal_frame_head_crc(salt: bytes, offset: int, fields: bytes) -> int:
    return zlib.crc32(fields, zlib.crc32(salt + _OFFSET.pack(offset)))


def _journal_frame_at(data: bytes, offset: int, salt: bytes) -> _Frame | None:
    if len(data) - offset < FRAME_BYTES:
        return None
    marker, kind, length, seq, line, count, durable = _FIELDS.unpack_from(data, offset)
    head_crc, crc = _SUMS.unpack_from(data, offset + _FIELDS.size)
    end = offset + FRAME_BYTES + length
    # The head has its own checksum, so that a rotten length never makes us sum up half the file.
    if marker != _MARKER or head_crc != _journal_frame_head_crc(salt, offset, data[offset : offset + _FIELDS.size]):
        return None
    payload = data[offset + FRAME_BYTES : end]
    if end > len(data) or crc != zlib.crc32(payload, head_crc) or kind not in (_ENTRY, _CLOSING):
        return None
    return _Frame(offset, end, kind, durable, Entry(seq, line, count, payload))


def _next_valid_journal_frame(data: bytes, offset: int, salt: bytes) -> tuple[_Frame | None, int]:
    while (offset := data.find(_MARKER, offset)) >= 0:
        frame = _journal_frame_at(data, offset, salt)
        if frame is not None:
            return frame, offset
        offset += 1
    return None, len(data)
