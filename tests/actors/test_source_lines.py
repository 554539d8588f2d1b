from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from actors.source_lines import SAMPLE_LINES, Source
from detection.frames import Segment
from detection.sessions.living_sources import LivingSource, LivingSources


def plain(lines: Sequence[bytes]) -> str:
    return "plain"


def fed(source: Source, chunks: Sequence[bytes]) -> list[Segment]:
    segments = [source.feed(chunk) for chunk in chunks]
    return [segment for segment in [*segments, source.finish()] if segment is not None]


def lines_of(segments: Sequence[Segment]) -> tuple[list[bytes], list[int]]:
    """Lines, and the numbers of the cut ones, read from segments alone, as a detector would."""
    lines: list[bytes] = []
    cut: list[int] = []
    tail = b""
    for segment in segments:
        *whole, tail = (tail + segment.data).split(b"\n")
        if segment.last and segment.lines:
            whole, tail = [*whole, tail], b""
        assert len(whole) == segment.lines
        cut += [len(lines) + ordinal for ordinal in segment.cut]
        lines += whole
    assert tail == b""
    return lines, cut


@given(
    st.lists(st.text("ab\n", max_size=12).map(str.encode), max_size=8),
    st.integers(min_value=1, max_value=9),
)
def test_however_bytes_arrive_lines_are_what_newlines_delimit_cut_at_the_limit(chunks: list[bytes], limit: int) -> None:
    *whole, tail = b"".join(chunks).split(b"\n")
    expected = [*whole, tail] if tail else whole

    lines, cut = lines_of(fed(Source("s", "plain", plain, limit), chunks))

    assert lines == [line[:limit] for line in expected]
    assert cut == [n for n, line in enumerate(expected) if len(line) > limit]


def test_nothing_of_a_skipped_line_is_handed_on_or_remembered() -> None:
    source = Source("s", "plain", plain, 1000)
    first = source.feed(b"x" * 100_000)
    assert first is not None and len(first.data) == 1000 and first.lines == 0
    assert all(source.feed(b"x" * 100_000) is None for _ in range(100))
    end = source.feed(b"x\nnext\n")
    assert end is not None and (end.data, end.lines, end.cut) == (b"\nnext\n", 2, (0,))


@given(
    st.lists(st.text("ab\n", max_size=12).map(str.encode), max_size=8),
    st.integers(min_value=1, max_value=9),
    st.integers(min_value=1, max_value=9),
)
def test_a_source_goes_on_from_the_state_after_any_chunk_as_if_nothing_had_happened(
    chunks: list[bytes], limit: int, later_limit: int
) -> None:
    unbroken = fed(Source("s", "plain", plain, limit), chunks)
    state, segments = LivingSources(), []
    for chunk in chunks:
        (before,) = state.sources() or (None,)
        segment = Source("s", "plain", plain, limit, before).feed(chunk)
        if segment is not None:
            segments.append(segment)
            state.complete_lines(segment)
            state = LivingSources.load(state.export())
    (before,) = state.sources() or (None,)
    last = Source("s", "plain", plain, limit, before).finish()
    assert [*segments, last] == [*unbroken, None][: len(segments) + 1]
    assert [segment.parity for segment in segments] == [n % 2 for n in range(len(segments))]

    # With another limit the cut may fall elsewhere; the lines are still those that newlines delimit.
    other = Source("s", "plain", plain, later_limit, before).feed(b"aaa\nb\n")
    assert other is not None and len(state.complete_lines(other)[0]) == 2


def test_a_kind_that_a_whole_sample_decided_stays_and_one_of_less_is_decided_again() -> None:
    def recognise(lines: Sequence[bytes]) -> str:
        return "json" if lines[0].startswith(b"{") else "plain"

    def resumed(lines: int, tail: bytes) -> Segment:
        segment = Source("s", "auto", recognise, 100, LivingSource("s", "access", tail, False, 0, lines)).feed(b"}\nx")
        assert segment is not None
        return segment

    assert resumed(SAMPLE_LINES, b"{").kind == "access"
    assert resumed(SAMPLE_LINES - 1, b"{").kind == "json", "by the whole line, of which we read the end"
    unfinished = Source("s", "auto", recognise, 100, LivingSource("s", "access", b"{", False, 0, 0)).feed(b"..")
    assert unfinished is not None and unfinished.kind == "access"


def test_a_source_that_never_wrote_leaves_no_trace() -> None:
    assert Source("s", "plain", plain, 10).finish() is None


def test_the_kind_is_decided_from_the_first_lines_and_then_stays() -> None:
    seen: list[list[bytes]] = []

    def recognise(lines: Sequence[bytes]) -> str:
        seen.append(list(lines))
        return f"after {len(lines)}"

    source = Source("s", "auto", recognise, 100)
    kinds = [segment.kind for segment in fed(source, [b"on", b"e\r\ntw", b"o\n", b"x\n" * 50, b"y\n"])]

    assert kinds == ["plain", "after 1", "after 2", "after 20", "after 20", "after 20"]
    assert seen[1] == [b"one", b"two"] and len(seen[-1]) == SAMPLE_LINES and len(seen) == 3


def test_a_single_unfinished_line_is_recognised_when_its_source_ends() -> None:
    source = Source("s", "auto", lambda lines: lines[0].decode(), 100)
    assert [segment.kind for segment in fed(source, [b"js", b"on"])] == ["plain", "plain", "json"]


def test_a_configured_kind_is_never_second_guessed() -> None:
    def recognise(lines: Sequence[bytes]) -> str:
        raise AssertionError("asked")

    assert {s.kind for s in fed(Source("s", "syslog", recognise, 100), [b"{}\n"])} == {"syslog"}
