"""Recall, false alarms and speed of the 3-gram model of parameter values.

    python -m benchmarks.values [DATA] [--worst N]      DATA defaults to ../shared/data; absent sets are skipped

    payloads   A model learns one half of HttpParams' benign values (or 100 of them), as `/x?q=<percent-encoded>`;
               the threshold is what .1 % (.05 %) of the other half exceed; recall is the share of attacks above it.
               Classes, smoothing, kinds and the number of worst characters were chosen on one half of the attacks
               and of the tested benign values (by a bit of the SHA-256: "seen"); the damping of counts with both in
               view. Three splits into learned and tested. The logs below were all looked at.
               Benign values of other sets are another language than those learned: reported apart.
    traffic    Two real access logs, each batch of 2,000 lines scored before it is learned. Quantiles are of lines that
               have values. "payloads there": the attacks of above, scored by the model at the end, at the threshold
               that .1 % of the unsuspicious lines of the log's second half exceed.
    scan       A real scanner's run in real traffic, learned from the unsuspicious lines only.
    speed      One core, values of about 15 characters, three a line, batches of 2,000 lines, and hostile lines.

--worst N scores the mean of the N worst characters, for comparison.
"""

import argparse
import csv
import gzip
import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes

import numpy as np
from numpy.typing import NDArray

from detection.members.parameter_values import character_model as member
from detection.members.parameter_values.character_model import ValueModel, Values, values_of

BATCH_LINES = 2000
SEEDS = (0, 1, 2)
_TARGET = re.compile(rb'"(?:[A-Z]+ )?(\S+)[^"]*" \d+ \S+ "')

Marks = NDArray[np.bool_]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Payloads:
    values: Values
    names: NDArray[np.str_]  # source and class
    is_attack: Marks
    bits: NDArray[np.uint8]  # of the SHA-256
    texts: list[bytes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=Path("../shared/data"))
    parser.add_argument("--worst", type=int, default=member.WORST)
    options = parser.parse_args()
    member.WORST = options.worst
    print(f"score: mean of the {member.WORST} worst characters\n")
    found = read_payloads(options.data / "payloads" / "payloads.jsonl.gz")
    if found is not None:
        payloads(found)
    for name in ("web_wp2016", "web_apache2015"):
        traffic(options.data / name, found)
    scan(options.data / "web_inject")
    speed()


def read_payloads(path: Path) -> Payloads | None:
    if not path.exists():
        print(f"payloads: skipped, no {path}\n")
        return None
    with gzip.open(path) as file:
        rows = [json.loads(line) for line in file]
    texts = [row["payload"].encode("utf-8", "surrogatepass") for row in rows]
    targets = [b"/x?q=" + quote_from_bytes(text, safe="").encode() for text in texts]
    return Payloads(
        values_of(targets, np.ones(len(rows), np.bool_)),
        np.array([f"{row['src']} {row['class']}" for row in rows]),
        np.array([row["label"] == 1 for row in rows]),
        np.array([hashlib.sha256(text).digest()[0] for text in texts], np.uint8),
        texts,
    )


def payloads(found: Payloads) -> None:
    n = len(found.names)
    forms = np.char.startswith(found.names, "HttpParams")
    usual = forms & ~found.is_attack
    seen = found.bits & 2 == 0
    print(f"{'payloads: recall of':28s} {'learned':>8s} {'at':>5s}   {'seen half, 3 splits':22s} held half, 3 splits")
    by_name: dict[str, list[float]] = {}
    for wanted in (None, 100):
        table: dict[tuple[str, float], list[list[float]]] = {}
        for seed in SEEDS:
            coin = np.array([hashlib.sha256(b"%d " % seed + text).digest()[0] & 1 for text in found.texts]) == 1
            keep = usual & coin
            if wanted is not None:
                keep[np.flatnonzero(keep)[wanted:]] = False
            model = ValueModel()
            model.learn(found.values, keep)
            scores = model.scores(found.values, n)
            for rate in (0.001, 0.0005):
                threshold = np.quantile(scores[usual & ~coin], 1 - rate)
                for what, attacks in (("attacks on forms", forms & found.is_attack), ("all attacks", found.is_attack)):
                    halves = [float(np.mean(scores[attacks & half] > threshold)) for half in (seen, ~seen)]
                    table.setdefault((what, rate), []).append(halves)
                if wanted is None and rate == 0.001:
                    for name in np.unique(found.names).tolist():
                        mine = (found.names == name) & ~seen & ~(usual & coin)
                        by_name.setdefault(name, []).append(float(np.mean(scores[mine] > threshold)))
        for (what, rate), splits in table.items():
            columns = ["  ".join(f"{split[half]:.4f}" for split in splits) for half in (0, 1)]
            print(f"  {what:26s} {wanted or 'half':>8} {rate:5.2%}   {columns[0]:22s} {columns[1]}")
    print("\n  above the .1 % threshold, held half, mean of 3 splits")
    for name, shares in by_name.items():
        is_attack = bool(found.is_attack[found.names == name][0])
        count = int(np.sum((found.names == name) & ~seen))
        print(f"    {name:34s} {'attack' if is_attack else 'benign'} {count:6d}  {np.mean(shares):.4f}")
    print()


def traffic(folder: Path, found: Payloads | None) -> None:
    log = _read(folder)
    if log is None:
        return
    targets, labels, kinds = log
    unsuspicious = labels == "0"
    later = np.arange(len(targets)) >= len(targets) // 2
    for what, keep in (("all lines", np.ones(len(targets), np.bool_)), ("unsuspicious lines", unsuspicious)):
        model = ValueModel()
        scores, rate = _stream(model, targets, keep)
        quiet = scores[unsuspicious & (scores > 0) & (np.arange(len(targets)) >= BATCH_LINES)]
        print(f"{folder.name}, learned from {what}: {np.sum(scores > 0)} of {len(targets)} lines have values; {rate}")
        marks = "  ".join(f"{q:g}: {np.quantile(quiet, q):.2f}" for q in (0.5, 0.9, 0.99, 0.999, 1.0))
        print(f"  unsuspicious     {len(quiet):6d}   {marks}")
        usual, high = np.quantile(scores[unsuspicious & later], 0.999), np.quantile(quiet, 0.99)
        for kind in np.unique(kinds[labels == "1"]).tolist():
            mine = scores[(kinds == kind) & (labels == "1")]
            mine = mine[mine > 0]
            if len(mine):
                marks = "  ".join(f"{q:g}: {np.quantile(mine, q):.2f}" for q in (0.1, 0.5, 0.9))
                above = f"above .1 % of lines ({usual:.2f}): {np.mean(mine > usual):.3f}"
                above += f", above 1 % of those with values ({high:.2f}): {np.mean(mine > high):.3f}"
                print(f"  {kind:16s} {len(mine):6d}   {marks}   {above}")
        if found is not None:
            payload_scores = model.scores(found.values, len(found.names))
            for half, bit in (("seen", 0), ("held", 2)):
                mine = payload_scores[found.is_attack & (found.bits & 2 == bit)]
                print(f"  payloads there, {half} half: {np.mean(mine > usual):.4f}")
    print()


def scan(folder: Path) -> None:
    log = _read(folder)
    if log is None:
        return
    targets, labels, kinds = log
    clean = labels == "0"
    scores, _ = _stream(ValueModel(), targets, clean)
    begin = int(np.argmin(clean))
    threshold = np.quantile(scores[begin:][clean[begin:]], 0.999)
    print(f"{folder.name}: share of the scan's lines above {threshold:.2f}, which .1 % of the others exceed meanwhile")
    for kind in np.unique(kinds[~clean]).tolist():
        mine = kinds == kind
        print(f"  {kind:24s} {np.sum(mine):6d}   {np.mean(scores[mine] > threshold):.3f}")
    print()


def speed() -> None:
    chance = np.random.default_rng(1)
    letters = np.frombuffer(b"abcdefgh0123-", np.uint8)
    words = [chance.choice(letters, size).tobytes() for size in chance.integers(8, 23, 3 * BATCH_LINES)]
    web = np.ones(BATCH_LINES, np.bool_)
    forms = {"plain": words, "with %2D and +": [word.replace(b"-", b"%2D+") for word in words]}
    print(f"{'speed, values/s':24s} {'reading':>11s} {'scoring':>11s} {'learning':>11s} {'all':>11s}")
    for name, spelled in forms.items():
        targets = [b"/x?a=%s&b=%s&page=%s" % tuple(spelled[i : i + 3]) for i in range(0, len(spelled), 3)]
        model = ValueModel()
        values = values_of(targets, web)

        def scored(model: ValueModel = model, values: Values = values) -> None:
            model.scores(values, BATCH_LINES)

        def learned(model: ValueModel = model, values: Values = values) -> None:
            model.learn(values, web)

        def read(targets: list[bytes] = targets) -> None:
            values_of(targets, web)

        def everything(model: ValueModel = model, targets: list[bytes] = targets) -> None:
            values = values_of(targets, web)
            model.scores(values, BATCH_LINES)
            model.learn(values, web)

        rates = [len(values.lines) / _seconds(each) for each in (read, scored, learned, everything)]
        print(f"  {name:22s} " + " ".join(f"{rate:11,.0f}" for rate in rates))
    paths = [b"/blog/2015/some-path/%d.html" % i for i in range(BATCH_LINES)]
    nanoseconds = _seconds(lambda: values_of(paths, web)) / BATCH_LINES * 1e9
    print(f"  a line without values: {nanoseconds:.0f} ns")
    hostile = {"a...a": b"a" * 65536, "%25%25...": b"%25" * 21845, "&a&a...": b"&a" * 32768, "NUL": b"\0" * 65536}
    model = ValueModel()

    def one(target: bytes) -> None:
        values = values_of([target], web[:1])
        model.scores(values, 1)
        model.learn(values, web[:1])

    for name, text in hostile.items():
        milliseconds = _seconds(lambda text=text: one(b"/x?q=" + text)) * 1e3  # type: ignore[misc]
        print(f"  one 64 KiB line, {name:12s} {milliseconds:.2f} ms")


def _seconds(work: Callable[[], object]) -> float:
    """Processor time of one call, the best of ten (the machine may be busy)."""
    best = float("inf")
    for _ in range(10):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best


def _stream(model: ValueModel, targets: list[bytes], keep: Marks) -> tuple[Scores, str]:
    """Scores of the lines, each batch before it is learned; and how fast that was."""
    scores = []
    began = time.process_time()
    for start in range(0, len(targets), BATCH_LINES):
        batch = targets[start : start + BATCH_LINES]
        values = values_of(batch, np.ones(len(batch), np.bool_))
        scores.append(model.scores(values, len(batch)))
        model.learn(values, keep[start : start + BATCH_LINES])
    return np.concatenate(scores), f"{len(targets) / (time.process_time() - began):,.0f} lines/s"


def _read(folder: Path) -> tuple[list[bytes], NDArray[np.str_], NDArray[np.str_]] | None:
    if not folder.exists():
        print(f"{folder.name}: skipped, no {folder}\n")
        return None
    with gzip.open(folder / "access.log.gz") as file:
        lines = [line.rstrip(b"\n") for line in file]
    with gzip.open(folder / "labels.csv.gz", "rt") as text:
        rows = list(csv.reader(text))[1:]
    found = [_TARGET.search(line) for line in lines]
    targets = [match[1] if match else b"" for match in found]
    return targets, np.array([row[1] for row in rows]), np.array([row[2] for row in rows])


if __name__ == "__main__":
    main()
