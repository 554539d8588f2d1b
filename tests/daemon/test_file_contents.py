"""What is taken for text, what is refused, and in which words."""

import bz2
import gzip
import io
import lzma
import pickle
import random
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.running import sample_lines
from daemon import file_contents
from daemon.file_contents import BLOCK_BYTES, NotTextError, TextReader, binary_kind

LOG = b"".join(b"17 May 10:05:%02d host sshd[%d]: session opened for user u%d\n" % (n % 60, n, n) for n in range(300))


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("access.log", LOG)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("access.log"), io.BytesIO())
    return buffer.getvalue() + LOG


def taken(data: bytes, size: int = 1 << 20) -> bytes:
    text = TextReader()
    chunks = [data[start : start + size] for start in range(0, len(data), size)] or [b""]
    return b"".join(text.text_in_chunk(chunk, number == len(chunks)) for number, chunk in enumerate(chunks, 1))


BINARIES = {
    "zip": (zipped(), "a zip archive"),
    "gzip": (gzip.compress(LOG), "gzip data"),
    "xz": (lzma.compress(LOG), "xz data"),
    "bzip2": (bz2.compress(LOG), "bzip2 data"),
    "zstd": (b"\x28\xb5\x2f\xfd" + LOG, "zstd data"),
    "tar": (tarred(), "a tar archive"),
    "old pickle": (pickle.dumps(LOG.split(b"\n"), protocol=2), "a pickle"),
    "pickle": (pickle.dumps(LOG.split(b"\n")), "a pickle"),
    "text pickle": (pickle.dumps(LOG.decode().split("\n"), protocol=0), "a pickle"),
    "text pickle of numbers": (pickle.dumps(tuple(range(20_000)), protocol=0), "a pickle"),
    "binary behind text": (LOG * 33 + random.Random(2).randbytes(25 * 1024), "control characters"),
    "UTF-16 without a mark": (LOG.decode().encode("utf-16-le"), "NUL"),
    "random": (random.Random(1).randbytes(100_000), "control characters"),
    "zeros": (bytes(4096), "100%"),
}


@pytest.mark.parametrize("name", BINARIES)
@pytest.mark.parametrize("size", [1 << 20, 100])
def test_what_is_not_text_is_refused_in_one_sentence_however_it_is_cut(name: str, size: int) -> None:
    data, said = BINARIES[name]
    with pytest.raises(NotTextError) as refused:
        taken(data, size)
    message = str(refused.value)
    assert said in message or (size == 100 and "control characters" in message)
    assert "\n" not in message


def test_without_the_check_each_of_them_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_contents, "_BINARY", ())
    monkeypatch.setattr(file_contents, "_PICKLE_OPENING", 0)
    monkeypatch.setattr(file_contents, "_CONTROL_SHARE", 1.0)
    for data, _ in BINARIES.values():
        assert taken(data) == data


@given(
    st.text(st.characters(exclude_categories=("Cs", "Cc"))).map(lambda text: "GET /" + text + "\n"),
    st.sampled_from(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "utf-8"]),
    st.integers(1, 9),
)
def test_text_with_a_byte_order_mark_becomes_utf_8_however_it_is_cut(text: str, encoding: str, size: int) -> None:
    mark = "\ufeff" if encoding.endswith(("-le", "-be")) else ""
    assert taken((mark + text).encode(encoding), size) == text.encode()


def test_a_log_is_taken_as_it_is_with_colours_other_encodings_and_a_stray_nul() -> None:
    for log in (
        LOG,
        b"\x1b[31mred\x1b[0m\n" * 9,
        "größer\n".encode("latin-1"),
        LOG + b"\0\0\n",
        b"PK\n",
        b"BZhang logged in\n",
        b"",
        b"a",
    ):
        assert taken(log, 7 if len(log) > 100 else 1) == log


def test_what_is_cut_off_in_a_character_is_refused_at_its_end() -> None:
    with pytest.raises(NotTextError, match="begins like UTF-16"):
        taken("GET /\n".encode("utf-16")[:-1])


VALUES = {
    "list": ["a", "b"],
    "numbers": [1.5] * 50,
    "dict": {"weights": [1, 2]},
    "tuple": ("x", 1),
    "text": "GET / HTTP/1.1",
    "bytes": b"GET /",
    "object": random.Random(1),
    "nested": ((1, 2), (3, [4])),
    "long": {"k" * 3000: None},
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", VALUES)
def test_a_pickle_is_known_by_its_first_bytes_in_every_protocol(name: str, protocol: int) -> None:
    assert binary_kind(pickle.dumps(VALUES[name], protocol)[: file_contents.HEAD_BYTES]) == "a pickle"


@pytest.mark.parametrize(
    "line",
    [
        b"stop0\n",
        b"(lp0\n"[1:],
        b"(lp7\n",
        b"(null)\n",
        b"]q\n",
        b"20210824095213 up\n",
        b"I1\nI2\n" * 9,
        b"{}\n",
        b".",
    ],
)
def test_lines_that_read_like_operations_of_a_pickle_are_lines(line: bytes) -> None:
    assert binary_kind(line) is None and taken(line) == line


def test_no_line_of_the_bundled_log_is_taken_for_a_pickle_or_an_archive() -> None:
    assert {binary_kind(line) for line in sample_lines()[::20]} == {None}


@pytest.mark.parametrize("before", [0, 1, 100_000, 480 * 1024])
def test_binary_data_is_found_however_much_text_is_before_it(before: int) -> None:
    text = (LOG * 40)[:before]
    with pytest.raises(NotTextError, match="control characters"):
        taken(text + random.Random(3).randbytes(2 * BLOCK_BYTES), 512 * 1024)


def test_a_little_stray_binary_in_a_log_is_taken_as_it_is() -> None:
    log = LOG + bytes(100) + LOG + b"\x01\x02" * 50 + b"\n" + LOG
    assert taken(log) == log
