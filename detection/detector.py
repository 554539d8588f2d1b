"""The detector: the state, and the one function that changes it.

`apply` is deterministic: no clock but the log's, no randomness, no I/O. Two detectors that applied the
same frames hold the same state bit for bit, whatever their caches held and wherever they were exported
and loaded in between.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from detection.asking import Opinion
from detection.calibration import alpha_for
from detection.clock import LogClock
from detection.ensemble import Ensemble
from detection.frames import (
    FlushFrame,
    Frame,
    Knowledge,
    LinesFrame,
    ModelFrame,
    RestoreFrame,
    Sequenced,
    SettingsFrame,
    SkipFrame,
    TickFrame,
    count_lines,
)
from detection.history import History
from detection.intake import Intake, KeyPattern, in_order, match_rules, take_in
from detection.judging import Batch, Closings, closed_as_they_are, judge
from detection.model import Model
from detection.recent import RecentLines
from detection.rules.engine import Hits, RuleSet
from detection.sessions import SessionTable, cut
from detection.settings import DetectionSettings, RuleText
from detection.sources import LivingSource, LivingSources
from detection.state import FORMAT, Columns, State, check_format, joined, part
from detection.summary import Summary
from detection.templates import TemplateTable
from detection.training_set import TrainingSet
from detection.verdicts import Rows, Verdicts, rows_of

CHUNK_LINES = 4096
_DAY = 86_400.0
_RATE_MEMORY_DAYS = 7.0


@dataclass(slots=True)
class Counters:
    """What was counted since the state began; part of the state."""

    cut_lines: int = 0
    unterminated_lines: int = 0
    rule_hits: int = 0
    flagged: int = 0
    sessions: int = 0
    lost_lines: int = 0


@dataclass(slots=True)
class SessionRate:
    """How many sessions a day of log time close: the past week's, older ones fading."""

    sessions: float = 0.0
    days: float = 0.0
    clock: float = math.nan

    def observe(self, closed: int, now: float) -> None:
        if not math.isnan(self.clock) and now > self.clock:
            self.days += (now - self.clock) / _DAY
        self.clock = now
        self.sessions += closed
        if self.days > _RATE_MEMORY_DAYS:
            self.sessions, self.days = self.sessions / 2, self.days / 2

    def per_day(self) -> float:
        """As if an hour had passed at least, so that the first minutes say nothing wild."""
        return self.sessions / max(self.days, 1 / 24)


class Detector:
    """Everything vigild knows. One owner at a time; nothing in here is safe to share between threads."""

    def __init__(self) -> None:
        self.seq = 0
        self.line = 0
        self.settings = DetectionSettings()
        self.rule_texts: tuple[RuleText, ...] = ()
        self.model = ModelFrame(generation=0, name="", sha256="")
        self._counters = Counters()
        self._rate = SessionRate()
        self._rules = _compiled(())
        self._pattern: KeyPattern | None = None
        self._ensemble: Ensemble | None = None
        self._living = LivingSources()
        self._clock = LogClock()
        self._received = math.nan
        self._templates = TemplateTable()
        self._sessions = SessionTable()
        self._history = History()
        self._recent = RecentLines()
        self._closings_at_line = 0  # so that ids of sessions closed at one line never repeat
        self._generations = 0  # the highest that was ever in force
        self._restored = 0  # seq of the last restore
        self._forgotten_lines = 0  # between the snapshot of a restore and the restore, since the model in force

    def apply(self, item: Sequenced) -> Verdicts:
        """Fold one frame into the state. After an exception the state is undefined: load another.

        A gap in the line numbers is lines that were lost; they are counted.
        """
        frame, lines = item.frame, count_lines(item.frame)
        self._lose_before(item, lines)
        match frame:
            case LinesFrame():
                batches = self._take(frame)
            case TickFrame():
                batches = self._pass_silence(frame.received)
            case FlushFrame():
                batches = self._close(self._sessions.all_open())
            case ModelFrame():
                batches = self._install(frame, item.model)
            case SettingsFrame():
                batches = self._adopt(frame)
            case RestoreFrame():
                batches = self._restore(item.seq, item.knowledge)
            case SkipFrame():
                batches = []
        self.seq = item.seq
        self._counters.flagged += sum(int(rows.flagged.sum()) for rows in batches)
        return Verdicts(item.seq, self.line, lines, tuple(batches))

    def skip(self, seq: int, line: int, frame: Frame | None) -> None:
        """Instead of `apply`, for a frame on which it raised: its lines are lost, and counted.

        Only where its sources stand is taken from it, so that the line one of them began in it is whole in the
        end, and nobody sends again what is in the journal. `frame` is None when it could not even be decoded.
        """
        self._lose_before(Sequenced(seq, line, SkipFrame(seq)), 0)
        if isinstance(frame, LinesFrame):
            self._living.pass_over(frame.segments)
        self.seq = seq

    def _lose_before(self, item: Sequenced, lines: int) -> None:
        """Count what is missing between the last line and the `lines` of `item`."""
        lost = item.line - lines - self.line
        if item.seq <= self.seq or lost < 0:
            raise ValueError(f"frame {item.seq} (line {item.line}) after frame {self.seq} (line {self.line})")
        if lost:
            self._counters.lost_lines += lost
            self._move_to(self.line + lost)

    # --- the kinds of frames ------------------------------------------------------------------------

    def _take(self, frame: LinesFrame) -> list[Rows]:
        clock = self._clock.now
        intake = take_in(frame.segments, self._living, self._pattern, clock=clock, received=frame.received)
        self._received = frame.received
        self._counters.cut_lines += intake.cut
        self._counters.unterminated_lines += intake.unterminated
        ids, hits = self._read(intake)
        self._counters.rule_hits += len(hits.lines)
        batches = [
            self._judge_lines(intake, ids, hits, slice(start, start + CHUNK_LINES), frame.received)
            for start in range(0, len(ids), CHUNK_LINES)
        ]
        finished = [slot for key in intake.ended if (slot := self._sessions.find(key)) is not None]
        return batches + self._close(np.array(finished, dtype=np.int64))

    def _pass_silence(self, received: float) -> list[Rows]:
        if not math.isnan(self._received):
            self._clock.pass_silence(received - self._received)
        self._received = received
        now = received if math.isnan(self._clock.now) else self._clock.now
        return self._close(self._sessions.silent(now, self.settings.session.idle_seconds))

    def _install(self, frame: ModelFrame, model: Model | None) -> list[Rows]:
        """Let `model` judge from here on; without one (withdrawn, or its file is lost) only rules are left."""
        self.model = frame
        self._generations = max(self._generations, frame.generation)
        self._forgotten_lines = 0
        self._use(model)
        for name in ("scored", "worst", "total", "oddity"):  # measured by another model
            self._sessions.column[name][:] = 0
        self._sessions.column["p"][:] = np.nan
        return []

    def _use(self, model: Model | None) -> None:
        self._ensemble = Ensemble(model) if model is not None else None
        if model is not None and not len(self._templates):
            self._templates = TemplateTable.load(model.templates)

    def _restore(self, seq: int, knowledge: Knowledge | None) -> list[Rows]:
        """Know what `knowledge` knew: templates, model, training buffer, rate of sessions. The rest goes on.

        Open sessions end here, judged by what was known until now, and those that were open in the snapshot stay
        closed: they had their end when they ended. Settings, rules, the clock, the texts of the last lines and
        all counts are facts about now, not knowledge. Ids of templates and generations of models are not given
        twice. Without `knowledge` (its snapshot is lost) only the sessions end.
        """
        batches = self._close(self._sessions.all_open())
        self._restored = seq
        if knowledge is None:
            return batches
        then = Detector.load(knowledge.state, knowledge.model)
        self._templates, created = then._templates, self._templates.created
        self._templates.created = max(self._templates.created, created)
        self._templates.evicted = self._templates.created - len(self._templates)
        self.model, self._ensemble, self._history = then.model, then._ensemble, then._history
        self._generations = max(self._generations, then._generations)
        self._forgotten_lines = then._forgotten_lines + self.line - then.line
        self._rate = replace(then._rate, clock=self._rate.clock)
        return batches

    def _adopt(self, frame: SettingsFrame) -> list[Rows]:
        other_sessions = frame.settings.session != self.settings.session
        batches = self._close(self._sessions.all_open()) if other_sessions else []
        self._set(frame.settings, frame.rules)
        return batches

    def _set(self, settings: DetectionSettings, rules: tuple[RuleText, ...]) -> None:
        self._rules = _compiled(rules)
        self._pattern = None if settings.session.key == "auto" else KeyPattern(settings.session.key)
        self.settings, self.rule_texts = settings, rules

    # --- lines and closings -------------------------------------------------------------------------

    def _read(self, intake: Intake) -> tuple[NDArray[np.int32], Hits]:
        """Template ids and rule hits of all lines of a frame."""
        ids = np.empty(len(intake.lines), dtype=np.int32)
        everything = np.arange(len(intake.lines))
        found = []
        for where, fields in intake.fields:
            ids[where] = self._templates.assign(fields.family, fields.contents)
            at = everything[where]
            texts = [intake.lines[i] for i in at.tolist()]
            hits, _ = match_rules(self._rules, fields, texts)
            found.append(Hits(lines=at[hits.lines].astype(np.int32), rules=hits.rules))
        return ids, in_order(found)

    def _judge_lines(self, intake: Intake, ids: NDArray[np.int32], hits: Hits, chunk: slice, received: float) -> Rows:
        keys, texts, times = intake.keys[chunk], intake.lines[chunk], intake.times[chunk]
        first_line, n = self.line + 1, len(texts)
        clock = self._clock_at(times, received)
        crowded = self._sessions.crowded_out_by(keys)
        crowded_out = closed_as_they_are(self._sessions, crowded, first_line)
        self._sessions.evict(crowded)
        low, high = np.searchsorted(hits.lines, [chunk.start, chunk.start + n])
        hits = Hits(lines=hits.lines[low:high] - chunk.start, rules=hits.rules[low:high])
        hit = np.zeros(n)
        np.maximum.at(hit, hits.lines, self._confidence()[hits.rules])
        batch = Batch(first_line, ids[chunk], intake.errors[chunk], clock, hit)
        pieces = cut(
            self._sessions,
            self._sessions.slots_for(keys, intake.windowed[chunk]),
            clock,
            np.fmin(times, clock),  # a line from the future is one of now, a line without a time too
            idle_seconds=self.settings.session.idle_seconds,
            window=self.settings.session.window,
        )
        alpha, _ = self.alpha()
        states, closings = judge(self._sessions, self._history, self._ensemble, alpha, batch, pieces)
        closings = closings.and_also(crowded_out)
        self._recent.append(first_line, texts)
        self._move_to(first_line + n - 1)
        shown_times = np.where(np.isnan(times), clock, times)
        return rows_of(
            batch, states, closings, alpha, self._number(closings), shown_times,
            texts + self._texts_of(closings), hits, self._rules.rules, self._templates, self._ensemble,
        )  # fmt: skip

    def _close(self, slots: NDArray[np.int64]) -> list[Rows]:
        """End these sessions now: keyed ones are scored as ended, windows close as they are."""
        if not len(slots):
            return []
        windowed = self._sessions.column["windowed"][slots]
        as_they_are = closed_as_they_are(self._sessions, slots[windowed], self.line)
        self._sessions.release(slots[windowed])
        batch = Batch.empty(self.line)
        pieces = cut(
            self._sessions,
            np.zeros(0, dtype=np.int64),
            batch.clock,
            batch.clock,
            idle_seconds=self.settings.session.idle_seconds,
            window=self.settings.session.window,
            ending=slots[~windowed],
        )
        alpha, _ = self.alpha()
        states, closings = judge(self._sessions, self._history, self._ensemble, alpha, batch, pieces)
        closings = closings.and_also(as_they_are)
        none = Hits(lines=np.zeros(0, dtype=np.int32), rules=np.zeros(0, dtype=np.int32))
        return [
            rows_of(
                batch,
                states,
                closings,
                alpha,
                self._number(closings),
                batch.clock,
                self._texts_of(closings),
                none,
                self._rules.rules,
                self._templates,
                self._ensemble,
            )
        ]

    def _clock_at(self, times: NDArray[np.float64], received: float) -> NDArray[np.float64]:
        """The log clock at each line; before any time was ever seen, the receive time."""
        unset = math.isnan(self._clock.now)
        clock = self._clock.advance(times)
        if unset:
            known = clock[~np.isnan(clock)]
            clock = np.where(np.isnan(clock), known[0] if len(known) else received, clock)
            if len(known):  # sessions timed by receive time must not outlive the log's own
                last = self._sessions.column["last_time"]
                np.minimum(last, known[0], out=last, where=self._sessions.open)
        return clock

    def _confidence(self) -> NDArray[np.float64]:
        return np.array([rule.confidence for rule in self._rules.rules])

    def _move_to(self, line: int) -> None:
        if line != self.line:
            self.line, self._closings_at_line = line, 0

    def _number(self, closings: Closings) -> NDArray[np.int64]:
        """The k of each closing's id, counted from 1 at each line; at the current line, on from the last."""
        line = closings.line
        k = np.arange(1, len(line) + 1) - np.searchsorted(line, line, side="left")
        here = line == self.line
        k[here] += self._closings_at_line
        self._closings_at_line += int(here.sum())
        self._counters.sessions += len(line)
        if not math.isnan(self._clock.now):
            self._rate.observe(len(line), self._clock.now)
        return k

    def _texts_of(self, closings: Closings) -> list[bytes]:
        return [self._recent.text(line) or b"" for line in closings.worst_line.tolist()]

    # --- questions ----------------------------------------------------------------------------------

    def ask(self, lines: Sequence[bytes], session: str | None) -> list[dict[str, Any]]:
        """What would be said of each of `lines`, each on its own, now: the contract's answer to /detect.

        With `session` a line is judged as the next one of that open session. Changes nothing.
        """
        opinion = Opinion(
            self._templates, self._rules, self._sessions, self._ensemble, self._pattern,
            self.settings, self.alpha()[0], self.line, self._clock.now,
        )  # fmt: skip
        return opinion.on(lines, session)

    def alpha(self) -> tuple[float, bool]:
        """The level sessions are tested at, and whether it is the floor that calibration sets."""
        if self._ensemble is None:
            return 0.0, False
        alarms, calibration = self.settings.alarms, self._ensemble.calibration
        if alarms.alpha is not None:
            floor = 5.0 / max(calibration, 5)
            return max(alarms.alpha, floor), alarms.alpha < floor
        return alpha_for(alarms.per_day, self._rate.per_day(), calibration)

    def training_set(self) -> TrainingSet:
        """What the next generation is to learn from; a copy."""
        sequences = self._history.sequences()
        generation = self._generations + 1
        return TrainingSet(
            generation=generation,
            line=self.line,
            seed=generation,
            tokens=sequences.tokens,
            errors=sequences.errors,
            times=sequences.times,
            offsets=sequences.offsets,
            starts=sequences.starts,
            ends=sequences.ends,
            tainted=sequences.tainted,
            templates=self._templates.export(),
        )

    def living_sources(self) -> list[LivingSource]:
        """Sources that have sent something and have not ended, by name."""
        return self._living.sources()

    def summary(self) -> Summary:
        ensemble, learning = self._ensemble, self.settings.learning
        since = self.line - (ensemble.line if ensemble else 0) - self._forgotten_lines
        alpha, floor_binding = self.alpha()
        return Summary(
            seq=self.seq,
            line=self.line,
            log_time=None if math.isnan(self._clock.now) else self._clock.now,
            warmup_lines=learning.warmup_lines,
            lines_since_training=since,
            training_due=since >= (learning.retrain_lines if ensemble else learning.warmup_lines),
            generation=ensemble.generation if ensemble else 0,
            model_line=ensemble.line if ensemble else 0,
            templates=len(self._templates),
            templates_created=self._templates.created,
            templates_evicted=self._templates.evicted,
            vocabulary=len(ensemble.vocabulary) if ensemble else 0,
            sessions_open=len(self._sessions),
            sessions_closed=self._counters.sessions,
            sessions_evicted=self._sessions.evicted,
            history_sessions=self._history.closed,
            history_rows=len(self._history),
            rules=len(self._rules.rules),
            rule_hits=self._counters.rule_hits,
            flagged=self._counters.flagged,
            cut_lines=self._counters.cut_lines,
            unterminated_lines=self._counters.unterminated_lines,
            lost_lines=self._counters.lost_lines,
            alpha=alpha,
            floor_binding=floor_binding,
            sessions_per_day=self._rate.per_day(),
            calibration=ensemble.calibration if ensemble else 0,
            restored=self._restored,
        )

    # --- the state as columns -----------------------------------------------------------------------

    def export(self) -> State:
        """A copy of everything, as plain columns; `load` makes a detector of it that is this one."""
        return {
            "format": FORMAT,
            "seq": self.seq,
            "line": self.line,
            "received": self._received,
            "closings_at_line": self._closings_at_line,
            "generations": self._generations,
            "restored": self._restored,
            "forgotten_lines": self._forgotten_lines,
            "settings": msgspec.json.encode(self.settings),
            "rules": msgspec.json.encode(self.rule_texts),
            "model": msgspec.json.encode(self.model),
            **joined("counters", asdict(self._counters)),
            **joined("rate", asdict(self._rate)),
            **joined("sources", self._living.export()),
            **joined("clock", self._clock.export()),
            **joined("templates", self._templates.export()),
            **joined("sessions", self._sessions.export()),
            **joined("history", self._history.export()),
            **joined("recent", self._recent.export()),
        }

    @classmethod
    def load(cls, state: Columns, model: Model | None) -> "Detector":
        """The detector that exported `state`; `model` is what `model_in(state)` names, None if it names none.

        Raises KeyError, TypeError or ValueError when `state` is not an export, `NewerStateError` when it is one of
        a later version of the program.
        """
        check_format(state)
        detector = cls()
        detector.seq, detector.line = int(state["seq"]), int(state["line"])  # type: ignore[arg-type]
        detector._received = float(state["received"])  # type: ignore[arg-type]
        detector._closings_at_line = int(state["closings_at_line"])  # type: ignore[arg-type]
        detector._generations = int(state["generations"])  # type: ignore[arg-type]
        detector._restored = int(state["restored"])  # type: ignore[arg-type]
        detector._forgotten_lines = int(state["forgotten_lines"])  # type: ignore[arg-type]
        detector._counters = Counters(**part("counters", state))  # type: ignore[arg-type]
        detector._rate = SessionRate(**part("rate", state))  # type: ignore[arg-type]
        detector._living = LivingSources.load(part("sources", state))
        detector._clock = LogClock.load(part("clock", state))
        detector._templates = TemplateTable.load(part("templates", state))
        detector._sessions = SessionTable.load(part("sessions", state))
        detector._history = History.load(part("history", state))
        detector._recent = RecentLines.load(part("recent", state))
        detector._set(
            msgspec.json.decode(state["settings"], type=DetectionSettings),  # type: ignore[arg-type]
            msgspec.json.decode(state["rules"], type=tuple[RuleText, ...]),  # type: ignore[arg-type]
        )
        detector.model = model_in(state)
        detector._use(model)
        return detector


# Compiling takes a tenth of a second, and a state that is loaded, or reloaded, mostly has the same rules.
_compiled = lru_cache(maxsize=4)(RuleSet.compile)


def model_in(state: Columns) -> ModelFrame:
    """Which model was in force in `state`; its name is empty when none was."""
    return msgspec.json.decode(state["model"], type=ModelFrame)  # type: ignore[arg-type]
