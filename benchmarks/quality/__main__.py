"""Quality of the daemon's verdicts: it is started, fed labelled logs (never the labels), and its records are evaluated.

    python -m benchmarks.quality                              every set; --seeds runs of those that depend on chance
    python -m benchmarks.quality --set hdfs_raw --set deploy  only these
    python -m benchmarks.quality --write docs/detection.md    and put the table into the document
    python -m benchmarks.quality --log FILE --labels FILE     your own log, see below

Sets are read from --data; a missing one is named and skipped. The rows of a set are also kept in --keep, so that
--write makes one table of sets that were run at different times (`--set none` runs nothing).

Your own log: `--labels` is a CSV file with the columns `line` (counted from 1) and `label` (1: should be found, 0:
harmless, 2: unsure, left out). `--key` is a regular expression with one group, a line's session. The first half
(`--warmup LINES`) is learned from, the rest is evaluated by session.
"""

import argparse
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx

from benchmarks.quality import deploy, hdfs, honesty, own, sessions, web
from benchmarks.quality.report import BEGIN, Row, as_markdown, as_text, load, merged, rewrite, save

Run = Callable[[Path, int], list[Row]]

# Name, function, the folders it reads, and whether it depends on chance (then it runs once per seed).
SETS: tuple[tuple[str, Run, tuple[str, ...], bool], ...] = (
    ("hdfs_raw", hdfs.vouched, ("hdfs_raw",), True),
    ("hdfs_raw_live", hdfs.live, ("hdfs_raw",), True),
    ("hdfs_raw_feedback", hdfs.answered, ("hdfs_raw",), True),
    ("hdfs_sessions", sessions.hdfs100k, ("hdfs_sessions",), True),
    ("hdfs_xu", sessions.hdfs_xu, ("hdfs_sessions",), True),
    ("payloads", web.payloads, ("payloads",), True),
    ("web_inject", web.inject, ("web_inject",), False),
    ("web_wp2016", web.wordpress, ("web_wp2016",), False),
    ("deploy", deploy.deploy, ("hdfs_sessions",), True),
    ("honesty", honesty.honesty, (), False),
)
NAMES = tuple(name for name, *_ in SETS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", choices=(*NAMES, "none"), help="which; may be given again")
    parser.add_argument("--seeds", type=int, default=3, help="runs of a set that chance has a part in (default 3)")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="where the sets are")
    parser.add_argument("--keep", type=Path, default=Path(".run/quality"), help="where measured rows are kept")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="put the table of all kept rows into it")
    parser.add_argument("--log", type=Path, help="your own log, .gz or not")
    parser.add_argument("--labels", type=Path, help="its labels")
    parser.add_argument("--key", default="auto", help="its session key")
    parser.add_argument("--warmup", type=int, help="how many of its lines to learn from")
    options = parser.parse_args()
    if (options.log is None) != (options.labels is None):
        parser.error("--log and --labels belong together")
    if options.log is not None:
        print(as_text(own.measure(options.log, options.labels, options.key, options.warmup)))
        return
    failed: list[str] = []
    for name, run, folders, chance in SETS:
        if name not in (options.set or NAMES):
            continue
        absent = [folder for folder in folders if not (options.data / folder).is_dir()]
        if absent:
            print(f"\n{name}: left out, no {', '.join(absent)} in {options.data}")
            continue
        try:
            measure(name, run, options.data, options.seeds if chance else 1, options.keep)
        except (RuntimeError, AssertionError, OSError, httpx.HTTPError) as exc:
            # The exceptions of a daemon that fails, hangs or dies. One set that cannot be measured must not
            # cost the hours of the others; an older figure of it must not stand for it, and the exit status tells.
            (options.keep / f"{name}.json").unlink(missing_ok=True)
            print(f"\n{name}: NOT MEASURED: {exc}", flush=True)
            failed.append(name)
    if options.write is not None:
        write(options.write, options.keep)
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")


def measure(name: str, run: Run, data: Path, seeds: int, keep: Path) -> None:
    """Run a set, print its rows and keep them."""
    began = time.monotonic()
    found: list[Row] = []
    for seed in range(1, seeds + 1):
        found += run(data, seed)
    rows = merged(found)
    took = time.monotonic() - began
    print(f"{as_text(rows)}\n  ({took:.0f} s{f', {seeds} seeds' if seeds > 1 else ''})", flush=True)
    about = {
        "commit": _commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "seconds": f"{took:.0f}",
        "seeds": str(seeds),
    }
    save(keep / f"{name}.json", rows, about)


def write(document: Path, keep: Path) -> None:
    rows: list[Row] = []
    said = []
    for name in NAMES:
        path = keep / f"{name}.json"
        if not path.exists():
            said.append(f"{name} was not measured")
            continue
        measured, about = load(path)
        rows += measured
        said.append(f"{name} {about['date']} at {about['commit']}, {about['seconds']} s, {about['seeds']} seed(s)")
    table = f"{as_markdown(rows)}\n\nMeasured: {'; '.join(said)}."
    document.write_text(rewrite(document.read_text(), table))
    print(f"\n{document}: the table after {BEGIN} is of {len(rows)} rows")


def _commit() -> str:
    """What was measured; a change that is not committed is marked."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "no commit"


if __name__ == "__main__":
    main()
