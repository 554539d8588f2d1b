"""The input of online members: parsed lines with their template ids and rule hits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.formats.fields import Fields
from detection.rules.rule_matching import Hits


@dataclass(frozen=True, slots=True)
class LinesOfAKind:
    """The m lines of one format.

    at       int64 [m] ascending: their indices among all lines; `fields` are theirs
    targets  the part of each that rules are matched against; `web` bool [m]: it is an HTTP request
    """

    at: NDArray[np.int64]
    fields: Fields
    targets: Sequence[bytes]
    web: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ParsedLines:
    """n lines, parsed.

    ids         int32 [n]: template ids
    hits        of rules
    kinds       the lines by format
    matched_in  the target and the user agent of each line, which rules were matched against
    origins     the client that each line names, b"" for none
    """

    ids: NDArray[np.int32]
    hits: Hits
    kinds: Sequence[LinesOfAKind]
    matched_in: Sequence[tuple[bytes, bytes]]
    origins: Sequence[bytes]
