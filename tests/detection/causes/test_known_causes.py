"""What is known to be normal: answers that can be taken back, and shapes that the stream itself makes usual."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detection.causes import known_causes as module
from detection.causes.fingerprints import NEW, SHAPE
from detection.causes.known_causes import (
    ADMITTED_KEYS,
    ANSWERS,
    MOST_OCCURRENCES,
    NOTE_BYTES,
    RECENT_SESSIONS,
    KnownCauses,
    OperatorAnswer,
)
from detection.columns.state_columns import digest


def causes(*numbers: int) -> NDArray[np.uint64]:
    return np.array(numbers, dtype=np.uint64)


class Stream:
    """Sessions one after another, each the place of one key; `show` says what the next ones show."""

    def __init__(self, known: KnownCauses) -> None:
        self.known = known
        self.begun = 0

    def show(self, *numbers: int, keys: int = 100) -> None:
        """A session a number, 0: it shows nothing; they are of `keys` keys in turn."""
        for number in numbers:
            self.begun += 1
            if number:
                key = self.begun % keys + 1 if keys else 0
                self.known.note_seen_causes(causes(number), np.array([self.begun]), causes(key))


def answer(known: KnownCauses, alert: str, cause: int, *, normal: bool, note: str = "", line: int = 1) -> None:
    known.answer(OperatorAnswer(alert, cause, SHAPE, "sessions like this one", normal, note, line, 0, ()))


def standing(known: KnownCauses, *numbers: int) -> str:
    """One letter a cause: n normal, b bad, - neither, X both (which must not be)."""
    asked = causes(*numbers)
    return "".join(
        "-nbX"[n + 2 * b] for n, b in zip(known.which_are_normal(asked), known.which_are_bad(asked), strict=True)
    )


def test_an_answer_holds_for_its_cause_and_no_other() -> None:
    known = KnownCauses()
    answer(known, "7", 5, normal=True)
    answer(known, "8", 6, normal=False)
    assert standing(known, 0, 4, 5, 6, 7, 2**64 - 1) == "--nb--"


def test_the_last_answer_to_a_cause_holds_and_undone_the_one_before() -> None:
    known = KnownCauses()
    answer(known, "7", 5, normal=True)
    answer(known, "9", 5, normal=False)
    assert standing(known, 5) == "b"
    assert known.undo("9") and standing(known, 5) == "n"
    answer(known, "9", 5, normal=False)
    answer(known, "7", 5, normal=True)  # said again: now it is the last
    assert standing(known, 5) == "n" and len(known.answers()) == 2
    assert known.undo("7") and standing(known, 5) == "b"
    assert known.undo("9") and standing(known, 5) == "-"
    assert not known.undo("9") and known.answers() == []


def test_an_answer_to_no_cause_makes_nothing_normal() -> None:
    known = KnownCauses()
    answer(known, "7", 0, normal=True)
    assert standing(known, 0) == "-" and len(known.answers()) == 1


def test_answers_are_listed_oldest_first_as_they_were_given() -> None:
    known = KnownCauses()
    known.answer(OperatorAnswer("12.1", 0xAB, NEW, "new template: x", True, "a deploy", 77, 0, ()))
    answer(known, "9", 6, normal=False)
    assert [each.as_dict() for each in known.answers()] == [
        {
            "id": "12.1", "answer": "normal", "kind": "new", "cause": "00000000000000ab",
            "what": "new template: x", "note": "a deploy", "line": 77,
        },
        {
            "id": "9", "answer": "anomaly", "kind": "shape", "cause": "0000000000000006",
            "what": "sessions like this one", "note": "", "line": 1,
        },
    ]  # fmt: skip


def test_what_the_answers_depend_on_is_named_once_and_that_of_the_last_one_first() -> None:
    known = KnownCauses()
    for number, template in enumerate((3, 0, 9, 3, 4), 1):
        known.answer(OperatorAnswer(str(number), number, NEW, "new template: x", number % 2 > 0, "", 1, template, ()))
    assert known.templates.tolist() == [4, 3, 9]
    assert KnownCauses.load(known.export()).templates.tolist() == [4, 3, 9]
    known.undo("4")
    assert known.templates.tolist() == [4, 9, 3]
    known.undo("1")
    assert known.templates.tolist() == [4, 9]


def told(known: KnownCauses, alert: str, cause: int, *shapes: int, normal: bool = True) -> None:
    known.answer(OperatorAnswer(alert, cause, NEW, "new template: x", normal, "", 1, 3, shapes))


def test_normal_holds_for_the_shapes_that_came_with_the_alert_as_long_as_it_holds_for_its_cause() -> None:
    known = KnownCauses()
    told(known, "1", 5, 6, 7)
    told(known, "2", 5, 7, 8)
    assert standing(known, 5, 6, 7, 8, 9) == "nnnn-"
    assert standing(KnownCauses.load(known.export()), 5, 6, 7, 8, 9) == "nnnn-"
    known.undo("1")
    assert standing(known, 5, 6, 7, 8) == "n-nn"
    told(known, "3", 5, 9, normal=False)
    assert standing(known, 5, 7, 8, 9) == "b---", "an anomaly is the template, not all that looks so"
    known.undo("3")
    assert standing(known, 5, 7, 8, 9) == "nnn-"


@pytest.mark.parametrize("first", ["the shape", "the template"])
def test_an_answer_to_a_shape_goes_before_one_that_it_only_comes_with(first: str) -> None:
    known = KnownCauses()
    if first == "the template":
        told(known, "1", 5, 6)
    answer(known, "2", 6, normal=False)
    if first == "the shape":
        told(known, "1", 5, 6)
    assert standing(known, 5, 6) == "nb"
    known.undo("2")
    assert standing(known, 5, 6) == "nn"


def test_the_oldest_answers_make_room_and_are_counted() -> None:
    known = KnownCauses(answers=2)
    for number in (1, 2, 3):
        answer(known, str(number), number, normal=True)
    assert standing(known, 1, 2, 3) == "-nn" and known.answers_dropped == 1


def test_a_note_of_any_length_takes_bounded_room() -> None:
    known = KnownCauses()
    answer(known, "1", 1, normal=True, note="é" * 5000)
    assert len(known.answers()[0].note.encode()) == NOTE_BYTES


def test_as_many_answers_as_are_kept_stay_within_bounds() -> None:
    known = KnownCauses.load(
        KnownCauses().export() | {"answers": np.frombuffer(_many_answers(ANSWERS), dtype=np.uint8)}
    )
    answer(known, "new", ANSWERS + 5, normal=True)
    assert len(known.answers()) == ANSWERS and standing(known, 1, 2, ANSWERS + 5) == "-nn"


def _many_answers(count: int) -> bytes:
    row = '{"alert":"%d","cause":%d,"kind":3,"what":"w","normal":true,"note":"","line":1,"template":0,"shapes":[]}'
    return ("[" + ",".join(row % (n, n) for n in range(1, count + 1)) + "]").encode()


def test_a_cause_of_25_in_1000_sessions_is_admitted_and_of_fewer_is_not() -> None:
    known = KnownCauses()
    stream = Stream(known)
    stream.show(*[0] * RECENT_SESSIONS)
    stream.show(*([7] + [0] * 41) * 40)  # one in 42: never more than 24 of 1,000
    assert standing(known, 7) == "-"
    stream.show(*([8] + [0] * 39) * 25)
    assert standing(known, 7, 8, 0) == "-n-" and (known.admitted, known.admissions) == (1, 1)


@pytest.mark.parametrize("others", [0, 175])
def test_a_young_stream_asks_for_as_many_sessions_as_an_old_one(others: int) -> None:
    known = KnownCauses()
    stream = Stream(known)
    stream.show(*[0] * others, *[7] * 24)
    assert standing(known, 7) == "-"
    stream.show(7)
    assert standing(known, 7) == "n"


def test_one_source_does_not_admit_itself_by_coming_back() -> None:
    known = KnownCauses()
    stream = Stream(known)
    stream.show(*[7] * 500, keys=1)
    stream.show(*[8] * 500, keys=4)
    stream.show(*[9] * 500, keys=5)
    assert standing(known, 7, 8, 9) == "--n"


def test_without_that_protection_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ADMITTED_KEYS", 1)
    known = KnownCauses()
    Stream(known).show(*[7] * 500, keys=1)
    assert standing(known, 7) == "n"


def test_sessions_without_a_key_speak_each_for_itself() -> None:
    known = KnownCauses()
    Stream(known).show(*[7] * 25, keys=0)
    assert standing(known, 7) == "n"


def test_what_is_admitted_stays_so_when_it_grows_rare() -> None:
    known = KnownCauses()
    Stream(known).show(*[7] * 25, *[0] * 3000)
    assert standing(known, 7) == "n"


def test_a_cause_answered_anomaly_is_never_admitted_and_no_longer_if_it_was() -> None:
    known = KnownCauses()
    stream = Stream(known)
    answer(known, "1", 7, normal=False)
    stream.show(*[7] * 500, *[8] * 400)
    assert standing(known, 7, 8) == "bn"
    answer(known, "2", 8, normal=False)
    assert standing(known, 7, 8) == "bb" and known.admitted == 0
    known.undo("1")
    assert standing(known, 7) == "-"
    stream.show(7)  # it still is that frequent
    assert standing(known, 7) == "n"


def test_what_was_admitted_first_makes_room() -> None:
    known = KnownCauses(admitted=2)
    stream = Stream(known)
    stream.show(*[1] * 25, *[2] * 25, *[3] * 25)
    assert standing(known, 1, 2, 3) == "-nn" and (known.admitted, known.admitted_dropped) == (2, 1)
    stream.show(1)
    assert standing(known, 1, 2, 3) == "n-n"


def test_a_flood_of_causes_takes_bounded_room() -> None:
    known = KnownCauses()
    for start in range(1, 20_001, 4000):
        numbers = np.arange(start, start + 4000, dtype=np.uint64)
        known.note_seen_causes(numbers, np.full(4000, 1), numbers)
    state = known.export()
    assert all(len(state[name]) == MOST_OCCURRENCES for name in ("ring.cause", "ring.place", "ring.key"))  # type: ignore[arg-type]
    assert known.admitted == 0


class Plain:
    """Admission, a session at a time: a cause and a key each, when it was the n-th to begin."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.ring: list[tuple[int, int, int]] = []
        self.admitted: list[int] = []

    def seen(self, cause: int, place: int, key: int, bad: set[int]) -> None:
        self.ring = [each for each in (*self.ring, (cause, place, key)) if each[1] > place - RECENT_SESSIONS]
        keys = [k for c, _, k in self.ring if c == cause]
        of_many = len({k for k in keys if k}) + keys.count(0) >= ADMITTED_KEYS
        if len(keys) >= 25 and of_many and cause not in bad and cause not in self.admitted:
            self.admitted = [*self.admitted, cause][-self.capacity :]


# A run of sessions: what each shows, how many they are, of how many keys, how many that show nothing between two.
sessions = st.tuples(st.integers(1, 5), st.integers(1, 60), st.integers(0, 6), st.sampled_from([0, 1, 30, 45])).map(
    list
)
steps = st.lists(
    st.one_of(
        sessions,
        st.tuples(
            st.sampled_from(["1", "2", "3.1"]), st.integers(0, 5), st.sampled_from(["normal", "anomaly", "undo"])
        ),
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(steps, st.integers(1, 3))
def test_known_causes_are_those_of_plain_lists_however_often_it_restarts(
    told: list[list[int] | tuple[str, int, str]], capacity: int
) -> None:
    straight, broken = (KnownCauses(admitted=capacity) for _ in range(2))
    plain, answers, said, begun = Plain(capacity), dict[str, tuple[int, bool]](), dict[int, bool](), 0
    for step in told:
        if isinstance(step, list):
            cause, count, keys, apart = step
            for number in range(count):
                begun += 1 + apart
                key = number % keys + 1 if keys else 0
                for known in (straight, broken):
                    known.note_seen_causes(causes(cause), np.array([begun]), causes(key))
                plain.seen(cause, begun, key, {bad for bad, normal in said.items() if not normal})
        else:
            alert, cause, what = step
            answers.pop(alert, None)
            for known in (straight, broken):
                if what == "undo":
                    known.undo(alert)
                else:
                    answers[alert] = cause, what == "normal"
                    answer(known, alert, cause, normal=what == "normal")
            said = {cause: normal for cause, normal in answers.values() if cause}
            plain.admitted = [cause for cause in plain.admitted if said.get(cause, True)]
        state = broken.export()
        broken = KnownCauses.load(state, admitted=capacity)
        assert digest(broken.export()) == digest(state) == digest(straight.export())
        expected = {cause: "n" for cause in plain.admitted} | {cause: "bn"[normal] for cause, normal in said.items()}
        assert standing(straight, *range(6)) == "".join(expected.get(cause, "-") for cause in range(6))
        assert [each.alert for each in straight.answers()] == list(answers)
