"""Which lines are HTTP requests, and so subject to the rules for request targets.

All lines of an access log are. So are requests inside other formats (a JSON object that records one), whose
contents in `Fields` are those of an access line, and a bare request line, as people type it into a query.
"""

import re

import numpy as np
from numpy.typing import NDArray

from detection.formats.fields import Fields

_RECORDED = re.compile(rb"[A-Z]{3,10} \S+ (?:\d{3}|-)")
_BARE = re.compile(rb"(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|PROPFIND) (/.*?)(?: HTTP/\d(?:\.\d)?)?", re.DOTALL)


def request_targets(fields: Fields) -> tuple[NDArray[np.bool_], list[bytes]]:
    """Whether each line is a request (bool [n]), and for each line the text that rules match."""
    if fields.family == "access":
        return np.ones(len(fields.targets), dtype=np.bool_), fields.targets
    targets = list(fields.targets)
    found = np.zeros(len(targets), dtype=np.bool_)
    for i, contents in enumerate(fields.contents):
        # Test for capitals first: it dismisses most messages without a regular expression.
        if not contents[:3].isupper():
            continue
        if _RECORDED.fullmatch(contents):
            found[i] = True
        elif bare := _BARE.fullmatch(contents):
            found[i], targets[i] = True, bare[1]
    return found, targets
