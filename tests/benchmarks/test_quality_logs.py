import re

import numpy as np
import pytest

from benchmarks.quality.deploy import INSERTED, RENAMED, STREAM_SESSIONS, WARMUP_SESSIONS, made_up, released
from benchmarks.quality.logs import (
    HDFS_KEY,
    INSTANCE_KEY,
    Sessions,
    as_lines,
    halves,
    hdfs_text,
    openstack_text,
    request_lines,
)
from detection.formats.kinds import parse_as_kind, recognise
from detection.templates.table import TemplateTable

EVENTS = ["<*>Receiving block<*>src:<*>dest:<*>", "BLOCK* ask <*> to delete <*>", "<*>Served block<*>to<*>"]


def test_made_up_lines_name_their_session_once_and_keep_the_order_of_its_events() -> None:
    chance = np.random.default_rng(1)
    sessions = [(f"blk_{-i}", EVENTS) for i in range(50)]
    lines, of = as_lines(sessions, hdfs_text, chance)
    assert len(lines) == len(of) == 150
    for line, session in zip(lines, of, strict=True):
        assert re.findall(HDFS_KEY, line.decode()) == [sessions[session][0]]
    told = [line.decode() for line, session in zip(lines, of, strict=True) if session == 7]
    assert [bool(re.search(word, text)) for word, text in zip(("Receiving", "ask", "Served"), told, strict=True)] == [
        True
    ] * 3


def test_made_up_lines_are_in_order_of_time_and_no_session_is_silent_for_long() -> None:
    lines, of = as_lines([(f"blk_{i}", EVENTS * 10) for i in range(30)], hdfs_text, np.random.default_rng(2))
    assert recognise(lines[:64]) == "timestamped"
    times = parse_as_kind("timestamped", lines, clock=0.0).times
    assert (np.diff(times) >= 0).all()
    for session in range(30):
        assert np.diff(times[np.array(of) == session]).max() < 3.0


def test_each_event_becomes_one_template_and_different_events_different_ones() -> None:
    chance = np.random.default_rng(3)
    lines, _ = as_lines([(f"blk_{i}", EVENTS) for i in range(200)], hdfs_text, chance)
    fields = parse_as_kind("timestamped", lines, clock=0.0)
    assert len(np.unique(TemplateTable().assign(fields.family, fields.contents))) == len(EVENTS)


def test_an_openstack_line_names_its_instance_whether_its_wording_does_or_not() -> None:
    chance = np.random.default_rng(1)
    name = "4172a56c-c781-4307-a81e-3bc3fcf8a47e"
    for wording in ("[instance: <*>] VM Started (Lifecycle Event)", '<*> "GET <*>" status: <*>'):
        found = re.search(INSTANCE_KEY, openstack_text(wording, name, chance))
        assert found is not None and found[1] == name


def test_every_value_is_a_request_of_its_own_client_and_comes_back_whole() -> None:
    values = ["plain", "a b&c=d", "<script>'\"%", "línea\ud800"]
    lines = request_lines(values, 1)
    assert len({line.split()[0] for line in lines}) == len(values)
    assert all(line.count(b" ") == lines[0].count(b" ") for line in lines)  # nothing of a value breaks the line
    assert recognise(lines) == "access"


def test_halves_share_nothing_and_leave_nothing_out() -> None:
    one, other = halves(11, np.random.default_rng(1))
    assert sorted([*one.tolist(), *other.tolist()]) == list(range(11))


@pytest.fixture
def given() -> Sessions:
    wording = dict(enumerate([*EVENTS, *RENAMED], start=1))
    normal: list[tuple[int, ...]] = [(1, 4, 5, 3), (1, 5, 4, 3)] * 20
    odd: list[tuple[int, ...]] = [(2, 2, i % 5 + 1) for i in range(200)]
    anomalous = np.array([False] * len(normal) + [True] * len(odd))
    return Sessions([str(i) for i in range(240)], normal + odd, anomalous, wording)


def test_a_release_renames_two_events_and_says_one_new_thing_once() -> None:
    first, second = RENAMED
    assert released([EVENTS[0], first, second, first]) == [
        EVENTS[0],
        RENAMED[first],
        INSERTED,
        RENAMED[second],
        RENAMED[first],
    ]
    assert released(EVENTS) == EVENTS


def test_a_deploy_changes_sixty_percent_of_the_sessions_from_a_third_of_the_stream_on(given: Sessions) -> None:
    stream = made_up(given, np.random.default_rng(1))
    assert len(stream.warmup) == WARMUP_SESSIONS and len(stream.sessions) == STREAM_SESSIONS
    assert len({name for name, _ in stream.warmup + stream.sessions}) == WARMUP_SESSIONS + STREAM_SESSIONS
    assert not stream.changed[: STREAM_SESSIONS // 3].any()
    assert stream.changed[STREAM_SESSIONS // 3 :].mean() == pytest.approx(0.6, abs=0.03)
    assert stream.anomalous.mean() == pytest.approx(0.03)
    new = {*RENAMED.values(), INSERTED}
    assert not any(new & set(wordings) for _, wordings in stream.warmup)
    with_new = np.array([bool(new & set(wordings)) for _, wordings in stream.sessions])
    assert (with_new <= stream.changed).all() and with_new[stream.changed & ~stream.anomalous].all()
