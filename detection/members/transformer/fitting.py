"""Fitting the transformer: next-template cross-entropy, the end of sessions included, with AdamW over unique windows.

The partial result of an interrupted fit (`FitData.keep`), as columns:

    steps                   int, steps taken
    weights.<name>          float32, as the result of the fit
    exp_avg.<name>, exp_avg_sq.<name>   float32, AdamW's moments of each weight
    rng.state, rng.inc, rng.has_uint32, rng.uinteger   the state of the random generator (PCG64)
"""

import math
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from detection.columns.state_columns import Columns, State, columns_under, with_prefix
from detection.members.member_interfaces import FitData, Part
from detection.members.transformer.network import hidden_states, initial_weights, next_token_logits
from detection.members.transformer.windows import CONTEXT, FIRST, UNSEEN, WindowPlan, tokens_of_templates
from detection.models.training_set import TrainingSet

STEP_TOKENS = 2048
LINES_PER_STEP = 60
FEWEST_STEPS, MOST_STEPS = 200, 500
FINE_TUNING = 0.5  # of the steps, at a third of the rate, when a fit begins with earlier weights
REPORTS = 20  # a fit
PEAK_RATE, FINE_RATE = 3e-3, 1e-3
WARMUP_SHARE = 0.05
WEIGHT_DECAY = 0.01
LARGEST_GRADIENT = 1.0
HIDDEN_SHARE = 0.03  # of the inputs become UNSEEN, so that a new template does not upset later predictions
_MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
_DRAWN, _HALF_DRAWN = ("state", "inc"), ("has_uint32", "uinteger")  # of PCG64, and of its spare 32 bits
_TOKEN_ROWS = ("embedding", "output.weight", "output.bias")


def fit_transformer(fit_data: FitData) -> dict[str, NDArray[Any]]:
    """The fitted weights by name (`network.initial_weights`), float32. Takes tens of seconds of one core.

    Sets torch to one thread, because the number of threads changes the weights. Without a previous part the initial
    weights are drawn with the seed. With one, training continues from its weights, and every second batch is of
    sessions that were there before it (experience replay), so that what is rare now is not forgotten.
    """
    torch.set_num_threads(1)
    data, seed = fit_data.data, fit_data.data.seed & 0xFFFFFFFF
    rng = np.random.default_rng(seed)
    weights = initial_weights(FIRST + len(fit_data.vocabulary), seed)
    rate, share = PEAK_RATE, 1.0
    if fit_data.previous is not None:
        weights |= _weights_carried_over(weights, *fit_data.previous, fit_data.vocabulary)
        rate, share = FINE_RATE, FINE_TUNING
    if fit_data.begun is not None:
        weights = _tensors_under_prefix("weights", fit_data.begun)
    for tensor in weights.values():
        tensor.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights.values(), lr=rate, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    steps = max(int(min(max(fit_data.lines // LINES_PER_STEP, FEWEST_STEPS), MOST_STEPS) * share), 1)
    samplers = [_Sampler(data, fit_data.vocabulary, rng)]
    if fit_data.previous is not None and data.fresh.any() and not data.fresh.all():
        samplers = [_Sampler(data.only(some), fit_data.vocabulary, rng) for some in (data.fresh, ~data.fresh)]
    recent: list[float] = []
    done = 0 if fit_data.begun is None else _resume_partial_fit(fit_data.begun, weights, optimizer, rng)
    for step in range(done, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * _learning_rate_share(step / steps)
        loss = _next_token_loss(weights, *samplers[step % len(samplers)].batch())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights.values(), LARGEST_GRADIENT)
        optimizer.step()
        recent.append(float(loss.detach()))
        if (step + 1) * REPORTS // steps > step * REPORTS // steps:
            fit_data.progress((step + 1) / steps, sum(recent) / len(recent))
            recent.clear()
            if step + 1 < steps:
                fit_data.keep(partial(_partial_fit, step + 1, weights, optimizer, rng))
    return {name: tensor.detach().numpy() for name, tensor in weights.items()}


def _partial_fit(
    steps: int, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer, rng: np.random.Generator
) -> State:
    """The partial result after `steps` steps: everything that the remaining steps depend on."""
    state, drawn = optimizer.state, rng.bit_generator.state
    return {
        "steps": steps,
        **with_prefix("weights", {name: tensor.detach().numpy() for name, tensor in weights.items()}),
        **{
            f"{moment}.{name}": state[tensor][moment].numpy() for name, tensor in weights.items() for moment in _MOMENTS
        },
        **with_prefix("rng", {name: drawn["state"][name] for name in _DRAWN}),
        **with_prefix("rng", {name: drawn[name] for name in _HALF_DRAWN}),
    }


def _resume_partial_fit(
    begun: Columns, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer, rng: np.random.Generator
) -> int:
    """Restore optimizer and generator from the result of `_partial_fit`; returns the number of steps taken."""
    steps = begun["steps"]
    assert isinstance(steps, int)
    moments = {moment: _tensors_under_prefix(moment, begun) for moment in _MOMENTS}
    for name, tensor in weights.items():
        optimizer.state[tensor] = {
            "step": torch.tensor(float(steps)),
            **{moment: moments[moment][name] for moment in _MOMENTS},
        }
    drawn: Any = columns_under("rng", begun)
    rng.bit_generator.state = {
        **rng.bit_generator.state,
        "state": {name: drawn[name] for name in _DRAWN},
        **{name: drawn[name] for name in _HALF_DRAWN},
    }
    return steps


def _tensors_under_prefix(prefix: str, columns: Columns) -> dict[str, Tensor]:
    """The arrays under `prefix`, copied to memory allocated by torch: aligned as in a fit that was not interrupted."""
    arrays: Any = columns_under(prefix, columns)
    return {name: torch.tensor(array) for name, array in arrays.items()}


def _weights_carried_over(
    fresh: dict[str, Tensor], previous: Part, old: NDArray[np.int32], vocabulary: NDArray[np.int32]
) -> dict[str, Tensor]:
    """The previous weights for the new vocabulary. The weights of a template without a token begin as those of
    UNSEEN."""
    weights = {name: torch.from_numpy(np.array(array)) for name, array in previous.items()}
    place = np.minimum(np.searchsorted(old, vocabulary), max(len(old) - 1, 0))
    known = old[place] == vocabulary if len(old) else np.zeros(len(vocabulary), dtype=np.bool_)
    rows = np.concatenate((np.arange(FIRST), np.where(known, place + FIRST, UNSEEN)))
    for name in _TOKEN_ROWS:
        weights[name] = weights[name][torch.from_numpy(rows)].clone()
    # Identical rows would get identical gradients and stay identical.
    new = torch.from_numpy(np.flatnonzero(~known) + FIRST)
    weights["embedding"][new] += fresh["embedding"][new] * 0.1
    return weights


class _Sampler:
    """Draws batches of about STEP_TOKENS tokens, each of windows of one padded length.

    Unique windows are drawn with weight sqrt(count): with weight count most would be of the most frequent session.
    """

    _LENGTHS = (8, 16, 32, CONTEXT - 1)

    def __init__(self, fit: TrainingSet, vocabulary: NDArray[np.int32], rng: np.random.Generator) -> None:
        self._rng = rng
        tokens = tokens_of_templates(fit.tokens, vocabulary)
        plan = WindowPlan(tokens, fit.offsets, np.zeros(len(fit.starts), np.int64), fit.starts, fit.ends)
        windows = plan.windows(0, len(plan))
        as_bytes = np.ascontiguousarray(windows.rows).view(f"V{windows.rows.itemsize * CONTEXT}").reshape(-1)
        _, chosen, counts = np.unique(as_bytes, return_index=True, return_counts=True)
        rows, size, weight = windows.rows[chosen], windows.size[chosen], np.sqrt(counts)
        self._buckets: list[tuple[int, NDArray[np.int16], NDArray[np.int64], NDArray[np.float64]]] = []
        shares = []
        below = 0
        for length in self._LENGTHS:
            fits = (size - 1 > below) & (size - 1 <= length)
            below = length
            if fits.any():
                self._buckets.append((length, rows[fits], size[fits], np.cumsum(weight[fits])))
                # A batch has fewer long windows than short ones, so batches of long windows must be drawn more often.
                shares.append(weight[fits].sum() * length)
        self._shares = np.cumsum(shares)

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs int64 [rows, length]; the flattened positions to predict, int64 [n]; their targets, int64 [n]."""
        length, rows, size, weights = self._buckets[_weighted_draws(self._rng, self._shares, 1)[0]]
        chosen = _weighted_draws(self._rng, weights, STEP_TOKENS // length)
        picked = rows[chosen].astype(np.int64)
        inputs, targets = picked[:, :length], picked[:, 1 : length + 1]
        wanted = np.flatnonzero(np.arange(1, length + 1) < size[chosen][:, None])
        answers = targets.reshape(-1)[wanted]
        hidden_away = (self._rng.random(inputs.shape) < HIDDEN_SHARE) & (inputs >= FIRST)
        inputs = np.where(hidden_away, UNSEEN, inputs)
        return torch.from_numpy(inputs), torch.from_numpy(wanted), torch.from_numpy(answers)


def _weighted_draws(rng: np.random.Generator, cumulative: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """`count` indices, drawn with the weights whose running sums are `cumulative`: int64 [count]."""
    places: NDArray[np.int64] = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
    return np.minimum(places, len(cumulative) - 1)


def _next_token_loss(weights: dict[str, Tensor], inputs: Tensor, wanted: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(next_token_logits(weights, hidden_states(weights, inputs).flatten(0, 1)[wanted]), targets)


def _learning_rate_share(done: float) -> float:
    """The learning rate as a share of its peak, after the share `done` of all steps: a warm-up, then a cosine to
    zero."""
    return min(done / WARMUP_SHARE + 0.02, 1.0) * 0.5 * (1.0 + math.cos(math.pi * done))
