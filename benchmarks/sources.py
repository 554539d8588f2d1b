"""How well the counters per client detect scans, floods and brute force in real logs, and their speed.

    python -m benchmarks.sources [DATA]        DATA defaults to ../shared/data

Each log is counted once, in its order, from an empty table. A session is what one source did without a pause of
more than 60 s; its score is its highest. The threshold for alpha is the 1 - alpha quantile of the sessions of the
*clean* lines (web_inject: the 57,934 lines before the scan; else the lines without a label, in web_wp2016 of
the first half). Of each class of attack we print the line of it that is first over the threshold and the share
of its lines that are over; of the clean rest, how many sessions are over per 1,000 and per day of log time.

web_inject's clean lines are those of web_wp2016, labelled by rules: some of its "clean" sessions are scans that
no rule names. In linux_combo nearly every source is an attacker, so that to fail is what is usual there.
"""

import csv
import gzip
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detection.formats.kinds import parse_as_kind, recognise
from detection.members.origins.line_features import failures_of, resources_of, sources_of
from detection.members.origins.source_counters import SourceCounters
from detection.sessions.log_clock import LogClock

ALPHAS = (0.001, 0.005)
BATCH_LINES = 4096
PAUSE_SECONDS = 60.0
WARMUP_OF_INJECT = 57_934
_JUNE_2005 = 1_118_300_000.0  # for times that leave out the year

Mask = NDArray[np.bool_]
Columns = tuple[list[bytes], NDArray[np.float64], NDArray[np.bool_], NDArray[np.uint64]]


@dataclass(frozen=True)
class Log:
    """A log of n lines, counted by `counters`."""

    name: str
    sources: list[bytes]
    clock: NDArray[np.float64]
    counters: SourceCounters
    score: NDArray[np.float64]
    session: NDArray[np.int64]
    labels: list[dict[str, str]]

    def label(self, column: str, value: str) -> Mask:
        """The lines with a source whose label is `value`."""
        rows = zip(self.sources, self.labels, strict=True)
        return np.array([source != b"" and label[column] == value for source, label in rows], dtype=np.bool_)


def main() -> None:
    data = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data")
    print("lines/s of one core                     lines   sources_of   failures_of    observe")
    logs = {name: log for name, file in _LOGS if (log := read(data, name, file)) is not None}
    print()
    if log := logs.get("web_inject"):
        before, scan = np.arange(len(log.score)) < WARMUP_OF_INJECT, log.label("label", "1")
        report(log, before, ~before & ~scan, {"scan": scan})
    if log := logs.get("web_wp2016"):
        first_half, clean = np.arange(len(log.score)) < len(log.score) // 2, log.label("label", "0")
        names = ("bruteforce_wplogin", "xmlrpc_flood", "scan", "traversal")
        report(log, clean & first_half, clean & ~first_half, {name: log.label("class", name) for name in names})
    if log := logs.get("linux_combo"):
        clean = log.label("class", "")
        report(log, clean, clean, {name: log.label("class", name) for name in ("ssh_authfail", "ftp_connection_flood")})
    for name in ("hdfs_raw", "nezha_k8s", "web_apache2015"):
        if log := logs.get(name):
            highest = np.quantile(log.score, (0.5, 0.9, 0.99, 0.999, 1.0))
            print(f"{name}: score at .5 .9 .99 .999 1 of all lines: {' '.join(f'{each:.2f}' for each in highest)}")
    if log := logs.get("web_wp2016"):
        flood(log)


def read(data: Path, name: str, file: str) -> Log | None:
    path = data / name / file
    if not path.exists():
        print(f"{name}: not here")
        return None
    with gzip.open(path) as lines_file:
        lines = [line.rstrip(b"\r\n") for line in lines_file]
    fields = parse_as_kind(recognise(lines[:64]), lines, clock=_JUNE_2005)
    began = time.process_time()
    sources = sources_of(fields)
    between = time.process_time()
    errors = failures_of(fields)
    ended = time.process_time()
    clock = LogClock().advance(fields.times, _JUNE_2005)
    columns = (sources, clock, errors, resources_of(fields.contents))
    counters = SourceCounters()
    score, seconds = observed(counters, columns)
    speeds = [len(lines) / max(each, 1e-3) for each in (between - began, ended - between, seconds)]
    print(f"  {name:34}{len(lines):8,}{speeds[0]:13,.0f}{speeds[1]:11,.0f}{speeds[2]:11,.0f}")
    labels: list[dict[str, str]] = []
    if (label_path := data / name / "labels.csv.gz").exists():
        with gzip.open(label_path, "rt", newline="") as label_file:
            labels = list(csv.DictReader(label_file))
    return Log(name, sources, clock, counters, score, sessions(sources, clock), labels)


def observed(counters: SourceCounters, columns: Columns) -> tuple[NDArray[np.float64], float]:
    """The scores, and seconds of processor time."""
    sources, clock, errors, things = columns
    began = time.process_time()
    scores = [
        counters.observe(sources[at], clock[at], errors[at], things[at])
        for at in (slice(start, start + BATCH_LINES) for start in range(0, len(sources), BATCH_LINES))
    ]
    return np.concatenate(scores), time.process_time() - began


def sessions(sources: Sequence[bytes], clock: NDArray[np.float64]) -> NDArray[np.int64]:
    """The number of each line's session."""
    open_: dict[bytes, tuple[int, float]] = {}
    numbers, begun = np.empty(len(sources), dtype=np.int64), 0
    for i, (source, now) in enumerate(zip(sources, clock.tolist(), strict=True)):
        number, last = open_.get(source, (-1, -np.inf))
        if now > last + PAUSE_SECONDS:
            number, begun = begun, begun + 1
        open_[source] = number, now
        numbers[i] = number
    return numbers


def highest_of_sessions(log: Log, lines: Mask) -> NDArray[np.float64]:
    highest = np.full(int(log.session.max()) + 1, -1.0)
    np.maximum.at(highest, log.session[lines], log.score[lines])
    return highest[highest >= 0.0]


def report(log: Log, calibration: Mask, rest: Mask, attacks: dict[str, Mask]) -> None:
    known, later = highest_of_sessions(log, calibration), highest_of_sessions(log, rest)
    days = float(np.ptp(log.clock[rest])) / 86_400.0
    print(f"{log.name}: {len(known):,} sessions to calibrate on, {len(later):,} later ones in {days:.1f} days")
    for alpha in ALPHAS:
        limit = float(np.quantile(known, 1.0 - alpha))
        over = int((later > limit).sum())
        print(
            f"  alpha {alpha:.3f}: over {limit:.2f} nats are {over / len(later) * 1e3:.1f} of 1,000 clean sessions",
            end="",
        )
        print(f", {over / days:.1f} a day")
        for name, lines in attacks.items():
            found = np.flatnonzero(log.score[lines] > limit)
            first = str(found[0] + 1) if len(found) else "none"
            share = len(found) / int(lines.sum())
            print(f"    {name:24}{int(lines.sum()):6,} lines, first over: {first:>5}, share over: {share:.3f}")
    print()


def flood(log: Log) -> None:
    """After all of the log: an address that asks for one page without a failure; a million addresses."""
    print("web_wp2016, then one address asks for one page, without a failure, for a minute:")
    state, now = log.counters.export(), float(log.clock[-1])
    for n in (100, 1_000, 10_000):
        columns = ([b"192.0.2.1"] * n, now + np.linspace(0.0, 60.0, n), np.zeros(n, np.bool_), np.ones(n, np.uint64))
        score, _ = observed(SourceCounters.load(state), columns)
        print(f"  {n:9,} lines: {score[-1]:.2f} nats")
    n, counters = 1_000_000, SourceCounters.load(state)
    things = np.arange(n, dtype=np.uint64)
    _, seconds = observed(counters, ([b"%d" % each for each in range(n)], now + things / 1e4, things % 2 == 0, things))
    print(f"a million sources: {n / seconds:,.0f} lines/s, {counters.evicted:,} made room, {len(counters):,} held")


_LOGS = (
    ("web_inject", "access.log.gz"),
    ("web_wp2016", "access.log.gz"),
    ("linux_combo", "Linux.log.gz"),
    ("hdfs_raw", "hdfs.log.gz"),
    ("nezha_k8s", "k8s.jsonl.gz"),
    ("web_apache2015", "access.log.gz"),
)

if __name__ == "__main__":
    main()
