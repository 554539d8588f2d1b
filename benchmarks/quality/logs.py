"""Labelled sets: reading them, and generating lines for sessions that are given only as event numbers."""

import csv
import gzip
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.metrics import Bools

HDFS_KEY = r"(blk_-?\d+)"
INSTANCE_KEY = r"instance: ([0-9a-f-]{36})"
_BEGIN = 1_780_000_000  # seconds since the epoch: when made-up logs begin


@dataclass(frozen=True)
class Sessions:
    """n sessions as numbers of events; `wording` says how an event reads, `<*>` where it holds a value."""

    names: list[str]
    events: list[tuple[int, ...]]
    anomalous: Bools
    wording: dict[int, str]

    def __len__(self) -> int:
        return len(self.events)


@dataclass(frozen=True)
class Log:
    """n lines in order, what each belongs to, and whether it is what should be found; `weak`: labelled 2, unsure."""

    lines: list[bytes]
    unit: list[str]
    positive: Bools
    weak: Bools


def read_lines(path: Path) -> list[bytes]:
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        return file.read().split(b"\n")[:-1]


def rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else open(path, newline="") as file:
        return list(csv.DictReader(file))


def hdfs_raw(data: Path) -> tuple[Log, dict[str, bool]]:
    """The lines, and the blocks by name: True for anomalous ones. A line is positive if its block is."""
    folder = data / "hdfs_raw"
    labels = rows(folder / "line_labels.csv.gz")
    positive = np.array([row["anomaly"] == "1" for row in labels])
    blocks = {row["block"]: row["anomaly"] == "1" for row in rows(folder / "block_labels.csv.gz")}
    lines = read_lines(folder / "hdfs.log.gz")
    return Log(lines, [row["block"] for row in labels], positive, np.zeros(len(lines), dtype=np.bool_)), blocks


def web(data: Path, name: str) -> Log:
    """A web log; what a line belongs to is its client's address."""
    lines = read_lines(data / name / "access.log.gz")
    labels = np.array([int(row["label"]) for row in rows(data / name / "labels.csv.gz")])
    clients = [line.split(b" ", 1)[0].decode("latin-1") for line in lines]
    return Log(lines, clients, labels == 1, labels == 2)


def hdfs_sessions(data: Path, name: str) -> Sessions:
    """`name` is hdfs100k or hdfs_xu: event numbers of the one are not those of the other."""
    folder = data / "hdfs_sessions"
    if name == "hdfs100k":
        texts: dict[str, str] = json.loads((folder / "hdfs100k_templates.json").read_text())
        wording = {int(number): text for number, text in texts.items()}
    else:
        wording = dict(enumerate((folder / "hdfs_templates.csv").read_text().splitlines(), start=1))
    return _sessions(folder / f"{name}_sessions.csv.gz", "block", wording)


def openstack_sessions(data: Path) -> Sessions:
    folder = data / "openstack_loghub_sessions"
    wording = dict(enumerate((folder / "templates.csv").read_text().splitlines(), start=1))
    return _sessions(folder / "sessions.csv.gz", "session", wording)


def _sessions(path: Path, name: str, wording: dict[int, str]) -> Sessions:
    found = rows(path)
    return Sessions(
        names=[row[name] for row in found],
        events=[tuple(int(event) for event in row["events"].split()) for row in found],
        anomalous=np.array([row["anomaly"] == "1" for row in found]),
        wording=wording,
    )


# --- sessions as lines ------------------------------------------------------------------------------

_HOLE = re.compile(r"<\*>")
_BLOCK_HOLE = re.compile(r"(?<=[bB]lock )<\*>|(?<=[bB]lock)<\*>")
_INSTANCE_HOLE = re.compile(r"(?<=\[instance: )<\*>")


def hdfs_text(wording: str, block: str, chance: np.random.Generator) -> str:
    """An event as HDFS writes it; it names its block once, whatever the wording."""
    text, named = _BLOCK_HOLE.subn(f" {block} ", wording, count=1)
    text = _HOLE.sub(lambda _: f" {_address(chance)} ", text)
    return " ".join(f"INFO dfs.DataNode: {text}{'' if named else f' {block}'}".split())


def openstack_text(wording: str, instance: str, chance: np.random.Generator) -> str:
    text, named = _INSTANCE_HOLE.subn(instance, wording, count=1)
    text = _HOLE.sub(lambda _: str(chance.integers(1, 9999)), text)
    return f"INFO nova.compute.manager {text}" if named else f"INFO nova.compute.manager [instance: {instance}] {text}"


def _address(chance: np.random.Generator) -> str:
    a, b = chance.integers(1, 250, 2).tolist()
    port = int(chance.integers(30_000, 60_000))
    return f"/10.250.{a}.{b}:{port}"


Writer = Callable[[str, str, np.random.Generator], str]


def as_lines(
    sessions: Sequence[tuple[str, Sequence[str]]],
    write: Writer,
    chance: np.random.Generator,
    *,
    begin: float = _BEGIN,
    every_seconds: float = 2.0,
) -> tuple[list[bytes], list[int]]:
    """Sessions (a name, its events' wordings) as the lines of one log, and which session each line is of.

    A session begins every `every_seconds` on average and writes a line a second, so that some ten of them are
    under way at a time; none is silent within for as long as ends it. Lines are in order of time.
    """
    begins = begin + np.cumsum(chance.exponential(every_seconds, len(sessions)))
    moments: list[tuple[float, int, str]] = []
    for i, (name, events) in enumerate(sessions):
        when = begins[i] + np.cumsum(chance.uniform(0.1, 1.9, len(events)))
        moments += [(float(at), i, write(event, name, chance)) for at, event in zip(when, events, strict=True)]
    moments.sort(key=lambda moment: moment[0])
    return [f"{_stamp(at)} {text}".encode() for at, _, text in moments], [i for _, i, _ in moments]


def _stamp(at: float) -> str:
    # Written with milliseconds, as Java's loggers do; UTC, so that no clock change is in the log.
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(at))},{int(at % 1 * 1000):03d}"


def request_lines(values: Sequence[str], first: int, begin: float = _BEGIN) -> list[bytes]:
    """Values as requests for `/x?q=VALUE`, each of a client of its own, numbered from `first`, one a second."""
    lines = []
    for i, value in enumerate(values, start=first):
        when = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(begin + i))
        client = f"10.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}"
        query = quote_from_bytes(value.encode("utf-8", "surrogatepass"), safe="")
        lines.append(f'{client} - - [{when}] "GET /x?q={query} HTTP/1.1" 200 512 "-" "Mozilla/5.0"'.encode())
    return lines


def halves(n: int, chance: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers below n in two halves drawn at random, each in a random order."""
    order = chance.permutation(n)
    return order[: n // 2], order[n // 2 :]
