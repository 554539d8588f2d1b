"""Frames: everything that can change the state, and their encoding, whose meaning never changes.

State is a fold over frames: ``state(seq) = apply(state(seq - 1), frame(seq))``. A frame is journaled before it is
applied, so this encoding is a file format:

    payload := msgpack map, tagged by "type"
    lines    {"type": "lines", "received": seconds since the epoch, "segments": [segment, ...]}
    model    {"type": "model", "generation", "name", "sha256", "studied"}      name "" withdraws the model in force
    settings {"type": "settings", "settings": {...}, "rules": [{"name", "text"}, ...]}   always in full
    tick     {"type": "tick", "received"}        silence: the log clock moves though no line came
    flush    {"type": "flush", "received"}       every open session closes
    skip     {"type": "skip", "seq"}             frame `seq`, before this one, could not be applied: a replay skips it,
                                                 too
    restore  {"type": "restore", "name", "sha256"}   what was learned is replaced by that of snapshot `name`
    feedback {"type": "feedback", "alert", "cause", "kind", "what", "answer", "note", "template", "shapes"}
                                                 the operator's answer to alert `alert`, which is about `cause`
    vouched  {"type": "vouched", "received", "segment", "done"}     lines that the operator says are clean
    refused  {"type": "refused", "generation", "name", "reason", "studied"}    a model that does not take effect
    withdrawn {"type": "withdrawn", "seq", "members": {name: reason}}   from frame `seq` on, before this one, these
                                                 members do not judge: a replay leaves them out, too, even where they
                                                 would not fail. Journal format 2
    returned {"type": "returned", "members": [name, ...]}    these were withdrawn and judge again. Journal format 2

A replay first looks for skip and withdrawn frames (`daemon.startup.startup_scan`), because they come after the frames
that they are about. A withdrawal holds until the next frame that brings the member back: a `returned` that names it, a
`model`, or a `restore`; but not if that is frame `seq` itself.

A new type of frame, or a field that an older program must not ignore, increments `persistence.journal_segment.VERSION`:
an older program cannot apply a frame that it does not know, and would lose its lines. So does a new field in a section
of the settings, since sections refuse unknown fields. Frames in existing journals keep their meaning: no type or field
is ever removed, and the default of a new field is what frames without it meant.

A segment holds the bytes of one source exactly as they were consumed from it, except that the part of a line beyond
`max_line_bytes` is already cut off. A segment may begin and end in the middle of a line: the unfinished tail of a
source is state, not part of the frame. Lines end at ``\\n`` and nowhere else. Several sources may share a frame, so
that a thousand slow senders do not cost a thousand syncs.

The `parity` of the segments of a source alternates between 0 and 1: a process that finds bytes with a mark beside them
(`actors.journaled_mark`), and knows the parity that was journaled last, can tell whether they are in the journal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from detection.columns.state_columns import Columns
from detection.detection_settings import DetectionSettings, RuleText
from detection.models.model import Model
from detection.models.training_set import TrainingCutoff


class Segment(msgspec.Struct, frozen=True):
    """Bytes consumed from one source.

    `lines` is how many lines these bytes complete (counting the unfinished one that `last` ends).
    `cut` holds the ordinals, among those lines, of the ones that were longer than `max_line_bytes`.
    `last` is true when the source has ended: a tail without newline is then a line.
    `full` is true when more than `max_line_bytes` of the unfinished line came: no segment holds its rest.
    """

    source: str
    kind: str
    data: bytes
    lines: int
    cut: tuple[int, ...] = ()
    last: bool = False
    full: bool = False
    parity: int = 0


class LinesFrame(msgspec.Struct, frozen=True, tag="lines"):
    received: float
    segments: tuple[Segment, ...]


class ModelFrame(msgspec.Struct, frozen=True, tag="model", omit_defaults=True):
    """Model `generation` takes effect; its arrays are in the immutable file `name`.

    `studied` is None if it is not newly trained: an earlier one takes effect again, or none is in force from now on.
    """

    generation: int
    name: str
    sha256: str
    studied: TrainingCutoff | None = None


class SettingsFrame(msgspec.Struct, frozen=True, tag="settings"):
    settings: DetectionSettings
    rules: tuple[RuleText, ...]


class TickFrame(msgspec.Struct, frozen=True, tag="tick"):
    received: float


class FlushFrame(msgspec.Struct, frozen=True, tag="flush"):
    received: float


class SkipFrame(msgspec.Struct, frozen=True, tag="skip"):
    """Frame `seq` was not applied. Applying this frame changes nothing; a replay looks for it beforehand."""

    seq: int


class RestoreFrame(msgspec.Struct, frozen=True, tag="restore"):
    """What was learned is replaced by that of the snapshot in the file `name`, whose body has this SHA-256."""

    name: str
    sha256: str


class FeedbackFrame(msgspec.Struct, frozen=True, tag="feedback"):
    """The operator's answer to the alert with the id `alert`.

    cause         for which the answer holds; `kind` and `what` are its kind (`causes.fingerprints`) and description
    answer        "undo" removes the answer to that alert, whatever else is in the frame
    template      id of the template that `cause` depends on, 0 if on none
    shapes        causes for which "normal" also holds
    """

    alert: str
    cause: int
    kind: int
    what: str
    answer: Literal["normal", "anomaly", "undo"]
    note: str
    template: int = 0
    shapes: tuple[int, ...] = ()


class VouchedFrame(msgspec.Struct, frozen=True, tag="vouched"):
    """Lines to learn from, which count for nothing else. `done`: it is the last frame of that source."""

    received: float
    segment: Segment
    done: bool


class RefusedFrame(msgspec.Struct, frozen=True, tag="refused", omit_defaults=True):
    """Model `generation` in the file `name` was trained and does not take effect."""

    generation: int
    name: str
    reason: str
    studied: TrainingCutoff | None = None


class WithdrawnFrame(msgspec.Struct, frozen=True, tag="withdrawn"):
    """From frame `seq` on these `members` do not judge: by name, each with the reason. Applying this frame changes
    nothing, since they were withdrawn when `seq` was applied; a replay looks for it beforehand."""

    seq: int
    members: dict[str, str]


class ReturnedFrame(msgspec.Struct, frozen=True, tag="returned"):
    """These members, which were withdrawn, judge again from this frame on."""

    members: tuple[str, ...]


Frame = (
    LinesFrame
    | ModelFrame
    | SettingsFrame
    | TickFrame
    | FlushFrame
    | SkipFrame
    | RestoreFrame
    | FeedbackFrame
    | VouchedFrame
    | RefusedFrame
    | WithdrawnFrame
    | ReturnedFrame
)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """The state in a snapshot, and the model that was in force in it (None: there was none, or it is lost)."""

    state: Columns
    model: Model | None


@dataclass(frozen=True, slots=True)
class Sequenced:
    """A frame with its number: `seq` counts frames from 1, `line` is the number of the last log line up to and
    including it.

    model      of a `ModelFrame`, None if it is lost; `knowledge` of a `RestoreFrame` likewise; None for other frames
    without    the members that do not judge from this frame on, by name, each with the reason: as in the
               `WithdrawnFrame` that is or will be journaled
    """

    seq: int
    line: int
    frame: Frame
    model: Model | None = None
    knowledge: Knowledge | None = None
    without: Mapping[str, str] = field(default_factory=dict)


def count_lines(frame: Frame) -> int:
    """The number of log lines that `frame` completes."""
    return sum(segment.lines for segment in frame.segments) if isinstance(frame, LinesFrame) else 0


def encode_frame(frame: Frame) -> bytes:
    return msgspec.msgpack.encode(frame)


_decoder = msgspec.msgpack.Decoder(Frame)


def decode_frame(payload: bytes) -> Frame:
    """The inverse of `encode_frame`. Raises `msgspec.DecodeError` (a ValueError) if `payload` is not a frame."""
    try:
        frame: Frame = _decoder.decode(payload)
    except RecursionError as exc:
        raise msgspec.DecodeError("the frame is nested too deeply") from exc
    return frame
