"""Members that fail, live and in a replay: no line is lost, and every process comes to the same state."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.startup.failing_frames import PATIENCE, ApplyError, Ladder
from detection.columns.state_columns import digest
from detection.frames import Frame, LinesFrame, ModelFrame, ReturnedFrame, SkipFrame, WithdrawnFrame
from detection.members.counts import Counts
from detection.members.failing_members import MemberError
from detection.members.ngram import Ngram
from detection.members.parameter_values.character_model import ValueModel
from detection.members.transformer import fitting as transformer
from detection.members.transformer.member import Transformer
from detection.models.model import to_columns
from persistence.journal_segment import Entry
from persistence.model_file import write_model
from tests.daemon.applying import Killed, Process, process
from tests.detection.journal import RECEIVED, segment
from tests.detection.simple import CLOSE, NEW, OPEN, READ, fed, finished, learn, session, simple, usual

SESSIONS = 500
ALL = ("ngram", "counts", "sources", "transformer", "isolation_forest")  # these lines have no parameters to judge


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with a snapshot in which a model of all members is in force."""
    journal = simple()
    fed(journal, usual(SESSIONS, 1))
    finished(journal)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer, "FEWEST_STEPS", 20)
        model = learn(journal, full=True)
    directory = tmp_path_factory.mktemp("learned") / "state"
    with process(directory) as first:
        for item in journal.items[:-1]:
            first.apply(item.frame)
        written = write_model(first.store.training, to_columns(model))
        file = first.store.adopt_model(first.store.training / written.name)
        first.apply(ModelFrame(1, file.name, file.sha256), model=model)
        assert first.detector.summary().members == ALL
        first.save()
    return directory


@pytest.fixture
def state(learned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(learned, tmp_path / "state"))


def lines(frames: int = 8) -> list[LinesFrame]:
    """Ten sessions a frame, one of them strange."""
    made = []
    for number in range(frames):
        at = SESSIONS + 100.0 * number
        strange = session(f"x{number}", [OPEN, *[NEW, READ] * (1 + number % 3), CLOSE], at + 50)
        each = usual(9, number, prefix=f"u{number}-", at=at) + strange
        made.append(LinesFrame(RECEIVED, (segment(each, kind="timestamped"),)))
    return made


class Fault:
    """Makes members fail; `when` decides at each call, by the number of calls so far."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.when: Callable[[int], bool] = lambda calls: False
        self._patch = patch

    def plant(self, member: type[Any], method: str = "score") -> None:
        real = getattr(member, method)

        def failing(this: object, *args: Any) -> Any:
            self.calls += 1
            if self.when(self.calls):
                raise RuntimeError("could not create a primitive")
            return real(this, *args)

        self._patch.setattr(member, method, failing)


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fault]:
    yield Fault(monkeypatch)


def always(calls: int) -> bool:
    return True


def never(calls: int) -> bool:
    return False


def assert_nothing_lost(found: Process, records: list[dict[str, Any]]) -> None:
    summary = found.detector.summary()
    assert summary.lost_lines == 0 and not list(found.store.directory.glob("*.bad"))
    assert not any(isinstance(frame, SkipFrame) for frame in found.decided)
    ids = [record["id"] for record in records]
    assert len(set(ids)) == len(ids) > 0


@pytest.mark.parametrize(
    ("members", "withdrawn"),
    [
        ([Transformer], {"transformer", "isolation_forest"}),
        ([Counts], {"counts", "isolation_forest"}),
        ([Ngram, Transformer], {"ngram", "transformer", "isolation_forest"}),
    ],
    ids=lambda value: "+".join(sorted(each if isinstance(each, str) else each.name for each in value)),
)
def test_a_member_that_always_fails_is_withdrawn_once_and_every_later_process_leaves_it_out(
    state: Path, fault: Fault, members: list[type[Any]], withdrawn: set[str]
) -> None:
    for member in members:
        fault.plant(member)
    records: list[dict[str, Any]] = []
    with process(state, records) as live:
        live.apply(*lines(2))
        live.save()
        before, fault.when = len(records), always
        seq = live.seq + 1
        live.apply(*lines(6)[2:])
        (said,) = live.decided
        assert isinstance(said, WithdrawnFrame)
        assert (said.seq, set(said.members)) == (seq, {member.name for member in members})
        assert "could not create a primitive" in said.members[members[0].name]
        summary = live.detector.summary()
        assert {each.member for each in summary.withdrawn} == withdrawn
        assert {each.seq for each in summary.withdrawn} == {seq}
        assert set(summary.members) == set(ALL) - withdrawn
        assert 0 < before < len(records)
        assert all(set(record["members"]) == set(ALL) for record in records[:before])
        assert all(set(record["members"]) == set(ALL) - withdrawn for record in records[before:])
        assert_nothing_lost(live, records)
        expected, told = live.digest, list(records)
    # On a machine where it fails, and on one where it does not; neither writes a record again.
    for fault.when in (always, never):
        with process(state, records, bring_back=False) as again:
            assert (again.recovered_digest, again.decided) == (expected, [])
        assert records == told


def test_members_come_back_at_a_start_and_stay_out_when_they_fail_again(state: Path, fault: Fault) -> None:
    fault.plant(Transformer)
    records: list[dict[str, Any]] = []
    with process(state, records) as live:
        fault.when = always
        live.apply(*lines(2))
    with process(state, records) as still:
        assert {each.member for each in still.detector.summary().withdrawn} == set(), "tried again"
        still.apply(lines(3)[2])
        assert len(still.decided) == 1
        assert {each.member for each in still.detector.summary().withdrawn} == {"transformer", "isolation_forest"}
        expected = still.digest
    fault.when = never
    with process(state, records) as well:
        assert well.recovered_digest == expected
        assert well.detector.summary().withdrawn == ()
        before = len(records)
        well.apply(*lines(5)[3:])
        assert len(records) > before
        assert all(set(record["members"]) == set(ALL) for record in records[before:])
        assert well.decided == []
        assert_nothing_lost(well, records)
        expected = well.digest
    with process(state, records, bring_back=False) as again:
        assert again.recovered_digest == expected


def test_a_kill_at_any_moment_leads_to_the_same_state_and_records(learned: Path, tmp_path: Path, fault: Fault) -> None:
    fault.plant(Transformer)
    moments = 0
    records: list[dict[str, Any]] = []

    def count(_: str) -> None:
        nonlocal moments
        moments += 1

    fault.when = always
    with process(Path(shutil.copytree(learned, tmp_path / "whole")), records, count, bring_back=False) as whole:
        whole.apply(*lines(3))
        expected = whole.digest
    assert moments > 10
    for last in range(1, moments + 1):
        state = Path(shutil.copytree(learned, tmp_path / f"killed-{last}"))
        left, count_down, said = lines(3), last, list[dict[str, Any]]()

        def kill(_: str) -> None:
            nonlocal count_down
            count_down -= 1
            if not count_down:
                raise Killed

        with pytest.raises(Killed), process(state, said, kill, bring_back=False) as killed:
            while left:
                killed.apply(left.pop(0))
        with process(state, said, bring_back=False) as again:
            again.apply(*left)
            assert again.digest == expected, f"killed at moment {last}"
            assert said == records
            assert_nothing_lost(again, said)
        shutil.rmtree(state)


@pytest.mark.parametrize("late", [False, True], ids=["durable before it is said", "control: said before it is durable"])
def test_what_was_said_without_a_member_is_what_a_machine_on_which_it_works_replays(
    state: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    fault.plant(Transformer)
    if late:
        monkeypatch.setattr(Process, "_say", lambda found, frame: found.decided.append(frame))
    deliveries = 0

    def kill(moment: str) -> None:
        nonlocal deliveries
        deliveries += moment == "delivered"
        if deliveries == 2:
            raise Killed

    records: list[dict[str, Any]] = []
    fault.when = always
    with pytest.raises(Killed), process(state, records, kill) as live:
        live.apply(*lines(3)[:2])
    said = live.digest
    fault.when = never
    with process(state, records, bring_back=False) as again:
        assert (again.recovered_digest == said) is not late


def test_a_machine_on_which_it_stops_working_judges_without_it_from_what_it_has_to_replay_on(
    learned: Path, tmp_path: Path, fault: Fault
) -> None:
    """The state before the failed frame is no longer available; a restart would not change that."""
    fault.plant(Transformer)
    digests, told = [], []
    for kill_before in (True, False):
        fault.when = never
        state = Path(shutil.copytree(learned, tmp_path / f"killed-{kill_before}"))
        records: list[dict[str, Any]] = []
        with process(state, records) as live:
            first = live.seq + 1
            live.apply(*lines(5)[:4])
            fault.when = always
            if not kill_before:
                live.apply(lines(5)[4])
                digests.append(live.digest)
                said = live.decided
                again_said = [verdicts.seq for verdicts in live.delivered][4:]
                assert again_said[:5] == list(range(first, first + 5)), "judged anew, so said anew where it was not"
        if kill_before:
            with process(state, records, bring_back=False) as live:
                said = live.decided
        assert [frame.seq for frame in said if isinstance(frame, WithdrawnFrame)] == [first]
        with process(state, records, bring_back=False) as again:
            if kill_before:
                again.apply(lines(5)[4])
            digests.append(again.digest)
            assert_nothing_lost(again, records)
        told.append([record["id"] for record in records])
    assert digests[1] == digests[2]
    assert told[0] == told[1]


def test_what_fails_only_when_replayed_is_withdrawn_from_there_on(state: Path, fault: Fault) -> None:
    fault.plant(Transformer)
    records: list[dict[str, Any]] = []
    with process(state, records) as live:
        first = live.seq + 1
        live.apply(*lines(4))
        assert live.decided == []
    fault.when = always
    with process(state, records, bring_back=False) as again:
        assert [frame.seq for frame in again.decided if isinstance(frame, WithdrawnFrame)] == [first]
        assert_nothing_lost(again, records)
        expected = again.digest
    fault.when = never
    with process(state, records, bring_back=False) as third:
        assert (third.recovered_digest, third.decided) == (expected, [])


def test_what_fails_only_the_first_time_costs_nothing_but_time_until_it_has_done_so_too_often(
    state: Path, fault: Fault
) -> None:
    fault.plant(Transformer)
    records: list[dict[str, Any]] = []
    with process(state, records) as live:
        fault.when = lambda calls: live.live
        for number, frame in enumerate(lines(PATIENCE + 2), 1):
            live.apply(frame)
            assert live.recovered.report.retried_frames == min(number, PATIENCE)
            assert len(live.decided) == (number > PATIENCE)
        assert_nothing_lost(live, records)
        expected = live.digest
    fault.when = never
    with process(state, records, bring_back=False) as again:
        assert again.recovered_digest == expected


@pytest.mark.parametrize("every", [2, 3, 7])
def test_a_member_that_fails_now_and_then_loses_no_line_and_replays_alike(
    state: Path, fault: Fault, every: int
) -> None:
    fault.plant(Transformer)
    fault.when = lambda calls: calls % every == 0
    records: list[dict[str, Any]] = []
    for start in range(0, 9, 3):
        with process(state, records, bring_back=False) as live:
            live.apply(*lines(9)[start : start + 3])
            assert_nothing_lost(live, records)
            expected = live.digest
    fault.when = never
    with process(state, records, bring_back=False) as again:
        assert again.recovered_digest == expected


def test_members_that_learn_with_every_line_are_withdrawn_alike(state: Path, fault: Fault) -> None:
    fault.plant(ValueModel, "learn")
    access = b'10.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET /x?a=%d HTTP/1.1" 200 1 "-" "-"'
    fault.when = always
    with process(state) as live:
        live.apply(LinesFrame(RECEIVED, (segment([access % n for n in range(20)]),)))
        assert [each.member for each in live.detector.summary().withdrawn] == ["values"]
        assert live.detector.summary().lost_lines == 0
        expected = live.digest
    with process(state, bring_back=False) as again:
        assert again.recovered_digest == expected


def test_a_member_whose_arrays_cannot_be_loaded_costs_neither_the_start_nor_a_line(state: Path, fault: Fault) -> None:
    fault.plant(Transformer, "__init__")
    fault.when = always
    records: list[dict[str, Any]] = []
    with process(state, records) as live:
        (said,) = live.decided
        assert isinstance(said, WithdrawnFrame) and said.members.keys() == {"transformer"}
        assert "transformer" not in live.detector.summary().members
        live.apply(*lines(3))
        assert len(live.decided) == 1
        assert_nothing_lost(live, records)
        expected = live.digest
    fault.when = never
    with process(state, records) as again:
        assert again.recovered_digest == expected
        assert again.detector.summary().members == ALL


def test_a_model_that_takes_effect_brings_all_members_that_can_judge(state: Path, fault: Fault) -> None:
    fault.plant(Transformer)
    with process(state) as live:
        fault.when = always
        live.apply(lines(1)[0])
        assert live.detector.summary().withdrawn != ()
        fault.when = never
        live.apply(ModelFrame(2, live.detector.model.name, live.detector.model.sha256), model=live.detector.in_force)
        assert (live.detector.summary().withdrawn, live.detector.summary().members) == ((), ALL)


def test_a_question_that_a_member_cannot_answer_is_answered_by_the_others_and_withdraws_nobody(
    state: Path, fault: Fault
) -> None:
    fault.plant(Transformer)
    with process(state) as live:
        live.apply(lines(1)[0])
        before = live.digest
        fault.when = always
        (answer,) = live.detector.ask([b"1700000000.000 INFO id=q opened"], None, explain=True)
        ensemble = answer["details"]["ensemble"]
        assert set(ensemble["failed_models"]) == {"transformer", "isolation_forest"}
        assert ensemble["active_models"] == ["rule_based", "ngram", "counts", "sources"]
        assert (live.digest, live.detector.summary().members) == (before, ALL)
        fault.when = never
        (answer,) = live.detector.ask([b"1700000000.000 INFO id=q opened"], None)
        assert "failed_models" not in answer["details"]["ensemble"]


def test_without_the_journaled_withdrawal_a_healthy_process_comes_to_another_state(
    state: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the equal digests above."""
    fault.plant(Transformer)
    with process(state) as live:
        fault.when = always
        live.apply(*lines(3))
        expected = live.digest
    fault.when = never
    monkeypatch.setattr(Ladder, "members_left_out", lambda ladder, seq: {})
    with process(state, bring_back=False) as again:
        assert again.recovered_digest != expected


def test_returned_members_are_named_by_the_frame_that_brings_them_back(state: Path, fault: Fault) -> None:
    fault.plant(Transformer)
    with process(state) as live:
        fault.when = always
        live.apply(lines(1)[0])
        fault.when = never
        live.apply(ReturnedFrame(("transformer",)))
        # The forest was out because of it, and is withdrawn until it is named as well.
        assert [each.member for each in live.detector.summary().withdrawn] == ["isolation_forest"]
        live.apply(ReturnedFrame(("isolation_forest",)))
        assert live.detector.summary().members == ALL


def test_a_state_that_is_read_back_from_further_than_the_start_did_knows_what_was_decided_there(
    state: Path, fault: Fault
) -> None:
    """The newest snapshot is damaged while the daemon runs, and then a frame fails."""
    fault.plant(Transformer)
    with process(state) as live:
        fault.when = always
        live.apply(*lines(2))
        assert len(live.decided) == 1
        live.save()
    fault.when = never
    with process(state, bring_back=False) as again:
        newest = max(state.glob("snapshot-*"))
        newest.write_bytes(newest.read_bytes()[:-100])
        again.apply(lines(3)[2])
        before = again.digest
        seq, line, apply = again.detector.seq, again.detector.line, again.detector.apply
        failed = RuntimeError("could not create a primitive")

        def once(item: Any) -> Any:
            del again.detector.apply
            raise failed

        again.detector.apply = once  # type: ignore[method-assign]
        again.apply(ReturnedFrame(()))
        assert (again.detector.seq, again.detector.line) == (seq + 1, line)
        assert again.detector.apply != apply, "it was read back"
        assert again.recovered.report.retried_frames == 1
        assert digest({**again.detector.export(), "seq": seq}) == before


def test_what_was_decided_of_a_frame_is_journaled_once_though_the_frame_fails_for_a_moment_later() -> None:
    said: list[Frame] = []
    notes: list[str] = []
    entry = Entry(7, 100, 10, b"")
    ladder = Ladder(set(), {}, since=0, journal=said.append, set_aside=lambda _: None, note=notes.append)

    def fails(member: str) -> None:
        error = ApplyError(entry)
        error.__cause__ = MemberError(member)
        ladder.record_failure(error)

    fails("ngram")
    fails("ngram")
    ladder.journal_decision(entry)
    assert said == [WithdrawnFrame(7, {"ngram": "MemberError: ngram failed"})] and len(notes) == 1
    fails("transformer")  # when it is replayed once more, and then not
    ladder.journal_decision(entry)
    assert len(said) == len(notes) == ladder.retried == 1
    fails("transformer")
    fails("transformer")
    ladder.journal_decision(entry)
    assert isinstance(said[-1], WithdrawnFrame) and said[-1].members.keys() == {"ngram", "transformer"}
