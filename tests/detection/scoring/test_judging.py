"""Sessions judged by a model whose arithmetic can be done on paper (`by_hand`)."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.detection_settings import SessionSettings
from detection.frames import FlushFrame, LinesFrame, Segment, SettingsFrame, TickFrame
from tests.detection.by_hand import FLOOR, USUAL, knowing_by_hand
from tests.detection.journal import ATTACK, RECEIVED, Journal, replace_settings, rules
from tests.detection.simple import BEGAN, CLOSE, KEY, NEW, READ, RETRY, line, said, session, simple

Record = dict[str, Any]


def ended(journal: Journal) -> list[Record]:
    return list(journal.apply(FlushFrame(RECEIVED)).records())


def counted(record: Record) -> tuple[float, float]:
    """What `counts` makes of it: score and p."""
    return record["members"]["counts"]["score"], record["members"]["counts"]["p"]


def test_before_there_is_a_model_nothing_has_a_p() -> None:
    journal = simple()
    records = said(journal, session("a", USUAL)) + ended(journal)
    assert [each["closed"] for each in records] == [False, False, False, True]
    assert {(each["p"], each["score"], each["verdict"], each["flagged"]) for each in records} == {
        (None, 0.0, "normal", False)
    }
    assert all(each["members"] == {} for each in records)


def test_a_session_that_ends_as_it_should_has_a_p_of_1_on_every_row() -> None:
    journal = knowing_by_hand()
    records = said(journal, session("a", USUAL)) + ended(journal)
    assert [counted(each) for each in records] == [(0.0, 1.0)] * 4
    assert [each["p"] for each in records] == [1.0] * 4
    assert [each["score"] for each in records] == [pytest.approx(FLOOR / (FLOOR + 1.0))] * 4
    assert not any(each["flagged"] for each in records)


def test_a_session_that_ends_too_early_is_flagged_at_its_closing_and_not_before() -> None:
    journal = knowing_by_hand()
    lines = said(journal, session("a", [READ, RETRY]))
    assert [(each["p"], each["flagged"]) for each in lines] == [(1.0, False)] * 2
    (closing,) = ended(journal)
    # Of three templates each once, one is missing: |1 - 0| of 3 + 2 lines.
    assert counted(closing) == pytest.approx((1 / 5, 1 / 100))
    assert closing["p"] == 1 / 1000
    assert closing["score"] == pytest.approx(FLOOR / (FLOOR + 1 / 1000))
    assert (closing["verdict"], closing["flagged"], closing["closed"]) == ("anomaly", True, True)
    assert (closing["id"], closing["line"], closing["first_line"], closing["last_line"]) == ("5.1", 5, 4, 5)


def test_how_far_it_is_from_what_is_usual_is_how_many_lines_differ_of_all() -> None:
    journal = knowing_by_hand()
    said(journal, session("a", [READ, READ, READ, RETRY, CLOSE]))
    (closing,) = ended(journal)
    assert counted(closing)[0] == pytest.approx(2 / 8)


def test_a_line_of_a_template_that_the_model_never_saw_is_novel_and_no_reason_to_flag() -> None:
    journal = knowing_by_hand()
    records = said(journal, session("a", [READ, NEW]))
    assert [(each["verdict"], each["flagged"]) for each in records] == [("normal", False), ("novel", False)]


def test_sessions_that_close_at_one_line_are_numbered_in_the_order_in_which_they_began() -> None:
    journal = knowing_by_hand()
    said(journal, [line("late", READ, 10.0), line("early", READ, 11.0), line("late", RETRY, 12.0)])
    records = said(journal, [line("other", READ, 100.0)])  # the idle time is 60 s
    closed = [
        (each["id"], each["session"], each["first_line"], each["last_line"]) for each in records if each["closed"]
    ]
    assert closed == [("7.1", "late", 4, 6), ("7.2", "early", 5, 5)]
    assert records[0]["id"] == "7"


def test_silence_ends_a_session_without_a_line_of_its_own() -> None:
    journal = knowing_by_hand()
    said(journal, session("a", [READ]))
    assert list(journal.apply(TickFrame(RECEIVED + 59.0)).records()) == []
    (closing,) = journal.apply(TickFrame(RECEIVED + 61.0)).records()
    assert (closing["id"], closing["session"], closing["closed"]) == ("4.1", "a", True)
    assert counted(closing)[0] == pytest.approx(2 / 4)


def test_what_has_no_key_is_judged_in_windows_of_so_many_lines() -> None:
    journal = knowing_by_hand()
    journal.apply(SettingsFrame(replace_settings(session=SessionSettings(key=KEY.key, window=3)), rules()))
    nameless = [b"%d.000 INFO %s" % (BEGAN, text) for text in (READ, RETRY, CLOSE, READ, READ, READ, READ)]
    closed = [each for each in said(journal, nameless) if each["closed"]]
    assert [(each["id"], each["first_line"], each["last_line"]) for each in closed] == [("6.1", 4, 6), ("9.1", 7, 9)]


def test_a_rule_is_as_sure_of_a_line_as_it_is_whatever_the_members_say() -> None:
    journal = knowing_by_hand()
    segment = Segment("web", "access", ATTACK + b"\n", 1)
    (record,) = journal.apply(LinesFrame(RECEIVED, (segment,))).records()
    assert record["verdict"] == "attack" and record["flagged"]
    assert record["members"]["rules"]["p"] is None
    assert record["score"] == record["members"]["rules"]["score"] >= 0.5


texts = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([READ, RETRY, CLOSE])), min_size=1, max_size=30)


@settings(max_examples=25)
@given(texts, st.data())
def test_a_session_ends_as_strange_as_its_counts_are_far_from_usual_wherever_frames_are_cut(
    drawn: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    lines = [line(key, text, float(number)) for number, (key, text) in enumerate(drawn)]
    distances = {}
    for key in {key for key, _ in drawn}:
        came = [[text for name, text in drawn if name == key].count(text) for text in USUAL]
        distances[key] = sum(abs(count - 1) for count in came) / (sum(came) + 3)
    at = sorted(data.draw(st.sets(st.integers(1, len(lines) - 1), max_size=4))) if len(lines) > 1 else []

    journal = knowing_by_hand()
    for start, stop in zip([0, *at], [*at, len(lines)], strict=True):
        said(journal, lines[start:stop])
    closings = ended(journal)

    assert {each["session"]: counted(each)[0] for each in closings} == pytest.approx(distances)
    for each in closings:
        usual = distances[each["session"]] == 0.0
        assert (each["p"], each["flagged"]) == ((1.0, False) if usual else (1 / 1000, True))
