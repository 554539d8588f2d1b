"""One training run: sessions in, a model generation out.

Clean sessions are split by a seeded hash: four fifths are fitted, one fifth is held out and becomes the
rings. The transformer learns the next template and the end of sessions; before its last part the sessions
that surprise it most are left out, because what happened before the daemon came is not known to be clean.
Then the Isolation Forest learns the features of sessions. The same data, seed and versions give the same
model, bit for bit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import sklearn
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from torch import Tensor

from detection.calibration import Ring, combined
from detection.features import CLOSING, Carry, running
from detection.forest import Forest
from detection.model import Model
from detection.network import hidden, initial, logits
from detection.segments import Offsets, rank_in_run, repeat_per_row
from detection.training_set import TrainingSet
from detection.transformer import (
    CONTEXT,
    FIRST,
    LARGEST_VOCABULARY,
    UNSEEN,
    Plan,
    SequenceModel,
    tokenised,
)

FEWEST_SESSIONS = 20
HELD_OUT = 5  # one session in so many
TRIMMED_SHARE = 0.05

STEP_TOKENS = 2048
LINES_PER_STEP = 60
FEWEST_STEPS, MOST_STEPS = 200, 800
EPOCHS = 20  # parts of a run, for progress
TRIM_AFTER = 0.7  # of the steps
PEAK_RATE = 3e-3
WARMUP_SHARE = 0.05
WEIGHT_DECAY = 0.01
LARGEST_GRADIENT = 1.0
HIDDEN_SHARE = 0.03  # of the inputs are shown as UNSEEN, so that a new template does not upset what follows it

TREES = 100
MOST_SAMPLES = 2048


class TrainingError(Exception):
    """The data do not suffice for a model; the message says what is missing."""


@dataclass(frozen=True)
class Progress:
    """`fraction` of the whole run is done, in [0, 1]; `loss` is the last epoch's, in nats a token."""

    stage: str
    epoch: int
    epochs: int
    loss: float
    fraction: float


def train(data: TrainingSet, *, progress: Callable[[Progress], None]) -> Model:
    """The model that `data` teaches. Takes tens of seconds of one core; raises TrainingError.

    Sets torch to one thread for the whole process: the thread count changes the weights.
    """
    torch.set_num_threads(1)
    clean = data.only(~data.tainted & (np.diff(data.offsets) > 0))
    sessions = len(clean.starts)
    if sessions < FEWEST_SESSIONS:
        raise TrainingError(
            f"{sessions} clean sessions are too few to learn from: at least {FEWEST_SESSIONS} are needed"
        )
    held_out = _held_out(sessions, data.seed)
    fit, held = clean.only(~held_out), clean.only(held_out)

    vocabulary = _vocabulary(fit.tokens)
    weights, losses = _fit_transformer(fit, vocabulary, progress)
    model = SequenceModel(_unfinished(data, vocabulary, weights))

    progress(Progress("forest", EPOCHS, EPOCHS, losses[-1], 0.92))
    fitted, ring = row_scores(model, fit), row_scores(model, held)
    forest = _fit_forest(fitted, data.seed)

    progress(Progress("calibration", EPOCHS, EPOCHS, losses[-1], 0.98))
    rings = _rings(ring, forest)
    progress(Progress("done", EPOCHS, EPOCHS, losses[-1], 1.0))
    return Model(
        generation=data.generation,
        line=data.line,
        vocabulary=vocabulary,
        weights={name: tensor.numpy() for name, tensor in weights.items()},
        forest=forest,
        templates=data.templates,
        rings=rings,
        meta={
            "seed": data.seed,
            "torch": str(torch.__version__),
            "sklearn": sklearn.__version__,
            "threads": torch.get_num_threads(),
            "epochs": EPOCHS,
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "lines": len(data.tokens),
            "sessions": len(data.starts),
            "fitted_sessions": len(fit.starts),
            "held_out_sessions": len(held.starts),
        },
    )


@dataclass(frozen=True)
class RowScores:
    """Sessions as the scorer meets them: a row a line, and one for the closing where there is one."""

    offsets: Offsets
    worst: NDArray[np.float64]
    features: NDArray[np.float64]


def row_scores(model: SequenceModel, data: TrainingSet) -> RowScores:
    """What `model` and the features say of every row of `data`."""
    sessions, sizes = len(data.starts), np.diff(data.offsets)
    known = np.zeros(sessions, dtype=np.int64)
    surprise = model.surprises(data.tokens, data.offsets, known, data.starts, data.ends)
    offsets = np.concatenate(([0], np.cumsum(sizes + data.ends))).astype(np.int64)
    session, rank = repeat_per_row(offsets), rank_in_run(offsets)
    closing = rank == sizes[session]
    # A closing row is at the time of the last line: it says nothing new about the rate.
    source = data.offsets[:-1][session] + rank - closing
    features, _ = running(
        surprise,
        data.errors[source] & ~closing,
        np.where(closing, CLOSING, data.tokens[source]).astype(np.int32),
        data.times[source],
        offsets,
        Carry.new(sessions),
    )
    return RowScores(offsets, features[:, 0], features)


def _held_out(sessions: int, seed: int) -> NDArray[np.bool_]:
    """Every session's fate by a hash of its number and the seed (splitmix64): exactly one in HELD_OUT."""
    mask = (1 << 64) - 1
    x = np.arange(1, sessions + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x ^= np.uint64(seed * 0xD1342543DE82EF95 & mask)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    chosen = np.zeros(sessions, dtype=np.bool_)
    chosen[np.argsort(x ^ (x >> np.uint64(31)), kind="stable")[: sessions // HELD_OUT]] = True
    return chosen


def _vocabulary(templates: NDArray[np.int32]) -> NDArray[np.int32]:
    """The most frequent templates, ascending.

    Those that came once stay out: their share of the lines is the Good-Turing estimate of how likely the
    next line is to show something new, and as UNSEEN they teach just that.
    """
    ids, counts = np.unique(templates, return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:LARGEST_VOCABULARY]
    kept: NDArray[np.int32] = np.sort(ids[frequent[counts[frequent] > 1]]).astype(np.int32)
    if not len(kept):
        raise TrainingError(f"none of {len(ids)} templates came twice: there is nothing to learn from")
    return kept


def _fit_transformer(
    fit: TrainingSet, vocabulary: NDArray[np.int32], progress: Callable[[Progress], None]
) -> tuple[dict[str, Tensor], list[float]]:
    """Weights, and the mean loss of each epoch.

    AdamW with a warm-up and a cosine to zero, over unique windows drawn with weight sqrt(count): by count
    alone the commonest session would be most of what is seen.
    """
    rng = np.random.default_rng(fit.seed & 0xFFFFFFFF)
    weights = initial(FIRST + len(vocabulary), fit.seed & 0xFFFFFFFF)
    for tensor in weights.values():
        tensor.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights.values(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    steps = min(max(len(fit.tokens) // LINES_PER_STEP, FEWEST_STEPS), MOST_STEPS)
    windows = _Sampler(fit, vocabulary, rng)
    losses: list[float] = []
    recent: list[float] = []
    for step in range(steps):
        if step == int(steps * TRIM_AFTER):
            rows = row_scores(SequenceModel(_unfinished(fit, vocabulary, weights)), fit)
            windows = _Sampler(fit.only(~_worst(rows.worst[rows.offsets[1:] - 1])), vocabulary, rng)
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * _schedule(step / steps)
        loss = _loss(weights, *windows.batch())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights.values(), LARGEST_GRADIENT)
        optimizer.step()
        recent.append(float(loss.detach()))
        epoch = (step + 1) * EPOCHS // steps
        if epoch > len(losses):
            losses.append(sum(recent) / len(recent))
            recent.clear()
            progress(Progress("transformer", epoch, EPOCHS, losses[-1], 0.9 * (step + 1) / steps))
    return {name: tensor.detach() for name, tensor in weights.items()}, losses


class _Sampler:
    """Draws batches of about STEP_TOKENS tokens, each of windows of one padded length."""

    _LENGTHS = (8, 16, 32, CONTEXT - 1)

    def __init__(self, fit: TrainingSet, vocabulary: NDArray[np.int32], rng: np.random.Generator) -> None:
        self._rng = rng
        tokens = tokenised(fit.tokens, vocabulary)
        plan = Plan(tokens, fit.offsets, np.zeros(len(fit.starts), np.int64), fit.starts, fit.ends)
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
                # Long windows come fewer to a batch, so their batches must come more often.
                shares.append(weight[fits].sum() * length)
        self._shares = np.cumsum(shares)

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs int64 [rows, length]; the flat positions asked, int64 [n]; their targets, int64 [n]."""
        length, rows, size, weights = self._buckets[_drawn(self._rng, self._shares, 1)[0]]
        chosen = _drawn(self._rng, weights, STEP_TOKENS // length)
        picked = rows[chosen].astype(np.int64)
        inputs, targets = picked[:, :length], picked[:, 1 : length + 1]
        asked = np.flatnonzero(np.arange(1, length + 1) < size[chosen][:, None])
        answers = targets.reshape(-1)[asked]
        hidden_away = (self._rng.random(inputs.shape) < HIDDEN_SHARE) & (inputs >= FIRST)
        inputs = np.where(hidden_away, UNSEEN, inputs)
        return torch.from_numpy(inputs), torch.from_numpy(asked), torch.from_numpy(answers)


def _drawn(rng: np.random.Generator, cumulative: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """`count` indices drawn with the weights whose running sum is `cumulative`."""
    places: NDArray[np.int64] = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
    return np.minimum(places, len(cumulative) - 1)


def _loss(weights: dict[str, Tensor], inputs: Tensor, asked: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits(weights, hidden(weights, inputs).flatten(0, 1)[asked]), targets)


def _schedule(done: float) -> float:
    """The share of the peak rate after the share `done` of all steps."""
    return min(done / WARMUP_SHARE + 0.02, 1.0) * 0.5 * (1.0 + math.cos(math.pi * done))


def _unfinished(data: TrainingSet, vocabulary: NDArray[np.int32], weights: dict[str, Tensor]) -> Model:
    """A model that can score sequences and nothing else yet."""
    arrays = {name: tensor.detach().numpy() for name, tensor in weights.items()}
    return Model(data.generation, data.line, vocabulary, arrays, {}, {}, {}, {})


def _worst(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The TRIMMED_SHARE of `values` (float64 [n]) that are the largest; ties by place."""
    worst = np.zeros(len(values), dtype=np.bool_)
    worst[np.argsort(-values, kind="stable")[: int(len(values) * TRIMMED_SHARE)]] = True
    return worst


def _fit_forest(fitted: RowScores, seed: int) -> dict[str, NDArray[np.generic]]:
    """Two rows of every session: its last, and one at random, since open sessions are scored as well.

    Without the second, every session is strange while it is short, and the running maximum says nothing.
    Nothing is trimmed here: a tree sees few of the strange sessions anyway, and without the rare clean ones
    they look like anomalies (measured on HDFS: worse at every contamination tried).
    """
    sizes = np.diff(fitted.offsets)
    anywhere = np.random.default_rng(seed & 0xFFFFFFFF).random(len(sizes)) * sizes
    rows = np.concatenate([fitted.offsets[1:] - 1, fitted.offsets[:-1] + anywhere.astype(np.int64)])
    samples = min(MOST_SAMPLES, len(rows))
    forest = IsolationForest(n_estimators=TREES, max_samples=samples, random_state=seed & 0xFFFFFFFF)
    return forest_columns(forest.fit(fitted.features[rows]))


def _rings(held: RowScores, forest: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float64]]:
    """What held-out sessions reach: by member, and combined as a verdict combines them."""
    reached = {
        "transformer": held.worst[held.offsets[1:] - 1],
        "isolation_forest": np.maximum.reduceat(Forest(forest).scores(held.features), held.offsets[:-1]),
    }
    rings = {name: np.sort(scores) for name, scores in reached.items()}
    p = np.stack([Ring(rings[name]).p(scores) for name, scores in reached.items()], axis=1)
    return rings | {"ensemble": np.sort(combined(p))}


def forest_columns(forest: IsolationForest) -> dict[str, NDArray[np.generic]]:
    """A fitted scikit-learn forest as the columns of `detection.forest`."""
    trees = [estimator.tree_ for estimator in forest.estimators_]
    depth = max(tree.max_depth for tree in trees)
    feature = np.zeros((len(trees), (1 << depth) - 1), dtype=np.int8)
    threshold = np.full(feature.shape, np.inf, dtype=np.float32)
    path = np.zeros((len(trees), 1 << depth))
    for row, tree in enumerate(trees):
        waiting = [(0, 0, 0)]  # scikit-learn's node, its level, its place in the level
        while waiting:
            node, level, place = waiting.pop()
            if tree.children_left[node] < 0:
                below = depth - level
                length = level + _mean_path(int(tree.n_node_samples[node]))
                path[row, place << below : (place + 1) << below] = length
                continue
            index = (1 << level) - 1 + place
            feature[row, index] = tree.feature[node]
            threshold[row, index] = _rounded_down(float(tree.threshold[node]))
            waiting.append((int(tree.children_left[node]), level + 1, 2 * place))
            waiting.append((int(tree.children_right[node]), level + 1, 2 * place + 1))
    scale = np.array([len(trees) * _mean_path(int(forest.max_samples_))])
    return {"feature": feature, "threshold": threshold, "path": path, "scale": scale}


def _mean_path(samples: int) -> float:
    """The mean path length of an unsuccessful search among `samples` (Liu, Ting and Zhou, 2008)."""
    if samples <= 2:
        return float(samples == 2)
    return 2.0 * (math.log(samples - 1.0) + float(np.euler_gamma)) - 2.0 * (samples - 1.0) / samples


def _rounded_down(value: float) -> np.float32:
    nearest = np.float32(value)
    return np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > value else nearest
