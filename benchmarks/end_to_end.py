"""The whole daemon, from socket to verdict: lines per second, response times under load, pauses, starts, memory.

    python -m benchmarks.end_to_end [--log access.log[.gz]] [--lines 300000] [--long 0]

Without --log the bundled log is repeated; figures for the README come from a log of 100,000 real lines. The
daemon and the sender (this process) are separate processes, which share the machine's cores.
"""

import argparse
import gzip
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import httpx

from benchmarks.running import QUICK, Vigild, sample_lines

WARMUP = 50_000
STATUS_EVERY_SECONDS = 0.02
SENT_AT_ONCE = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, help="a log of access lines")
    parser.add_argument("--lines", type=int, default=300_000, help="how many lines in all (default 300,000)")
    parser.add_argument("--long", type=int, default=0, help="then so many more, to see whether memory stays flat")
    parser.add_argument("--warmup", type=int, default=WARMUP)
    options = parser.parse_args()
    lines = read_lines(options.log)
    with tempfile.TemporaryDirectory(prefix="vigild-bench-") as home:
        daemon = Vigild(Path(home), settings=settings_with(options.warmup, 1_000_000_000))
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
    daemon.wait(lambda: bool(daemon.health().get("serving")))
    say("start, fresh", f"log socket after {accepting:.2f} s, serving after {time.monotonic() - began:.2f} s")

    rate = send(daemon, stream, warmup)
    say("warm-up", f"{rate:,.0f} lines/s over {warmup:,} lines, rules alone")
    daemon.wait(lambda: daemon.status()["training_in_progress"])
    began = time.monotonic()
    with asked_meanwhile(daemon) as asked:
        rate = send(daemon, stream, total // 2)
    say("while it trains", f"{rate:,.0f} lines/s{still_training(daemon)}; GET /status {in_words(asked)}")
    daemon.wait_for_model()
    say("first training", f"{time.monotonic() - began:.0f} s; memory {mib(daemon)}")

    with asked_meanwhile(daemon) as asked:
        rate = send(daemon, stream, total)
    say("all three detectors", f"{rate:,.0f} lines/s over {total:,} lines; GET /status {in_words(asked)}")
    status = daemon.status()
    sent = warmup + total // 2 + total
    say("  counted", f"{status['logs_processed']:,} of {sent:,} lines sent, {status['alarms']['flagged']:,} flagged")
    say(
        "  memory", f"{mib(daemon)}; {status['sessions']['open']:,} sessions, {status['templates']['live']:,} templates"
    )

    daemon.change_settings(settings_with(warmup, retrain_lines=1000))
    daemon.wait(lambda: daemon.status()["training_in_progress"])
    with asked_meanwhile(daemon) as asked:
        rate = send(daemon, stream, total // 2)
    say("while it retrains", f"{rate:,.0f} lines/s{still_training(daemon)}; GET /status {in_words(asked)}")
    daemon.change_settings(settings_with(warmup, retrain_lines=1_000_000_000))

    if long:
        daemon.wait(lambda: not daemon.status()["training_in_progress"], 600.0)
        send(daemon, stream, SENT_AT_ONCE)  # one-time costs of the new model are paid now
        before = daemon.status()["process"]["rss_bytes"]
        rate = send(daemon, stream, long)
        growth = daemon.status()["process"]["rss_bytes"] / before - 1
        say(f"{long:,} lines more", f"{rate:,.0f} lines/s; memory {growth:+.1%}, {mib(daemon)}")

    snapshot = daemon.post("/checkpoint")
    say("checkpoint", f"{snapshot['seconds'] * 1e3:.0f} ms, {snapshot['bytes'] / 1e6:.1f} MB")
    assert daemon.stop() == 0
    began = time.monotonic()
    daemon.start()
    serving, again = time.monotonic() - began, daemon.status()
    equal = "equal" if again["state_digest"] == snapshot["digest"] else "DIFFERS"
    say("start again", f"serving after {serving:.2f} s, recovery {again['recovery']['seconds']:.2f} s of it")
    say("  found", f"tier {again['recovery']['tier']}, digest {equal}")


def say(what: str, figures: str) -> None:
    print(f"{what:24s}{figures}", flush=True)


def settings_with(warmup: int, retrain_lines: int) -> str:
    return QUICK.format(warmup=warmup, every_lines=10_000, verdicts="flagged", retrain=retrain_lines)


def still_training(daemon: Vigild) -> str:
    return "" if daemon.status()["training_in_progress"] else " (training ended before the lines did)"


def repeated(lines: list[bytes]) -> Iterator[bytes]:
    while True:
        yield from lines


def send(daemon: Vigild, stream: Iterator[bytes], count: int) -> float:
    """Send lines and wait until all are applied; lines a second."""
    target = daemon.status()["logs_processed"] + count
    began = time.monotonic()
    for sent in range(0, count, SENT_AT_ONCE):
        daemon.send(b"".join(line + b"\n" for line in islice(stream, min(SENT_AT_ONCE, count - sent))))
    daemon.applied(target)
    return count / (time.monotonic() - began)


@contextmanager
def asked_meanwhile(daemon: Vigild) -> Iterator[list[float]]:
    """The milliseconds that each `GET /status` took, sent repeatedly over another connection."""
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


def in_words(milliseconds: list[float]) -> str:
    ordered = sorted(milliseconds) or [float("nan")]
    p50, p99 = (ordered[int((len(ordered) - 1) * share)] for share in (0.5, 0.99))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms of {len(milliseconds)}"


def mib(daemon: Vigild) -> str:
    return f"{daemon.status()['process']['rss_bytes'] / (1 << 20):,.0f} MiB"


if __name__ == "__main__":
    main()
