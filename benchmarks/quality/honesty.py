"""Is the alarm budget honest? The share of harmless sessions that is flagged, divided by the level.

Of every set the harmless sessions, in order: the first half to learn from, as ordinary lines, the sessions that
begin in the second half to be judged. Alarms by rules are exempt from the budget and counted beside it. `LEVEL` is
larger than a real budget, so that there are enough false alarms to count; if a set is too small for it, the daemon
raises it to its floor, and the share is compared with that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.quality.logs import (
    HDFS_KEY,
    INSTANCE_KEY,
    Sessions,
    Writer,
    as_lines,
    hdfs_raw,
    hdfs_sessions,
    hdfs_text,
    openstack_sessions,
    openstack_text,
    read_lines,
    rows,
    web,
)
from benchmarks.quality.metrics import Interval
from benchmarks.quality.report import Row
from benchmarks.quality.watching import settings, watched

LEVEL = 0.005
NEZHA_LINES = 60_000


@dataclass(frozen=True)
class _Harmless:
    name: str
    lines: list[bytes]
    key: str = "auto"


def honesty(data: Path, seed: int) -> list[Row]:
    return [_ratio(make(data, seed), seed) for make in _SETS if _present(data, make)]


def _present(data: Path, make: "Callable[[Path, int], _Harmless]") -> bool:
    try:
        make(data, 1)
    except FileNotFoundError as exc:
        print(f"  honesty: {exc.filename} is missing: left out")
        return False
    return True


def _ratio(harmless: _Harmless, seed: int) -> Row:
    half = len(harmless.lines) // 2
    with watched(f"honesty, {harmless.name}", settings(warmup=half, key=harmless.key, alpha=LEVEL)) as run:
        run.stream(harmless.lines[:half])
        run.settle(wanted=True)
        run.stream(harmless.lines[half:])
        records = run.finish()
    later = records.only(records.first_line > half)
    instances = later.instances()
    sessions = len(np.unique(instances.astype(str)))
    by_rule = later.flagged & (later.verdict == "attack")
    alarmed = set(instances[later.flagged & ~by_rule]) - set(instances[by_rule])
    count = len(alarmed)
    low, high = poisson_interval(count)
    expected = sessions * run.alpha
    opened = len(set(later.incident[later.flagged & ~by_rule]))
    ruled = len(set(instances[by_rule]))
    return Row.of(
        "honesty of the budget",
        f"real rate ÷ α, {harmless.name}",
        Interval(count / expected, low / expected, high / expected),
        band=(0.3, 3.0, 0.5, 2.0),
        digits=2,
        note="; ".join(
            [
                f"{count} of {sessions:,} sessions, {opened} incidents, at α = {100 * run.alpha:.2f} %",
                f"by rules {ruled}",
                *run.notes,
            ]
        ),
    )


def poisson_interval(count: int) -> tuple[float, float]:
    """The 95 % interval of a mean of which `count` was seen (Wilson and Hilferty's approximation of Garwood's)."""
    low = 0.0 if not count else count * (1 - 1 / (9 * count) - 1.96 / (3 * count**0.5)) ** 3
    above = count + 1
    return low, above * (1 - 1 / (9 * above) + 1.96 / (3 * above**0.5)) ** 3


def _hdfs_raw(data: Path, seed: int) -> _Harmless:
    log, _ = hdfs_raw(data)
    lines = [line for line, bad in zip(log.lines, log.positive, strict=True) if not bad]
    return _Harmless("normal blocks of hdfs_raw", lines, HDFS_KEY)


def _made(name: str, given: Sessions, write: Writer, key: str, seed: int) -> _Harmless:
    chance = np.random.default_rng(seed)
    normal = chance.permutation(np.flatnonzero(~given.anomalous)).tolist()
    worded = [(given.names[i], [given.wording[event] for event in given.events[i]]) for i in normal]
    return _Harmless(name, as_lines(worded, write, chance)[0], key)


def _hdfs100k(data: Path, seed: int) -> _Harmless:
    return _made("normal sessions of hdfs100k", hdfs_sessions(data, "hdfs100k"), hdfs_text, HDFS_KEY, seed)


def _openstack(data: Path, seed: int) -> _Harmless:
    return _made("normal sessions of openstack", openstack_sessions(data), openstack_text, INSTANCE_KEY, seed)


def _wordpress(data: Path, seed: int) -> _Harmless:
    log = web(data, "web_wp2016")
    quiet = ~log.positive & ~log.weak
    return _Harmless("web_wp2016, label 0", [line for line, fine in zip(log.lines, quiet, strict=True) if fine])


def _apache(data: Path, seed: int) -> _Harmless:
    log = web(data, "web_apache2015")
    quiet = ~log.positive & ~log.weak
    return _Harmless("web_apache2015, label 0", [line for line, fine in zip(log.lines, quiet, strict=True) if fine])


def _nezha(data: Path, seed: int) -> _Harmless:
    """Lines of pods that no fault was injected into at the time, in minutes in which there was one elsewhere.

    So its halves differ by more than chance; there is nothing calmer in the set.
    """
    folder = data / "nezha_k8s"
    labels = rows(folder / "labels.csv.gz")
    lines = read_lines(folder / "k8s.jsonl.gz")
    fine = [line for line, row in zip(lines, labels, strict=True) if row["in_fault_pod"] == "0"]
    return _Harmless("nezha_k8s outside the faulty pods", fine[:NEZHA_LINES])


_SETS = (_hdfs_raw, _hdfs100k, _openstack, _wordpress, _apache, _nezha)
