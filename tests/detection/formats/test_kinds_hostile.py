"""Formats against lines that nobody meant to be read: any bytes, and long runs of one byte."""

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.formats.fields import Fields
from detection.formats.kinds import KINDS, parse_as_kind, recognise

CLOCK = 1_431_857_103.0
PIECES = [
    b'83.149.9.216 - - [17/May/2015:10:05:03 +0000] "GET /a?b HTTP/1.1" 200 20 "-" "Mozilla"',
    b"<34>Oct 11 22:14:15 mymachine su[230]: error: failed",
    b'<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - [a b="c"] Time',
    b"2016-10-06T00:17:09.669794202Z stdout F text",
    b'{"time":"2021-08-24T09:52:13Z","level":"error","log":"{\\"msg\\":\\"x\\"}"}',
    b'time="2021-09-15T21:17:10Z" level=error msg="no pod"',
    b"081109 203615 148 INFO dfs.DataNode: terminating",
    b"[Sun Dec 04 04:47:44 2005] [error] x",
    b"Feb 29 00:00:00 h p: x",
    b"- 1117838570 2005.06.03 R02 2005-06-03-15.42.50.675872 R02 RAS",
    b'"', b"\\", b"[", b"]", b" ", b"{", b"}", b"=", b":", b"<1>", b"\x1b[0m", b"\x00", b"\xff",
    b"1", b"\t", b"|",
]  # fmt: skip
LINES = st.one_of(
    st.binary(max_size=80),
    st.lists(st.sampled_from(PIECES), max_size=6).map(b"".join),
    # A real line with a piece cut out and bytes put in.
    st.tuples(st.sampled_from(PIECES), st.integers(0, 90), st.integers(0, 9), st.binary(max_size=6)).map(
        lambda cut: cut[0][: cut[1]] + cut[3] + cut[0][cut[1] + cut[2] :]
    ),
).map(lambda line: line.replace(b"\n", b""))


def rows(fields: Fields) -> list[tuple[object, ...]]:
    times = ["nan" if math.isnan(seconds) else seconds for seconds in fields.times.tolist()]
    texts = (fields.keys, fields.contents, fields.targets, fields.agents)
    return list(zip(times, *texts, fields.errors.tolist(), strict=True))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.lists(LINES, max_size=12),
    st.sampled_from([CLOCK, math.nan, 0.0, -1e300, math.inf]),
)
def test_a_batch_is_read_as_its_lines_are_one_by_one(kind: str, lines: list[bytes], clock: float) -> None:
    batch = rows(parse_as_kind(kind, lines, clock=clock))
    assert batch == [row for line in lines for row in rows(parse_as_kind(kind, [line], clock=clock))]
    assert len(batch) == len(lines)
    for _, *texts, _ in batch:
        assert all(isinstance(text, bytes) and b"\n" not in text for text in texts)


@settings(max_examples=150, deadline=None)
@given(st.lists(LINES, min_size=1, max_size=20))
def test_any_first_lines_are_some_kind(lines: list[bytes]) -> None:
    assert recognise(lines) in KINDS


HEADS = (
    b"",
    b"1.2.3.4 - - [17/May/2015:10:05:03 +0000] ",
    b'1.2.3.4 - - [17/May/2015:10:05:03 +0000] "GET ',
    b"<34>Oct 11 22:14:15 ",
    b"<165>1 2003-08-24T05:14:15Z a b c d ",
    b'<165>1 2003-08-24T05:14:15Z a b c d [x y="',
    b"2015-07-29 17:41:41 ",
    b'level=error msg="',
    b'{"msg":"',
    b"2016-10-06T00:17:09.669794202Z stdout F ",
)
RUNS = (
    b'"',
    b"[",
    b"]",
    b" ",
    b"\\",
    b"a",
    b"1",
    b"=",
    b"{",
    b":",
    b"a ",
    b"1 ",
    b'a="',
    b'\\"',
    b'" ',
    b"[]",
    b"\x1b[0",
)
LONG = 65_536
# Ten times what it takes; a pattern that backtracks takes seconds.
SECONDS = 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_long_line_is_read_in_more_than_linear_time(kind: str) -> None:
    for head in HEADS:
        for run in RUNS:
            whole = fastest(kind, (head + run * LONG)[:LONG])
            if whole > 0.005:  # where it costs something at all, it must grow with the length, not its square
                half = fastest(kind, (head + run * LONG)[: LONG // 2])
                assert whole < 3 * half + 0.01, (kind, head, run, whole, half)
            assert whole < SECONDS, (kind, head, run, whole)


def fastest(kind: str, line: bytes) -> float:
    took = []
    for _ in range(5):
        start = time.process_time()  # a busy machine must not count
        parse_as_kind(kind, [line], clock=CLOCK)
        recognise([line])
        took.append(time.process_time() - start)
        if took[-1] < 0.002:
            break
    return min(took)
