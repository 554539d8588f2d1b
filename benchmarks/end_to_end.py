"""The whole daemon, from socket to verdict: lines a second, answers while it is busy, pauses, starts, memory.

    python -m benchmarks.end_to_end [--log access.log[.gz]] [--lines 300000] [--long 0]

Without --log the bundled log is repeated; figures for the README come from a log of 100,000 real lines. The
daemon is a process of its own, and so is the sender (this one): on two cores they share what there is.
"""

import argparse
import gzip
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.running import QUICK, Vigild, sample_lines

WARMUP = 50_000
STATUS_EVERY_SECONDS = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, help="a log of access lines")
    parser.add_argument("--lines", type=int, default=300_000, help="how many lines in all (default 300,000)")
    parser.add_argument("--long", type=int, default=0, help="then so many more, to see whether memory stays flat")
    parser.add_argument("--warmup", type=int, default=WARMUP)
    options = parser.parse_args()
    lines = read_lines(options.log)
    with tempfile.TemporaryDirectory(prefix="vigild-bench-") as home:
        settings = QUICK.format(warmup=options.warmup, every_lines=10_000, verdicts="flagged")
        daemon = Vigild(Path(home), settings=settings)
        try:
            run(daemon, lines, options.warmup, options.lines, options.long)
        finally:
            daemon.close()


def read_lines(path: Path | None) -> list[bytes]:
    if path is None:
        return sample_lines()
    opened = gzip.open(path) if path.suffix == ".gz" else open(path, "rb")
    with opened as file:
        return file.read().splitlines()


def run(daemon: Vigild, lines: list[bytes], warmup: int, total: int, long: int) -> None:
    stream = repeated(lines)
    began = time.monotonic()
    daemon.launch()
    daemon.wait(lambda: (daemon.runtime / "log.sock").exists())
    accepting = time.monotonic() - began
    daemon.wait(lambda: daemon.health().get("status") == "serving")
    print(
        f"start, fresh           log socket accepting after {accepting:.2f} s, serving {time.monotonic() - began:.2f} s"
    )

    rate, _ = send(daemon, stream, warmup)
    print(f"warm-up                {warmup:,} lines, {rate:,.0f} lines/s with rules alone")

    daemon.wait(lambda: daemon.status()["training_in_progress"])
    with asked_meanwhile(daemon) as asked:
        began, sent = time.monotonic(), 0
        rates = []
        while daemon.status()["training_in_progress"]:
            rate, seconds = send(daemon, stream, 20_000)
            rates.append(rate)
            sent += 20_000
            if sent > 2 * total:
                break
    if rates:
        print(f"while it trains        {statistics.median(rates):,.0f} lines/s ({sent:,} lines)")
        print(
            f"  GET /status          p50 {percentile(asked, 50):.1f} ms, p99 {percentile(asked, 99):.1f} ms of {len(asked)}"
        )
    daemon.wait(lambda: daemon.status()["phase"] == "ensemble", 600.0)
    trained = daemon.status()
    print(f"training               {time.monotonic() - began:.0f} s; memory {mib(trained)}")

    with asked_meanwhile(daemon) as asked:
        rate, seconds = send(daemon, stream, total)
    print(f"all three detectors    {rate:,.0f} lines/s over {total:,} lines in {seconds:.1f} s")
    print(
        f"  GET /status          p50 {percentile(asked, 50):.1f} ms, p99 {percentile(asked, 99):.1f} ms of {len(asked)}"
    )
    status = daemon.status()
    print(f"  memory               {mib(status)}; {status['sessions']['open']:,} sessions open, "
          f"{status['templates']['live']:,} templates")  # fmt: skip
    counted = status["ingest"]["lines"]
    print(
        f"  counted              {status['logs_processed']:,} lines of {counted:,} sent, {status['alarms']['flagged']:,} flagged"
    )

    if long:
        before = daemon.status()["process"]["rss_bytes"]
        rate, seconds = send(daemon, stream, long)
        after = daemon.status()["process"]["rss_bytes"]
        print(
            f"{long:,} lines more    {rate:,.0f} lines/s; memory {after / before:.3f} of before ({mib(daemon.status())})"
        )

    snapshot = daemon.post("/checkpoint")
    print(f"checkpoint             {snapshot['seconds'] * 1e3:.0f} ms, {snapshot['bytes'] / 1e6:.1f} MB")
    assert daemon.stop() == 0
    began = time.monotonic()
    daemon.start()
    again = daemon.status()
    print(f"start, with all that   serving after {time.monotonic() - began:.2f} s, of which recovery "
          f"{again['recovery']['seconds']:.2f} s, tier {again['recovery']['tier']}, "
          f"digest {'equal' if again['state_digest'] == snapshot['digest'] else 'DIFFERS'}")  # fmt: skip


def repeated(lines: list[bytes]) -> Iterator[bytes]:
    while True:
        yield from lines


def send(daemon: Vigild, stream: Iterator[bytes], count: int) -> tuple[float, float]:
    """Send lines and wait until all are applied; lines a second, seconds."""
    data = b"".join(line + b"\n" for line, _ in zip(stream, range(count), strict=False))
    target = daemon.status()["logs_processed"] + count
    began = time.monotonic()
    daemon.send(data)
    daemon.applied(target)
    seconds = time.monotonic() - began
    return count / seconds, seconds


@contextmanager
def asked_meanwhile(daemon: Vigild) -> Iterator[list[float]]:
    """The milliseconds that GET /status took, asked again and again from another connection."""
    taken: list[float] = []
    over = threading.Event()

    def ask() -> None:
        transport = httpx.HTTPTransport(uds=str(daemon.runtime / "admin.sock"))
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=60.0) as api:
            while not over.wait(STATUS_EVERY_SECONDS):
                began = time.monotonic()
                api.get("/status").raise_for_status()
                taken.append((time.monotonic() - began) * 1e3)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield taken
    finally:
        over.set()
        asking.join()


def percentile(values: list[float], share: int) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share / 100), len(ordered) - 1)] if ordered else float("nan")


def mib(status: dict) -> str:  # type: ignore[type-arg]
    return f"{status['process']['rss_bytes'] / (1 << 20):,.0f} MiB"


if __name__ == "__main__":
    main()
