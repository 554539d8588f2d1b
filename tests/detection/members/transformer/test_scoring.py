"""Scoring sequences: equal to a plain implementation, and the same bits for any batches and memos."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detection.members.transformer import network
from detection.members.transformer.scoring import SequenceModel
from detection.members.transformer.windows import (
    CONTINUED,
    END,
    FIRST,
    START,
    UNSEEN,
    tokens_of_templates,
    window_start,
)

VOCABULARY = np.arange(0, 240, 2, dtype=np.int32)


def _weights() -> dict[str, NDArray[np.float32]]:
    weights = network.initial_weights(FIRST + len(VOCABULARY), seed=7)
    # Wider than a fresh network's, so that every token, position and marker moves the result.
    return {name: (tensor * (2.0 if tensor.ndim == 2 else 1.0)).numpy() for name, tensor in weights.items()}


WEIGHTS = _weights()


def _scorer(blocks: int = 4096) -> SequenceModel:
    return SequenceModel(WEIGHTS, VOCABULARY, blocks=blocks)


WARM = _scorer()

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


def test_surprises_are_those_of_a_plain_implementation_token_by_token() -> None:
    asked = [(_tokens(n, n), 0, n % 2 == 0, n % 3 == 0) for n in (1, 5, 62, 63, 64, 95, 130)]
    expected = []
    weights = {name: torch.from_numpy(array) for name, array in WEIGHTS.items()}
    for templates, _, starts, ends in asked:
        tokens = [int(t) for t in tokens_of_templates(templates, VOCABULARY)] + ([END] if ends else [])
        for place, token in enumerate(tokens):
            begin = int(window_start(np.array(place)))
            marker = START if starts and begin == 0 else CONTINUED
            with torch.inference_mode():
                states = network.hidden_states(weights, torch.tensor([[marker, *tokens[begin:place]]]))
                expected.append(-network.next_token_logits(weights, states[0, -1:]).log_softmax(1)[0, token].item())
    np.testing.assert_allclose(_ask(_scorer(), asked), expected, rtol=0, atol=2e-4)


def test_the_known_part_is_context_and_is_not_scored() -> None:
    tokens = _tokens(40, 1)
    whole = _ask(WARM, [(tokens, 0, True, True)])
    assert len(whole) == 41
    assert np.array_equal(_ask(WARM, [(tokens, 30, True, True)]), whole[30:])
    assert len(_ask(WARM, [(tokens, 40, True, False)])) == 0
    assert np.array_equal(_ask(WARM, [(tokens, 40, True, True)]), whole[40:])


def test_templates_outside_the_vocabulary_are_one_and_the_same_token() -> None:
    assert list(tokens_of_templates(np.array([0, 1, 2, 238, 239, 10**6], np.int32), VOCABULARY)) == [
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
    cold = _ask(_scorer(1), asked)
    assert np.array_equal(_ask(WARM, asked), cold)
    assert np.array_equal(_ask(WARM, asked), cold)
    alone = [_ask(_scorer(1), [session]) for session in asked]
    assert np.array_equal(np.concatenate(alone), cold)
    backwards = _ask(_scorer(64), asked[::-1] * 3)[: len(cold)]
    assert np.array_equal(backwards, np.concatenate(alone[::-1]))


@pytest.mark.slow
@given(st.integers(1, 170), st.booleans(), st.booleans(), st.data())
@settings(max_examples=15, deadline=None)
def test_bits_do_not_depend_on_how_a_session_is_cut_into_frames(
    length: int, starts: bool, ends: bool, data: st.DataObject
) -> None:
    tokens = _tokens(length, length)
    whole = _ask(_scorer(1), [(tokens, 0, starts, ends)])
    parts, done = [], 0
    while done < length:
        new = data.draw(st.integers(1, min(20, length - done)))
        begin = int(window_start(np.array(done)))
        piece = tokens[begin : done + new]
        last = ends and done + new == length
        parts.append(_ask(_scorer(1), [(piece, done - begin, starts and begin == 0, last)]))
        done += new
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.slow
@given(sessions, st.integers(1, 40), st.sampled_from([1, 4, 256]))
@settings(max_examples=25, deadline=None)
def test_bits_do_not_depend_on_which_blocks_are_remembered(
    drawn: list[tuple[int, int, bool, bool]], step: int, blocks: int
) -> None:
    asked = [(_tokens(n, seed), starts, ends) for n, seed, starts, ends in drawn if n]
    scorer = _scorer(blocks)
    parts: list[list[NDArray[np.float32]]] = [[] for _ in asked]
    for done in range(0, 170, step):  # all sessions grow together, and with few blocks they rob each other
        growing = [number for number, (tokens, _, _) in enumerate(asked) if done < len(tokens)]
        frame = []
        for number in growing:
            tokens, starts, ends = asked[number]
            begin = int(window_start(np.array(done)))
            last = ends and done + step >= len(tokens)
            frame.append((tokens[begin : done + step], done - begin, starts and begin == 0, last))
        if frame:
            sizes = [len(tokens) - known + last for tokens, known, _, last in frame]
            for number, part in zip(growing, np.split(_ask(scorer, frame), np.cumsum(sizes)[:-1]), strict=True):
                parts[number].append(part)
    for (tokens, starts, ends), grown in zip(asked, parts, strict=True):
        whole = _ask(_scorer(1), [(tokens, 0, starts, ends)])
        assert np.array_equal(np.concatenate(grown), whole)


def test_sessions_that_begin_alike_share_their_first_blocks_only() -> None:
    common = _tokens(40, 5)
    tails = [_tokens(20, seed) for seed in (6, 7, 8)]
    scorer = _scorer(256)
    _ask(scorer, [(common, 0, True, False)])
    for tail in tails:
        tokens = np.concatenate([common, tail])
        expected = _ask(_scorer(1), [(tokens, 0, True, True)])[40:]
        assert np.array_equal(_ask(scorer, [(tokens, 40, True, True)]), expected)
        # The same templates behind the other marker are another beginning.
        expected = _ask(_scorer(1), [(tokens, 0, False, True)])[40:]
        assert np.array_equal(_ask(scorer, [(tokens, 40, False, True)]), expected)


def _walk(tokens: torch.Tensor, rows: list[int], asked: list[int], spread: int) -> list[torch.Tensor]:
    """States of the positions `asked` of each block, of the given rows of `tokens`; pages `spread` apart."""
    weights = {name: torch.from_numpy(array) for name, array in WEIGHTS.items()}
    blocks = tokens.shape[1] // network.BLOCK
    pages = network.new_key_value_pages(spread * len(rows) * blocks)
    table = spread * torch.arange(len(rows) * blocks).flip(0).view(-1, blocks)
    with torch.inference_mode():
        return [
            network.hidden_states_of_block(weights, block, pages, table[:, : number + 1], torch.tensor(asked))
            for number, block in enumerate(torch.split(tokens[rows], network.BLOCK, dim=1))
        ]


def test_advancing_by_blocks_has_the_same_bits_for_any_rows_pages_and_wanted_positions() -> None:
    torch.set_num_threads(1)
    tokens = torch.from_numpy(np.random.default_rng(3).integers(0, FIRST + len(VOCABULARY), (130, 64)))
    whole = _walk(tokens, list(range(130)), list(range(130 * 16)), 1)
    for rows in ([0], [129], [7, 3], list(range(0, 130, 2)), list(range(17, 120))):
        positions = list(range(len(rows) * 16))
        expected = [states.view(130, 16, -1)[rows].flatten(0, 1) for states in whole]
        assert all(map(torch.equal, _walk(tokens, rows, positions, 3), expected))
        chosen = positions[5:16] + positions[:5]
        assert all(map(torch.equal, _walk(tokens, rows, chosen, 1), [states[chosen] for states in expected]))


def test_advancing_by_blocks_agrees_with_whole_rows() -> None:
    tokens = torch.from_numpy(np.random.default_rng(4).integers(0, FIRST + len(VOCABULARY), (3, 64)))
    weights = {name: torch.from_numpy(array) for name, array in WEIGHTS.items()}
    with torch.inference_mode():
        whole = network.hidden_states(weights, tokens)
    walked = torch.cat([states.view(3, 16, -1) for states in _walk(tokens, [0, 1, 2], list(range(48)), 1)], dim=1)
    torch.testing.assert_close(walked, whole, rtol=0, atol=1e-4)


def test_building_a_scorer_and_scoring_draw_no_global_randomness() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    _ask(SequenceModel(_weights(), VOCABULARY), [(_tokens(9, 9), 0, True, True)])
    assert torch.equal(torch.get_rng_state(), before)
