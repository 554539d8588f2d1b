import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality.figures import member_rows
from benchmarks.quality.honesty import poisson_interval
from benchmarks.quality.logs import Log
from benchmarks.quality.records import gather, incidents, read_records
from benchmarks.quality.web import caught


def record(line: int, session: str, first_line: int, p: float | None, **more: Any) -> dict[str, Any]:
    return {
        "id": str(line),
        "line": line,
        "first_line": first_line,
        "last_line": line,
        "time": float(line),
        "session": session,
        "closed": False,
        "template_id": 1,
        "verdict": "normal",
        "score": 0.0,
        "p": p,
        "flagged": False,
        "members": {},
        "a field of later": [],
        **more,
    }


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


def test_a_unit_is_as_strange_as_its_strangest_record_and_flagged_if_one_was(tmp_path: Path) -> None:
    said = [
        record(1, "a", 1, 0.5),
        record(2, "b", 2, 0.2),
        record(3, "a", 1, 0.001, flagged=True),
        record(4, "a", 4, 0.9),
        record(5, "c", 5, None),
    ]
    records = read_records(written(tmp_path / "verdicts.jsonl", said))
    units = gather(records, records.session, ["a", "b", "c", "never seen"])
    assert units.flagged.tolist() == [True, False, False, False]
    order = units.strangeness
    assert order[0] > order[1] > order[2] > order[3]
    assert records.instances().tolist() == ["a\n1", "b\n2", "a\n1", "a\n4", "c\n5"]


def test_a_member_that_does_not_speak_of_a_unit_finds_it_ordinary(tmp_path: Path) -> None:
    said = [
        record(1, "a", 1, 0.5, members={"ngram": {"score": 1.0, "p": 0.01}, "values": {"score": 2.0, "p": None}}),
        record(2, "b", 2, 0.5, members={"ngram": {"score": 0.5, "p": 0.5}}),
    ]
    records = read_records(written(tmp_path / "verdicts.jsonl", said))
    units = gather(records, records.session, ["a", "b", "c"])
    assert units.member_ps["ngram"].tolist() == [0.01, 0.5, 1.0]
    assert units.member_ps["values"].tolist() == [1.0, 1.0, 1.0]


def test_a_rule_makes_a_unit_strange_although_it_has_no_p(tmp_path: Path) -> None:
    said = [
        record(1, "a", 1, 0.5, members={"rules": {"score": 0.9, "p": None}}, verdict="attack", score=0.9),
        record(2, "b", 2, 0.01),
    ]
    records = read_records(written(tmp_path / "verdicts.jsonl", said))
    units = gather(records, records.session, ["a", "b"])
    assert units.strangeness[0] > units.strangeness[1]
    assert units.member_ps["rules"].tolist() == [pytest.approx(0.001 * 0.1 / 0.9), 1.0]


def test_leaving_out_the_only_member_that_sees_an_anomaly_loses_it(tmp_path: Path) -> None:
    def members(ngram: float, counts: float) -> dict[str, Any]:
        return {"ngram": {"score": 0.0, "p": ngram}, "counts": {"score": 0.0, "p": counts}}

    said = [record(i, f"n{i}", i, 0.5, members=members(0.1 + i / 100, 0.4)) for i in range(1, 20)]
    said.append(record(20, "odd", 20, 1e-6, members=members(0.9, 1e-6)))
    records = read_records(written(tmp_path / "verdicts.jsonl", said))
    units = gather(records, records.session, [f"n{i}" for i in range(1, 20)] + ["odd"])
    truth = np.array([False] * 19 + [True])
    rows = {row.what: row.value for row in member_rows("set", truth, units)}
    assert rows["PR-AUC of the members' p-values, combined here"] == 1.0
    assert rows["PR-AUC combined without ngram"] == 1.0
    assert rows["PR-AUC combined without counts"] == pytest.approx(0.05)
    assert rows["PR-AUC of the ensemble minus its best member's"] == 0.0


def test_a_line_is_caught_when_its_session_was_flagged_earlier_or_later_or_it_is_in_an_incident(tmp_path: Path) -> None:
    said = [
        record(1, "x", 1, 0.5),
        record(2, "x", 1, 0.001, flagged=True, opens=True, incident="2"),
        record(3, "x", 3, 0.5),
        record(4, "x", 4, 0.5, incident="2"),
        record(4, "x", 1, 0.5, closed=True),
    ]
    records = read_records(written(tmp_path / "verdicts.jsonl", said))
    none = np.zeros(4, dtype=np.bool_)
    assert caught(records, Log([b""] * 4, ["x"] * 4, none, none)).tolist() == [True, True, False, True]
    assert incidents(records).tolist() == [False, True, False, False, False]


def test_without_incidents_every_alert_is_one(tmp_path: Path) -> None:
    said = [record(1, "x", 1, 0.5), record(2, "x", 2, 0.001, flagged=True), record(3, "x", 3, 0.001, flagged=True)]
    assert incidents(read_records(written(tmp_path / "verdicts.jsonl", said))).tolist() == [False, True, True]


def test_the_interval_of_a_count_is_that_of_the_tables() -> None:
    assert poisson_interval(0) == pytest.approx((0.0, 3.69), abs=0.05)
    assert poisson_interval(10) == pytest.approx((4.80, 18.39), abs=0.05)
