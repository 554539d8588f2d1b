"""What is known to be normal: answers that can be taken back, and shapes that the stream itself makes usual."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detection.causes import NEW, SHAPE
from detection.known import ANSWERS, NOTE_BYTES, RING, KnownCauses
from detection.state import digest


def causes(*numbers: int) -> NDArray[np.uint64]:
    return np.array(numbers, dtype=np.uint64)


def answer(known: KnownCauses, alert: str, cause: int, *, normal: bool, note: str = "", line: int = 1) -> None:
    known.answer(alert, cause, SHAPE, "sessions like this one", normal, note, line)


def standing(known: KnownCauses, *numbers: int) -> str:
    """One letter a cause: n normal, b bad, - neither, X both (which must not be)."""
    asked = causes(*numbers)
    return "".join("-nbX"[n + 2 * b] for n, b in zip(known.normal(asked), known.bad(asked), strict=True))


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
    known.answer("12.1", 0xAB, NEW, "new template: x", True, "a deploy", 77)
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
    row = '{"alert":"%d","cause":%d,"kind":3,"what":"w","normal":true,"note":"","line":1}'
    return ("[" + ",".join(row % (n, n) for n in range(1, count + 1)) + "]").encode()


def test_a_cause_of_25_in_1000_sessions_is_admitted_and_of_fewer_is_not() -> None:
    known = KnownCauses()
    known.closed(causes(*([0] * RING)))
    known.closed(causes(*([7] + [0] * 41) * 40))  # one in 42: never more than 24 of 1,000
    assert standing(known, 7) == "-"
    known.closed(causes(*([8] + [0] * 39) * 25))
    assert standing(known, 7, 8, 0) == "-n-" and (known.admitted, known.admissions) == (1, 1)


@pytest.mark.parametrize("others", [0, 175])
def test_a_young_stream_asks_for_as_many_sessions_as_an_old_one(others: int) -> None:
    known = KnownCauses()
    known.closed(causes(*[0] * others, *[7] * 24))
    assert standing(known, 7) == "-"
    known.closed(causes(7))
    assert standing(known, 7) == "n"


def test_what_is_admitted_stays_so_when_it_grows_rare() -> None:
    known = KnownCauses()
    known.closed(causes(*[7] * 25, *[0] * 3000))
    assert standing(known, 7) == "n"


def test_a_cause_answered_anomaly_is_never_admitted_and_no_longer_if_it_was() -> None:
    known = KnownCauses()
    answer(known, "1", 7, normal=False)
    known.closed(causes(*[7] * 500, *[8] * 500))
    assert standing(known, 7, 8) == "bn"
    answer(known, "2", 8, normal=False)
    assert standing(known, 7, 8) == "bb" and known.admitted == 0
    known.undo("1")
    assert standing(known, 7) == "-"
    known.closed(causes(7))  # it still is that frequent
    assert standing(known, 7) == "n"


def test_what_was_admitted_first_makes_room() -> None:
    known = KnownCauses(admitted=2)
    known.closed(causes(*[1] * 25, *[2] * 25, *[3] * 25))
    assert standing(known, 1, 2, 3) == "-nn" and (known.admitted, known.admitted_dropped) == (2, 1)
    known.closed(causes(1))
    assert standing(known, 1, 2, 3) == "n-n"


class Plain:
    """Admission, a session at a time."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.ring: list[int] = []
        self.admitted: list[int] = []

    def closed(self, numbers: list[int], bad: set[int]) -> None:
        for number in numbers:
            self.ring = [*self.ring, number][-RING:]
            frequent = Counter(self.ring)[number] >= 25
            if number and frequent and number not in bad and number not in self.admitted:
                self.admitted = [*self.admitted, number][-self.capacity :]


sessions = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 60)).map(lambda run: [run[0]] * run[1]), max_size=8
).map(lambda runs: [number for run in runs for number in run])
steps = st.lists(
    st.one_of(
        sessions,
        st.tuples(
            st.sampled_from(["1", "2", "3.1"]), st.integers(0, 5), st.sampled_from(["normal", "anomaly", "undo"])
        ),
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(steps, st.integers(1, 3))
def test_it_knows_what_it_was_told_however_it_is_told_and_however_often_it_restarts(
    told: list[list[int] | tuple[str, int, str]], capacity: int
) -> None:
    together, piecewise = (KnownCauses(admitted=capacity) for _ in range(2))
    plain, answers, said = Plain(capacity), dict[str, tuple[int, bool]](), dict[int, bool]()
    for step in told:
        if isinstance(step, list):
            together.closed(causes(*step))
            for number in step:
                piecewise.closed(causes(number))
            plain.closed(step, {cause for cause, normal in said.items() if not normal})
        else:
            alert, cause, what = step
            answers.pop(alert, None)
            for known in (together, piecewise):
                if what == "undo":
                    known.undo(alert)
                else:
                    answers[alert] = cause, what == "normal"
                    answer(known, alert, cause, normal=what == "normal")
            said = {cause: normal for cause, normal in answers.values() if cause}
            plain.admitted = [cause for cause in plain.admitted if said.get(cause, True)]
        state = piecewise.export()
        piecewise = KnownCauses.load(state, admitted=capacity)
        assert digest(piecewise.export()) == digest(state) == digest(together.export())
        expected = {cause: "n" for cause in plain.admitted} | {cause: "bn"[normal] for cause, normal in said.items()}
        assert standing(together, *range(6)) == "".join(expected.get(cause, "-") for cause in range(6))
        assert [each.alert for each in together.answers()] == list(answers)
