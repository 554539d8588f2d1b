"""The counters per source against a plain reading, the same bits however the stream is cut, and what they make of
scans, floods, brute force and of those who are merely busy."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detection.columns.state_columns import digest
from detection.formats.fields import Fields
from detection.formats.kinds import parse_as_kind
from detection.members.origins import background as background_module
from detection.members.origins import source_counters as sources_module
from detection.members.origins.background import COUNTERS, DAY, SHARE, Background
from detection.members.origins.batch_counting import LinesToCount, count_lines_of_sources
from detection.members.origins.line_features import failures_of, resources_of, sources_of
from detection.members.origins.source_counters import SourceCounters

Line = tuple[bytes, float, bool, int]  # source, clock, error, thing

NOON = 1_457_006_400.0


def observe(counters: SourceCounters, lines: list[Line]) -> NDArray[np.float64]:
    return counters.observe(*_columns(lines))


def peek(counters: SourceCounters, lines: list[Line]) -> NDArray[np.float64]:
    return counters.peek(*_columns(lines))


def _columns(lines: list[Line]) -> tuple[list[bytes], NDArray[np.float64], NDArray[np.bool_], NDArray[np.uint64]]:
    return (
        [line[0] for line in lines],
        np.array([line[1] for line in lines], dtype=np.float64),
        np.array([line[2] for line in lines], dtype=np.bool_),
        np.array([line[3] for line in lines], dtype=np.uint64),
    )


@contextmanager
def small_table(block: int, capacity: int) -> Iterator[None]:
    """Blocks and a table so small that a short stream crosses many ends of blocks and evicts."""
    with (
        patch.object(sources_module, "BLOCK_LINES", block),
        patch.object(sources_module, "_ROOM", 2 * block),
        patch.object(sources_module, "CAPACITY", capacity),
    ):
        yield


# --- a plain reading ---------------------------------------------------------------------------------------------


class PlainSource:
    def __init__(self) -> None:
        self.lines: list[tuple[int, int, bool, int]] = []  # minute, half-hour, error, bit
        self.taken: int | None = None  # the half-hour that was taken as a sample
        self.taken_day: int | None = None
        self.peak = np.zeros(DAY, dtype=np.int64)
        self.record = np.zeros(DAY, dtype=np.int64)
        self.given = 0
        self.day_peak = self.days = 0
        self.last = 0


class PlainCounters:
    """One line at a time, lists of all lines: what the columns must come to while the clock does not go back."""

    def __init__(self, block: int, capacity: int) -> None:
        self.sources: dict[bytes, PlainSource] = {}
        self.background = Background()
        self.block, self.capacity, self.line = block, capacity, 0

    def observe(self, line: Line) -> float:
        name, clock, error, thing = line
        minute = int(clock // 60)
        score = 0.0
        if name:
            source = self.sources.setdefault(name, PlainSource())
            if source.lines and source.lines[-1][1] != minute // 30:
                self._take(source)
            if source.lines and source.lines[-1][0] // 1440 != minute // 1440:
                self._take_day(source)
            bit = int(LinesToCount.of(np.zeros(1), np.zeros(1, np.bool_), np.array([thing], np.uint64)).bit[0])
            source.lines.append((minute, minute // 30, error, bit))
            source.last = self.line
            score = self._score(source, minute, clock / 60 - minute)
        self.line += 1
        if self.line % self.block == 0:
            self._turn(minute)
        return score

    def _score(self, source: PlainSource, minute: int, passed: float) -> float:
        now = [each for each in source.lines if each[0] == minute]
        before = [each for each in source.lines if each[0] == minute - 1]
        long = [each for each in source.lines if each[1] == minute // 30 != source.taken]
        failed_now, failed_before, failed_long = (sum(each[2] for each in part) for part in (now, before, long))

        def seen(part: list[tuple[int, int, bool, int]]) -> int:
            bits = np.bitwise_or.reduce(np.array([each[3] for each in part], dtype=np.uint64))
            return counted(float(background_module.distinct_hashed_items(np.array([bits]))[0]))

        def counted(value: float) -> int:
            return int(background_module.count_bin(np.array([value]))[0])

        share = background_module.share_bin(
            np.array([failed_long / max(len(long), 1)]), np.array([len(long)]), self.background.share
        )
        day = [each for each in source.lines if each[0] // 1440 == minute // 1440 != source.taken_day]
        failed_day = counted(int(max(sum(each[2] for each in day) - self.background.share * len(day), 0.0)))
        bins = np.array(
            [
                counted(len(now) + (1 - passed) * len(before)),
                counted(failed_now + (1 - passed) * failed_before),
                seen(now + before),
                counted(len(long)),
                counted(failed_long),
                seen(long),
                int(share[0]),
            ]
        )
        source.peak = np.maximum(source.peak, bins)
        usual, each = self.background.nats, np.arange(DAY)
        trust = source.given / (source.given + 12.0)
        own = usual[each, np.minimum(bins, source.record)]
        own[6] = 0.0
        nats = usual[each, bins] - trust * own
        of_day = usual[DAY, failed_day] if failed_day // 2 > source.day_peak // 2 else 0.0
        source.day_peak = max(source.day_peak, failed_day)
        return float(max(nats[1], nats[4], nats[6], of_day) + 0.5 * max(nats[0], nats[2], nats[3], nats[5]))

    def _take(self, source: PlainSource) -> None:
        half_hour = source.lines[-1][1]
        if source.taken == half_hour:
            return
        long = [each for each in source.lines if each[1] == half_hour]
        failed = sum(each[2] for each in long)
        columns = (source.peak[None], np.array([source.given]), np.array([failed]), np.array([len(long)]))
        self.background.sample_half_hours(*columns)
        source.given += 1
        source.record = np.maximum(source.peak, source.record - (source.given % 8 == 0))
        source.peak = np.zeros(DAY, dtype=np.int64)
        source.taken = half_hour

    def _take_day(self, source: PlainSource) -> None:
        day = source.lines[-1][0] // 1440
        if source.taken_day != day:
            self.background.sample_days(np.array([source.day_peak]), np.array([source.days]))
            source.days, source.day_peak, source.taken_day = source.days + 1, 0, day

    def _turn(self, minute: int) -> None:
        for source in self.sources.values():
            if source.lines[-1][1] != minute // 30:
                self._take(source)
            if source.lines[-1][0] // 1440 != minute // 1440:
                self._take_day(source)
        while len(self.sources) > self.capacity - 2 * self.block:
            name = min(self.sources, key=lambda each: self.sources[each].last)
            self._take(self.sources[name])
            self._take_day(self.sources.pop(name))
        self.background.take_up_samples()


names = st.sampled_from(
    [b"", b"a", b"b", b"c", b"2001:db8:1111:2222:3333:4444:5555:6666", b"10.0.0.%d" % 7, b"d", b"e"]
)
gaps = st.sampled_from([0.0, 0.0, 0.5, 3.0, 20.0, 61.0, 130.0, 1_700.0, 4_000.0, 40_000.0, 100_000.0])
drawn_lines = st.lists(st.tuples(names, gaps, st.booleans(), st.integers(0, 2**64 - 1)), max_size=80)


def on_the_clock(drawn: list[Line]) -> list[Line]:
    clock, lines = NOON, []
    for name, gap, error, thing in drawn:
        clock += gap
        lines.append((name, clock, error, thing))
    return lines


@given(drawn_lines, st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_scores_are_those_of_a_plain_implementation(drawn: list[Line], block: int) -> None:
    lines = on_the_clock(drawn)
    with small_table(block, capacity=2 * block + 3):
        plain = PlainCounters(block, 2 * block + 3)
        expected = [plain.observe(line) for line in lines]
        assert observe(SourceCounters(), lines).tolist() == pytest.approx(expected, abs=1e-12)


def test_scores_of_long_pasts_are_those_of_a_plain_implementation() -> None:
    drawn, clock, lines = random.Random(2), NOON, []
    for _ in range(1_500):
        clock += drawn.choice((0.0, 1.0, 30.0, 300.0))
        lines.append((b"s%d" % drawn.randrange(12), clock, drawn.random() < drawn.random() ** 3, drawn.randrange(40)))
    assert clock > NOON + 30 * 1800.0
    with small_table(block=16, capacity=48):
        plain = PlainCounters(16, 48)
        expected = [plain.observe(line) for line in lines]
        assert max(expected[1_000:]) > 1.0
        assert observe(SourceCounters(), lines).tolist() == pytest.approx(expected, abs=1e-12)


def samples_of(height: int, sources: int) -> tuple[NDArray[np.int64], ...]:
    peak = np.full((sources, DAY), height)
    return peak, np.zeros(sources, np.int64), np.zeros(sources, np.int64), np.ones(sources, np.int64)


def test_what_is_usual_fades_when_a_stream_changes() -> None:
    background = Background()
    background.sample_half_hours(*samples_of(7, 12_000))
    background.take_up_samples()
    heights = []
    for _ in range(10):
        background.sample_half_hours(*samples_of(2, 12_000))
        background.take_up_samples()
        heights.append(float(background.nats[0, 7]))
    assert heights == sorted(heights) and heights[-1] > heights[0] + 3.0


def test_usual_is_what_one_sample_in_a_hundred_exceeds() -> None:
    background = Background()
    background.sample_half_hours(*samples_of(3, 980))
    background.sample_half_hours(*samples_of(5, 15))
    background.sample_half_hours(*samples_of(7, 5))
    background.take_up_samples()
    assert background.usual()[:6] == [5.0] * 6
    assert background.usual()[6] == background.share < 0.01


# --- cuts, copies and questions ----------------------------------------------------------------------------------


any_lines = st.lists(
    st.tuples(
        names,
        st.one_of(st.floats(0, 8_000), st.sampled_from([-1e300, -3_600.0, 0.0, 60.0, 1e9, 1e300])),
        st.booleans(),
        st.integers(0, 2**64 - 1),
    ),
    max_size=60,
)


@given(any_lines, st.lists(st.integers(0, 60)), st.integers(1, 7))
@settings(max_examples=150, deadline=None)
def test_every_cut_into_batches_and_copies_gives_the_same_bits(lines: list[Line], cuts: list[int], block: int) -> None:
    with small_table(block, capacity=2 * block + 4):
        whole = SourceCounters()
        expected = observe(whole, lines)
        pieces, scores = SourceCounters(), [np.zeros(0)]
        edges = sorted({0, len(lines), *(min(cut, len(lines)) for cut in cuts)})
        for start, stop in pairwise(edges):
            scores.append(observe(pieces, lines[start:stop]))
            pieces = SourceCounters.load(pieces.export())
        assert np.concatenate(scores).tobytes() == expected.tobytes()
        assert digest(pieces.export()) == digest(whole.export())
        assert np.all(expected >= 0.0) and np.all(np.isfinite(expected))


@pytest.mark.slow
def test_a_long_stream_in_batches_of_the_daemon_and_line_by_line_gives_the_same_bits() -> None:
    drawn = random.Random(3)
    clock, lines = NOON, []
    for _ in range(6_000):
        clock += drawn.expovariate(0.2)
        source = b"10.0.%d.%d" % (drawn.randrange(4), int(drawn.paretovariate(0.6)) % 250)
        lines.append((source, clock, drawn.random() < 0.1, drawn.randrange(300)))
    whole, single = SourceCounters(), SourceCounters()
    scores = np.concatenate([observe(whole, lines[:4096]), observe(whole, lines[4096:])])
    assert scores.max() > 1.0
    assert scores.tobytes() == np.concatenate([observe(single, [line]) for line in lines]).tobytes()
    assert digest(whole.export()) == digest(single.export())


@given(drawn_lines, st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_peek_returns_what_observe_would_and_changes_nothing(drawn: list[Line], block: int) -> None:
    with small_table(block, capacity=2 * block + 4):
        counters, lines = SourceCounters(), on_the_clock(drawn)
        for number, line in enumerate(lines):
            before = digest(counters.export())
            peeked = peek(counters, [line])[0]
            assert peek(counters, [*lines[number : number + 5], line])[[0, -1]].tolist() == [peeked, peeked]
            counters.explain(line[0], line[1])
            assert digest(counters.export()) == before
            assert observe(counters, [line])[0] == peeked


def test_a_source_takes_at_most_112_bytes() -> None:
    counters = SourceCounters()
    observe(counters, [(b"10.0.0.%d" % i, NOON, False, i) for i in range(200)])
    columns = [each for name, each in counters.export().items() if not name.startswith("background")]
    assert sum(each.nbytes for each in columns if isinstance(each, np.ndarray)) <= 112 * 200


def test_an_export_does_not_depend_on_which_slots_the_sources_happen_to_have() -> None:
    with small_table(block=4, capacity=16):
        crowded = SourceCounters()
        observe(crowded, [(b"%d" % i, NOON + i, False, i) for i in range(40)])
        assert crowded.evicted > 0
        copy = SourceCounters.load(crowded.export())
        more = [(b"%d" % i, NOON + 100 + i, True, i) for i in (39, 3, 38, 1, 2, 39)]
        assert observe(copy, more).tobytes() == observe(crowded, more).tobytes()
        assert digest(copy.export()) == digest(crowded.export())


# --- what it is for ----------------------------------------------------------------------------------------------


def usual_traffic(hours: float = 12.0, seed: int = 1) -> list[Line]:
    """Visitors of some pages, one in twelve asked for in vain, and a check once a minute from one address."""
    drawn = random.Random(seed)
    lines: list[Line] = [(b"198.51.100.1", NOON + 60.0 * i, False, 1) for i in range(int(hours * 60))]
    for visitor in range(int(hours * 60)):
        when = NOON + drawn.random() * hours * 3600
        for _ in range(min(int(drawn.paretovariate(0.9)), 60)):
            lines.append((b"v%d" % visitor, when, drawn.random() < 0.08, drawn.randrange(500)))
            when += drawn.expovariate(0.2)
    return sorted(lines, key=lambda line: line[1])


@pytest.fixture(scope="module")
def usual() -> tuple[dict[str, object], float, float]:
    """The state after usual traffic, the highest score of its second half, and when the next half-hour begins."""
    counters, lines = SourceCounters(), usual_traffic()
    scores = observe(counters, lines)
    return dict(counters.export()), float(scores[len(scores) // 2 :].max()), (lines[-1][1] // 1800 + 1) * 1800


Usual = tuple[dict[str, object], float, float]


def after(usual: Usual) -> tuple[SourceCounters, float, float]:
    state, highest, clock = usual
    return SourceCounters.load(state), highest, clock  # type: ignore[arg-type]


def test_a_scan_stands_out_within_twenty_lines(usual: Usual) -> None:
    counters, highest, clock = after(usual)
    scan = [(b"203.0.113.7", clock + i / 5, i % 10 != 0, 1_000 + i) for i in range(300)]
    scores = observe(counters, scan)
    assert np.flatnonzero(scores > highest)[0] < 20
    assert np.mean(scores[20:] > highest) == 1.0


def test_brute_force_on_one_page_stands_out_and_its_failures_are_named(usual: Usual) -> None:
    counters, highest, clock = after(usual)
    attempts = [(b"203.0.113.7", clock + 2.0 * i, True, 42) for i in range(60)]
    assert observe(counters, attempts)[-1] > highest
    first, *others = counters.explain(b"203.0.113.7", clock + 120.0)
    assert "failures" in first.name and first.nats >= max(each.nats for each in others)
    named = {each.name: each for each in (first, *others)}
    assert set(named) == set(COUNTERS)
    assert named["share of failures"].value == 1.0 and named["share of failures"].usual < 0.2
    assert named["failures in half an hour"].value == 60 and named["failures in half an hour"].usual < 20
    assert 25 <= named["failures a minute"].value <= 60
    assert named["distinct things in half an hour"].nats == 0.0


def test_a_flood_without_a_failure_stands_out(usual: Usual) -> None:
    counters, highest, clock = after(usual)
    flood = [(b"203.0.113.7", clock + i / 200, False, 42) for i in range(12_000)]
    assert observe(counters, flood)[-1] > highest


def test_failures_far_below_a_line_a_second_stand_out_over_the_half_hour(usual: Usual) -> None:
    counters, highest, clock = after(usual)
    slow = [(b"203.0.113.7", clock + 12.0 * i, True, 42) for i in range(150)]
    assert observe(counters, slow)[-1] > highest


def test_one_long_attack_does_not_become_what_is_usual(usual: Usual) -> None:
    fresh, _, clock = after(usual)
    attack = [(b"203.0.113.%d", clock + i / 10, True, i) for i in range(400)]
    alone = observe(fresh, [(b"203.0.113.9", *line[1:]) for line in attack])
    taught, highest, _ = after(usual)
    observe(taught, [(b"203.0.113.7", clock + i / 10, True, i) for i in range(60_000)])  # 100 minutes of it
    later = [(b"203.0.113.9", line[1] + 6_600.0, *line[2:]) for line in attack]
    again = observe(taught, later)
    assert again[-1] > highest
    assert again[-1] > 0.7 * alone[-1]


def test_an_attack_is_not_excused_by_its_own_half_hour_before(usual: Usual) -> None:
    counters, highest, clock = after(usual)
    scores = observe(counters, [(b"203.0.113.7", clock + i / 2, i % 5 != 0, i) for i in range(9_000)])
    assert np.all(scores[40:] > highest)


def test_a_check_once_a_minute_is_calm(usual: Usual) -> None:
    counters, _, clock = after(usual)
    checks = [(b"198.51.100.1", clock + 60.0 * (i + 1), False, 1) for i in range(100)]
    assert observe(counters, checks).max() < 1.0


def slowly_turning_bad(usual: Usual) -> tuple[float, float]:
    """A source whose share of failures grows from none to all of its lines in twelve days: the median score of its last
    day, and the highest one of usual traffic."""
    counters, highest, clock = after(usual)
    drawn, lines = random.Random(6), 25 * 48 * 12
    attack = [(b"203.0.113.7", clock + 72.0 * i, drawn.random() < i / lines, 5_000 + i) for i in range(lines)]
    return float(np.median(observe(counters, attack)[-1_200:])), highest


def test_a_source_that_turns_bad_slowly_is_not_excused_by_its_yesterday(
    usual: Usual, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_end, highest = slowly_turning_bad(usual)
    assert in_the_end > 0.6 * highest
    monkeypatch.setattr(sources_module, "_EXCUSED", np.ones(DAY))
    in_the_end, highest = slowly_turning_bad(usual)
    assert in_the_end < 0.2 * highest, "the control"


def failing_all_day(usual: Usual) -> tuple[NDArray[np.float64], float]:
    """Where scanners come by and fail 60 times in twenty minutes, a source that fails once a minute for three days:
    its scores by day [3, minutes], and the highest one of usual traffic."""
    counters, highest, clock = after(usual)
    scans = [(b"scan%d" % (i // 60), clock + 20.0 * i, True, i) for i in range(30 * 60)]
    observe(counters, scans)
    midnight = (scans[-1][1] // 86_400 + 1) * 86_400
    failures = [(b"203.0.113.7", midnight + 60.0 * i, True, 42) for i in range(3 * 24 * 60)]
    return observe(counters, failures).reshape(3, 24 * 60), highest


def test_a_source_that_fails_all_day_stands_out_where_others_fail_as_much_for_a_while(
    usual: Usual, monkeypatch: pytest.MonkeyPatch
) -> None:
    days, highest = failing_all_day(usual)
    assert np.all(days.max(axis=1) > highest), "each day anew: the first excuses nothing"
    monkeypatch.setattr(sources_module, "_FAILING", (1, 4, SHARE))
    days, highest = failing_all_day(usual)
    assert np.all(days.max(axis=1) < 0.5 * highest), "the control"


def test_a_day_of_failures_is_news_only_where_it_comes_to_much_more(
    usual: Usual, monkeypatch: pytest.MonkeyPatch
) -> None:
    days, highest = failing_all_day(usual)
    assert np.all(np.sum(days > highest, axis=1) <= 30)
    monkeypatch.setattr(SourceCounters, "_surprises_where_grown", SourceCounters._counter_surprises)
    days, highest = failing_all_day(usual)
    assert np.all(np.sum(days > highest, axis=1) > 500), "the control"


@pytest.mark.slow
def test_a_busy_proxy_is_in_the_end_only_strange_beyond_its_own_past(usual: Usual) -> None:
    counters, highest, clock = after(usual)
    drawn = random.Random(5)
    requests = [
        (b"192.0.2.80", clock + 0.5 * i, drawn.random() < 0.08, drawn.randrange(500)) for i in range(3 * 172_800)
    ]
    scores = observe(counters, requests)
    first_hour, last_hour = scores[:7_200].max(), scores[-7_200:].max()
    assert last_hour < 0.3 * first_hour and last_hour < highest
    now = requests[-1][1]
    attack = [(b"192.0.2.80", now + i / 20, True, i) for i in range(400)]
    assert observe(counters, attack)[-1] > 3 * last_hour


def test_a_backup_at_night_is_less_strange_every_night() -> None:
    counters, highest = SourceCounters(), []
    for night in range(30):
        day = [(who, clock + 86_400.0 * night, *rest) for who, clock, *rest in usual_traffic(6.0, seed=night)]
        backup = [(b"10.0.0.9", NOON + 86_400.0 * night + 50_000 + i / 20, False, i % 7) for i in range(2_000)]
        observe(counters, day)  # type: ignore[arg-type]
        highest.append(float(observe(counters, backup).max()))
    assert highest[-1] < 0.4 * max(highest)


def test_without_a_background_every_score_is_zero() -> None:
    assert observe(SourceCounters(), [(b"203.0.113.7", NOON, True, i) for i in range(1_000)]).max() == 0.0


def test_a_line_without_a_source_counts_for_nobody(usual: Usual) -> None:
    counters, _, clock = after(usual)
    held = len(counters)
    assert observe(counters, [(b"", clock, True, i) for i in range(500)]).max() == 0.0
    assert (
        len(counters) == held and peek(counters, [(b"", clock, True, 1)]) == 0.0 and counters.explain(b"", clock) == []
    )


# --- hostile -----------------------------------------------------------------------------------------------------


def test_many_sources_evict_each_other_but_no_source_that_stays_active() -> None:
    counters, n = SourceCounters(), 60_000
    lines = [(b"regular", NOON, False, 1) if i % 100 == 0 else (b"s%d" % i, NOON, i % 2 == 0, i) for i in range(n)]
    for start in range(0, n, 4096):
        assert np.all(np.isfinite(observe(counters, lines[start : start + 4096])))
    assert len(counters) <= sources_module.CAPACITY
    assert counters.evicted == n - n // 100 + 1 - len(counters)
    assert counters.explain(b"regular", NOON) != [] and counters.explain(b"s1", NOON) == []


def test_counts_end_at_what_their_columns_hold() -> None:
    counters = SourceCounters()
    observe(counters, [(b"a", NOON, True, 1)])
    state = counters.export()
    for name in ("lines", "failures", "long_lines", "long_failures"):
        state[name][:] = 2**31 - 1  # type: ignore[index]
    full = SourceCounters.load(state)
    assert np.isfinite(observe(full, [(b"a", NOON, True, 1)] * 5)).all()
    assert full.export()["lines"].tolist() == [[2**31 - 1, 2**31 - 1]]  # type: ignore[union-attr]


@pytest.mark.slow
@given(st.lists(st.binary(max_size=60), max_size=6))
@settings(max_examples=100, deadline=None)
def test_any_bytes_may_be_a_source(sources: list[bytes]) -> None:
    counters = SourceCounters()
    for source in sources:
        observe(counters, [(source, NOON, True, 1)])
        assert peek(counters, [(source, NOON, True, 1)]) == 0.0
    copy = SourceCounters.load(counters.export())
    assert len(copy) == len(counters) == len({source for source in sources if source})
    assert all((copy.explain(source, NOON) != []) == (source != b"") for source in sources)


# --- whose line it is, and whether it is a failure ----------------------------------------------------------------


def text(*contents: bytes) -> Fields:
    return parse_as_kind("plain", list(contents), clock=NOON)


@pytest.mark.parametrize(
    ("message", "source"),
    [
        (b"Failed password for root from 218.188.2.4 port 4711 ssh2", b"218.188.2.4"),
        (b"connection from 218.188.2.4.", b"218.188.2.4"),
        (b"Receiving block blk_1 src: /10.250.18.114:43996 dest: /10.250.18.115:50010", b"10.250.18.114"),
        (b"Invalid user x from 2001:db8:0:1::17 port 22", b"2001:db8:0:1::17"),
        (b"from fe80:0:0:0:1:2:3:4: refused", b"fe80:0:0:0:1:2:3:4"),
        (b"peer 2001:db8::1 gone", b"2001:db8::1"),
        (b"peer 2001:0db8:1111:2222:3333:4444:5555:6666 gone", b"2001:0db8:1111:2222:3333:4444:5555:6666"),
        (b"ACCEPT host=::ffff:192.0.2.1 port=4", b"192.0.2.1"),
        (b"accepted on ::1 port 4", b"::1"),
        (b"authentication failure; tty=NODEVssh ruser= rhost=n219.example.org  user=root", b"n219.example.org"),
        (b"authentication failure; ruser= rhost=  user=root", b""),
        (b"started at 12:34:56, took 0:00:01", b""),
        (b"version 1.2.3 of std::vector, 3.14.15", b""),
        (b"at 08:15:00:123 in a.b.c.d.e", b""),
        (b"", b""),
    ],
)
def test_the_source_of_a_text_line_is_the_first_address_in_it(message: bytes, source: bytes) -> None:
    # Between two others, since addresses are looked for in all lines at once.
    assert sources_of(text(b"none here 1.2", message, b".3.4: 10.9.8.7 ::")) == [b"", source, b"10.9.8.7"]


def test_the_source_of_a_request_is_the_client() -> None:
    request = b'192.0.2.7 - - [10/Oct/2000:13:55:36 -0700] "GET /?from=10.0.0.1 HTTP/1.0" 404 5'
    assert sources_of(parse_as_kind("access", [request], clock=NOON)) == [b"192.0.2.7"]
    inside = b"Oct 11 22:14:15 web nginx: " + request
    plain = b"Oct 11 22:14:15 web cron: nothing"
    assert sources_of(parse_as_kind("syslog", [plain, inside, plain], clock=NOON)) == [b"", b"192.0.2.7", b""]


@pytest.mark.parametrize(
    ("message", "trouble"),
    [
        (b"Failed password for root from 1.2.3.4", True),
        (b"authentication failure; logname= uid=0", True),
        (b"Invalid user admin", True),
        (b"check pass; user unknown", True),
        (b"FTP LOGIN REFUSED (password authentication failed)", True),
        (b"permission denied", True),
        (b"disk error: [error] I/O", True),
        (b"Accepted password for root from 1.2.3.4", False),
        (b"failover to node 3", False),
        (b"5 passed, 0 failed", False),
        (b"done, failures=0 denied: 0", False),
        (b"GET /failed/denied 200", False),
        (b"", False),
    ],
)
def test_words_of_refusal_are_failures(message: bytes, trouble: bool) -> None:
    assert failures_of(text(b"all is well", message, b"all is well")).tolist() == [False, trouble, False]


def test_a_request_is_a_failure_by_its_status_alone() -> None:
    requests = [
        b'192.0.2.7 - - [10/Oct/2000:13:55:36 -0700] "GET /denied HTTP/1.0" %d 5' % status for status in (200, 403)
    ]
    assert failures_of(parse_as_kind("access", requests, clock=NOON)).tolist() == [False, True]


pieces = st.sampled_from(
    [b".", b":", b"::", b"1.2.3.4", b"10.", b"rhost=", b"rhost=h", b" ", b"fe80::1", b"ab", b"failed", b"0 ", b"\xff"]
)


@given(st.lists(st.lists(pieces, max_size=8).map(b"".join), max_size=6))
@settings(max_examples=200, deadline=None)
def test_lines_together_read_as_each_does_by_itself(messages: list[bytes]) -> None:
    together = text(*messages)
    assert sources_of(together) == [sources_of(text(message))[0] for message in messages]
    assert failures_of(together).tolist() == [bool(failures_of(text(message))[0]) for message in messages]


def test_resources_have_the_same_hashes_in_every_process() -> None:
    assert resources_of([b"GET / 200", b"GET /a 200", b"GET / 200"]).tolist() == [3496107569, 970098630, 3496107569]


def test_the_example_of_count_is_what_it_does() -> None:
    seconds, failed, things = np.array([0, 30, 90, 1890]), np.array([False, True, False, True]), np.array([7, 8, 7, 7])
    lines = LinesToCount.of(seconds.astype(np.float64), failed, things.astype(np.uint64))
    counted = count_lines_of_sources(sources_module._zero_counters(1), np.array([0, 4]), lines, usual_share=0.25)
    rows: dict[str, list[str]] = {
        "second": [f"{second}" for second in seconds],
        "failed": ["yes" if each else "no" for each in failed],
        "thing": [f"{thing}" for thing in things],
        **{name: [f"{value:.1f}" for value in values] for name, values in zip(COUNTERS, counted.values.T, strict=True)},
    }
    table = [f"        {name:<42}" + "".join(f"{cell:>5}" for cell in cells) for name, cells in rows.items()]
    assert "\n".join(table) in (count_lines_of_sources.__doc__ or "")
    (_, given, closed_failures, closed_lines), after = counted.closed, counted.after["given"]
    assert [each.tolist() for each in (given, closed_failures, closed_lines, after)] == [[0], [1], [3], [1]]
