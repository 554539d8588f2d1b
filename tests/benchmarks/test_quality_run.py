import gzip
from pathlib import Path

import pytest

from benchmarks.quality import own
from benchmarks.quality.watching import settings, watched
from benchmarks.running import sample_lines


def test_a_run_gives_a_record_of_every_line_in_order_and_of_every_session_closed() -> None:
    lines = sample_lines()[:600]
    with watched("test", settings(warmup=1_000_000)) as run:
        run.stream(lines[:500], batch=200)
        run.stream(lines[500:])
        records = run.finish()
    assert records.line[~records.closed].tolist() == list(range(1, 601))
    assert run.line == 600
    assert records.closed.any()
    sessions = set(records.session[~records.closed])
    assert sessions == set(records.session[records.closed])


def test_a_log_of_ones_own_is_measured_by_session(tmp_path: Path) -> None:
    lines = sample_lines()[:1000]
    attack = (
        b'203.0.113.9 - - [20/May/2015:21:05:00 +0000] "GET /x?q=1%27%20UNION%20SELECT%201,2-- HTTP/1.1" 200 9 "-" "-"'
    )
    lines[900] = attack
    log, labels = tmp_path / "access.log.gz", tmp_path / "labels.csv"
    log.write_bytes(gzip.compress(b"".join(line + b"\n" for line in lines)))
    labels.write_text("line,label\n901,1\n902,2\n")
    rows = {row.what: row for row in own.measure(log, labels, "auto", 800)}
    assert rows["PR-AUC"].value == pytest.approx(1.0)
    assert rows["PR-AUC"].note.startswith("1 of ")
    assert "PR-AUC of transformer alone" in rows  # so there was a model before the lines that are judged
    assert "recall 1.00" in rows["F1 at its own flags"].note
