"""Which windows score a session, and which of their entries are predicted."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detection.members.transformer.windows import (
    CONTEXT,
    CONTINUED,
    END,
    FIRST,
    START,
    UNSEEN,
    WindowPlan,
    tokens_of_templates,
    window_start,
)


def test_windows_keep_at_least_31_templates_of_context_and_fit_the_network() -> None:
    counts = np.arange(1000)
    context = counts - window_start(counts)
    assert (window_start(counts) % 32 == 0).all()
    assert (context[32:] >= 31).all()
    assert context.max() == 62
    assert (window_start(counts[:63]) == 0).all()


@given(length=st.integers(0, 200), known=st.integers(0, 63), starts=st.booleans(), ends=st.booleans())
def test_each_new_token_is_predicted_once_after_the_marker_and_what_precedes_it_in_its_window(
    length: int, known: int, starts: bool, ends: bool
) -> None:
    known = min(known, length)
    tokens = np.arange(FIRST, FIRST + length, dtype=np.int16)  # all different, so that each names its place
    plan = WindowPlan(tokens, np.array([0, length]), np.array([known]), np.array([starts]), np.array([ends]))
    windows = plan.windows(0, len(plan))
    predicted: list[int] = []
    for row, first, size in zip(windows.rows, windows.first, windows.size, strict=True):
        assert 1 <= first < size <= CONTEXT and not row[size:].any()
        begin = int(row[1]) - FIRST if row[1] != END else length
        assert row[0] == (START if starts and begin == 0 else CONTINUED)
        whole = [*tokens.tolist(), END]
        assert row[1:size].tolist() == whole[begin : begin + size - 1]
        predicted += row[first:size].tolist()
    assert predicted == [*tokens[known:].tolist(), *([END] if ends else [])]


def test_a_template_outside_the_vocabulary_is_unseen_on_either_side_and_between() -> None:
    vocabulary = np.array([3, 5, 9], np.int32)
    found = tokens_of_templates(np.array([0, 3, 4, 5, 9, 10], np.int32), vocabulary)
    assert found.tolist() == [UNSEEN, FIRST, UNSEEN, FIRST + 1, FIRST + 2, UNSEEN]
