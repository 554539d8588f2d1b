"""A log and labels of one's own: the first part to learn from as it is, the rest judged by session."""

from pathlib import Path

import numpy as np

from benchmarks.quality.figures import member_rows
from benchmarks.quality.logs import read_lines, rows
from benchmarks.quality.metrics import ap_interval, f1_interval, found
from benchmarks.quality.records import gather
from benchmarks.quality.report import Row
from benchmarks.quality.watching import settings, watched


def measure(log: Path, labels: Path, key: str, warmup: int | None) -> list[Row]:
    """A session is to be found if a line of it is labelled 1, left out if its only labels beside 0 are 2."""
    lines = read_lines(log)
    label = np.zeros(len(lines), dtype=np.int64)
    for row in rows(labels):
        label[int(row["line"]) - 1] = int(row["label"])
    learned = len(lines) // 2 if warmup is None else warmup
    with watched(log.name, settings(warmup=learned, key=key)) as run:
        run.stream(lines[:learned])
        run.settle(wanted=True)
        run.stream(lines[learned:])
        records = run.finish()
    records = records.only(records.line > learned)
    instances = records.instances()
    names = list(dict.fromkeys(instances))
    place = {name: i for i, name in enumerate(names)}
    worst = np.zeros((2, len(names)), dtype=np.bool_)
    for name, line in zip(instances[~records.closed], records.line[~records.closed], strict=True):
        if label[line - 1]:
            worst[label[line - 1] - 1, place[name]] = True
    truth, unsure = worst
    judged = truth | ~unsure
    units = gather(records, instances, names).only(judged)
    truth = truth[judged]
    flags = found(truth, units.flagged)
    return [
        Row.of(
            log.name, "PR-AUC", ap_interval(truth, units.strangeness), note=f"{truth.sum()} of {len(truth)} sessions"
        ),
        Row.of(
            log.name,
            "F1 at its own flags",
            f1_interval(truth, units.flagged),
            note=f"precision {flags.precision:.2f}, recall {flags.recall:.2f}",
        ),
        Row(log.name, "false alarms per 1,000 sessions", 1000 * float(units.flagged[~truth].mean()), digits=1),
        *member_rows(log.name, truth, units),
    ]
