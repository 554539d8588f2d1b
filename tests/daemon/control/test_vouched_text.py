"""What `train-from` takes for text, what it refuses, and in which words."""

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

from daemon.control import vouched_text
from daemon.control.control_interface import ControlError
from daemon.control.vouched_text import VouchedText

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
    text = VouchedText()
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
    "UTF-16 without a mark": (LOG.decode().encode("utf-16-le"), "NUL"),
    "random": (random.Random(1).randbytes(100_000), "control characters"),
    "zeros": (bytes(4096), "100%"),
}


@pytest.mark.parametrize("name", BINARIES)
@pytest.mark.parametrize("size", [1 << 20, 100])
def test_what_is_not_text_is_refused_in_one_sentence_however_it_is_cut(name: str, size: int) -> None:
    data, said = BINARIES[name]
    with pytest.raises(ControlError) as refused:
        taken(data, size)
    assert (refused.value.status, refused.value.code) == (415, "not_text")
    assert said in refused.value.message or (size == 100 and "control characters" in refused.value.message)
    assert "\n" not in refused.value.message


def test_without_the_check_each_of_them_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vouched_text, "_FORMATS", ())
    monkeypatch.setattr(vouched_text, "_CONTROL_SHARE", 1.0)
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
    for log in (LOG, b"\x1b[31mred\x1b[0m\n" * 9, "größer\n".encode("latin-1"), LOG + b"\0\0\n", b"PK\n", b"", b"a"):
        assert taken(log, 7 if len(log) > 100 else 1) == log


def test_what_is_cut_off_in_a_character_is_refused_at_its_end() -> None:
    with pytest.raises(ControlError, match="begins like UTF-16"):
        taken("GET /\n".encode("utf-16")[:-1])
