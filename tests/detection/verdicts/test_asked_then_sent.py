"""A line that is asked about (`verdicts.query`) and then sent gets the same scores, verdict and explanation."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from detection.columns.state_columns import State, digest
from detection.detection_settings import AlarmSettings
from detection.detector import Detector
from detection.frames import LinesFrame, ModelFrame, ReturnedFrame, Sequenced
from detection.learning.training_run import train
from detection.models.model import Model
from tests.detection.journal import ATTACK, RECEIVED, WARMUP, Journal, segment, started
from tests.detection.simple import answer

NEVER_SEEN = "<a template never seen>"


@dataclass
class Asking:
    """Asks about each line, then sends it, and counts what the lines were."""

    journal: Journal
    seen: Counter[str] = field(default_factory=Counter)
    alerts: list[dict[str, Any]] = field(default_factory=list)

    def send(self, lines: Sequence[bytes], without: dict[str, str] | None = None) -> None:
        """Lines each in a frame of its own; `without` withdraws members with the first."""
        before = digest(self.journal.detector.export())
        self.journal.detector.ask(lines, None, explain=True)
        assert digest(self.journal.detector.export()) == before, "a question changed the state"
        for text in lines:
            self._send(text, without or {})
            without = None

    def _send(self, text: bytes, without: dict[str, str]) -> None:
        detector = self.journal.detector
        admissions = detector.summary().admitted
        (alone,) = detector.ask([b"beside it", text], None, explain=True)[1:]
        (in_session,) = detector.ask([text], alone["details"]["log_data"]["session"], explain=True)

        item = Sequenced(detector.seq + 1, detector.line + 1, LinesFrame(RECEIVED, (segment([text]),)), without=without)
        (record,) = (record for record in detector.apply(item).records() if not record["closed"])
        self.alerts += [record] if record["flagged"] else []
        if without or detector.summary().admitted != admissions:
            return  # members failed after the question; or it was the line that made a cause normal
        begins = record["first_line"] == record["line"]
        if not begins and not alone["details"]["log_data"]["session"]:
            return  # it goes on with its connection's window, which a question cannot name
        asked = alone if begins else in_session
        self.seen["a new session" if begins else "an open session"] += 1
        self._agree(asked, record, text)

    def _agree(self, asked: dict[str, Any], record: dict[str, Any], text: bytes) -> None:
        data, why = asked["details"]["log_data"], asked["explain"]
        members = {name: said for name, said in record["members"].items() if name != "rules"}
        assert {each["name"]: {"score": each["score"], "p": each["p"]} for each in why.get("members", ())} == members
        assert (asked["p"], asked["verdict"]) == (record["p"], record["verdict"]), text
        assert asked["rule_based"]["attack_types"] == record["attack_types"], text
        if record["verdict"] == "normal":
            assert not asked["is_anomaly"] and asked["anomaly_score"] == min(record["score"], 0.499), text
        if record["flagged"] or record["verdict"] in ("normal", "attack"):
            assert asked["is_anomaly"] == record["flagged"] and asked["anomaly_score"] == record["score"], text
        assert data["template_id"] in (record["template_id"], -1), text
        for name in ("cause_kind", "what"):
            found = why.get(name, "").replace(NEVER_SEEN, record["template"])
            assert found == record.get(name, ""), (text, name)
        if "explain" in record:
            found = why | {"rules": asked["rule_based"]["rules"]}
            if "found" in found:
                found["found"] = _learned(found["found"], record)
            for name in ("members", "expected", "found", "features", "value", "rules"):
                assert found.get(name) == record["explain"].get(name), (text, name)
            texts = [each["text"] for each in record["explain"]["lines"]]
            assert [each["text"] for each in why["lines"]] == texts, text
            self.seen["explained"] += 1
        self.seen[record["verdict"]] += 1
        self.seen["a new template"] += data["template_id"] == -1
        self.seen[f"flagged, {record['cause_kind']}" if record["flagged"] else "not flagged"] += 1


def _learned(found: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """What was found, by the id and the text that it has now where it had none when it was asked about."""
    new = {"template_id": record["template_id"], "template": record["template"]}
    return found | new if found["template"] == NEVER_SEEN else found


def _lines(lines: Sequence[bytes], seed: int, count: int) -> list[bytes]:
    """`count` real lines in their order, and among them others: of another kind, of nobody, of an attack, repeated."""
    rng = np.random.default_rng(seed)
    mixed: list[bytes] = []
    for number, text in enumerate(lines[:count]):
        mixed.append(text)
        client = b"198.51.100.%d" % (number % 7)
        extra = (
            ATTACK,
            b"no client at all %d" % number,
            ATTACK.replace(b"203.0.113.9", client),
            text.replace(b'"GET /', b'"PROPFIND /never/%s/' % (b"x" * (number % 9))),
            ATTACK.replace(b"UNION%20SELECT%201", b"%7e" * (1 + number % 40)).replace(b"203.0.113.9", client),
            text,
        )
        mixed += [extra[choice] for choice in np.flatnonzero(rng.random(len(extra)) < 0.25).tolist()]
    return mixed


@pytest.fixture(scope="module")
def warm(lines: list[bytes]) -> tuple[State, Model]:
    """A detector at the end of its warm-up, and the model of the quick members that it teaches."""
    journal = started(alarms=AlarmSettings(alpha=0.05))
    journal.feed(lines[:WARMUP])
    return journal.detector.export(), train(
        replace(journal.detector.training_set(), full=False), progress=lambda _: None
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_a_line_asked_about_and_then_sent_is_judged_alike(
    warm: tuple[State, Model], lines: list[bytes], seed: int
) -> None:
    state, model = warm
    asking = Asking(Journal(Detector.load(state, None)))
    asking.send(_lines(lines[WARMUP:], seed, 10))
    assert asking.seen["a new session"] and asking.seen["an open session"] and asking.seen["attack"]

    asking.journal.apply(ModelFrame(model.generation, "early", "sha"), model)
    asking.seen.clear()
    asking.send(_lines(lines[WARMUP + 40 :], seed, 50))
    wanted = {"a new session", "an open session", "a new template", "explained", "normal", "novel", "anomaly", "attack"}
    assert wanted <= asking.seen.keys(), "the lines show all that there is to agree on"

    for kind in ("rule", "new", "shape"):
        alert = next((alert for alert in asking.alerts if alert["cause_kind"] == kind), None)
        if alert is not None:
            answer(asking.journal, alert, "normal")
            asking.seen[f"answered, {kind}"] += 1
    assert asking.seen["answered, rule"] and asking.seen["answered, shape"]
    asking.send(_lines(lines[WARMUP + 160 :], seed, 20))

    asking.send(_lines(lines[WARMUP + 220 :], seed, 12), without={"ngram": "broken"})
    asking.send(_lines(lines[WARMUP + 260 :], seed, 12), without={"values": "broken", "sources": "broken"})
    asking.journal.apply(ReturnedFrame(("ngram", "values", "sources")))
    asking.send(_lines(lines[WARMUP + 300 :], seed, 12))
    assert {"flagged, rule", "flagged, shape", "flagged, source"} <= asking.seen.keys()
