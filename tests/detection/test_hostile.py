"""What whoever sends lines may try: to make itself normal, to fill memory, to upset the clock."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detection.causes import known_causes
from detection.causes.fingerprints import shape_causes
from detection.columns.state_columns import digest
from detection.detection_settings import AlarmSettings, SessionSettings
from detection.detector import Detector
from detection.frames import FlushFrame, Segment, VouchedFrame
from detection.learning import excluded_sessions as labels
from detection.learning import training_run as run
from detection.learning.training_run import train
from detection.models.model import Model
from detection.scoring.attribution import Reasons
from detection.sessions import log_clock as clock
from detection.sessions.session_table import LONGEST_SESSION, SessionTable
from detection.templates.table import TemplateTable
from tests.detection.journal import RECEIVED, Journal, started
from tests.detection.simple import (
    BEGAN,
    CLOSE,
    OPEN,
    READ,
    RETRY,
    WRITE,
    alerts_of,
    fed,
    finished,
    learn,
    learned_by,
    line,
    said,
    session,
    simple,
    taught,
    usual,
)

WORDS = (b"apple", b"pear", b"plum", b"cherry", b"melon", b"grape", b"fig", b"lemon")


def get(ip: str, at: int, target: bytes) -> bytes:
    when = b"17/May/2015:%02d:%02d:%02d +0000" % (10 + at // 3600, at // 60 % 60, at % 60)
    return b'%s - - [%s] "GET %s HTTP/1.1" 200 512 "-" "-"' % (ip.encode(), when, target)


def searches(count: int, at: int, seed: int) -> list[bytes]:
    """Each of another address: one to three searches, and away."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        ip = f"10.{seed}.{number // 250}.{number % 250}"
        for _ in range(int(rng.integers(1, 4))):
            lines.append(get(ip, at + number, b"/search?q=%s%d" % (WORDS[rng.integers(8)], rng.integers(100))))
        lines.append(get(ip, at + number, b"/done"))
    return lines


def injections(count: int, at: int, network: int) -> list[bytes]:
    """As ordinary a session as any but for the value: no rule knows these."""
    lines = []
    for number in range(count):
        ip, value = f"66.{network}.0.{number}", b"~~%25%25~~!!" + bytes([97 + number % 20]) + b"$$^^"
        lines += [get(ip, at + number, b"/search?q=" + value), get(ip, at + number, b"/done")]
    return lines


def flagged(journal: Journal, lines: list[bytes]) -> list[dict[str, Any]]:
    return journal.feed(lines) + finished(journal)


def left_out_after_a_campaign(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of 120 sessions with injections, all of them flagged, the next model is not to learn from."""
    monkeypatch.setattr(Model, "complete", True)  # what is flagged before the first full model is learned from
    journal = started(alarms=AlarmSettings(alpha=0.003))
    flagged(journal, searches(900, 0, 1) + searches(900, 900, 2))
    learn(journal)
    for network in (1, 2):
        assert len(flagged(journal, injections(60, 1800 + 100 * network, network))) == 60
    return int(journal.detector.training_set().flagged.sum())


def test_a_campaign_from_many_sources_does_not_become_normal_by_its_ordinary_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert left_out_after_a_campaign(monkeypatch) == 120


def test_reporting_its_shape_like_any_other_would_make_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def report_finished(self: Reasons, pieces: NDArray[np.int64], begun: int, alpha: float) -> None:
        shapes = shape_causes(self._view.counts[pieces], np.ones(len(pieces), dtype=np.bool_))
        self._report_causes(shapes, self._view.offsets[1:][pieces] - 1, begun)

    monkeypatch.setattr(Reasons, "report_finished_shapes", report_finished)
    monkeypatch.setattr(labels, "_by_value_or_source", lambda found: np.zeros(len(found.starts), dtype=np.bool_))
    assert left_out_after_a_campaign(monkeypatch) == 0


PATIENT = SessionSettings(key=r"id=(\S+)", idle_seconds=2.0)
EXPORT = b"exporting the whole table"
PHASES = 8


def slowly_turning_bad() -> list[bool]:
    """One source sends every fifth session; those of its last phase, all bad: which are flagged.

    At first it does what all do; then, a little more often in each phase, and each time more, it does what nobody
    does. A new model comes after each phase.
    """
    journal = simple(session=PATIENT)
    rng, at = np.random.default_rng(1), 0
    found: list[bool] = []
    for phase in range(PHASES):
        lines, bad = [], 0
        for number in range(300):
            at += 1
            if number % 5 == 0:
                turned = rng.random() < phase / (PHASES - 1)
                bad += turned
                lines += session("mallory", [OPEN, *([EXPORT] * phase if turned else [READ, READ]), CLOSE], at)
            else:
                lines += usual(1, 1000 * phase + number, prefix=f"p{phase}-{number}-", at=at)
        records = alerts_of(journal, lines)
        found = [r["session"] == "mallory" for r in records]
        learn(journal)
    assert bad == 60
    return found


@pytest.mark.slow
def test_a_source_of_a_fifth_of_the_traffic_that_slowly_turns_bad_is_still_flagged_at_the_end() -> None:
    assert sum(slowly_turning_bad()) == 60


@pytest.mark.slow
def test_without_a_cap_and_other_sources_word_it_would_have_made_itself_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LARGEST_SHARE", 1.0)
    monkeypatch.setattr(run, "MANY_KEYS", 10**9)
    monkeypatch.setattr(known_causes, "ADMITTED_KEYS", 1)
    assert sum(slowly_turning_bad()) < 6


def sizes(journal: Journal) -> int:
    """Bytes of the state."""
    return sum(np.asarray(value).nbytes for value in journal.detector.export().values())


def test_a_flood_of_templates_and_keys_takes_bounded_room_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small table instead of a million lines: what is bounded is the same."""
    for makes_one in (SessionTable.__init__, getattr(SessionTable.load, "__func__")):  # noqa: B009
        monkeypatch.setattr(makes_one, "__defaults__", (2048,))
    journal = taught(300, alarms=AlarmSettings(per_day=20.0))
    words = [bytes(97 + number // 26**place % 26 for place in range(4)) for number in range(12_000)]
    flood = [line(f"k{number}", b"%s was %s" % (word, word[::-1]), 2000 + number / 1000)
             for number, word in enumerate(words)]  # fmt: skip
    fed(journal, flood[:6000], batch=2000)
    half, summary = sizes(journal), journal.detector.summary()
    fed(journal, flood[6000:], batch=2000)
    after = journal.detector.summary()
    assert after.sessions_open <= 2048 and after.sessions_evicted > summary.sessions_evicted > 0
    assert after.templates < 200, "what differs everywhere is not one template each"
    assert after.incidents_opened - after.incidents_digest <= 20 and 0 < after.incidents_digest < 100
    rows = 6000 * 40 + 4096 * 400  # of the history, and of incidents until their table is full
    assert sizes(journal) < half + rows
    again = Detector.load(journal.detector.export(), learned_by(journal))
    assert digest(again.export()) == digest(journal.detector.export())


def test_a_flood_of_templates_makes_room_is_counted_and_costs_no_template_that_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TemplateTable.__init__, "__defaults__", (100,))
    journal = taught(300)
    rng = np.random.default_rng(1)
    letters = np.frombuffer(b"ghijklmnop", dtype=np.uint8)
    flood = [b" ".join(bytes(rng.choice(letters, 6)) for _ in range(number % 9 + 1)) for number in range(4000)]
    fed(journal, [line("flood", text, 2000) for text in flood[:2000]])
    half = sizes(journal)
    fed(journal, [line("flood", text, 2000) for text in flood[2000:]])
    summary = journal.detector.summary()
    assert summary.templates <= 100 and summary.templates_evicted == summary.templates_created - summary.templates > 0
    assert sizes(journal) < half + 2000 * 40 + 100_000, "the history's rows, and what causes and incidents it leaves"
    finished(journal)
    assert len(alerts_of(journal, usual(50, 8, prefix="after", at=3000))) <= 2


def test_a_flood_of_sources_makes_room_and_is_counted() -> None:
    journal = started()
    flood = [get(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", n // 10, b"/") for n in range(20_000)]
    journal.feed(flood[:17_000], batch=2000)
    few, half = journal.detector.summary(), sizes(journal)
    journal.feed(flood[17_000:], batch=2000)
    assert journal.detector.summary().sources_evicted > few.sources_evicted > 0
    assert sizes(journal) < half + 3000 * 100, "the history's and the sessions' rows"


def test_the_stream_goes_on_being_judged_after_a_flood() -> None:
    journal = taught(1000)
    fed(journal, [line(f"k{number}", b"x%d" % number, 2000) for number in range(3000)])
    finished(journal)
    normal = alerts_of(journal, usual(50, 8, prefix="after", at=3000))
    bad = alerts_of(journal, session("bad", [OPEN, *[RETRY] * 9, CLOSE], 3100))
    assert len(normal) <= 2 and [r["session"] for r in bad] == ["bad"]


def test_one_endless_session_is_cut_and_takes_bounded_room() -> None:
    journal = taught(300)
    endless = [line("x", (READ, WRITE)[number % 2], 2000) for number in range(5000)]
    records = said(journal, endless[:2500])
    before = sizes(journal)
    records += said(journal, endless[2500:])
    closed = [r for r in records if r["closed"]]
    assert [(r["first_line"], r["last_line"]) for r in closed] == [
        (r["first_line"], r["first_line"] + LONGEST_SESSION - 1) for r in closed
    ]
    assert len(closed) == 5 and journal.detector.summary().sessions_open <= 1
    assert sizes(journal) < before + 200_000, "what is kept of it is bounded"
    flagged_rows = [r for r in records if r["flagged"]]
    assert len(flagged_rows) <= 6, "each of its pieces once at most"


TIMES: list[Callable[[int], bytes]] = [
    lambda n: b"%.3f " % (BEGAN + 3000 - n * 10),  # backwards
    lambda n: b"%.3f " % (BEGAN + 3000 + (n % 2) * 4e8),  # years ahead and back, in turn
    lambda n: b"%.3f " % ((BEGAN + 3000 - 7e8) if n % 3 else BEGAN + 3000),
    lambda n: b"",  # none
    lambda n: b"99999999999999999999 ",
    lambda n: b"-1 ",
]


@pytest.mark.parametrize("stamp", TIMES, ids=["back", "jumps", "long ago", "none", "endless", "negative"])
def test_whatever_the_times_say_each_line_is_judged_and_the_stream_finds_back(stamp: Callable[[int], bytes]) -> None:
    journal = taught(1000)
    mad = [stamp(number) + b"INFO id=m%d %s" % (number // 4, (OPEN, READ, WRITE, CLOSE)[number % 4])
           for number in range(400)]  # fmt: skip
    records = said(journal, mad)
    assert len([r for r in records if not r["closed"]]) == 400
    assert all(r["time"] is None or np.isfinite(r["time"]) for r in records)
    loaded = Journal(Detector.load(journal.detector.export(), learned_by(journal)))
    for each in (journal, loaded):
        finished(each)
    assert digest(loaded.detector.export()) == digest(journal.detector.export())
    (bad,) = alerts_of(journal, session("bad", [OPEN, *[RETRY] * 9, CLOSE], 5000))
    assert bad["session"] == "bad"


STAMPS = st.one_of(
    st.floats(0, 200).map(lambda seconds: b"%.3f " % (BEGAN + seconds)),
    st.floats(-1e9, 2.9e8).map(lambda seconds: b"%.3f " % (BEGAN + seconds)),  # years back, years ahead
    st.sampled_from([b"", b"-1 ", b"0 ", b"99999999999999999999 ", b"2038-01-19 03:14:08 ", b"9999-12-31 23:59:60 "]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(STAMPS, st.sampled_from("abc")), min_size=1, max_size=60), st.integers(1, 60))
def test_whatever_the_times_say_each_line_is_said_once_and_lies_in_one_session(
    drawn: list[tuple[bytes, str]], size: int
) -> None:
    journal = simple()
    texts = [stamp + b"INFO id=%s %s" % (key.encode(), OPEN) for stamp, key in drawn]
    records = [record for start in range(0, len(texts), size) for record in said(journal, texts[start : start + size])]
    log_time = journal.detector.summary().log_time
    assert log_time is not None and log_time <= RECEIVED + clock.AHEAD_SECONDS_ALLOWED
    records += list(journal.apply(FlushFrame(RECEIVED)).records())
    assert [record["line"] for record in records if not record["closed"]] == list(range(1, len(texts) + 1))
    closed = [record for record in records if record["closed"]]
    for key in {key for _, key in drawn}:
        lines = [number for number, (_, each) in enumerate(drawn, 1) if each == key]
        spans = sorted((each["first_line"], each["last_line"]) for each in closed if each["session"] == key)
        held = [number for number in lines for first, last in spans if first <= number <= last]
        assert held == lines and all(first in lines and last in lines for first, last in spans)
    assert journal.detector.summary().sessions_open == 0


def test_a_time_without_a_year_is_not_of_the_future() -> None:
    """In November the nearest first of March is the next one."""
    journal = started()
    journal.feed([b"Mar  1 10:00:%02d web sshd[7]: hello" % second for second in range(60)], kind="syslog")
    summary = journal.detector.summary()
    assert (summary.future_lines, summary.log_time) == (0, 1_677_664_859.0), "2023-03-01 10:00:59"


AHEAD = 9 * 365 * 86_400


def closed_behind(future: int) -> tuple[int, int]:
    """How many sessions of 100 are closed by the times of their lines when `future` lines of years ahead come
    first, and how many lines of the future were counted."""
    journal = simple()
    fed(journal, [line(f"f{number}", OPEN, AHEAD) for number in range(future)])
    fed(journal, usual(100, 1, at=86_400 - 1000))  # their last ones are of less than a day ahead
    summary = journal.detector.summary()
    return summary.sessions_closed, summary.future_lines


@pytest.mark.parametrize("future", [1, 25], ids=["one that comes first", "many that agree"])
def test_lines_of_the_future_leave_the_log_clock_to_the_others_and_are_counted(future: int) -> None:
    closed, counted = closed_behind(future)
    assert counted == future and closed >= 35 + future, "the sessions of all but the last minute have ended"


@pytest.mark.parametrize("future", [1, 25], ids=["one that comes first", "many that agree"])
def test_were_they_believed_no_session_would_end_any_more(monkeypatch: pytest.MonkeyPatch, future: int) -> None:
    monkeypatch.setattr(clock, "AHEAD_SECONDS_ALLOWED", np.inf)
    closed, counted = closed_behind(future)
    assert counted == 0 and closed == 0


def test_a_vouched_file_full_of_attacks_teaches_nothing() -> None:
    journal = started()
    attacks = [get(f"203.0.113.{n % 250}", 60 * n, b"/x?id=1%%27%%20UNION%%20SELECT%%20%d--" % n) for n in range(500)]
    data = b"".join(attack + b"\n" for attack in attacks)
    journal.apply(VouchedFrame(RECEIVED, Segment("file", "access", data, 500, last=True), True))
    summary = journal.detector.summary()
    assert (summary.vouched_lines, summary.vouched_rule_hits, summary.rule_hits) == (500, 500, 0)
    assert journal.detector.training_set().tainted.all()
    with pytest.raises(run.TrainingError, match="0 clean sessions"):
        train(journal.detector.training_set(), progress=lambda step: None)
