"""The detector: the state, and the one function that changes it.

`apply` is deterministic: no clock but the log's, no randomness, no I/O. Two detectors that applied the
same frames hold the same state bit for bit, whatever their caches held and wherever they were exported
and loaded in between.

A member that raises makes `apply` raise a `MemberError` that names it. The caller applies the frame again, to the state
from before it, `without` that member: it is *withdrawn*. From that frame on it is not called, and open sessions are
judged by the other members, as if it had not been ready. Which members are withdrawn, since when and why is part of the
state, so the state is the same wherever the frames are applied, whether or not the member works there.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.causes.fingerprints import hit_causes
from detection.causes.known_causes import OperatorAnswer
from detection.columns.state_columns import Columns, State, of_this_version
from detection.detector_state import Parts
from detection.frame_reading import FrameReader, ShownLines
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
    Sequenced,
    SettingsFrame,
    SkipFrame,
    TickFrame,
    VouchedFrame,
    WithdrawnFrame,
    count_lines,
)
from detection.learning.vouched_lines import Taught
from detection.members.failing_members import MemberError
from detection.members.registry import ONLINE_NAMES
from detection.models.model import Model
from detection.models.training_set import TrainingCutoff, TrainingSet
from detection.next_training import history_of_stream, learned_so_far, training_cutoff, training_set
from detection.scoring.batch import Batch, Closings, Judged
from detection.scoring.calibration import level_of
from detection.scoring.ensemble import Ensemble, members_of, members_resting
from detection.scoring.judging import Recording, closed_as_they_are, judge_batch
from detection.scoring.lines_read import LinesRead
from detection.scoring.withdrawn_members import forget_judgements, judge_anew
from detection.sessions.living_sources import LivingSource
from detection.sessions.session_table import Cut, cut_into_pieces
from detection.summary import Summary, summary_of
from detection.templates.table import TemplateTable
from detection.verdicts.alerting import Alerting
from detection.verdicts.line_query import Query
from detection.verdicts.verdict_records import Verdicts, verdict_rows_of


class Detector:
    """Everything vigild knows. One owner at a time; nothing in here is safe to share between threads."""

    def __init__(self) -> None:
        self._parts = Parts()
        self._reader = FrameReader.of(self._parts.settings, self._parts.rules)
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
        self._count_lines_lost_before(item, lines)
        if item.without:
            self._withdraw_members(item.seq, item.without)
            self._assemble_ensemble()
            judge_anew(self._parts.sessions, self._ensemble, self._parts.withdrawn)
        self._parts.known.admits = not self._parts.schedule.learning_ended(self._parts.settings.learning)
        self._parts.templates.pinned = self._parts.known.templates
        alerting = self._alerting_for_frame()
        match frame:
            case LinesFrame():
                self._judge_frame(frame, alerting)
            case TickFrame():
                self._pass_silence(frame.received, alerting)
            case FlushFrame():
                self._close_sessions(self._parts.sessions.all_open(), alerting)
            case ModelFrame():
                self._put_model_in_force(item.seq, frame, item.model, item.without)
            case SettingsFrame():
                self._apply_settings(frame, alerting)
            case RestoreFrame():
                self._restore_knowledge(item.seq, item.knowledge, item.without, alerting)
            case FeedbackFrame():
                self._apply_feedback(frame)
            case VouchedFrame():
                self._learn_vouched(item.seq, frame)
            case RefusedFrame():
                self._note_model_refusal(frame)
            case ReturnedFrame():
                self._bring_back_members(item.seq, frame.members, item.without)
            case SkipFrame() | WithdrawnFrame():
                pass
        if self._ensemble is not None:
            self._ensemble.check()
        self._parts.seq = item.seq
        self._parts.counters.flagged += alerting.flagged
        counts = alerting.counting_records(
            self._parts.line,
            self._parts.closings_at_line,
            self._parts.clock.now,
            everything=isinstance(frame, FlushFrame),
        )
        return Verdicts(item.seq, self._parts.line, lines, tuple(alerting.batches), counts)

    def skip(self, seq: int, line: int, frame: Frame | None) -> None:
        """Instead of `apply`, for a frame on which it raised: its lines are lost, and counted.

        Only the positions of its sources are taken from it, so that a line begun in it can be completed, and no sender
        repeats what is in the journal. `frame` is None when it could not even be decoded.
        """
        self._count_lines_lost_before(Sequenced(seq, line, SkipFrame(seq)), 0)
        if isinstance(frame, LinesFrame):
            self._parts.sources.pass_over(frame.segments)
        if isinstance(frame, VouchedFrame) and self._parts.vouching.file is not None:
            self._parts.vouching.file.living.pass_over((frame.segment,))
        self._parts.seq = seq

    def _count_lines_lost_before(self, item: Sequenced, lines: int) -> None:
        """Count what is missing between the last line and the `lines` of `item`."""
        lost = item.line - lines - self._parts.line
        if item.seq <= self._parts.seq or lost < 0:
            raise ValueError(
                f"frame {item.seq} (line {item.line}) after frame {self._parts.seq} (line {self._parts.line})"
            )
        if lost:
            self._parts.counters.lost_lines += lost
            self._move_to_line(self._parts.line + lost)

    def _alerting_for_frame(self) -> Alerting:
        parts, alarms = self._parts, self._parts.settings.alarms
        return Alerting(
            parts.incidents, parts.recent, parts.templates, self._ensemble, self._reader.rules,
            parts.online.without(parts.withdrawn),
            alarms.per_day if alarms.alpha is None else math.inf,  # with `alpha` set there is no budget
        )  # fmt: skip

    # --- the kinds of frames ------------------------------------------------------------------------

    def _judge_frame(self, frame: LinesFrame, alerting: Alerting) -> None:
        parts, counters = self._parts, self._parts.counters
        lines = self._reader.read(parts, frame.segments, parts.sources, parts.clock.now, frame.received)
        if parts.clock.timed and frame.segments and all(segment.kind == "plain" for segment in frame.segments):
            # Otherwise the clock would stop once the source whose lines have times has ended.
            parts.pass_silence(frame.received)
        parts.received = frame.received
        counters.cut_lines += lines.intake.cut
        counters.unterminated_lines += lines.intake.unterminated
        counters.future_lines += lines.intake.future
        counters.rule_hits += len(lines.parsed.hits.lines)
        clean = np.ones(len(lines), dtype=np.bool_)
        for chunk in lines.chunks():
            clean[chunk] = self._judge_chunk(lines, chunk, frame.received, alerting)
        parts.online.learn(lines.read, clean)  # only now is it known which lines are clean
        finished = [slot for key in lines.intake.ended if (slot := parts.sessions.find(key)) is not None]
        self._close_sessions(np.array(finished, dtype=np.int64), alerting)

    def _learn_vouched(self, seq: int, frame: VouchedFrame) -> None:
        """Learn from the lines of `frame`, but not from sessions in which a rule matched; nothing is emitted."""
        parts, counters = self._parts, self._parts.counters
        file = parts.vouching.open_file(parts.line, counters.vouched_sessions)
        into = Taught(parts.history, parts.known, parts.settings.session)
        lines = self._reader.read(parts, (frame.segment,), file.living, file.clock.now, frame.received)
        online = parts.online.with_those_of(file.online)
        for chunk in lines.chunks():
            times = lines.intake.times[chunk]
            clock = file.advance(times, frame.received)
            batch = lines.batch(chunk, 1, clock, online.observe(lines.read, chunk, clock))
            file.learn(batch, lines.intake.keys[chunk], lines.intake.windowed[chunk], times, into)
        online.learn(lines.read, lines.hit == 0.0)
        counters.future_lines += lines.intake.future
        counters.vouched_lines += len(lines)
        counters.vouched_rule_hits += int(np.count_nonzero(lines.hit))
        if frame.done:
            file.end(into)
            if parts.line == 0:
                parts.online = online  # of a stream that has not begun these are all there is
            parts.vouching.file, parts.schedule.vouched_at = None, seq
        counters.vouched_sessions = file.begun

    def _pass_silence(self, received: float, alerting: Alerting) -> None:
        parts = self._parts
        parts.pass_silence(received)
        now = received if math.isnan(parts.clock.now) else parts.clock.now
        self._close_sessions(parts.sessions.silent_sessions(now, parts.settings.session.idle_seconds), alerting)

    def _put_model_in_force(self, seq: int, frame: ModelFrame, model: Model | None, without: Mapping[str, str]) -> None:
        """Let `model` judge from here on, all its members but those `without`; without a model (withdrawn, or its file
        is lost) only rules are left."""
        self._parts.model = ModelFrame(frame.generation, frame.name, frame.sha256)
        self._note_training_cutoff(frame.studied)
        if frame.studied is None and model is not None and frame.generation > self._parts.generations:
            self._parts.schedule.trained_at -= max(self._parts.line - model.line, 0)  # what came while it was trained
        self._parts.generations = max(self._parts.generations, frame.generation)
        self._parts.withdrawn.bring_all_back()
        self._use_model(model, seq, without)
        self._parts.schedule.fulfilled |= model is not None and model.complete
        self._parts.history.set_mark()
        members = members_of(model) if model is not None else ()
        if frame.name:
            self._parts.models.took_effect(frame.generation, frame.name, self._parts.line, members)
        forget_judgements(self._parts.sessions)

    def _note_model_refusal(self, frame: RefusedFrame) -> None:
        self._parts.generations = max(self._parts.generations, frame.generation)
        self._note_training_cutoff(frame.studied)
        self._parts.models.was_refused(frame.generation, frame.name, self._parts.line, frame.reason)

    def _note_training_cutoff(self, until: TrainingCutoff | None) -> None:
        self._parts.schedule.note_training(until or training_cutoff(self._parts), self._parts.learned)

    def _use_model(self, model: Model | None, seq: int = 0, without: Mapping[str, str] = {}) -> None:
        self._model = model
        self._withdraw_members(seq, without)
        self._assemble_ensemble()
        if model is not None and not len(self._parts.templates):
            self._parts.templates = TemplateTable.load(model.templates)

    def _apply_feedback(self, frame: FeedbackFrame) -> None:
        if frame.answer == "undo":
            self._parts.known.undo(frame.alert)
        else:
            self._parts.known.answer(OperatorAnswer.of(frame, self._parts.line))

    def _restore_knowledge(
        self, seq: int, knowledge: Knowledge | None, without: Mapping[str, str], alerting: Alerting
    ) -> None:
        """Bring back the `knowledge` of a snapshot: templates, model, training buffer, answers, rate of sessions.

        Open sessions end here, judged by the state before the restore; those that were open in the snapshot are not
        reopened, as they have ended since. Settings, rules, the clock, incidents, the texts of the last lines and all
        counts describe the present and stay. Ids of templates and generations of models are not reused. All members
        judge again except those `without`. Without `knowledge` (its snapshot is lost) only the sessions end.
        """
        self._close_sessions(self._parts.sessions.all_open(), alerting)
        self._parts.restored = seq
        if knowledge is None:
            return
        then = Parts.load(knowledge.state)
        if knowledge.model is not None and not len(then.templates):
            then.templates = TemplateTable.load(knowledge.model.templates)
        self._parts.restore(seq, then)
        self._parts.withdrawn.bring_all_back()
        self._use_model(knowledge.model, seq, without)

    def _apply_settings(self, frame: SettingsFrame, alerting: Alerting) -> None:
        if frame.settings.session != self._parts.settings.session:
            self._close_sessions(self._parts.sessions.all_open(), alerting)
        self._parts.settings, self._parts.rules = frame.settings, frame.rules
        self._reader = FrameReader.of(frame.settings, frame.rules)

    # --- members that failed ------------------------------------------------------------------------

    def _withdraw_members(self, seq: int, without: Mapping[str, str]) -> None:
        there = members_of(self._model) if self._model is not None else ()
        self._parts.withdrawn.withdraw(seq, without, {*ONLINE_NAMES, *there})

    def _assemble_ensemble(self) -> None:
        """Let those members of the model judge that are not withdrawn."""
        self._ensemble = None  # the old one's memory first: each holds some 80 MB
        ensemble = Ensemble(self._model, self._parts.withdrawn) if self._model is not None else None
        self._ensemble = ensemble if ensemble is not None and ensemble.members else None

    def _bring_back_members(self, seq: int, members: Collection[str], without: Mapping[str, str]) -> None:
        """Let those of these members judge again that are not to be left out from this very frame on."""
        self._parts.withdrawn.bring_back(members)
        self._withdraw_members(seq, without)
        self._assemble_ensemble()
        judge_anew(self._parts.sessions, self._ensemble, self._parts.withdrawn)

    # --- lines and closings -------------------------------------------------------------------------

    def _judge_chunk(self, lines: LinesRead, chunk: slice, received: float, alerting: Alerting) -> NDArray[np.bool_]:
        """Which of the lines are clean: no rule matched, and their sessions are not flagged."""
        parts, sessions, session = self._parts, self._parts.sessions, self._parts.settings.session
        keys, texts, times = lines.intake.keys[chunk], lines.intake.lines[chunk], lines.intake.times[chunk]
        first_line, before = parts.line + 1, parts.clock.now
        clock = parts.clock.advance(times, received)
        if clock[0] < before:
            sessions.bring_back_to_time(float(clock[0]))
            parts.incidents.bring_back_to_time(float(clock[0]))
        crowded = sessions.sessions_crowded_out_by(keys)
        crowded_out = closed_as_they_are(sessions, crowded, first_line)
        sessions.evict(crowded)
        batch = lines.batch(chunk, first_line, clock, parts.online.observe(lines.read, chunk, clock))
        pieces = cut_into_pieces(
            sessions,
            sessions.slots_for(keys, lines.intake.windowed[chunk]),
            clock,
            np.fmin(times, clock),  # a line from the future is one of now, a line without a time too
            idle_seconds=session.idle_seconds,
            window=session.window,
        )
        alpha, _ = self.alpha()
        judged = self._judge_batch(alpha, batch, pieces, crowded_out)
        parts.recent.append(first_line, texts, judged.states.serial)
        self._move_to_line(first_line + len(texts) - 1)
        self._emit_verdicts(batch, judged, alpha, ShownLines.of_chunk(lines, chunk, clock), alerting)
        clean: NDArray[np.bool_] = (batch.hit == 0.0) & (judged.states.verdict == 0)
        return clean

    def _judge_batch(self, alpha: float, batch: Batch, pieces: Cut, more: Closings) -> Judged:
        """The batch, and `more` that closes with it."""
        parts, model, recording = self._parts, self._model, None
        if (history := history_of_stream(parts, model)) is not None:
            recording = Recording(history, flags_count=model is not None and model.complete)
        judged = judge_batch(parts.sessions, self._ensemble, parts.known, alpha, batch, pieces, recording)
        return replace(judged, closings=judged.closings.and_also(more))

    def _close_sessions(self, slots: NDArray[np.int64], alerting: Alerting) -> None:
        """End these sessions now: keyed ones are scored as ended, windows close as they are."""
        if not len(slots):
            return
        parts, sessions, session = self._parts, self._parts.sessions, self._parts.settings.session
        windowed = sessions.column["windowed"][slots]
        as_they_are = closed_as_they_are(sessions, slots[windowed], parts.line)
        sessions.release(slots[windowed])
        batch = Batch.empty(parts.line)
        pieces = cut_into_pieces(
            sessions,
            np.zeros(0, dtype=np.int64),
            batch.clock,
            batch.clock,
            idle_seconds=session.idle_seconds,
            window=session.window,
            ending=slots[~windowed],
        )
        alpha, _ = self.alpha()
        judged = self._judge_batch(alpha, batch, pieces, as_they_are)
        self._emit_verdicts(batch, judged, alpha, ShownLines.nothing(), alerting)

    def _emit_verdicts(self, batch: Batch, judged: Judged, alpha: float, shown: ShownLines, alerting: Alerting) -> None:
        """Turn a judged batch into verdicts, and what is flagged of it into alerts."""
        closings, hits = judged.closings, shown.hits
        causes = np.zeros(len(batch.ids), dtype=np.uint64)
        if len(hits.lines):
            lines, of_rules = hit_causes(self._reader.rules, hits, batch.ids)
            causes[lines] = of_rules
        texts = shown.texts + [self._parts.recent.text(line) or b"" for line in closings.worst_line.tolist()]
        rows = verdict_rows_of(
            batch, judged.states, closings, alpha, self._number_closings(closings), shown.times, texts, hits, causes,
            self._reader.rules.rules, self._parts.templates, self._ensemble,
        )  # fmt: skip
        alerting.add(rows, judged, alpha, shown.lines)

    def _move_to_line(self, line: int) -> None:
        if line != self._parts.line:
            self._parts.line, self._parts.closings_at_line = line, 0

    def _number_closings(self, closings: Closings) -> NDArray[np.int64]:
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

    # --- queries ------------------------------------------------------------------------------------

    def ask(self, lines: Sequence[bytes], session: str | None, explain: bool = False) -> list[dict[str, Any]]:
        """The contract's answer to /detect for each of `lines`, each on its own, by the state as it is.

        With `session` a line is judged as the next one of that open session; with `explain` each answer gives reasons.
        Changes nothing. A member that fails is left out of these answers, which name it ("failed_models"). That does
        not withdraw it: a query is not a frame, and the next line shows whether the member can judge.
        """
        failed: dict[str, str] = {}
        while True:
            try:
                return self._query_without_failed(failed).answers(lines, session, explain)
            except MemberError as exc:
                if exc.member in failed:
                    raise
                failed[exc.member] = exc.reason
                failed |= members_resting(failed)

    def _query_without_failed(self, failed: Mapping[str, str]) -> Query:
        """A query to all members that judge, except those that just `failed`."""
        ensemble = self._ensemble.without(failed) if self._ensemble is not None and failed else self._ensemble
        out = {*self._parts.withdrawn, *failed}
        return Query(
            self._parts.templates, self._reader.rules, self._parts.sessions,
            ensemble if ensemble is not None and ensemble.members else None,
            self._reader.pattern, self._parts.known, self._parts.recent,
            self._parts.online.without(out),
            self._parts.settings, self.alpha()[0], self._parts.line, self._parts.clock, self._parts.received, failed,
        )  # fmt: skip

    def incidents(self, limit: int) -> list[dict[str, Any]]:
        """The last `limit` incidents, newest first."""
        return self._parts.incidents.listing(limit, self._parts.clock.now)

    def counting_record(self, line: int, k: int) -> dict[str, Any] | None:
        """The counting record under way, without an id, that the alert `line`, `k` is in."""
        counted = self._parts.incidents.under_way((line, k))
        return counted.record(None, 0) if counted is not None else None

    def answers(self) -> list[dict[str, Any]]:
        """The operator's answers that are in force, oldest first."""
        return [answer.as_dict() for answer in self._parts.known.answers()]

    def has_template(self, template: int) -> bool:
        """Whether a line can still get that template: after an eviction the same text gets a new id."""
        return template in self._parts.templates

    def generations(self) -> list[dict[str, Any]]:
        """Each generation of models, newest first: in effect since which line, or refused and why."""
        return self._parts.models.listing(self._parts.model.name)

    def alpha(self) -> tuple[float, bool]:
        """The level sessions are tested at, and whether it is the floor that calibration sets."""
        if self._model is None:
            return 0.0, False
        per_day, calibration = self._parts.rate.per_day(), len(self._model.calibration["ensemble"])
        return level_of(self._parts.settings.alarms, per_day, calibration)

    def training_set(self) -> TrainingSet:
        """The training set of the next generation; a copy."""
        return training_set(self._parts, self._model, self.alpha()[0])

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
        members = self._ensemble.members if self._ensemble is not None else ()
        so_far = learned_so_far(self._parts, self._model)
        return summary_of(self._parts, self._model, members, len(self._reader.rules.rules), so_far, self.alpha())

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
            detector._reader = FrameReader.of(detector._parts.settings, detector._parts.rules)
            detector._use_model(model)
        return detector
