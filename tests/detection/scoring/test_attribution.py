"""What a session is flagged for, once, and what makes it not be: an answer, or the stream's own share."""

from collections.abc import Iterator

import numpy as np
import pytest

from detection.causes import known_causes
from detection.causes.fingerprints import new_causes
from detection.columns.state_columns import State
from detection.detection_settings import AlarmSettings, LearningSettings
from detection.detector import Detector
from detection.frames import Segment, SettingsFrame, VouchedFrame
from detection.models.model import Model
from detection.scoring.attribution import Reasons
from tests.detection.journal import Journal, replace_settings
from tests.detection.simple import (
    CLOSE,
    KEY,
    NEW,
    OPEN,
    READ,
    RESTARTED,
    RETRY,
    WRITE,
    alerts_of,
    answer,
    fed,
    finished,
    line,
    said,
    session,
    usual,
)


def deployed(count: int, keys: int, at: float) -> Iterator[list[bytes]]:
    """Sessions of `keys` keys in turn, 100 seconds apart, that all show a line nobody knew."""
    for number in range(count):
        yield session(f"d{number % keys}", [OPEN, NEW, CLOSE], at + number * 100)


def test_a_session_is_flagged_where_it_gets_strange_and_never_again(journal: Journal) -> None:
    texts = [OPEN, READ, NEW, *[WRITE, OPEN] * 8, NEW, CLOSE]
    records = [r for text in session("x", texts, 2000) for r in said(journal, [text])]
    flagged = [r["line"] for r in records if r["flagged"]] + [r["line"] for r in finished(journal)]
    assert len(flagged) == 1
    verdicts = [r["verdict"] for r in records]
    at = [r["line"] for r in records].index(flagged[0])
    assert set(verdicts[at:]) == {verdicts[at]} != {"normal"}, "what it was flagged as it stays"


def test_a_session_with_a_line_nobody_knows_is_novel_and_one_of_a_new_shape_is_an_anomaly(journal: Journal) -> None:
    (novel,) = alerts_of(journal, session("x", [OPEN, NEW, CLOSE], 2000))
    assert (novel["verdict"], novel["cause_kind"], novel["closed"]) == ("novel", "new", False)
    assert novel["what"] == f"new template: {novel['template']}"
    (shape,) = alerts_of(journal, session("y", [OPEN, *[RETRY] * 5, CLOSE], 2000))
    assert (shape["verdict"], shape["cause_kind"]) == ("anomaly", "shape")


def test_a_cause_called_normal_explains_a_p_and_only_a_smaller_one_is_a_reason_to_flag(journal: Journal) -> None:
    journal.apply(SettingsFrame(replace_settings(session=KEY, alarms=AlarmSettings(alpha=0.01)), ()))
    odd = [OPEN, *[RETRY] * 6, CLOSE]  # strange at the second retry, and more so by the count of them
    (open_still,) = alerts_of(journal, session("x1", odd, 2000))
    assert open_still["cause_kind"] == "shape" and not open_still["closed"]
    answer(journal, open_still, "normal")
    assert fed(journal, session("x2", odd, 2100)) == []
    (at_its_end,) = finished(journal)
    assert at_its_end["p"] < open_still["p"] and at_its_end["cause"] != open_still["cause"]
    answer(journal, at_its_end, "normal")
    assert alerts_of(journal, session("x3", odd, 2200)) == []


def test_what_nobody_knew_is_admitted_once_25_sessions_of_several_sources_show_it(journal: Journal) -> None:
    flagged = [bool(fed(journal, lines)) for lines in deployed(40, 8, 2000)]
    # The 25th itself may still be found strange when it ends: its line was judged when nobody knew it.
    assert flagged[0] and flagged[23] and not flagged[24] and not any(flagged[26:])
    assert journal.detector.summary().admitted >= 1


@pytest.mark.parametrize("kind", ["new", "shape"])
def test_what_comes_and_is_admitted_within_one_batch_is_raised_by_the_first_that_shows_it(
    journal: Journal, kind: str
) -> None:
    texts = [OPEN, NEW, CLOSE] if kind == "new" else [OPEN, *[RETRY] * 6, CLOSE]
    lines = [each for number in range(60) for each in session(f"x{number}", texts, 2000)]
    alerts = fed(journal, lines, batch=len(lines))
    assert journal.detector.summary().admitted >= 1 and len(alerts) == len({each["cause"] for each in alerts})
    assert [(each["cause_kind"], each["session"], each["opens"]) for each in alerts] == [(kind, "x0", True)]
    assert fed(journal, [each.replace(b"id=x", b"id=y") for each in lines], batch=len(lines)) == []


def test_what_was_called_normal_before_it_was_that_frequent_is_not_raised_when_it_is(journal: Journal) -> None:
    (alert,) = alerts_of(journal, session("x", [OPEN, NEW, CLOSE], 2000))
    answer(journal, alert, "normal")
    fed(journal, usual(1100, 3, at=2100))  # by now it is forgotten that it came
    lines = [each for number in range(60) for each in session(f"z{number}", [OPEN, NEW, CLOSE], 9000)]
    assert [each for each in fed(journal, lines, batch=len(lines)) if each["cause"] == alert["cause"]] == []


def told(journal: Journal, retrain_lines: int) -> Journal:
    """As `journal` after its first full training: the quick members stand for all of them."""
    learning = LearningSettings(warmup_lines=1000, retrain_lines=retrain_lines)
    settings = replace_settings(session=KEY, alarms=AlarmSettings(alpha=0.001), learning=learning)
    journal.apply(SettingsFrame(settings, ()))
    journal.detector._parts.schedule.fulfilled = True
    return journal


@pytest.mark.parametrize("complete", [True, False], ids=["in force", "rolled back from"])
def test_without_retraining_nothing_is_admitted_and_no_training_due_however_much_comes(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, complete: bool
) -> None:
    monkeypatch.setattr(Model, "complete", complete)
    told(journal, 0)
    assert all(fed(journal, lines) for lines in deployed(60, 8, 2000))
    fed(journal, usual(2000, 3, at=9000))
    summary = journal.detector.summary()
    assert (summary.admitted, summary.training_due, summary.training_urgent) == (0, False, False)


def test_with_retraining_the_same_is_admitted_and_a_training_due(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "complete", True)
    told(journal, 100)
    assert not all(fed(journal, lines) for lines in deployed(60, 8, 2000))
    fed(journal, usual(2000, 3, at=9000))
    summary = journal.detector.summary()
    assert summary.admitted >= 1 and summary.training_due and summary.training_urgent


def test_without_retraining_the_operator_is_heard_all_the_same(journal: Journal) -> None:
    told(journal, 0)
    (alert,) = alerts_of(journal, session("x", [OPEN, NEW, CLOSE], 2000))
    answer(journal, alert, "normal")
    assert alerts_of(journal, session("y", [OPEN, NEW, CLOSE], 2100)) == []
    data = b"".join(line + b"\n" for line in usual(5, 4))
    journal.apply(VouchedFrame(2000.0, Segment("file", "timestamped", data, data.count(b"\n"), last=True), True))
    assert journal.detector.summary().training_due


def test_one_source_does_not_get_itself_admitted(journal: Journal) -> None:
    flagged = [bool(fed(journal, lines)) for lines in deployed(60, 1, 2000)]
    assert all(flagged)
    assert journal.detector.summary().admitted == 0


def test_without_asking_for_several_sources_one_would_be(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_causes, "ADMITTED_KEYS", 1)
    flagged = [bool(fed(journal, lines)) for lines in deployed(60, 1, 2000)]
    assert flagged[0] and not any(flagged[26:])


@pytest.mark.parametrize("shape", [[OPEN, *[RETRY] * 6, CLOSE], [OPEN, NEW, CLOSE]], ids=["at the end", "on the way"])
def test_a_shape_that_one_source_finishes_again_and_again_is_not_admitted_either(
    journal: Journal, shape: list[bytes]
) -> None:
    """All in one frame with many sessions of others: each shape must be told with the key of its own session."""
    lines = usual(200, 5, prefix="before", at=1800)
    for number in range(60):
        lines += session("x", shape, 2000 + number * 100)
        lines += usual(3, number, prefix=f"u{number}-", at=2000 + number * 100)
    flagged = alerts_of(journal, lines, batch=4000)
    assert len([r for r in flagged if r["session"] == "x"]) == 60
    assert journal.detector.summary().admitted == 0


def test_the_same_shape_of_many_sources_is_admitted(journal: Journal) -> None:
    shape = [OPEN, *[RETRY] * 6, CLOSE]
    flagged = [len(alerts_of(journal, session(f"x{number}", shape, 2000 + number * 100))) for number in range(40)]
    assert flagged[0] == 1 and flagged[25:] == [0] * 15


def test_a_template_admitted_since_is_not_held_against_a_session_nor_is_what_follows_it(journal: Journal) -> None:
    lines = session("x", [OPEN, NEW, READ], 9000)
    before = said(journal, lines)[-1]["p"]
    finished(journal)
    for each in deployed(30, 8, 10_000):
        fed(journal, each)
    finished(journal)
    after = said(journal, session("y", [OPEN, NEW, READ], 19_000))[-1]["p"]
    plain = said(journal, session("z", [OPEN], 19_000))[-1]["p"]
    assert before < 0.01 and after == plain


def test_an_anomaly_among_sessions_of_a_deploy_is_still_found(journal: Journal) -> None:
    for each in deployed(30, 8, 2000):
        fed(journal, each)
    odd = session("bad", [OPEN, NEW, READ, CLOSE, OPEN, CLOSE, WRITE, OPEN], 9000)
    assert [r["session"] for r in alerts_of(journal, odd)] == ["bad"]


def test_a_session_reports_a_line_that_nobody_knew_once_however_often_it_comes(journal: Journal) -> None:
    for number in range(10):
        fed(journal, [line("same", NEW, 2000 + number)] * 3)
    reported = np.asarray(journal.detector.export()["known.ring.cause"])
    (template,) = {r["template_id"] for r in said(journal, [line("other", NEW, 2010)]) if not r["closed"]}
    assert np.count_nonzero(reported == new_causes(np.array([template]))[0]) == 1


def test_a_batch_in_which_nothing_is_asked_has_no_reasons_and_sessions_stay_as_novel_as_they_were() -> None:
    reasons = Reasons.none(3, np.array([0, 7], dtype=np.int32))
    assert not (reasons.alert_cause.any() or reasons.session_cause.any() or reasons.kind.any() or reasons.verdict.any())
    assert reasons.novel.tolist() == [0, 7]


def test_what_is_strange_after_a_line_nobody_knew_is_named_after_that_line(
    used_to_novelty: tuple[State, Model],
) -> None:
    journal = Journal(Detector.load(*used_to_novelty))
    (alert,) = alerts_of(journal, session("x", [OPEN, RESTARTED, READ, READ, READ, OPEN], 2000))
    assert not alert["text"].endswith(RESTARTED.decode())
    assert (alert["cause_kind"], alert["verdict"]) == ("new", "novel")
    assert alert["what"].endswith(RESTARTED.decode())
    (known,) = alerts_of(journal, session("y", [OPEN, READ, READ, READ, OPEN], 2100))
    assert (known["cause_kind"], known["verdict"]) == ("shape", "anomaly")


def test_a_session_under_way_when_its_new_line_is_admitted_is_not_flagged_for_what_followed_it(
    used_to_novelty: tuple[State, Model],
) -> None:
    journal = Journal(Detector.load(*used_to_novelty))
    assert fed(journal, session("x", [OPEN, RESTARTED], 2000)) == []
    for number in range(25):
        fed(journal, session(f"d{number}", [OPEN, RESTARTED], 2000))
    assert journal.detector.summary().admitted == 1
    odd = [READ, READ, READ, OPEN]
    assert fed(journal, session("x", odd, 2001)) == []
    begun_later = fed(journal, session("y", [OPEN, RESTARTED, *odd], 2002))
    assert [record["cause_kind"] for record in begun_later] == ["shape"], "it does not hide behind the new line"
