"""What is said of a line and of the end of a session, as the contract's JSON objects: whole ones, by hand."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection.formats.text import TEXT_BYTES
from detection.frames import FlushFrame, LinesFrame, Segment
from detection.verdicts.verdict_records import finite_or_none, shown_key, shown_session, shown_text
from tests.detection.by_hand import FLOOR, USUAL, knowing_by_hand
from tests.detection.journal import ATTACK, RECEIVED, Journal
from tests.detection.simple import BEGAN, READ, RETRY, line, said, session, simple

FIELDS = (
    "id line first_line last_line time session closed template_id template verdict score p flagged members "
    "attack_types rules model_generation text"
).split()
OF_AN_ALERT = "incident incident_count digest opens cause cause_kind cause_template what explain".split()


def attacked(journal: Journal) -> dict[str, Any]:
    frame = LinesFrame(RECEIVED, (Segment("web", "access", ATTACK + b"\n", 1),))
    (record,) = journal.apply(frame).records()
    return record


def test_a_line_that_nothing_is_said_of_has_every_field() -> None:
    (record,) = said(simple(), [line("a7", READ)])
    assert record == {
        "id": "1",
        "line": 1,
        "first_line": 1,
        "last_line": 1,
        "time": float(BEGAN),
        "session": "a7",
        "closed": False,
        "template_id": record["template_id"],
        "template": "INFO id=<*> reading rows from the table",
        "verdict": "normal",
        "score": 0.0,
        "p": None,
        "flagged": False,
        "members": {},
        "attack_types": [],
        "rules": [],
        "model_generation": 0,
        "text": f"{BEGAN}.000 INFO id=a7 reading rows from the table",
    }
    assert list(record) == FIELDS


def test_a_line_in_a_session_says_how_that_stands() -> None:
    journal = knowing_by_hand()
    said(journal, [line("a7", READ, 5.0)])
    (record,) = said(journal, [line("a7", RETRY, 6.0)])
    assert (record["id"], record["line"], record["first_line"], record["last_line"]) == ("5", 5, 4, 5)
    assert record["members"] == {"counts": {"score": 0.0, "p": 1.0}}
    assert (record["p"], record["score"]) == (1.0, pytest.approx(FLOOR / (FLOOR + 1.0)))
    assert (record["time"], record["model_generation"]) == (BEGAN + 6.0, 1)


def test_the_end_of_a_session_is_a_record_of_its_own_with_its_oddest_line() -> None:
    journal = knowing_by_hand()
    said(journal, session("a7", [READ, RETRY]))
    verdicts = journal.apply(FlushFrame(RECEIVED))
    (record,) = verdicts.records()
    assert list(record) == FIELDS + OF_AN_ALERT
    assert (record["id"], record["closed"], record["template_id"]) == ("5.1", True, -1)
    assert record["template"] == "<end of session>"
    assert record["text"] == line("a7", RETRY).decode()
    assert record["members"]["counts"] == {"score": pytest.approx(1 / 5), "p": 1 / 100}
    assert (record["cause_kind"], record["cause_template"]) == ("shape", None)
    assert (record["incident"], record["incident_count"], record["opens"], record["digest"]) == ("5.1", 1, True, False)
    assert (verdicts.lines, verdicts.line) == (0, 5)


def test_a_line_that_a_rule_hit_names_its_rules_and_what_they_find() -> None:
    record = attacked(simple())
    assert (record["verdict"], record["flagged"], record["p"]) == ("attack", True, None)
    assert record["attack_types"] == ["sql_injection"]
    assert all(each["type"] == "sql_injection" for each in record["rules"]) and record["rules"]
    assert record["members"] == {"rules": {"score": record["score"], "p": None}}
    assert record["cause_kind"] == "rule" and record["cause_template"] == record["template_id"]
    assert record["text"] == ATTACK.decode()


def test_flagged_are_the_records_that_are_and_all_are_json() -> None:
    journal = knowing_by_hand()
    said(journal, session("a", [READ]) + session("b", USUAL))
    verdicts = journal.apply(FlushFrame(RECEIVED))
    records = list(verdicts.records())
    assert [each["flagged"] for each in records] == [True, False]
    assert verdicts.flagged() == records[:1]
    assert json.loads(json.dumps(records)) == records


def test_records_are_in_the_order_of_their_ids_lines_before_the_sessions_that_close_at_them() -> None:
    journal = simple()
    lines = [line("a", READ), line("b", READ, 100.0), line("c", READ, 200.0), line("d", READ, 201.0)]
    assert [each["id"] for each in said(journal, lines)] == ["1", "2", "2.1", "3", "3.1", "4"]


def test_bytes_that_are_no_text_are_shown_as_what_they_are() -> None:
    assert shown_text("Grüße".encode()) == "Grüße"
    assert shown_text(b"a\xff\xc3(") == "a\\xff\\xc3("
    assert shown_text(b"x" * (TEXT_BYTES + 1)) == "x" * TEXT_BYTES


@given(st.binary(max_size=64))
def test_whatever_came_any_json_reader_takes_it(text: bytes) -> None:
    assert json.loads(json.dumps(shown_text(text)).encode()) == shown_text(text)
    assert shown_text(text).encode().decode() == shown_text(text)


def test_a_key_is_shown_without_what_the_table_marks_it_with() -> None:
    assert shown_key(b"ka7") == "a7"
    assert shown_key(b"ws-1") == "s-1"
    assert (shown_session(b"ka7"), shown_session(b"ws-1")) == ("a7", "")


@pytest.mark.parametrize(("number", "is_"), [(0.5, 0.5), (np.float64(2.0), 2.0), (np.nan, None), (np.inf, None)])
def test_what_is_no_number_is_null(number: float, is_: float | None) -> None:
    assert finite_or_none(number) == is_
