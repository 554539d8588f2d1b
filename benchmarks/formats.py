"""How fast each format is parsed, and the share of real lines for which a time is found.

python -m benchmarks.formats [DATA]        DATA defaults to ../shared/data
"""

import gzip
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from detection.formats.kinds import parse_as_kind, recognise

BATCH = 1000
LINES = 20_000
ROUNDS = 3
CLOCK = 1.7e9  # the year for lines without one
SPEED = (
    "web_wp2016/access.log.gz",
    "web_apache2015/access.log.gz",
    "linux_combo/Linux.log.gz",
    "hdfs_raw/hdfs.log.gz",
    "nezha_k8s/k8s.jsonl.gz",
    "bgl_first10k/BGL_10k.log.gz",
    "templates2k/Android/Android_2k.log.gz",
    "templates2k/Apache/Apache_2k.log.gz",
    "templates2k/Hadoop/Hadoop_2k.log.gz",
    "templates2k/OpenSSH/OpenSSH_2k.log.gz",
    "templates2k/Zookeeper/Zookeeper_2k.log.gz",
)
FAMILIES = ("formats_crowdsec", "formats_lnav", "formats_logstash", "formats_rfc5424")


def main() -> None:
    data = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data")
    print(f"{'file':44}{'kind':13}{'lines/s':>9}{'timed':>8}{'errors':>8}{'recognise ms':>14}")
    for name in SPEED:
        if (data / name).exists():
            print(f"{name:44}{_speed(_lines(data / name))}")
    for kind, (lines, timed) in sorted(_coverage(data).items()):
        print(f"{kind:13}{lines:6} lines of many formats, {timed / lines:7.1%} with a time")


def _lines(path: Path) -> list[bytes]:
    lines = gzip.open(path).read().split(b"\n")[:LINES]
    return [line.removesuffix(b"\r") for line in lines if line]


def _speed(lines: list[bytes]) -> str:
    start = time.process_time()
    for _ in range(20):
        kind = recognise(lines[:20])
    recognising = (time.process_time() - start) / 20
    best = float("inf")
    for _ in range(ROUNDS):
        timed = errors = 0
        start = time.process_time()
        for first in range(0, len(lines), BATCH):
            fields = parse_as_kind(kind, lines[first : first + BATCH], clock=CLOCK)
            timed += int(np.isfinite(fields.times).sum())
            errors += int(fields.errors.sum())
        best = min(best, time.process_time() - start)
    shares = f"{timed / len(lines):8.1%}{errors / len(lines):8.1%}"
    return f"{kind:13}{len(lines) / best:9,.0f}{shares}{recognising * 1e3:14.3f}"


def _coverage(data: Path) -> dict[str, tuple[int, int]]:
    lines: Counter[str] = Counter()
    timed: Counter[str] = Counter()
    for family in _families(data):
        kind = recognise(family[:64])
        lines[kind] += len(family)
        timed[kind] += int(np.isfinite(parse_as_kind(kind, family, clock=CLOCK).times).sum())
    return {kind: (lines[kind], timed[kind]) for kind in lines}


def _families(data: Path) -> Iterator[list[bytes]]:
    for folder in FAMILIES:
        by_format: defaultdict[str, list[bytes]] = defaultdict(list)
        path = data / folder / "lines.jsonl.gz"
        for row in gzip.open(path) if path.exists() else ():
            sample = json.loads(row)
            by_format[sample["fmt"]] += sample["line"].encode("utf-8", "surrogateescape").split(b"\n")
        yield from by_format.values()


if __name__ == "__main__":
    main()
