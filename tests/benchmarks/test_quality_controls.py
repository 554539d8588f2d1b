import numpy as np

from benchmarks.quality.controls import _END, _ThreeGram, controls, event_or_length, raw_forest, three_gram

KNOWN = [(1, 2, 3)] * 60 + [(1, 2, 2, 3)] * 40


def test_a_new_event_is_stranger_than_an_odd_length_and_what_is_known_is_not_strange() -> None:
    judged = [(1, 2, 3), (3, 2, 1, 1), (1, 9, 3), (1, 2, 3, 1, 2, 3)]
    control = event_or_length(KNOWN, judged)
    assert control.strangeness.tolist() == [0.0, 0.0, 2.0, 1.0]
    assert control.flagged.tolist() == [False, False, True, True]


def test_a_three_gram_finds_an_order_an_end_that_comes_too_early_and_an_event_never_seen() -> None:
    control = three_gram(KNOWN, [(1, 2, 3), (2, 1, 3), (1, 2), (1, 2, 7)], alpha=0.01, seed=1)
    assert control.flagged.tolist() == [False, True, True, True]


def test_a_three_gram_gives_probabilities_that_sum_to_one() -> None:
    model = _ThreeGram(KNOWN)
    for history in ((1, 2), (9, 2), (9, 9)):
        known = sum(model._p(event, history) for event in (1, 2, 3, _END))
        assert np.isclose(known + model._p(99, history), 1.0)


def test_the_original_style_counts_events_and_does_not_see_their_order() -> None:
    known = [(1,) * (1 + i % 5) + (3,) * (1 + i % 3) for i in range(100)]
    control = raw_forest(known, [(1, 1, 3), (3, 1, 1), (1,) * 9], seed=1)
    assert control.strangeness[0] == control.strangeness[1]
    assert control.strangeness[2] > control.strangeness[0]


def test_every_control_judges_every_session() -> None:
    judged = [(1, 2, 3), (4,), ()]
    for control in controls(KNOWN, judged, alpha=0.01, seed=1):
        assert control.strangeness.shape == control.flagged.shape == (3,)
