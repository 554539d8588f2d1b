"""One training run: sessions in, a model generation out.

Every member is fitted on the sessions that may be learned from, and *cross-fitted* for its calibration: each session
is scored by a fit that did not see it, so that the calibration scores are what unseen normal sessions come to, from
all of the data. Before the first full model the sessions that the quick members find strangest are left out of every
fit: what happened before the daemon came is not known to be clean. A member that cannot be fitted (a library that does
not work on this machine) is left out of the model, which says so; but never one that the model in force has. The same
data, seed and versions give the same model, bit for bit.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray

from detection.columns.runs import repeat_per_row
from detection.columns.state import Columns, State, joined, part
from detection.learning.promotion import anchor_of, bounded, refuse_worse
from detection.members.member import FitData, FittedMember, Member
from detection.members.member import Progress as Fitting
from detection.members.registry import FITTED, MEMBERS, NAMES, OFTEN_SILENT, ONLINE_NAMES
from detection.members.transformer.scoring import LARGEST_VOCABULARY
from detection.members.view import Bools, Floats, Standing, View, whole_sessions
from detection.models.model import UNFITTED, Model
from detection.models.training_set import TrainingSet
from detection.scoring.calibration import CalibrationScores, combined
from detection.scoring.ensemble import p_of, shares

FEWEST_SESSIONS = 20
FEWEST_TO_CALIBRATE = 200  # sessions in which a member spoke that is often silent
TRIMMED_SHARE = 0.05
SUSPECT_LEVELS = 5.0  # times the level of a flag: from there on sessions are counted before they calibrate anything
LARGEST_SHARE = 0.05  # of the sessions learned from, of one key
MANY_KEYS = 20  # from this many on one key's templates need a second one to be known
STEPS_REPORTED = 20


M = TypeVar("M", bound=Member)


class TrainingError(Exception):
    """The data do not suffice for a model; the message says what is missing."""


@dataclass(frozen=True)
class Progress:
    """`fraction` of the whole run is done, in [0, 1]; `loss` is the transformer's last, in nats a token."""

    stage: str
    epoch: int
    epochs: int
    loss: float
    fraction: float


class Notebook(Protocol):
    """Where a run notes how far it is, so that another one on the same data need not begin at its beginning.

    found  what the last note of such a run said, by the same program and versions; {} when there is none
    """

    @property
    def found(self) -> Columns: ...

    def note(self, fraction: float, state: Callable[[], State]) -> None:
        """Offered often: the notebook may take a note or not; `state` is called at once, or not at all."""


class NoNotebook:
    """A run that begins at its beginning, and would again."""

    def __init__(self) -> None:
        self.found: Columns = {}

    def note(self, fraction: float, state: Callable[[], State]) -> None:
        """Nothing is kept."""


def train(data: TrainingSet, *, progress: Callable[[Progress], None], notebook: Notebook | None = None) -> Model:
    """The model that `data` teaches. Takes seconds for a small model and about a minute of one core for a full one.

    What `notebook` holds of an interrupted run on the same data is not done again; the model is the same to the bit.
    Raises TrainingError, and `promotion.RefusedError` when what came out is worse than the model in force. Sets torch
    to one thread for the whole process: the thread count changes the weights.
    """
    torch.set_num_threads(1)
    report = _Report(progress, data.full)
    fits = _Fits(notebook or NoNotebook(), report)
    pool = data.only(~data.tainted & (np.diff(data.offsets) > 0))
    pool = pool.only(_within_share(pool))
    if len(pool.starts) < FEWEST_SESSIONS:
        raise TrainingError(
            f"{len(pool.starts)} clean sessions are too few to learn from: at least {FEWEST_SESSIONS} are needed"
        )
    view = whole_sessions(pool, len(NAMES))
    learned = ~pool.flagged
    vocabulary = _vocabulary(pool.only(learned))
    quick = [member for member in FITTED if member.early]
    run = _Run(pool, view, vocabulary, report, fits)
    if data.previous is None or not _has_transformer(data.previous):
        first = run.cross_fitted(quick, learned)
        quick = fits.fitted(quick)
        _refuse_without(fits.failed, quick, data.previous)
        learned &= ~_strangest(first, view, quick, ~pool.vouched & learned)
        vocabulary = _vocabulary(pool.only(learned))
        run = _Run(pool, view, vocabulary, report, fits)
    members = [
        member for member in MEMBERS if (data.full or _is_early(member)) and _has_enough_to_say(member, view, learned)
    ]
    standing = run.cross_fitted(members, learned)
    for member in fits.fitted(members):
        if issubclass(member, FittedMember) and member.folds > 1:
            with fits.may_fail(member):
                run.parts[member.name] = run.fit(member, learned, standing, share=1.0 / (member.folds + 1))
    members = fits.fitted(members)
    _refuse_without(fits.failed, members, data.previous)
    parts: dict[str, Mapping[str, NDArray[Any]]] = {
        name: part for name, part in run.parts.items() if name not in fits.failed
    }

    report("calibration", 0.98)
    calibration = _calibration_scores(standing.reached[view.final_rows()], members, pool)
    model = Model(
        generation=data.generation,
        line=data.line,
        vocabulary=vocabulary,
        parts=parts,
        templates=data.templates,
        calibration=calibration,
        meta=_meta(data, report.loss, int(learned.sum()), fits.failed),
    )
    previous = data.previous
    if data.full:
        if previous is not None and _has_transformer(previous):
            refuse_worse(model, previous, view, run.said["transformer"], pool.fresh)
            calibration["ensemble"] = bounded(calibration["ensemble"], previous.calibration["ensemble"])
        parts["anchor"] = anchor_of(previous, pool.only(learned))
    progress(Progress("done", STEPS_REPORTED, STEPS_REPORTED, report.loss, 1.0))
    return model


def _meta(data: TrainingSet, loss: float, fitted: int, failed: Mapping[str, str]) -> dict[str, int | float | str]:
    """What a model says of its making; nobody judges by it."""
    return {
        "seed": data.seed,
        "torch": str(torch.__version__),
        "sklearn": sklearn.__version__,
        "threads": torch.get_num_threads(),
        "last_loss": loss,
        "lines": len(data.tokens),
        "sessions": len(data.starts),
        "fitted_sessions": fitted,
        "full": int(data.full),
        **{f"{UNFITTED}.{name}": why for name, why in failed.items()},
    }


def _refuse_without(failed: Mapping[str, str], members: Sequence[type[Member]], previous: Model | None) -> None:
    """Raise TrainingError when the model would be none without the members that failed, or less than there is."""
    for name, reason in failed.items():
        if previous is not None and name in previous.calibration:
            raise TrainingError(f"{name} could not be fitted, and the model in force has it: {reason}")
    if failed and not any(issubclass(member, FittedMember) for member in members):
        raise TrainingError("no member could be fitted: " + "; ".join(f"{name}: {why}" for name, why in failed.items()))


class _Report:
    """Where the run stands. The transformer takes nearly all of the time of a full run."""

    def __init__(self, progress: Callable[[Progress], None], full: bool) -> None:
        self.loss = 0.0
        self._progress = progress
        self._full = full
        self._begin, self._share = 0.02, 0.05
        self.fraction = 0.0

    def part(self, member: type[FittedMember], share: float) -> None:
        """The next fit takes `share` of all the fits of `member`."""
        self._begin, self._share = self._begin + self._share, share * (0.9 if member.name == "transformer" else 0.005)

    def inside(self, stage: str) -> Fitting:
        def fit(fraction: float, loss: float | None = None) -> None:
            self.loss = self.loss if loss is None else loss
            self(stage, min(self._begin + fraction * self._share, 0.97))

        return fit

    def __call__(self, stage: str, fraction: float) -> None:
        self.fraction = fraction
        self._progress(Progress(stage, int(fraction * STEPS_REPORTED), STEPS_REPORTED, self.loss, fraction))


class _Fits:
    """The fits of one run in their order, which the data decide: those that an interrupted run finished are not done
    again, and the one it was at goes on where it was noted.

    A note is "loss", the last one reported; under "done.<member>:<n>" the part that a member's n-th fit came to; under
    "begun.<member>:<n>" what the one under way gave to `FitData.keep`; under "failed" why a member could not be fitted,
    which then holds for the whole of the run, for the fits after it did without it.
    """

    def __init__(self, notebook: Notebook, report: _Report) -> None:
        self._notebook, self._report = notebook, report
        self._found = notebook.found
        self._done: State = {}
        self._counts: Counter[str] = Counter()
        self.failed: dict[str, str] = {name: str(why) for name, why in part("failed", self._found).items()}
        loss = self._found.get("loss")
        report.loss = loss if isinstance(loss, float) else 0.0

    def fitted(self, members: Sequence[type[M]]) -> list[type[M]]:
        """Those of `members` that did not fail."""
        return [member for member in members if member.name not in self.failed]

    @contextmanager
    def may_fail(self, member: type[Member]) -> Iterator[None]:
        """What raises in here costs the run `member`."""
        try:
            yield
        except Exception as exc:  # whatever it is, it concerns one member of several
            self.failed[member.name] = f"{type(exc).__name__}: {exc}".partition("\n")[0]
            self._note(dict)

    def fit(self, member: type[FittedMember], fit_data: FitData) -> dict[str, NDArray[Any]]:
        name = f"{member.name}:{self._counts[member.name]}"
        done, begun = f"done.{name}", f"begun.{name}"
        self._counts[member.name] += 1
        fitted: Any = part(done, self._found)
        found = bool(fitted)
        if not found:

            def keep(state: Callable[[], Columns]) -> None:
                self._note(lambda: joined(begun, state()))

            fitted = member.fit(replace(fit_data, begun=part(begun, self._found) or None, keep=keep))
        self._done |= joined(done, fitted)
        if not found:
            self._note(dict)
        return dict(fitted)

    def _note(self, more: Callable[[], State]) -> None:
        self._notebook.note(
            self._report.fraction,
            lambda: {"loss": self._report.loss, **joined("failed", self.failed), **self._done, **more()},
        )


class _Run:
    def __init__(
        self,
        pool: TrainingSet,
        view: View,
        vocabulary: NDArray[np.int32],
        report: _Report,
        fits: _Fits | None = None,
    ) -> None:
        self._fits = fits or _Fits(NoNotebook(), report)
        self._pool, self._view, self._vocabulary, self._report = pool, view, vocabulary, report
        self._row_session = repeat_per_row(view.offsets)
        self.said: dict[str, Floats] = {}  # what each member said, cross-fitted, by row
        self.parts: dict[str, dict[str, NDArray[Any]]] = {}  # of members that were fitted once

    def cross_fitted(self, members: Sequence[type[Member]], learned: Bools) -> Standing:
        """Every session of the pool as `members` see it that did not learn from it (nor from any but `learned`)."""
        standing = Standing(self._view, NAMES)
        for member in self._fits.fitted(members):
            with self._fits.may_fail(member):
                scores = self._cross_fitted(member, learned, standing)
                standing.put(member.name, scores)
                self.said[member.name] = scores
        return standing

    def _cross_fitted(self, member: type[Member], learned: Bools, standing: Standing) -> Floats:
        if not issubclass(member, FittedMember):
            return _said_online(member, self._view)
        if member.folds == 1:
            return self._out_of_bag(member, learned, standing)
        return self._by_folds(member, learned, standing)

    def _out_of_bag(self, member: type[FittedMember], learned: Bools, standing: Standing) -> Floats:
        part = self.parts[member.name] = self.fit(member, learned, standing, share=1.0)
        held_out = part.pop("held_out")
        scores = member(part, self._vocabulary).score(self._view, standing)
        scores[learned[self._row_session]] = held_out
        return scores

    def _by_folds(self, member: type[FittedMember], learned: Bools, standing: Standing) -> Floats:
        scores = np.zeros(len(self._view))
        fold = _folds(len(learned), member.folds, self._pool.seed)
        for number in range(member.folds):
            part = self.fit(member, learned & (fold != number), standing, share=1.0 / (member.folds + 1))
            rows = (fold == number)[self._row_session]
            some = whole_sessions(self._pool.only(fold == number), len(NAMES))
            scores[rows] = member(part, self._vocabulary).score(some, standing.only(rows))
        return scores

    def fit(
        self, member: type[FittedMember], sessions: Bools, standing: Standing, *, share: float
    ) -> dict[str, NDArray[Any]]:
        self._report.part(member, share)
        previous = self._pool.previous
        return self._fits.fit(
            member,
            FitData(
                data=self._pool.only(sessions),
                vocabulary=self._vocabulary,
                standing=standing.only(sessions[self._row_session]),
                previous=(
                    (previous.parts[member.name], previous.vocabulary)
                    if previous is not None and member.name in previous.parts
                    else None
                ),
                lines=len(self._pool.tokens),
                progress=self._report.inside(member.name),
            ),
        )


def _has_transformer(model: Model) -> bool:
    return "transformer" in model.parts


def _mixed(count: int, seed: int) -> NDArray[np.uint64]:
    """A hash of each number below `count` and the seed (splitmix64)."""
    mask = (1 << 64) - 1
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x ^= np.uint64(seed * 0xD1342543DE82EF95 & mask)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _folds(sessions: int, folds: int, seed: int) -> NDArray[np.int64]:
    """Each session's fold, by the seed; folds differ by one session at most."""
    fold = np.empty(sessions, dtype=np.int64)
    fold[np.argsort(_mixed(sessions, seed), kind="stable")] = np.arange(sessions) % folds
    return fold


def _within_share(data: TrainingSet) -> Bools:
    """The sessions that stay when no key has more than LARGEST_SHARE of them: of a larger one the latest go.

    With too few keys for that (a stream without keys has one a connection), and of keys that are not alike, all stay.
    An attacker who sends much of the traffic cannot make most of what is learned (Kloft and Laskov, 2010, bound the
    gain by the share).
    """
    _, where, counts = np.unique(data.keys, return_inverse=True, return_counts=True)
    if len(counts) < MANY_KEYS:
        return np.ones(len(data.keys), dtype=np.bool_)
    most = max(int(LARGEST_SHARE * len(data.keys)), 1)
    order = np.argsort(where, kind="stable")
    rank = np.empty(len(data.keys), dtype=np.int64)
    rank[order] = np.arange(len(data.keys)) - np.repeat(np.cumsum(counts) - counts, counts)
    templates = _Templates.of(data)
    first = np.searchsorted(templates.ids, data.tokens[data.offsets[:-1]])
    within: Bools = (rank < most) | ~templates.keys_alike[first]
    return within


def _vocabulary(data: TrainingSet) -> NDArray[np.int32]:
    """The most frequent templates, ascending.

    Those that came once stay out: their share of the lines is the Good-Turing estimate of how likely the
    next line is to show something new, and as UNSEEN they teach just that. Where there are many keys, and they are
    alike, so do those that only one of them ever sent: one source does not decide what is known.
    """
    templates = _Templates.of(data)
    enough = templates.lines > 1
    if len(np.unique(data.keys)) >= MANY_KEYS:
        enough &= (templates.senders > 1) | ~templates.keys_alike
    frequent = np.argsort(-templates.lines, kind="stable")
    frequent = frequent[enough[frequent]][:LARGEST_VOCABULARY]
    kept: NDArray[np.int32] = np.sort(templates.ids[frequent]).astype(np.int32)
    if not len(kept):
        raise TrainingError(f"none of {len(enough)} templates came twice: there is nothing to learn from")
    return kept


@dataclass(frozen=True)
class _Templates:
    """Which templates a set has and who sends them; columns [V], ascending by id.

    `keys_alike` says of a template's family whether one key stands for another there: most keys mostly send templates
    that others send, too. Clients, requests and pods are alike. The programs of a host are not: each has templates of
    its own, and that no other one sends them says nothing against them. Each key has one vote, however much it sends.
    """

    ids: NDArray[np.int32]
    lines: NDArray[np.int64]
    senders: NDArray[np.int64]  # keys
    keys_alike: Bools

    @classmethod
    def of(cls, data: TrainingSet) -> "_Templates":
        ids, where, lines = np.unique(data.tokens, return_inverse=True, return_counts=True)
        keys, key = np.unique(data.keys, return_inverse=True)
        key = key[repeat_per_row(data.offsets)]
        # Pairs as one number each: sorting pairs as such takes many times as long.
        senders = np.bincount(np.unique(where * len(keys) + key) // len(keys), minlength=len(ids))
        family = _families(data, ids)
        voters, voter = np.unique(family[where] * len(keys) + key, return_inverse=True)
        shared = np.bincount(voter, weights=senders[where] > 1) >= 0.5 * np.bincount(voter)
        of_family = voters // len(keys)
        alike = np.bincount(of_family, weights=shared) >= 0.5 * np.bincount(of_family)
        return cls(ids, lines, senders, alike[family])


def _families(data: TrainingSet, ids: NDArray[np.int32]) -> NDArray[np.int64]:
    """The family of each template (see `detection.templates.table`); of one that was evicted since, the first."""
    table: Any = data.templates
    at = np.minimum(np.searchsorted(table["id"], ids), len(table["id"]) - 1)
    return np.where(table["id"][at] == ids, table["family"][at], 0).astype(np.int64)


def _strangest(standing: Standing, view: View, members: Sequence[type[Member]], candidates: Bools) -> Bools:
    """The TRIMMED_SHARE of `candidates` (bool [S]) that `members` find strangest; ties by place."""
    columns = [standing.column[member.name] for member in members]
    reached = standing.reached[view.final_rows()][:, columns]
    p = np.stack([CalibrationScores(np.sort(column)).p(column) for column in reached.T], axis=1)
    strangeness = np.where(candidates, combined(p, shares([member.family for member in members])), -np.inf)
    strangest = np.zeros(len(candidates), dtype=np.bool_)
    strangest[np.argsort(-strangeness, kind="stable")[: int(candidates.sum() * TRIMMED_SHARE)]] = True
    return strangest


def _calibration_scores(
    reached: Floats, members: Sequence[type[Member]], pool: TrainingSet
) -> dict[str, NDArray[np.float64]]:
    """What sessions come to that were not learned from: by member, and combined as a verdict combines them.

    Not of survivors only: of the flagged sessions as many come in as the level they were flagged at would flag
    without cause, those that now look least strange. Else every generation would take the highest for the whole.
    Nor of all survivors: what was not quite strange enough to be flagged would hide the next one of its kind.
    """
    names = [member.name for member in members]
    reached = reached[:, [NAMES.index(name) for name in names]]
    weights = shares([member.family for member in members])

    def of(sessions: Bools) -> tuple[dict[str, NDArray[np.float64]], Floats]:
        by_member = {
            name: _calibration_scores_of(name, scores) for name, scores in zip(names, reached[sessions].T, strict=True)
        }
        p = [
            p_of(name, CalibrationScores(by_member[name]), scores)
            for name, scores in zip(names, reached.T, strict=True)
        ]
        return by_member, combined(np.stack(p, axis=1), weights)

    calibration = ~pool.flagged
    by_member, strangeness = of(calibration)
    if pool.previous is not None and _has_transformer(pool.previous):
        calibration &= ~_beyond_expected(strangeness, pool, calibration)
        by_member, strangeness = of(calibration)
    back = _without_cause(strangeness, pool)
    if back.any():
        calibration |= back
        by_member, strangeness = of(calibration)
    return by_member | {"ensemble": np.sort(strangeness[calibration])}


def _calibration_scores_of(member: str, scores: Floats) -> NDArray[np.float64]:
    """`scores` ascending; of a member that mostly has nothing to say only what it said."""
    return np.sort(scores[scores > 0.0] if member in OFTEN_SILENT else scores)


def _is_early(member: type[Member]) -> bool:
    """Whether a model of the first few thousand lines has it: an online member needs no fit."""
    return member.early if issubclass(member, FittedMember) else True


def _said_online(member: type[Member], view: View) -> Floats:
    """What an online member said of each row: float64 [R]."""
    said: Floats = view.online[:, ONLINE_NAMES.index(member.name)]
    return said


def _has_enough_to_say(member: type[Member], view: View, learned: Bools) -> bool:
    """Whether a member that is often silent spoke in enough sessions to be calibrated."""
    if member.name not in OFTEN_SILENT:
        return True
    said = _said_online(member, view)
    return int(np.count_nonzero(np.maximum.reduceat(said, view.offsets[:-1])[learned])) >= FEWEST_TO_CALIBRATE


def _beyond_expected(strangeness: Floats, pool: TrainingSet, calibration: Bools) -> Bools:
    """The strangest sessions since the last model, as far as there are more of them than before it: bool [S].

    Anomalies of a kind that is a little too common to be flagged would otherwise make themselves normal. Normal traffic
    that has become stranger pays for it with a threshold that follows more slowly; what is vouched for does not.
    """
    since = calibration & pool.fresh & ~pool.vouched
    before = calibration & ~pool.fresh
    beyond = np.zeros(len(strangeness), dtype=np.bool_)
    level = SUSPECT_LEVELS * pool.alpha
    if level * before.sum() < 1.0:
        return beyond
    suspect = np.flatnonzero(since & (strangeness > np.quantile(strangeness[before], max(1.0 - level, 0.0))))
    least_first = suspect[np.argsort(strangeness[suspect], kind="stable")]
    beyond[least_first[math.ceil(level * since.sum()) :]] = True
    return beyond


def _without_cause(strangeness: Floats, pool: TrainingSet) -> Bools:
    """Of the flagged sessions as many as were to be expected without cause, the least strange ones: bool [S].

    One of each cause at most: false alarms have as many causes as there are, an attack has one. Else a campaign would
    be the highest calibration scores by itself, and never be found again.
    """
    flagged = np.flatnonzero(pool.flagged)
    flagged = flagged[np.argsort(strangeness[flagged], kind="stable")]
    _, first = np.unique(pool.causes[flagged], return_index=True)
    chosen = np.zeros(len(strangeness), dtype=np.bool_)
    chosen[flagged[np.sort(first)][: math.ceil(pool.alpha * len(strangeness))]] = True
    return chosen
