"""One training run: sessions in, a model generation out.

Every member is fitted on the sessions that may be learned from, and *cross-fitted* for its calibration: each session
is scored by a fit that did not see it, so that all of the data gives calibration scores of unseen normal sessions.
Before the first full model the sessions that the early members find most unusual are left out of every fit, because the
first lines are not known to be clean. A member that cannot be fitted (a library that does not work on this machine) is
left out of the model, which names it; but if the model in force has it, the training fails. The same data, seed and
versions give the same model, bit for bit.
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
from detection.columns.state_columns import Columns, State, columns_under, with_prefix
from detection.learning.promotion import anchor_of, bounded_calibration_scores, refuse_worse
from detection.members.fitted_member_view import Bools, Floats, Standing, View, view_of_whole_sessions
from detection.members.member_interfaces import FitData, FitProgress, FittedMember, Member
from detection.members.registry import FITTED, MEMBERS, NAMES, OFTEN_SILENT, ONLINE_NAMES
from detection.members.transformer.windows import LARGEST_VOCABULARY
from detection.models.model import UNFITTED, Model
from detection.models.training_set import TrainingSet
from detection.scoring.calibration import CalibrationScores, combined_p_values
from detection.scoring.ensemble import member_shares, p_values_of_member

FEWEST_SESSIONS = 20
FEWEST_TO_CALIBRATE = 200  # sessions with a score above 0 of a member that is often silent
TRIMMED_SHARE = 0.05
SUSPECT_LEVELS = 5.0  # times alpha: of sessions with a lower p-value only as many calibrate as were to be expected
LARGEST_SHARE = 0.05  # of the sessions learned from, of one key
MANY_KEYS = 20  # from this many keys on, a template needs a second key to be known
STEPS_REPORTED = 20


M = TypeVar("M", bound=Member)


class TrainingError(Exception):
    """The data is not sufficient for a model; the message says what is missing."""


@dataclass(frozen=True)
class Progress:
    """`fraction` of the whole run that is done, in [0, 1]; `loss` is the transformer's last one, in nats a token."""

    stage: str
    epoch: int
    epochs: int
    loss: float
    fraction: float


class Notebook(Protocol):
    """Where a run saves partial results, so that another run on the same data can resume from the last one.

    found  the last partial result of such a run, by the same program and versions; {} if there is none
    """

    @property
    def found(self) -> Columns: ...

    def note(self, fraction: float, state: Callable[[], State]) -> None:
        """Called often. The notebook may save the partial result or not: `state` is called at once or not at all."""


class NoNotebook:
    """Saves nothing: the run starts from the beginning."""

    def __init__(self) -> None:
        self.found: Columns = {}

    def note(self, fraction: float, state: Callable[[], State]) -> None:
        """Discards the partial result."""


def train(data: TrainingSet, *, progress: Callable[[Progress], None], notebook: Notebook | None = None) -> Model:
    """Train a model on `data`. Takes seconds for a small model and about a minute of one core for a full one.

    A run that was interrupted is resumed from `notebook`; the model is the same, bit for bit. Raises TrainingError if
    there is no model, `promotion.RefusedError` if it is worse than the model in force. Sets torch to one thread for the
    whole process, because the number of threads changes the weights.
    """
    torch.set_num_threads(1)
    report = _RunProgress(progress, data.full)
    fits = _FitsOfRun(notebook or NoNotebook(), report)
    pool = data.only(~data.tainted & (np.diff(data.offsets) > 0))
    pool = pool.only(_sessions_within_key_share(pool))
    if len(pool.starts) < FEWEST_SESSIONS:
        raise TrainingError(
            f"{len(pool.starts)} clean sessions are too few to learn from: at least {FEWEST_SESSIONS} are needed"
        )
    view = view_of_whole_sessions(pool, len(NAMES))
    learned = ~pool.flagged
    vocabulary = _frequent_templates(pool.only(learned))
    quick = [member for member in FITTED if member.early]
    run = _CrossFitting(pool, view, vocabulary, report, fits)
    if data.previous is None or not _has_transformer(data.previous):
        first = run.cross_fitted(quick, learned)
        quick = fits.fitted(quick)
        _refuse_without_members(fits.failed, quick, data.previous)
        learned &= ~_strangest_sessions(first, view, quick, ~pool.vouched & learned)
        vocabulary = _frequent_templates(pool.only(learned))
        run = _CrossFitting(pool, view, vocabulary, report, fits)
    members = [
        member for member in MEMBERS if (data.full or _is_early(member)) and _has_enough_scores(member, view, learned)
    ]
    standing = run.cross_fitted(members, learned)
    for member in fits.fitted(members):
        if issubclass(member, FittedMember) and member.folds > 1:
            with fits.may_fail(member):
                run.parts[member.name] = run.fit(member, learned, standing, share=1.0 / (member.folds + 1))
    members = fits.fitted(members)
    _refuse_without_members(fits.failed, members, data.previous)
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
        meta=_run_facts_for_model(data, report.loss, int(learned.sum()), fits.failed),
    )
    previous = data.previous
    if data.full:
        if previous is not None and _has_transformer(previous):
            refuse_worse(model, previous, view, run.scores["transformer"], pool.fresh)
            calibration["ensemble"] = bounded_calibration_scores(
                calibration["ensemble"], previous.calibration["ensemble"]
            )
        parts["anchor"] = anchor_of(previous, pool.only(learned))
    progress(Progress("done", STEPS_REPORTED, STEPS_REPORTED, report.loss, 1.0))
    return model


def _run_facts_for_model(
    data: TrainingSet, loss: float, fitted: int, failed: Mapping[str, str]
) -> dict[str, int | float | str]:
    """The facts about the run in `Model.meta`; verdicts do not depend on them."""
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


def _refuse_without_members(failed: Mapping[str, str], members: Sequence[type[Member]], previous: Model | None) -> None:
    """Raise TrainingError if no fitted member is left without the failed ones, or if the model in force has one of
    them."""
    for name, reason in failed.items():
        if previous is not None and name in previous.calibration:
            raise TrainingError(f"{name} could not be fitted, and the model in force has it: {reason}")
    if failed and not any(issubclass(member, FittedMember) for member in members):
        raise TrainingError("no member could be fitted: " + "; ".join(f"{name}: {why}" for name, why in failed.items()))


class _RunProgress:
    """Reports the progress of the run. The transformer takes nearly all of the time of a full run."""

    def __init__(self, progress: Callable[[Progress], None], full: bool) -> None:
        self.loss = 0.0
        self._progress = progress
        self._full = full
        self._begin, self._share = 0.02, 0.05
        self.fraction = 0.0

    def begin_fit_share(self, member: type[FittedMember], share: float) -> None:
        """The next fit is `share` of the work of all fits of `member`."""
        self._begin, self._share = self._begin + self._share, share * (0.9 if member.name == "transformer" else 0.005)

    def fit_progress(self, stage: str) -> FitProgress:
        def fit(fraction: float, loss: float | None = None) -> None:
            self.loss = self.loss if loss is None else loss
            self(stage, min(self._begin + fraction * self._share, 0.97))

        return fit

    def __call__(self, stage: str, fraction: float) -> None:
        self.fraction = fraction
        self._progress(Progress(stage, int(fraction * STEPS_REPORTED), STEPS_REPORTED, self.loss, fraction))


class _FitsOfRun:
    """The fits of one run. Their order follows from the data, so a resumed run skips the finished ones and continues
    the interrupted one.

    The columns of a partial result:

        loss                 the last loss reported
        done.<member>:<n>.*  the result of the member's n-th fit
        begun.<member>:<n>.* the partial result that the current fit passed to `FitData.keep`
        failed.<member>      why it could not be fitted; it stays out for the whole run, as later fits did without it
    """

    def __init__(self, notebook: Notebook, report: _RunProgress) -> None:
        self._notebook, self._report = notebook, report
        self._found = notebook.found
        self._done: State = {}
        self._counts: Counter[str] = Counter()
        self.failed: dict[str, str] = {name: str(why) for name, why in columns_under("failed", self._found).items()}
        loss = self._found.get("loss")
        report.loss = loss if isinstance(loss, float) else 0.0

    def fitted(self, members: Sequence[type[M]]) -> list[type[M]]:
        """Those of `members` that did not fail."""
        return [member for member in members if member.name not in self.failed]

    @contextmanager
    def may_fail(self, member: type[Member]) -> Iterator[None]:
        """If this context raises, the run continues without `member`."""
        try:
            yield
        except Exception as exc:  # whatever it is, it concerns one member of several
            self.failed[member.name] = f"{type(exc).__name__}: {exc}".partition("\n")[0]
            self._note_partial_result(dict)

    def fit(self, member: type[FittedMember], fit_data: FitData) -> dict[str, NDArray[Any]]:
        name = f"{member.name}:{self._counts[member.name]}"
        done, begun = f"done.{name}", f"begun.{name}"
        self._counts[member.name] += 1
        fitted: Any = columns_under(done, self._found)
        found = bool(fitted)
        if not found:

            def keep(state: Callable[[], Columns]) -> None:
                self._note_partial_result(lambda: with_prefix(begun, state()))

            fitted = member.fit(replace(fit_data, begun=columns_under(begun, self._found) or None, keep=keep))
        self._done |= with_prefix(done, fitted)
        if not found:
            self._note_partial_result(dict)
        return dict(fitted)

    def _note_partial_result(self, more: Callable[[], State]) -> None:
        self._notebook.note(
            self._report.fraction,
            lambda: {"loss": self._report.loss, **with_prefix("failed", self.failed), **self._done, **more()},
        )


class _CrossFitting:
    def __init__(
        self,
        pool: TrainingSet,
        view: View,
        vocabulary: NDArray[np.int32],
        report: _RunProgress,
        fits: _FitsOfRun | None = None,
    ) -> None:
        self._fits = fits or _FitsOfRun(NoNotebook(), report)
        self._pool, self._view, self._vocabulary, self._report = pool, view, vocabulary, report
        self._row_session = repeat_per_row(view.offsets)
        self.scores: dict[str, Floats] = {}  # the cross-fitted scores of each member, float64 [R]
        self.parts: dict[str, dict[str, NDArray[Any]]] = {}  # of members that were fitted once

    def cross_fitted(self, members: Sequence[type[Member]], learned: Bools) -> Standing:
        """The cross-fitted scores of `members` on every session of the pool; they learn from `learned` (bool [S])
        only."""
        standing = Standing(self._view, NAMES)
        for member in self._fits.fitted(members):
            with self._fits.may_fail(member):
                scores = self._cross_fitted_member(member, learned, standing)
                standing.put(member.name, scores)
                self.scores[member.name] = scores
        return standing

    def _cross_fitted_member(self, member: type[Member], learned: Bools, standing: Standing) -> Floats:
        if not issubclass(member, FittedMember):
            return _online_scores(member, self._view)
        if member.folds == 1:
            return self._out_of_bag_scores(member, learned, standing)
        return self._scores_by_folds(member, learned, standing)

    def _out_of_bag_scores(self, member: type[FittedMember], learned: Bools, standing: Standing) -> Floats:
        part = self.parts[member.name] = self.fit(member, learned, standing, share=1.0)
        held_out = part.pop("held_out")
        scores = member(part, self._vocabulary).score(self._view, standing)
        scores[learned[self._row_session]] = held_out
        return scores

    def _scores_by_folds(self, member: type[FittedMember], learned: Bools, standing: Standing) -> Floats:
        scores = np.zeros(len(self._view))
        fold = _folds_of_sessions(len(learned), member.folds, self._pool.seed)
        for number in range(member.folds):
            part = self.fit(member, learned & (fold != number), standing, share=1.0 / (member.folds + 1))
            rows = (fold == number)[self._row_session]
            some = view_of_whole_sessions(self._pool.only(fold == number), len(NAMES))
            scores[rows] = member(part, self._vocabulary).score(some, standing.only(rows))
        return scores

    def fit(
        self, member: type[FittedMember], sessions: Bools, standing: Standing, *, share: float
    ) -> dict[str, NDArray[Any]]:
        self._report.begin_fit_share(member, share)
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
                progress=self._report.fit_progress(member.name),
            ),
        )


def _has_transformer(model: Model) -> bool:
    return "transformer" in model.parts


def _seeded_hashes(count: int, seed: int) -> NDArray[np.uint64]:
    """A hash of each number below `count` and the seed (splitmix64)."""
    mask = (1 << 64) - 1
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x ^= np.uint64(seed * 0xD1342543DE82EF95 & mask)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _folds_of_sessions(sessions: int, folds: int, seed: int) -> NDArray[np.int64]:
    """Each session's fold, drawn with the seed: int64 [S]; sizes of folds differ by at most one."""
    fold = np.empty(sessions, dtype=np.int64)
    fold[np.argsort(_seeded_hashes(sessions, seed), kind="stable")] = np.arange(sessions) % folds
    return fold


def _sessions_within_key_share(data: TrainingSet) -> Bools:
    """Which sessions stay so that no key has more than LARGEST_SHARE of them: bool [S]; of a larger key the latest go.

    All stay if there are too few keys for that (a stream without keys has one a connection), or if keys are not alike.
    So an attacker who sends much of the traffic cannot dominate what is learned (Kloft and Laskov, 2010, bound the gain
    by the share).
    """
    _, where, counts = np.unique(data.keys, return_inverse=True, return_counts=True)
    if len(counts) < MANY_KEYS:
        return np.ones(len(data.keys), dtype=np.bool_)
    most = max(int(LARGEST_SHARE * len(data.keys)), 1)
    order = np.argsort(where, kind="stable")
    rank = np.empty(len(data.keys), dtype=np.int64)
    rank[order] = np.arange(len(data.keys)) - np.repeat(np.cumsum(counts) - counts, counts)
    templates = _TemplateFrequencies.of(data)
    first = np.searchsorted(templates.ids, data.tokens[data.offsets[:-1]])
    within: Bools = (rank < most) | ~templates.keys_alike[first]
    return within


def _frequent_templates(data: TrainingSet) -> NDArray[np.int32]:
    """The ids of the most frequent templates, int32 [V] ascending, at most LARGEST_VOCABULARY.

    Templates that occurred once are left out: their share of the lines is the Good-Turing estimate of the probability
    that the next line is new, and as UNSEEN they teach that probability. If there are many keys, and they are alike,
    templates that only one key sent are left out, too: one client does not decide what is known.
    """
    templates = _TemplateFrequencies.of(data)
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
class _TemplateFrequencies:
    """The templates of a set with their numbers of lines and of keys (`senders`); columns [V], ascending by id.

    `keys_alike`: in the template's family, most keys mostly send templates that other keys send, too. Clients, requests
    and pods are alike. The programs of a host are not: each has templates of its own, which are no less normal because
    no other program sends them. Each key has one vote, however much it sends.
    """

    ids: NDArray[np.int32]
    lines: NDArray[np.int64]
    senders: NDArray[np.int64]  # keys
    keys_alike: Bools

    @classmethod
    def of(cls, data: TrainingSet) -> "_TemplateFrequencies":
        ids, where, lines = np.unique(data.tokens, return_inverse=True, return_counts=True)
        keys, key = np.unique(data.keys, return_inverse=True)
        key = key[repeat_per_row(data.offsets)]
        # Pairs as one number each: sorting pairs as such takes many times as long.
        senders = np.bincount(np.unique(where * len(keys) + key) // len(keys), minlength=len(ids))
        family = _template_families(data, ids)
        voters, voter = np.unique(family[where] * len(keys) + key, return_inverse=True)
        shared = np.bincount(voter, weights=senders[where] > 1) >= 0.5 * np.bincount(voter)
        of_family = voters // len(keys)
        alike = np.bincount(of_family, weights=shared) >= 0.5 * np.bincount(of_family)
        return cls(ids, lines, senders, alike[family])


def _template_families(data: TrainingSet, ids: NDArray[np.int32]) -> NDArray[np.int64]:
    """The family of each template (see `detection.templates.table`): int64 [V]; 0 for one that was evicted since."""
    table: Any = data.templates
    at = np.minimum(np.searchsorted(table["id"], ids), len(table["id"]) - 1)
    return np.where(table["id"][at] == ids, table["family"][at], 0).astype(np.int64)


def _strangest_sessions(standing: Standing, view: View, members: Sequence[type[Member]], candidates: Bools) -> Bools:
    """The TRIMMED_SHARE of `candidates` (bool [S]) that `members` find most unusual, the first of equals: bool [S]."""
    columns = [standing.column[member.name] for member in members]
    reached = standing.reached[view.final_rows()][:, columns]
    p = np.stack([CalibrationScores(np.sort(column)).p(column) for column in reached.T], axis=1)
    strangeness = np.where(
        candidates, combined_p_values(p, member_shares([member.family for member in members])), -np.inf
    )
    strangest = np.zeros(len(candidates), dtype=np.bool_)
    strangest[np.argsort(-strangeness, kind="stable")[: int(candidates.sum() * TRIMMED_SHARE)]] = True
    return strangest


def _calibration_scores(
    reached: Floats, members: Sequence[type[Member]], pool: TrainingSet
) -> dict[str, NDArray[np.float64]]:
    """The calibration scores of each member, and of the combined statistic as "ensemble".

    `reached` float64 [S, M] are the cross-fitted running maxima at the end of the sessions. The sessions that were not
    flagged do not suffice: of the flagged ones as many are added as alpha would flag by chance, the least unusual ones;
    otherwise every generation would cut off the highest scores of the last. Nor are all of them used: sessions that
    were almost flagged would hide the next anomaly of their kind.
    """
    names = [member.name for member in members]
    reached = reached[:, [NAMES.index(name) for name in names]]
    weights = member_shares([member.family for member in members])

    def of(sessions: Bools) -> tuple[dict[str, NDArray[np.float64]], Floats]:
        by_member = {
            name: _calibration_scores_of(name, scores) for name, scores in zip(names, reached[sessions].T, strict=True)
        }
        p = [
            p_values_of_member(name, CalibrationScores(by_member[name]), scores)
            for name, scores in zip(names, reached.T, strict=True)
        ]
        return by_member, combined_p_values(np.stack(p, axis=1), weights)

    calibration = ~pool.flagged
    by_member, strangeness = of(calibration)
    if pool.previous is not None and _has_transformer(pool.previous):
        calibration &= ~_unusual_beyond_expected(strangeness, pool, calibration)
        by_member, strangeness = of(calibration)
    back = _flagged_by_chance(strangeness, pool)
    if back.any():
        calibration |= back
        by_member, strangeness = of(calibration)
    return by_member | {"ensemble": np.sort(strangeness[calibration])}


def _calibration_scores_of(member: str, scores: Floats) -> NDArray[np.float64]:
    """`scores` ascending; of a member that is often silent only those above 0."""
    return np.sort(scores[scores > 0.0] if member in OFTEN_SILENT else scores)


def _is_early(member: type[Member]) -> bool:
    """Whether a model of the first few thousand lines has it. An online member needs no fit."""
    return member.early if issubclass(member, FittedMember) else True


def _online_scores(member: type[Member], view: View) -> Floats:
    """The scores of an online member: float64 [R]."""
    scores: Floats = view.online[:, ONLINE_NAMES.index(member.name)]
    return scores


def _has_enough_scores(member: type[Member], view: View, learned: Bools) -> bool:
    """Whether a member has enough scores to be calibrated; one that is often silent may not."""
    if member.name not in OFTEN_SILENT:
        return True
    scores = _online_scores(member, view)
    return int(np.count_nonzero(np.maximum.reduceat(scores, view.offsets[:-1])[learned])) >= FEWEST_TO_CALIBRATE


def _unusual_beyond_expected(strangeness: Floats, pool: TrainingSet, calibration: Bools) -> Bools:
    """The most unusual sessions since the last model that exceed the number expected from those before it: bool [S].

    Anomalies of a kind slightly too common to be flagged would otherwise make themselves normal. The price is that
    thresholds follow slowly when normal traffic becomes more unusual; vouched sessions are exempt.
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


def _flagged_by_chance(strangeness: Floats, pool: TrainingSet) -> Bools:
    """As many flagged sessions as alpha flags by chance, the least unusual ones: bool [S].

    At most one of each cause: false alarms have many causes, an attack has one. Otherwise a campaign would make up the
    highest calibration scores, and would never be found again.
    """
    flagged = np.flatnonzero(pool.flagged)
    flagged = flagged[np.argsort(strangeness[flagged], kind="stable")]
    _, first = np.unique(pool.causes[flagged], return_index=True)
    chosen = np.zeros(len(strangeness), dtype=np.bool_)
    chosen[flagged[np.sort(first)][: math.ceil(pool.alpha * len(strangeness))]] = True
    return chosen
