"""Frames that version 1 journaled, field by field: every later version must decode them, and to the same."""

from typing import Any

import msgpack
import pytest

from detection.detection_settings import (
    AlarmSettings,
    DetectionSettings,
    FormatSettings,
    LearningSettings,
    RuleText,
    SessionSettings,
)
from detection.frames import (
    FeedbackFrame,
    FlushFrame,
    Frame,
    LinesFrame,
    ModelFrame,
    RefusedFrame,
    RestoreFrame,
    Segment,
    SettingsFrame,
    SkipFrame,
    TickFrame,
    VouchedFrame,
    decode_frame,
)
from detection.models.training_set import TrainingCutoff

# As they are in users' journals: none is ever edited. A field that came later has its default in what is expected.
SEGMENT = {"source": "a-1", "kind": "access", "data": b"x\ny", "lines": 1}
CUT = {**SEGMENT, "cut": [0], "last": True, "full": True, "parity": 1}
STUDIED = {"seq": 9, "learned": 8, "admissions": 7}
SETTINGS = {
    "format": {"kind": "syslog"},
    "session": {"key": "(a)", "idle_seconds": 61.0, "window": 51},
    "learning": {"early_lines": 1, "warmup_lines": 2, "retrain_lines": 3, "retrain_seconds": 4.0},
    "alarms": {"per_day": 5.0, "alpha": None, "verdicts": "all"},
}
FIRST: list[tuple[dict[str, Any], Frame]] = [
    (
        {"type": "lines", "received": 5.5, "segments": [SEGMENT, CUT]},
        LinesFrame(
            received=5.5,
            segments=(
                Segment(source="a-1", kind="access", data=b"x\ny", lines=1, cut=(), last=False, full=False, parity=0),
                Segment(source="a-1", kind="access", data=b"x\ny", lines=1, cut=(0,), last=True, full=True, parity=1),
            ),
        ),
    ),
    (
        {"type": "model", "generation": 2, "name": "m", "sha256": "ab", "studied": STUDIED},
        ModelFrame(generation=2, name="m", sha256="ab", studied=TrainingCutoff(seq=9, learned=8, admissions=7)),
    ),
    (
        {"type": "model", "generation": 2, "name": "", "sha256": ""},
        ModelFrame(generation=2, name="", sha256="", studied=None),
    ),
    (
        {"type": "settings", "settings": SETTINGS, "rules": [{"name": "r", "text": "t"}]},
        SettingsFrame(
            settings=DetectionSettings(
                format=FormatSettings(kind="syslog"),
                session=SessionSettings(key="(a)", idle_seconds=61.0, window=51),
                learning=LearningSettings(early_lines=1, warmup_lines=2, retrain_lines=3, retrain_seconds=4.0),
                alarms=AlarmSettings(per_day=5.0, alpha=None, verdicts="all"),
            ),
            rules=(RuleText(name="r", text="t"),),
        ),
    ),
    ({"type": "tick", "received": 5.5}, TickFrame(received=5.5)),
    ({"type": "flush", "received": 5.5}, FlushFrame(received=5.5)),
    ({"type": "skip", "seq": 3}, SkipFrame(seq=3)),
    ({"type": "restore", "name": "s", "sha256": "ab"}, RestoreFrame(name="s", sha256="ab")),
    (
        {"type": "feedback", "alert": "7.1", "cause": 1 << 63, "kind": 1, "what": "w", "answer": "normal", "note": "n"}
        | {"template": 3, "shapes": [4, 5]},
        FeedbackFrame(
            alert="7.1", cause=1 << 63, kind=1, what="w", answer="normal", note="n", template=3, shapes=(4, 5)
        ),
    ),
    (
        {"type": "vouched", "received": 5.5, "segment": SEGMENT, "done": True},
        VouchedFrame(
            received=5.5,
            segment=Segment(
                source="a-1", kind="access", data=b"x\ny", lines=1, cut=(), last=False, full=False, parity=0
            ),
            done=True,
        ),
    ),
    (
        {"type": "refused", "generation": 2, "name": "m", "reason": "why", "studied": STUDIED},
        RefusedFrame(generation=2, name="m", reason="why", studied=TrainingCutoff(seq=9, learned=8, admissions=7)),
    ),
]


@pytest.mark.parametrize(("written", "frame"), FIRST, ids=lambda each: each["type"] if isinstance(each, dict) else "")
def test_what_version_1_journaled_is_decoded_to_the_same(written: dict[str, Any], frame: Frame) -> None:
    assert decode_frame(msgpack.packb(written)) == frame


def test_what_no_version_has_journaled_is_no_frame() -> None:
    with pytest.raises(ValueError, match="later"):
        decode_frame(msgpack.packb({"type": "later"}))
