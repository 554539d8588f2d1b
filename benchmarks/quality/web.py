"""Web logs: a scanner's run in real traffic, alarms on real traffic, and single values of parameters."""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.figures import member_rows
from benchmarks.quality.logs import Log, halves, request_lines, web
from benchmarks.quality.metrics import Bools, Interval, average_precision, recall_at, share_interval
from benchmarks.quality.records import RULES, Records, gather, incidents
from benchmarks.quality.report import Row
from benchmarks.quality.watching import settings, watched

WARMUP_LINES = 50_000
VALUES = "values"
_DAY = 86_400.0


# --- a scan, and a month of a real host ---------------------------------------------------------------


def inject(data: Path, seed: int) -> list[Row]:
    """A real scanner among real clients; the lines before its first are clean, and so is all that is not its own."""
    name = "web_inject"
    log = web(data, name)
    records = _streamed(name, log)
    scan = np.flatnonzero(log.positive)
    seen = caught(records, log)[scan]
    alerts = np.flatnonzero(records.flagged & (records.line > scan[0]) & _of(records, log, log.positive))
    until = len(scan)
    if len(alerts):
        until = int(np.count_nonzero(scan < records.line[alerts[0]]))
    false = incidents(records) & ~_of(records, log, log.positive) & (records.line > WARMUP_LINES)
    days = _days(records.only(records.line > WARMUP_LINES))
    told = "" if records.knows_incidents else "no record names an incident: every alert counts as one"
    scanners = {log.unit[i] for i in scan}
    lines = records.only(~records.closed & (records.line > WARMUP_LINES))
    units = gather(lines, lines.line.astype(object), range(WARMUP_LINES + 1, len(log.lines) + 1))
    return [
        Row(
            name,
            "lines of the scan until the first alert",
            until,
            floor=100,
            target=20,
            kind="less",
            digits=0,
            note="" if len(alerts) else "there was none",
        ),
        Row.of(
            name,
            "share of scan lines in a flagged incident",
            share_interval(seen, seed),
            floor=0.80,
            target=0.97,
            note=f"{len(scan)} lines of {len(scanners)} addresses",
        ),
        Row(
            name,
            "false incidents per day on the clean part",
            float(false.sum()) / days,
            floor=20,
            target=5,
            kind="less",
            digits=1,
            note="; ".join(filter(None, [f"{int(false.sum())} in {days:.1f} days of log time", told])),
        ),
        *member_rows(f"{name}, by line", log.positive[WARMUP_LINES:], units, seed),
    ]


def wordpress(data: Path, seed: int) -> list[Row]:
    """Eleven days after the warm-up of a real host, with weak labels: made by rules, so a rule detector looks well."""
    name = "web_wp2016, weak labels"
    log = web(data, "web_wp2016")
    records = _streamed(name, log)
    later = records.line > WARMUP_LINES
    days = _days(records.only(later))
    opening = incidents(records) & later
    attack, unsure = _of(records, log, log.positive), _of(records, log, log.weak)
    sure = opening & (attack | ~unsure)
    precise = share_interval(attack[sure], seed)
    positive = np.flatnonzero(log.positive)
    positive = positive[positive >= WARMUP_LINES]
    told = "" if records.knows_incidents else "every alert counts as an incident"
    return [
        Row(name, "incidents per day", float(opening.sum()) / days, digits=1, note=told),
        Row(name, "alerts per day", float((records.flagged & later).sum()) / days, digits=1),
        Row.of(name, "precision of incidents on weak labels", precise, note=f"{int(sure.sum())} incidents"),
        Row.of(
            name,
            "share of weakly labelled attack lines in a flagged incident",
            share_interval(caught(records, log)[positive], seed),
            note=f"{len(positive)} lines",
        ),
    ]


def _streamed(name: str, log: Log) -> Records:
    with watched(name, settings(warmup=WARMUP_LINES)) as run:
        run.stream(log.lines[:WARMUP_LINES])
        run.settle(wanted=True)
        run.stream(log.lines[WARMUP_LINES:])
        return run.finish()


def caught(records: Records, log: Log) -> Bools:
    """bool [lines of the log]: the line's session was flagged at some time, or its record carries an incident."""
    instances = records.instances()
    flagged = set(instances[records.flagged])
    inside = np.array([name in flagged for name in instances], dtype=np.bool_) | (records.incident != "")
    found = np.zeros(len(log.lines), dtype=np.bool_)
    lines = ~records.closed
    found[records.line[lines] - 1] = inside[lines]
    return found


def _of(records: Records, log: Log, labelled: Bools) -> Bools:
    """bool [records]: the record's session holds a labelled line."""
    instances = records.instances()
    lines = ~records.closed
    touched = set(instances[lines][labelled[records.line[lines] - 1]])
    return np.array([name in touched for name in instances], dtype=np.bool_)


def _days(records: Records) -> float:
    times = records.time[~np.isnan(records.time)]
    return max(float(times.max() - times.min()) / _DAY, 1e-9)


# --- values of parameters -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Values:
    texts: list[str]
    attack: Bools
    source: list[str]


def payloads(data: Path, seed: int) -> list[Row]:
    """Half of the harmless values vouched for, as requests; the other half and then the attacks judged.

    Rules are judged over all values: they learn nothing. The figures of value novelty are of the half not learned
    from; those of HttpParamsDataset alone can be compared with others' figures.
    """
    name = "payloads"
    values = _values(data)
    chance = np.random.default_rng(seed)
    harmless, attacks = np.flatnonzero(~values.attack), np.flatnonzero(values.attack)
    known, rest = (harmless[half] for half in halves(len(harmless), chance))
    judged = np.concatenate((rest, chance.permutation(attacks)))
    learned = request_lines([values.texts[i] for i in known], 1)
    test = request_lines([values.texts[i] for i in judged], 1 + len(known))
    # What was learned stays what it is: a stream of three attacks in four is no traffic to go on learning from.
    with watched(name, settings(warmup=len(learned), retrain=1_000_000_000)) as run:
        run.vouch(learned)
        before = run.line
        run.stream(test)
        records = run.finish()
    lines = records.only((records.line > before) & ~records.closed)
    truth, source = values.attack[judged], np.array([values.source[i] for i in judged])
    units = gather(lines, (lines.line - before - 1).astype(object), range(len(judged)))
    rule_p = units.member_ps.get(RULES, np.ones(len(judged)))
    hit = rule_p < 1.0
    note = "; ".join(run.notes)
    false = share_interval(hit[~truth], seed)
    params, tests = source == "HttpParamsDataset", source == "coreruleset"
    found = [
        Row.of(name, "recall of rules", share_interval(hit[truth], seed), floor=0.95, target=0.985, note=note),
        Row.of(
            name,
            "harmless values that a rule hits",
            false,
            floor=0.0005,
            target=0.0005,
            kind="less",
            percent=True,
            digits=5,
            note=f"{int(hit[~truth].sum())} of {int((~truth).sum())}",
        ),
        Row.of(
            name,
            "harmless values that a rule hits, without the tests of coreruleset",
            share_interval(hit[~truth & ~tests], seed),
            floor=0.0005,
            target=0.0005,
            kind="less",
            percent=True,
            digits=5,
            note=f"{int(hit[~truth & ~tests].sum())} of {int((~truth & ~tests).sum())}; the tests hold attacks, too",
        ),
        *_by_source(name, "recall of rules", hit, truth, source),
    ]
    novelty = units.member_strangeness.get(VALUES)
    if novelty is None:
        why = f"no record has a member {VALUES!r}"
        nothing = Interval(float("nan"), float("nan"), float("nan"))
        return [*found, Row.of(name, "recall of value novelty at 0.1 %", nothing, floor=0.97, target=0.995, note=why)]
    return [
        *found,
        Row(
            name,
            "recall of value novelty at 0.1 %",
            recall_at(truth[params], novelty[params], 0.001),
            floor=0.97,
            target=0.995,
            note="HttpParamsDataset",
        ),
        Row(name, "recall of value novelty at 0.1 %, all sources", recall_at(truth, novelty, 0.001)),
        Row(
            name,
            "PR-AUC of value novelty, HttpParamsDataset",
            average_precision(truth[params], novelty[params]),
        ),
        *member_rows(f"{name}, HttpParamsDataset", truth[params], units.only(params), seed),
    ]


def _values(data: Path) -> _Values:
    with gzip.open(data / "payloads" / "payloads.jsonl.gz", "rt") as file:
        found = [json.loads(line) for line in file]
    return _Values(
        [row["payload"] for row in found], np.array([row["label"] == 1 for row in found]), [row["src"] for row in found]
    )


def _by_source(name: str, what: str, hit: Bools, truth: Bools, source: NDArray[np.str_]) -> list[Row]:
    return [
        Row(name, f"{what}, {each}", float(hit[truth & (source == each)].mean())) for each in sorted(set(source[truth]))
    ]
