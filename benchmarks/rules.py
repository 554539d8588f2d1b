"""Recall, false alarms and speed of the built-in rules: `python -m benchmarks.rules [--show]`.

Data sets are looked for in ../shared/data beside the checkout; absent ones are named and skipped.

    payloads      attack and benign values, each as `/x?q=<percent-encoded>`. Patterns were written looking at
                  one half of the attacks (by a bit of the payload's SHA-256) and never at the other. The
                  benign ones were all looked at, and so were the logs below: their figures are no forecast.
    traffic       two real access logs: lines without a sign of attack that rules match all the same
    scan          a real scanner's run in real traffic: hits by kind of request
    speed         lines/s of one core over real and over attack lines, milliseconds for the worst single lines we know

`--show` also prints every benign payload and every distinct harmless target that was hit.
"""

import argparse
import csv
import gzip
import hashlib
import json
import random
import re
import time
from collections import Counter, defaultdict
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote_from_bytes

from detection.detection_settings import RuleText
from detection.rules.decoding import decode_field
from detection.rules.rule_matching import RuleSet

DATA = Path(__file__).parents[2] / "shared" / "data"
BATCH_LINES = 1000
_COMBINED = re.compile(rb'"(?:[A-Z]+ )?(\S+)[^"]*" \d+ \S+ "[^"]*" "([^"]*)"')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print what was hit among harmless lines")
    show: bool = parser.parse_args().show
    pack = RuleText("builtin", (files("detection") / "rulepack.toml").read_text("utf-8"))
    began = time.perf_counter()
    rules = RuleSet.compile([pack])
    print(f"pack: {len(rules.rules)} rules, compiled and tested in {(time.perf_counter() - began) * 1e3:.0f} ms\n")
    attacks = payloads(rules, show)
    for name in ("web_wp2016", "web_apache2015"):
        traffic(rules, name, show)
    scan(rules)
    speed(pack, attacks)
    hostile(rules, attacks)


def payloads(rules: RuleSet, show: bool) -> list[bytes]:
    """Prints recall and false positives by source; gives the attack targets."""
    path = DATA / "payloads" / "payloads.jsonl.gz"
    if not path.exists():
        print(f"payloads: skipped, no {path}\n")
        return []
    with gzip.open(path) as file:
        rows = [json.loads(line) for line in file]
    values = [row["payload"].encode("utf-8", "surrogatepass") for row in rows]
    targets = [b"/x?q=" + quote_from_bytes(value, safe="").encode() for value in values]
    hits = rules.match(targets, [b"-"] * len(rows), [b""] * len(rows), web=True)
    first = dict(zip(hits.lines.tolist()[::-1], hits.rules.tolist()[::-1], strict=True))
    tally: dict[str, Counter[str]] = defaultdict(Counter)
    for i, row in enumerate(rows):
        half = "seen" if hashlib.sha256(values[i]).digest()[0] & 1 == 0 else "held"
        names = [f"{row['src']} {row['class']}", "all attacks"] if row["label"] else [f"{row['src']} {row['class']}"]
        for name in names:
            tally[name][half] += 1
            tally[name][half + " hit"] += i in first
        if show and not row["label"] and i in first:
            print(f"    benign but hit by {rules.rules[first[i]].name}: {row['payload'][:100]!r}")
    print(f"{'payloads':36s} {'attacks':>8s} {'recall seen half':>17s} {'held-out half':>14s} {'all':>6s}")
    for name, count in sorted(tally.items()):
        seen, held, seen_hit, held_hit = (count[k] for k in ("seen", "held", "seen hit", "held hit"))
        n, hit = seen + held, seen_hit + held_hit
        if name.split()[-1] in ("norm", "benign", "benign_crs"):
            print(f"{name:36s} {n:8d} benign: {hit} hit ({hit / n:.3%})")
        else:
            print(f"{name:36s} {n:8d} {seen_hit / max(1, seen):17.3f} {held_hit / max(1, held):14.3f} {hit / n:6.3f}")
    print(
        "benign_crs are negative tests of single rules of another rule set; many of them hold an attack that\n"
        "the rule under test must not see at that place (see --show).\n"
    )
    return [target for target, row in zip(targets, rows, strict=True) if row["label"]]


def traffic(rules: RuleSet, name: str, show: bool) -> None:
    read = _log(name)
    if read is None:
        return
    targets, agents, lines, labels = read
    hits = rules.match(targets, agents, lines, web=True)
    quiet = {i for i, (label, _) in enumerate(labels) if label == "0"}
    hit = [(i, r) for i, r in zip(hits.lines.tolist(), hits.rules.tolist(), strict=True) if i in quiet]
    share = len({i for i, _ in hit}) / len(quiet)
    print(f"{name}: {len({i for i, _ in hit})} of {len(quiet)} lines without a sign of attack hit ({share:.3%})")
    for rule, count in Counter(rules.rules[r].name for _, r in hit).most_common():
        print(f"    {count:5d} {rule}")
    if show:
        for target in sorted({targets[i] for i, _ in hit}):
            print("      ", target[:120].decode(errors="replace"))
    print()


def scan(rules: RuleSet) -> None:
    read = _log("web_inject")
    if read is None:
        return
    targets, agents, lines, labels = read
    hits = rules.match(targets, agents, lines, web=True)
    hit = set(hits.lines.tolist())
    tally: dict[str, list[bool]] = defaultdict(list)
    for i, (label, kind) in enumerate(labels):
        tally[kind if label == "1" else "harmless"].append(i in hit)
    print("web_inject: lines hit, by kind (most of a scan is plain crawling, which no rule can tell)")
    for kind, flags in sorted(tally.items()):
        print(f"    {kind or 'harmless':24s} {sum(flags):6d} of {len(flags):6d}  {sum(flags) / len(flags):.3f}")
    print()


def speed(pack: RuleText, attacks: list[bytes]) -> None:
    read = _log("web_wp2016")
    if read is not None:
        targets, agents, lines, _ = read
        print(f"web_wp2016: {_rate(pack, targets, agents, lines):,.0f} lines/s in batches of {BATCH_LINES}")
        distinct = list(dict.fromkeys(targets))
        rate = _rate(pack, distinct, [b"-"] * len(distinct), [b"-"] * len(distinct))
        print(f"its {len(distinct)} distinct targets, each once: {rate:,.0f} lines/s")
    if attacks:
        some = attacks[::4]
        log_lines = [b'1.2.3.4 - - [01/Jan/2026:00:00:00 +0000] "GET ' + t + b' HTTP/1.1" 200 1 "-" "-"' for t in some]
        print(f"attacks only: {_rate(pack, some, [b'-'] * len(some), log_lines):,.0f} lines/s\n")


def hostile(rules: RuleSet, attacks: list[bytes]) -> None:
    chance = random.Random(1)
    alphabet = b"'\"()<>=;|&$ {}[].,/\\abcdefghijklmnopqrstuvwxyz0123456789"
    worst = {
        "a...a!": b"a" * 65535 + b"!",
        "%25%25...": b"%25" * 21845,
        "quotes": b"'\"" * 32768,
        "random bytes": chance.randbytes(65536),
        "random printable": bytes(chance.choices(alphabet, k=65536)),
        "select select...": b"select " * 9362,
        "&#1;&#1;...": b"&#1;" * 16384,
        "attacks, joined": b"&".join(decode_field(t, query=True) for t in attacks[::97])[:65536],
    }
    print("one 64 KiB line as target and line: milliseconds, first time and median of 5 more (random ones: fresh)")
    for name, line in worst.items():
        times = []
        for _ in range(6):
            if name.startswith("random"):
                line = bytes(chance.choices(range(256) if name == "random bytes" else alphabet, k=65536))
            began = time.process_time()
            rules.match([line], [b"-"], [line], web=True)
            times.append((time.process_time() - began) * 1e3)
        print(f"    {name:20s} {times[0]:7.2f} {sorted(times[1:])[2]:7.2f}")


def _rate(pack: RuleText, targets: list[bytes], agents: list[bytes], lines: list[bytes]) -> float:
    """Lines per second of processor time (the machine may be busy), best of three, each from cold."""
    best = 0.0
    for _ in range(3):
        rules = RuleSet.compile([pack])
        began = time.process_time()
        for i in range(0, len(lines), BATCH_LINES):
            part = slice(i, i + BATCH_LINES)
            rules.match(targets[part], agents[part], lines[part], web=True)
        best = max(best, len(lines) / (time.process_time() - began))
    return best


def _log(name: str) -> tuple[list[bytes], list[bytes], list[bytes], list[tuple[str, str]]] | None:
    folder = DATA / name
    if not folder.exists():
        print(f"{name}: skipped, no {folder}\n")
        return None
    with gzip.open(folder / "access.log.gz") as file:
        lines = [line.rstrip(b"\n") for line in file]
    with gzip.open(folder / "labels.csv.gz", "rt") as text:
        labels = [(row[1], row[2]) for row in list(csv.reader(text))[1:]]
    found = [_COMBINED.search(line) for line in lines]
    targets = [match[1] if match else line for match, line in zip(found, lines, strict=True)]
    agents = [match[2] if match else b"" for match in found]
    return targets, agents, lines, labels


if __name__ == "__main__":
    main()
