"""What online members see of lines: their fields, and what was found in them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.formats.fields import Fields
from detection.rules.engine import Hits


@dataclass(frozen=True, slots=True)
class LinesOfAKind:
    """Lines that one format fits: `at` int64 [m] ascending says which, `fields` are theirs; `web` bool [m] says which
    are HTTP requests, and `targets` is what rules look at of each."""

    at: NDArray[np.int64]
    fields: Fields
    targets: Sequence[bytes]
    web: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ParsedLines:
    """What n lines say: template ids int32 [n], the rules' hits, and of each line the target and the agent that rules
    were matched against, and the client that it names, b"" for none."""

    ids: NDArray[np.int32]
    hits: Hits
    kinds: Sequence[LinesOfAKind]
    matched_in: Sequence[tuple[bytes, bytes]]
    origins: Sequence[bytes]
