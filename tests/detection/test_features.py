"""The running features against a plain reading, and the same bits however a session is cut."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detection.features import CLOSING, FEATURES, Carry, running

# A row: surprise, error, template, seconds since the row before.
rows = st.tuples(st.floats(0, 30, width=32), st.booleans(), st.integers(0, 500), st.floats(-2, 40, allow_nan=False))
sessions = st.lists(st.tuples(st.lists(rows, max_size=30), st.booleans()), min_size=1, max_size=6)
Session = tuple[list[tuple[float, bool, int, float]], bool]


Columns = tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int32], NDArray[np.float64], NDArray[np.int64]]


def _columns(drawn: list[Session]) -> Columns:
    surprise, errors, templates, times, sizes = [], [], [], [], []
    for lines, closes in drawn:
        now = 1000.0
        for nats, error, template, gap in lines:
            now += gap
            surprise.append(nats)
            errors.append(error)
            templates.append(template)
            times.append(now)
        if closes and lines:
            surprise.append(3.25)
            errors.append(False)
            templates.append(CLOSING)
            times.append(now)
        sizes.append(len(lines) + (closes and len(lines) > 0))
    return (
        np.array(surprise, np.float32),
        np.array(errors, np.bool_),
        np.array(templates, np.int32),
        np.array(times, np.float64),
        np.concatenate(([0], np.cumsum(sizes))).astype(np.int64),
    )


@given(sessions)
@settings(max_examples=60, deadline=None)
def test_features_are_those_of_a_plain_reading(drawn: list[Session]) -> None:
    surprise, errors, templates, times, offsets = _columns(drawn)
    features, carry = running(surprise, errors, templates, times, offsets, Carry.new(len(drawn)))
    assert features.shape == (len(surprise), len(FEATURES))
    for s in range(len(drawn)):
        begin, stop = int(offsets[s]), int(offsets[s + 1])
        for row in range(begin, stop):
            seen = slice(begin, row + 1)
            lines = int((templates[seen] != CLOSING).sum())
            expected = [
                float(surprise[seen].max()),
                math.fsum(surprise[seen].tolist()) / (row + 1 - begin),
                math.log1p(lines),
                None,
                int(errors[seen].sum()) / lines,
                math.log1p(lines / max(times[row] - times[begin], 1.0)),
            ]
            different = len({int(t) for t in templates[seen]} - {CLOSING})
            assert min(different, 1) <= features[row, 3] <= min(different, 64)
            got = np.delete(features[row], 3)
            np.testing.assert_allclose(got, [x for x in expected if x is not None], rtol=1e-6, atol=1e-6)
        if stop > begin:
            assert carry.lines[s] == (templates[begin:stop] != CLOSING).sum()
            assert carry.scored[s] == stop - begin
            assert carry.began[s] == times[begin]


@given(sessions, st.data())
@settings(max_examples=60, deadline=None)
def test_a_session_in_two_batches_has_the_bits_of_one(drawn: list[Session], data: st.DataObject) -> None:
    surprise, errors, templates, times, offsets = _columns(drawn)
    whole, end = running(surprise, errors, templates, times, offsets, Carry.new(len(drawn)))
    sizes = np.diff(offsets)
    cut = np.array([data.draw(st.integers(0, int(size))) for size in sizes])
    rank = np.arange(len(surprise)) - np.repeat(offsets[:-1], sizes)
    early = rank < np.repeat(cut, sizes)
    together = np.empty_like(whole)
    carry = Carry.new(len(drawn))
    for part, counts in ((early, cut), (~early, sizes - cut)):
        edges = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        together[part], carry = running(surprise[part], errors[part], templates[part], times[part], edges, carry)
    assert np.array_equal(together, whole)
    for name in Carry.__dataclass_fields__:
        assert np.array_equal(getattr(carry, name), getattr(end, name)), name


def test_distinct_counts_different_templates_and_not_their_repetitions() -> None:
    templates = np.array([3, 3, 3, 9, 9, 3, CLOSING], dtype=np.int32)
    n = len(templates)
    features, _ = running(np.zeros(n), np.zeros(n, np.bool_), templates, np.zeros(n), np.array([0, n]), Carry.new(1))
    assert features[:, 3].tolist() == [1, 1, 1, 2, 2, 2, 2]


def test_many_different_templates_fill_the_map_evenly() -> None:
    n = 40
    features, _ = running(
        *(np.zeros(n), np.zeros(n, np.bool_), np.arange(n, dtype=np.int32), np.zeros(n)),
        np.array([0, n]),
        Carry.new(1),
    )
    assert features[-1, 3] >= 25


def test_a_session_without_rows_carries_on_unchanged() -> None:
    before = Carry(
        *(np.array([4]), np.array([5]), np.array([2.5]), np.array([7.0]), np.array([1])),
        shape=np.array([9], dtype=np.uint64),
        began=np.array([123.0]),
    )
    features, after = running(
        *(np.empty(0), np.empty(0, np.bool_), np.empty(0, np.int32), np.empty(0)), np.array([0, 0]), before
    )
    assert features.shape == (0, 6)
    assert all(np.array_equal(getattr(after, f), getattr(before, f)) for f in Carry.__dataclass_fields__)
