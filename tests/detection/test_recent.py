from hypothesis import given, settings
from hypothesis import strategies as st

from detection import recent as module
from detection.recent import RecentLines


def test_the_last_lines_can_be_quoted_and_those_before_cannot() -> None:
    recent = RecentLines()
    recent.append(1, [b"line %d" % n for n in range(1, 70_001)])
    assert recent.text(70_000) == b"line 70000"
    assert recent.text(70_000 - module._RING_LINES + 1) is not None
    assert recent.text(70_000 - module._RING_LINES) is None
    assert recent.text(70_001) is None
    assert recent.text(0) is None


def test_long_lines_push_out_others_and_only_their_beginning_is_kept() -> None:
    recent = RecentLines()
    recent.append(1, [b"first"])
    for n in range(2, 3000):
        recent.append(n, [b"%d " % n + b"x" * 60_000])
    assert recent.text(1) is None
    quoted = recent.text(2999)
    assert quoted is not None and quoted.startswith(b"2999 x") and len(quoted) == module._KEPT_OF_A_LINE


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3000), max_size=40), max_size=60), st.integers(0, 30))
def test_what_can_be_quoted_is_right_wherever_the_ring_wraps(batches: list[list[int]], gap: int) -> None:
    recent, plain, line = RecentLines(), dict[int, bytes](), 1
    for sizes in batches * 3:
        texts = [(b"%d " % (line + i)).ljust(size, b".") for i, size in enumerate(sizes)]
        recent.append(line, texts)
        plain.update((line + i, text) for i, text in enumerate(texts))
        line += len(texts) + gap
    again = RecentLines.load(recent.export())
    for n in range(1, line + 1):
        text = recent.text(n)
        assert text == again.text(n)
        assert text is None or text == plain[n][: module._KEPT_OF_A_LINE]
    if plain:
        assert recent.text(max(plain)) is not None
