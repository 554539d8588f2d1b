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
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.causes.fingerprints import hit_causes
from detection.causes.known import Answer
from detection.columns.state import Columns, State, of_this_version
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
from detection.learning.schedule import Progress
from detection.learning.vouched import VouchedFile
from detection.members.failing import MemberError, asked
from detection.members.origins.counters import SourceCounters
from detection.members.parameter_values import ValueModel
from detection.members.registry import NAMES
from detection.models.model import Model
from detection.models.training_set import TrainingSet
from detection.parts import Parts
from detection.rules.engine import Hits, RuleSet
from detection.scoring.calibration import alpha_for
from detection.scoring.ensemble import Ensemble, members_of, resting
from detection.scoring.judging import Batch, Closings, Judged, closed_as_they_are, judge
from detection.sessions.connections import LivingSource
from detection.sessions.intake import Intake, KeyPattern, Reading, read_lines, take_in
from detection.sessions.table import Cut, cut
from detection.summary import Summary
from detection.templates.table import TemplateTable
from detection.verdicts.alerting import Alerting, Lines
from detection.verdicts.query import Query
from detection.verdicts.records import Verdicts, rows_of

CHUNK_LINES = 4096
ONLINE = ("values", "sources")  # members that learn with every line, whether or not there is a model
UPLOAD_GONE_LINES = 5000  # when so many lines came since a vouched one, the rest of the file is not waited for
FEWEST_VALUES = 500  # lines with parameter values, before the model of them is asked: all are odd at first


class Detector:
    """Everything vigild knows. One owner at a time; nothing in here is safe to share between threads."""

    def __init__(self) -> None:
        self._parts = Parts()
        self._rules = _compiled(())
        self._pattern: KeyPattern | None = None
        self._model: Model | None = None
        self._ensemble: Ensemble | None = None  # None without a model, and where no member of it judges

    @property
    def seq(self) -> int:
        """The last frame applied."""
        return self._parts.seq

    @property
    def line(self) -> int:
        """The last line number through it."""
        return self._parts.line

    @property
    def settings(self) -> SettingsFrame:
        return SettingsFrame(self._parts.settings, self._parts.rules)

    @property
    def model(self) -> ModelFrame:
        """Which model was to judge last, whether or not its file is there; no name: none is."""
        return self._parts.model

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
        self._parts.known.admits = not self._parts.schedule.closed(self._parts.settings.learning)
        self._parts.templates.pinned = self._parts.known.templates
        alarms = self._parts.settings.alarms
        # Who says how sure to be, and not how many to see, has no budget.
        per_day = alarms.per_day if alarms.alpha is None else math.inf
        alerting = Alerting(
            self._parts.incidents, self._parts.recent, self._parts.templates, self._ensemble, self._rules,
            None if "sources" in self._parts.withdrawn else self._parts.origins, per_day,
        )  # fmt: skip
        match frame:
            case LinesFrame():
                self._take(frame, alerting)
            case TickFrame():
                self._pass_silence(frame.received, alerting)
            case FlushFrame():
                self._close(self._parts.sessions.all_open(), alerting)
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
        self._parts.seq = item.seq
        self._parts.counters.flagged += alerting.flagged
        return Verdicts(item.seq, self._parts.line, lines, tuple(alerting.batches))

    def skip(self, seq: int, line: int, frame: Frame | None) -> None:
        """Instead of `apply`, for a frame on which it raised: its lines are lost, and counted.

        Only where its sources stand is taken from it, so that the line one of them began in it is whole in the
        end, and nobody sends again what is in the journal. `frame` is None when it could not even be decoded.
        """
        self._lose_before(Sequenced(seq, line, SkipFrame(seq)), 0)
        if isinstance(frame, LinesFrame):
            self._parts.sources.pass_over(frame.segments)
        if isinstance(frame, VouchedFrame) and self._parts.vouching.file is not None:
            self._parts.vouching.file.living.pass_over((frame.segment,))
        self._parts.seq = seq

    def _lose_before(self, item: Sequenced, lines: int) -> None:
        """Count what is missing between the last line and the `lines` of `item`."""
        lost = item.line - lines - self._parts.line
        if item.seq <= self._parts.seq or lost < 0:
            raise ValueError(
                f"frame {item.seq} (line {item.line}) after frame {self._parts.seq} (line {self._parts.line})"
            )
        if lost:
            self._parts.counters.lost_lines += lost
            self._move_to(self._parts.line + lost)

    # --- the kinds of frames ------------------------------------------------------------------------

    def _take(self, frame: LinesFrame, alerting: Alerting) -> None:
        clock = self._parts.clock.now
        intake = take_in(frame.segments, self._parts.sources, self._pattern, clock=clock, received=frame.received)
        if self._parts.clock.timed and frame.segments and all(segment.kind == "plain" for segment in frame.segments):
            # Else it would stand still once the source that brings the times has ended.
            self._pass_by(frame.received)
        self._parts.received = frame.received
        self._parts.counters.cut_lines += intake.cut
        self._parts.counters.unterminated_lines += intake.unterminated
        self._parts.counters.future_lines += intake.future
        reading = read_lines(intake, self._parts.templates.assign, self._rules, without=self._parts.withdrawn)
        self._parts.counters.rule_hits += len(reading.hits.lines)
        hits = self._parts.known.without_normal(self._rules, reading.hits, reading.ids)
        odd = reading.odd_values(self._grown_values())
        clean = np.ones(len(reading.ids), dtype=np.bool_)
        for start in range(0, len(reading.ids), CHUNK_LINES):
            chunk = slice(start, start + CHUNK_LINES)
            clean[chunk] = self._judge_lines(intake, reading, hits, odd, chunk, frame.received, alerting)
        self._learn_values(reading, clean)
        finished = [slot for key in intake.ended if (slot := self._parts.sessions.find(key)) is not None]
        self._close(np.array(finished, dtype=np.int64), alerting)

    def _pass_silence(self, received: float, alerting: Alerting) -> None:
        self._pass_by(received)
        self._parts.received = received
        now = received if math.isnan(self._parts.clock.now) else self._parts.clock.now
        self._close(self._parts.sessions.silent(now, self._parts.settings.session.idle_seconds), alerting)

    def _pass_by(self, received: float) -> None:
        if not math.isnan(self._parts.received):
            self._parts.clock.pass_silence(received - self._parts.received)

    def _install(self, seq: int, frame: ModelFrame, model: Model | None, without: Mapping[str, str]) -> None:
        """Let `model` judge from here on, all its members but those `without`; without a model (withdrawn, or its file
        is lost) only rules are left."""
        self._parts.model = ModelFrame(frame.generation, frame.name, frame.sha256)
        self._have_studied(frame.studied)
        if frame.studied is None and model is not None and frame.generation > self._parts.generations:
            self._parts.schedule.trained_at -= max(self._parts.line - model.line, 0)  # what came while it was trained
        self._parts.generations = max(self._parts.generations, frame.generation)
        self._parts.withdrawn.bring_all_back()
        self._use(model, seq, without)
        self._parts.schedule.fulfilled |= self._has_all_members()
        self._parts.history.set_mark()
        members = members_of(model) if model is not None else ()
        if frame.name:
            self._parts.models.took_effect(frame.generation, frame.name, self._parts.line, members)
        self._forget_judgements()

    def _refuse(self, frame: RefusedFrame) -> None:
        self._parts.generations = max(self._parts.generations, frame.generation)
        self._have_studied(frame.studied)
        self._parts.models.was_refused(frame.generation, frame.name, self._parts.line, frame.reason)

    def _have_studied(self, studied: Studied | None) -> None:
        self._parts.schedule.studied(
            studied or Studied(self._parts.seq, self._parts.learned, self._parts.known.admissions), self._parts.learned
        )

    def _use(self, model: Model | None, seq: int = 0, without: Mapping[str, str] = {}) -> None:
        self._model = model
        self._withdraw(seq, without)
        self._assemble()
        if model is not None and not len(self._parts.templates):
            self._parts.templates = TemplateTable.load(model.templates)

    # --- members that failed ------------------------------------------------------------------------

    def _withdraw(self, seq: int, without: Mapping[str, str]) -> None:
        there = members_of(self._model) if self._model is not None else ()
        self._parts.withdrawn.withdraw(seq, without, {*ONLINE, *there})

    def _assemble(self) -> None:
        """Let those members of the model judge that are not withdrawn."""
        self._ensemble = None  # the old one's memory first: each holds some 80 MB
        ensemble = Ensemble(self._model, self._parts.withdrawn) if self._model is not None else None
        self._ensemble = ensemble if ensemble is not None and ensemble.members else None

    def _judge_anew(self) -> None:
        """Let open sessions be what they are by the members that judge now.

        As if those withdrawn had not been ready when they began; a member that comes back has nothing to say of them
        yet. What known causes explained of a session before, they still explain. With rules alone it is as after a
        change of models. What was flagged stays flagged.
        """
        table = self._parts.sessions.column
        for name in self._parts.withdrawn:
            table["reached"][:, NAMES.index(name)] = 0.0
        judged = np.flatnonzero(self._parts.sessions.open & ~np.isnan(table["p"]))
        if self._ensemble is None:
            self._forget_judgements()
        elif len(judged):
            judgement = self._ensemble.judge(table["reached"][judged])
            table["strangeness"][judged], table["p"][judged] = judgement.strangeness, judgement.p
            excused = table["excused"][judged]
            table["excused"][judged] = np.where(excused > 0.0, np.minimum(excused, judgement.p), 0.0)

    def _bring_back(self, seq: int, members: Collection[str], without: Mapping[str, str]) -> None:
        """Let those of these members judge again that are not to be left out from this very frame on."""
        self._parts.withdrawn.bring_back(members)
        self._withdraw(seq, without)
        self._assemble()
        self._judge_anew()

    def _forget_judgements(self) -> None:
        """What was measured by another model, of every open session."""
        for name in ("reached", "strangeness", "muted", "excused", "novel"):
            self._parts.sessions.column[name][:] = 0
        self._parts.sessions.column["p"][:] = np.nan

    def _hear(self, frame: FeedbackFrame) -> None:
        if frame.answer == "undo":
            self._parts.known.undo(frame.alert)
        else:
            self._parts.known.answer(
                Answer(
                    alert=frame.alert,
                    cause=frame.cause,
                    kind=frame.kind,
                    what=frame.what,
                    normal=frame.answer == "normal",
                    note=frame.note,
                    line=self._parts.line,
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
        self._close(self._parts.sessions.all_open(), alerting)
        self._parts.restored = seq
        if knowledge is None:
            return
        then = Parts.load(knowledge.state)
        if knowledge.model is not None and not len(then.templates):
            then.templates = TemplateTable.load(knowledge.model.templates)
        self._parts.restore(seq, then)
        self._parts.withdrawn.bring_all_back()
        self._use(knowledge.model, seq, without)

    def _adopt(self, frame: SettingsFrame, alerting: Alerting) -> None:
        if frame.settings.session != self._parts.settings.session:
            self._close(self._parts.sessions.all_open(), alerting)
        self._parts.settings, self._parts.rules = frame.settings, frame.rules
        self._compile()

    def _compile(self) -> None:
        key = self._parts.settings.session.key
        self._rules = _compiled(self._parts.rules)
        self._pattern = None if key == "auto" else KeyPattern(key)

    # --- vouched lines ------------------------------------------------------------------------------

    def _vouch(self, seq: int, frame: VouchedFrame) -> None:
        """Learn from the lines of `frame`, but not from sessions in which a rule matched; say nothing of them."""
        if self._parts.vouching.file is None:
            self._parts.vouching.file = VouchedFile(self._parts.counters.vouched_sessions)
        vouching, clock = self._parts.vouching.file, self._parts.vouching.file.clock
        vouching.at_line = self._parts.line
        segments: tuple[Segment, ...] = (frame.segment,)
        intake = take_in(segments, vouching.living, self._pattern, clock=clock.now, received=frame.received)
        reading = read_lines(intake, self._parts.templates.assign, self._rules, without=self._parts.withdrawn)
        hits = self._parts.known.without_normal(self._rules, reading.hits, reading.ids)
        odd, n = reading.odd_values(self._grown_values()), len(reading.ids)
        confidence = self._rules.confidences(hits, n)
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
        self._parts.counters.future_lines += intake.future
        self._parts.counters.vouched_lines += n
        self._parts.counters.vouched_rule_hits += int(np.count_nonzero(confidence))
        if frame.done:
            self._end_vouching(seq)
        self._parts.counters.vouched_sessions = vouching.begun

    def _judge_vouched(
        self, batch: Batch, keys: Sequence[bytes], windowed: Sequence[bool], events: NDArray[np.float64]
    ) -> None:
        assert self._parts.vouching.file is not None
        sessions, session = self._parts.vouching.file.sessions, self._parts.settings.session
        slots = sessions.slots_for(keys, windowed)
        ending = None if len(batch.ids) else self._parts.vouching.file.sessions.all_open()
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
        judge(sessions, self._parts.history, None, self._parts.known, 0.0, batch, pieces, closing_flags=VOUCHED)

    def _end_vouching(self, seq: int) -> None:
        assert self._parts.vouching.file is not None
        self._judge_vouched(Batch.empty(1), [], [], np.zeros(0))
        if self._parts.line == 0:
            self._parts.origins = (
                self._parts.vouching.file.counters
            )  # of a stream that has not begun these are all there is
        self._parts.counters.vouched_sessions = self._parts.vouching.file.begun
        self._parts.vouching.file = None
        self._parts.schedule.vouched_at = seq

    # --- lines and closings -------------------------------------------------------------------------

    def _learn_values(self, reading: Reading, clean: NDArray[np.bool_]) -> None:
        with asked("values"):
            reading.learn_values(self._parts.values, clean)
        self._parts.counters.value_lines += sum(len(np.unique(v.lines)) for _, v in reading.values)

    def _grown_values(self) -> ValueModel | None:
        """None while it has learned too little to be asked, or is withdrawn."""
        grown = self._parts.counters.value_lines >= FEWEST_VALUES and "values" not in self._parts.withdrawn
        return self._parts.values if grown else None

    def _observed(
        self, counters: SourceCounters, reading: Reading, chunk: slice, clock: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """What the sources of these lines do, and count it; zeros while that is withdrawn."""
        if "sources" in self._parts.withdrawn:
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
        first_line, n = self._parts.line + 1, len(texts)
        before = self._parts.clock.now
        clock = self._parts.clock.advance(times, received)
        if clock[0] < before:
            self._parts.sessions.bring_back(float(clock[0]))
            self._parts.incidents.bring_back(float(clock[0]))
        crowded = self._parts.sessions.crowded_out_by(keys)
        crowded_out = closed_as_they_are(self._parts.sessions, crowded, first_line)
        self._parts.sessions.evict(crowded)
        low, high = np.searchsorted(hits.lines, [chunk.start, chunk.start + n])
        hits = Hits(lines=hits.lines[low:high] - chunk.start, rules=hits.rules[low:high])
        batch = Batch(
            first_line=first_line,
            ids=reading.ids[chunk],
            errors=intake.errors[chunk],
            clock=clock,
            hit=self._rules.confidences(hits, n),
            values=odd[chunk],
            sources=self._observed(self._parts.origins, reading, chunk, clock),
            origins=reading.origins[chunk],
        )
        pieces = cut(
            self._parts.sessions,
            self._parts.sessions.slots_for(keys, intake.windowed[chunk]),
            clock,
            np.fmin(times, clock),  # a line from the future is one of now, a line without a time too
            idle_seconds=self._parts.settings.session.idle_seconds,
            window=self._parts.settings.session.window,
        )
        alpha, _ = self.alpha()
        judged = self._judged(alpha, batch, pieces)
        judged = replace(judged, closings=judged.closings.and_also(crowded_out))
        self._parts.recent.append(first_line, texts, judged.states.serial)
        self._move_to(first_line + n - 1)
        shown_times = np.where(np.isnan(times), clock, times)
        self._say(batch, judged, shown_times, texts, hits, alpha, alerting, reading, chunk.start)
        clean: NDArray[np.bool_] = (batch.hit == 0.0) & (judged.states.verdict == 0)
        return clean

    def _judged(self, alpha: float, batch: Batch, pieces: Cut) -> Judged:
        lessons, counts = self._lessons(), self._has_all_members()
        return judge(
            self._parts.sessions, lessons, self._ensemble, self._parts.known, alpha, batch, pieces, flags_count=counts
        )

    def _close(self, slots: NDArray[np.int64], alerting: Alerting) -> None:
        """End these sessions now: keyed ones are scored as ended, windows close as they are."""
        if not len(slots):
            return
        windowed = self._parts.sessions.column["windowed"][slots]
        as_they_are = closed_as_they_are(self._parts.sessions, slots[windowed], self._parts.line)
        self._parts.sessions.release(slots[windowed])
        batch = Batch.empty(self._parts.line)
        pieces = cut(
            self._parts.sessions,
            np.zeros(0, dtype=np.int64),
            batch.clock,
            batch.clock,
            idle_seconds=self._parts.settings.session.idle_seconds,
            window=self._parts.settings.session.window,
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
            lines, of_rules = hit_causes(self._rules, hits, batch.ids)
            causes[lines] = of_rules
        rows = rows_of(
            batch, judged.states, closings, alpha, self._number(closings), times,
            texts + self._texts_of(closings), hits, causes, rules, self._parts.templates, self._ensemble,
        )  # fmt: skip
        alerting.add(rows, judged, alpha, None if reading is None else Lines(reading, start, self._grown_values()))

    def _move_to(self, line: int) -> None:
        if line != self._parts.line:
            self._parts.line, self._parts.closings_at_line = line, 0

    def _number(self, closings: Closings) -> NDArray[np.int64]:
        """The k of each closing's id, counted from 1 at each line; at the current line, on from the last."""
        line = closings.line
        k = np.arange(1, len(line) + 1) - np.searchsorted(line, line, side="left")
        here = line == self._parts.line
        k[here] += self._parts.closings_at_line
        self._parts.closings_at_line += int(here.sum())
        self._parts.counters.sessions += len(line)
        if not math.isnan(self._parts.clock.now):
            self._parts.rate.observe(len(line), self._parts.clock.now)
        return k

    def _texts_of(self, closings: Closings) -> list[bytes]:
        return [self._parts.recent.text(line) or b"" for line in closings.worst_line.tolist()]

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
                return self._query(failed).answers(lines, session, explain)
            except MemberError as exc:
                if exc.member in failed:
                    raise
                failed[exc.member] = exc.reason
                failed |= resting(failed)

    def _query(self, failed: Mapping[str, str]) -> Query:
        """A question to all members that judge but those that just `failed`."""
        ensemble = self._ensemble.without(failed) if self._ensemble is not None and failed else self._ensemble
        out = {*self._parts.withdrawn, *failed}
        return Query(
            self._parts.templates, self._rules, self._parts.sessions,
            ensemble if ensemble is not None and ensemble.members else None,
            self._pattern, self._parts.known, self._parts.recent,
            None if "values" in out else self._grown_values(), None if "sources" in out else self._parts.origins,
            self._parts.settings, self.alpha()[0], self._parts.line, self._parts.clock,
            self._parts.received, failed,
        )  # fmt: skip

    def incidents(self, limit: int) -> list[dict[str, Any]]:
        """The last `limit` incidents, newest first."""
        return self._parts.incidents.listing(limit, self._parts.clock.now)

    def answers(self) -> list[dict[str, Any]]:
        """The operator's answers that are in force, oldest first."""
        return [answer.as_dict() for answer in self._parts.known.answers()]

    def has_template(self, template: int) -> bool:
        """Whether a line can still be of that template; what came in its place after it was evicted is another."""
        return template in self._parts.templates

    def generations(self) -> list[dict[str, Any]]:
        """What became of each generation of models, newest first."""
        return self._parts.models.listing(self._parts.model.name)

    def alpha(self) -> tuple[float, bool]:
        """The level sessions are tested at, and whether it is the floor that calibration sets."""
        if self._model is None:
            return 0.0, False
        alarms, calibration = self._parts.settings.alarms, len(self._model.rings["ensemble"])
        if alarms.alpha is not None:
            floor = 5.0 / max(calibration, 5)
            return max(alarms.alpha, floor), alarms.alpha < floor
        return alpha_for(alarms.per_day, self._parts.rate.per_day(), calibration)

    def training_set(self) -> TrainingSet:
        """What the next generation is to learn from; a copy."""
        found = self._parts.history.sequences()
        bad, flagged = bad_and_flagged(found, self._parts.known)
        generation = self._parts.generations + 1
        return TrainingSet(
            generation=generation,
            line=self._parts.line,
            seed=generation,
            full=self._parts.learned >= self._parts.settings.learning.warmup_lines or self._parts.schedule.fulfilled,
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
            templates=self._parts.templates.export(),
            previous=self._model,
            studied=Studied(self._parts.seq, self._parts.learned, self._parts.known.admissions),
        )

    def _lessons(self) -> History | None:
        """Where the stream is remembered for the next training; None while nothing more is to be learned from it.

        What was there when that began stays, so that a vouched file adds to it, and a model that is lost comes again.
        """
        closed = self._model is not None and self._parts.schedule.closed(self._parts.settings.learning)
        return None if closed else self._parts.history

    def _has_all_members(self) -> bool:
        """Whether the model in force has the members that learn from the whole warm-up; they may be withdrawn."""
        return self._model is not None and "transformer" in members_of(self._model)

    def _progress(self) -> Progress:
        vouching = self._parts.vouching.file
        return Progress(
            learned=self._parts.learned,
            admissions=self._parts.known.admissions,
            has_model=self._model is not None,
            complete=self._has_all_members(),
            uploading=vouching is not None and self._parts.line - vouching.at_line < UPLOAD_GONE_LINES,
        )

    def living_sources(self) -> list[LivingSource]:
        """Sources that have sent something and have not ended, by name."""
        return self._parts.sources.sources()

    def failing(self) -> bool:
        """Whether a member that is to judge could not be loaded: the next frame, of whatever kind, will say which."""
        try:
            if self._ensemble is not None:
                self._ensemble.check()
        except MemberError:
            return True
        return False

    def summary(self) -> Summary:
        parts, ensemble, model = self._parts, self._ensemble, self._model
        learning, counters = parts.settings.learning, parts.counters
        alpha, floor_binding = self.alpha()
        progress, now = self._progress(), parts.clock.now
        return Summary(
            seq=parts.seq,
            line=parts.line,
            log_time=None if math.isnan(now) else now,
            warmup_lines=learning.warmup_lines,
            lines_since_training=parts.learned - self._parts.schedule.trained_at,
            training_due=parts.schedule.due(learning, progress),
            training_urgent=parts.schedule.urgent(learning, progress),
            generation=model.generation if model else 0,
            model_line=model.line if model else 0,
            members=ensemble.members if ensemble else (),
            unfitted=tuple(model.unfitted.items()) if model else (),
            withdrawn=tuple(parts.withdrawn.entries()),
            templates=len(parts.templates),
            templates_created=parts.templates.created,
            templates_evicted=parts.templates.evicted,
            vocabulary=len(model.vocabulary) if model else 0,
            sessions_open=len(parts.sessions),
            sessions_closed=counters.sessions,
            sessions_evicted=parts.sessions.evicted,
            sources_evicted=parts.origins.evicted,
            history_sessions=parts.history.closed,
            history_rows=len(parts.history),
            rules=len(self._rules.rules),
            rule_hits=counters.rule_hits,
            flagged=counters.flagged,
            cut_lines=counters.cut_lines,
            unterminated_lines=counters.unterminated_lines,
            future_lines=counters.future_lines,
            lost_lines=counters.lost_lines,
            alpha=alpha,
            floor_binding=floor_binding,
            sessions_per_day=parts.rate.per_day(),
            calibration=len(model.rings["ensemble"]) if model else 0,
            restored=parts.restored,
            incidents_opened=parts.incidents.opened,
            incidents_open=parts.incidents.open_count(now),
            incidents_digest=parts.incidents.digested,
            incidents_evicted=parts.incidents.evicted,
            answers=len(parts.known.answers()),
            answers_dropped=parts.known.answers_dropped,
            admitted=parts.known.admitted,
            admitted_dropped=parts.known.admitted_dropped,
            models_refused=parts.models.refused,
            refusal=parts.models.refusal,
            vouched_lines=counters.vouched_lines,
            vouched_rule_hits=counters.vouched_rule_hits,
            vouched_sessions=counters.vouched_sessions,
            vouched_waiting=parts.schedule.vouched_at > 0,
        )

    # --- the state as columns -----------------------------------------------------------------------

    def export(self) -> State:
        """A copy of everything, as plain columns; `load` makes a detector of it that is this one."""
        return self._parts.export()

    @classmethod
    def load(cls, state: Columns, model: Model | None) -> "Detector":
        """The detector that exported `state`; `model` is what `model_in(state)` names, None if it names none.

        `state` may be of an older version of the program. Raises OtherVersionError as `Versions.upgraded` does.
        """
        detector = cls()
        detector._parts = Parts.load(state)
        with of_this_version():
            detector._compile()
            detector._use(model)
        return detector


# Compiling takes a tenth of a second, and a state that is loaded, or reloaded, mostly has the same rules.
_compiled = lru_cache(maxsize=4)(RuleSet.compile)
