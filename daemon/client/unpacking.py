"""The lines of a file that `send` and `train-from` get: compressed data and zip archives are unpacked on the way.

What a file is follows from its first bytes, not from its name. Nothing is unpacked as a whole: memory stays within a
few chunks and the window of the compression, for which xz and zstd files may ask for at most WINDOW_BYTES.
"""

import contextlib
import importlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from daemon.client.admin_client import Failure, os_error_reason
from daemon.file_contents import COMPRESSED, HEAD_BYTES, LONGEST_MAGIC, ZIP, binary_kind, control_share

CHUNK_BYTES = 128 * 1024
WINDOW_BYTES = 128 << 20  # what `xz -9` (64 MiB) and every level of zstd without --long=28 and more need
# Beyond so much, what is unpacked may be no more than so many times what was read. gzip reaches 1,032 at most; a log
# of other formats that is so repetitive can be unpacked by their own programs.
FREE_BYTES = 1 << 30
MOST_EXPANSION = 1100
MOST_MEMBERS = 10_000  # of a zip archive

_MODEL_MEMBERS = (".pkl", ".pickle", ".npy", ".pt", ".pth")
_OFFICE_MEMBERS = ("[Content_Types].xml", "META-INF/MANIFEST.MF", "mimetype")


class _Decompressor(Protocol):
    """As of `bz2`, `lzma` and `compression.zstd`: one member of a file."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


def unpacked_chunks(raw: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    """(bytes read from `raw` so far, data to send), from where `raw` stands. A pipe's data is sent as it arrives.

    gzip, xz, bzip2 and zstd with any number of members, and the text files in a zip archive, one after the other.
    Raises `Failure` in one sentence: for other archives, pickles and the like before anything is given; for what is
    damaged, cut off, or followed by something else, at that place.
    """
    counted = _CountedReader(raw)
    head = counted.head()
    if ZIP.match(head):
        yield from _zip_chunks(raw)
        return
    name = next((name for name, magic in COMPRESSED.items() if magic.match(head)), None)
    if name is None:
        _refuse_binary(head, "this")
        while chunk := counted.read1():
            yield counted.read, chunk
        return
    unpacked = 0
    for chunk in _decompressed(name, counted):
        if not unpacked:
            _refuse_binary(chunk[:HEAD_BYTES], f"what is in this {name} data")
        unpacked += len(chunk)
        _refuse_expansion(unpacked, counted.read)
        yield counted.read, chunk


class _CountedReader:
    """Reads `raw` as its data arrives; `read` is the number of bytes given out."""

    def __init__(self, raw: io.BufferedReader) -> None:
        self._raw = raw
        self._head = b""
        self.read = 0

    def head(self) -> bytes:
        """The first bytes, which `read1` will give: all that came at once, but of a compressed file its whole magic."""
        while len(self._head) < LONGEST_MAGIC and (more := self._raw.read1(CHUNK_BYTES)):
            self._head += more
            if b"\n" in self._head:  # a short line need not wait for the next
                break
        return self._head

    def read1(self) -> bytes:
        data, self._head = self._head or self._raw.read1(CHUNK_BYTES), b""
        self.read += len(data)
        return data


def _refuse_binary(head: bytes, what: str) -> None:
    if (kind := binary_kind(head)) is not None:
        raise Failure(f"{what} is {kind}, not a log")


def _refuse_expansion(unpacked: int, read: int) -> None:
    if unpacked > max(FREE_BYTES, MOST_EXPANSION * read):
        raise Failure(
            f"{unpacked:,} bytes came out of {read:,} already, which is hardly a log; "
            "if it is one, unpack it, and pipe it in"
        )


class _Gunzip:
    """One member of gzip data; zlib's object has another interface than those of the other formats."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)  # with gzip's header and checksum
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int = 0) -> bytes:
        unpacked = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        # A full output may have more behind it, though all input is taken.
        self.needs_input = len(unpacked) < max_length and not self._zlib.unconsumed_tail
        return unpacked


def _decompressor(name: str) -> tuple[Callable[[], _Decompressor], tuple[type[Exception], ...]]:
    """What makes the object for one member, and what that raises for damaged data. Raises Failure."""
    if name == "gzip":
        return _Gunzip, (zlib.error,)
    # A Python may be built without any of these; zstd is in Python from 3.14 on, and before a package of the same API.
    modules = {"xz": ("lzma",), "bzip2": ("bz2",), "zstd": ("compression.zstd", "backports.zstd")}[name]
    for module in modules:
        with contextlib.suppress(ImportError):
            found = importlib.import_module(module)
            if name == "xz":
                return partial(found.LZMADecompressor, found.FORMAT_XZ, memlimit=WINDOW_BYTES), (found.LZMAError,)
            if name == "bzip2":
                return found.BZ2Decompressor, (OSError,)
            return found.ZstdDecompressor, (found.ZstdError,)  # libzstd refuses windows over 128 MiB by itself
    raise Failure(f"this is {name} data, which this Python cannot unpack; pipe it in: {name} -dc FILE | vigilctl ... -")


def _decompressed(name: str, packed: _CountedReader) -> Iterator[bytes]:
    """All members of `packed` in chunks of at most CHUNK_BYTES. Raises Failure."""
    begin, errors = _decompressor(name)
    data = packed.read1()
    first = True
    try:
        while data:
            if not first and not COMPRESSED[name].match(data):
                raise Failure(f"behind the {name} data is something else, which was not read")
            member = begin()
            while not member.eof:
                if member.needs_input and not data and not (data := packed.read1()):
                    raise Failure(f"the {name} data is damaged: it ends too early")
                chunk = member.decompress(data, CHUNK_BYTES)
                data = b""
                if chunk:
                    yield chunk
            data, first = _next_member(member.unused_data, packed), False
    except errors as exc:
        raise Failure(f"the {name} data is damaged: {os_error_reason(exc)}") from exc


def _next_member(data: bytes, packed: _CountedReader) -> bytes:
    """The beginning of the next member, b"" at the end of the file. Tapes and xz fill up with zeros."""
    data = data.lstrip(b"\0")
    while len(data) < LONGEST_MAGIC and (more := packed.read1()):
        data = (data + more).lstrip(b"\0")
    return data


def _zip_chunks(raw: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    """The files in a zip archive in its order, each ending with a newline.

    Raises Failure, and does so before the first one is given if one of them begins like no text.
    """
    if not raw.seekable():
        raise Failure("this is a zip archive, which can be read from a file, but not from a pipe; name the FILE")
    try:
        with zipfile.ZipFile(raw) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check_members(archive, members)
            read = unpacked = 0
            for member in members:
                last = b"\n"
                with archive.open(member) as file:
                    while chunk := file.read(CHUNK_BYTES):
                        last = chunk[-1:]
                        unpacked += len(chunk)
                        _refuse_expansion(unpacked, read + member.compress_size)
                        yield raw.tell(), chunk
                read += member.compress_size
                if last != b"\n":
                    yield raw.tell(), b"\n"  # or its last line would go on with the next file's first
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError, zlib.error) as exc:
        raise Failure(f"the zip archive cannot be unpacked: {os_error_reason(exc)}") from exc


def _check_members(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MOST_MEMBERS:
        raise Failure(f"this is a zip archive of {len(members):,} files; those with at most {MOST_MEMBERS:,} are read")
    for member in members:
        if member.filename in _OFFICE_MEMBERS:
            raise Failure("this is a zip archive as office and Java programs write them, not a log")
        if member.filename.endswith(_MODEL_MEMBERS):
            raise Failure(f"this is a zip archive of a model, not of logs: it holds {member.filename!a}")
        if member.flag_bits & 1:
            raise Failure(f"{member.filename!a} in this zip archive is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
            raise Failure(f"{member.filename!a} in this zip archive is compressed in an uncommon way; unpack it")
        with archive.open(member) as file:
            head = file.read(HEAD_BYTES)
        _refuse_binary(head, f"{member.filename!a} in this zip archive")
        if control_share(head):
            raise Failure(
                f"{member.filename!a} in this zip archive is not text; unpack it, and name the log that is in it"
            )
