"""Masks replace the values in a log line by `<*>` and leave the words of the program that wrote it.

A message is masked in two steps, so that the common line costs little. `skeletons_of_contents` works on a batch and
shortens every word (a run of ASCII letters and digits) that contains a digit:

    hexadecimal digits only            0              4096  1f  f3d4d4ef
    starts with a digit                0              0x1f  10ms  64K  3com
    otherwise, letters up to a digit   letters + 0    jk2 -> jk0   U01 -> U0   ssh2 -> ssh0

A real stream has few skeletons, so the second step is cached by skeleton: `message_tokens` masks dates,
values of `key=value`, chains of numbers (addresses with ports, times, versions, UUIDs), paths and URLs.
Requests have rules of their own (`request_tokens`): the status code and the names of files and folders stay.

The result depends on the bytes alone and takes linear time. Only the first `MAX_BYTES` of a content and its first
`MAX_TOKENS` words or `MAX_SEGMENTS` path segments count.
"""

import re
from collections.abc import Sequence

import numpy as np

MAX_BYTES = 2048
MAX_TOKENS = 128
MAX_SEGMENTS = 16
WILD = b"<*>"

# No control byte survives, so a token never holds a separator: templates are kept as lines of words.
_CLEAN = bytes(32 if c < 32 or c == 127 else c for c in range(256))

_DIGIT = np.zeros(256, bool)
_DIGIT[list(b"0123456789")] = True
_BEYOND_HEX = np.zeros(256, bool)
_BEYOND_HEX[list(b"ghijklmnopqrstuvwxyzGHIJKLMNOPQRSTUVWXYZ")] = True
_WORD = _DIGIT | _BEYOND_HEX
_WORD[list(b"abcdefABCDEF")] = True


def skeletons_of_contents(contents: Sequence[bytes]) -> list[bytes]:
    """The skeleton of the first `MAX_BYTES` of each content, in order; control bytes become spaces."""
    if not contents:
        return []
    joined = b"\n".join([content[:MAX_BYTES].translate(_CLEAN) for content in contents])
    data = np.frombuffer(joined, np.uint8)
    digits = np.flatnonzero(_DIGIT[data])
    if not len(digits):
        return joined.split(b"\n")
    edges = np.flatnonzero(np.diff(_WORD[data], prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    # The first digit at or after each word's start; the word holds it if it lies before the word's end.
    first = digits[np.minimum(np.searchsorted(digits, starts), len(digits) - 1)]
    held = (first >= starts) & (first < ends)
    starts, ends, first = starts[held], ends[held], first[held]
    beyond_hex = np.concatenate(([0], np.cumsum(_BEYOND_HEX[data], dtype=np.int32)))
    zero = np.where(beyond_hex[starts] == beyond_hex[ends], starts, first)
    # The bytes between a word's zero and its end are removed: +1 opens such a stretch, -1 closes it.
    depth = np.zeros(len(data) + 1, np.int8)
    depth[zero + 1] = 1
    depth[ends] -= 1
    out = data.copy()
    out[zero] = ord("0")
    shortened: bytes = out[np.cumsum(depth[:-1], dtype=np.int8) == 0].tobytes()
    return shortened.split(b"\n")


# `Sat May 8 09:04:50 EDT 2004` and its like: the names of days and months are values too.
_DATE = re.compile(
    rb"\b(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]{0,6},? {1,2})?"
    rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6} {1,2}0,? {1,2}0"
    rb"(?::0){1,2}(?:\.0)?(?: [A-Z]{3,4})?(?: 0)?\b"
)
# Groups of hexadecimal digits, of which some may be letters only: MAC and IPv6 addresses, UUIDs.
_GROUPS = re.compile(rb"\b(?:(?:0|[A-Fa-f]{1,8})[:-]{1,2}){4,7}(?:0|[A-Fa-f]{1,12})\b")
# `key=value`: the value, up to a delimiter.
_ASSIGNED = re.compile(rb"(?<=[\w)\]])=[^\s,;=()\[\]{}<>&\"']+")
# A number with its sign and everything joined to it by punctuation: 0.0.0.0:0, 0-0-0.dsl.example, 0%.
_CHAIN = re.compile(rb"(?:(?<![A-Za-z0-9.)])[-+])?0(?>(?:[.:/,@_-]0|[._-]\w+)*)%?")
# Absolute paths and URLs; numbers in them are masked already.
_PATH = re.compile(rb"(?<![\w.>*)/~%@$+:<-])(?:[a-z]{1,12}:/)?/[\w.~%@$+:*<>/-]*+")


def message_tokens(skeleton: bytes) -> list[bytes]:
    """The words of a message with its values masked; at most `MAX_TOKENS`, none for a blank line."""
    masked = skeleton
    if b"0" in masked:
        masked = _GROUPS.sub(b"0", _DATE.sub(b"0", masked))
    if b"=" in masked:
        masked = _ASSIGNED.sub(b"=" + WILD, masked)
    if b"0" in masked:
        masked = _CHAIN.sub(WILD, masked)
    if b"/" in masked:
        masked = _PATH.sub(WILD, masked)
    return masked.split(None, MAX_TOKENS)[:MAX_TOKENS]


_METHOD_BYTES = 16
_NUMBER = re.compile(rb"\d+(?>(?:[._-]\d+)*)")
_EXTENSION = re.compile(rb"\.[A-Za-z][A-Za-z0-9]{0,4}\Z")
_IDENTIFIER = re.compile(rb"\d[A-Za-z]|%")


def request_tokens(content: bytes) -> list[bytes]:
    """The tokens of `METHOD path STATUS`: the status, the method and the path's segments with their values masked.

    A missing field is an empty token; one `<*>` stands for all segments beyond `MAX_SEGMENTS`.
    """
    method, _, rest = content.translate(_CLEAN).partition(b" ")
    path, _, status = rest.rpartition(b" ")
    segments = path[:MAX_BYTES].replace(b" ", b"+").split(b"/", MAX_SEGMENTS)
    tokens = [_masked_path_segment(segment) for segment in segments[:MAX_SEGMENTS]]
    if len(segments) > MAX_SEGMENTS:
        tokens.append(WILD)
    return [status[:_METHOD_BYTES], method[:_METHOD_BYTES], *tokens]


def _masked_path_segment(segment: bytes) -> bytes:
    """A file or folder name with its numbers masked; only `<*>` and the extension if the rest is no name either."""
    if segment.isalpha() and len(segment) <= 24:
        return segment
    suffix = file_extension(segment)
    name = segment[: len(segment) - len(suffix)]
    if len(name) > 40 or _IDENTIFIER.search(name) or _is_article_slug(name, suffix):
        return WILD + suffix
    masked = _NUMBER.sub(WILD, name)
    return (WILD if masked.count(WILD) > 2 else masked) + suffix


def file_extension(segment: bytes) -> bytes:
    """The extension with its dot, `.png` of `logo.png`; b"" if there is none."""
    found = _EXTENSION.search(segment[-6:])
    return found[0] if found else b""


def _is_article_slug(name: bytes, suffix: bytes) -> bool:
    # The title of an article in a path has four words or more. So have names of scripts and styles, which stay.
    words = 1 + name.count(b"-") + name.count(b"_") + name.count(b"+")
    return words >= 4 and suffix in (b"", b".html", b".htm", b".php") and len(name) >= 16
