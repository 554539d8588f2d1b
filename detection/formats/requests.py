"""Which lines are HTTP requests: what the rules for request targets may look at.

An access log's lines all are. So are requests inside other formats (a JSON object that records one), which
`Fields` gives the contents of an access line; and a bare request line, as people type when they ask.
"""

import re

import numpy as np
from numpy.typing import NDArray

from detection.formats.fields import Fields

_RECORDED = re.compile(rb"[A-Z]{3,10} \S+ (?:\d{3}|-)")
_BARE = re.compile(rb"(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|PROPFIND) (/.*?)(?: HTTP/\d(?:\.\d)?)?", re.DOTALL)


def request_targets(fields: Fields) -> tuple[NDArray[np.bool_], list[bytes]]:
    """For each line whether it is a request (bool [n]), and the text that rules look at."""
    if fields.family == "access":
        return np.ones(len(fields.targets), dtype=np.bool_), fields.targets
    targets = list(fields.targets)
    found = np.zeros(len(targets), dtype=np.bool_)
    for i, contents in enumerate(fields.contents):
        # Upper-case ASCII first: most messages are dismissed without a search.
        if not contents[:3].isupper():
            continue
        if _RECORDED.fullmatch(contents):
            found[i] = True
        elif bare := _BARE.fullmatch(contents):
            found[i], targets[i] = True, bare[1]
    return found, targets
