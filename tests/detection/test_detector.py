"""The detector as a whole, on the bundled real log: one state per journal, whatever happens in between."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detection.columns.state_columns import digest
from detection.detection_settings import SessionSettings
from detection.detector import Detector
from detection.frames import (
    FlushFrame,
    LinesFrame,
    ModelFrame,
    Segment,
    Sequenced,
    TickFrame,
    count_lines,
    decode_frame,
    encode_frame,
)
from detection.models.model import Model
from tests.detection.journal import RECEIVED, WARMUP, frames_of, segment, started


def test_lines_are_counted_and_each_has_a_verdict_in_order(lines: list[bytes]) -> None:
    journal = started()
    ids: list[str] = []
    for frame in frames_of(lines[:1000], [1, 300, 7]):
        ids += [record["id"] for record in journal.apply(frame).records() if not record["closed"]]
    assert ids == [str(number) for number in range(1, 1001)]
    assert journal.detector.summary().line == 1000


def test_a_record_holds_what_the_contract_names_and_is_json(lines: list[bytes], model: Model) -> None:
    journal = started()
    journal.apply(ModelFrame(1, "model", "sha"), model)
    records = list(journal.apply(LinesFrame(RECEIVED, (segment(lines[:400]),))).records())
    records += list(journal.apply(FlushFrame(RECEIVED)).records())
    wanted = {
        "id", "line", "first_line", "last_line", "time", "session", "closed", "template_id", "template",
        "verdict", "score", "p", "flagged", "members", "model_generation", "text",
    }  # fmt: skip
    for record in records:
        assert wanted <= record.keys()
        json.dumps(record, allow_nan=False)
        assert 0.0 <= record["score"] <= 1.0
        if record["flagged"]:
            assert record["score"] >= 0.5
    closed = [record for record in records if record["closed"]]
    assert closed and len({record["id"] for record in records}) == len(records)
    assert sum(record["last_line"] >= record["first_line"] for record in closed) == len(closed)


def test_a_session_is_flagged_by_its_members_once_at_most(lines: list[bytes], model: Model) -> None:
    journal = started()
    journal.apply(ModelFrame(1, "model", "sha"), model)
    flagged: dict[int, int] = {}
    for frame in frames_of(lines[WARMUP:6000], [150]):
        for record in journal.apply(frame).flagged():
            if not record["rules"]:
                flagged[record["first_line"]] = flagged.get(record["first_line"], 0) + 1
    assert flagged
    assert max(flagged.values()) == 1


def test_an_attack_is_flagged_from_the_first_line_on() -> None:
    journal = started()
    request = b"GET /x?id=1%27%20UNION%20SELECT%20password%20FROM%20users-- HTTP/1.1"
    line = b'203.0.113.9 - - [17/May/2015:10:05:03 +0000] "' + request + b'" 200 1 "-" "-"'
    (record,) = journal.apply(LinesFrame(RECEIVED, (segment([line]),))).flagged()
    assert record["verdict"] == "attack" and record["id"] == "1" and record["session"] == "203.0.113.9"
    assert record["rules"] and record["members"]["rules"]["score"] >= 0.5


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.integers(20, 400), min_size=1, max_size=4),
    st.integers(0, 700),
    st.integers(0, 700),
)
def test_caches_cold_or_warm_and_a_recovery_anywhere_give_the_same_state(
    lines: list[bytes], model: Model, sizes: list[int], cut: int, install: int
) -> None:
    """The same frames: in one go; exported and loaded at `cut`, which leaves every cache cold."""
    straight = started()
    exported: dict[str, object] = {}
    at = 0
    installed = False
    for frame in frames_of(lines[1000:1700], sizes):
        if at >= install and not installed:
            straight.apply(ModelFrame(1, "model", "sha"), model)
            installed = True
        if at >= cut and not exported:
            exported = dict(straight.detector.export())
        straight.apply(frame)
        at += count_lines(frame)
    straight.apply(TickFrame(RECEIVED + 1e6))
    straight.apply(FlushFrame(RECEIVED + 1e6))
    expected = digest(straight.detector.export())

    if exported:
        loaded = Detector.load(exported, model if b'"generation":1' in exported["model"] else None)  # type: ignore[operator,arg-type]
        assert digest(loaded.export()) == digest(exported)  # type: ignore[arg-type]
        for item in straight.items:
            if item.seq > loaded.seq:
                loaded.apply(replace(item, frame=decode_frame(encode_frame(item.frame))))
        assert digest(loaded.export()) == expected


def test_verdicts_after_a_recovery_are_those_of_the_process_that_went_on(lines: list[bytes], model: Model) -> None:
    journal = started()
    journal.apply(ModelFrame(1, "model", "sha"), model)
    for frame in frames_of(lines[:2000], [333]):
        journal.apply(frame)
    loaded = Detector.load(journal.detector.export(), model)
    item = Sequenced(journal.detector.seq + 1, 2400, LinesFrame(RECEIVED, (segment(lines[2000:2400]),)))
    assert list(loaded.apply(item).records()) == list(journal.detector.apply(item).records())


def test_asking_changes_nothing_and_answers_alike_after_a_recovery(lines: list[bytes], model: Model) -> None:
    journal = started()
    journal.apply(ModelFrame(1, "model", "sha"), model)
    for frame in frames_of(lines[:1500], [500]):
        journal.apply(frame)
    before = digest(journal.detector.export())
    questions = [*lines[4000:4100], b"", b"\xff\x00 not a log line", b"x" * 70_000]
    answers = journal.detector.ask(questions, None)
    assert digest(journal.detector.export()) == before
    assert Detector.load(journal.detector.export(), model).ask(questions, None) == answers
    assert [len(answers), {answer["transformer"]["context"] for answer in answers}] == [103, {"single_log"}]

    session = lines[1499].split()[0].decode()
    (answer,) = journal.detector.ask([lines[1499]], session)
    assert answer["transformer"]["context"] == "session"
    assert answer["transformer"]["sequence_length"] > 1


def test_a_line_of_no_known_template_is_asked_about_as_a_line_and_not_as_an_end(
    lines: list[bytes], model: Model
) -> None:
    journal = started()
    journal.apply(ModelFrame(1, "model", "sha"), model)
    journal.apply(LinesFrame(RECEIVED, (segment(lines[:500]),)))
    strange = b'192.0.2.9 - - [17/May/2015:10:05:03 +0000] "PROPFIND /never/seen/any/of/this.x HTTP/1.1" 207 1 "-" "-"'
    (answer,) = journal.detector.ask([strange], None, explain=True)
    assert answer["details"]["log_data"]["template_id"] == -1
    assert answer["explain"]["found"]["template"] == "<a template never seen>"
    assert {feature["name"]: feature["value"] for feature in answer["explain"]["features"]}.get("log_length") != 0.0
    assert answer["verdict"] == "novel"


def test_a_line_may_come_in_pieces_and_from_many_sources_at_once(lines: list[bytes]) -> None:
    whole, pieces = started(), started()
    data = b"".join(line + b"\n" for line in lines[:50])
    whole.apply(LinesFrame(RECEIVED, (Segment("s", "access", data, 50),)))
    for start in range(0, len(data), 97):
        part = data[start : start + 97]
        pieces.apply(LinesFrame(RECEIVED, (Segment("s", "access", part, part.count(b"\n")),)))
    assert pieces.detector.line == 50
    for name in ("sessions.serial", "history.templates", "recent.bytes"):
        np.testing.assert_array_equal(whole.detector.export()[name], pieces.detector.export()[name])

    mixed = started()
    verdicts = mixed.apply(
        LinesFrame(
            RECEIVED,
            (
                segment(lines[:2]),
                Segment("b-1", "plain", b"plain one\r\nhalf a ", 1),
                Segment("c-1", "json", b'{"msg":"hello","level":"error"}\n', 1),
                segment(lines[2:4]),
                Segment("b-1", "plain", b"line", 1, last=True),
            ),
        )
    )
    texts = [record["text"] for record in verdicts.records() if not record["closed"]]
    shown = [line.decode() for line in lines[:4]]
    assert texts == [*shown[:2], "plain one", '{"msg":"hello","level":"error"}', *shown[2:], "half a line"]
    assert mixed.detector.summary().unterminated_lines == 1
    assert [source.name for source in mixed.detector.living_sources()] == ["a-1", "c-1"]


def test_a_segment_that_miscounts_its_lines_is_refused() -> None:
    with pytest.raises(ValueError, match="says 2 lines and holds 1"):
        started().apply(LinesFrame(RECEIVED, (Segment("s", "plain", b"one\n", 2),)))


def test_lines_without_a_key_make_windows_of_fifty(lines: list[bytes]) -> None:
    journal = started()
    plain = [b"worker %d did its thing" % (i % 3) for i in range(120)]
    records = list(journal.apply(LinesFrame(RECEIVED, (segment(plain, kind="plain"),))).records())
    assert [r["last_line"] for r in records if r["closed"]] == [50, 100]
    records = list(journal.apply(LinesFrame(RECEIVED, (Segment("a-1", "plain", b"", 0, last=True),))).records())
    assert [(r["first_line"], r["last_line"], r["id"]) for r in records] == [(101, 120, "120.1")]


def test_a_users_key_makes_the_sessions() -> None:
    journal = started(session=SessionSettings(key=r"(blk_-?\d+)"))
    hdfs = [b"081109 203530 147 INFO dfs.DataNode: Receiving block blk_%d src: /10.0.0.1" % (i % 4) for i in range(8)]
    records = list(journal.apply(LinesFrame(RECEIVED, (segment(hdfs, kind="timestamped"),))).records())
    assert [record["session"] for record in records] == ["blk_0", "blk_1", "blk_2", "blk_3"] * 2


def test_silence_ends_sessions_and_numbers_of_closings_never_repeat(lines: list[bytes]) -> None:
    journal = started()
    journal.apply(LinesFrame(RECEIVED, (segment(lines[:20]),)))
    open_sessions = journal.detector.summary().sessions_open
    assert open_sessions > 1
    assert list(journal.apply(TickFrame(RECEIVED + 1)).records()) == []
    ids = [r["id"] for r in journal.apply(TickFrame(RECEIVED + 3600)).records()]
    assert ids == [f"20.{k}" for k in range(1, open_sessions + 1)]
    journal.apply(LinesFrame(RECEIVED + 3601, (Segment("b-1", "access", b"", 0),)))
    assert journal.detector.summary().sessions_open == 0


def test_a_withdrawn_model_leaves_the_rules(lines: list[bytes], model: Model) -> None:
    journal = started()
    journal.apply(ModelFrame(1, "model", "sha"), model)
    assert journal.detector.summary().generation == 1
    journal.apply(ModelFrame(1, "", ""))
    records = list(journal.apply(LinesFrame(RECEIVED, (segment(lines[:50]),))).records())
    assert journal.detector.summary().generation == 0
    assert {record["p"] for record in records} == {None}
    assert journal.detector.training_set().generation == 2


def test_a_hole_in_the_line_numbers_is_counted_as_lost(lines: list[bytes]) -> None:
    detector = started().detector
    detector.apply(Sequenced(5, 110, LinesFrame(RECEIVED, (segment(lines[:10]),))))
    assert detector.summary().lost_lines == 100
    assert detector.line == 110
    with pytest.raises(ValueError, match="after frame 5"):
        detector.apply(Sequenced(5, 120, LinesFrame(RECEIVED, (segment(lines[:10]),))))


LATER = RECEIVED + 10 * 365 * 86_400
UNTIMED = [b"worker %d has nothing to do" % (number % 7) for number in range(100)]


def test_an_old_file_is_judged_by_its_own_times_when_lines_without_a_time_came_before(
    lines: list[bytes], model: Model
) -> None:
    alone, behind = started(), started()
    for journal in (alone, behind):
        journal.apply(ModelFrame(1, "model", "sha"), model)
    behind.apply(LinesFrame(LATER, (segment(UNTIMED, "b-1", "plain"),)))
    assert behind.detector.summary().log_time == LATER, "there is no other time yet"
    behind.apply(FlushFrame(LATER))
    came = behind.detector.summary()
    flagged = [[record["text"] for record in journal.feed(lines[:2000])] for journal in (alone, behind)]
    there, here = alone.detector.summary(), behind.detector.summary()
    assert flagged[0] == flagged[1]
    assert here.log_time == there.log_time
    assert here.sessions_closed - came.sessions_closed == there.sessions_closed > 100
    assert here.sessions_open == there.sessions_open


def test_lines_without_a_time_move_the_clock_by_the_time_between_them_once_the_log_has_times(
    lines: list[bytes],
) -> None:
    journal = started()
    journal.feed(lines[:100])
    began = journal.detector.summary().log_time
    assert began is not None
    for seconds in (50.0, 100.0):
        journal.apply(LinesFrame(RECEIVED + seconds, (segment(UNTIMED, "b-1", "plain"),)))
    assert journal.detector.summary().log_time == began + 100.0
    assert journal.detector.summary().sessions_open == 1, "theirs; the others have ended"


hostile = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\0" * 50, b"\xff\xfe", b'{"a":' * 50, b"GET / HTTP/1.1", b"<34>1 - - - - - -", b"\r"]),
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(hostile, min_size=1, max_size=30),
    st.sampled_from(["access", "syslog", "json", "logfmt", "container", "timestamped", "plain"]),
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12),
)
def test_no_bytes_stop_it(model: Model, texts: list[bytes], kind: str, received: float) -> None:
    journal = started()
    journal.apply(ModelFrame(1, "model", "sha"), model)
    data = b"".join(text.replace(b"\n", b"") + b"\n" for text in texts)
    verdicts = journal.apply(LinesFrame(received, (Segment("s", kind, data, data.count(b"\n")),)))
    for record in verdicts.records():
        json.dumps(record, allow_nan=False)
    journal.apply(TickFrame(received + 100))
    assert math.isfinite(journal.detector.summary().alpha)
    again = Detector.load(journal.detector.export(), model)
    assert digest(again.export()) == digest(journal.detector.export())
