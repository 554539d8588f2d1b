"""Reasons of a degraded daemon: each as long as its cause lasts, the gravest first, naming what failed and where."""

from daemon.control.degraded_reasons import CODES, Reason, degraded_reasons
from detection.members.failing_members import Withdrawn
from detection.summary import Summary

WELL = {"error": None, "lost": 0, "pending": 0}


def test_nothing_wrong_is_no_reason() -> None:
    assert degraded_reasons(outlets={"alerts.jsonl": WELL | {"lost": 3}}) == []


def test_all_failures_at_once_are_listed_in_order_and_every_code_is_known() -> None:
    found = degraded_reasons(
        journal="/s: no space",
        training="trainer was killed by signal 9",
        trainings_failed=3,
        summary=Summary(
            withdrawn=(Withdrawn("transformer", 812, "could not create a primitive"),),
            unfitted=(("isolation_forest", "no memory"),),
        ),
        checkpoint="no snapshot: /s: no space",
        outlets={"alerts.jsonl": WELL, "verdicts.jsonl": {"error": "no space", "lost": 2, "pending": 10_000}},
        disk="12 MB are free",
        waiting="all 1,024 are taken",
    )
    assert found == [
        Reason("journal", "lines wait: /s: no space"),
        Reason("alerts", "verdicts.jsonl cannot be written: no space; 10,000 records wait in memory, 2 are lost"),
        Reason("disk", "12 MB are free"),
        Reason("checkpoint", "checkpoint failed: no snapshot: /s: no space"),
        Reason("withdrawn", "transformer does not judge since frame 812: could not create a primitive"),
        Reason("unfitted", "the model was trained without isolation_forest: no memory"),
        Reason("training", "training failed 3 times in a row: trainer was killed by signal 9"),
        Reason("limits", "all 1,024 are taken"),
    ]
    assert {reason.code for reason in found} == set(CODES)


def test_one_failure_is_not_counted() -> None:
    assert degraded_reasons(training="no", trainings_failed=1) == [Reason("training", "training failed: no")]
