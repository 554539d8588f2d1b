"""Going back to what a snapshot knew, and leaving out a frame that cannot be applied."""

from dataclasses import replace

import numpy as np
import pytest

from detection.columns.state_columns import digest
from detection.detector import Detector
from detection.frames import (
    FlushFrame,
    Knowledge,
    LinesFrame,
    ModelFrame,
    RestoreFrame,
    Segment,
    Sequenced,
    SkipFrame,
    TickFrame,
    count_lines,
    decode_frame,
    encode_frame,
)
from detection.models.model import Model
from tests.detection.journal import RECEIVED, Journal, frames_of, segment, started

Lines = list[bytes]
RESTORE = RestoreFrame("snapshot-00000000000000000004.msgpack", "ab" * 32)


def restore(journal: Journal, knowledge: Knowledge | None) -> list[dict[str, object]]:
    item = Sequenced(journal.detector.seq + 1, journal.detector.line, RESTORE, knowledge=knowledge)
    journal.items.append(item)
    return list(journal.detector.apply(item).records())


@pytest.fixture
def gone_on(lines: Lines, model: Model) -> tuple[Journal, Knowledge, list[dict[str, object]]]:
    """A journal that learned for a while, what it knew then, its answers then; it has learned other things since."""
    journal = started()
    journal.apply(ModelFrame(1, "model-1", "sha"), model)
    for frame in frames_of(lines[:2000], [500]):
        journal.apply(frame)
    then = Knowledge(journal.detector.export(), model)
    answers = journal.detector.ask(lines[6000:6100], None)
    journal.apply(ModelFrame(2, "", ""))
    other = [b'%d.9.9.9 - - [17/May/2015:11:05:03 +0000] "GET /other/%d HTTP/1.1" 200 1 "-" "-"' % (n, n % 3)
             for n in range(1, 200)]  # fmt: skip
    journal.apply(LinesFrame(RECEIVED, (segment(other), Segment("b-1", "access", b"half a line", 0))))
    return journal, then, answers


def test_what_was_known_is_known_again_and_numbers_go_on(
    lines: Lines,
    gone_on: tuple[Journal, Knowledge, list[dict[str, object]]],
) -> None:
    journal, then, answers = gone_on
    before = journal.detector.summary()
    assert without_place(journal.detector.ask(lines[6000:6100], None)) != without_place(answers)
    closed = restore(journal, then)
    after = journal.detector.summary()

    assert without_place(journal.detector.ask(lines[6000:6100], None)) == without_place(answers)
    assert (after.seq, after.line, after.restored) == (before.seq + 1, before.line, before.seq + 1)
    assert len(closed) == before.sessions_open > 0 == after.sessions_open
    assert all(record["closed"] for record in closed)
    assert [record["id"] for record in closed] == [f"{before.line}.{k}" for k in range(1, len(closed) + 1)]
    for name in ("flagged", "rule_hits", "sessions_closed", "lost_lines", "log_time", "templates_created"):
        assert getattr(after, name) >= getattr(before, name), name
    assert [source.name for source in journal.detector.living_sources()] == ["a-1", "b-1"]
    assert (after.generation, journal.detector.training_set().generation) == (1, 3)
    assert after.lines_since_training == 2000, "what came since is not learned from"
    then_rows = then.state["history.templates"]
    assert isinstance(then_rows, np.ndarray)
    np.testing.assert_array_equal(journal.detector.export()["history.templates"], then_rows)


def without_place(answers: list[dict[str, object]]) -> list[dict[str, object]]:
    """Less the number of lines that were known."""
    return [{**answer, "details": None} for answer in answers]


def test_a_new_template_after_a_restore_has_an_id_that_was_never_given(
    gone_on: tuple[Journal, Knowledge, list[dict[str, object]]],
) -> None:
    journal, then, _ = gone_on
    given = journal.detector.summary().templates_created
    restore(journal, then)
    line = b'10.1.1.1 - - [17/May/2015:12:05:03 +0000] "GET /brand/new/page HTTP/1.1" 200 1 "-" "-"'
    (record,) = journal.apply(LinesFrame(RECEIVED, (segment([line], source="c-1"),))).records()
    assert record["template_id"] == given + 1


def test_a_replay_of_a_restore_comes_to_the_same_state(
    lines: Lines,
    model: Model,
    gone_on: tuple[Journal, Knowledge, list[dict[str, object]]],
) -> None:
    journal, then, _ = gone_on
    exported = journal.detector.export()
    restore(journal, then)
    for frame in frames_of(lines[3000:3600], [250]):
        journal.apply(frame)
    journal.apply(TickFrame(RECEIVED + 1e6))
    loaded = Detector.load(exported, None)
    for item in journal.items:
        if item.seq > loaded.seq:
            loaded.apply(replace(item, frame=decode_frame(encode_frame(item.frame))))
    assert digest(loaded.export()) == digest(journal.detector.export())
    assert loaded.summary().restored


def test_a_restore_whose_snapshot_is_lost_only_ends_the_sessions(
    gone_on: tuple[Journal, Knowledge, list[dict[str, object]]],
) -> None:
    journal, _, _ = gone_on
    before = journal.detector.summary()
    assert restore(journal, None)
    after = journal.detector.summary()
    assert (after.templates, after.generation, after.sessions_open) == (before.templates, 0, 0)


def test_a_frame_that_is_left_out_costs_its_own_lines_and_no_others() -> None:
    def item(seq: int, line: int, data: bytes, last: bool = False) -> Sequenced:
        ended = int(last and not data.endswith(b"\n"))
        frame = LinesFrame(RECEIVED, (Segment("s", "plain", data, data.count(b"\n") + ended, last=last),))
        return Sequenced(seq, line, frame)

    detector = started().detector
    detector.apply(item(2, 1, b"one\ntwo "))
    poison = item(3, 3, b"and a half\nthree\nfo")
    detector.skip(poison.seq, poison.line, poison.frame)
    assert (detector.seq, detector.line, detector.summary().lost_lines) == (3, 3, 2)
    records = [r for r in detector.apply(item(4, 4, b"ur\nfi")).records() if not r["closed"]]
    assert [(r["id"], r["text"]) for r in records] == [("4", "four")], "begun in the frame that was left out"
    records = [r for r in detector.apply(item(5, 5, b"", last=True)).records() if not r["closed"]]
    assert [(r["id"], r["text"]) for r in records] == [("5", "fi")]
    assert detector.apply(Sequenced(6, 5, SkipFrame(3))).lines == 0
    assert detector.summary().lost_lines == 2


def test_frames_without_lines_and_bytes_that_are_no_frame_are_left_out_too() -> None:
    detector = started().detector
    detector.skip(2, 0, FlushFrame(RECEIVED))
    detector.skip(3, 7, None)
    assert (detector.seq, detector.line, detector.summary().lost_lines) == (3, 7, 7)
    assert count_lines(SkipFrame(3)) == 0
    assert decode_frame(encode_frame(SkipFrame(3))) == SkipFrame(3)
    assert decode_frame(encode_frame(RESTORE)) == RESTORE
