"""Run in a copy of the program that has the two toys beside its own members: both do all that a member does."""

from typing import Any

import numpy as np

from detection.columns.layout_upgrades import MODELS, STATES
from detection.columns.state_columns import array_column, digest
from detection.detector import Detector
from detection.frames import Frame, LinesFrame, ReturnedFrame, Segment, Sequenced, TickFrame, VouchedFrame
from detection.members.failing_members import MemberError
from detection.members.registry import MEMBERS, NAMES, ONLINE_NAMES
from detection.models.model import from_columns, to_columns
from detection.models.training_set import from_columns as training_set_from
from detection.verdicts.verdict_records import Verdicts
from tests.detection.journal import RECEIVED, Journal, segment
from tests.detection.simple import CLOSE, OPEN, fed, finished, learn, session, simple, usual

TOYS = {"unheard", "length"}
LONG = b"dropping all tables now " + b"and then some " * 20


def main() -> None:
    journal = simple()
    fed(journal, usual(1000, 1))
    finished(journal)
    columns_get_a_layout(journal)

    model = learn(journal)
    assert set(model.calibration) >= TOYS and "heard" in model.parts["unheard"] and "length" not in model.parts
    assert set(from_columns(to_columns(model)).calibration) == set(model.calibration)
    assert TOYS <= set(journal.detector.summary().members)
    judges_and_explains(journal)
    answers(journal)
    is_the_same_after_a_restart(journal)
    goes_to_the_trainer(journal)
    learns_from_vouched_lines(journal)
    is_withdrawn_and_comes_back(journal)
    names_itself_when_it_fails(journal)


def columns_get_a_layout(journal: Journal) -> None:
    """New columns of a state are to get a number of its layout, whoever adds them (`columns.layout_upgrades`)."""
    STATES.layouts[STATES.newest].update(STATES.parts(journal.detector.export()))  # type: ignore[attr-defined]
    trained = simple()
    fed(trained, usual(300, 1))
    finished(trained)
    MODELS.layouts[MODELS.newest].update(MODELS.parts(to_columns(learn(trained))))  # type: ignore[attr-defined]
    object.__setattr__(MODELS, "optional", MODELS.optional | TOYS)


def judges_and_explains(journal: Journal) -> None:
    (alert,) = fed(journal, session("odd", [OPEN, LONG, CLOSE], 2000.0))
    assert alert["members"]["unheard"]["score"] == 1.0 and alert["members"]["unheard"]["p"] < 0.01
    assert alert["members"]["length"]["score"] > 200.0 and alert["members"]["length"]["p"] < 0.01
    assert TOYS <= {each["name"] for each in alert["explain"]["members"]}
    shown = alert["explain"]["length"]
    assert shown["characters"] > shown["longest"] + 200
    assert list(alert["explain"])[-1] == "length" and "source" in alert["explain"], "beside what there was"
    (again,) = fed(journal, session("odder", [OPEN, LONG + b"more", CLOSE], 2100.0))
    assert again["explain"]["length"]["longest"] == shown["longest"], "of what is flagged nothing is learned"


def answers(journal: Journal) -> None:
    before = digest(journal.detector.export())
    (answer,) = journal.detector.ask(session("who", [LONG], 2200.0), None, True)
    assert answer["details"]["length"]["score"] > 200.0 and answer["details"]["unheard"]["score"] == 1.0
    assert answer["explain"]["length"]["characters"] > 200
    assert digest(journal.detector.export()) == before


def is_the_same_after_a_restart(journal: Journal) -> None:
    detector = journal.detector
    again = Detector.load(detector.export(), detector.in_force)
    assert digest(again.export()) == digest(detector.export()) and again.summary() == detector.summary()
    more = usual(20, 5, prefix="again", at=3000.0)
    assert fed(Journal(again), more) == fed(journal, more)
    assert digest(again.export()) == digest(detector.export())
    assert detector.export()["online.length.longest"] == longest(journal) > 0


def longest(journal: Journal) -> int:
    found = journal.detector.export()["online.length.longest"]
    assert isinstance(found, int)
    return found


def goes_to_the_trainer(journal: Journal) -> None:
    data = journal.detector.training_set()
    columns = data.to_columns()
    assert array_column(columns, "length").max() > 200
    assert np.array_equal(training_set_from(columns, ONLINE_NAMES).online, data.online)


def learns_from_vouched_lines(journal: Journal) -> None:
    before = longest(journal)
    journal.apply(VouchedFrame(RECEIVED, segment([LONG + b"x" * 500], "v", "plain", last=True), True))
    assert longest(journal) > before + 500


def applied(journal: Journal, frame: Frame, *, lines: int = 0, without: dict[str, str]) -> Verdicts:
    detector = journal.detector
    return detector.apply(Sequenced(detector.seq + 1, detector.line + lines, frame, without=without))


def members_of(verdicts: Verdicts) -> set[str]:
    return {name for record in verdicts.records() for name in record["members"]}


def is_withdrawn_and_comes_back(journal: Journal) -> None:
    lines = usual(5, 6, prefix="without", at=4000.0)
    frame = LinesFrame(RECEIVED, (Segment("a-1", "timestamped", b"".join(line + b"\n" for line in lines), len(lines)),))
    known = longest(journal)
    verdicts = applied(journal, frame, lines=len(lines), without=dict.fromkeys(TOYS, "planted"))
    assert not members_of(verdicts) & TOYS and {"ngram", "counts"} <= members_of(verdicts)
    reached = array_column(journal.detector.export(), "sessions.reached")
    assert (reached[:, [NAMES.index(name) for name in TOYS]] == 0.0).all() and longest(journal) == known
    assert TOYS == {each.member for each in journal.detector.summary().withdrawn}
    applied(journal, ReturnedFrame(tuple(TOYS)), without={})
    assert members_of(applied(journal, frame, lines=len(lines), without={})) >= TOYS
    assert journal.detector.summary().withdrawn == ()


def names_itself_when_it_fails(journal: Journal) -> None:
    def planted(*_: Any) -> None:
        raise RuntimeError("planted")

    toys: list[Any] = [member for member in MEMBERS if member.name in TOYS]
    for toy in toys:
        working, toy.score = toy.score, planted
        (answer,) = journal.detector.ask(session("who", [LONG], 5000.0), None)
        assert answer["details"]["ensemble"]["failed_models"] == {toy.name: "RuntimeError: planted"}
        detector = Detector.load(journal.detector.export(), journal.detector.in_force)
        try:
            fed(Journal(detector), usual(1, 1, at=5000.0))
        except MemberError as exc:
            assert exc.member == toy.name
        else:
            raise AssertionError(f"{toy.name} failed and nobody was told")
        toy.score = working
    applied(journal, TickFrame(RECEIVED), without={})


if __name__ == "__main__":
    main()
