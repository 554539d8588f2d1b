"""A direct-mapped cache of bounded size: where to store results that were computed before, by their exact keys.

A key is a row of 64-bit words, not all of them zero. Its hash gives it one place, and a newer key replaces an older
one there. Keys are compared word for word, so a result that is found always belongs to the key. Only whether it is
found depends on earlier look-ups; nothing else in the program may.
"""

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


class Places:
    """Which key is at which of `count` places (a power of two). The caller stores the values, one for each place."""

    def __init__(self, count: int, key_words: int) -> None:
        self._mask = np.uint64(count - 1)
        self._keys = np.zeros((count, key_words), dtype=np.uint64)

    def find(self, keys: Keys, hashes: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The place of each key, int64 [...], and whether it is stored there, bool [...].

        `keys` uint64 [..., words], `hashes` uint64 [...].
        """
        place = (hashes & self._mask).astype(np.int64)
        return place, (self._keys[place] == keys).all(axis=-1)

    def claim(self, keys: Keys, hashes: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Store `keys` uint64 [n, words] at their places. Returns these places and the index of the key that is now at
        each: both int64 [m], m <= n.

        Of several keys with the same place, the first is stored. The caller then stores the values.
        """
        place, chosen = np.unique((hashes & self._mask).astype(np.int64), return_index=True)
        self._keys[place] = keys[chosen]
        return place, chosen


def mixed(keys: Keys) -> Keys:
    """The words of `keys` uint64 [n, words], each mixed with its position; `folded` makes a hash of a sum of them."""
    words: Keys = (keys ^ (keys >> np.uint64(29))) * _MULTIPLIERS[: keys.shape[1]]
    return words


def folded(sums: Keys) -> Keys:
    """Hashes whose low bits depend on all bits of `sums`."""
    return sums ^ (sums >> np.uint64(32))


_MULTIPLIERS = np.array([pow(0x9E3779B97F4A7C15, power, 1 << 64) for power in range(1, 65)], dtype=np.uint64)
