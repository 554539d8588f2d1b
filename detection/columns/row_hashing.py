"""Hashes of rows of 64-bit words, by which memos find their keys. No state holds one."""

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]

_MULTIPLIERS = np.array([pow(0x9E3779B97F4A7C15, power, 1 << 64) for power in range(1, 65)], dtype=np.uint64)


def mixed_words(keys: Keys) -> Keys:
    """The words of `keys` uint64 [n, words], each mixed with its position; `folded_hashes` makes a hash of a sum of
    them."""
    words: Keys = (keys ^ (keys >> np.uint64(29))) * _MULTIPLIERS[: keys.shape[1]]
    return words


def folded_hashes(sums: Keys) -> Keys:
    """Hashes whose low bits depend on all bits of `sums`."""
    return sums ^ (sums >> np.uint64(32))
