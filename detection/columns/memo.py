"""Places for what was computed before, found again by its exact key: a table of bounded size.

A key is a row of 64-bit words, not all of them zero. Each key has one place, by its hash, and a newer key
takes the place of an older one. Keys are compared word for word, so what is found is always that of the key;
whether it is found depends on what was asked before, and so nothing else may.
"""

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


class Places:
    """Which key is at which of `count` places (a power of two); the values are the caller's."""

    def __init__(self, count: int, key_words: int) -> None:
        self._mask = np.uint64(count - 1)
        self._keys = np.zeros((count, key_words), dtype=np.uint64)

    def find(self, keys: Keys, hashes: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The places of `keys` [..., words], and which keys are there."""
        place = (hashes & self._mask).astype(np.int64)
        return place, (self._keys[place] == keys).all(axis=-1)

    def claim(self, keys: Keys, hashes: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give `keys` [n, words] their places: which places, and the number of the key that now is at each.

        Two keys may want one place; then one of them gets it. The caller puts the values there.
        """
        place, chosen = np.unique((hashes & self._mask).astype(np.int64), return_index=True)
        self._keys[place] = keys[chosen]
        return place, chosen


def mixed(keys: Keys) -> Keys:
    """The words of `keys` [n, words] mixed by their place: any sum of them, folded, is a hash of those words."""
    words: Keys = (keys ^ (keys >> np.uint64(29))) * _MULTIPLIERS[: keys.shape[1]]
    return words


def folded(sums: Keys) -> Keys:
    """Hashes whose low bits depend on all of `sums`."""
    return sums ^ (sums >> np.uint64(32))


_MULTIPLIERS = np.array([pow(0x9E3779B97F4A7C15, power, 1 << 64) for power in range(1, 65)], dtype=np.uint64)
