"""A frame of each kind on which `apply` raises, live and at recovery: one decision, for ever."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from detection.detection_settings import DetectionSettings, SessionSettings
from detection.detector import Detector
from detection.frames import (
    FlushFrame,
    Frame,
    LinesFrame,
    ModelFrame,
    RestoreFrame,
    Segment,
    Sequenced,
    SettingsFrame,
    SkipFrame,
    TickFrame,
    count_lines,
    encode_frame,
)
from detection.verdicts.verdict_records import Verdicts
from persistence.journal_segment import Entry
from tests.daemon.applying import Killed, Process, process

NOW = 1_700_000_000.0
ACCESS = b'10.0.0.%d - - [17/May/2015:10:05:%02d +0000] "GET /%d HTTP/1.1" 200 1 "-" "-"\n'


def access(*numbers: int, tail: bytes = b"") -> LinesFrame:
    data = b"".join(ACCESS % (n % 7, n % 60, n % 3) for n in numbers)
    return LinesFrame(NOW, (Segment("a-1", "access", data + tail, len(numbers)),))


POISON: list[Frame] = [
    LinesFrame(NOW, (Segment("a-1", "access", b"rest\nPOISON\nbegun ", 2), Segment("b-1", "plain", b"x\n", 1))),
    ModelFrame(7, "", ""),
    SettingsFrame(DetectionSettings(session=SessionSettings(key="(POISON)")), ()),
    TickFrame(NOW + 666),
    FlushFrame(NOW + 666),
    RestoreFrame("snapshot-00000000000000000002.msgpack", "00"),
]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The detector raises on the frames above, when it has half applied them."""
    apply = Detector.apply
    bad = [encode_frame(frame) for frame in POISON]

    def raising(self: Detector, item: Sequenced) -> Verdicts:
        verdicts = apply(self, item)
        if encode_frame(item.frame) in bad:
            raise RuntimeError("planted")
        return verdicts

    monkeypatch.setattr(Detector, "apply", raising)
    yield


@pytest.mark.parametrize("poison", POISON, ids=lambda frame: type(frame).__name__)
@pytest.mark.parametrize("saved", [False, True], ids=["from nothing", "from a snapshot"])
def test_it_costs_its_own_lines_once_and_every_later_replay_comes_to_the_same_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: None, poison: Frame, saved: bool
) -> None:
    lost = count_lines(poison)
    with process(tmp_path) as live:
        live.apply(access(*range(20)), access(20, 21, tail=b"unfinished "))
        if saved:
            live.save()
        live.apply(poison, access(22, 23), access(*range(24, 40)))
        assert live.decided == [SkipFrame(3)], "one frame is left out, no other"
        assert live.detector.summary().lost_lines == lost
        assert (live.detector.seq, live.detector.line) == (6, 40 + lost)
        assert live.recovered.report.set_aside == ["frame-00000000000000000003.bad"]
        assert (tmp_path / "frame-00000000000000000003.bad").read_bytes() == encode_frame(poison)
        expected = live.digest
    # Replayed by the program that cannot apply it, then by one that can.
    for _ in range(2):
        with process(tmp_path) as again:
            assert again.digest == expected
            assert (again.recovered.report.tier, again.decided) == ("full", [])
            assert [verdicts for verdicts in again.delivered if verdicts.seq == 3 and verdicts.lines] == []
        monkeypatch.undo()


@pytest.mark.parametrize("poison", POISON, ids=lambda frame: type(frame).__name__)
def test_killed_before_the_skip_was_journaled_the_start_decides_the_same(
    tmp_path: Path, planted: None, poison: Frame
) -> None:
    def kill(moment: str) -> None:
        if moment == "deciding":
            raise Killed

    with pytest.raises(Killed), process(tmp_path, moment=kill) as live:
        live.apply(access(*range(20), tail=b"unfinished "), poison)
    with process(tmp_path) as again:
        assert again.decided == [SkipFrame(2)]
        assert again.recovered.report.lost_lines == count_lines(poison)
        again.apply(access(20, 21))
        expected = again.digest
    with process(tmp_path) as third:
        assert third.decided == []
        assert third.digest == expected


def test_without_the_skip_frame_a_program_that_can_apply_it_comes_to_another_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: None
) -> None:
    """The control of the tests above."""
    monkeypatch.setattr(Process, "_say", lambda process, frame: process.apply(TickFrame(NOW)))
    with process(tmp_path) as live:
        live.apply(access(*range(20)), POISON[0], access(20, 21))
        expected = live.digest
    monkeypatch.undo()
    with process(tmp_path) as again:
        assert again.digest != expected


def test_two_frames_in_a_row_are_both_skipped(tmp_path: Path, planted: None) -> None:
    with process(tmp_path) as live:
        live.apply(access(1, 2), POISON[0], POISON[3], access(3))
        assert live.decided == [SkipFrame(2), SkipFrame(4)], "the first skip is a frame, too"
        expected = live.digest
    with process(tmp_path) as again:
        assert again.digest == expected


def test_bytes_that_are_no_frame_cost_their_lines_and_no_restart(tmp_path: Path) -> None:
    with process(tmp_path) as live:
        live.apply(access(1, 2))
        live.store.append([Entry(2, 7, 5, b"\xc1 no frame"), Entry(3, 8, 1, encode_frame(access(3)))])
    with process(tmp_path) as again:
        assert again.decided == [SkipFrame(2)]
        assert (again.detector.line, again.detector.summary().lost_lines) == (8, 5)
        expected = again.digest
    with process(tmp_path) as third:
        assert third.digest == expected
