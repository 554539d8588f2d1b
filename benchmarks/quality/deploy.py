"""A deploy: part of what a log says changes from one moment to the next, and is as harmless as before.

HDFS sessions (hdfs_xu) drawn with replacement, for the warm-up from one random half of the normal ones and for the
stream from the other; 3 % of the stream are anomalies, each once. A third into the stream `SHARE` of the sessions,
anomalous ones too, come from the new release: two events read otherwise, and one that is new follows them.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.quality.logs import HDFS_KEY, Sessions, as_lines, halves, hdfs_sessions, hdfs_text
from benchmarks.quality.metrics import Bools, share_interval
from benchmarks.quality.records import Records, gather, incidents
from benchmarks.quality.report import Row
from benchmarks.quality.watching import NEVER, RETRAIN_LINES, settings, watched

WARMUP_SESSIONS = 3000
STREAM_SESSIONS = 4500
DEPLOY_AT = STREAM_SESSIONS // 3
WITHIN_SESSIONS = 1000
ANOMALIES = 0.03
SHARE = 0.6
BUDGET = 0.002  # as in the trials that the floors were set by
_AFTERWARDS = 1_780_000_000 + 7 * 86_400

# In the wording of hdfs_templates.csv; both are in every normal session.
RENAMED = {
    "<*>Received block<*>of size<*>from<*>": "<*>Stored replica of block<*>with<*>bytes sent by<*>",
    "<*>PacketResponder <*> for block <*> terminating<*>": "<*>Pipeline stage <*> of block <*> finished in state<*>",
}
INSERTED = "<*>Checksum of block<*>recorded in journal<*>"


@dataclass(frozen=True)
class Stream:
    """Sessions in the order in which they begin: name, wordings, and what they are."""

    warmup: list[tuple[str, list[str]]]
    sessions: list[tuple[str, list[str]]]
    anomalous: Bools
    changed: Bools


def deploy(data: Path, seed: int) -> list[Row]:
    stream = made_up(hdfs_sessions(data, "hdfs_xu"), np.random.default_rng(seed))
    rows = _figures("deploy", stream, *_through_daemon("deploy", stream, seed, RETRAIN_LINES), seed, asked=True)
    frozen = _through_daemon("deploy, frozen", stream, seed, NEVER)
    rows += _figures("deploy, daemon that learns no more", stream, *frozen, seed, asked=False)
    return rows + _unknown_templates(stream, seed)


def made_up(given: Sessions, chance: np.random.Generator) -> Stream:
    normal, anomalous = np.flatnonzero(~given.anomalous), np.flatnonzero(given.anomalous)
    known, other = (normal[half] for half in halves(len(normal), chance))
    anomalies = int(STREAM_SESSIONS * ANOMALIES)
    streamed = np.concatenate(
        (chance.choice(other, STREAM_SESSIONS - anomalies), chance.choice(anomalous, anomalies, replace=False))
    )
    streamed = chance.permutation(streamed)
    changed = (np.arange(STREAM_SESSIONS) >= DEPLOY_AT) & (chance.random(STREAM_SESSIONS) < SHARE)
    names = itertools.count(1_000_000)
    warmup = [(f"blk_{next(names)}", _worded(given, i)) for i in chance.choice(known, WARMUP_SESSIONS)]
    sessions = [
        (f"blk_{next(names)}", released(_worded(given, i)) if new else _worded(given, i))
        for i, new in zip(streamed.tolist(), changed.tolist(), strict=True)
    ]
    return Stream(warmup, sessions, given.anomalous[streamed], changed)


def _worded(given: Sessions, i: int) -> list[str]:
    return [given.wording[event] for event in given.events[i]]


def released(wordings: Iterable[str]) -> list[str]:
    """A session as the new release writes it."""
    written = []
    for wording in wordings:
        written.append(RENAMED.get(wording, wording))
        if wording in RENAMED and INSERTED not in written:
            written.append(INSERTED)
    return written


def _through_daemon(about: str, stream: Stream, seed: int, retrain: int) -> tuple[Records, float]:
    chance = np.random.default_rng(seed)
    warmup, _ = as_lines(stream.warmup, hdfs_text, chance)
    lines, _ = as_lines(stream.sessions, hdfs_text, chance, begin=_AFTERWARDS)
    with watched(about, settings(key=HDFS_KEY, alpha=BUDGET, warmup=len(warmup), retrain=retrain)) as run:
        run.stream(warmup)
        run.settle(wanted=True)
        run.stream(lines)
        records = run.finish()
    return records.only(records.line > len(warmup)), run.alpha


def _figures(name: str, stream: Stream, records: Records, alpha: float, seed: int, *, asked: bool) -> list[Row]:
    units = gather(records, records.session, [session for session, _ in stream.sessions])
    opened = set(records.session[incidents(records)])
    opens = np.array([session in opened for session, _ in stream.sessions])
    place = np.arange(STREAM_SESSIONS)
    before, within = place < DEPLOY_AT, (place >= DEPLOY_AT) & (place < DEPLOY_AT + WITHIN_SESSIONS)
    after = place >= DEPLOY_AT + WITHIN_SESSIONS
    harmless = ~stream.anomalous
    limit = {"floor": 0.02, "target": 0.01} if asked else {}
    rows = []
    for what, when, asked_here in (
        ("before the deploy", before, {}),
        (f"within {WITHIN_SESSIONS:,} sessions after", within, limit),
        ("later", after, limit),
    ):
        flagged, mine = units.flagged[when & harmless], opens[when & harmless]
        note = f"{int(flagged.sum())} of {len(flagged)} normal sessions flagged, {int(mine.sum())} opened an incident"
        rows.append(
            Row.of(
                name,
                f"false alarms {what}",
                share_interval(flagged, seed),
                kind="less",
                percent=True,
                digits=4,
                note=note,
                **asked_here,
            )
        )
    recall = {"floor": 0.80, "target": 0.90} if asked else {}
    since = stream.anomalous & ~before
    rows.append(Row.of(name, "recall of planted anomalies since", share_interval(units.flagged[since], seed), **recall))
    rows.append(Row.of(name, "recall before", share_interval(units.flagged[stream.anomalous & before], seed)))
    rows.append(Row(name, "α in force in the end", alpha, percent=True, digits=5))
    return rows


def _unknown_templates(stream: Stream, seed: int) -> list[Row]:
    """A detector that learns once and calls every session with an unknown event odd."""
    known = {wording for _, wordings in stream.warmup for wording in wordings}
    odd = np.array([not known.issuperset(wordings) for _, wordings in stream.sessions])
    later = (np.arange(STREAM_SESSIONS) >= DEPLOY_AT) & ~stream.anomalous
    return [
        Row.of(
            "deploy, every unknown event odd",
            "false alarms since the deploy",
            share_interval(odd[later], seed),
            floor=0.5,
            target=0.5,
            percent=True,
            digits=4,
            note="a control: must stay over 50 %",
        )
    ]
