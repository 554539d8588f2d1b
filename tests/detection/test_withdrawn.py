"""Members that do not judge any more: what the others come to, and what open sessions carry."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detection.columns.state_columns import State, columns_under, digest
from detection.detector import Detector
from detection.frames import Frame, LinesFrame, ModelFrame, ReturnedFrame, Segment, Sequenced, TickFrame
from detection.members.counts import Counts
from detection.members.failing_members import LONGEST_REASON, MemberError, blamed_on
from detection.members.fitted_member_view import view_of_whole_sessions
from detection.members.ngram import Ngram
from detection.members.registry import NAMES
from detection.models.model import Model
from detection.scoring.ensemble import Ensemble
from detection.verdicts.verdict_records import Verdicts
from tests.detection.journal import RECEIVED, Journal
from tests.detection.simple import CLOSE, NEW, OPEN, READ, fed, learned_by, session, simple, usual
from tests.detection.streams import habits, standing, stream

NGRAM = NAMES.index("ngram")


def applied(journal: Journal, frame: Frame, *, lines: int = 0, without: dict[str, str]) -> Verdicts:
    detector = journal.detector
    return detector.apply(Sequenced(detector.seq + 1, detector.line + lines, frame, without=without))


def frame_of(lines: list[bytes]) -> LinesFrame:
    return LinesFrame(RECEIVED, (Segment("a-1", "timestamped", b"".join(line + b"\n" for line in lines), len(lines)),))


@pytest.mark.parametrize(
    "out", [{"transformer"}, {"ngram"}, {"counts"}, {"values", "sources"}, {"ngram", "transformer"}]
)
def test_without_a_member_p_is_still_that_of_a_chance_and_never_that_of_a_smaller_one(
    habitual: Model, out: set[str]
) -> None:
    """A session as normal as those learned from has a p below a level no more often than the level says, nearly."""
    data = stream(habits(2000, 77))
    final = view_of_whole_sessions(data, len(NAMES)).final_rows()
    reached = standing(habitual, data).reached[final]
    whole = Ensemble(habitual)
    fewer = whole.without(out | {"isolation_forest"})
    judged = fewer.judge(reached)
    assert np.isnan(judged.members[:, [NAMES.index(name) for name in out]]).all()
    for level in (0.05, 0.01):
        assert np.mean(judged.p < level) <= 1.5 * level + 0.002
    by_theory = np.exp(-judged.strangeness * math.log(10))
    assert (judged.p >= by_theory).all()
    assert (judged.p >= whole._combined.p(judged.strangeness)).all()
    strange = np.full((1, len(NAMES)), 50.0)
    assert fewer.judge(strange).p[0] < 0.01, "and what is strange to those that are left is still told"


def test_an_ensemble_of_all_members_judges_by_its_ring_alone(habitual: Model) -> None:
    reached = np.full((1, len(NAMES)), 3.0)
    whole = Ensemble(habitual)
    assert whole.judge(reached).p == whole._combined.p(whole.judge(reached).strangeness)
    assert whole.without({"a name of no member"}).judge(reached).p == whole.judge(reached).p


def test_the_forest_does_not_judge_without_one_that_it_looks_at_and_goes_on_without_others(habitual: Model) -> None:
    for name, withdrawn in (("counts", {"counts", "isolation_forest"}), ("sources", {"sources"})):
        journal = simple()
        fed(journal, usual(1, 1))
        journal.apply(ModelFrame(1, "model", "sha"), habitual)
        applied(journal, TickFrame(RECEIVED), without={name: "planted"})
        detector = journal.detector
        found = detector.summary().withdrawn
        assert {each.member for each in found} == withdrawn and {each.seq for each in found} == {detector.seq}
        assert set(detector.summary().members) == set(habitual.calibration) - {"ensemble"} - withdrawn
        again = Detector.load(detector.export(), habitual)
        assert again.summary() == detector.summary()


def test_open_sessions_carry_of_it_what_they_carry_of_one_that_is_not_ready(journal: Journal) -> None:
    fed(journal, session("open", [OPEN, NEW, READ], 2000.0))
    before = sessions(journal)
    assert (before["reached"][:, NGRAM] > 0).all()
    applied(journal, TickFrame(RECEIVED), without={"ngram": "planted"})
    after = sessions(journal)
    assert (after["reached"][:, NGRAM] == 0).all()
    ensemble = journal.detector._ensemble
    assert ensemble is not None and "ngram" not in ensemble.members
    assert (after["p"] == ensemble.judge(after["reached"]).p).all()
    assert (after["verdict"] == before["verdict"]).all(), "what was flagged stays flagged"


def sessions(journal: Journal) -> dict[str, NDArray[Any]]:
    columns = columns_under("sessions", journal.detector.export())
    return {name: column for name, column in columns.items() if isinstance(column, np.ndarray)}


def test_with_rules_alone_lines_are_read_and_a_model_brings_the_members_back(journal: Journal) -> None:
    model = learned_by(journal)
    lines = usual(5, 3, prefix="r", at=2000.0)
    everything = dict.fromkeys(NAMES, "planted")
    verdicts = applied(journal, frame_of(lines), lines=len(lines), without=everything)
    assert [record["members"] for record in verdicts.records()] == [{}] * len(lines)
    assert all(record["p"] is None for record in verdicts.records())
    summary = journal.detector.summary()
    assert (summary.members, summary.lost_lines, summary.generation) == ((), 0, model.generation)
    assert summary.training_due is False, "a model is in force: another one would fare no better"
    (answer,) = journal.detector.ask([lines[0]], None)
    assert answer["details"]["ensemble"]["active_models"] == ["rule_based"]
    journal.apply(ModelFrame(model.generation, "model-1", "sha"), model)
    assert journal.detector.summary().withdrawn == ()
    assert set(journal.detector.summary().members) == set(model.calibration) - {"ensemble"}


def test_the_same_frames_without_the_same_members_come_to_the_same_state_wherever_they_are_cut(
    knowing: tuple[State, Model],
) -> None:
    def run(reload: bool, fails: bool) -> str:
        journal = Journal(Detector.load(*knowing))
        with pytest.MonkeyPatch.context() as patch:
            for number in range(6):
                lines = usual(3, number, prefix=f"c{number}-", at=2000.0 + number)
                without = {"counts": "planted"} if number == 2 else {}
                if fails and number == 2:
                    patch.setattr(Counts, "score", None)
                applied(journal, frame_of(lines), lines=len(lines), without=without)
                if reload:
                    journal = Journal(Detector.load(journal.detector.export(), knowing[1]))
            patch.undo()
            applied(journal, ReturnedFrame(("counts",)), without={})
            fed(journal, session("late", [OPEN, READ, CLOSE], 3000.0))
        return digest(journal.detector.export())

    assert run(False, False) == run(True, False) == run(False, True) == run(True, True)


@pytest.mark.parametrize("where", ["score", "likely"])
def test_whatever_a_member_is_asked_the_error_names_it(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(Ngram, where, None)
    strange = session("odd", [OPEN, NEW, NEW, NEW, CLOSE], 2000.0)
    with pytest.raises(MemberError) as caught:
        fed(journal, strange)
    assert caught.value.member == "ngram"
    assert caught.value.reason == "TypeError: 'NoneType' object is not callable"


def test_the_reason_is_one_line_of_bounded_length() -> None:
    with pytest.raises(MemberError) as caught, blamed_on("values"):
        raise RuntimeError("of\nmany " + "words " * 1000)
    assert caught.value.reason.startswith("RuntimeError: of many words") and len(caught.value.reason) == LONGEST_REASON
    with pytest.raises(MemberError) as caught, blamed_on("ngram"), blamed_on("values"):
        raise MemoryError
    assert (caught.value.member, caught.value.reason) == ("values", "MemoryError")
