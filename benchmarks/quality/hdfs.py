"""hdfs_raw: a real log in the order of its times.

The first half of the lines is for learning, the second is judged. A block is judged when its first
line lies in the second half; a block that began earlier goes on being sent, and a false alarm about it counts
among the false alarms, but neither finds nor misses anything: what was odd about it may have been in the first half.

Feedback: after every `ANSWER_LINES` lines the operator answers what was flagged since, truthfully, one answer an
incident, until `ANSWERS` are spent. An alert stays an alert: one that was answered with "normal" is a false
alarm in F1 and one answered with "anomaly" a hit. All that answers can do is to change what is flagged later.
"""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.controls import controls
from benchmarks.quality.figures import asking, control_rows, member_rows
from benchmarks.quality.logs import (
    HDFS_KEY,
    Log,
    hdfs_raw,
)
from benchmarks.quality.metrics import (
    ap_interval,
    best_f1,
    f1_interval,
    found,
    share_interval,
)
from benchmarks.quality.records import Records, gather, incidents
from benchmarks.quality.report import Row
from benchmarks.quality.watching import NEVER, RETRAIN_LINES, Watched, settings, watched
from detection.formats.kinds import parse_as_kind
from detection.templates.table import TemplateTable

ANSWERS = 50
ANSWER_LINES = 250
CONTROL_ALPHA = 0.002
LATER_LINES = 500


def vouched(data: Path, seed: int) -> list[Row]:
    log, blocks, half = _begun(data, seed)
    asked: dict[str, dict[str, Any]] = {
        "PR-AUC": {"floor": 0.80, "target": 0.90},
        "false alarms per 1,000 sessions": {"floor": 5.0, "target": 2.0, "kind": "less"},
    }
    name = "hdfs_raw, vouched warm-up"
    records, note = _vouched(name, log, half, RETRAIN_LINES)
    rows = asking(_judged(name, log, blocks, half, records, seed), asked, note)
    rows += _controls(name, log, blocks, half, seed)
    frozen, _ = _vouched(f"{name}, frozen", log, half, NEVER)
    return rows + _judged(
        "hdfs_raw, vouched, daemon that learns no more", log, blocks, half, frozen, seed, members=False
    )


def _begun(data: Path, seed: int) -> tuple[Log, dict[str, bool], int]:
    """The log, its blocks, and at which line the judged half of it begins.

    Chance has no part in this set, so each seed after the first begins `LATER_LINES` later: other batches, other
    models, and another draw of what those make of the same second half.
    """
    log, blocks = hdfs_raw(data)
    half, later = len(log.lines) // 2, (seed - 1) * LATER_LINES
    return Log(log.lines[later:], log.unit[later:], log.positive[later:], log.weak[later:]), blocks, half - later


def _vouched(about: str, log: Log, half: int, retrain: int) -> tuple[Records, str]:
    """What is said of the second half, and what the daemon could not do."""
    clean = [line for line, bad in zip(log.lines[:half], log.positive[:half], strict=True) if not bad]
    with watched(about, settings(warmup=len(clean), key=HDFS_KEY, retrain=retrain)) as run:
        run.vouch(clean)
        before = run.line
        run.stream(log.lines[half:])
        records = run.finish()
    return records.only(records.line > before), "; ".join(run.notes)


def live(data: Path, seed: int) -> list[Row]:
    log, blocks, half = _begun(data, seed)
    with watched("hdfs_raw, live", settings(warmup=half, key=HDFS_KEY)) as run:
        run.stream(log.lines[:half])
        run.settle(wanted=True)
        run.stream(log.lines[half:])
        records = run.finish()
    rows = _judged("hdfs_raw, live warm-up", log, blocks, half, records.only(records.line > half), seed)
    asked = {"PR-AUC": {"floor": 0.50, "target": 0.65}, "F1 at its own flags": {"floor": 0.40, "target": 0.55}}
    return asking(rows, asked)


def answered(data: Path, seed: int) -> list[Row]:
    log, blocks, half = _begun(data, seed)
    with watched("hdfs_raw, feedback", settings(warmup=half, key=HDFS_KEY)) as run:
        run.stream(log.lines[:half])
        run.settle(wanted=True)
        operator = Operator(run, blocks)
        operator.pass_over()
        run.stream(log.lines[half:], batch=ANSWER_LINES, after=operator.answer)
        records = run.finish()
    name = f"hdfs_raw, live, {ANSWERS} answers"
    rows = _judged(name, log, blocks, half, records.only(records.line > half), seed, members=False)
    asked = {"F1 at its own flags": {"floor": 0.60, "target": 0.75}}
    return asking(rows, asked, operator.said())


class Operator:
    """Answers the alerts in the order in which they come, truthfully, one answer an incident."""

    def __init__(self, run: Watched, blocks: dict[str, bool]) -> None:
        self._run = run
        self._blocks = blocks
        self._last: str | None = None
        self._answered: set[str] = set()
        self.answers: list[bool] = []
        self.refused = ""

    def pass_over(self) -> None:
        """What was flagged until now is not looked at."""
        while found := self._run.alerts_after(self._last):
            self._last = found[-1]["id"]

    def answer(self) -> None:
        for alert in self._run.alerts_after(self._last):
            self._last = alert["id"]
            incident = str(alert.get("incident") or alert["id"])
            if incident in self._answered or len(self.answers) >= ANSWERS or self.refused:
                continue
            bad = self._blocks.get(alert["session"], False)
            body = {"id": alert["id"], "answer": "anomaly" if bad else "normal"}
            answer = self._run.daemon.api.post("/feedback", json=body)
            if answer.status_code in (404, 405) and not self.answers:
                self.refused = "no POST /feedback: nothing was answered"
                continue
            assert answer.status_code == 200, f"feedback on {body}: {answer.status_code} {answer.text}"
            self._answered.add(incident)
            self.answers.append(bad)

    def said(self) -> str:
        return self.refused or f"{len(self.answers)} answers, {sum(self.answers)} of them 'anomaly'"


def _judged(
    name: str, log: Log, blocks: dict[str, bool], half: int, records: Records, seed: int, *, members: bool = True
) -> list[Row]:
    first: dict[str, int] = {}
    for i, block in enumerate(log.unit):
        first.setdefault(block, i)
    begun_later = [block for block, at in first.items() if at >= half]
    seen_later = list(dict.fromkeys(log.unit[half:]))
    units = gather(records, records.session, begun_later)
    truth = np.array([blocks[block] for block in begun_later])
    everything = gather(records, records.session, seen_later)
    harmless = np.array([not blocks[block] for block in seen_later])
    opened = incidents(records) & np.array([not blocks.get(key, True) for key in records.session])
    alarms = share_interval(everything.flagged[harmless], seed)
    flags = found(truth, units.flagged)
    rows = [
        Row.of(
            name, "PR-AUC", ap_interval(truth, units.strangeness, seed), note=f"{truth.sum()} of {len(truth)} blocks"
        ),
        Row.of(
            name,
            "F1 at its own flags",
            f1_interval(truth, units.flagged, seed),
            note=f"precision {flags.precision:.2f}, recall {flags.recall:.2f}",
        ),
        Row(name, "F1 at the best threshold", best_f1(truth, units.strangeness)),
        Row(
            name,
            "false alarms per 1,000 sessions",
            1000 * alarms.value,
            1000 * alarms.low,
            1000 * alarms.high,
            digits=1,
            note=f"{int(everything.flagged[harmless].sum())} of {int(harmless.sum())} normal blocks",
        ),
        Row(
            name,
            "false incidents per 1,000 sessions",
            1000 * float(opened.sum()) / int(harmless.sum()),
            digits=1,
            note=f"{int(opened.sum())} of {int(incidents(records).sum())} incidents were opened by normal blocks",
        ),
    ]
    return rows + (member_rows(name, truth, units, seed) if members else [])


def _controls(name: str, log: Log, blocks: dict[str, bool], half: int, seed: int) -> list[Row]:
    """The same halves for detectors that see whole blocks, as events of our own templates."""
    fields = parse_as_kind("timestamped", log.lines, clock=0.0)
    events = TemplateTable().assign(fields.family, fields.contents).tolist()
    known: dict[str, list[int]] = {}
    judged: dict[str, list[int]] = {}
    begun = set(log.unit[:half])
    for i, (block, event) in enumerate(zip(log.unit, events, strict=True)):
        if i < half and not blocks[block]:
            known.setdefault(block, []).append(event)
        elif i >= half and block not in begun:
            judged.setdefault(block, []).append(event)
    truth = np.array([blocks[block] for block in judged])
    as_tuples = [tuple(each) for each in known.values()], [tuple(each) for each in judged.values()]
    return control_rows(name, truth, controls(*as_tuples, alpha=CONTROL_ALPHA, seed=seed))
