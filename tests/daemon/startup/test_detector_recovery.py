"""Rot in the journal costs the lines of the frame that it hit, even if sources had unfinished lines in it."""

from pathlib import Path

import pytest

from daemon.startup.detector_recovery import Report, recover_detector
from daemon.startup.startup_scan import scan_directory
from detection.frames import FeedbackFrame, Frame, LinesFrame, ModelFrame, Segment, count_lines, encode_frame
from detection.verdicts.verdict_records import Verdicts
from persistence.journal_segment import Entry
from persistence.store import Store, open_store

NOW = 1_700_000_000.0


def told(source: str, data: bytes, *, parity: int = 0, last: bool = False, lines: int | None = None) -> Segment:
    count = data.count(b"\n") if lines is None else lines
    return Segment(source, "plain", data, count, last=last, parity=parity)


def end(source: str, lines: int) -> Segment:
    return told(source, b"", last=True, lines=lines)


@pytest.mark.parametrize(
    ("before", "lost", "texts"),
    [
        # Its last line was entirely in the lost frame: the line keeps its number, and is empty.
        (b"one\n", b"two\nbegun", ["one", "t1", "", "t3"]),
        # Only the beginning of an unfinished line is left.
        (b"one\nhalf ", b"a line\nbegun", ["one", "t1", "half ", "t3"]),
        # It had no unfinished line any more when it ended.
        (b"one\nhalf ", b"a line\n", ["one", "t1", "t3"]),
    ],
)
def test_a_source_that_ends_after_it_costs_no_other_frame(
    before: bytes, lost: bytes, texts: list[str], tmp_path: Path
) -> None:
    frames = [
        LinesFrame(NOW, (told("s", before), told("t", b"t1\n"))),
        LinesFrame(NOW, (told("s", lost, parity=1), told("t", b"t2\n", parity=1))),
        LinesFrame(NOW, (end("s", int(not lost.endswith(b"\n"))), told("t", b"t3\n"))),
    ]
    with open_store(tmp_path / "state") as store:
        list(store.recover().entries)
        store.start_journal(0, 0)
        line = 0
        for seq, frame in enumerate(frames, 1):
            line += count_lines(frame)
            store.append([Entry(seq, line, count_lines(frame), encode_frame(frame))])
    (segment,) = (tmp_path / "state").glob("journal-*.log")
    data = bytearray(segment.read_bytes())
    data[data.index(b"t2")] ^= 1
    segment.write_bytes(data)

    delivered: list[Verdicts] = []
    with open_store(tmp_path / "state") as store:
        found = scan_directory(store)
        recovered = recover_detector(store, found, delivered.append, lambda: None)
    assert recovered.report.lost_lines == 2 and not recovered.ladder.decided
    records = [record for verdicts in delivered for record in verdicts.records() if not record["closed"]]
    assert [record["text"] for record in records] == texts
    assert recovered.detector.line == found.line == line
    assert found.living == recovered.detector.living_sources()
    assert not list((tmp_path / "state").glob("frame-*.bad"))


def test_a_lost_frame_without_lines_makes_the_recovery_partial(tmp_path: Path) -> None:
    answer = FeedbackFrame("1", 7, 0, "rule", "normal", "a note of its own")
    append(tmp_path / "state", [LinesFrame(NOW, (told("s", b"one\n"),)), answer, LinesFrame(NOW, (end("s", 0),))])
    assert (report(tmp_path / "state").tier, report(tmp_path / "state").notes) == ("full", [])
    segment = min((tmp_path / "state").glob("journal-*.log"))
    data = bytearray(segment.read_bytes())
    data[data.index(b"a note")] ^= 1
    segment.write_bytes(data)
    found = report(tmp_path / "state")
    assert (found.tier, found.lost_lines) == ("partial", 0)
    assert "frames 2 to 2 are lost, 0 lines with them" in found.notes


def test_a_lost_segment_of_unknown_size_makes_the_recovery_partial(tmp_path: Path) -> None:
    append(tmp_path / "state", [LinesFrame(NOW, (told("s", b"one\n"),))])
    append(tmp_path / "state", [LinesFrame(NOW, (told("s", b"two\n", parity=1),))])
    assert report(tmp_path / "state").tier == "full"
    max((tmp_path / "state").glob("journal-*.log")).unlink()
    found = report(tmp_path / "state")
    assert found.tier == "partial" and "how much it held is not known" in found.notes[0]


def test_a_library_that_cannot_be_imported_is_not_blamed_on_the_frame_that_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model of the frame could be read by the next process: the start fails, and nothing is set aside."""
    append(tmp_path / "state", [ModelFrame(1, "model-1-0123456789abcdef.pt", "0" * 64)])

    def without_torch(self: Store, name: str, sha256: str | None) -> None:
        raise ImportError("libtorch.so: cannot open shared object file: Too many open files")

    monkeypatch.setattr(Store, "load_model", without_torch)
    with pytest.raises(ImportError, match="Too many open files"):
        report(tmp_path / "state")
    assert not list((tmp_path / "state").glob("frame-*.bad"))


def append(directory: Path, frames: list[Frame]) -> None:
    """One process of the daemon: recover, then journal `frames` in a segment of their own."""
    with open_store(directory) as store:
        found = scan_directory(store)
        seq, line = found.seq, found.line
        store.start_journal(seq, line)
        for frame in frames:
            seq, line = seq + 1, line + count_lines(frame)
            store.append([Entry(seq, line, count_lines(frame), encode_frame(frame))])


def report(directory: Path) -> Report:
    with open_store(directory) as store:
        return recover_detector(store, scan_directory(store), lambda verdicts: None, lambda: None).report
