import threading
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.latest_summary import LatestSummary
from actors.scoring import HEARTBEAT_SECONDS, Scoring, StateAbandoned, run_scoring
from detection.columns.state_columns import State
from detection.frames import LinesFrame, Segment, Sequenced
from detection.summary import Summary
from detection.verdicts.verdict_records import Verdicts
from tests.actors.fakes import FakeDetector, FakeTrainingSet, FakeVerdicts, scoring_of


def frame(seq: int, line: int, text: bytes = b"x\n") -> Sequenced:
    return Sequenced(seq, line, LinesFrame(0.0, (Segment("s", "plain", text, text.count(b"\n")),)))


async def exported(scoring: Scoring) -> tuple[Summary, State]:
    async with scoring.exported_state() as moment:
        return moment


async def ask(scoring: Scoring, line: bytes) -> list[dict[str, Any]]:
    return await scoring.query(lambda detector: detector.ask([line], None))


class Beats:
    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self) -> None:
        self.times.append(trio.current_time())


async def test_frames_become_verdicts_and_the_summary_is_published_until_the_end(nursery: trio.Nursery) -> None:
    scoring = scoring_of(FakeDetector())
    frames_in, frames = trio.open_memory_channel[Sequenced](4)
    verdicts_in, verdicts = trio.open_memory_channel[Verdicts](4)
    await nursery.start(run_scoring, scoring, frames, verdicts_in, Beats())
    frames_in.send_nowait(frame(1, 2, b"a\nBAD\n"))
    frames_in.send_nowait(frame(2, 3))
    assert (await scoring.published.wait_for_frame(2)).line == 3
    frames_in.close()

    said = [item async for item in verdicts]
    assert [(v.seq, [r["id"] for r in v.flagged()]) for v in said] == [(1, ["2"]), (2, [])]
    with pytest.raises(trio.EndOfChannel):
        await scoring.published.newer_summary(scoring.published.summary)
    assert await ask(scoring, b"still") == [{"line": "still", "known": 3}]


async def test_a_question_waits_for_one_frame_however_many_are_queued(nursery: trio.Nursery) -> None:
    detector = FakeDetector(gate=threading.Event())
    scoring = scoring_of(detector)
    frames_in, frames = trio.open_memory_channel[Sequenced](8)
    verdicts_in, verdicts = trio.open_memory_channel[Verdicts](8)
    await nursery.start(run_scoring, scoring, frames, verdicts_in, lambda: None)
    for n in range(1, 6):
        frames_in.send_nowait(frame(n, n))
    await wait_all_tasks_blocked()
    nursery.start_soon(ask, scoring, b"?")
    await wait_all_tasks_blocked()
    assert detector.gate is not None
    detector.gate.set()
    frames_in.close()
    assert len([v async for v in verdicts]) == 5
    assert detector.calls[:3] == ["apply 1", "ask", "apply 2"]


async def test_an_export_is_of_one_moment() -> None:
    scoring = scoring_of(FakeDetector())
    await scoring.apply_frame(frame(1, 1))
    summary, columns = await exported(scoring)
    assert (summary.seq, summary.line) == (columns["seq"], columns["line"]) == (1, 1)


async def test_after_a_frame_that_raised_half_way_the_state_is_not_given_to_anyone() -> None:
    scoring = scoring_of(FakeDetector())
    await scoring.apply_frame(frame(1, 1))
    with pytest.raises(ValueError, match="poison"):
        await scoring.apply_frame(frame(2, 2, b"POISON\n"))
    with pytest.raises(StateAbandoned, match="frame 2"):
        await exported(scoring)
    with pytest.raises(StateAbandoned):
        await ask(scoring, b"?")
    assert scoring.published.summary.seq == 1


async def test_what_is_read_back_takes_the_place_of_a_frame_that_raises_and_nobody_sees_the_spoilt_state(
    nursery: trio.Nursery,
) -> None:
    read: list[tuple[int, str]] = []

    def read_back(item: Sequenced, error: Exception) -> tuple[FakeDetector, FakeVerdicts]:
        read.append((item.seq, str(error)))
        return FakeDetector(seq=item.seq, line=item.line, text=b"read back\n"), FakeVerdicts(item.seq, item.line)

    scoring = scoring_of(FakeDetector(), read_back)
    frames_in, frames = trio.open_memory_channel[Sequenced](8)
    verdicts_in, verdicts = trio.open_memory_channel[Verdicts](8)
    await nursery.start(run_scoring, scoring, frames, verdicts_in, lambda: None)
    for item in (frame(1, 1), frame(2, 3, b"a\nPOISON\n"), frame(3, 4, b"BAD\n")):
        frames_in.send_nowait(item)
    said = [await verdicts.receive() for _ in range(3)]
    assert read == [(2, "poison")]
    assert [(v.seq, v.line, v.lines, v.flagged(), len(list(v.records()))) for v in said[:2]] == [
        (1, 1, 1, [], 1),
        (2, 3, 0, [], 0),
    ]
    assert [record["id"] for record in said[2].flagged()] == ["4"]
    assert (await exported(scoring))[1]["text"] == b"read back\nBAD\n"
    frames_in.close()


async def test_a_question_that_waits_behind_such_a_frame_is_answered_by_the_state_without_it() -> None:
    spoilt = FakeDetector(gate=threading.Event())

    def read_back(item: Sequenced, error: Exception) -> tuple[FakeDetector, FakeVerdicts]:
        detector = FakeDetector(seq=item.seq, line=item.line, known_generations=[{"generation": 7}])
        return detector, FakeVerdicts(item.seq, item.line)

    scoring = scoring_of(spoilt, read_back)
    answers: list[object] = []

    async def question() -> None:
        known = await scoring.query(lambda detector: detector.generations())
        training_set = await scoring.query(lambda detector: detector.training_set())
        answers.append((known, await ask(scoring, b"?"), training_set))

    async with trio.open_nursery() as turns:
        turns.start_soon(scoring.apply_frame, frame(1, 3, b"a\nPOISON\nb\n"))
        await wait_all_tasks_blocked()
        turns.start_soon(question)
        await wait_all_tasks_blocked()
        assert spoilt.gate is not None
        spoilt.gate.set()
    assert answers == [([{"generation": 7}], [{"line": "?", "known": 3}], FakeTrainingSet(1, 3))]
    assert spoilt.calls == ["apply 1"]


async def test_what_the_detector_knows_is_asked_in_a_turn() -> None:
    scoring = scoring_of(FakeDetector())
    await scoring.apply_frame(frame(1, 3, b"a\nb\nc\n"))
    assert await scoring.query(lambda detector: detector.incidents(2)) == [{"id": "3"}, {"id": "2"}]
    assert await scoring.query(lambda detector: (detector.answers(), detector.generations())) == ([], [])
    [answer] = await scoring.query(lambda detector: detector.ask([b"?"], None, explain=True))
    assert answer["explain"] == {"members": {}}


async def test_a_state_that_is_being_saved_is_saved_before_another_is_read_back() -> None:
    """Or it would be written after it was decided that frames in it are judged otherwise."""
    read = threading.Event()

    def read_back(item: Sequenced, error: Exception) -> tuple[FakeDetector, FakeVerdicts]:
        read.set()
        return FakeDetector(seq=item.seq, line=item.line), FakeVerdicts(item.seq, item.line)

    scoring = scoring_of(FakeDetector(), read_back)
    await scoring.apply_frame(frame(1, 1))
    async with trio.open_nursery() as turns:
        async with scoring.exported_state() as (summary, _):
            turns.start_soon(scoring.apply_frame, frame(2, 2, b"POISON\n"))
            assert not await trio.to_thread.run_sync(read.wait, 0.3)
            assert summary.seq == 1
    assert read.is_set()


async def test_a_cancelled_turn_leaves_the_state_whole() -> None:
    scoring = scoring_of(FakeDetector())
    with trio.CancelScope() as scope:
        scope.cancel()
        await scoring.apply_frame(frame(1, 1))
    await scoring.apply_frame(frame(1, 1))
    assert (await exported(scoring))[0].seq == 1


async def test_the_heart_beats_while_idle_and_stops_while_a_frame_hangs(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    detector = FakeDetector(gate=threading.Event())
    beats = Beats()
    frames_in, frames = trio.open_memory_channel[Sequenced](8)
    verdicts_in, verdicts = trio.open_memory_channel[Verdicts](8)
    await nursery.start(run_scoring, scoring_of(detector), frames, verdicts_in, beats)
    await trio.sleep(10.5 * HEARTBEAT_SECONDS)
    assert len(beats.times) == 11

    frames_in.send_nowait(frame(1, 1))
    await trio.sleep(100 * HEARTBEAT_SECONDS)
    assert len(beats.times) == 11
    assert detector.gate is not None
    detector.gate.set()
    await verdicts.receive()
    await trio.sleep(1.5 * HEARTBEAT_SECONDS)
    assert len(beats.times) >= 12
    frames_in.close()


async def test_published_wakes_every_reader_and_tells_them_of_the_end() -> None:
    published = LatestSummary(Summary())
    seen: list[int] = []

    async def read() -> None:
        summary = published.summary
        with pytest.raises(trio.EndOfChannel):
            while True:
                summary = await published.newer_summary(summary)
                seen.append(summary.seq)

    async with trio.open_nursery() as reading:
        reading.start_soon(read)
        reading.start_soon(read)
        for seq in (1, 2):
            await wait_all_tasks_blocked()
            published.publish_summary(Summary(seq=seq, line=seq))
        await wait_all_tasks_blocked()
        assert seen == [1, 1, 2, 2]
        published.close()
