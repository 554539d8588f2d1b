"""Frames: everything that can change what the daemon knows, as bytes that mean the same for ever.

State is a fold over frames: ``state(seq) = apply(state(seq - 1), frame(seq))``. A frame is journaled
before it is applied, so this module's encoding is a file format:

    payload := msgpack map, tagged by "type"
    lines    {"type": "lines", "received": seconds since the epoch, "segments": [segment, ...]}
    model    {"type": "model", "generation", "name", "sha256", "studied"}      name "" withdraws the model in force
    settings {"type": "settings", "settings": {...}, "rules": [{"name", "text"}, ...]}   always in full
    tick     {"type": "tick", "received"}        silence: the log clock moves though no line came
    flush    {"type": "flush", "received"}       every open session closes
    skip     {"type": "skip", "seq"}             frame `seq`, before this one, could not be applied: whoever
                                                 replays it skips it, too
    restore  {"type": "restore", "name", "sha256"}   what is known becomes what snapshot `name` holds
    feedback {"type": "feedback", "alert", "cause", "kind", "what", "answer", "note", "template", "shapes"}
                                                 the operator's answer to alert `alert`, which is about `cause`
    vouched  {"type": "vouched", "received", "segment", "done"}     lines that somebody says are clean
    refused  {"type": "refused", "generation", "name", "reason", "studied"}    a model that does not take effect
    withdrawn {"type": "withdrawn", "seq", "members": {name: reason}}   from frame `seq` on, before this one, these
                                                 members do not judge: whoever replays it leaves them out, too, even
                                                 where they would not fail. Journal format 2
    returned {"type": "returned", "members": [name, ...]}    these were withdrawn and judge again. Journal format 2

Who replays a journal looks for its skip and withdrawn frames first (`daemon.startup.scan`), for they come after the
frames that they are about. A withdrawal holds until the next frame that brings the member back, which is a `returned`
that names it, a `model`, or a `restore`; where that is the very frame `seq`, it does not bring it back.

A new type of frame, or a field that an older program must not overlook, raises `persistence.segment.VERSION`: to
an older program a frame it does not know would be one that cannot be applied, and its lines would be lost. So does
a new field in a section of the settings: the sections take no field that they do not know. What is journaled already
keeps its meaning: a type or field is never taken away, and a new field has a default that is what frames without it
meant.

A segment holds the bytes of one source exactly as they were consumed from it, except that what a line
holds beyond `max_line_bytes` is already cut out. A segment may begin and end in the middle of a line:
the unfinished tail of a source is state, not part of the frame. Lines end at ``\\n`` and nowhere else.
Several sources may share a frame, so that a thousand slow clients do not cost a thousand syncs.

The segments of a source carry 0 and 1 in turn, its `parity`: a process that finds bytes with a mark beside
them, and knows the parity that was journaled last, can tell whether they are in the journal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from detection.columns.state import Columns
from detection.models.model import Model
from detection.settings import DetectionSettings, RuleText


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


class TrainingCutoff(msgspec.Struct, frozen=True):
    """Up to where the state was known when a training set was taken of it: what came since is not in the model.

    `seq` is the last frame applied, `learned` how many lines there were to learn from, those vouched for included,
    and `admissions` how many causes had been admitted.
    """

    seq: int = 0
    learned: int = 0
    admissions: int = 0


class ModelFrame(msgspec.Struct, frozen=True, tag="model", omit_defaults=True):
    """Model `generation` takes effect; its arrays are in the immutable file `name`.

    `studied` is None where it was not trained just now: when an earlier one takes effect again, or none.
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
    """Frame `seq` was left out of the state. Applying this changes nothing; a replay looks for it beforehand."""

    seq: int


class RestoreFrame(msgspec.Struct, frozen=True, tag="restore"):
    """Knowledge becomes that of the snapshot in the file `name`, whose body has this SHA-256."""

    name: str
    sha256: str


class FeedbackFrame(msgspec.Struct, frozen=True, tag="feedback"):
    """What the operator says of alert `alert`; it holds for `cause`, of the `kind` and `what` that
    `detection.causes.fingerprints` gave it, and which hangs on the id of `template`, 0: on none; "normal" holds for the
    causes `shapes`, too. "undo" takes back the answer to that alert, whatever else is in the frame."""

    alert: str
    cause: int
    kind: int
    what: str
    answer: Literal["normal", "anomaly", "undo"]
    note: str
    template: int = 0
    shapes: tuple[int, ...] = ()


class VouchedFrame(msgspec.Struct, frozen=True, tag="vouched"):
    """Lines to learn from, which count for nothing else. With `done` nothing more comes of that source."""

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
    """From frame `seq` on these `members` do not judge: by name, each with the reason. Applying this changes nothing,
    they were withdrawn when `seq` was applied; a replay looks for it beforehand."""

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
    """The state a snapshot holds, and the model that was in force in it (None: there was none, or it is lost)."""

    state: Columns
    model: Model | None


@dataclass(frozen=True, slots=True)
class Sequenced:
    """A frame with its place: `seq` counts frames from 1, `line` is the last line number through it.

    What a frame names comes resolved: `model` for a `ModelFrame`, `knowledge` for a `RestoreFrame`; None when it
    is lost, and for every other frame. `without` are the members that do not judge from this frame on, by name and
    with the reason, as a `WithdrawnFrame` will say or has said.
    """

    seq: int
    line: int
    frame: Frame
    model: Model | None = None
    knowledge: Knowledge | None = None
    without: Mapping[str, str] = field(default_factory=dict)


def count_lines(frame: Frame) -> int:
    """How many log lines `frame` completes."""
    return sum(segment.lines for segment in frame.segments) if isinstance(frame, LinesFrame) else 0


def encode(frame: Frame) -> bytes:
    return msgspec.msgpack.encode(frame)


_decoder = msgspec.msgpack.Decoder(Frame)


def decode(payload: bytes) -> Frame:
    """Raises `msgspec.DecodeError` (a ValueError) when `payload` is not a frame."""
    try:
        frame: Frame = _decoder.decode(payload)
    except RecursionError as exc:
        raise msgspec.DecodeError("the frame is nested too deeply") from exc
    return frame
