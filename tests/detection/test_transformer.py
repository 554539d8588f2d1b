"""Scoring sequences: exact against a plain reading of the method, and the same bits however it is asked."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detection import network
from detection.model import Model
from detection.transformer import (
    CONTINUED,
    END,
    FIRST,
    START,
    UNSEEN,
    SequenceModel,
    tokenised,
    window_start,
)

VOCABULARY = np.arange(0, 240, 2, dtype=np.int32)


def _model() -> Model:
    weights = network.initial(FIRST + len(VOCABULARY), seed=7)
    # Wider than a fresh network's, so that every token, position and marker moves the result.
    arrays = {name: (tensor * (2.0 if tensor.ndim == 2 else 1.0)).numpy() for name, tensor in weights.items()}
    return Model(1, 1, VOCABULARY, arrays, {}, {}, {}, {})


MODEL = _model()
WARM = SequenceModel(MODEL)

# A session: how many templates, its seed, whether it starts where it began, whether it ends.
sessions = st.lists(
    st.tuples(st.integers(0, 170), st.integers(0, 3), st.booleans(), st.booleans()), min_size=1, max_size=12
)


def _tokens(length: int, seed: int) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 250, length).astype(np.int32)


def _ask(scorer: SequenceModel, asked: list[tuple[NDArray[np.int32], int, bool, bool]]) -> NDArray[np.float32]:
    return scorer.surprises(
        np.concatenate([tokens for tokens, _, _, _ in asked]).astype(np.int32),
        np.concatenate(([0], np.cumsum([len(tokens) for tokens, _, _, _ in asked]))).astype(np.int64),
        np.array([known for _, known, _, _ in asked], dtype=np.int64),
        np.array([starts for _, _, starts, _ in asked]),
        np.array([ends for _, _, _, ends in asked]),
    )


def test_windows_keep_at_least_31_templates_of_context_and_fit_the_network() -> None:
    counts = np.arange(1000)
    context = counts - window_start(counts)
    assert (window_start(counts) % 32 == 0).all()
    assert (context[32:] >= 31).all()
    assert context.max() == 62
    assert (window_start(counts[:63]) == 0).all()


def test_surprises_are_those_of_a_plain_reading_token_by_token() -> None:
    asked = [(_tokens(n, n), 0, n % 2 == 0, n % 3 == 0) for n in (1, 5, 62, 63, 64, 95, 130)]
    expected = []
    weights = {name: torch.from_numpy(array) for name, array in MODEL.weights.items()}
    for templates, _, starts, ends in asked:
        tokens = [int(t) for t in tokenised(templates, VOCABULARY)] + ([END] if ends else [])
        for place, token in enumerate(tokens):
            begin = int(window_start(np.array(place)))
            marker = START if starts and begin == 0 else CONTINUED
            with torch.inference_mode():
                states = network.hidden(weights, torch.tensor([[marker, *tokens[begin:place]]]))
                expected.append(-network.logits(weights, states[0, -1:]).log_softmax(1)[0, token].item())
    np.testing.assert_allclose(_ask(SequenceModel(MODEL), asked), expected, rtol=0, atol=2e-4)


def test_the_known_part_is_context_and_is_not_scored() -> None:
    tokens = _tokens(40, 1)
    whole = _ask(WARM, [(tokens, 0, True, True)])
    assert len(whole) == 41
    assert np.array_equal(_ask(WARM, [(tokens, 30, True, True)]), whole[30:])
    assert len(_ask(WARM, [(tokens, 40, True, False)])) == 0
    assert np.array_equal(_ask(WARM, [(tokens, 40, True, True)]), whole[40:])


def test_templates_outside_the_vocabulary_are_one_and_the_same_token() -> None:
    assert list(tokenised(np.array([0, 1, 2, 238, 239, 10**6], np.int32), VOCABULARY)) == [
        *(FIRST, UNSEEN, FIRST + 1, FIRST + 119, UNSEEN, UNSEEN)
    ]
    known = np.array([2, 4], dtype=np.int32)
    one, other = (_ask(WARM, [(np.append(known, new).astype(np.int32), 0, True, True)]) for new in (99, 1001))
    assert np.array_equal(one, other)


def test_a_true_beginning_and_a_continuation_are_read_differently() -> None:
    tokens = _tokens(5, 2)
    assert not np.array_equal(_ask(WARM, [(tokens, 0, True, False)]), _ask(WARM, [(tokens, 0, False, False)]))


@given(sessions)
@settings(max_examples=25, deadline=None)
def test_bits_do_not_depend_on_the_memo_or_on_the_rest_of_the_batch(
    drawn: list[tuple[int, int, bool, bool]],
) -> None:
    asked = [(_tokens(n, seed), 0, starts, ends) for n, seed, starts, ends in drawn]
    cold = _ask(SequenceModel(MODEL), asked)
    assert np.array_equal(_ask(WARM, asked), cold)
    assert np.array_equal(_ask(WARM, asked), cold)
    alone = [_ask(SequenceModel(MODEL), [session]) for session in asked]
    assert np.array_equal(np.concatenate(alone), cold)
    backwards = _ask(SequenceModel(MODEL), asked[::-1] * 3)[: len(cold)]
    assert np.array_equal(backwards, np.concatenate(alone[::-1]))


@given(st.integers(1, 170), st.booleans(), st.booleans(), st.data())
@settings(max_examples=15, deadline=None)
def test_bits_do_not_depend_on_how_a_session_is_cut_into_frames(
    length: int, starts: bool, ends: bool, data: st.DataObject
) -> None:
    tokens = _tokens(length, length)
    whole = _ask(SequenceModel(MODEL), [(tokens, 0, starts, ends)])
    parts, done = [], 0
    while done < length:
        new = data.draw(st.integers(1, min(20, length - done)))
        begin = int(window_start(np.array(done)))
        piece = tokens[begin : done + new]
        last = ends and done + new == length
        parts.append(_ask(SequenceModel(MODEL), [(piece, done - begin, starts and begin == 0, last)]))
        done += new
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("length", [4, 8, 16, 32, 48, 64])
def test_a_prefix_has_the_same_bits_at_every_padded_length_and_number_of_rows(length: int) -> None:
    torch.set_num_threads(1)
    weights = {name: torch.from_numpy(array) for name, array in MODEL.weights.items()}
    tokens = torch.from_numpy(np.random.default_rng(3).integers(0, FIRST + len(VOCABULARY), (128, 64)))
    with torch.inference_mode():
        full = network.hidden(weights, tokens)[:, :length]
        for rows in range(16, 129, 16):
            assert torch.equal(network.hidden(weights, tokens[:rows, :length]), full[:rows])


def test_building_a_scorer_and_scoring_draw_no_global_randomness() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    _ask(SequenceModel(_model()), [(_tokens(9, 9), 0, True, True)])
    assert torch.equal(torch.get_rng_state(), before)
