"""What the member `sources` counts in a line: the client that it names, failures, and the requested resource."""

import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detection.formats.fields import Fields

_IPV4 = rb"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)"
# Eight groups, or fewer around one "::"; a time of day has neither.
_IPV6 = (
    rb"(?<![\w:.])(?:(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}"
    rb"|(?=[0-9a-fA-F:]*::)(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{1,4})(?!\w|:[0-9a-fA-F:])"
)
# PAM names the far end by its host name where it can.
_SOURCE = re.compile(rb"\brhost=([^\s=]{1,255})|(?:::ffff:)?(" + _IPV4 + rb")|(" + _IPV6 + rb")")
_PAM = re.compile(rb"\brhost=")
_IPV6_BYTES = 35  # seven groups and colons may stand before a "::"
_ADDRESS = re.compile(rb"(?:::ffff:)?(?:(?:\d{1,3}\.){3}\d{1,3}|(?=[^:]*:[^:]*:)[0-9a-fA-F:.]{2,45})")

# "0 failed" and "failures=0" report that nothing failed.
_FAILURE = re.compile(
    rb"(?<!\b0 )(?<!\bno )(?<![a-z])(?:fail(?:ed|ures?|s)?|invalid|denied|refused|rejected|illegal|unauthori[sz]ed"
    rb"|forbidden|not allowed|unknown user|user unknown|(?:bad|wrong|incorrect) password)(?![a-z]|[=:]\s?0\b)"
)
_HINTS = (
    *(b"fail", b"invalid", b"denied", b"refused", b"rejected", b"illegal", b"unauthori", b"forbidden"),
    *(b"not allowed", b"unknown user", b"user unknown", b"d password", b"g password", b"t password"),
)
_REQUEST = re.compile(rb"[A-Z]{3,10} \S+ (?:\d{3}|-)")  # its status decides, whatever its path says


def sources_of(fields: Fields) -> list[bytes]:
    """The client of each line, b"" if it names none.

    For an access line, and for a request inside another format, it is the key of the line's format. In other text it is
    the first IPv4 or IPv6 address, or the `rhost=` that PAM writes.
    """
    if fields.family == "access":
        return fields.keys
    contents = fields.contents
    sources = [b""] * len(contents)
    for row, start in _rows_likely_with_address(contents):
        if found := _SOURCE.search(contents[row], start):
            sources[row] = found[found.lastindex or 0]
    clients = {key for key in set(fields.keys) if key and _ADDRESS.fullmatch(key)}
    if clients:
        sources = [key if key in clients else found for key, found in zip(fields.keys, sources, strict=True)]
    return sources


def failures_of(fields: Fields) -> NDArray[np.bool_]:
    """Which lines report a failure, bool [n]: `fields.errors`, and text with a word for refusal or failure."""
    if fields.family == "access":
        return fields.errors
    found = fields.errors.copy()
    lowered = b"\n".join(fields.contents).lower()
    hits: list[int] = []
    for hint in _HINTS:
        at = lowered.find(hint)
        while at >= 0:
            hits.append(at)
            at = lowered.find(hint, at + 1)
    if not hits:
        return found
    ends = np.cumsum([len(text) + 1 for text in fields.contents])
    for row in np.unique(np.searchsorted(ends, hits, side="right")).tolist():
        text = fields.contents[row]
        if not found[row] and not _REQUEST.fullmatch(text):
            found[row] = _FAILURE.search(text.lower()) is not None
    return found


def resources_of(contents: Sequence[bytes]) -> NDArray[np.uint64]:
    """The CRC-32 of each line's contents: uint64 [n]."""
    return np.fromiter(map(zlib.crc32, contents), dtype=np.uint64, count=len(contents))


def _rows_likely_with_address(contents: Sequence[bytes]) -> list[tuple[int, int]]:
    """The rows that may contain an address, each with the position from which to search.

    Signs are three dots or four colons close together, "::", or PAM's word. All rows are searched at once, as most have
    none of these.
    """
    if not contents:
        return []
    joined = b"\n".join(contents)
    data = np.frombuffer(joined, dtype=np.uint8)
    dots, colons = np.flatnonzero(data == ord(".")), np.flatnonzero(data == ord(":"))
    signs = [
        (_crowded_positions(dots, 3, 4), 3),
        (_crowded_positions(colons, 4, 5), 4),
        (_crowded_positions(colons, 2, 1), _IPV6_BYTES),
    ]
    if b"rhost=" in joined:
        signs.append((np.array([found.start() for found in _PAM.finditer(joined)], dtype=np.int64), 0))
    at = np.concatenate([sign for sign, _ in signs])
    before = np.repeat([back for _, back in signs], [len(sign) for sign, _ in signs])
    ends = np.cumsum([len(text) + 1 for text in contents])
    row = np.searchsorted(ends, at, side="right")
    first = np.full(len(contents), len(joined))
    np.minimum.at(first, row, at - before)
    rows = np.unique(row)
    starts = np.maximum(first[rows] - (ends[rows] - np.diff(ends, prepend=0)[rows]), 0)
    return list(zip(rows.tolist(), starts.tolist(), strict=True))


def _crowded_positions(at: NDArray[np.int64], many: int, apart: int) -> NDArray[np.int64]:
    """Those of the positions `at` that `many - 1` others follow, each at most `apart` after the last."""
    near = np.diff(at) <= apart
    if len(near) < many - 1:
        return at[:0]
    return at[: len(at) - many + 1][np.lib.stride_tricks.sliding_window_view(near, many - 1).all(axis=1)]
