"""Whether a message is an error, by the level word near its head."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BAD = rb"ERR|ERROR|FATAL|FTL|CRIT|CRITICAL|ALERT|EMERG|EMERGENCY|PANIC|SEVERE"
_GOOD = rb"TRACE|DEBUG|DBG|FINE|FINER|FINEST|CONFIG|INFO|INF|INFORMATION|NOTICE|LOG|WARN|WRN|WARNING"
HEAD_BYTES = 96

# A level in capitals counts anywhere in the head ("INFO [main] ..."). In other case it is prose unless it begins the
# message or is delimited: "[error]", "local.ERROR:", "sshd: error: PAM", "level=error".
# A single letter counts in front of a tag ("E AndroidRuntime: ", "F -  [conn11]") or bracketed ("[E]").
_LEVEL = re.compile(
    rb"(?<![\w-])(?:(" + _BAD + rb")|" + _GOOD + rb")(?![\w-])"
    rb"|(?:^|[\[<(|=\".,:/;])[ ]?(?i:(" + _BAD + rb")|" + _GOOD + rb")(?=$|[\]>)|:\",;])"
    rb"|^(?i:(" + _BAD + rb")|" + _GOOD + rb")(?=\s)"
    rb"|^(?:([EFCA])|[VDTIWNS])(?=,? +[\w\[-])|\[(?:([EF])|[VDTIWN])\]"
)
_HINTS = (
    *(b"ERR", b"FATAL", b"CRIT", b"ALERT", b"EMERG", b"PANIC", b"SEVERE", b"FTL", b"[E]", b"[F]"),
    *(b"\nE ", b"\nF ", b"\nC ", b"\nA ", b"\nE,", b"\nF,", b"\nC,", b"\nA,"),
)
_WORD = re.compile(rb"(?i)(?:" + _BAD + rb")$")

WORD_AHEAD = rb"[\[(<|\"]{0,2}(?i:" + _BAD + rb"|" + _GOOD + rb")\b"
"""A pattern that matches at a level word, for a lookahead that distinguishes a thread number from a count."""


def have_error_level(messages: Sequence[bytes]) -> NDArray[np.bool_]:
    """bool [n]: the first level word in the first 96 bytes of the message is "error" or worse."""
    found: NDArray[np.bool_] = np.zeros(len(messages), dtype=np.bool_)
    heads = [message[:HEAD_BYTES] for message in messages]
    # Most lines have no such word. Searching all heads at once for the hints, and then matching only the heads that
    # have one, costs a tenth of matching every head.
    capitals = b"\n" + b"\n".join(heads).upper()
    hits: list[int] = []
    for hint in _HINTS:
        at = capitals.find(hint)
        while at >= 0:
            hits.append(at)
            at = capitals.find(hint, at + 1)
    if hits:
        ends = np.cumsum([len(head) + 1 for head in heads])
        for row in np.unique(np.searchsorted(ends, hits, side="right")).tolist():
            level = _LEVEL.search(heads[row])
            found[row] = level is not None and level.lastindex is not None
    return found


def is_error_word(level: bytes) -> bool:
    """True if `level`, a word on its own, is "error" or worse; a single letter counts too."""
    return _WORD.match(level) is not None or level in (b"E", b"F", b"C", b"A")
