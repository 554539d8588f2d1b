"""Cache slots: a result that is found is the one that was stored for the key; a replaced one is not found."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detection.columns.memo_cache import CacheSlots
from detection.columns.row_hashing import Keys, folded_hashes, mixed_words

batches = st.lists(
    st.tuples(st.booleans(), st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True)), max_size=12
)


def _keys(numbers: list[int]) -> Keys:
    return np.array([[number % 7, number + 1, 5] for number in numbers], dtype=np.uint64)


def _hashes(keys: Keys) -> NDArray[np.uint64]:
    return folded_hashes(mixed_words(keys).sum(axis=1))


@given(batches, st.sampled_from([1, 4, 64]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_key_that_is_found_has_its_own_value(
    drawn: list[tuple[bool, list[int]]], count: int, all_collide: bool
) -> None:
    slots = CacheSlots(count, 3)
    values = np.full(count, -1)
    held: dict[int, int] = {}  # slot -> number
    for put, numbers in drawn:
        keys = _keys(numbers)
        hashes = np.zeros(len(keys), np.uint64) if all_collide else _hashes(keys)
        slot, found = slots.find(keys, hashes)
        assert [held.get(int(at)) == number for at, number in zip(slot, numbers, strict=True)] == list(found)
        assert list(values[slot[found]]) == list(np.array(numbers)[found])
        if put:
            claimed, chosen = slots.claim(keys, hashes)
            assert len(set(claimed)) == len(claimed)
            assert set(claimed) == set(slot)
            values[claimed] = np.array(numbers)[chosen]
            held |= {int(at): numbers[number] for at, number in zip(claimed, chosen, strict=True)}


def test_nothing_is_found_in_an_empty_table() -> None:
    keys = _keys(list(range(41)))
    assert not CacheSlots(64, 3).find(keys, _hashes(keys))[1].any()


def test_hashes_fill_a_table_about_as_evenly_as_chance() -> None:
    rng = np.random.default_rng(1)
    tokens = np.minimum(rng.geometric(0.2, (4096, 16)), 30).astype(np.int16)  # few tokens, often the same
    keys = np.unique(tokens, axis=0).view(np.uint64)
    filled = len(np.unique(_hashes(keys) % np.uint64(4096)))
    assert abs(filled / 4096 - (1 - np.exp(-len(keys) / 4096))) < 0.03
