"""The operator's answers: what they change on the next line, and that they last."""

from typing import Any, Literal

import pytest

from detection.columns.state_columns import State, digest
from detection.detector import Detector
from detection.frames import FeedbackFrame, LinesFrame, RefusedFrame, Sequenced
from detection.learning import training_run as run
from detection.models.model import Model
from tests.detection.journal import ATTACK, RECEIVED, Journal, segment, started
from tests.detection.simple import (
    CLOSE,
    NEW,
    OPEN,
    READ,
    RETRY,
    WRITE,
    alerts_of,
    answer,
    fed,
    finished,
    learn,
    learned_by,
    line,
    session,
    simple,
    taught,
    usual,
)

ODD = [OPEN, NEW, CLOSE]


def flags(journal: Journal, number: int, texts: list[bytes]) -> list[dict[str, Any]]:
    return alerts_of(journal, session(f"x{number}", texts, 2000 + 100 * number))


def test_normal_takes_effect_on_the_next_line_and_undo_takes_it_back(journal: Journal) -> None:
    (alert,) = flags(journal, 1, ODD)
    answer(journal, alert, "normal")
    assert flags(journal, 2, ODD) == []
    assert [(a["id"], a["answer"], a["note"]) for a in journal.detector.answers()] == [
        (alert["id"], "normal", "seen it")
    ]
    answer(journal, alert, "undo")
    (again,) = flags(journal, 3, ODD)
    assert again["cause"] == alert["cause"] and journal.detector.answers() == []


def test_an_answer_survives_a_restart_and_a_new_model(journal: Journal, knowing: tuple[State, Model]) -> None:
    (alert,) = flags(journal, 1, ODD)
    answer(journal, alert, "normal")
    loaded = Journal(Detector.load(journal.detector.export(), knowing[1]))
    assert digest(loaded.detector.export()) == digest(journal.detector.export())
    assert flags(loaded, 2, ODD) == []
    model = learn(loaded)
    assert alert["template_id"] not in model.vocabulary, "too rare to be learned: it is the answer that still holds"
    assert flags(loaded, 3, ODD) == []
    assert [each["id"] for each in loaded.detector.answers()] == [alert["id"]]


def test_what_was_called_normal_is_learned_from_and_what_was_called_an_anomaly_never(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "complete", True)
    (alert,) = flags(journal, 1, ODD)
    assert journal.detector.training_set().flagged.sum() == 1
    answer(journal, alert, "normal")
    assert journal.detector.training_set().flagged.sum() == 0
    answer(journal, alert, "anomaly")
    data = journal.detector.training_set()
    assert data.flagged.sum() == data.tainted.sum() == 1


def test_before_the_first_full_model_what_is_flagged_is_learned_from_unless_it_was_called_an_anomaly(
    journal: Journal,
) -> None:
    (alert,) = flags(journal, 1, ODD)
    data = journal.detector.training_set()
    assert data.flagged.sum() == data.tainted.sum() == 0
    answer(journal, alert, "anomaly")
    assert journal.detector.training_set().tainted.sum() == 1


def test_one_who_floods_many_sessions_is_one_incident_and_one_answer_is_enough() -> None:
    journal = simple()
    fed(journal, [b"%s for 198.51.100.%d" % (each, n % 200) for n, each in enumerate(usual(1500, 1))])
    finished(journal)
    learn(journal)

    def flood(prefix: str, who: bytes, at: float) -> list[bytes]:
        return [line(f"{prefix}{n}", OPEN + b" for " + who, at) for n in range(400)]

    alerts = fed(journal, flood("a", b"203.0.113.7", 2000))
    assert len(alerts) > 100 and len({alert["session"] for alert in alerts}) == len(alerts)
    assert {(alert["cause_kind"], alert["what"]) for alert in alerts} == {("source", "behaviour of 203.0.113.7")}
    assert len({(alert["incident"], alert["cause"]) for alert in alerts}) == 1
    more, others = flood("b", b"203.0.113.7", 2001), flood("c", b"203.0.113.8", 2001)
    assert journal.detector.ask(more[:1], None)[0]["verdict"] == "anomaly"
    answer(journal, alerts[0], "normal")
    assert journal.detector.ask(more[:1], None)[0]["verdict"] == "normal"
    assert fed(journal, more) == []
    assert {alert["what"] for alert in fed(journal, others)} == {"behaviour of 203.0.113.8"}


def test_an_anomaly_stays_one_however_often_it_comes(journal: Journal) -> None:
    (alert,) = flags(journal, 1, ODD)
    answer(journal, alert, "anomaly")
    assert all(flags(journal, number, ODD) for number in range(2, 50))
    assert journal.detector.training_set().tainted.sum() == 49


def test_without_the_answer_it_would_have_been_admitted(journal: Journal) -> None:
    found = [bool(flags(journal, number, ODD)) for number in range(1, 50)]
    assert found[0] and not any(found[27:])


ALONE = [NEW]
AMONG = [OPEN, READ, READ, *ALONE, READ, READ, WRITE, CLOSE]
ELSEWHERE = [OPEN, *ALONE * 12, CLOSE]


def known_by_now(journal: Journal, texts: list[bytes], monkeypatch: pytest.MonkeyPatch, *, alike: bool = True) -> str:
    """`texts` came twice and were called normal, without what is `alike` if so said, and the model has learned them.

    The id of the alert.
    """
    monkeypatch.setattr(run, "TRIMMED_SHARE", 0.0)  # as it is after the first full model
    (alert,) = flags(journal, 1, texts)
    answer(journal, alert if alike else {**alert, "cause_shapes": []}, "normal")
    assert flags(journal, 2, texts) == []
    fed(journal, usual(300, 5, prefix="v", at=3000))
    finished(journal)
    assert alert["template_id"] in learn(journal).vocabulary
    return str(alert["id"])


@pytest.mark.parametrize("texts", [ALONE, ODD, AMONG])
def test_what_was_new_and_called_normal_is_not_raised_again_for_its_shape_once_it_is_known(
    journal: Journal, texts: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    alert_id = known_by_now(journal, texts, monkeypatch)
    assert journal.detector.ask([line("y", each) for each in texts], None)[0]["verdict"] == "normal"
    assert flags(journal, 20, texts) == []
    (other,) = flags(journal, 21, ELSEWHERE)
    assert other["cause_kind"] == "shape", "it excuses nothing else"
    journal.apply(FeedbackFrame(alert_id, 0, 0, "", "undo", ""))
    (again,) = flags(journal, 22, texts)
    assert again["cause_kind"] == "shape"


@pytest.mark.parametrize("texts", [ALONE, ODD, AMONG])
def test_by_its_template_only_it_would_be(
    journal: Journal, texts: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    known_by_now(journal, texts, monkeypatch, alike=False)
    (again,) = flags(journal, 20, texts)
    assert again["cause_kind"] == "shape"


def test_only_an_alert_of_something_new_comes_with_the_shapes_that_its_session_has(journal: Journal) -> None:
    (new,) = flags(journal, 1, ODD)
    assert len(set(new["cause_shapes"]) - {new["cause"]}) == 2
    (shape,) = flags(journal, 2, [OPEN, *[RETRY] * 6, CLOSE])
    assert "cause_shapes" not in shape and shape["what"] == "sessions like that of x2"


@pytest.mark.slow
def test_what_was_admitted_and_learned_before_it_was_called_an_anomaly_is_forgotten(journal: Journal) -> None:
    (alert, *_) = [each for number in range(1, 200) for each in flags(journal, number, ODD)]
    assert alert["template_id"] in learn(journal).vocabulary and flags(journal, 200, ODD) == []
    answer(journal, alert, "anomaly")
    assert alert["template_id"] not in learn(journal).vocabulary
    (again,) = flags(journal, 201, ODD)
    assert again["cause"] == alert["cause"]


OTHER = ATTACK.replace(b"GET /x?id", b"POST /x/y/z?id")


def test_a_rule_is_called_normal_for_one_template_and_only_there() -> None:
    journal = started()
    attack = LinesFrame(RECEIVED, (segment([ATTACK]),))
    (alert,) = journal.apply(attack).flagged()
    assert alert["cause_kind"] == "rule"
    answer(journal, alert, "normal")
    (record,) = journal.apply(attack).records()
    assert (record["verdict"], record["flagged"], record["rules"]) == ("normal", False, [])
    asked = journal.detector.ask([ATTACK], None)
    assert not asked[0]["is_anomaly"] and asked[0]["rule_based"]["rules"] == []
    (elsewhere,) = journal.apply(LinesFrame(RECEIVED, (segment([OTHER]),))).flagged()
    assert elsewhere["verdict"] == "attack" and elsewhere["cause"] != alert["cause"]
    answer(journal, alert, "undo")
    assert len(journal.apply(attack).flagged()) == 1


def test_an_answer_to_an_alert_that_is_gone_from_the_table_holds_for_its_cause_all_the_same(journal: Journal) -> None:
    (alert,) = flags(journal, 1, ODD)
    answer(journal, {**alert, "id": "999999.7"}, "normal")
    assert flags(journal, 2, ODD) == []


FLOOD = [b" ".join([word] * count) for word in (b"lorem", b"ipsum", b"dolor") for count in range(2, 60)]


def crowded(state: dict[str, Any], model: Model | None = None) -> Journal:
    """One that goes on from `state`, with a table of templates that a flood soon fills."""
    return Journal(Detector.load({**state, "templates.capacity": 40}, model))


@pytest.mark.parametrize("restarts", [False, True])
def test_an_answer_holds_though_a_flood_of_new_templates_came_between(
    knowing: tuple[State, Model], restarts: bool
) -> None:
    journal = crowded(*knowing)
    (alert,) = flags(journal, 1, ODD)
    answer(journal, alert, "normal")
    if restarts:
        journal = Journal(Detector.load(journal.detector.export(), knowing[1]))
    fed(journal, session("flood", FLOOD, 2500))
    finished(journal)
    assert journal.detector.summary().templates_evicted > 100
    assert flags(journal, 9, ODD) == []
    assert digest(Detector.load(journal.detector.export(), knowing[1]).export()) == digest(journal.detector.export())


@pytest.mark.parametrize("what", ["normal", "undo"])
def test_without_an_answer_the_flood_makes_another_cause_of_it(
    knowing: tuple[State, Model], what: Literal["normal", "undo"]
) -> None:
    journal = crowded(*knowing)
    (alert,) = flags(journal, 1, ODD)
    answer(journal, alert, "normal")
    answer(journal, alert, what)
    fed(journal, session("flood", FLOOD, 2500))
    finished(journal)
    again = {each["cause"] for each in flags(journal, 9, ODD)}
    assert bool(again) == (what == "undo") and alert["cause"] not in again


def test_so_does_the_answer_to_a_rule() -> None:
    journal = crowded(dict(started().detector.export()))
    (alert,) = journal.feed([ATTACK])
    answer(journal, alert, "normal")
    journal.feed(FLOOD, kind="plain", source="b")
    assert journal.detector.summary().templates_evicted > 100
    assert journal.feed([ATTACK]) == [] and len(journal.feed([OTHER])) == 1


def test_an_answer_that_comes_after_the_flood_would_hold_for_nothing_and_one_to_the_next_alert_does(
    knowing: tuple[State, Model],
) -> None:
    journal = crowded(*knowing)
    (alert,) = flags(journal, 1, ODD)
    assert journal.detector.has_template(alert["cause_template"])
    fed(journal, session("flood", FLOOD, 2500))
    assert not journal.detector.has_template(alert["cause_template"])
    answer(journal, alert, "anomaly")
    assert journal.detector.training_set().tainted.sum() == 1, "what is remembered of it is not learned from"
    answer(journal, alert, "normal")
    finished(journal)
    (again,) = flags(journal, 9, ODD)
    assert journal.detector.has_template(again["cause_template"])
    answer(journal, again, "normal")
    assert flags(journal, 10, ODD) == []


def test_an_alert_names_the_template_that_its_cause_hangs_on(journal: Journal) -> None:
    (new,) = flags(journal, 1, [OPEN, NEW, NEW])
    assert new["cause_template"] == new["template_id"]
    (shape,) = flags(journal, 2, [OPEN, *[RETRY] * 6, CLOSE])
    assert shape["cause_template"] == shape["template_id"]
    (rule,) = started().feed([ATTACK])
    assert rule["cause_template"] == rule["template_id"]


def test_a_refused_model_is_listed_with_its_reason_changes_no_verdict_and_counts_as_a_training(
    journal: Journal,
) -> None:
    fed(journal, usual(100, 2, prefix="u", at=3000))
    before = journal.detector.summary()
    assert before.lines_since_training > 0
    generation = journal.detector.training_set().generation
    journal.apply(RefusedFrame(generation, "model-2-b.pt", "at new sessions it is worse: 3 nats"))
    after = journal.detector.summary()
    assert (after.generation, after.models_refused, after.refusal) == (1, 1, "at new sessions it is worse: 3 nats")
    assert after.lines_since_training == 0 and not after.training_due
    assert journal.detector.training_set().generation == generation + 1, "its number is not given again"
    (refused, in_force) = journal.detector.generations()
    assert (refused["promoted"], refused["in_force"], in_force["in_force"]) == (False, False, True)
    again = Detector.load(journal.detector.export(), learned_by(journal))
    assert again.generations() == journal.detector.generations()


def test_a_replay_of_answers_comes_to_the_same_state() -> None:
    straight = taught(400)
    state, model = straight.detector.export(), learned_by(straight)
    seq = straight.detector.seq
    (alert,) = flags(straight, 1, ODD)
    answer(straight, alert, "normal")
    flags(straight, 2, ODD)
    answer(straight, alert, "undo")
    flags(straight, 3, ODD)
    loaded = Detector.load(state, model)
    for item in straight.items:
        if item.seq > seq:
            loaded.apply(Sequenced(item.seq, item.line, item.frame))
    assert digest(loaded.export()) == digest(straight.detector.export())
