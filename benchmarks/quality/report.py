"""The figures as rows: what was asked of them, what was reached, and the table in docs/detection.md."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.quality.metrics import Interval

BEGIN, END = "<!-- quality: measured -->", "<!-- quality: end -->"


@dataclass(frozen=True)
class Row:
    """One figure. `kind`: "more" or "less" is better, or "ratio": within 1/`floor`..`floor` and the same of `target`.

    A row without floor stands for comparison only. `percent` and `digits` say how it is written.
    """

    set: str
    what: str
    value: float
    low: float = math.nan
    high: float = math.nan
    floor: float | None = None
    target: float | None = None
    kind: str = "more"
    band: tuple[float, float, float, float] | None = None  # of a ratio: floor and target from, to
    digits: int = 3
    percent: bool = False
    note: str = ""
    runs: int = 1

    @classmethod
    def of(cls, set: str, what: str, measured: Interval, **more: object) -> "Row":
        return cls(set, what, measured.value, measured.low, measured.high, **more)  # type: ignore[arg-type]

    @property
    def asked(self) -> bool:
        return self.floor is not None or self.band is not None

    def verdict(self) -> str:
        """ "target", "floor" (reached, the target is not), "missed", or "" where nothing was asked."""
        if not self.asked:
            return ""
        if math.isnan(self.value):
            return "missed"
        if self.band is not None:
            low, high, target_low, target_high = self.band
            if target_low <= self.value <= target_high:
                return "target"
            return "floor" if low <= self.value <= high else "missed"
        assert self.floor is not None
        sign = 1.0 if self.kind == "more" else -1.0
        if self.target is not None and sign * self.value >= sign * self.target:
            return "target"
        return "floor" if sign * self.value >= sign * self.floor else "missed"

    def number(self, value: float) -> str:
        if math.isnan(value):
            return "-"
        if self.percent:
            return f"{100 * value:.{max(self.digits - 2, 0)}f} %"
        return f"{value:,.{self.digits}f}"

    def measured(self) -> str:
        if math.isnan(self.low) or math.isnan(self.high):
            return self.number(self.value)
        return f"{self.number(self.value)} ({self.number(self.low)} to {self.number(self.high)})"

    def wanted(self) -> tuple[str, str]:
        """Floor and target in words."""
        if self.band is not None:
            low, high, target_low, target_high = self.band
            return f"{low:g} to {high:g}", f"{target_low:g} to {target_high:g}"
        sign = "≥" if self.kind == "more" else "≤"
        floor = "" if self.floor is None else f"{sign} {self.number(self.floor)}"
        return floor, "" if self.target is None else f"{sign} {self.number(self.target)}"


def merged(runs: Iterable[Row]) -> list[Row]:
    """Rows of several seeds as one row each: the mean, and the widest of their intervals."""
    by_name: dict[tuple[str, str], list[Row]] = {}
    for row in runs:
        by_name.setdefault((row.set, row.what), []).append(row)
    return [_merge(rows) for rows in by_name.values()]


def _merge(rows: Sequence[Row]) -> Row:
    if len(rows) == 1:
        return rows[0]
    values = [row.value for row in rows]
    lows = [row.value if math.isnan(row.low) else row.low for row in rows]
    highs = [row.value if math.isnan(row.high) else row.high for row in rows]
    changed = {"value": sum(values) / len(values), "low": min(lows), "high": max(highs), "runs": len(rows)}
    return Row(**{**asdict(rows[0]), **changed})


def as_text(rows: Sequence[Row]) -> str:
    """For a terminal."""
    width = max((len(row.what) for row in rows), default=0)
    lines, last = [], ""
    for row in rows:
        if row.set != last:
            lines.append(f"\n{row.set}")
            last = row.set
        floor, target = row.wanted()
        wanted = f"floor {floor}, target {target}: {row.verdict().upper()}" if row.asked else ""
        lines.append(
            f"  {row.what:{width}}  {row.measured():28} {wanted}{'  ' + row.note if row.note else ''}".rstrip()
        )
    return "\n".join(lines)


def as_markdown(rows: Sequence[Row]) -> str:
    """Two tables: what was asked for, then what is there to compare with."""
    asked = [row for row in rows if row.asked]
    others = [row for row in rows if not row.asked]
    lines = ["| set | figure | measured | floor | target | reached |", "|---|---|---|---|---|---|"]
    for row in asked:
        floor, target = row.wanted()
        reached = {"missed": "**missed**"}.get(row.verdict(), row.verdict())
        lines.append(f"| {row.set} | {_noted(row)} | {row.measured()} | {floor} | {target} | {reached} |")
    lines += ["", "For comparison:", "", "| set | figure | measured |", "|---|---|---|"]
    lines += [f"| {row.set} | {_noted(row)} | {row.measured()} |" for row in others]
    return "\n".join(lines)


def _noted(row: Row) -> str:
    return f"{row.what} ({row.note})" if row.note else row.what


def rewrite(document: str, table: str) -> str:
    """`document` with what stands between the two markers replaced. Raises ValueError where they are missing."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no {BEGIN} followed by {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def save(path: Path, rows: Sequence[Row], about: dict[str, str]) -> None:
    """Keep the rows of one set, so that a table can be made of sets that ran at different times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=1))


def load(path: Path) -> tuple[list[Row], dict[str, str]]:
    kept = json.loads(path.read_text())
    rows = [Row(**{**row, "band": tuple(row["band"]) if row["band"] else None}) for row in kept["rows"]]
    return rows, kept["about"]
