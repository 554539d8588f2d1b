import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detection.sessions import recent_lines as module
from detection.sessions.recent_lines import RecentLines


def of(serial: int, lines: int) -> NDArray[np.int64]:
    return np.full(lines, serial, dtype=np.int64)


def test_the_last_lines_can_be_quoted_and_those_before_cannot() -> None:
    recent = RecentLines()
    recent.append(1, [b"line %d" % n for n in range(1, 70_001)], of(1, 70_000))
    assert recent.text(70_000) == b"line 70000"
    assert recent.text(70_000 - module._RING_LINES + 1) is not None
    assert recent.text(70_000 - module._RING_LINES) is None
    assert recent.text(70_001) is None
    assert recent.text(0) is None


def test_long_lines_push_out_others_and_only_their_beginning_is_kept() -> None:
    recent = RecentLines()
    recent.append(1, [b"first"], of(1, 1))
    for n in range(2, 3000):
        recent.append(n, [b"%d " % n + b"x" * 60_000], of(1, 1))
    assert recent.text(1) is None
    quoted = recent.text(2999)
    assert quoted is not None and quoted.startswith(b"2999 x") and len(quoted) == module._KEPT_OF_A_LINE


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3000), max_size=40), max_size=60), st.integers(0, 30))
def test_what_can_be_quoted_is_right_wherever_the_ring_wraps(batches: list[list[int]], gap: int) -> None:
    recent, plain, line = RecentLines(), dict[int, bytes](), 1
    for sizes in batches * 3:
        texts = [(b"%d " % (line + i)).ljust(size, b".") for i, size in enumerate(sizes)]
        recent.append(line, texts, of(1, len(texts)))
        plain.update((line + i, text) for i, text in enumerate(texts))
        line += len(texts) + gap
    again = RecentLines.load(recent.export())
    for n in range(1, line + 1):
        text = recent.text(n)
        assert text == again.text(n)
        assert text is None or text == plain[n][: module._KEPT_OF_A_LINE]
    if plain:
        assert recent.text(max(plain)) is not None


def test_the_last_lines_of_a_session_are_found_among_those_of_others() -> None:
    recent = RecentLines()
    serials = np.array([7, 8, 7, 7, 9, 8, 7], dtype=np.int64)
    recent.append(11, [b"line %d" % n for n in range(11, 18)], serials)
    assert recent.of_session(7, 17, 10) == [11, 13, 14, 17]
    assert recent.of_session(7, 17, 2) == [14, 17]
    assert recent.of_session(7, 16, 10) == [11, 13, 14], "what came later is not looked at"
    assert recent.of_session(3, 17, 10) == []
    assert RecentLines.load(recent.export()).of_session(8, 99, 10) == [12, 16]


def test_lines_whose_texts_were_pushed_out_are_not_listed() -> None:
    recent = RecentLines()
    for n in range(1, 3001):
        recent.append(n, [b"%d " % n + b"x" * 60_000], of(5, 1))
    found = recent.of_session(5, 3000, 5000)
    assert found[-1] == 3000 and 2000 < len(found) < 2100
    assert all(recent.text(number) is not None for number in found)
