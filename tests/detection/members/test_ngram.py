"""The n-gram model against a slow reading of Witten and Bell, and what is left out of their judgement."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.members import ngram as module
from detection.members.ngram import ORDERS, NgramModel, count_ngrams
from detection.members.transformer.windows import CONTINUED, END, FIRST, START, UNSEEN
from tests.detection.streams import habits, stream
from tests.detection.views import Growing, Session, sessions, whole

VOCABULARY = np.array([1, 2, 3, 4, 5], dtype=np.int32)


class Plain:
    """Witten and Bell, by dictionaries of tuples; template t of the vocabulary is the outcome t, the end is "end"."""

    def __init__(self, learned: Sequence[Session], vocabulary: Sequence[int]) -> None:
        self.outcomes = len(vocabulary) + 2
        self.known = set(vocabulary)
        self.after: dict[tuple[object, ...], Counter[object]] = defaultdict(Counter)
        for session in learned:
            tokens = self.tokens(session)
            for place in range(2, len(tokens)):
                for order in range(3):
                    self.after[tuple(tokens[place - order : place])][tokens[place]] += 1

    def tokens(self, session: Session) -> list[object]:
        before = "start" if session.starts else "continued"
        said: list[object] = [line.template if line.template in self.known else "unseen" for line in session.lines]
        return [before] * 2 + said + (["end"] if session.ends else [])

    def p(self, token: object, history: tuple[object, ...]) -> float:
        seen = self.after.get(history, Counter())
        shorter = self.p(token, history[1:]) if history else 1 / self.outcomes
        if not seen:
            return shorter
        return (seen[token] + len(seen) * shorter) / (seen.total() + len(seen))

    def nats(self, session: Session) -> list[float]:
        tokens = self.tokens(session)
        return [-math.log(self.p(tokens[i], tuple(tokens[i - 2 : i]))) for i in range(2, len(tokens))]


def model(learned: Sequence[Sequence[int]], *, ends: bool = True) -> NgramModel:
    return NgramModel(count_ngrams(stream(learned, ends=ends), VOCABULARY), VOCABULARY)


templates = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=12), min_size=1, max_size=8)


@given(templates, templates, st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_probabilities_are_those_of_witten_and_bell(
    learned: list[list[int]], asked: list[list[int]], ended: bool, ends: bool
) -> None:
    # Templates 6 and 7 have no token: both are UNSEEN, and so one.
    plain = Plain(sessions(*learned, ends=ended, starts=ended), VOCABULARY.tolist())
    drawn = sessions(*asked, ends=ends, starts=ends)
    nats = model(learned, ends=ended).nats(whole(drawn))
    np.testing.assert_allclose(nats, [n for each in drawn for n in plain.nats(each)], rtol=1e-12)


@pytest.mark.parametrize("context", [[], [1], [1, 2, 2], [1, 2, 3, 2, 5, 4], [99, 99]])
@pytest.mark.parametrize("starts", [True, False])
def test_what_is_likely_next_sums_to_one_and_is_what_a_line_is_judged_by(context: list[int], starts: bool) -> None:
    ngrams = model(habits(60, 1))
    p = ngrams.likely(np.array(context, dtype=np.int32), starts)
    assert p[[UNSEEN, END]].sum() + p[FIRST:].sum() == pytest.approx(1.0)
    assert p[START] < 0.2 and p[CONTINUED] < 0.2, "markers are no outcomes: what they get is what any unknown one gets"
    for place, template in enumerate(VOCABULARY.tolist()):
        view = whole(sessions([*context, template], ends=False, starts=starts))
        assert math.exp(-ngrams.nats(view)[-1]) == pytest.approx(p[FIRST + place])


def test_a_session_that_stops_in_the_middle_is_a_surprise_at_its_end() -> None:
    ngrams = model(habits(200, 1))
    usual, cut = (ngrams.nats(whole(sessions(each)))[-1] for each in ([1, 2, 2, 4], [1, 2, 2]))
    assert cut > 3 * usual
    still_open = ngrams.nats(whole(sessions([1, 2, 2], ends=False)))
    assert len(still_open) == 3, "an open one has no end to be judged by"


def test_a_real_beginning_is_distinguished_from_a_continuation() -> None:
    ngrams = model(habits(200, 1))
    begins, goes_on = (ngrams.nats(whole(sessions([2, 4], starts=starts)))[0] for starts in (True, False))
    assert begins > goes_on, "sessions begin with 1, always"


def test_templates_admitted_since_are_not_held_against_a_session_nor_is_what_follows_one() -> None:
    ngrams = model(habits(200, 1))
    asked = sessions([1, 77, 2, 4])
    held_against = ngrams.nats(whole(asked))
    admitted = ngrams.nats(whole(asked, muted=[77]))
    assert held_against[1] > 3 and held_against[2] > 1
    assert admitted[[1, 2]].tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(admitted[[0, 3, 4]], held_against[[0, 3, 4]])


@given(templates, st.lists(st.integers(0, 12), min_size=8, max_size=8))
@settings(max_examples=40, deadline=None)
def test_bits_depend_neither_on_the_memo_nor_on_how_sessions_are_cut(asked: list[list[int]], cuts: list[int]) -> None:
    part, drawn = count_ngrams(stream(habits(60, 1)), VOCABULARY), sessions(*asked)
    view = whole(drawn, 2)
    cold = NgramModel(part, VOCABULARY).nats(view)
    warm = NgramModel(part, VOCABULARY)
    growing, halves = Growing(drawn, 2), []
    for rows in (cuts[: len(drawn)], None):
        piece = growing.see(rows)
        halves.append(np.split(warm.nats(piece), piece.offsets[1:-1]))
    np.testing.assert_array_equal(warm.nats(view), cold)
    joined = [np.concatenate(parts) for parts in zip(*halves, strict=True)]
    np.testing.assert_array_equal(np.concatenate(joined), cold)


def test_a_memo_with_one_place_gives_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    view = whole(sessions(*habits(50, 3)))
    expected = model(habits(60, 1)).nats(view)
    monkeypatch.setattr(module, "_MEMO", 1)
    crowded = model(habits(60, 1))
    for _ in range(2):
        np.testing.assert_array_equal(crowded.nats(view), expected)


def test_a_part_holds_no_more_than_three_templates_in_a_key() -> None:
    part = count_ngrams(stream([[1, 2, 3, 4, 5, 1, 2]]), VOCABULARY)
    assert set(part) == {f"{name}.{k}" for name in ("grams", "counts", "after", "total", "kinds")
                         for k in range(1, ORDERS + 1)}  # fmt: skip
    assert all(int(part[f"grams.{k}"].max()) < 1 << 10 * k for k in range(1, ORDERS + 1))
    assert part["counts.1"].sum() == part["total.1"].sum() == 8
