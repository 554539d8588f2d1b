import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from detection.causes import fingerprints as causes
from detection.causes.fingerprints import NEW, RULE, SHAPE, SOURCE, VALUE


def ids(*numbers: int) -> NDArray[np.int32]:
    return np.array(numbers, dtype=np.int32)


def counts(*columns: int) -> NDArray[np.uint8]:
    row = np.zeros(causes.SHAPE_COLUMNS, dtype=np.uint8)
    row[: len(columns)] = columns
    return row


def shape(*columns: int, closed: bool = True) -> int:
    return int(causes.shape_causes(counts(*columns)[None], np.array([closed]))[0])


def test_a_rule_goes_by_its_name_wherever_it_stands_in_the_list() -> None:
    here = causes.rule_causes(["sqli", "xss"], ids(0, 1, 0), ids(7, 7, 8))
    there = causes.rule_causes(["other", "xss", "sqli"], ids(2, 1, 2), ids(7, 7, 8))
    assert here.tolist() == there.tolist() and len(set(here.tolist())) == 3


def test_the_same_number_means_another_thing_to_another_kind() -> None:
    [by_template] = causes.new_causes(ids(7)).tolist()
    [by_rule] = causes.rule_causes([""], ids(0), ids(7)).tolist()
    [by_source] = causes.source_causes(np.array([b"\x07"])).tolist()
    assert len({by_template, by_rule, by_source, shape(7)}) == 4


@pytest.mark.parametrize(("one", "other"), [(3, 4), (5, 8), (9, 16), (17, 32), (129, 255)])
def test_counts_of_one_level_are_one_shape(one: int, other: int) -> None:
    assert shape(1, one) == shape(1, other)


@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 2), (2, 3), (4, 5), (8, 9), (16, 17), (128, 129)])
def test_counts_of_different_levels_are_different_shapes(one: int, other: int) -> None:
    assert shape(1, one) != shape(1, other)


def test_a_shape_knows_its_columns_and_whether_the_session_ended() -> None:
    assert len({shape(1, 2), shape(2, 1), shape(0, 1, 2), shape(1, 2, closed=False)}) == 4
    assert len({shape(*([0] * column + [1])) for column in range(64)}) == 64


@given(st.lists(st.binary(min_size=1, max_size=65).filter(lambda key: key[-1] != 0), min_size=1, max_size=20))
def test_a_source_is_the_same_in_a_column_of_any_width(keys: list[bytes]) -> None:
    tight = causes.source_causes(np.array(keys)).tolist()
    assert tight == causes.source_causes(np.array(keys, dtype="S65")).tolist()
    assert tight == [int(causes.source_causes(np.array([key]))[0]) for key in keys]
    assert len(set(tight)) == len(set(keys)) and 0 not in tight


def test_causes_do_not_collide_by_accident() -> None:
    numbers = np.arange(200_000, dtype=np.int32)
    assert len(np.unique(causes.new_causes(numbers))) == len(numbers)
    keys = np.array([b"10.%d.%d.%d" % (n >> 16, n >> 8 & 255, n & 255) for n in range(100_000)])
    assert len(np.unique(causes.source_causes(keys))) == len(keys)


def test_no_rows_give_no_causes() -> None:
    none = ids()
    assert causes.rule_causes([], none, none).shape == causes.new_causes(none).shape == (0,)
    assert causes.source_causes(np.zeros(0, dtype="S65")).shape == (0,)
    assert causes.shape_causes(np.zeros((0, 64), dtype=np.uint8), np.zeros(0, dtype=np.bool_)).shape == (0,)


def test_causes_stay_what_they_are_for_they_are_written_into_files() -> None:
    assert [causes.cause_as_text(int(cause)) for cause in causes.new_causes(ids(1, 2))] == [
        "30c92b00e56ebcf3",
        "2174261ad8e3993d",
    ]
    assert causes.cause_as_text(shape(1, 0, 3)) == "4adb46a9df5649a5"
    assert causes.cause_as_text(int(causes.rule_causes(["sqli-union"], ids(0), ids(1))[0])) == "de5d50cd42530e23"
    assert causes.cause_as_text(int(causes.source_causes(np.array([b"\x01203.0.113.9"]))[0])) == "3db1e9f1fbcd9c04"


@given(st.integers(1, 2**64 - 1))
def test_a_cause_is_read_back_as_it_is_shown(cause: int) -> None:
    assert causes.cause_from_text(causes.cause_as_text(cause)) == cause


@pytest.mark.parametrize("text", ["", "1", "g" * 16, "0" * 17, "0x" + "0" * 14, "1_" * 8])
def test_what_is_no_cause_is_not_read(text: str) -> None:
    with pytest.raises(ValueError):
        causes.cause_from_text(text)


@given(st.text(max_size=300), st.integers(0, 200))
def test_clipped_text_fits_its_column_and_comes_back_from_it(text: str, limit: int) -> None:
    short = causes.clipped_text(text, limit)
    encoded = short.encode()
    assert len(encoded) <= limit and b"\0" not in encoded
    assert np.array([encoded], dtype=f"S{max(limit, 1)}")[0] == encoded


def test_causes_are_described_in_words() -> None:
    assert causes.cause_in_words(RULE, rule="sqli-union", template="GET /x 200") == "rule sqli-union on GET /x 200"
    assert causes.cause_in_words(NEW, template="disk <*> full") == "new template: disk <*> full"
    assert causes.cause_in_words(SHAPE) == "sessions like this one"
    assert causes.cause_in_words(SHAPE, session="blk_7") == "sessions like that of blk_7"
    assert causes.cause_in_words(SOURCE, source="1.2.3.4") == "behaviour of 1.2.3.4"
    assert causes.cause_in_words(VALUE, template="GET /search") == "unusual parameter values in GET /search"
