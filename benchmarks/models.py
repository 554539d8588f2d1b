"""Quality and speed of the models: `python -m benchmarks.models [--data FOLDER] [--only hdfs|web]`.

Quality: HDFS sessions by event, half of the normal ones to train on, then the area under the precision-recall
curve (average precision) of the sessions' running maxima, over the other half and all anomalies.
Speed: sessions of a web log, cut by client address and 60 s of silence, or by address alone; one core.
"""

import argparse
import csv
import gzip
import math
import re
import time
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from detection.learning.training_run import Progress, train
from detection.members.fitted_member_view import view_of_whole_sessions
from detection.members.isolation_forest.features import forest_input
from detection.members.isolation_forest.scoring import Forest
from detection.members.registry import NAMES, ONLINE_NAMES
from detection.members.transformer.scoring import SequenceModel
from detection.members.transformer.windows import window_start
from detection.models.model import Model
from detection.models.training_set import TrainingSet
from detection.scoring.ensemble import Ensemble

IDLE_SECONDS = 60.0
HDFS_NORMALS, HDFS_ANOMALIES = 558_223, 16_838  # of the full set
FRAME_LINES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", choices=("hdfs", "web"))
    options = parser.parse_args()
    if not (options.data / "hdfs_sessions").is_dir() or not (options.data / "web_wp2016").is_dir():
        print(f"models: skipped, no hdfs_sessions and web_wp2016 in {options.data}")
        return
    torch.set_num_threads(1)
    if options.only != "web":
        quality(options.data / "hdfs_sessions")
    if options.only != "hdfs":
        speed(options.data / "web_wp2016" / "access.log.gz")


def quality(folder: Path) -> None:
    for name, natural_ratio in (
        ("hdfs100k_sessions", None),
        ("hdfs_xu_sessions", HDFS_NORMALS / HDFS_ANOMALIES),
    ):
        sessions, anomalous = [], []
        with gzip.open(folder / f"{name}.csv.gz", "rt") as file:
            for row in csv.DictReader(file):
                sessions.append([int(event) for event in row["events"].split()])
                anomalous.append(row["anomaly"] == "1")
        labels = np.array(anomalous)
        normal = np.random.default_rng(1).permutation(np.flatnonzero(~labels))
        half = np.sort(normal[: len(normal) // 2])
        test = np.setdiff1d(np.arange(len(labels)), half)
        truth = labels[test]
        learned = {tuple(sessions[i]) for i in half}
        told_apart = np.array([not (labels[i] and tuple(sessions[i]) in learned) for i in test])
        print(f"{name}: {len(half)} normal sessions to learn from, {(~truth).sum()} normal and {truth.sum()} anomalous")
        print(f"  to tell apart; {(~told_apart).sum()} of the anomalous are event for event like a learned one")
        model, seconds = _timed_training(_training_set([sessions[i] for i in half], seed=1))
        print(f"  trained in {seconds:.1f} s; average precision:")
        for member, scores in _reached(model, _training_set([sessions[i] for i in test], seed=1)).items():
            figures = f"all {average_precision_score(truth, scores):.3f}"
            figures += f", without those {average_precision_score(truth[told_apart], scores[told_apart]):.3f}"
            if natural_ratio is not None:
                weight = np.where(truth, 1.0, natural_ratio * truth.sum() / (~truth).sum())
                precision = average_precision_score(truth, scores, sample_weight=weight)
                figures += f", normal ones weighted to the full set's ratio {precision:.3f}"
            print(f"    {member:22} {figures}")


def speed(path: Path) -> None:
    data = _web_sessions(path, 102_333, IDLE_SECONDS)
    training = data.only(np.cumsum(np.diff(data.offsets)) <= 50_000)
    print(f"web: {len(data.tokens)} lines, {len(data.starts)} sessions, {len(np.unique(data.tokens))} templates")
    model, seconds = _timed_training(training)
    print(f"  training on {len(training.tokens)} lines: {seconds:.1f} s, vocabulary {len(model.vocabulary)}")

    unending = _web_sessions(path, 102_333, math.inf)
    for name, stream, rounds in (
        ("memo cold", data, 1),
        ("seen once before", data, 2),
        ("sessions never closed, memo cold", unending, 1),
    ):
        scorer = SequenceModel(model.parts["transformer"], model.vocabulary)
        for _ in range(rounds):
            lines, windows, spent = _stream(scorer, stream)
        print(
            f"  transformer, {name}: {lines / spent:,.0f} new templates/s, {lines / windows:.1f} a window, "
            f"frames of {FRAME_LINES} lines"
        )
    forest = Forest({name: array for name, array in model.parts["isolation_forest"].items() if name != "usual"})
    rows = forest_input(Ensemble(model).score(view_of_whole_sessions(data, len(NAMES))))[:50_000]
    started = time.perf_counter()
    for start in range(0, len(rows), FRAME_LINES):
        forest.scores(rows[start : start + FRAME_LINES])
    print(f"  forest: {len(rows) / (time.perf_counter() - started):,.0f} rows/s")


def _reached(model: Model, data: TrainingSet) -> dict[str, NDArray[np.float64]]:
    ensemble = Ensemble(model)
    view = view_of_whole_sessions(data, len(NAMES))
    reached = ensemble.score(view).reached[view.final_rows()]
    by_member = {name: reached[:, NAMES.index(name)] for name in ensemble.members}
    return by_member | {"ensemble": ensemble.judge(reached).strangeness}


def _timed_training(data: TrainingSet) -> tuple[Model, float]:
    def say(step: Progress) -> None:
        if step.stage == "transformer" and step.epoch % 5 == 0:
            print(f"    {step.stage} {step.epoch}/{step.epochs} loss {step.loss:.3f} {step.fraction:.0%}")

    started = time.perf_counter()
    model = train(data, progress=say)
    return model, time.perf_counter() - started


def _training_set(sessions: list[list[int]], seed: int) -> TrainingSet:
    sizes = np.array([len(session) for session in sessions])
    lines, count = int(sizes.sum()), len(sessions)
    return TrainingSet(
        generation=1,
        line=lines,
        seed=seed,
        full=True,
        alpha=0.0,
        tokens=np.concatenate([np.array(session, dtype=np.int32) for session in sessions]),
        errors=np.zeros(lines, dtype=np.bool_),
        times=np.zeros(lines),
        online=np.zeros((lines, len(ONLINE_NAMES)), dtype=np.float32),
        online_members=ONLINE_NAMES,
        offsets=np.concatenate(([0], np.cumsum(sizes))).astype(np.int64),
        starts=np.ones(count, dtype=np.bool_),
        ends=np.ones(count, dtype=np.bool_),
        tainted=np.zeros(count, dtype=np.bool_),
        flagged=np.zeros(count, dtype=np.bool_),
        vouched=np.ones(count, dtype=np.bool_),
        fresh=np.ones(count, dtype=np.bool_),
        keys=np.arange(count, dtype=np.uint64),
        causes=np.zeros(count, dtype=np.uint64),
        templates={"id": np.zeros(1, np.int32), "family": np.zeros(1, np.uint8)},  # of one family all of them
    )


_LINE = re.compile(r'(\S+) \S+ \S+ \[([^\]]+)\] "(\S+) ([^" ?]*)[^"]*" (\d{3})')


def _web_sessions(path: Path, limit: int, idle_seconds: float) -> TrainingSet:
    """A simple substitute for formats, templates and sessions: method, masked path and status by client."""
    ids: dict[str, int] = {}
    open_sessions: dict[str, list[tuple[float, int, bool]]] = defaultdict(list)
    closed: list[list[tuple[float, int, bool]]] = []
    with gzip.open(path, "rt", errors="replace") as file:
        for _, line in zip(range(limit), file, strict=False):
            match = _LINE.match(line)
            if match is None:
                continue
            client, stamp, method, target, status = match.groups()
            when = datetime.strptime(stamp, "%d/%b/%Y:%H:%M:%S %z").timestamp()
            template = ids.setdefault(f"{method} {re.sub('[0-9]+', '#', target)} {status}", len(ids))
            session = open_sessions[client]
            if session and when - session[-1][0] > idle_seconds:
                closed.append(session)
                session = open_sessions[client] = []
            session.append((when, template, status >= "400"))
    closed += open_sessions.values()
    closed.sort(key=lambda session: session[-1][0])
    data = _training_set([[template for _, template, _ in session] for session in closed], seed=1)
    data.times[:] = [when for session in closed for when, _, _ in session]
    data.errors[:] = [error for session in closed for _, _, error in session]
    return data


def _stream(scorer: SequenceModel, data: TrainingSet) -> tuple[int, int, float]:
    """Score the lines in order of time in frames; returns lines, windows and the seconds spent scoring."""
    session = np.repeat(np.arange(len(data.starts)), np.diff(data.offsets))
    order = np.lexsort((np.arange(len(session)), data.times))
    done = np.zeros(len(data.starts), dtype=np.int64)
    windows, spent = 0, 0.0
    for start in range(0, len(order), FRAME_LINES):
        present, new = np.unique(session[order[start : start + FRAME_LINES]], return_counts=True)
        before = done[present]
        begin = window_start(before)
        sizes = before - begin + new
        offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        place = np.repeat(data.offsets[:-1][present] + begin - offsets[:-1], sizes) + np.arange(offsets[-1])
        done[present] += new
        closing = done[present] == np.diff(data.offsets)[present]
        started = time.perf_counter()
        scorer.surprises(data.tokens[place], offsets, before - begin, begin == 0, closing)
        spent += time.perf_counter() - started
        windows += len(present)
    return len(order), windows, spent


if __name__ == "__main__":
    main()
