"""What `send` and `train-from` unpack, and what they refuse."""

import bz2
import gzip
import importlib
import io
import lzma
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import pytest

from daemon.client import unpacking
from daemon.client.admin_client import Failure
from daemon.client.unpacking import CHUNK_BYTES, unpacked_chunks

LOG = b"".join(b"17 May 10:05:%02d host sshd[%d]: session opened\n" % (n % 60, n) for n in range(9000))


def zstd(data: bytes) -> bytes:
    module = pytest.importorskip("backports.zstd")
    # With a checksum, as the program zstd does and the library does not.
    packed: bytes = module.compress(data, options={module.CompressionParameter.checksum_flag: 1})
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": zstd,
}
every_packer = pytest.mark.parametrize("name", PACKERS)


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("_", "."), data)
    return buffer.getvalue()


class Pipe(io.RawIOBase):
    """Gives a few bytes at a time, and cannot be read again."""

    def __init__(self, data: bytes, size: int = 1000) -> None:
        self._data, self._size = io.BytesIO(data), size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._data.read(min(self._size, len(buffer)))
        buffer[: len(data)] = data
        return len(data)


def unpacked(data: bytes, *, pipe: int = 0) -> bytes:
    raw = Pipe(data, pipe) if pipe else io.BytesIO(data)
    chunks = [chunk for _, chunk in unpacked_chunks(io.BufferedReader(raw))]
    assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)
    return b"".join(chunks)


@every_packer
@pytest.mark.parametrize("pipe", [0, 1000, 1])
def test_every_member_is_unpacked_from_files_and_pipes(name: str, pipe: int) -> None:
    pack, log = PACKERS[name], LOG[:30_000] if pipe == 1 else LOG
    assert unpacked(pack(log) + pack(b"") + bytes(8) + pack(b"last"), pipe=pipe) == log + b"last"
    assert unpacked(pack(b""), pipe=pipe) == b""


@every_packer
def test_what_is_cut_off_damaged_or_followed_by_something_else_is_said(name: str) -> None:
    packed = PACKERS[name](LOG)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    for data, said in ((packed[:-5], "damaged"), (bytes(flipped), "damaged"), (packed + b"a line\n", "something else")):
        with pytest.raises(Failure, match=said):
            unpacked(data)
        with pytest.raises(Failure, match=said):
            unpacked(data, pipe=777)


@every_packer
def test_an_archive_or_a_pickle_that_is_compressed_is_refused_before_anything_is_given(name: str) -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("access.log"))
    for data in (tar.getvalue(), pickle.dumps(["a"], 0), pickle.dumps(["a"]), zipped(a=LOG), gzip.compress(LOG)):
        with pytest.raises(Failure, match=f"what is in this {name} data is .*, not a log"):
            next(unpacked_chunks(io.BufferedReader(io.BytesIO(PACKERS[name](data)))))


@every_packer
def test_what_expands_without_measure_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = PACKERS[name](bytes(8 << 20).replace(b"\0", b"a"))
    monkeypatch.setattr(unpacking, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(unpacking, "MOST_EXPANSION", 100)
    with pytest.raises(Failure, match="hardly a log"):
        unpacked(bomb, pipe=500)
    monkeypatch.undo()
    assert len(unpacked(bomb)) == 8 << 20, "the control: within the bounds it is read"


def test_the_text_files_of_a_zip_archive_come_one_after_the_other() -> None:
    assert unpacked(zipped(b_log=LOG, a_log=b"no newline", c_log=b"x\n")) == LOG + b"no newline\nx\n"
    with pytest.raises(Failure, match="from a file, but not from a pipe"):
        unpacked(zipped(b_log=LOG), pipe=1000)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a_log": LOG, "data_pkl": b"text"}, "a zip archive of a model"),
        ({"a_log": LOG, "weights": pickle.dumps([1])}, "is a pickle"),
        ({"a_log": LOG, "core": random.Random(1).randbytes(5000)}, "is not text"),
        ({"a_log": LOG, "b_log_gz": gzip.compress(LOG)}, "is gzip data"),
        ({"mimetype": b"application/x", "content_xml": b"<a/>"}, "office"),
    ],
)
def test_an_archive_with_something_else_than_text_is_refused_before_anything_is_given(
    members: dict[str, bytes], said: str
) -> None:
    with pytest.raises(Failure, match=said):
        next(unpacked_chunks(io.BufferedReader(io.BytesIO(zipped(**members)))))


def test_binary_in_a_log_is_given_as_it_is() -> None:
    for log in (LOG + bytes(5000) + LOG, random.Random(1).randbytes(5000), b"BZhang\n", b"", b"\x1f\x8b"):
        assert unpacked(log) == log and unpacked(log, pipe=3) == log


@pytest.mark.parametrize("name", ["xz", "bzip2", "zstd"])
def test_where_python_cannot_unpack_the_way_around_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str) -> None:
        raise ImportError(module)

    packed = PACKERS[name](LOG)
    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(Failure, match=f"{name} -dc FILE"):
        unpacked(packed)
