"""Every test that docs/guarantees.md names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
NAMED = re.compile(r"`(tests/[a-z_/]+\.py)::(test_[a-z0-9_]+)`")


def test_what_is_promised_is_proved_by_tests_that_exist() -> None:
    named = NAMED.findall((ROOT / "docs/guarantees.md").read_text())
    assert len(named) > 25
    for path, test in named:
        text = (ROOT / path).read_text()
        assert f"def {test}(" in text, f"{path}::{test}"


def test_a_row_either_names_its_proof_or_promises_nothing() -> None:
    rows = re.findall(r"^\|(.+)\|$", (ROOT / "docs/guarantees.md").read_text(), re.M)
    for row in rows:
        cells = [cell.strip() for cell in row.split("|")]
        if set(cells[0]) <= {"-"} or cells[-1] == "proof":
            continue
        assert NAMED.search(cells[-1]) or cells[-1] == "-", row
