"""The long proofs, in parts of at most an hour each, which can be stopped and gone on with.

    python -m tests.faults.parts                 run what has not passed with this code, one after another
    python -m tests.faults.parts kills-3 soak    run these; a name without its number is all of its parts
    python -m tests.faults.parts --list          say what is left
    python -m tests.faults.parts --write docs/guarantees.md     write there what each came to

What a part came to is kept in `results.json` in $VIGILD_PROOFS, or vigild-proofs in the user's cache directory, and
its output beside it, so a part that was interrupted is begun anew and all others are not. A result counts for the
code it was got with: the committed state of CODE. With changes that are not committed, or committed meanwhile,
a part runs and nothing is kept. Those that never passed come first, so that a new commit keeps none from its turn.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PROGRAM = ("actors", "daemon", "detection", "persistence", "constraints.txt")
_PROOFS = ("benchmarks", "tests/daemon", "tests/faults", "tests/fuzz", "tests/persistence", "tests/soak")
CODE: tuple[str, ...] = (*_PROGRAM, *_PROOFS)
BEGIN, END = "<!-- written by `make faults-report` -->", "<!-- end -->"
NOT_RUN = "not run yet"
_PASSED, _FAILED = re.compile(r"(\d+) of \d+ parts"), re.compile(r"\*\*(\d+) FAILED\*\*")
_MEDIAN = re.compile(r"^median +(\S+ .*)$", re.M)
_NUMBERED = re.compile(r"-\d+$")


@dataclass(frozen=True)
class Part:
    """`command` is what comes after `python -m`; `proof` the test that says most about it, "-" if it only measures."""

    name: str
    about: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    proof: str = "-"

    @property
    def group(self) -> str:
        return _NUMBERED.sub("", self.name)


@dataclass(frozen=True)
class Result:
    """`code` is the key of the code, `commit` its name for people; `figures` what the tests noted, summed."""

    code: str
    commit: str
    date: str
    seconds: float
    passed: bool
    tests: int = 0
    skipped: tuple[str, ...] = ()
    figures: Mapping[str, float | str] = field(default_factory=dict)


def tests(*names: str) -> tuple[str, ...]:
    return ("pytest", "--timeout", "0", "-ra", *(f"tests/{name}" for name in names))


def kills() -> list[Part]:
    file, each = "faults/test_kills.py", 2
    test = f"{file}::test_random_kills_lose_nothing_and_repeat_nothing"
    control = f"{file}::test_a_journal_that_does_not_write_is_caught"
    parts = []
    for number in range(20 // each):
        rounds = [f"{test}[{round_}]" for round_ in range(each * number, each * (number + 1))]
        command = tests(*rounds, *([control] if number == 0 else []))
        about = "1,000 SIGKILLs at random moments under load"
        parts.append(Part(f"kills-{number + 1}", about, command, {"VIGILD_KILLS": "1000"}, f"tests/{test}"))
    return parts


def fuzzing() -> list[Part]:
    from tests.fuzz.targets import TARGETS  # brings torch along

    each, names = 5, [target.name for target in TARGETS]
    test = "fuzz/test_fuzz.py::test_inputs_that_are_almost_right_are_read_as_promised"
    return [
        Part(
            f"fuzz-{number + 1}",
            "ten minutes of inputs that are almost right for every format that is read from outside",
            tests(*(f"{test}[{name}]" for name in names[start : start + each])),
            {"VIGILD_FUZZ_SECONDS": "600"},
            f"tests/{test}",
        )
        for number, start in enumerate(range(0, len(names), each))
    ]


def of_files(name: str, about: str, proof: str, *files: str, **environment: str) -> Part:
    return Part(name, about, tests(*(f"faults/{file}" for file in files)), environment, f"tests/faults/{proof}")


def all_parts() -> list[Part]:
    soak = "soak/test_soak.py::test_it_stands_its_ground"
    return [
        *kills(),
        of_files(
            "calls",
            "a kill, an error, half a write at every system call of the store",
            "test_system_calls.py::test_one_fault_at_any_system_call_loses_nothing",
            "test_system_calls.py",
            VIGILD_SYSTEM_CALLS="all",
        ),
        of_files(
            "cuts",
            "100 power cuts on ext4 and xfs, 20 after a kill",
            "test_power_cuts.py::test_a_power_cut_at_any_moment_loses_nothing",
            "test_power_cuts.py",
            VIGILD_POWER_CUTS="100",
        ),
        of_files(
            "images",
            "10,000 disk images that a power cut could leave",
            "test_crash_images.py::test_every_image_of_a_power_cut_recovers_to_what_was_promised",
            "test_crash_images.py",
            VIGILD_FAULTS="10000",
        ),
        of_files(
            "damages",
            "10,000 damages to one file",
            "test_corruption.py::test_one_damage_anywhere_is_survived_and_never_silent",
            "test_corruption.py",
            VIGILD_FAULTS="10000",
        ),
        of_files(
            "once",
            "200 SIGKILLs under senders that outlive them",
            "test_exactly_once.py::test_every_line_of_every_sender_once_over_kills_and_restarts",
            "test_exactly_once.py",
            VIGILD_FAULTS="10000",
        ),
        of_files(
            "systemd",
            "100 SIGKILLs and 5 restarts under a real systemd",
            "nspawn/test_real_systemd.py::test_under_a_real_systemd_no_line_is_lost_or_counted_twice",
            "nspawn",
            VIGILD_FAULTS="10000",
        ),
        of_files(
            "flat",
            "5,000,000 lines through one state directory",
            "test_disk_use.py::test_disk_use_is_flat_however_many_lines_come",
            "test_disk_use.py",
            VIGILD_FLAT_LINES="5000000",
        ),
        of_files(
            "disk",
            "a minute of each fault of the disk",
            "test_disk.py::test_a_full_disk_makes_lines_wait_and_nothing_else",
            "test_disk.py",
            "test_unreadable.py",
            VIGILD_DISK_SECONDS="60",
        ),
        of_files(
            "rest",
            "a minute stopped, clocks that jump, failing members, poison, starts",
            "test_surroundings.py::test_a_stopped_process_goes_on_where_it_was",
            "test_crowds.py",
            "test_limits.py",
            "test_degraded.py",
            "test_early.py",
            "test_forged_state.py",
            "test_poison.py",
            "test_surroundings.py",
            "test_withdrawn.py",
            VIGILD_STOPPED_SECONDS="60",
        ),
        Part("soak", "an hour of everything at once", tests(soak), {"VIGILD_SOAK_SECONDS": "3600"}, f"tests/{soak}"),
        *fuzzing(),
        Part("journal", "what durability costs (`benchmarks.journal`)", ("benchmarks.journal",)),
    ]


class Proofs:
    """The results in the directory `place`; `code` is the key and the name of the code there is now, None for none."""

    def __init__(self, place: Path, parts: Sequence[Part], code: tuple[str, str] | None) -> None:
        self.parts = parts
        self.results: dict[str, Result] = {}
        self._place, self._code = place, code
        place.mkdir(parents=True, exist_ok=True)
        if self._file.exists():
            kept = json.loads(self._file.read_text())
            self.results = {
                name: Result(**{**result, "skipped": tuple(result["skipped"])}) for name, result in kept.items()
            }

    @property
    def _file(self) -> Path:
        return self._place / "results.json"

    def named(self, names: Sequence[str]) -> list[Part]:
        """Raises ValueError for a name that none has."""
        known = {name for part in self.parts for name in (part.name, part.group)}
        if strangers := [name for name in names if name not in known]:
            raise ValueError(f"no part {strangers[0]!r}; there are {', '.join(part.name for part in self.parts)}")
        return [part for part in self.parts if {part.name, part.group} & set(names)]

    def left(self) -> list[Part]:
        """Those that have not passed with this code: first those that never did, then by the date of their result."""

        def before(part: Part) -> str:
            result = self.results.get(part.name)
            return result.date if result is not None and result.passed else ""

        return sorted((part for part in self.parts if not self._is_done(part)), key=before)

    def _is_done(self, part: Part) -> bool:
        result = self.results.get(part.name)
        return result is not None and result.passed and self._code is not None and result.code == self._code[0]

    def run(self, part: Part) -> bool:
        """Whether it passed."""
        report, log = self._place / f"{part.name}.xml", self._place / f"{part.name}.log"
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", *part.command]
        if part.command[0] == "pytest":
            # Of the first family, the only one that holds what tests note.
            command += ["--junitxml", str(report), "-o", "junit_family=xunit1"]
        print(f"== {part.name}: {part.about} ({log})", flush=True)
        began = time.monotonic()
        with open(log, "wb") as output:
            environment = {**os.environ, **part.environment}
            status = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output).returncode
        seconds = round(time.monotonic() - began, 1)
        said = log.read_text(errors="replace")
        count, skipped, figures = read_report(report) if report.exists() else (0, (), read_output(said))
        passed = status == 0 and (count > len(skipped) or bool(figures))
        closing = "".join(said.splitlines()[-1:])
        print(f"   {'passed' if passed else 'FAILED'} in {seconds / 60:.1f} minutes: {closing}", flush=True)
        self._keep(part, seconds, passed, count, skipped, figures)
        return passed

    def _keep(
        self,
        part: Part,
        seconds: float,
        passed: bool,
        count: int,
        skipped: tuple[str, ...],
        figures: Mapping[str, float | str],
    ) -> None:
        if self._code is None or code_now() != self._code:
            print("   not kept: there are changes that are not committed, or were committed meanwhile", flush=True)
            return
        key, commit = self._code
        date = time.strftime("%Y-%m-%d", time.gmtime())
        self.results[part.name] = Result(key, commit, date, seconds, passed, count, skipped, figures)
        beside = self._file.with_suffix(".tmp")
        beside.write_text(json.dumps({name: asdict(result) for name, result in self.results.items()}, indent=1))
        os.replace(beside, self._file)

    def table(self, written: str = "") -> str:
        """A row for each group of parts, in Markdown.

        `written` is the table that was written last, perhaps on another machine: where it speaks of more parts of a
        group than have a result here, what it says stays, unless one failed here.
        """
        rows = ["| part | what | came to | minutes | date | commit | proof |", "|---|---|---|---|---|---|---|"]
        before = figures_in(written)
        for group in dict.fromkeys(part.group for part in self.parts):
            parts = self.named([group])
            results = [result for part in parts if (result := self.results.get(part.name)) is not None]
            minutes = f"{sum(result.seconds for result in results) / 60:.1f}" if results else ""
            dates = " to ".join(sorted({min(r.date for r in results), max(r.date for r in results)})) if results else ""
            commits = ", ".join(dict.fromkeys(result.commit for result in results))
            figures = [came_to(len(parts), results), minutes, dates, commits]
            if group in before and parts_run(before[group][0]) > len(results) and all(r.passed for r in results):
                figures = before[group]
            proof = "-" if parts[0].proof == "-" else f"`{parts[0].proof}`"
            rows.append("| " + " | ".join((group, parts[0].about, *figures, proof)) + " |")
        return "\n".join(rows)


def figures_in(table: str) -> dict[str, list[str]]:
    """By group, what the rows of a written table say that was measured: the cells between what it is and its proof."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return {cells[0]: cells[2:6] for cells in rows if len(cells) == 7}


def parts_run(said: str) -> int:
    """Of how many parts `came_to` said this, passed or not."""
    if said == NOT_RUN:
        return 0
    passed, failed = _PASSED.match(said), _FAILED.search(said)
    return (int(passed[1]) if passed else 1) + (int(failed[1]) if failed else 0)


def came_to(parts: int, results: Sequence[Result]) -> str:
    if not results:
        return NOT_RUN
    passed = [result for result in results if result.passed]
    said = [] if len(passed) == parts == 1 else [f"{len(passed)} of {parts} parts"]
    if len(passed) < len(results):
        said.append(f"**{len(results) - len(passed)} FAILED**")
    sums: dict[str, float | str] = {}
    for result in passed:
        for name, value in result.figures.items():
            sums[name] = value if isinstance(value, str) else float(sums.get(name, 0.0)) + value
    said += [str(value) if isinstance(value, str) else f"{value:,.0f} {name}" for name, value in sums.items()]
    if tests_passed := sum(result.tests - len(result.skipped) for result in passed):
        said.append(f"{tests_passed} tests passed")
    reasons = sorted({reason for result in passed for reason in result.skipped})
    return ", ".join([*said, *(f"skipped: {reason}" for reason in reasons)])


def read_report(path: Path) -> tuple[int, tuple[str, ...], dict[str, float | str]]:
    """How many tests a JUnit report has, why some were skipped, and the sums of what they noted."""
    cases = list(ElementTree.parse(path).iter("testcase"))
    skipped = tuple(found.get("message", "") for case in cases for found in case.findall("skipped"))
    figures: dict[str, float | str] = {}
    for noted in (noted for case in cases for noted in case.iter("property")):
        figures[noted.attrib["name"]] = float(figures.get(noted.attrib["name"], 0.0)) + float(noted.attrib["value"])
    return len(cases), skipped, figures


def read_output(text: str) -> dict[str, float | str]:
    """The figure of a benchmark: what its last line says of the median."""
    medians = _MEDIAN.findall(text)
    return {"median": medians[-1]} if medians else {}


def code_now() -> tuple[str, str] | None:
    """The key and the name of the committed code; None where something of it is changed or there is no repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    try:
        # What fuzzing found lies there, and is nothing that a result hangs on.
        if git("status", "--porcelain", "--", *CODE, ":(exclude)tests/fuzz/corpus"):
            return None
        return git("rev-parse", *(f"HEAD:{path}" for path in CODE)), git("rev-parse", "--short", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None


def place() -> Path:
    users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VIGILD_PROOFS") or Path(users) / "vigild-proofs")


def write_table(path: Path, proofs: Proofs) -> None:
    """Between the two marks in the document at `path`; raises ValueError when they are not there."""
    before, begin, rest = path.read_text().partition(BEGIN)
    written, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path}: no {BEGIN} or no {END} after it")
    path.write_text(f"{before}{BEGIN}\n{proofs.table(written)}\n{END}{after}")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT")
    options = parser.parse_args(arguments)
    proofs = Proofs(place(), all_parts(), code_now())
    if options.write is not None:
        write_table(options.write, proofs)
        return 0
    try:
        chosen = proofs.named(options.part) if options.part else proofs.left()
    except ValueError as exc:
        parser.error(str(exc))
    failed = []
    try:
        failed = [] if options.list else [part.name for part in chosen if not proofs.run(part)]
        print("failed:", ", ".join(failed) or "none")
    except KeyboardInterrupt:
        print("interrupted: the part that was under way will be begun anew")
        return 130
    finally:
        print("left:", ", ".join(part.name for part in proofs.left()) or "nothing")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
