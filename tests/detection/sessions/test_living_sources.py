import pytest

from detection.columns.state_columns import digest
from detection.frames import Segment
from detection.sessions.living_sources import LivingSource, LivingSources


def segment(source: str, data: bytes, *, last: bool = False, full: bool = False, parity: int = 0) -> Segment:
    unfinished = last and data != b"" and not data.endswith(b"\n")
    return Segment(source, "plain", data, data.count(b"\n") + unfinished, last=last, full=full, parity=parity)


def test_a_source_is_remembered_until_it_ends_even_when_it_has_no_unfinished_line() -> None:
    living = LivingSources()
    assert living.complete_lines(segment("b", b"one\r\ntwo\r", parity=1)) == ([b"one"], False)
    assert living.complete_lines(segment("a", b"x\n")) == ([b"x"], False)
    assert living.sources() == [
        LivingSource("a", "plain", b"", False, 0, 1),
        LivingSource("b", "plain", b"two\r", False, 1, 1),
    ]
    assert living.complete_lines(segment("b", b"\nthree", full=True)) == ([b"two"], False)
    assert living.sources()[1] == LivingSource("b", "plain", b"three", True, 0, 2)
    assert living.complete_lines(Segment("b", "plain", b"", 1, last=True)) == ([b"three"], True)
    assert living.complete_lines(Segment("a", "plain", b"", 0, last=True)) == ([], False)
    assert living.sources() == []


def test_the_state_holds_all_of_it() -> None:
    living = LivingSources()
    empty = digest(living.export())
    assert LivingSources.load(living.export()).sources() == []
    living.complete_lines(segment("a", b"tail \x00\xff", full=True, parity=1))
    living.complete_lines(segment("b", b"line\n"))
    assert LivingSources.load(living.export()).sources() == living.sources()
    assert digest(LivingSources.load(living.export()).export()) == digest(living.export()) != empty


def test_what_is_passed_over_leaves_its_sources_where_they_are_and_no_lines() -> None:
    living, applied = LivingSources(), LivingSources()
    segments = [segment("a", b"one\nhalf", parity=1), Segment("b", "plain", b"x\n", 7, parity=1)]
    living.pass_over(segments)
    applied.complete_lines(segments[0])
    with pytest.raises(ValueError, match="b says 7 lines and holds 1"):
        applied.complete_lines(segments[1])
    assert living.sources() == applied.sources()
    assert living.complete_lines(segment("a", b" a line\n")) == ([b"half a line"], False)
