"""What an alert says of why it was raised, and that saying it changes nothing."""

import json
from typing import Any

import pytest

from detection.columns.state_columns import State, digest
from detection.detector import Detector
from detection.members.fitted_member_view import CLOSING
from detection.members.parameter_values.member import FEWEST_LINES
from detection.models.model import Model
from detection.verdicts.alerting import EXPLAINED_OF_A_BATCH, EXPLAINED_OF_AN_INCIDENT
from tests.detection.journal import ATTACK, Journal, started
from tests.detection.simple import CLOSE, NEW, OPEN, READ, RETRY, WRITE, alerts_of, fed, learn, line, session, usual


@pytest.fixture(scope="module")
def full(knowing: tuple[State, Model]) -> Journal:
    """All members, the transformer barely trained."""
    journal = Journal(Detector.load(*knowing))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detection.members.transformer.fitting.FEWEST_STEPS", 30)
        patch.setattr("detection.members.transformer.fitting.LINES_PER_STEP", 10**6)
        learn(journal, full=True)
    return journal


def test_a_line_nobody_knew_is_explained_by_what_was_expected_instead(journal: Journal) -> None:
    (alert,) = fed(journal, session("x", [OPEN, NEW], 2000))
    why = alert["explain"]
    expected, found = why["expected"], why["found"]
    assert (found["template_id"], found["template"]) == (alert["template_id"], alert["template"])
    assert {each["template"].split("> ")[-1].encode() for each in expected} <= {READ, WRITE, CLOSE, RETRY}
    p = [each["p"] for each in expected]
    assert len(p) == 3 and p == sorted(p, reverse=True) and sum(p) + found["p"] <= 1.0
    assert found["p"] < 0.001 < p[-1]


def test_a_session_that_ended_too_early_was_expected_to_go_on(journal: Journal) -> None:
    (alert,) = alerts_of(journal, session("x", [OPEN, WRITE, WRITE, WRITE, READ, READ, READ, WRITE], 2000))
    found = alert["explain"]["found"]
    assert (found["template_id"], found["template"], alert["closed"]) == (CLOSING, "<end of session>", True)
    assert CLOSING not in [each["template_id"] for each in alert["explain"]["expected"]]
    assert sum(each["p"] for each in alert["explain"]["expected"]) + found["p"] <= 1.0


def test_members_stand_with_score_p_and_threshold_the_surest_first(journal: Journal) -> None:
    (alert,) = fed(journal, session("x", [OPEN, NEW], 2000))
    members = alert["explain"]["members"]
    assert {each["name"] for each in members} == set(alert["members"]) == set(journal.detector.summary().members)
    assert [each["p"] for each in members] == sorted(each["p"] for each in members)
    for each in members:
        over = each["threshold"] is not None and each["score"] > each["threshold"]
        assert over == (each["p"] < journal.detector.alpha()[0]), each
    surest = members[0]
    assert surest["name"] == "ngram" and surest["score"] > surest["threshold"]
    assert {each["name"]: each["score"] for each in members} == {
        name: said["score"] for name, said in alert["members"].items()
    }


def test_the_last_ten_lines_of_the_session_are_quoted_with_the_odd_one_marked(journal: Journal) -> None:
    texts = [OPEN, *[READ] * 12, CLOSE, NEW]
    beside = usual(3, 9, prefix="beside", at=2000)
    (alert,) = fed(journal, beside[:5] + session("x", texts, 2000) + beside[5:])
    quoted = alert["explain"]["lines"]
    assert [each["text"] for each in quoted] == [each.decode() for each in session("x", texts, 2000)[-10:]]
    assert [each["odd"] for each in quoted] == [False] * 9 + [True]
    assert quoted[-1]["line"] == alert["line"] and quoted[-1]["text"] == alert["text"]


def test_of_a_session_flagged_at_its_end_the_strangest_line_is_marked(journal: Journal) -> None:
    (alert,) = alerts_of(journal, session("x", [OPEN, *[READ] * 20, CLOSE], 2000))
    marked = [each for each in alert["explain"]["lines"] if each["odd"]]
    assert [each["text"] for each in marked] == [alert["text"]]


def test_features_beyond_what_is_usual_stand_out_the_furthest_first(full: Journal) -> None:
    records = alerts_of(full, session("flood", [OPEN, *[READ] * 120, CLOSE], 2000))
    (alert,) = [r for r in records if r["session"] == "flood"]
    features = {each["name"]: each for each in alert["explain"]["features"]}
    length = features["log_length"]
    assert length["value"] > length["high"] > length["usual"]
    assert set(alert["members"]) >= {"transformer", "isolation_forest", "ngram"}
    assert {each["name"] for each in alert["explain"]["members"]} == set(full.detector.summary().members)
    assert sum(each["p"] for each in alert["explain"]["expected"]) <= 1.0
    ordinary = full.detector.ask([line("new", OPEN, 2100)], None, explain=True)[0]["explain"]
    assert sum(each["p"] for each in ordinary["expected"]) <= 1.0


def test_a_rules_hit_says_which_rule_and_where_in_the_line() -> None:
    (alert,) = started().feed([ATTACK])
    shown = alert["explain"]["rules"]
    assert [rule["name"] for rule in shown] == [rule["name"] for rule in alert["rules"]]
    assert alert["what"].startswith(f"rule {shown[0]['name']} on ")
    assert "union select" in (shown[0]["before"] + shown[0]["text"] + shown[0]["after"]).lower().replace("%20", " ")
    assert shown[0]["end"] > shown[0]["start"] >= 0


def test_what_a_source_does_and_its_oddest_value_are_named_in_alerts_as_in_answers() -> None:
    journal = started()
    usual_line = b'198.51.100.%d - - [17/May/2015:10:04:%02d +0000] "GET /x?id=%d HTTP/1.1" 200 1 "-" "-"'
    failing = b'203.0.113.9 - - [17/May/2015:10:05:03 +0000] "GET /page-%d HTTP/1.1" 404 1 "-" "-"'
    journal.feed([usual_line % (n % 200, n // 10, n) for n in range(FEWEST_LINES)])
    journal.feed([failing % n for n in range(50)])
    (alert,) = journal.feed([ATTACK])
    (answer,) = journal.detector.ask([ATTACK], None, explain=True)
    assert alert["explain"]["value"] == answer["explain"]["value"]
    assert alert["explain"]["value"]["text"].startswith("1' UNION")
    assert alert["explain"]["source"] == answer["explain"]["source"]
    counters = {each["name"]: each["value"] for each in alert["explain"]["source"]}
    assert counters["failures a minute"] == 50.0, counters
    much_later = (failing % 7).replace(b":10:05", b":10:55")
    (again,) = journal.feed([ATTACK, much_later])
    assert {each["name"]: each["value"] for each in again["explain"]["source"]}["failures a minute"] == 1.0


def test_an_alert_from_the_future_does_not_keep_its_incident_open_for_ever() -> None:
    journal = started()
    attack = ATTACK.replace(b"/2015:", b"/2011:")
    (first,) = journal.feed([attack])
    (future,) = journal.feed([ATTACK])
    (later,) = journal.feed([attack.replace(b":10:05:03", b":10:45:03")])
    (_, next_day) = journal.feed([attack.replace(b"17/May", b"18/May")] * 20)[-2:]
    assert [each["incident"] for each in (first, future, later)] == [first["id"]] * 3
    assert next_day["incident"] != first["id"]
    assert journal.detector.incidents(9)[-1]["last_time"] < first["time"] + 86_400


def test_a_flood_of_one_cause_is_explained_at_its_beginning_only() -> None:
    journal = started()
    first = journal.feed([ATTACK] * 40)
    again = journal.feed([ATTACK] * 40)
    assert [("explain" in r) for r in first + again] == [True] * EXPLAINED_OF_AN_INCIDENT + [False] * 75
    assert [r["opens"] for r in first + again] == [True] + [False] * 79
    assert [r["incident_count"] for r in first + again] == list(range(1, 81))
    many = [
        ATTACK.replace(b"203.0.113.9", b"203.0.113.%d" % n).replace(b"/x?", b"/%s?" % (b"y/" * n)) for n in range(1, 40)
    ]
    burst = started().feed(many)
    assert sum("explain" in r for r in burst) <= EXPLAINED_OF_A_BATCH < len(burst)


def test_what_opens_an_incident_is_explained_before_what_only_joins_one() -> None:
    paths = [b"/%s?" % (b"y/" * n) for n in range(8)]
    burst = [ATTACK.replace(b"203.0.113.9", b"203.0.113.%d" % n).replace(b"/x?", paths[n]) for n in range(8)]
    records = started().feed([each for attack in burst for each in [attack] * EXPLAINED_OF_AN_INCIDENT])
    opening = [r for r in records if r["opens"]]
    assert len(opening) * EXPLAINED_OF_AN_INCIDENT == len(records) > EXPLAINED_OF_A_BATCH
    assert all("explain" in r for r in opening)
    assert sum("explain" in r for r in records) == EXPLAINED_OF_A_BATCH


def records_of(journal: Journal) -> list[dict[str, Any]]:
    odd = session("x", [OPEN, NEW, READ], 2000) + session("y", [OPEN, *[RETRY] * 9, CLOSE], 2000)
    hostile = [line("z", b'\xff\x00 \xe2\x80\xa8 "quoted" </script>', 2000), b"", b"\xff" * 3000]
    return alerts_of(journal, odd + hostile)


def test_alerts_are_json_whatever_the_bytes(journal: Journal) -> None:
    records = records_of(journal)
    assert len(records) >= 2
    for record in records:
        again = json.loads(json.dumps(record, allow_nan=False))
        assert again == record
        assert {"cause", "cause_kind", "what", "opens", "incident", "incident_count", "digest", "explain"} <= set(
            record
        )


def test_asking_why_changes_nothing(full: Journal) -> None:
    fed(full, session("open", [OPEN, READ], 3000))
    before = digest(full.detector.export())
    questions = [line("open", NEW, 3000), line("open", CLOSE, 3000), ATTACK, b"", b"\xff\x00"]
    answers = full.detector.ask(questions, "open", explain=True)
    assert digest(full.detector.export()) == before
    json.dumps(answers, allow_nan=False)
    assert [{k: v for k, v in a.items() if k != "explain"} for a in answers] == full.detector.ask(questions, "open")
    new, close = answers[0]["explain"], answers[1]["explain"]
    assert new["found"]["p"] < close["found"]["p"]
    quoted = [(each["text"].encode(), each["odd"]) for each in close["lines"]]
    assert quoted == [(text, False) for text in session("open", [OPEN, READ], 3000)] + [(questions[1], True)]


def test_before_there_is_a_model_only_rules_are_explained() -> None:
    (answer,) = started().detector.ask([ATTACK], None, explain=True)
    assert answer["is_anomaly"] and "expected" not in answer["explain"]
    assert [each["odd"] for each in answer["explain"]["lines"]] == [True]
