"""What a soak asserts, as functions of what was seen: each returns everything that is wrong, in words. Pure."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.faults.senders import Sending
from tests.soak.load import as_journaled, attacks_in

# What the daemon may grow in a minute once it is warm, watched for at least so long. In less time it does not get warm:
# what remembers a bounded number of lines, windows and records is still being filled, and only what runs away is
# noticed.
MOST_BYTES_A_MINUTE = 1e6
LONG_SECONDS = 600.0
MOST_BYTES_A_MINUTE_SOON = 20e6
# Descriptors and threads go up and down with those who are connected; a leak only goes up.
MOST_MORE = 8

Record = Mapping[str, Any]


@dataclass
class Journaled:
    """What the journal holds: the bytes of each connection, and how many lines all of them are."""

    sources: dict[str, bytes] = field(default_factory=dict)
    lines: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    """One look at the process: `seconds` on any clock, the other numbers as the kernel has them."""

    seconds: float
    rss_bytes: int
    descriptors: int
    threads: int


def wrong_with_lines(sendings: Iterable[Sending], journaled: Journaled, status: Mapping[str, Any]) -> list[str]:
    """No line lost, none twice, and none that nobody sent."""
    wrong = list(journaled.notes)
    found: dict[bytes, bytes] = {}
    for name, data in journaled.sources.items():
        key = data.partition(b"\n")[0]
        if key in found:
            wrong.append(f"connection {name}: {key[:80]!r} is in the journal twice")
        found[key] = data
    for sending in sendings:
        held, expected = found.pop(sending.key, b""), as_journaled(sending.data)
        if not expected.startswith(held):
            wrong.append(f"{sending.key[:80]!r}: other bytes than were sent")
        elif sending.confirmed and held != expected:
            wrong.append(f"{sending.key[:80]!r}: {len(held)} of {len(expected)} confirmed bytes")
    wrong += [f"a connection that nobody made: {key[:80]!r}" for key in found]
    if (status["logs_processed"], status["lost_lines"]) != (journaled.lines, 0):
        wrong.append(f"{status['logs_processed']} lines counted, {status['lost_lines']} lost, of {journaled.lines}")
    return wrong


def accounted_for(records: Iterable[Record]) -> Counter[str]:
    """How often each attack is told of, by its number, in a record of its own."""
    return Counter(
        number
        for record in records
        if record.get("attack_types") and not record.get("closed")
        for number in attacks_in(str(record["text"]).encode())
    )


def counted(records: Iterable[Record]) -> list[str]:
    """The ids of the lines with attacks that counting records stand for."""
    runs = [
        run.partition("-")
        for record in records
        for group in record.get("alerts", ())
        if group["verdict"] == "attack"
        for run in group["ids"].split(",")
    ]
    return [
        str(line) for first, _, last in runs if "." not in first for line in range(int(first), int(last or first) + 1)
    ]


def wrong_with_sum(records: Sequence[Record], status: Mapping[str, Any]) -> list[str]:
    """Records in full, and alerts in counting records and in counts under way, are what was flagged."""
    alarms, told = status["alarms"], sum(record.get("stands_for", 1) for record in records)
    if (told, told + alarms["counting"]) == (alarms["recorded"] + alarms["counted"], alarms["flagged"]):
        return []
    return [f"records stand for {told} alerts, {alarms['counting']} are in counts, of {alarms['flagged']}"]


def wrong_with_records(records: Sequence[Record], journaled: Journaled) -> list[str]:
    """Every attack that was accepted is told of once, in a record or a counting record, and no id is there twice.

    Which attack it is that a counting record stands for cannot be seen there: only their number is held against it.
    """
    told = accounted_for(records)
    # A line that is not finished when the journal ends is none yet.
    accepted = {number for data in journaled.sources.values() for number in attacks_in(data)}
    in_counts = counted(records)
    ids = Counter([*(record["id"] for record in records), *in_counts])
    untold = sorted(accepted - set(told))
    return [
        *(f"id {number} is there {count} times" for number, count in ids.items() if count > 1),
        *(f"attack {number} is nowhere" for number in untold[len(in_counts) :]),
        *(f"attack {number} is told of {count} times" for number, count in told.items() if count > 1),
        *(f"attack {number} was never accepted" for number in sorted(set(told) - accepted)),
    ]


def wrong_with_log(log: str) -> list[str]:
    """Nothing that anybody does leaves a traceback."""
    lines = log.splitlines()
    where = [number for number, line in enumerate(lines) if "Traceback (most recent call last)" in line]
    return [f"a traceback after: {lines[max(number - 1, 0)][:200]}" for number in where]


def wrong_with_use(samples: Sequence[Sample]) -> list[str]:
    """Of a warm process: memory that grows, or more descriptors or threads at the end than at the beginning."""
    wrong = []
    slope = bytes_a_minute(samples)
    is_long = samples[-1].seconds - samples[0].seconds >= LONG_SECONDS
    if slope >= (MOST_BYTES_A_MINUTE if is_long else MOST_BYTES_A_MINUTE_SOON):
        wrong.append(f"memory grows by {slope / 1e6:.2f} MB a minute")
    third = max(len(samples) // 3, 1)
    return wrong + wrong_with_what_is_held(samples[:third], samples[-third:])


def wrong_with_what_is_held(before: Sequence[Sample], after: Sequence[Sample]) -> list[str]:
    """More descriptors or threads after than before, by the medians."""
    uses: tuple[tuple[str, Callable[[Sample], int]], ...] = (
        ("descriptors", lambda sample: sample.descriptors),
        ("threads", lambda sample: sample.threads),
    )
    return [
        f"{later:.0f} {name}, {earlier:.0f} before"
        for name, of in uses
        if (later := statistics.median(map(of, after))) > (earlier := statistics.median(map(of, before))) + MOST_MORE
    ]


def bytes_a_minute(samples: Sequence[Sample]) -> float:
    """The median of the growth over each fifth of the time, so that one step, as of a new model, is no slope."""
    apart = max(len(samples) // 5, 1)
    pairs = zip(samples, samples[apart:], strict=False)
    return 60.0 * statistics.median(
        (later.rss_bytes - sample.rss_bytes) / (later.seconds - sample.seconds) for sample, later in pairs
    )
