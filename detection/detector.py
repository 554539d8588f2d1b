"""The detector: the state, and the one function that changes it.

`apply` is deterministic: no clock but the log's, no randomness, no I/O. Two detectors that applied the
same frames hold the same state bit for bit, whatever their caches held and wherever they were exported
and loaded in between.

A member that raises makes `apply` raise a `MemberError` that names it. The caller applies the frame again, to the state
from before it, `without` that member: it is *withdrawn*. Nothing is asked of it from there on, open sessions carry of
it what they carry of a member that is not ready, and their p is what the others say. The state holds which members
are withdrawn, since when and why; so it is the same wherever the frames are applied, be the member well or not.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from detection.causes.fingerprints import rule_causes
from detection.causes.known import Answer, KnownCauses
from detection.columns.state import Columns, State, joined, of_this_version, part, scalar, scalars
from detection.columns.upgrades import STATES
from detection.frames import (
    FeedbackFrame,
    FlushFrame,
    Frame,
    Knowledge,
    LinesFrame,
    ModelFrame,
    RefusedFrame,
    RestoreFrame,
    ReturnedFrame,
    Segment,
    Sequenced,
    SettingsFrame,
    SkipFrame,
    Studied,
    TickFrame,
    VouchedFrame,
    WithdrawnFrame,
    count_lines,
)
from detection.learning.exclusions import bad_and_flagged
from detection.learning.history import VOUCHED, History
from detection.learning.schedule import Progress, Schedule
from detection.learning.vouched import Vouching
from detection.members.failing import MemberError, asked
from detection.members.origins.counters import SourceCounters
from detection.members.parameter_values import ValueModel
from detection.members.registry import NAMES
from detection.models.generations import Generations
from detection.models.model import Model
from detection.models.training_set import TrainingSet
from detection.rules.engine import Hits, RuleSet
from detection.scoring.calibration import alpha_for
from detection.scoring.ensemble import Ensemble, members_of, resting
from detection.scoring.judging import Batch, Closings, Judged, closed_as_they_are, judge
from detection.sessions.connections import LivingSource, LivingSources
from detection.sessions.intake import Intake, KeyPattern, Reading, read_lines, take_in
from detection.sessions.log_clock import LogClock
from detection.sessions.rate import SessionRate
from detection.sessions.recent_lines import RecentLines
from detection.sessions.table import Cut, SessionTable, cut
from detection.settings import DetectionSettings, RuleText
from detection.summary import Summary, Withdrawn, exported, loaded
from detection.templates.table import TemplateTable
from detection.verdicts.alerting import Alerting, Lines
from detection.verdicts.incidents import Incidents
from detection.verdicts.query import Opinion
from detection.verdicts.records import Verdicts, rows_of

CHUNK_LINES = 4096
ONLINE = ("values", "sources")  # members that learn with every line, whether or not there is a model
UPLOAD_GONE_LINES = 5000  # when so many lines came since a vouched one, the rest of the file is not waited for
FEWEST_VALUES = 500  # lines with parameter values, before the model of them is asked: all are odd at first


@dataclass(slots=True)
class Counters:
    """What was counted since the state began; part of the state."""

    cut_lines: int = 0
    unterminated_lines: int = 0
    future_lines: int = 0  # with a time that was not believed
    rule_hits: int = 0
    flagged: int = 0
    sessions: int = 0
    lost_lines: int = 0
    value_lines: int = 0  # that the model of parameter values learned from
    vouched_lines: int = 0
    vouched_rule_hits: int = 0
    vouched_sessions: int = 0


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
        self._model: Model | None = None
        self._withdrawn: dict[str, Withdrawn] = {}
        self._ensemble: Ensemble | None = None  # None without a model, and where no member of it judges
        self._living = LivingSources()
        self._clock = LogClock()
        self._received = math.nan
        self._templates = TemplateTable()
        self._sessions = SessionTable()
        self._history = History()
        self._recent = RecentLines()
        self._known = KnownCauses()
        self._incidents = Incidents()
        self._models = Generations()
        self._values = ValueModel()
        self._origins = SourceCounters()
        self._vouching: Vouching | None = None
        self._closings_at_line = 0  # so that ids of sessions closed at one line never repeat
        self._generations = 0  # the highest that was ever trained
        self._schedule = Schedule()
        self._restored = 0  # seq of the last restore

    @property
    def in_force(self) -> Model | None:
        """The model that `model` names, withdrawn members and all."""
        return self._model

    def apply(self, item: Sequenced) -> Verdicts:
        """Fold one frame into the state. After an exception the state is undefined: load another.

        A gap in the line numbers is lines that were lost; they are counted. Raises MemberError when a member failed
        that `item.without` does not name: also one that could not be loaded, whatever the frame.
        """
        frame, lines = item.frame, count_lines(item.frame)
        self._lose_before(item, lines)
        if item.without:
            self._withdraw(item.seq, item.without)
            self._assemble()
            self._judge_anew()
        self._known.admits = not self._schedule.closed(self.settings.learning)
        self._templates.pinned = self._known.templates
        alarms = self.settings.alarms
        # Who says how sure to be, and not how many to see, has no budget.
        per_day = alarms.per_day if alarms.alpha is None else math.inf
        alerting = Alerting(
            self._incidents, self._recent, self._templates, self._ensemble, self._rules,
            None if "sources" in self._withdrawn else self._origins, per_day,
        )  # fmt: skip
        match frame:
            case LinesFrame():
                self._take(frame, alerting)
            case TickFrame():
                self._pass_silence(frame.received, alerting)
            case FlushFrame():
                self._close(self._sessions.all_open(), alerting)
            case ModelFrame():
                self._install(item.seq, frame, item.model, item.without)
            case SettingsFrame():
                self._adopt(frame, alerting)
            case RestoreFrame():
                self._restore(item.seq, item.knowledge, item.without, alerting)
            case FeedbackFrame():
                self._hear(frame)
            case VouchedFrame():
                self._vouch(item.seq, frame)
            case RefusedFrame():
                self._refuse(frame)
            case ReturnedFrame():
                self._bring_back(item.seq, frame.members, item.without)
            case SkipFrame() | WithdrawnFrame():
                pass
        if self._ensemble is not None:
            self._ensemble.check()
        self.seq = item.seq
        self._counters.flagged += alerting.flagged
        return Verdicts(item.seq, self.line, lines, tuple(alerting.batches))

    def skip(self, seq: int, line: int, frame: Frame | None) -> None:
        """Instead of `apply`, for a frame on which it raised: its lines are lost, and counted.

        Only where its sources stand is taken from it, so that the line one of them began in it is whole in the
        end, and nobody sends again what is in the journal. `frame` is None when it could not even be decoded.
        """
        self._lose_before(Sequenced(seq, line, SkipFrame(seq)), 0)
        if isinstance(frame, LinesFrame):
            self._living.pass_over(frame.segments)
        if isinstance(frame, VouchedFrame) and self._vouching is not None:
            self._vouching.living.pass_over((frame.segment,))
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

    def _take(self, frame: LinesFrame, alerting: Alerting) -> None:
        clock = self._clock.now
        intake = take_in(frame.segments, self._living, self._pattern, clock=clock, received=frame.received)
        if self._clock.timed and frame.segments and all(segment.kind == "plain" for segment in frame.segments):
            # Else it would stand still once the source that brings the times has ended.
            self._pass_by(frame.received)
        self._received = frame.received
        self._counters.cut_lines += intake.cut
        self._counters.unterminated_lines += intake.unterminated
        self._counters.future_lines += intake.future
        reading = read_lines(intake, self._templates, self._rules, without=self._withdrawn)
        self._counters.rule_hits += len(reading.hits.lines)
        hits = self._without_known(reading)
        odd = self._odd_values(reading)
        clean = np.ones(len(reading.ids), dtype=np.bool_)
        for start in range(0, len(reading.ids), CHUNK_LINES):
            chunk = slice(start, start + CHUNK_LINES)
            clean[chunk] = self._judge_lines(intake, reading, hits, odd, chunk, frame.received, alerting)
        self._learn_values(reading, clean)
        finished = [slot for key in intake.ended if (slot := self._sessions.find(key)) is not None]
        self._close(np.array(finished, dtype=np.int64), alerting)

    def _pass_silence(self, received: float, alerting: Alerting) -> None:
        self._pass_by(received)
        self._received = received
        now = received if math.isnan(self._clock.now) else self._clock.now
        self._close(self._sessions.silent(now, self.settings.session.idle_seconds), alerting)

    def _pass_by(self, received: float) -> None:
        if not math.isnan(self._received):
            self._clock.pass_silence(received - self._received)

    def _install(self, seq: int, frame: ModelFrame, model: Model | None, without: Mapping[str, str]) -> None:
        """Let `model` judge from here on, all its members but those `without`; without a model (withdrawn, or its file
        is lost) only rules are left."""
        self.model = ModelFrame(frame.generation, frame.name, frame.sha256)
        self._have_studied(frame.studied)
        if frame.studied is None and model is not None and frame.generation > self._generations:
            self._schedule.trained_at -= max(self.line - model.line, 0)  # what came while it was trained
        self._generations = max(self._generations, frame.generation)
        self._withdrawn.clear()
        self._use(model, seq, without)
        self._schedule.fulfilled |= self._has_all_members()
        self._history.set_mark()
        members = members_of(model) if model is not None else ()
        if frame.name:
            self._models.took_effect(frame.generation, frame.name, self.line, members)
        self._forget_judgements()

    def _refuse(self, frame: RefusedFrame) -> None:
        self._generations = max(self._generations, frame.generation)
        self._have_studied(frame.studied)
        self._models.was_refused(frame.generation, frame.name, self.line, frame.reason)

    def _have_studied(self, studied: Studied | None) -> None:
        self._schedule.studied(studied or Studied(self.seq, self._learned, self._known.admissions), self._learned)

    def _use(self, model: Model | None, seq: int = 0, without: Mapping[str, str] = {}) -> None:
        self._model = model
        self._withdraw(seq, without)
        self._assemble()
        if model is not None and not len(self._templates):
            self._templates = TemplateTable.load(model.templates)

    # --- members that failed ------------------------------------------------------------------------

    def _withdraw(self, seq: int, without: Mapping[str, str]) -> None:
        """Remember that these members do not judge from frame `seq` on, nor those that look at what they say.

        Only what there is can be withdrawn: another model may have had more.
        """
        there = {*ONLINE, *(members_of(self._model) if self._model is not None else ())}
        out = {name: reason for name, reason in without.items() if name in there}
        out |= {name: why for name, why in resting({*self._withdrawn, *out}).items() if name in there}
        self._withdrawn |= {name: Withdrawn(name, seq, reason) for name, reason in out.items()}

    def _assemble(self) -> None:
        """Let those members of the model judge that are not withdrawn."""
        self._ensemble = None  # the old one's memory first: each holds some 80 MB
        ensemble = Ensemble(self._model, self._withdrawn) if self._model is not None else None
        self._ensemble = ensemble if ensemble is not None and ensemble.members else None

    def _judge_anew(self) -> None:
        """Let open sessions be what they are by the members that judge now.

        As if those withdrawn had not been ready when they began; a member that comes back has nothing to say of them
        yet. What known causes explained of a session before, they still explain. With rules alone it is as after a
        change of models. What was flagged stays flagged.
        """
        table = self._sessions.column
        for name in self._withdrawn:
            table["reached"][:, NAMES.index(name)] = 0.0
        judged = np.flatnonzero(self._sessions.open & ~np.isnan(table["p"]))
        if self._ensemble is None:
            self._forget_judgements()
        elif len(judged):
            judgement = self._ensemble.judge(table["reached"][judged])
            table["strangeness"][judged], table["p"][judged] = judgement.strangeness, judgement.p
            excused = table["excused"][judged]
            table["excused"][judged] = np.where(excused > 0.0, np.minimum(excused, judgement.p), 0.0)

    def _bring_back(self, seq: int, members: Collection[str], without: Mapping[str, str]) -> None:
        """Let those of these members judge again that are not to be left out from this very frame on."""
        for name in members:
            self._withdrawn.pop(name, None)
        self._withdraw(seq, without)
        self._assemble()
        self._judge_anew()

    def _forget_judgements(self) -> None:
        """What was measured by another model, of every open session."""
        for name in ("reached", "strangeness", "muted", "excused", "novel"):
            self._sessions.column[name][:] = 0
        self._sessions.column["p"][:] = np.nan

    def _hear(self, frame: FeedbackFrame) -> None:
        if frame.answer == "undo":
            self._known.undo(frame.alert)
        else:
            self._known.answer(
                Answer(
                    alert=frame.alert,
                    cause=frame.cause,
                    kind=frame.kind,
                    what=frame.what,
                    normal=frame.answer == "normal",
                    note=frame.note,
                    line=self.line,
                    template=frame.template,
                    shapes=frame.shapes,
                )
            )

    def _restore(self, seq: int, knowledge: Knowledge | None, without: Mapping[str, str], alerting: Alerting) -> None:
        """Know what `knowledge` knew: templates, model, training buffer, answers, rate of sessions. The rest goes on.

        Open sessions end here, judged by what was known until now, and those that were open in the snapshot stay
        closed: they had their end when they ended. Settings, rules, the clock, incidents, the texts of the last lines
        and all counts are facts about now, not knowledge. Ids of templates and generations of models are not given
        twice. Members judge again, but those `without`. Without `knowledge` (its snapshot is lost) only the sessions
        end.
        """
        self._close(self._sessions.all_open(), alerting)
        self._restored = seq
        if knowledge is None:
            return
        learned = self._learned
        then = Detector.load(knowledge.state, knowledge.model)
        self._templates, created = then._templates, self._templates.created
        self._templates.created = max(self._templates.created, created)
        self._templates.evicted = self._templates.created - len(self._templates)
        self.model, self._history = then.model, then._history
        then._ensemble = None
        self._withdrawn.clear()
        self._use(then._model, seq, without)
        self._known, self._values, self._origins = then._known, then._values, then._origins
        self._counters.value_lines = then._counters.value_lines
        self._generations = max(self._generations, then._generations)
        self._schedule = Schedule(
            trained_at=then._schedule.trained_at + learned - then._learned,
            admissions_at=then._schedule.admissions_at,
            vouched_at=seq if then._schedule.vouched_at else 0,  # no training under way has seen it
            fulfilled=then._schedule.fulfilled,
        )
        self._rate = replace(then._rate, clock=self._rate.clock)

    def _adopt(self, frame: SettingsFrame, alerting: Alerting) -> None:
        if frame.settings.session != self.settings.session:
            self._close(self._sessions.all_open(), alerting)
        self._set(frame.settings, frame.rules)

    def _set(self, settings: DetectionSettings, rules: tuple[RuleText, ...]) -> None:
        self._rules = _compiled(rules)
        self._pattern = None if settings.session.key == "auto" else KeyPattern(settings.session.key)
        self.settings, self.rule_texts = settings, rules

    # --- vouched lines ------------------------------------------------------------------------------

    def _vouch(self, seq: int, frame: VouchedFrame) -> None:
        """Learn from the lines of `frame`, but not from sessions in which a rule matched; say nothing of them."""
        if self._vouching is None:
            self._vouching = Vouching(self._counters.vouched_sessions)
        vouching, clock = self._vouching, self._vouching.clock
        vouching.at_line = self.line
        segments: tuple[Segment, ...] = (frame.segment,)
        intake = take_in(segments, vouching.living, self._pattern, clock=clock.now, received=frame.received)
        reading = read_lines(intake, self._templates, self._rules, without=self._withdrawn)
        hits = self._without_known(reading)
        odd, n = self._odd_values(reading), len(reading.ids)
        confidence = self._confidence(hits, n)
        for start in range(0, n, CHUNK_LINES):
            chunk = slice(start, start + CHUNK_LINES)
            before = clock.now
            now = clock.advance(intake.times[chunk], frame.received)
            if now[0] < before:
                vouching.sessions.bring_back(float(now[0]))
            batch = Batch(
                first_line=1,
                ids=reading.ids[chunk],
                errors=intake.errors[chunk],
                clock=now,
                hit=confidence[chunk],
                values=odd[chunk],
                sources=self._observed(vouching.counters, reading, chunk, now),
                origins=reading.origins[chunk],
            )
            keys, windowed = intake.keys[chunk], intake.windowed[chunk]
            vouching.sessions.evict(vouching.sessions.crowded_out_by(keys))
            self._judge_vouched(batch, keys, windowed, np.fmin(intake.times[chunk], now))
        self._learn_values(reading, confidence == 0.0)
        self._counters.future_lines += intake.future
        self._counters.vouched_lines += n
        self._counters.vouched_rule_hits += int(np.count_nonzero(confidence))
        if frame.done:
            self._end_vouching(seq)
        self._counters.vouched_sessions = vouching.begun

    def _judge_vouched(
        self, batch: Batch, keys: Sequence[bytes], windowed: Sequence[bool], events: NDArray[np.float64]
    ) -> None:
        assert self._vouching is not None
        sessions, session = self._vouching.sessions, self.settings.session
        slots = sessions.slots_for(keys, windowed)
        ending = None if len(batch.ids) else self._vouching.sessions.all_open()
        if ending is not None:
            ending = ending[~sessions.column["windowed"][ending]]
        pieces = cut(
            sessions,
            slots,
            batch.clock,
            events,
            idle_seconds=session.idle_seconds,
            window=session.window,
            ending=ending,
        )
        judge(sessions, self._history, None, self._known, 0.0, batch, pieces, closing_flags=VOUCHED)

    def _end_vouching(self, seq: int) -> None:
        assert self._vouching is not None
        self._judge_vouched(Batch.empty(1), [], [], np.zeros(0))
        if self.line == 0:
            self._origins = self._vouching.counters  # of a stream that has not begun these are all there is
        self._counters.vouched_sessions = self._vouching.begun
        self._vouching = None
        self._schedule.vouched_at = seq

    # --- lines and closings -------------------------------------------------------------------------

    def _without_known(self, reading: Reading) -> Hits:
        """The hits on lines that the operator has not called normal: for their surest rule and their template."""
        hits = reading.hits
        if not len(hits.lines) or not self._known.any_normal:
            return hits
        surest = self._rules.surest(hits)
        lines = hits.lines[surest]
        causes = rule_causes(self._rules.names, hits.rules[surest], reading.ids[lines])
        kept = ~np.isin(hits.lines, lines[self._known.normal(causes)])
        return Hits(hits.lines[kept], hits.rules[kept])

    def _odd_values(self, reading: Reading) -> NDArray[np.float64]:
        if (values := self._grown_values()) is None:
            return np.zeros(len(reading.ids))
        with asked("values"):
            return reading.odd_values(values)

    def _learn_values(self, reading: Reading, clean: NDArray[np.bool_]) -> None:
        with asked("values"):
            reading.learn_values(self._values, clean)
        self._counters.value_lines += sum(len(np.unique(v.lines)) for _, v in reading.values)

    def _grown_values(self) -> ValueModel | None:
        """None while it has learned too little to be asked, or is withdrawn."""
        grown = self._counters.value_lines >= FEWEST_VALUES and "values" not in self._withdrawn
        return self._values if grown else None

    def _observed(
        self, counters: SourceCounters, reading: Reading, chunk: slice, clock: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """What the sources of these lines do, and count it; zeros while that is withdrawn."""
        if "sources" in self._withdrawn:
            return np.zeros(len(reading.ids[chunk]))
        with asked("sources"):
            return counters.observe(reading.origins[chunk], clock, reading.troubles[chunk], reading.things[chunk])

    def _judge_lines(
        self,
        intake: Intake,
        reading: Reading,
        hits: Hits,
        odd: NDArray[np.float64],
        chunk: slice,
        received: float,
        alerting: Alerting,
    ) -> NDArray[np.bool_]:
        """Which of the lines are clean: no rule matched, and their sessions are not flagged."""
        keys, texts, times = intake.keys[chunk], intake.lines[chunk], intake.times[chunk]
        first_line, n = self.line + 1, len(texts)
        before = self._clock.now
        clock = self._clock.advance(times, received)
        if clock[0] < before:
            self._sessions.bring_back(float(clock[0]))
            self._incidents.bring_back(float(clock[0]))
        crowded = self._sessions.crowded_out_by(keys)
        crowded_out = closed_as_they_are(self._sessions, crowded, first_line)
        self._sessions.evict(crowded)
        low, high = np.searchsorted(hits.lines, [chunk.start, chunk.start + n])
        hits = Hits(lines=hits.lines[low:high] - chunk.start, rules=hits.rules[low:high])
        batch = Batch(
            first_line=first_line,
            ids=reading.ids[chunk],
            errors=intake.errors[chunk],
            clock=clock,
            hit=self._confidence(hits, n),
            values=odd[chunk],
            sources=self._observed(self._origins, reading, chunk, clock),
            origins=reading.origins[chunk],
        )
        pieces = cut(
            self._sessions,
            self._sessions.slots_for(keys, intake.windowed[chunk]),
            clock,
            np.fmin(times, clock),  # a line from the future is one of now, a line without a time too
            idle_seconds=self.settings.session.idle_seconds,
            window=self.settings.session.window,
        )
        alpha, _ = self.alpha()
        judged = self._judged(alpha, batch, pieces)
        judged = replace(judged, closings=judged.closings.and_also(crowded_out))
        self._recent.append(first_line, texts, judged.states.serial)
        self._move_to(first_line + n - 1)
        shown_times = np.where(np.isnan(times), clock, times)
        self._say(batch, judged, shown_times, texts, hits, alpha, alerting, reading, chunk.start)
        clean: NDArray[np.bool_] = (batch.hit == 0.0) & (judged.states.verdict == 0)
        return clean

    def _judged(self, alpha: float, batch: Batch, pieces: Cut) -> Judged:
        lessons, counts = self._lessons(), self._has_all_members()
        return judge(self._sessions, lessons, self._ensemble, self._known, alpha, batch, pieces, flags_count=counts)

    def _close(self, slots: NDArray[np.int64], alerting: Alerting) -> None:
        """End these sessions now: keyed ones are scored as ended, windows close as they are."""
        if not len(slots):
            return
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
        judged = self._judged(alpha, batch, pieces)
        judged = replace(judged, closings=judged.closings.and_also(as_they_are))
        self._say(batch, judged, batch.clock, [], Hits.none(), alpha, alerting)

    def _say(
        self,
        batch: Batch,
        judged: Judged,
        times: NDArray[np.float64],
        texts: list[bytes],
        hits: Hits,
        alpha: float,
        alerting: Alerting,
        reading: Reading | None = None,
        start: int = 0,
    ) -> None:
        """Turn a judged batch into verdicts, and what is flagged of it into alerts.

        The batch's lines are those of `reading` from its line number `start` on.
        """
        closings, rules = judged.closings, self._rules.rules
        causes = np.zeros(len(batch.ids), dtype=np.uint64)
        if len(hits.lines):
            surest = self._rules.surest(hits)
            lines = hits.lines[surest]
            causes[lines] = rule_causes(self._rules.names, hits.rules[surest], batch.ids[lines])
        rows = rows_of(
            batch, judged.states, closings, alpha, self._number(closings), times,
            texts + self._texts_of(closings), hits, causes, rules, self._templates, self._ensemble,
        )  # fmt: skip
        alerting.add(rows, judged, alpha, None if reading is None else Lines(reading, start, self._grown_values()))

    def _confidence(self, hits: Hits, lines: int) -> NDArray[np.float64]:
        """Of each line the confidence of the surest rule that hit it, 0 where none did."""
        hit = np.zeros(lines)
        if len(hits.lines):
            np.maximum.at(hit, hits.lines, self._rules.confidence[hits.rules])
        return hit

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

    def ask(self, lines: Sequence[bytes], session: str | None, explain: bool = False) -> list[dict[str, Any]]:
        """What would be said of each of `lines`, each on its own, now: the contract's answer to /detect.

        With `session` a line is judged as the next one of that open session; with `explain` each answer says why.
        Changes nothing. A member that fails is left out of these answers, which say so ("failed_models"); it is not
        withdrawn by that: a question is no frame, and the next line shows whether it can judge.
        """
        failed: dict[str, str] = {}
        while True:
            try:
                return self._opinion(failed).on(lines, session, explain)
            except MemberError as exc:
                if exc.member in failed:
                    raise
                failed[exc.member] = exc.reason
                failed |= resting(failed)

    def _opinion(self, failed: Mapping[str, str]) -> Opinion:
        """Of all members that judge but those that just `failed`."""
        ensemble = self._ensemble.without(failed) if self._ensemble is not None and failed else self._ensemble
        out = {*self._withdrawn, *failed}
        return Opinion(
            self._templates, self._rules, self._sessions,
            ensemble if ensemble is not None and ensemble.members else None,
            self._pattern, self._known, self._recent,
            None if "values" in out else self._grown_values(), None if "sources" in out else self._origins,
            self.settings, self.alpha()[0], self.line, self._clock.now, failed,
        )  # fmt: skip

    def incidents(self, limit: int) -> list[dict[str, Any]]:
        """The last `limit` incidents, newest first."""
        return self._incidents.listing(limit, self._clock.now)

    def answers(self) -> list[dict[str, Any]]:
        """The operator's answers that are in force, oldest first."""
        return [answer.as_dict() for answer in self._known.answers()]

    def has_template(self, template: int) -> bool:
        """Whether a line can still be of that template; what came in its place after it was evicted is another."""
        return template in self._templates

    def generations(self) -> list[dict[str, Any]]:
        """What became of each generation of models, newest first."""
        return self._models.listing(self.model.name)

    def alpha(self) -> tuple[float, bool]:
        """The level sessions are tested at, and whether it is the floor that calibration sets."""
        if self._model is None:
            return 0.0, False
        alarms, calibration = self.settings.alarms, len(self._model.rings["ensemble"])
        if alarms.alpha is not None:
            floor = 5.0 / max(calibration, 5)
            return max(alarms.alpha, floor), alarms.alpha < floor
        return alpha_for(alarms.per_day, self._rate.per_day(), calibration)

    def training_set(self) -> TrainingSet:
        """What the next generation is to learn from; a copy."""
        found = self._history.sequences()
        bad, flagged = bad_and_flagged(found, self._known)
        generation = self._generations + 1
        return TrainingSet(
            generation=generation,
            line=self.line,
            seed=generation,
            full=self._learned >= self.settings.learning.warmup_lines or self._schedule.fulfilled,
            alpha=self.alpha()[0],
            tokens=found.tokens,
            errors=found.errors,
            times=found.times,
            values=found.values,
            sources=found.sources,
            offsets=found.offsets,
            starts=found.starts,
            ends=found.ends,
            tainted=bad,
            flagged=flagged,
            vouched=found.vouched,
            fresh=found.fresh,
            keys=found.keys,
            causes=found.causes,
            templates=self._templates.export(),
            previous=self._model,
            studied=Studied(self.seq, self._learned, self._known.admissions),
        )

    @property
    def _learned(self) -> int:
        """Lines there were to learn from."""
        return self.line + self._counters.vouched_lines

    def _lessons(self) -> History | None:
        """Where the stream is remembered for the next training; None while nothing more is to be learned from it.

        What was there when that began stays, so that a vouched file adds to it, and a model that is lost comes again.
        """
        closed = self._model is not None and self._schedule.closed(self.settings.learning)
        return None if closed else self._history

    def _has_all_members(self) -> bool:
        """Whether the model in force has the members that learn from the whole warm-up; they may be withdrawn."""
        return self._model is not None and "transformer" in members_of(self._model)

    def _progress(self) -> Progress:
        vouching = self._vouching
        return Progress(
            learned=self._learned,
            admissions=self._known.admissions,
            has_model=self._model is not None,
            complete=self._has_all_members(),
            uploading=vouching is not None and self.line - vouching.at_line < UPLOAD_GONE_LINES,
        )

    def living_sources(self) -> list[LivingSource]:
        """Sources that have sent something and have not ended, by name."""
        return self._living.sources()

    def failing(self) -> bool:
        """Whether a member that is to judge could not be loaded: the next frame, of whatever kind, will say which."""
        try:
            if self._ensemble is not None:
                self._ensemble.check()
        except MemberError:
            return True
        return False

    def summary(self) -> Summary:
        ensemble, model, learning, counters = self._ensemble, self._model, self.settings.learning, self._counters
        alpha, floor_binding = self.alpha()
        progress, now = self._progress(), self._clock.now
        return Summary(
            seq=self.seq,
            line=self.line,
            log_time=None if math.isnan(now) else now,
            warmup_lines=learning.warmup_lines,
            lines_since_training=self._learned - self._schedule.trained_at,
            training_due=self._schedule.due(learning, progress),
            training_urgent=self._schedule.urgent(learning, progress),
            generation=model.generation if model else 0,
            model_line=model.line if model else 0,
            members=ensemble.members if ensemble else (),
            unfitted=tuple(model.unfitted.items()) if model else (),
            withdrawn=tuple(self._withdrawn_in_order()),
            templates=len(self._templates),
            templates_created=self._templates.created,
            templates_evicted=self._templates.evicted,
            vocabulary=len(model.vocabulary) if model else 0,
            sessions_open=len(self._sessions),
            sessions_closed=counters.sessions,
            sessions_evicted=self._sessions.evicted,
            sources_evicted=self._origins.evicted,
            history_sessions=self._history.closed,
            history_rows=len(self._history),
            rules=len(self._rules.rules),
            rule_hits=counters.rule_hits,
            flagged=counters.flagged,
            cut_lines=counters.cut_lines,
            unterminated_lines=counters.unterminated_lines,
            future_lines=counters.future_lines,
            lost_lines=counters.lost_lines,
            alpha=alpha,
            floor_binding=floor_binding,
            sessions_per_day=self._rate.per_day(),
            calibration=len(model.rings["ensemble"]) if model else 0,
            restored=self._restored,
            incidents_opened=self._incidents.opened,
            incidents_open=self._incidents.open_count(now),
            incidents_digest=self._incidents.digested,
            incidents_evicted=self._incidents.evicted,
            answers=len(self._known.answers()),
            answers_dropped=self._known.answers_dropped,
            admitted=self._known.admitted,
            admitted_dropped=self._known.admitted_dropped,
            models_refused=self._models.refused,
            refusal=self._models.refusal,
            vouched_lines=counters.vouched_lines,
            vouched_rule_hits=counters.vouched_rule_hits,
            vouched_sessions=counters.vouched_sessions,
            vouched_waiting=self._schedule.vouched_at > 0,
        )

    def _withdrawn_in_order(self) -> list[Withdrawn]:
        return [self._withdrawn[name] for name in NAMES if name in self._withdrawn]

    # --- the state as columns -----------------------------------------------------------------------

    def export(self) -> State:
        """A copy of everything, as plain columns; `load` makes a detector of it that is this one."""
        return {
            "format": STATES.newest,
            "seq": self.seq,
            "line": self.line,
            "received": self._received,
            "closings_at_line": self._closings_at_line,
            "generations": self._generations,
            "restored": self._restored,
            "settings": msgspec.json.encode(self.settings),
            "rules": msgspec.json.encode(self.rule_texts),
            "model": msgspec.json.encode(self.model),
            **joined("counters", asdict(self._counters)),
            **joined("schedule", asdict(self._schedule)),
            **joined("rate", asdict(self._rate)),
            **joined("sources", self._living.export()),
            **joined("clock", self._clock.export()),
            **joined("templates", self._templates.export()),
            **joined("sessions", self._sessions.export()),
            **joined("history", self._history.export()),
            **joined("recent", self._recent.export()),
            **joined("known", self._known.export()),
            **joined("incidents", self._incidents.export()),
            **joined("models", self._models.export()),
            **joined("values", self._values.export()),
            **joined("origins", self._origins.export()),
            **joined("withdrawn", exported(self._withdrawn_in_order())),
            **(joined("vouching", self._vouching.export()) if self._vouching is not None else {}),
        }

    @classmethod
    def load(cls, state: Columns, model: Model | None) -> "Detector":
        """The detector that exported `state`; `model` is what `model_in(state)` names, None if it names none.

        `state` may be of an older version of the program. Raises OtherVersionError as `Versions.upgraded` does.
        """
        state = STATES.upgraded(state)
        with of_this_version():
            detector = cls._loaded(state)
            detector._use(model)
        return detector

    @classmethod
    def _loaded(cls, state: Columns) -> "Detector":
        detector = cls()
        detector.seq, detector.line = scalar(state, "seq", int), scalar(state, "line", int)
        detector._received = scalar(state, "received", float)
        detector._closings_at_line = scalar(state, "closings_at_line", int)
        detector._generations = scalar(state, "generations", int)
        detector._restored = scalar(state, "restored", int)
        detector._counters = Counters(**scalars(part("counters", state)))
        detector._schedule = Schedule(**scalars(part("schedule", state)))
        detector._rate = SessionRate(**scalars(part("rate", state)))
        detector._living = LivingSources.load(part("sources", state))
        detector._clock = LogClock.load(part("clock", state))
        detector._templates = TemplateTable.load(part("templates", state))
        detector._sessions = SessionTable.load(part("sessions", state))
        detector._history = History.load(part("history", state))
        detector._recent = RecentLines.load(part("recent", state))
        detector._known = KnownCauses.load(part("known", state))
        detector._incidents = Incidents.load(part("incidents", state))
        detector._models = Generations.load(part("models", state))
        detector._values = ValueModel.load(part("values", state))
        detector._origins = SourceCounters.load(part("origins", state))
        detector._withdrawn = {each.member: each for each in loaded(part("withdrawn", state))}
        vouching = part("vouching", state)
        detector._vouching = Vouching.load(vouching) if vouching else None
        detector._set(
            msgspec.json.decode(scalar(state, "settings", bytes), type=DetectionSettings),
            msgspec.json.decode(scalar(state, "rules", bytes), type=tuple[RuleText, ...]),
        )
        detector.model = model_in(state)
        return detector


# Compiling takes a tenth of a second, and a state that is loaded, or reloaded, mostly has the same rules.
_compiled = lru_cache(maxsize=4)(RuleSet.compile)


def model_in(state: Columns) -> ModelFrame:
    """Which model was in force in `state`, which is of this version; its name is empty when none was."""
    return msgspec.json.decode(scalar(state, "model", bytes), type=ModelFrame)
