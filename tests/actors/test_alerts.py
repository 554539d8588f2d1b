import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors import alerts as module
from actors.alerts import Alerts, Outlet, run_alerts
from actors.record_ids import record_id_key
from detection.verdicts.verdict_records import Verdicts
from tests.actors.fakes import FakeVerdicts, FakeWriter, record


@asynccontextmanager
async def running(alerts: Alerts) -> AsyncIterator["trio.MemorySendChannel[Verdicts]"]:
    send, receive = trio.open_memory_channel[Verdicts](4)
    async with trio.open_nursery() as nursery:
        await nursery.start(run_alerts, alerts, receive)
        with send:
            yield send


def said(seq: int, *records: dict[str, Any]) -> FakeVerdicts:
    return FakeVerdicts(seq, seq, records)


def ids(records: Sequence[bytes]) -> list[str]:
    return [json.loads(line)["id"] for line in records]


def test_ids_are_ordered_as_numbers_not_as_text() -> None:
    texts = ["9", "10", "10.1", "10.2", "10.10", "11"]
    assert sorted(reversed(texts), key=record_id_key) == texts


async def test_flagged_records_go_to_the_file_and_the_ring_the_rest_nowhere() -> None:
    flagged, everything = FakeWriter(), FakeWriter()
    alerts = Alerts(Outlet("alerts", flagged), Outlet("verdicts", everything), seq=0)
    async with running(alerts) as verdicts:
        await verdicts.send(said(1, record(1, flagged=False), record(2), record(3)))
        await alerts.sync_through(1)
        assert ids(flagged.records) == ["2", "3"] and flagged.synced == 2
        assert everything.records == []
        assert [r["id"] for r in alerts.recent_records()] == ["2", "3"]

        alerts.write_all = True
        await verdicts.send(said(2, record(4, flagged=False), record(5)))
        await alerts.sync_through(2)
        assert ids(everything.records) == ["4", "5"] and ids(flagged.records) == ["2", "3", "5"]


async def test_a_replay_is_neither_written_nor_remembered_twice() -> None:
    writer = FakeWriter()
    alerts = Alerts(Outlet("alerts", writer, last="7.2"), seq=0, recent=[record(6), {**record(7), "id": "7.2"}])
    async with running(alerts) as verdicts:
        replayed = [record(6), {**record(7), "id": "7.2"}, {**record(7), "id": "7.10"}, record(8)]
        await verdicts.send(said(1, *replayed))
        await alerts.sync_through(1)
    assert ids(writer.records) == ["7.10", "8"]
    assert [r["id"] for r in alerts.recent_records()] == ["6", "7.2", "7.10", "8"]


def test_the_ring_is_read_in_pages() -> None:
    alerts = Alerts(Outlet("alerts", FakeWriter()), seq=0, recent=[record(n) for n in range(1, 1501)])
    assert [r["id"] for r in alerts.recent_records(limit=2)] == ["1499", "1500"]
    assert [r["id"] for r in alerts.recent_records(after="501", limit=2)] == ["502", "503"]
    assert len(alerts.recent_records()) == 1000
    assert alerts.recent_records(limit=0) == alerts.recent_records(after="1500") == []
    with pytest.raises(ValueError, match="x"):
        alerts.recent_records(after="x")


async def test_text_of_a_log_reaches_the_file_as_ascii() -> None:
    writer = FakeWriter()
    alerts = Alerts(Outlet("alerts", writer), seq=0)
    text = "\x1b[31m\u2028\u202e é\n"
    async with running(alerts) as verdicts:
        await verdicts.send(said(1, record(1, text=text, score=float("nan"))))
    (line,) = writer.records
    assert line.isascii() and b"\x1b" not in line and b"\n" not in line
    assert json.loads(line) == {"id": "1", "line": 1, "flagged": True, "text": text, "score": None}


async def test_a_record_is_bounded_and_says_how_much_of_its_texts_was_cut() -> None:
    writer = FakeWriter()
    alerts = Alerts(Outlet("alerts", writer), seq=0)
    lines = [{"line": n, "text": "\x01" * 8192} for n in range(5)]
    async with running(alerts) as verdicts:
        with alerts.subscribe() as flagged, alerts.subscribe(everything=True) as all_rows:
            await verdicts.send(
                said(1, record(1, text="a" * 8192), record(2, text="\x01" * 8192, explain={"lines": lines}))
            )
            await alerts.sync_through(1)
            streamed = [flagged.receive_nowait(), flagged.receive_nowait()]
            assert streamed == [all_rows.receive_nowait(), all_rows.receive_nowait()] == alerts.recent_records()
    assert streamed == list(map(json.loads, writer.records)), "the same in memory and in streams as in the file"
    whole, cut = map(json.loads, writer.records)
    assert whole["text"] == "a" * 8192
    assert max(map(len, writer.records)) <= module.RECORD_BYTES
    assert cut["text"] == "\x01" * 128 + "[8064 more characters]" == cut["explain"]["lines"][4]["text"]
    control = json.dumps(record(2, text="\x01" * 8192, explain={"lines": lines}))
    assert len(control) > 10 * module.RECORD_BYTES


async def test_a_full_disk_costs_no_alert_and_no_verdict_waits_for_it(autojump_clock: MockClock) -> None:
    writer = FakeWriter(full=True)
    alerts = Alerts(Outlet("alerts", writer), seq=0)
    async with running(alerts) as verdicts:
        for n in range(1, 51):
            await verdicts.send(said(n, record(n)))
        with pytest.raises(OSError, match="No space"):
            await alerts.sync_through(50)
        status = alerts.status()["alerts"]
        assert (status["written"], status["pending"], status["lost"]) == (0, 50, 0)
        assert "No space" in status["error"]

        writer.full = False
        while alerts.status()["alerts"]["error"]:  # noqa: ASYNC110
            await trio.sleep(0.1)
        assert ids(writer.records) == [str(n) for n in range(1, 51)]


async def test_what_was_appended_before_a_failed_sync_is_not_appended_again() -> None:
    class SyncFails(FakeWriter):
        sync_fails = True

        def sync(self) -> None:
            if self.sync_fails:
                raise OSError(5, "Input/output error")
            super().sync()

    writer = SyncFails(full=True)
    alerts = Alerts(Outlet("alerts", writer), seq=0)
    async with running(alerts) as verdicts:
        await verdicts.send(said(1, record(1)))
        with pytest.raises(OSError, match="No space"):
            await alerts.sync_through(1)
        writer.full = False
        with pytest.raises(OSError, match="Input/output"):
            await alerts.sync_through(1)
        writer.sync_fails = False
        await verdicts.send(said(2, record(2)))
        await alerts.sync_through(2)
    assert ids(writer.records) == ["1", "2"] and writer.synced == 2


async def test_memory_is_bounded_while_the_disk_is_full_and_the_loss_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PENDING_RECORDS", 10)
    writer = FakeWriter(full=True)
    alerts = Alerts(Outlet("alerts", writer), seq=0)
    async with running(alerts) as verdicts:
        for n in range(1, 26):
            await verdicts.send(said(n, record(n)))
        with pytest.raises(OSError, match="No space"):
            await alerts.sync_through(25)
        assert alerts.status()["alerts"]["lost"] == 15
        writer.full = False
        await alerts.sync_through(25)
    assert ids(writer.records) == [str(n) for n in range(16, 26)]


async def test_sync_through_waits_for_the_frame_and_says_when_it_cannot_come() -> None:
    alerts = Alerts(Outlet("alerts", FakeWriter()), seq=0)
    alerts.begin_after_snapshot(4, 100)
    done: list[int] = []

    async def sync(seq: int) -> None:
        await alerts.sync_through(seq)
        done.append(seq)

    async with running(alerts) as verdicts, trio.open_nursery() as syncing:
        await sync(4)
        syncing.start_soon(sync, 5)
        await wait_all_tasks_blocked()
        assert done == [4]
        await verdicts.send(said(5, record(5)))
    assert done == [4, 5]
    await sync(5)
    with pytest.raises(RuntimeError, match="before 6"):
        await sync(6)


async def test_a_slow_subscriber_loses_and_is_told_how_many_the_others_do_not() -> None:
    alerts = Alerts(Outlet("alerts", FakeWriter()), seq=0)
    with alerts.subscribe() as slow, alerts.subscribe() as quick:
        async with running(alerts) as verdicts:
            got = []
            for n in range(1, 301):
                await verdicts.send(said(n, record(n)))
                got.append((await quick.receive())["id"])
            assert got == [str(n) for n in range(1, 301)]
            kept = [slow.receive_nowait()["id"] for _ in range(module.SUBSCRIBER_RECORDS)]
            assert kept == [str(n) for n in range(1, 257)]
            await verdicts.send(said(301, record(301)))
            assert await slow.receive() == {"left_out": 44}
            assert (await slow.receive())["id"] == "301"
        assert [r["id"] async for r in quick] == ["301"], "streams end with the daemon"


async def test_a_stream_of_everything_holds_all_that_is_flagged_and_counts_what_it_left_out() -> None:
    alerts = Alerts(Outlet("alerts", FakeWriter()), seq=0)
    with alerts.subscribe(everything=True) as stream:
        async with running(alerts) as verdicts:
            await verdicts.send(said(1, *(record(n, flagged=n == 150) for n in range(1, 151))))
            await verdicts.send(said(2, record(151, flagged=False)))
        got = [r async for r in stream]
    assert [r["id"] for r in got if "id" in r] == [*(str(n) for n in range(1, 101)), "150", "151"]
    assert sum(r.get("left_out", 0) for r in got) == 49


async def test_a_subscriber_that_leaves_is_forgotten() -> None:
    alerts = Alerts(Outlet("alerts", FakeWriter()), seq=0)
    async with running(alerts) as verdicts:
        with alerts.subscribe() as stream:
            stream.close()
            await verdicts.send(said(1, record(1)))
            await verdicts.send(said(2, record(2)))
            await alerts.sync_through(2)
            assert alerts.status()["streams"] == 1
        assert alerts.status()["streams"] == 0
    with alerts.subscribe() as late:
        assert [r async for r in late] == []


async def test_an_id_beyond_the_last_line_hides_nothing() -> None:
    writer = FakeWriter()
    alerts = Alerts(Outlet("alerts", writer, last="92"), seq=0)
    alerts.begin_after_snapshot(0, 3)
    await alerts.take_verdicts(said(1, record(2), record(4)))
    assert ids(writer.records) == ["4"]
