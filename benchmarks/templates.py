"""Templates: grouping accuracy against known templates, template counts and lines a second on real logs.

    python -m benchmarks.templates [DATA]        DATA defaults to ../shared/data

Grouping accuracy is that of the Drain and LogPAI papers: a line is right when the lines of its predicted
group are exactly those of its true one. One setting serves all systems. Lines a second are those of one
process on one core, in batches of 2,000 lines, learning from an empty table.
"""

import csv
import gzip
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from detection.templates.table import TemplateTable

BATCH = 2_000
_REQUEST = re.compile(rb'"([A-Z]+) ([^ ?"]*)[^"]*" (\d+)')


def main() -> None:
    data = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data")
    print("grouping accuracy            lines  true  found     GA")
    scores = []
    for system in sorted((data / "templates2k").glob("*/")):
        contents, truth = read_truth(system)
        table = TemplateTable()
        found = table.assign("text", contents).tolist()
        scores.append(grouping_accuracy(found, truth))
        print(f"  {system.name:24}{len(truth):8}{len(set(truth)):6}{len(table):7}  {scores[-1]:.3f}")
    if scores:
        print(f"  {'mean':45}  {sum(scores) / len(scores):.3f}")

    print("\nspeed                        lines  templates  evicted  lines/s")
    for name, family, read in _STREAMS:
        if not (data / name).exists():
            print(f"  {name:24} not here")
            continue
        measure(name, family, [read(line) for line in gzip.open(data / name)])
    shuffled = random.Random(1)
    words = [b" ".join(b"%x" % shuffled.getrandbits(40) for _ in range(8)) for _ in range(100_000)]
    letters = bytes.maketrans(b"0123456789", b"ghijklmnop")
    measure("random words", "text", [line.translate(letters) for line in words])
    measure("random paths", "access", [b"GET /" + line.replace(b" ", b"/", 2)[:32] + b" 404" for line in words])


def measure(name: str, family: str, contents: Sequence[bytes]) -> None:
    table = TemplateTable()
    started = time.perf_counter()
    for start in range(0, len(contents), BATCH):
        table.assign(family, contents[start : start + BATCH])
    seconds = time.perf_counter() - started
    rate = len(contents) / seconds
    print(f"  {name:28}{len(contents):6}{len(table):11}{table.evicted:9}{rate:9,.0f}")


def read_truth(system: Path) -> tuple[list[bytes], list[str]]:
    """Contents and true templates of one system of `templates2k`, the corrected ones where there are any."""
    corrected = list(system.glob("*_structured_corrected.csv.gz"))
    path = corrected[0] if corrected else next(system.glob("*_structured.csv.gz"))
    with gzip.open(path, "rt", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    contents = [row["Content"].encode("utf-8", "surrogateescape") for row in rows]
    return contents, [row["EventTemplate"] for row in rows]


def grouping_accuracy(found: Sequence[int], truth: Sequence[str]) -> float:
    sizes, true_sizes = Counter(found), Counter(truth)
    pairs = Counter(zip(found, truth, strict=True))
    right = sum(n for (a, b), n in pairs.items() if sizes[a] == n == true_sizes[b])
    return right / len(truth)


def request(line: bytes) -> bytes:
    found = _REQUEST.search(line)
    return b" ".join(found.groups()) if found else line.rstrip(b"\n")


def after(words: int) -> Callable[[bytes], bytes]:
    """Cut the header, the first `words` words, off a line."""
    return lambda line: line.rstrip(b"\r\n").split(None, words)[-1]


def container(line: bytes) -> bytes:
    return str(json.loads(line)["log"]).encode()


_STREAMS: tuple[tuple[str, str, Callable[[bytes], bytes]], ...] = (
    ("web_wp2016/access.log.gz", "access", request),
    ("web_apache2015/access.log.gz", "access", request),
    ("hdfs_raw/hdfs.log.gz", "text", after(3)),
    ("linux_combo/Linux.log.gz", "text", after(4)),
    ("nezha_k8s/k8s.jsonl.gz", "text", container),
)

if __name__ == "__main__":
    main()
