"""The transformer's arithmetic: pure functions of weights and tokens, shared by scoring and training.

Pre-norm, causal, `LAYERS` layers of width `WIDTH` with `HEADS` heads and a GELU feed-forward part, learned
positions, an output layer of its own. There is no module object: weights are a mapping from name to float32
tensor, so a model file holds plain arrays and building a scorer draws no random number.

Bits. Scoring relies on this (and tests it): with one thread, a row's result at a position depends neither on
the other rows, if there are a multiple of 16 of them, nor on what follows the position, nor on the padded
length. The last needs the keys padded to at least `_SHORTEST_KEYS`: below one vector register's 16 floats the
softmax adds in another order.
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
_SHORTEST_KEYS = 16

Weights = Mapping[str, Tensor]


def initial(vocabulary: int, seed: int) -> dict[str, Tensor]:
    """Fresh weights for `vocabulary` tokens, the same for the same `seed`; global randomness is untouched."""
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
    # The last matrix of each branch starts smaller, so that the depth does not inflate the sum of branches.
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


def hidden(weights: Weights, tokens: Tensor) -> Tensor:
    """What the network makes of `tokens` (int64 [rows, length], length <= 64): float32 [rows, length, 64].

    Position i has seen tokens 0..i of its row.
    """
    rows, length = tokens.shape
    keys = max(length, _SHORTEST_KEYS)
    mask = torch.ones(length, keys, dtype=torch.bool).tril()
    x = F.embedding(tokens, weights["embedding"]) + weights["position"][:length]
    for layer in range(LAYERS):
        h = _norm(weights, f"{layer}.attend", x)
        qkv = _linear(weights, f"{layer}.qkv", h).view(rows, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if keys > length:
            k, v = (F.pad(t, (0, 0, 0, keys - length)) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + _linear(weights, f"{layer}.mix", mixed.transpose(1, 2).reshape(rows, length, WIDTH))
        h = F.gelu(_linear(weights, f"{layer}.up", _norm(weights, f"{layer}.feed", x)))
        x = x + _linear(weights, f"{layer}.down", h)
    return _norm(weights, "norm", x)


def logits(weights: Weights, states: Tensor) -> Tensor:
    """What comes next, before normalisation, for `states` (float32 [n, 64]): float32 [n, vocabulary]."""
    return _linear(weights, "output", states)


def _norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, (WIDTH,), weights[f"{name}.scale"], weights[f"{name}.shift"])


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
