"""A direct-mapped cache of bounded size: where to store results that were computed before, by their exact keys.

A key is a row of 64-bit words, not all of them zero. Its hash gives it one slot, and a newer key replaces an older
one there. Keys are compared word for word, so a result that is found always belongs to the key. Only whether it is
found depends on earlier look-ups; nothing else in the program may.
"""

import numpy as np
from numpy.typing import NDArray

from detection.columns.row_hashing import Keys


class CacheSlots:
    """Which key is in which of `count` slots (a power of two). The caller stores the values, one for each slot."""

    def __init__(self, count: int, key_words: int) -> None:
        self._mask = np.uint64(count - 1)
        self._keys = np.zeros((count, key_words), dtype=np.uint64)

    def find(self, keys: Keys, hashes: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The slot of each key, int64 [...], and whether it is stored there, bool [...].

        `keys` uint64 [..., words], `hashes` uint64 [...].
        """
        slot = (hashes & self._mask).astype(np.int64)
        return slot, (self._keys[slot] == keys).all(axis=-1)

    def claim(self, keys: Keys, hashes: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Store `keys` uint64 [n, words] in their slots. Returns these slots and the index of the key that is now in
        each: both int64 [m], m <= n.

        Of several keys with the same slot, the first is stored. The caller then stores the values.
        """
        slot, chosen = np.unique((hashes & self._mask).astype(np.int64), return_index=True)
        self._keys[slot] = keys[chosen]
        return slot, chosen
