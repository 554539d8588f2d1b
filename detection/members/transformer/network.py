"""The transformer's arithmetic: pure functions of weights and tokens, shared by scoring and training.

A causal pre-norm transformer (Vaswani et al., 2017; Xiong et al., 2020): `LAYERS` layers of width `WIDTH` with `HEADS`
heads and a GELU feed-forward part, learned positions, untied output weights. There is no module object: weights are a
mapping from names to float32 tensors, so a model file holds plain arrays and building a scorer draws no random number.

There are two ways to compute it. Training evaluates whole rows (`hidden_states`). Scoring advances along a row in
blocks of `BLOCK` positions (`hidden_states_of_block`) and keeps the keys and values of the blocks before, so the cost
of one more line in a session is one block, not the whole session.

Exact bits. Scoring relies on this (and tests it): with one thread, what `hidden_states_of_block` returns for a row
depends neither on the other rows nor on later positions of the row. Every matrix product has a
multiple of 16 rows, at which the bits of a row are always the same, and attention always has the same shape: 16 queries
and the keys up to the block's end.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH = 64
LAYERS = 2
HEADS = 4
FEED = 256
POSITIONS = 64
BLOCK = 16

Weights = Mapping[str, Tensor]


def initial_weights(vocabulary: int, seed: int) -> dict[str, Tensor]:
    """Initial weights for `vocabulary` tokens, the same for the same `seed`; torch's global generator is not used."""
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int, deviation: float) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * deviation

    weights = {
        "embedding": normal(vocabulary, WIDTH, 0.3),
        "position": normal(POSITIONS, WIDTH, 0.1),
        "norm.scale": torch.ones(WIDTH),
        "norm.shift": torch.zeros(WIDTH),
        "output.weight": normal(vocabulary, WIDTH, 0.02),
        "output.bias": torch.zeros(vocabulary),
    }
    # The last matrix of each residual branch starts smaller, so that the sum of the branches does not grow with depth.
    into, back = WIDTH**-0.5, WIDTH**-0.5 / math.sqrt(2 * LAYERS)
    for layer in range(LAYERS):
        shapes = {"qkv": (3 * WIDTH, WIDTH, into), "mix": (WIDTH, WIDTH, back)}
        shapes |= {"up": (FEED, WIDTH, into), "down": (WIDTH, FEED, back / 2)}
        for name, (rows, columns, deviation) in shapes.items():
            weights[f"{layer}.{name}.weight"] = normal(rows, columns, deviation)
            weights[f"{layer}.{name}.bias"] = torch.zeros(rows)
        for name in ("attend", "feed"):
            weights[f"{layer}.{name}.scale"] = torch.ones(WIDTH)
            weights[f"{layer}.{name}.shift"] = torch.zeros(WIDTH)
    return weights


def hidden_states(weights: Weights, tokens: Tensor) -> Tensor:
    """The hidden states of `tokens` (int64 [rows, length], length <= POSITIONS): float32 [rows, length, WIDTH].

    Position i depends on tokens 0..i of its row.
    """
    x = _embedded_tokens(weights, tokens, 0)
    mask = _causal_mask(0, tokens.shape[1])
    for layer in range(LAYERS):
        queries, memory = _projected_queries_keys(weights, layer, x)
        x = _feed_forward(weights, layer, x + _mixed_heads(weights, layer, _attended_values(queries, memory, mask)))
    return _layer_norm(weights, "norm", x)


def new_key_value_pages(count: int) -> Tensor:
    """Memory for the keys and values of `count` blocks: float32 [LAYERS, count, BLOCK, 2 * WIDTH], keys before
    values."""
    return torch.zeros(LAYERS, count, BLOCK, 2 * WIDTH)


def hidden_states_of_block(weights: Weights, tokens: Tensor, pages: Tensor, table: Tensor, wanted: Tensor) -> Tensor:
    """The hidden states of the positions `wanted` in a block of every row, given those before it: float32 [n, WIDTH].

    tokens  int64 [rows, BLOCK]: those of the block
    pages   from `new_key_value_pages`; the page of this block is written
    table   int64 [rows, blocks so far]: the page of each of the row's blocks up to this one
    wanted  int64 [n]: positions in the flattened block; it is fastest if rows with wanted positions come first

    For exact bits rows * BLOCK and n must be multiples of 16.
    """
    rows, blocks = table.shape
    end = blocks * BLOCK
    mask = _causal_mask(end - BLOCK, end)
    x = _embedded_tokens(weights, tokens, end - BLOCK)
    for layer in range(LAYERS):
        queries, fresh = _projected_queries_keys(weights, layer, x)
        pages[layer].index_copy_(0, table[:, -1], fresh)
        if layer == LAYERS - 1:
            # Nothing attends to the last layer's output: from here on only the wanted positions are computed.
            rows = int(wanted.max()) // BLOCK + 1 if len(wanted) else 0
        memory = pages[layer].index_select(0, table[:rows].flatten()).view(rows, end, 2 * WIDTH)
        heads = _attended_values(queries[:rows], memory, mask)
        if layer == LAYERS - 1:
            x, heads = x.flatten(0, 1)[wanted], heads.flatten(0, 1)[wanted]
        x = _feed_forward(weights, layer, x + _mixed_heads(weights, layer, heads))
    return _layer_norm(weights, "norm", x)


def next_token_logits(weights: Weights, states: Tensor) -> Tensor:
    """The logits of the next token after each of `states` (float32 [n, WIDTH]): float32 [n, vocabulary]."""
    return _linear_layer(weights, "output", states)


def _embedded_tokens(weights: Weights, tokens: Tensor, begin: int) -> Tensor:
    return F.embedding(tokens, weights["embedding"]) + weights["position"][begin : begin + tokens.shape[1]]


def _causal_mask(begin: int, end: int) -> Tensor:
    """Which of the keys 0..end - 1 the queries begin..end - 1 may attend to: bool [end - begin, end]."""
    return torch.ones(end - begin, end, dtype=torch.bool).tril(begin)


def _projected_queries_keys(weights: Weights, layer: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [rows, length, 64], and keys and values side by side [rows, length, 128]."""
    projected = _linear_layer(weights, f"{layer}.qkv", _layer_norm(weights, f"{layer}.attend", x))
    # A split and not slices: backward concatenates the gradients once, instead of adding tensors padded with zeros.
    queries, memory = torch.split(projected, [WIDTH, 2 * WIDTH], dim=-1)
    return queries, memory


def _attended_values(queries: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
    q, k, v = (
        part.view(*part.shape[:2], HEADS, WIDTH // HEADS).transpose(1, 2)
        for part in (queries, *memory.chunk(2, dim=-1))
    )
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def _mixed_heads(weights: Weights, layer: int, heads: Tensor) -> Tensor:
    return _linear_layer(weights, f"{layer}.mix", heads)


def _feed_forward(weights: Weights, layer: int, x: Tensor) -> Tensor:
    """The feed-forward part with its residual connection."""
    h = F.gelu(_linear_layer(weights, f"{layer}.up", _layer_norm(weights, f"{layer}.feed", x)))
    return x + _linear_layer(weights, f"{layer}.down", h)


def _layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, (WIDTH,), weights[f"{name}.scale"], weights[f"{name}.shift"])


def _linear_layer(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
