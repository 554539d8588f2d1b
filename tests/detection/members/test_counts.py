"""Distances of count vectors, by hand, and when they are not measured."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from detection.members import counts as module
from detection.members.counts import FEWEST_SESSIONS_OF_A_KIND, Counts
from detection.members.fitted_member_view import COUNT_BUCKETS, Standing
from tests.detection.streams import fit_data, stream
from tests.detection.views import Growing, sessions, whole

NOTHING = np.zeros(0, dtype=np.int32)


def fitted(*templates: list[int]) -> Counts:
    return Counts(Counts.fit(fit_data(stream(templates))), NOTHING)


def scores(member: Counts, *templates: list[int], ends: bool = True, muted: tuple[int, ...] = ()) -> list[float]:
    view = whole(sessions(*templates, ends=ends), 1, muted)
    found: list[float] = member.score(view, Standing(view, ["counts"])).tolist()
    return found


def test_the_distance_is_bray_and_curtiss_to_the_nearest_that_came_twice() -> None:
    member = fitted([1, 2, 2, 3], [2, 1, 3, 2], [8, 8], [8, 8], [9], [7, 7, 7])
    # [1, 2, 2, 3, 3] has one more: 1 / (5 + 4). [8] is one short: 1 / (1 + 2). [9] came once: no reference.
    assert scores(member, [1, 2, 2, 3, 3]) == [0, 0, 0, 0, 0, pytest.approx(1 / 9)]
    assert scores(member, [8]) == [0, pytest.approx(1 / 3)]
    assert scores(member, [3, 2, 1, 2]) == [0, 0, 0, 0, 0.0], "the order of lines is not its business"
    assert scores(member, [9]) == [0, 1.0]
    assert scores(member, [7, 7, 7]) == [0, 0, 0, 1.0]


def test_only_a_session_that_is_over_is_measured() -> None:
    member = fitted(*[[1, 2]] * 2)
    assert scores(member, [5, 5], ends=False) == [0, 1.0], "cut by count: over, without a closing row"
    growing = Growing(sessions([5, 5]), 1)
    view = growing.see([2])
    assert member.score(view, Standing(view, ["counts"])).tolist() == [0, 0]


def test_a_session_with_a_template_admitted_since_is_not_measured() -> None:
    member = fitted(*[[1, 2]] * 2)
    assert scores(member, [1, 2, 77, 77]) == [0, 0, 0, 0, pytest.approx(2 / 6)]
    assert scores(member, [1, 2, 77, 77], muted=(77,)) == [0] * 5
    growing = Growing(sessions([77, 2]), 1, muted=(77,))
    view = growing.see([1])
    standing = Standing(view, ["counts"])
    growing.carry = standing.after()
    view = growing.see()
    assert member.score(view, Standing(view, ["counts"])).tolist() == [0, 0], "nor when it came in a batch before"


def test_without_references_everything_is_as_far_as_can_be() -> None:
    assert scores(fitted([1], [2], [3]), [1]) == [0, 1.0]


def test_the_commonest_vectors_are_the_references_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_REFERENCES", 2)
    member = fitted(*[[1]] * 2, *[[2]] * 4, *[[3]] * 3)
    assert [scores(member, [n])[-1] for n in (1, 2, 3)] == [1.0, 0.0, 0.0]


vectors_drawn = st.lists(st.lists(st.integers(0, 255), min_size=4, max_size=4).filter(any), min_size=1, max_size=20)


def padded(vectors: list[list[int]]) -> NDArray[np.uint8]:
    wide = np.zeros((len(vectors), COUNT_BUCKETS), dtype=np.uint8)
    wide[:, 30:34] = vectors
    return wide


@given(vectors_drawn, vectors_drawn)
def test_distances_are_those_of_a_plain_implementation_whatever_the_memo_holds(
    references: list[list[int]], asked: list[list[int]]
) -> None:
    member = Counts({"vectors": padded(references)}, NOTHING)
    expected = [min(sum(abs(a - b) for a, b in zip(x, y, strict=True)) / (sum(x) + sum(y)) for y in references)
                for x in asked]  # fmt: skip
    for _ in range(2):
        np.testing.assert_allclose(member.distances(padded(asked)), expected, rtol=1e-15)
        np.testing.assert_allclose(member.distances(padded(asked[::-1])), expected[::-1], rtol=1e-15)


def test_a_memo_with_one_place_gives_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    asked = rng.integers(0, 9, (200, COUNT_BUCKETS)).astype(np.uint8)
    part = {"vectors": rng.integers(0, 9, (30, COUNT_BUCKETS)).astype(np.uint8)}
    expected = Counts(part, NOTHING).distances(asked)
    monkeypatch.setattr(module, "_MEMO", 1)
    crowded = Counts(part, NOTHING)
    for _ in range(2):
        np.testing.assert_array_equal(crowded.distances(asked), expected)
    assert FEWEST_SESSIONS_OF_A_KIND == 2
