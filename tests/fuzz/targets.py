"""Every byte format that is read from outside: valid inputs to begin with, and what reading any input may lead to.

A `Target` reads an input as the program would. Errors that the program's own docstrings promise are caught there,
everything else leaves; what must hold of the result besides is asserted.
"""

import bz2
import contextlib
import gzip
import importlib
import importlib.resources
import io
import json
import lzma
import math
import pickle
import random
import socket
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import trio.testing

from actors.journaled_mark import SO_PEEK_OFF, journaled_bytes
from actors.source_lines import Source
from daemon import settings_file
from daemon.api.app import create_app
from daemon.api.json_bodies import BatchRequest, DetectRequest, FeedbackRequest, decode_body, line_bytes, note_text
from daemon.client.admin_client import Failure
from daemon.client.unpacking import CHUNK_BYTES, unpacked_chunks
from daemon.control.control_interface import ControlError
from daemon.file_contents import NotTextError, TextReader
from daemon.startup.resumed_alerts import last_record_ids
from detection import frames
from detection.detection_settings import DetectionSettings, RuleText
from detection.formats.kinds import KINDS, parse_as_kind, parse_each_by_own_kind, recognise
from detection.frames import Segment
from detection.models.model import to_columns
from detection.models.training_set import TrainingCutoff
from detection.rules.rule_files import RuleError, parse_rules
from detection.sessions.living_sources import LivingSource
from persistence.disk import REAL, Disk
from persistence.format_preamble import NewerFormatError, pack_preamble
from persistence.high_water_mark import HighWaterMark
from persistence.journal import JournalReader
from persistence.journal_segment import (
    HEADER_BYTES,
    Entry,
    Header,
    pack_closing_frame,
    pack_segment_entries,
    pack_segment_header,
    scan_segment,
    segment_name,
)
from persistence.jsonl import JsonlWriter
from persistence.model_file import ModelError, read_model, write_model
from persistence.snapshot_file import SnapshotError, check_snapshot, read_snapshot, read_snapshot_header, write_snapshot
from persistence.training_files import read_training_attempts
from tests.daemon.fake_control import FakeControl
from tests.detection.forged import (
    a_forgery,
    genuine,
    live_with_model,
    live_with_state,
    refused_model,
    refused_state,
)

ROOT = Path(__file__).parents[2]
PATH = Path("/outside")


@dataclass(frozen=True)
class Target:
    """`read` raises for an input that is not read as promised, of those above all AssertionError.

    `seconds_per_megabyte` of processor time is some ten times what reading takes; `examples` is how many the short form
    reads.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes], None]
    seconds_per_megabyte: float = 2.0
    examples: int = 100


class InMemory:
    """A disk that has one file, whatever it is asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, _path: Path) -> BinaryIO:
        return io.BytesIO(self._data)


def disk_of(data: bytes) -> Disk:
    return cast(Disk, InMemory(data))


# Text that operators write ---------------------------------------------------------------------------------------


def settings_seeds() -> list[bytes]:
    whole = (ROOT / "docs/vigild.toml").read_bytes()
    # There every key stands behind a comment sign, with its default.
    uncommented = b"\n".join(line.removeprefix(b"# ") for line in whole.split(b"\n") if b"=" in line or b"[" in line)
    return [whole, uncommented, b'[session]\nkey = "(blk_-?[0-9]+)"\n[admin]\nbind = ["unix:a", "[::1]:80"]\n']


def read_settings(data: bytes) -> None:
    with contextlib.suppress(UnicodeDecodeError):  # as the reader of the file does
        try:
            settings_file.parse_settings(data.decode(), PATH)
        except settings_file.SettingsError as exc:
            assert "\n" not in str(exc), "more than one line"


def rules_seeds() -> list[bytes]:
    pack = importlib.resources.files("detection").joinpath("rulepack.toml").read_bytes()
    rules = [b"[[rule]]" + rule for rule in pack.split(b"[[rule]]")[1:]]
    return [*rules[:40:5], b"".join(rules[:3]), b'disable = ["a-rule"]\n' + rules[0]]


def read_rule_files(data: bytes) -> None:
    with contextlib.suppress(UnicodeDecodeError, RuleError):
        parse_rules([RuleText("outside.toml", data.decode())])


# What clients send ------------------------------------------------------------------------------------------------

_BODIES = (
    b'{"log_line": "GET /?q=%3Cscript%3E \\udc80 \\u2028", "session_id": "10.0.0.1"}',
    b'{"log_lines": ["a", "b\\n", "\\ud83e\\udd89", ""]}',
    b'{"id": "7", "answer": "normal", "note": "the nightly backup"}',
    b'{"id": "7", "answer": "anomaly"}',
    b'[1, 1.5e300, null, true, {"a": {"a": []}}]',
)


def read_body(data: bytes) -> None:
    kinds: tuple[type[DetectRequest | BatchRequest | FeedbackRequest], ...] = (
        DetectRequest,
        BatchRequest,
        FeedbackRequest,
    )
    for kind in kinds:
        try:
            request = decode_body(data, kind)
            if isinstance(request, FeedbackRequest):
                note_text(request.note).encode()
            elif isinstance(request, DetectRequest):
                assert b"\n" not in line_bytes(request.log_line)
            else:
                assert len([line_bytes(line) for line in request.log_lines]) == len(request.log_lines)
        except ControlError as exc:
            assert exc.status == 400


_REQUESTS = """
POST /detect
POST /detect/batch
POST /feedback
POST /feedback/7/undo
POST /train-from?source=a
POST /checkpoint?a=%ff%00
POST /models/1/rollback
POST /snapshots/snapshot-5.msgpack/restore
GET /anomalies?limit=5&since=1
GET /anomalies/7
GET /incidents?limit=1
GET /status
GET /metrics
"""


def request_seeds() -> list[bytes]:
    return [head.encode() + b"\n" + body for head in _REQUESTS.split("\n")[1:-1] for body in _BODIES[:3]]


def read_request(data: bytes) -> None:
    """An answer in JSON or text, never a fault of ours."""
    head, _, body = data.partition(b"\n")
    method, _, target = head.decode("latin-1").partition(" ")
    usable = method in ("GET", "POST", "HEAD", "PUT", "OPTIONS") and target.startswith("/") and "#" not in target

    async def ask() -> None:
        with trio.move_on_after(60.0):  # a stream of events has no end
            client = create_app(FakeControl(), hosts=(), token="a-token").test_client()
            # With the token: what is behind the guard is to be reached.
            headers = {"Host": "localhost", "Authorization": "Bearer a-token"}
            answer = await client.open(target, method=method, data=body, headers=headers)  # type: ignore[call-arg]
            assert answer.status_code < 500, (answer.status_code, await answer.get_data())

    # The client of the tests sends nothing else; anything may stand behind a percent sign.
    if usable and target.isascii() and target.isprintable() and "//" not in target:
        trio.run(ask, clock=trio.testing.MockClock(autojump_threshold=0))


def stream_seeds() -> list[bytes]:
    return [log_sample(), b"short\n" + b"x" * 300 + b"\n" + b"y" * 256 + b"\nlast", b"\r\n\n\0\n" * 40, b"z" * 1000]


def read_stream(data: bytes) -> None:
    """Cut into reads anywhere, gone on with by other processes: the same lines as in one piece."""
    limit, rng = 256, random.Random(zlib.crc32(data))
    source, kept, lines, cut = Source("s", "auto", recognise, limit), b"", 0, 0
    at, last = 0, None
    while at < len(data):
        size = rng.choice((1, 10, 300, 5000))
        segment = source.feed(data[at : at + size])
        at += size
        if segment is not None:
            assert segment.parity == (0 if last is None else last.parity ^ 1)
            assert segment.data.count(b"\n") == segment.lines and segment.kind in KINDS
            kept, lines, cut, last = kept + segment.data, lines + segment.lines, cut + len(segment.cut), segment
        if last is not None and rng.random() < 0.2:
            tail = kept[kept.rfind(b"\n") + 1 :]
            before = LivingSource("s", last.kind, tail, last.full, last.parity, lines)
            source = Source("s", "auto", recognise, limit, before)
    closing = source.finish()
    assert (closing is None) == (last is None)
    if closing is not None:
        lines, cut = lines + closing.lines, cut + len(closing.cut)
    whole = data.split(b"\n")
    expected = whole if whole[-1] else whole[:-1]
    assert kept == b"\n".join(line[:limit] for line in whole)
    assert (lines, cut) == (len(expected), sum(len(line) > limit for line in expected))


class Marked:
    """A connection beside whose bytes the kernel keeps this mark."""

    def __init__(self, mark: int) -> None:
        self._mark = mark

    def getsockopt(self, level: int, optname: int, /) -> int:
        assert (level, optname) == (socket.SOL_SOCKET, SO_PEEK_OFF)
        return self._mark

    def setsockopt(self, level: int, optname: int, value: int, /) -> None:
        raise AssertionError("reading changes nothing")


def peek_mark_seeds() -> list[bytes]:
    return [struct.pack("<i", mark) for mark in (-1, 0, 1, 4096, 1 << 30, 4096 | 1 << 30, (1 << 31) - 1, -(1 << 31))]


def read_peek_mark(data: bytes) -> None:
    """Never more bytes taken for journaled than a mark of this parity can say."""
    (mark,) = struct.unpack("<i", data[:4].ljust(4, b"\0"))
    assert journaled_bytes(Marked(mark), None) == 0
    found = [journaled_bytes(Marked(mark), LivingSource("s", "plain", b"", False, parity, 1)) for parity in (0, 1)]
    assert 0 in found and all(0 <= size < 1 << 30 for size in found) and (mark >= 0 or found == [0, 0])


# Files that operators send -----------------------------------------------------------------------------------------


def vouched_seeds() -> list[bytes]:
    log = log_sample()[:20_000]
    values = log.decode("latin-1").split("\n")[:20]
    return [log, log[:2000].decode("latin-1").encode("utf-16"), *(pickle.dumps(values, number) for number in (0, 1, 4))]


def read_vouched(data: bytes) -> None:
    """Cut into chunks anywhere: refused if it is in one piece, else the same text or a refusal."""
    whole = _text_in([data])
    rng, at, chunks = random.Random(zlib.crc32(data)), 0, []
    while at < len(data):
        size = rng.choice((1, 100, 4096, 30_000))
        chunks.append(data[at : at + size])
        at += size
    assert _text_in(chunks or [b""]) in (whole, None)


def _text_in(chunks: list[bytes]) -> bytes | None:
    text = TextReader()
    try:
        return b"".join(text.text_in_chunk(chunk, n == len(chunks)) for n, chunk in enumerate(chunks, 1))
    except NotTextError as exc:
        assert "\n" not in str(exc)
        return None


def packed_seeds() -> list[bytes]:
    log, zipped = log_sample()[:20_000], io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.log", log)
        archive.writestr("b/c.log", log[:100])
    packed = [gzip.compress(log), bz2.compress(log), lzma.compress(log), zipped.getvalue()]
    with contextlib.suppress(ImportError):  # of Python before 3.14, where it is not installed
        packed.append(importlib.import_module("backports.zstd").compress(log))
    return [*packed, packed[0] * 2, log[:300]]


def read_packed(data: bytes) -> None:
    """In small chunks, the same from the same bytes, or refused in one sentence."""
    try:
        # A short input may well hold megabytes of the same; a hundred chunks show how they are made.
        for n, (read, chunk) in enumerate(unpacked_chunks(io.BufferedReader(io.BytesIO(data)))):
            assert 0 <= read <= len(data) and 0 < len(chunk) <= CHUNK_BYTES
            if n == 100:
                return
    except Failure as exc:
        assert "\n" not in " ".join(str(exc).split()) and str(exc)


# Log lines ----------------------------------------------------------------------------------------------------------

_LINES = {
    "json": b'{"time":"2021-08-24T09:52:13Z","level":"error","log":"{\\"msg\\":\\"x\\"}","a":[1,{"b":null}],"pid":7}',
    "container": b'2016-10-06T00:17:09.669794202Z stdout F {"msg":"text"}\n2016-10-06T00:17:09.66979420Z stderr P half',
    "access": b'83.149.9.2 - - [17/May/2015:10:05:03 +0000] "GET /a?b=%27 HTTP/1.1" 200 20 "http://a/" "Moz \\x22"',
    "syslog": b"<34>Oct 11 22:14:15 host su[230]: error: failed\n<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 p "
    b'8710 - [a b="c\\]"] \xef\xbb\xbfTime\nFeb 29 00:00:00 h p: x',
    "logfmt": b'time="2021-09-15T21:17:10Z" level=error msg="no \\"pod\\"" ip=10.0.0.1 took=1.5ms ok',
    "timestamped": b"081109 203615 148 INFO dfs.DataNode: terminating\n[Sun Dec 04 04:47:44 2005] [error] x\n"
    b"- 1117838570 2005.06.03 R02 2005-06-03-15.42.50.675872 R02 RAS\n2015-07-29 17:41:41,536 - WARN [a:b] - c",
    "plain": b'Traceback (most recent call last):\n  File "a.py", line 3\n\x1b[31mred\x1b[0m \xff\xfe \xc3\xa9',
}
_CLOCKS = (1_431_857_103.0, math.nan, 0.0, -1e300, math.inf)


@cache
def log_sample() -> bytes:
    """Lines of the bundled log."""
    packed = importlib.resources.files("daemon").joinpath("sample/access.log.gz").read_bytes()
    return b"\n".join(gzip.decompress(packed).splitlines()[::1000])


def format_target(kind: str) -> Target:
    def seeds() -> list[bytes]:
        return [_LINES[kind], b"\n".join(_LINES.values()), *([log_sample()] if kind == "access" else [])]

    def read(data: bytes) -> None:
        lines = data.split(b"\n")
        assert recognise(lines[:64]) in KINDS
        clock = _CLOCKS[zlib.crc32(data) % len(_CLOCKS)]
        fields = parse_as_kind(kind, lines, clock=clock)
        columns = (fields.times, fields.keys, fields.contents, fields.targets, fields.agents, fields.errors)
        assert {len(column) for column in columns} == {len(lines)}
        rows = np.concatenate([rows for rows, _ in parse_each_by_own_kind(kind, lines, clock=clock)])
        assert sorted(rows.tolist()) == list(range(len(lines))), "a line is read twice or not at all"

    return Target(f"format {kind}", seeds, read, seconds_per_megabyte=5.0)


# Files of the state directory -----------------------------------------------------------------------------------------

_FRAMES: tuple[frames.Frame, ...] = (
    frames.LinesFrame(
        1.5, (Segment("a-1", "access", b"one\ntwo\nth", 2, parity=1), Segment("a-2", "plain", b"\n", 1, (0,)))
    ),
    frames.ModelFrame(3, "model-3-0123456789abcdef.pt", "0" * 64, TrainingCutoff(5, 50, 1)),
    frames.SettingsFrame(DetectionSettings(), (RuleText("r", "disable = []"),)),
    frames.TickFrame(1e9),
    frames.FlushFrame(1e9),
    frames.SkipFrame(7),
    frames.RestoreFrame("snapshot-5.msgpack", "f" * 64),
    frames.FeedbackFrame("7", 1, 2, "what", "normal", "note", 3, (4, 5)),
    frames.VouchedFrame(1.0, Segment("v", "plain", b"a\n", 1), True),
    frames.RefusedFrame(4, "model-4-0123456789abcdef.pt", "worse"),
    frames.WithdrawnFrame(9, {"ngram": "raised"}),
    frames.ReturnedFrame(("ngram",)),
)


def frame_seeds() -> list[bytes]:
    return [frames.encode_frame(frame) for frame in _FRAMES]


def read_frame(data: bytes) -> None:
    try:
        frame = frames.decode_frame(data)
    except ValueError:
        return
    assert frames.decode_frame(frames.encode_frame(frame)) == frame or b"nan" in repr(frame).encode()
    frames.count_lines(frame)


_HEADER = Header(b"\1" * 16, 5, 40)


def segment_seeds() -> list[bytes]:
    data, line = pack_segment_header(_HEADER), 40
    for seq, payload in enumerate(frame_seeds(), 5):
        line += 2
        data += pack_segment_entries(_HEADER, len(data), [Entry(seq, line, 2, payload)])
    closed = data + pack_closing_frame(_HEADER, len(data), HEADER_BYTES, 5 + len(_FRAMES) - 1, line)
    return [data, closed, data[:400], pack_segment_header(_HEADER)]


def read_segment(data: bytes) -> None:
    try:
        found = scan_segment(data, PATH)
    except (ValueError, NewerFormatError):
        return
    assert all(entry.payload in data for entry in found.entries)
    assert HEADER_BYTES <= found.end <= len(data) and found.torn >= 0 and found.rotten >= 0
    seqs, aside = read_journal_of(data)
    assert aside or set(seqs) <= {entry.seq for entry in found.entries}


def read_journal_of(segment: bytes) -> tuple[list[int], list[str]]:
    """The numbers of the frames that a journal of this one segment gives, and what was set aside."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / segment_name(5, 0)).write_bytes(segment)
        aside: list[str] = []
        reading = JournalReader(Path(directory), 4, 40, set_aside=lambda path, why: aside.append(why))
        seqs = [entry.seq for entry in reading]
        assert seqs == sorted(set(seqs)) and reading.lost_lines >= 0
    return seqs, aside


_PLACE = struct.Struct("<QQQ")


def place_seeds() -> list[bytes]:
    return [b"".join(_PLACE.pack(seq, 40 + 2 * (seq - 4), 2) for seq in range(5, 12)), _PLACE.pack(9, 90, 2)]


def read_places(data: bytes) -> None:
    """Frames whose checksums are right, and whose numbers are anything."""
    segment = pack_segment_header(_HEADER)
    for seq, line, count in _PLACE.iter_unpack(data[: len(data) // _PLACE.size * _PLACE.size]):
        segment += pack_segment_entries(_HEADER, len(segment), [Entry(seq, line, count, b"")])
    read_journal_of(segment)


_COLUMNS: dict[str, Any] = {
    "counts": np.array([[1, 2], [3, 1 << 63]], dtype=np.uint64),
    "floats": np.array([math.nan, 1.5]),
    "names": np.array(["a", "ü"]),
    "none": None,
    "name": "Zürich",
    "raw": b"\x00\xff",
    "yes": True,
    "big": 1 << 100,
    "line": -3,
    "generation": 3,
}


@cache
def _snapshot() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "s"
        write_snapshot(path, 7, 70, _COLUMNS, models=["model-3-0123456789abcdef.pt"])
        return path.read_bytes()


_SNAPSHOT_HEADER = 76


def read_snapshot_file(data: bytes) -> None:
    for read in (read_snapshot, check_snapshot, read_snapshot_header):
        try:
            found = read(PATH, disk=disk_of(data))
        except (SnapshotError, NewerFormatError):
            continue
        if read is read_snapshot:
            assert cast(tuple[int, int, Any], found)[:2] == struct.unpack_from("<QQ", data, 16)


def read_snapshot_body(body: bytes) -> None:
    """Under a header that fits: no checksum stands between the parser and what it is given."""
    header = pack_preamble(b"VIGILSNP", 1) + struct.pack("<QQQ", 5, 50, len(body)) + sha256(body).digest()
    read_snapshot_file(header + struct.pack("<I", zlib.crc32(header)) + body)


@cache
def _model() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        return (Path(directory) / write_model(Path(directory), _COLUMNS | {"big": 5}).name).read_bytes()


def read_model_file(data: bytes) -> None:
    """Under a name that fits."""
    name = f"model-3-{sha256(data).hexdigest()[:16]}.pt"
    with contextlib.suppress(ModelError, NewerFormatError):
        read_model(Path(name), disk=disk_of(data))


_BOOT = "6c7e0f5a-1f2e-4b43-8a39-0c4d8f8d9d1e"


def high_water_seeds() -> list[bytes]:
    def line(text: str) -> bytes:
        return b"%s %08x\n" % (text.encode(), zlib.crc32(text.encode()))

    return [line(f"51 {_BOOT}") + line("52") + line("53c"), line(f"- {_BOOT}"), line("7 another-boot") + line("8")]


def read_high_water(data: bytes) -> None:
    mark = HighWaterMark(PATH, disk_of(data), _BOOT)
    assert mark.last is None or mark.last.encode() in data


def records_seeds() -> list[bytes]:
    return [
        b'{"id":"1"}\n{"id":"2c","a":[1]}\n',
        b'{"id":"1"}\n{"id":"2',
        b'{"id":5}\n',
        b"{}\n\n\0\n",
        b'{"id":"\xff"}\n',
    ]


def read_records(data: bytes) -> None:
    """Opened, written to and opened again: what is appended follows the last whole record."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "alerts.jsonl"
        path.write_bytes(data)
        writer = JsonlWriter(path, REAL, _BOOT)
        last_record_ids(writer)
        assert writer.last is None or writer.last + b"\n" in data
        writer.append([b'{"id":"99"}'], "99")
        writer.sync()
        writer.close()
        after = path.read_bytes()
        assert data.startswith(after.removesuffix(b'{"id":"99"}\n')) and after.endswith(b'{"id":"99"}\n')
        again = JsonlWriter(path, REAL, _BOOT)
        assert again.last == b'{"id":"99"}' and again.last_id == "99" and again.note is None
        again.close()


def read_attempts_file(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "attempts.json").write_bytes(data)
        assert read_training_attempts(Path(directory)).failures >= 0


def forgery_seeds() -> list[bytes]:
    return [bytes([number]) * 4 for number in range(3)]


def read_forged_state(data: bytes) -> None:
    """One column changed, which one and how follow from `data`: refused, or a detector lives on with it."""
    forgery = a_forgery(genuine().state, random.Random(data[:4]))
    if data and refused_state(forgery.columns) is None:
        live_with_state(forgery.columns)


def read_forged_model(data: bytes) -> None:
    forgery = a_forgery(to_columns(genuine().model), random.Random(data[:4]))
    if data and refused_model(forgery.columns) is None:
        live_with_model(forgery.columns)


def _targets() -> Iterator[Target]:
    # tomllib's work grows with the square of the parts of a dotted key: 0.3 s for 5,000 of them in 20 KB.
    yield Target("settings", settings_seeds, read_settings, seconds_per_megabyte=60.0)
    yield Target("rules", rules_seeds, read_rule_files, seconds_per_megabyte=60.0)
    yield Target("body", lambda: list(_BODIES), read_body)
    yield Target("request", request_seeds, read_request, seconds_per_megabyte=10.0)
    yield Target("stream", stream_seeds, read_stream, seconds_per_megabyte=5.0)
    yield Target("peek mark", peek_mark_seeds, read_peek_mark)
    yield Target("vouched text", vouched_seeds, read_vouched, seconds_per_megabyte=5.0)
    yield Target("packed file", packed_seeds, read_packed, seconds_per_megabyte=50.0)
    for kind in KINDS:
        yield format_target(kind)
    yield Target("frame", frame_seeds, read_frame)
    yield Target("segment", segment_seeds, read_segment, seconds_per_megabyte=5.0)
    yield Target("frame places", place_seeds, read_places, seconds_per_megabyte=20.0)
    yield Target("snapshot", lambda: [_snapshot()], read_snapshot_file)
    yield Target("snapshot body", lambda: [_snapshot()[_SNAPSHOT_HEADER:]], read_snapshot_body)
    yield Target("model", lambda: [_model()], read_model_file, seconds_per_megabyte=5.0)
    # A few bytes choose the forgery, and then 2,000 lines are judged.
    yield Target("forged state", forgery_seeds, read_forged_state, seconds_per_megabyte=1e7, examples=10)
    yield Target("forged model", forgery_seeds, read_forged_model, seconds_per_megabyte=1e7, examples=10)
    yield Target("high water", high_water_seeds, read_high_water)
    yield Target("records", records_seeds, read_records)
    yield Target("attempts", lambda: [json.dumps({"failures": 2, "error": "x"}).encode()], read_attempts_file)


TARGETS = tuple(_targets())
