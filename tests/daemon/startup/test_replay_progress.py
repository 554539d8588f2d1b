"""The progress of the replay: in per cent of the bytes, and in lines left."""

from daemon.startup.replay_progress import ReplayProgress
from persistence.journal_segment import Entry


def some() -> ReplayProgress:
    reading = ReplayProgress()
    for seq, count, size in ((11, 100, 600), (12, 0, 100), (14, 50, 300)):
        reading.add(Entry(seq, 0, count, bytes(size)))
    return reading


def test_progress_goes_from_0_to_100_per_cent() -> None:
    reading = some()
    assert reading.replay_sentence() == "reading the state: 0 %, 150 lines to replay"
    reading.note_replayed(10)  # of before the snapshot
    assert reading.as_dict() == {"percent": 0.0, "lines_to_replay": 150}
    for seq, percent, lines in ((11, 60.0, 50), (12, 70.0, 50), (13, 70.0, 50), (14, 100.0, 0), (15, 100.0, 0)):
        reading.note_replayed(seq)
        assert reading.as_dict() == {"percent": percent, "lines_to_replay": lines}, seq


def test_replaying_may_begin_again() -> None:
    reading = some()
    reading.note_replayed(12)
    reading.note_replayed(11)
    assert reading.replay_sentence() == "reading the state: 60 %, 50 lines to replay"


def test_with_nothing_to_replay_progress_is_0_per_cent() -> None:
    assert ReplayProgress().replay_sentence() == "reading the state"
    model_only = ReplayProgress()
    model_only.add(Entry(1, 0, 0, bytes(1000)))
    assert model_only.replay_sentence() == "reading the state"
