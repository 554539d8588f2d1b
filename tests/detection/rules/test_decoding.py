"""One plain spelling of the many that attackers use."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection.rules.decoding import FIELD_BYTES, decode_field


@pytest.mark.parametrize(
    ("field", "seen"),
    [
        (b"/Search?q=a+b%2Bc", b"/search?q=a b+c"),
        (b"/a+b?q=1+2", b"/a+b?q=1 2"),
        (b"/x?q=%27%2520or%252527", b"/x?q=' or'"),
        (b"/%%32%65%%32%65/", b"/../"),
        (b"/x?q=%u003cscript%uff1e%u2215", b"/x?q=<script>/"),
        (b"/x?q=%2525252527%25252525252525273", b"/x?q=''3"),
        (b"/..%c0%af..%c1%9c%e0%80%ae%c0%2e", b"/../..\\.."),
        (b"/\xef\xbc\x9cscript\xef\xbc\x9e\xef\xbd\x81", b"/<script>a"),
        (rb"/x?q=\x22\u003c\"", b'/x?q="<"'),
        (rb"/x?q=\u{27}\u{ff1c}\u{e9}\u{110000}\u{}", b"/x?q='<\xc3\xa9\\u{}"),
        (b"/x?q=sc%00ri%08pt%7f", b"/x?q=script"),
        (b"/x?q=a%09b%0bc", b"/x?q=a b c"),
        (b"/x?q=a%0d%0ab", b"/x?q=a\r\nb"),
        (b"/x?q=&lt;&#60;&#x3C;&#X3c&colon;&unknown;&lt", b"/x?q=<<<<:&unknown;&lt"),
        (b"/x?q=&#0;&#99999999;", b"/x?q=9;"),
        (b"union/**/all/*!50000select*/", b"union all select "),
        (b"/* a comment */b/*<script>*/", b" b/*<script> "),
        (b"/*%0a*/a/*id%0a*/", b" a/*id\n "),
        (b"union--%0aselect", b"union\nselect"),
        (b"union%23x%0a--y2%0d%0a%20-- %0aselect", b"union\nselect"),
        (b"x'--a%0aor#12%0a1=1", b"x'\nor\n1=1"),
        (b"1--x%0aunion", b"1--x\nunion"),
        (b"a--two words%0ab", b"a--two words\nb"),
        (b"a#b%0a['c']", b"a#b\n['c']"),
        (b"(#b%0a(c)", b"(#b\n(c)"),
        (b"a--b", b"a--b"),
        (b"/caf%C3%89", b"/caf\xc3\x89"),
        (b"%zz%4", b"%zz%4"),
        (b"", b""),
    ],
)
def test_spellings_of_one_thing_become_one(field: bytes, seen: bytes) -> None:
    assert decode_field(field, query=True) == seen


def test_plus_is_a_plus_where_there_is_no_query() -> None:
    assert decode_field(b"Googlebot/2.1 (+http://x)", query=False) == b"googlebot/2.1 (+http://x)"


@given(st.binary(max_size=2 * FIELD_BYTES) | st.text('%25cfu{}0aexAF&#;/*!+-\\"< \r\n').map(str.encode), st.booleans())
def test_any_bytes_decode_to_something_no_longer(field: bytes, query: bool) -> None:
    assert len(decode_field(field, query=query)) <= min(len(field), FIELD_BYTES)


@pytest.mark.parametrize(
    "piece", [b"--", b"#", b"a--", b"a--b\n", b"a#b\n['", b"a-- ", b"/* ", b"%25", b"%", b"\\u{1", b"\n", b" "]
)
def test_decoding_takes_time_in_proportion_to_the_field(piece: bytes) -> None:
    def seconds(size: int) -> float:
        field = b"%0aa--" + (piece * size)[: size - 6]
        taken = []
        for _ in range(7):
            began = time.process_time_ns()
            for _ in range(FIELD_BYTES // size):
                decode_field(field, query=True)
            taken.append(time.process_time_ns() - began)
        return min(taken) / 1e9

    # Measured: at most 1.8 ms for 4,096 bytes, and about as much for the same bytes in 16 pieces. Were it quadratic
    # it would be 16 times that.
    assert seconds(FIELD_BYTES) < 4 * seconds(FIELD_BYTES // 16) + 0.001
