from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.quality.figures import asking
from benchmarks.quality.report import BEGIN, END, Row, as_markdown, as_text, load, merged, rewrite, save

ROW = Row("hdfs", "PR-AUC", 0.85, 0.8, 0.9, floor=0.8, target=0.9)


@pytest.mark.parametrize(
    ("value", "kind", "reached"),
    [(0.95, "more", "target"), (0.85, "more", "floor"), (0.7, "more", "missed"), (0.85, "less", "missed")],
)
def test_a_figure_reaches_its_target_its_floor_or_neither(value: float, kind: str, reached: str) -> None:
    target = 0.9 if kind == "more" else 0.7
    assert replace(ROW, value=value, kind=kind, target=target).verdict() == reached


def test_a_figure_that_could_not_be_measured_is_missed() -> None:
    assert replace(ROW, value=float("nan")).verdict() == "missed"


def test_a_ratio_must_lie_within_its_band() -> None:
    ratio = Row("honesty", "ratio", 1.0, band=(0.3, 3.0, 0.5, 2.0))
    assert [replace(ratio, value=value).verdict() for value in (1.9, 0.4, 3.1)] == ["target", "floor", "missed"]


def test_a_row_for_comparison_has_no_verdict_and_stands_in_the_second_table() -> None:
    control = Row("hdfs", "control", 0.1)
    assert control.verdict() == ""
    first, second = as_markdown([ROW, control]).split("For comparison")
    assert "PR-AUC" in first and "control" not in first
    assert "control" in second and "PR-AUC" not in second


def test_a_miss_is_shown_as_one() -> None:
    missed = replace(ROW, value=0.2)
    assert "**missed**" in as_markdown([missed])
    assert "MISSED" in as_text([missed])


def test_what_is_asked_for_and_has_no_row_is_shown_as_missed() -> None:
    other = Row("hdfs", "F1", 0.5)
    rows = asking([replace(ROW, floor=None, target=None), other], {"PR-AUC": {"floor": 0.8}, "gone": {"floor": 0.1}})
    assert [(row.what, row.verdict()) for row in rows] == [("PR-AUC", "floor"), ("F1", ""), ("gone", "missed")]


def test_seeds_become_a_mean_and_the_widest_interval() -> None:
    (row,) = merged([ROW, replace(ROW, value=0.95, low=0.9, high=0.97)])
    assert row.value == pytest.approx(0.9)
    assert (row.low, row.high, row.runs) == (0.8, 0.97, 2)


def test_the_table_replaces_what_stood_between_the_markers_and_nothing_else() -> None:
    document = f"# Title\n\n{BEGIN}\nold\n{END}\n\nprose\n"
    assert rewrite(document, "new") == f"# Title\n\n{BEGIN}\nnew\n{END}\n\nprose\n"
    with pytest.raises(ValueError, match="no <!-- quality"):
        rewrite("# Title\n", "new")


def test_kept_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [ROW, Row("honesty", "ratio", 1.0, 0.9, 1.1, band=(0.3, 3.0, 0.5, 2.0))]
    save(tmp_path / "kept" / "set.json", rows, {"commit": "abc"})
    assert load(tmp_path / "kept" / "set.json") == (rows, {"commit": "abc"})


def test_the_document_has_the_markers() -> None:
    document = (Path(__file__).parents[2] / "docs" / "detection.md").read_text()
    assert rewrite(document, "x").count("\nx\n") == 1
