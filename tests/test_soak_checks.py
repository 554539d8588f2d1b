"""What a soak (tests/soak) would not let pass: each check against a made-up account with one thing wrong."""

from dataclasses import replace

import pytest

from tests.faults.senders import Sending
from tests.soak.checks import (
    Journaled,
    Record,
    Sample,
    bytes_a_minute,
    wrong_with_lines,
    wrong_with_log,
    wrong_with_records,
    wrong_with_sum,
    wrong_with_use,
    wrong_with_what_is_held,
)
from tests.soak.load import MAX_LINE_BYTES, attacks_in

ATTACK = b'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET /search.php?mark=%08d&q=%%27+UNION+SELECT+x HTTP/1.1" 200 1'
WHOLE, HALF = Sending(b"first\nsecond\n", confirmed=True), Sending(b"other\nnever confirmed\n")
LONG = Sending(b"long\n" + b"x" * (MAX_LINE_BYTES + 9) + b"\nend\n", confirmed=True)
JOURNALED = Journaled(
    {"a-1": WHOLE.data, "a-2": b"other\nnev", "a-3": b"long\n" + b"x" * MAX_LINE_BYTES + b"\nend\n"}, lines=6
)
STATUS = {"logs_processed": 6, "lost_lines": 0}


def journaled(**sources: bytes) -> Journaled:
    return replace(
        JOURNALED, sources={**JOURNALED.sources, **{f"a-{name[1:]}": data for name, data in sources.items()}}
    )


def test_lines_that_are_all_there_once_are_right() -> None:
    assert wrong_with_lines([WHOLE, HALF, LONG], JOURNALED, STATUS) == []


@pytest.mark.parametrize(
    ("account", "what"),
    [
        (journaled(s1=b"first\n"), "6 of 13 confirmed bytes"),  # a line lost
        (journaled(s1=b"first\nsecond\nsecond\n"), "other bytes"),  # a line twice
        (journaled(s9=WHOLE.data), "twice"),  # a connection twice
        (journaled(s1=b"first\nsecomd\n"), "other bytes"),
        (journaled(s9=b"nobody\n"), "nobody made"),
        (journaled(s3=LONG.data), "other bytes"),  # not cut
        (replace(JOURNALED, notes=["frame 3 was left out"]), "left out"),
    ],
)
def test_a_line_that_is_lost_or_twice_or_nobodys_is_noticed(account: Journaled, what: str) -> None:
    (wrong,) = wrong_with_lines([WHOLE, HALF, LONG], account, STATUS)
    assert what in wrong


@pytest.mark.parametrize("status", [{**STATUS, "logs_processed": 5}, {**STATUS, "lost_lines": 1}])
def test_a_daemon_that_counts_otherwise_is_noticed(status: dict[str, int]) -> None:
    assert len(wrong_with_lines([WHOLE, HALF, LONG], JOURNALED, status)) == 1


def record(number: int, **more: object) -> Record:
    return {"id": str(number), "text": (ATTACK % number).decode(), "attack_types": ["sql_injection"], **more}


def counting(ids: str, stands_for: int = 2) -> Record:
    return {"id": "9.0.1", "text": "", "alerts": [{"ids": ids, "verdict": "attack"}], "stands_for": stands_for}


ATTACKED = Journaled({"a-1": b"\n".join(ATTACK % number for number in (1, 2, 3)) + b"\n"}, lines=3)


def test_attacks_that_are_all_told_of_once_are_right() -> None:
    assert attacks_in(ATTACK % 7) == ["00000007"]
    ended = record(2, id="9", closed=True)  # the end of a session quotes its worst line
    assert wrong_with_records([*(record(number) for number in (1, 2, 3)), ended], ATTACKED) == []


@pytest.mark.parametrize(
    ("records", "what"),
    [
        ([record(1), record(3)], ["attack 00000002 is nowhere"]),
        ([record(1), record(2), record(3, attack_types=[])], ["attack 00000003 is nowhere"]),
        ([record(1), record(2), record(3), record(3, id="9")], ["attack 00000003 is told of 2 times"]),
        ([record(1), record(2), record(3), {"id": "3", "text": "", "attack_types": []}], ["id 3 is there 2 times"]),
        ([record(1), record(2), record(3), record(4)], ["attack 00000004 was never accepted"]),
        ([record(1), counting("2")], ["attack 00000003 is nowhere"]),
        ([record(1), record(2), counting("2-3")], ["id 2 is there 2 times"]),
        ([record(1), record(2), counting("3.1")], ["attack 00000003 is nowhere"]),
    ],
)
def test_an_attack_that_is_missing_or_told_of_twice_is_noticed(records: list[Record], what: list[str]) -> None:
    assert wrong_with_records(records, ATTACKED) == what


def test_attacks_in_counting_records_are_told_of() -> None:
    assert wrong_with_records([record(1), counting("2-3")], ATTACKED) == []


@pytest.mark.parametrize(("flagged", "held"), [(5, True), (4, False), (6, False)])
def test_records_and_counts_are_held_against_what_was_flagged(flagged: int, held: bool) -> None:
    status = {"alarms": {"recorded": 1, "counted": 2, "counting": 2, "flagged": flagged}}
    assert (wrong_with_sum([record(1), counting("2-3")], status) == []) == held
    assert wrong_with_sum([record(1)], status) != []


def test_a_traceback_in_the_log_is_noticed_and_where() -> None:
    log = "INFO all is well\nERROR in request\nTraceback (most recent call last):\n  File x\nINFO on\n"
    assert wrong_with_log(log) == ["a traceback after: ERROR in request"]
    assert wrong_with_log(log.replace("Traceback (most", "")) == []


def samples(
    a_minute: float = 0.0, more_descriptors: int = 0, more_threads: int = 0, step: int = 0, seconds: float = 1200.0
) -> list[Sample]:
    """A process that goes up and down by a few, and perhaps grows."""
    return [
        Sample(
            at := seconds * number / 59,
            int(200e6 + a_minute * at / 60 + 3e5 * (number % 3) + (step if number > 30 else 0)),
            40 + number * 7 % 5 + number * more_descriptors // 60,
            12 + number % 2 + number * more_threads // 60,
        )
        for number in range(60)
    ]


def test_what_those_who_left_still_hold_is_noticed() -> None:
    idle = Sample(0.0, 1, 30, 10)
    assert wrong_with_what_is_held([idle], [replace(idle, rss_bytes=10**9, descriptors=33)]) == []
    assert wrong_with_what_is_held([idle], [replace(idle, descriptors=94)]) == ["94 descriptors, 30 before"]
    assert wrong_with_what_is_held([idle], [replace(idle, threads=50)]) == ["50 threads, 10 before"]


def test_use_that_goes_up_and_down_or_has_one_step_is_flat() -> None:
    assert wrong_with_use(samples(a_minute=0.7e6, more_descriptors=4, more_threads=4)) == []
    assert wrong_with_use(samples(a_minute=-5e6)) == []
    assert wrong_with_use(samples(step=int(50e6), seconds=120.0)) == []
    assert abs(bytes_a_minute(samples(a_minute=0.5e6)) - 0.5e6) < 1e5


@pytest.mark.parametrize(
    ("grown", "what"),
    [
        (samples(a_minute=1.2e6), "memory grows by 1.2"),
        (samples(a_minute=25e6, seconds=120.0), "memory grows by 25"),
        (samples(more_descriptors=20), "descriptors"),
        (samples(more_threads=20), "threads"),
    ],
)
def test_growth_is_noticed(grown: list[Sample], what: str) -> None:
    (wrong,) = wrong_with_use(grown)
    assert what in wrong
