"""The list of the parts of the state; a new detector, `export`, `load` and `restore` all follow it.

The name of a field is the name of its columns in the state. A number is one column; settings are one column of JSON; a
part with many columns has its name as their prefix ("sessions.last_time"). So a new part is one field here, with a
layout and a step in `columns.layout_upgrades`.
"""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_type_hints

import msgspec

from detection.causes.known_causes import KnownCauses
from detection.columns.layout_upgrades import STATES
from detection.columns.state_columns import (
    Columns,
    Scalars,
    State,
    columns_under,
    json_column,
    of_this_version,
    scalar_column,
    with_prefix,
)
from detection.detection_settings import DetectionSettings, RuleText
from detection.frames import ModelFrame
from detection.learning.training_schedule import Schedule
from detection.learning.vouched_lines import VouchedLines
from detection.members.all_online_members import OnlineMembers, online_columns_as_in_states, online_columns_from_states
from detection.models.generation_list import Generations
from detection.scoring.withdrawn_members import WithdrawnMembers
from detection.sessions.history import History
from detection.sessions.living_sources import LivingSources
from detection.sessions.log_clock import LogClock
from detection.sessions.recent_lines import RecentLines
from detection.sessions.session_rate import SessionRate
from detection.sessions.session_table import SessionTable
from detection.templates.table import TemplateTable
from detection.verdicts.incidents import Incidents


@dataclass(slots=True)
class Counters(Scalars):
    """Counts since the state began."""

    cut_lines: int = 0
    unterminated_lines: int = 0
    future_lines: int = 0  # with a time that was not believed
    rule_hits: int = 0
    flagged: int = 0
    sessions: int = 0
    lost_lines: int = 0
    vouched_lines: int = 0
    vouched_rule_hits: int = 0
    vouched_sessions: int = 0


@dataclass(slots=True)
class Parts:
    """Everything that is kept from one frame to the next. What is compiled or built from it belongs to the detector."""

    seq: int = 0
    line: int = 0
    received: float = math.nan  # receive time of the last frame of lines or tick, in seconds since the epoch
    closings_at_line: int = 0  # so that ids of sessions closed at one line never repeat
    generations: int = 0  # the highest that was ever trained
    restored: int = 0  # seq of the last restore
    settings: DetectionSettings = field(default_factory=DetectionSettings)
    rules: tuple[RuleText, ...] = ()
    model: ModelFrame = field(default_factory=lambda: ModelFrame(0, "", ""))  # in force; no name: there is none
    counters: Counters = field(default_factory=Counters)
    schedule: Schedule = field(default_factory=Schedule)
    rate: SessionRate = field(default_factory=SessionRate)
    sources: LivingSources = field(default_factory=LivingSources)  # connections; clients are in `online`
    clock: LogClock = field(default_factory=LogClock)
    templates: TemplateTable = field(default_factory=TemplateTable)
    sessions: SessionTable = field(default_factory=SessionTable)
    history: History = field(default_factory=History)
    recent: RecentLines = field(default_factory=RecentLines)
    known: KnownCauses = field(default_factory=KnownCauses)
    incidents: Incidents = field(default_factory=Incidents)
    models: Generations = field(default_factory=Generations)
    online: OnlineMembers = field(default_factory=OnlineMembers)  # all of them, also those that are withdrawn
    withdrawn: WithdrawnMembers = field(default_factory=WithdrawnMembers)
    vouching: VouchedLines = field(default_factory=VouchedLines)

    @property
    def learned(self) -> int:
        """The number of lines to learn from so far, vouched ones included."""
        return self.line + self.counters.vouched_lines

    def pass_silence(self, received: float) -> None:
        """No line with a time came until `received`: advance the log clock by the time since the last frame."""
        if not math.isnan(self.received):
            self.clock.pass_silence(received - self.received)
        self.received = received

    def restore(self, seq: int, then: "Parts") -> None:
        """Replace what was learned by that of `then`, from frame `seq` on. Parts that are not named here describe the
        present and stay.

        Takes ownership of parts of `then`. Ids of templates and generations of models are not reused.
        """
        then.templates.created = max(then.templates.created, self.templates.created)
        then.templates.evicted = then.templates.created - len(then.templates)
        self.schedule = Schedule(
            trained_at=then.schedule.trained_at + self.learned - then.learned,
            admissions_at=then.schedule.admissions_at,
            vouched_at=seq if then.schedule.vouched_at else 0,  # no training under way has seen it
            fulfilled=then.schedule.fulfilled,
        )
        self.rate = replace(then.rate, clock=self.rate.clock)
        self.generations = max(self.generations, then.generations)
        for name in ("model", "templates", "history", "known", "online"):
            setattr(self, name, getattr(then, name))

    def export(self) -> State:
        """A copy of the state as plain columns."""
        state: State = {"format": STATES.newest}
        for each in fields(self):
            state |= _exported_part(each.name, getattr(self, each.name))
        return online_columns_as_in_states(state)

    @classmethod
    def load(cls, state: Columns) -> "Parts":
        """The inverse of `export`, also for states of older versions. Raises OtherVersionError as
        `Versions.upgraded`."""
        state = online_columns_from_states(STATES.upgraded(state))
        with of_this_version():
            return cls(**{name: _loaded_part(name, kind, state) for name, kind in get_type_hints(cls).items()})


def model_in(state: Columns) -> ModelFrame:
    """The model in force in `state`, which is of this version; its name is "" if there is none."""
    return json_column(state, "model", ModelFrame)


def _exported_part(name: str, value: Any) -> State:
    match value:
        case int() | float():
            return {name: value}
        case msgspec.Struct() | tuple():
            return {name: msgspec.json.encode(value)}
        case _:
            return with_prefix(name, value.export())


def _loaded_part(name: str, kind: Any, state: Columns) -> Any:
    if kind in (int, float):
        return scalar_column(state, name, kind)
    if hasattr(kind, "load"):
        return kind.load(columns_under(name, state))
    return json_column(state, name, kind)
