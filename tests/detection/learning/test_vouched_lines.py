"""Vouched lines are learned from and have no other effect."""

from typing import Any

import numpy as np
import pytest

from detection.columns.state_columns import digest
from detection.detection_settings import LearningSettings
from detection.detector import Detector
from detection.frames import ModelFrame, Segment, SettingsFrame, VouchedFrame, decode_frame, encode_frame
from detection.learning.training_run import train
from detection.verdicts.verdict_records import Verdicts
from tests.detection.journal import ATTACK, RECEIVED, Journal, replace_settings, started
from tests.detection.simple import KEY, NEW, OPEN, alerts_of, fed, finished, learn, said, session, simple, taught, usual


def vouch(
    journal: Journal, lines: list[bytes], *, done: bool = True, batch: int = 700, kind: str = "timestamped"
) -> None:
    """Vouch for `lines` in frames of `batch`."""
    starts = range(0, len(lines), batch)
    for start in starts:
        data = b"".join(each + b"\n" for each in lines[start : start + batch])
        last = done and start + batch >= len(lines)
        verdicts = journal.apply(vouched(data, last, kind=kind))
        assert isinstance(verdicts, Verdicts) and (verdicts.lines, verdicts.batches) == (0, ())


def vouched(data: bytes, last: bool, *, kind: str = "timestamped") -> VouchedFrame:
    return VouchedFrame(RECEIVED, Segment("file", kind, data, data.count(b"\n"), last=last), last)


def live(journal: Journal) -> dict[str, Any]:
    """What the stream's own state is made of."""
    parts = ("sources.", "clock.", "sessions.", "origins.", "incidents.", "recent.")
    state = journal.detector.export()
    return {name: value for name, value in state.items() if name.startswith(parts)} | {"line": state["line"]}


def test_vouched_lines_count_for_nothing_and_are_learned_from_when_the_file_ends() -> None:
    journal = simple()
    vouch(journal, usual(200, 1), done=False)
    summary = journal.detector.summary()
    assert (summary.line, summary.flagged, summary.sessions_closed, summary.sessions_open) == (0, 0, 0, 0)
    assert summary.vouched_lines == len(usual(200, 1)) and not summary.training_due
    vouch(journal, usual(20, 2, prefix="t", at=200))
    summary = journal.detector.summary()
    assert (summary.vouched_sessions, summary.history_sessions) == (220, 220)
    assert summary.training_due, "at once, however few lines there were"
    data = journal.detector.training_set()
    assert data.vouched.all() and data.starts.all() and data.ends.all()
    assert len(train(data, progress=lambda step: None).calibration["ensemble"]) == 220


def test_a_model_or_a_refusal_ends_the_need_to_train() -> None:
    journal = simple()
    vouch(journal, usual(200, 1))
    learn(journal)
    assert not journal.detector.summary().training_due


def test_even_the_wildest_vouched_line_raises_nothing_and_a_live_one_does() -> None:
    journal = taught(300)
    wild = session("x", [OPEN, NEW, OPEN], 5000)
    vouch(journal, wild)
    assert journal.detector.summary().incidents_opened == 0
    assert alerts_of(journal, wild) != []


def test_sessions_in_which_a_rule_matched_are_counted_and_never_learned_from(lines: list[bytes]) -> None:
    journal = started()
    vouch(journal, [*lines[:50], ATTACK, ATTACK, *lines[50:100]], kind="access")
    summary = journal.detector.summary()
    assert (summary.vouched_lines, summary.vouched_rule_hits, summary.rule_hits) == (102, 2, 0)
    data = journal.detector.training_set()
    assert data.tainted.sum() == 1 and data.vouched.all()
    (tainted,) = np.flatnonzero(data.tainted)
    assert data.offsets[tainted + 1] - data.offsets[tainted] == 2


def test_a_stream_beside_it_is_not_touched() -> None:
    """Neither its clock nor its sessions: the file is of a month later, and of the same keys."""
    beside, alone = taught(300), taught(300)
    for journal in (beside, alone):
        fed(journal, usual(20, 3, at=1000), batch=7)
    before = live(beside)
    vouch(beside, usual(100, 4, at=30 * 86_400))
    assert digest(live(beside)) == digest(before)
    more = usual(30, 5, at=1030)
    ours, theirs = (said(journal, more) for journal in (beside, alone))
    assert [(r["id"], r["p"], r["session"], r["verdict"]) for r in ours] == [
        (r["id"], r["p"], r["session"], r["verdict"]) for r in theirs
    ]


def test_an_export_in_the_middle_of_a_vouched_line_continues_after_a_load() -> None:
    data = b"".join(each + b"\n" for each in usual(150, 1))
    half = len(data) // 2
    while data[half - 1 : half] == b"\n":
        half += 1
    frames = [vouched(data[:half], False), vouched(data[half:], True)]
    straight = simple()
    straight.apply(frames[0])
    loaded = Journal(Detector.load(straight.detector.export(), None))
    assert digest(loaded.detector.export()) == digest(straight.detector.export())
    for journal in (straight, loaded):
        journal.apply(decode_frame(encode_frame(frames[1])))
    assert digest(loaded.detector.export()) == digest(straight.detector.export())
    assert loaded.detector.summary().vouched_sessions == 150
    whole = simple()
    vouch(whole, usual(150, 1))
    for name in ("tokens", "offsets", "starts", "ends", "times"):
        ours, theirs = (getattr(each.detector.training_set(), name) for each in (loaded, whole))
        np.testing.assert_array_equal(ours, theirs)


def test_two_files_one_after_the_other_have_sessions_of_their_own() -> None:
    journal = simple()
    for seed in (1, 2):
        vouch(journal, usual(50, seed))  # the same keys, the same times
    data = journal.detector.training_set()
    assert len(data.starts) == 100 == journal.detector.summary().vouched_sessions
    assert len(np.unique(data.keys)) == 50


@pytest.mark.parametrize("early", [0, 100])
def test_vouched_lines_count_towards_the_warm_up(early: int) -> None:
    journal = simple(learning=LearningSettings(early_lines=early, warmup_lines=600), session=KEY)
    vouch(journal, usual(100, 1))
    assert journal.detector.training_set().full == (journal.detector.summary().vouched_lines >= 600)
    vouch(journal, usual(100, 2))
    assert journal.detector.training_set().full


def learned_later(retrain_lines: int) -> Journal:
    """As `taught`, its model taken for a full one, then 80 sessions more."""
    journal = taught(300)
    journal.detector._parts.schedule.fulfilled = True
    learning = LearningSettings(warmup_lines=10**6, retrain_lines=retrain_lines)
    journal.apply(SettingsFrame(replace_settings(session=KEY, learning=learning), ()))
    fed(journal, usual(80, 3, prefix="later", at=1000))
    finished(journal)
    return journal


@pytest.mark.parametrize(("retrain_lines", "sessions"), [(0, 300 + 50), (10**6, 300 + 80 + 50)])
def test_with_no_retraining_a_vouched_file_adds_to_what_was_learned_and_the_stream_does_not(
    retrain_lines: int, sessions: int
) -> None:
    journal = learned_later(retrain_lines)
    vouch(journal, usual(50, 4, prefix="v"))
    data = journal.detector.training_set()
    assert (len(data.starts), int(data.vouched.sum())) == (sessions, 50)


def test_with_no_retraining_the_stream_is_learned_from_again_only_when_no_model_is_left() -> None:
    journal = learned_later(0)
    assert journal.detector.summary().history_sessions == 300 and not journal.detector.summary().training_due
    journal.apply(ModelFrame(1, "", ""))
    assert journal.detector.summary().training_due and journal.detector.training_set().full
    fed(journal, usual(80, 4, prefix="again", at=2000))
    finished(journal)
    assert journal.detector.summary().history_sessions == 380
