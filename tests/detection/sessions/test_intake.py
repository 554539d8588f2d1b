"""From the segments of a frame to lines, their keys and times, and to what each of them says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection.frames import Segment
from detection.members.all_online_members import OnlineMembers
from detection.rules.rule_files import parse_rules
from detection.rules.rule_matching import Hits, RuleSet
from detection.sessions.intake import hits_in_order, read_lines, session_key, take_in_segments
from detection.sessions.key_pattern import KeyPattern
from detection.sessions.living_sources import LivingSources
from detection.sessions.session_table import KEY_BYTES
from detection.templates.table import TemplateTable
from tests.detection.journal import ATTACK, RECEIVED, rules

ACCESS = b'192.0.2.7 - - [14/Nov/2023:22:13:20 +0000] "GET /index.html HTTP/1.1" 200 5 "-" "curl/8"'  # at 1,700,000,000
STAMPED = b"1700000000.500 INFO id=a7 opened"
CLOCK = 1_700_000_000.0
PACK = RuleSet(parse_rules(rules()))


def segment(data: bytes, kind: str = "timestamped", *, source: str = "s-1", last: bool = False) -> Segment:
    lines = data.count(b"\n") + (last and not data.endswith(b"\n") and data != b"")
    return Segment(source, kind, data, lines, last=last)


def test_lines_of_several_sources_and_kinds_come_in_the_order_of_the_segments() -> None:
    segments = [segment(STAMPED + b"\n"), segment(ACCESS + b"\n", "access", source="s-2"), segment(b"free\n", "plain")]
    intake = take_in_segments(segments, LivingSources(), None, clock=CLOCK, received=RECEIVED)
    assert intake.lines == [STAMPED, ACCESS, b"free"]
    assert intake.times[:2].tolist() == [CLOCK + 0.5, CLOCK] and np.isnan(intake.times[2])
    assert intake.keys[1:] == [b"k192.0.2.7", b"ws-1"], "the client, and where nobody is named the source"
    assert intake.windowed == [True, False, True]
    assert (intake.cut, intake.unterminated, intake.future, intake.ended) == (0, 0, 0, [])
    assert sorted(i for where, _ in intake.fields for i in where.tolist()) == [0, 1, 2]


def test_a_line_that_is_under_way_is_read_when_its_end_has_come() -> None:
    living = LivingSources()
    first = take_in_segments([segment(STAMPED[:10])], living, None, clock=CLOCK, received=RECEIVED)
    assert first.lines == []
    then = take_in_segments([segment(STAMPED[10:] + b"\n")], living, None, clock=CLOCK, received=RECEIVED)
    assert then.lines == [STAMPED]


def test_a_source_that_ends_leaves_the_line_that_it_did_not_end_and_its_window_ends() -> None:
    intake = take_in_segments([segment(STAMPED, last=True)], LivingSources(), None, clock=CLOCK, received=RECEIVED)
    assert intake.lines == [STAMPED]
    assert (intake.unterminated, intake.ended) == (1, [b"ws-1"])


def test_a_pattern_of_the_user_names_sessions_and_what_it_does_not_find_belongs_to_its_source() -> None:
    lines = STAMPED + b"\nno key here\n"
    intake = take_in_segments(
        [segment(lines)], LivingSources(), KeyPattern(r"id=(\S+)"), clock=CLOCK, received=RECEIVED
    )
    assert intake.keys == [b"ka7", b"ws-1"]
    assert intake.windowed == [False, True]


@pytest.mark.parametrize(
    ("pattern", "why"),
    [("id=(", "missing"), ("id=x", "exactly one group, has 0"), ("(a)(b)", "exactly one group, has 2")],
)
def test_a_pattern_that_names_nothing_is_refused(pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        KeyPattern(pattern)


def test_a_time_of_more_than_a_day_ahead_is_none_and_is_counted() -> None:
    later = STAMPED.replace(b"1700000000", b"%d" % (RECEIVED + 2 * 86_400))
    intake = take_in_segments(
        [segment(STAMPED + b"\n" + later + b"\n")], LivingSources(), None, clock=CLOCK, received=RECEIVED
    )
    assert intake.times[0] == CLOCK + 0.5 and np.isnan(intake.times[1])
    assert intake.future == 1


@pytest.mark.parametrize(("clock", "seconds"), [(CLOCK, 1_699_999_200.0), (float("nan"), 1_699_999_200.0)])
def test_a_time_without_a_year_is_the_nearest_to_the_clock_or_to_when_it_came(clock: float, seconds: float) -> None:
    line = b"<34>Nov 14 22:00:00 host su[12]: failed\n"
    intake = take_in_segments([segment(line, "syslog")], LivingSources(), None, clock=clock, received=CLOCK + 3600.0)
    assert intake.times.tolist() == [seconds]


@given(st.binary(max_size=200))
def test_a_session_has_a_name_that_fits_its_column(key: bytes) -> None:
    name = session_key(key)
    assert len(name) <= KEY_BYTES
    assert np.array([name], dtype=f"S{KEY_BYTES}")[0] == name, "a column of bytes loses trailing NULs"
    if len(key) < KEY_BYTES - 1 and b"\0" not in key:
        assert name == b"k" + key


def test_long_keys_that_differ_anywhere_have_names_that_differ() -> None:
    assert session_key(b"x" * 300) != session_key(b"x" * 299 + b"y") != session_key(b"x" * 301)


def test_of_each_line_it_is_said_which_template_it_is_who_did_it_and_which_rules_it_met() -> None:
    lines = b"\n".join([ACCESS, ATTACK, ACCESS, b""])
    intake = take_in_segments([segment(lines, "access")], LivingSources(), None, clock=CLOCK, received=RECEIVED)
    table = TemplateTable()
    reading = read_lines(intake, table.assign, PACK)
    assert reading.ids[0] == reading.ids[2] != reading.ids[1]
    assert "/index.html" in table.text(int(reading.ids[0]))
    assert reading.origins == [b"192.0.2.7", b"203.0.113.9", b"192.0.2.7"]
    assert set(reading.hits.lines.tolist()) == {1}
    assert {PACK.rules[rule].attack_type for rule in reading.hits.rules.tolist()} == {"sql_injection"}
    assert reading.matched_in[0][1] == b"curl/8"
    assert len(OnlineMembers().read(reading)["values"]) == 1


def test_for_a_member_without_which_it_goes_on_nothing_is_read() -> None:
    intake = take_in_segments(
        [segment(ATTACK + b"\n", "access")], LivingSources(), None, clock=CLOCK, received=RECEIVED
    )
    reading = read_lines(intake, TemplateTable().assign, PACK)
    assert OnlineMembers().without(("values",)).read(reading).keys() == {"sources"}
    assert OnlineMembers().without(("values", "sources")).read(reading) == {}
    assert OnlineMembers().observe({}, slice(0, 1), np.array([CLOCK])).tolist() == [[0.0, 0.0]]
    assert reading.hits.lines.tolist(), "rules go on"


def test_hits_of_several_parts_are_one_in_the_order_of_lines_and_then_of_rules() -> None:
    def hits(lines: list[int], found: list[int]) -> Hits:
        return Hits(lines=np.array(lines, dtype=np.int32), rules=np.array(found, dtype=np.int32))

    together = hits_in_order([hits([4, 4, 9], [2, 7, 1]), hits([0, 4], [5, 3])])
    assert list(zip(together.lines.tolist(), together.rules.tolist(), strict=True)) == [
        (0, 5),
        (4, 2),
        (4, 3),
        (4, 7),
        (9, 1),
    ]
    assert len(hits_in_order([]).lines) == 0
