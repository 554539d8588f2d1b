"""Causes: a number for what an alert is about, the same for all alerts about the same event or behaviour.

    RULE    a rule on a template                    hash(name of the rule, template)
    NEW     a template unknown to the model         hash(template)
    SHAPE   sessions made of these templates        hash(levels of their counts; whether the session closed)
    SOURCE  the behaviour of one client             hash(its key)
    VALUE   unusual parameter values in a template  hash(template)

Alerts of one cause are one incident, and an answer to one of them holds for the cause. So a cause must not depend on
anything that may change while its subject stays the same, such as numbers of rules, slots or generations: a rule is
identified by its name, a shape by levels of counts instead of counts.

Causes are unsigned 64-bit numbers, never 0, which stands for "none". The hash is splitmix64's finaliser over 8-byte
words; these are summed, and the sum is finished with a salt for the kind. It is not keyed: a client that can try 2**32
shapes can make two of them collide, and one is then taken for the other. A rule's cause cannot be forged this way,
because clients do not choose the names of rules.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detection.rules.rule_matching import Hits, RuleSet

Causes = NDArray[np.uint64]

NONE, RULE, NEW, SHAPE, SOURCE, VALUE = range(6)
KINDS = ("none", "rule", "new", "shape", "source", "value")  # as records and the API name them
SHAPE_COLUMNS = 64
WHAT_BYTES = 160


def rule_causes(names: Sequence[str], rules: NDArray[np.integer], templates: NDArray[np.integer]) -> Causes:
    """The causes of hits of the rules `names[rules]` on lines of `templates`, both [m]: uint64 [m]."""
    hashes = np.array([_text_hash(name) for name in names], dtype=np.uint64)
    return _causes_of_sums(RULE, _splitmix64(hashes[rules]) + _splitmix64(templates.astype(np.uint64) ^ _hash_salt(1)))


def hit_causes(rules: RuleSet, hits: Hits, templates: NDArray[np.integer]) -> tuple[NDArray[np.int32], Causes]:
    """The lines that were hit, ascending, and the cause of each: its rule of highest confidence on its template.

    `templates` [n] are those of all lines.
    """
    surest = rules.surest_hits(hits)
    lines = hits.lines[surest]
    return lines, rule_causes(rules.names, hits.rules[surest], templates[lines])


def new_causes(templates: NDArray[np.integer]) -> Causes:
    """The causes of `templates` [m] that the model in force does not know: uint64 [m]."""
    return _causes_of_sums(NEW, _splitmix64(templates.astype(np.uint64) ^ _hash_salt(1)))


def shape_causes(counts: NDArray[np.uint8], closed: NDArray[np.bool_]) -> Causes:
    """The shapes of m sessions from the counts of their templates, `counts` uint8 [m, 64]: uint64 [m].

    `closed` bool [m]: the session has ended. Counts are reduced to levels 0, 1, 2, 3-4, 5-8, 9-16, ...: five retries
    and seven are one shape, one and two are not.
    """
    levels = np.ascontiguousarray(_LEVELS[counts])
    return _causes_of_sums(SHAPE, _words_hash(levels.view("<u8")) + np.where(closed, _hash_salt(2), _hash_salt(3)))


def source_causes(keys: NDArray[np.bytes_]) -> Causes:
    """The causes of clients by their keys [m], fixed-width bytes: uint64 [m]. The width of the column does not
    matter."""
    words = max(-(-keys.dtype.itemsize // 8), 1)
    padded = np.ascontiguousarray(keys.astype(f"S{words * 8}"))
    return _causes_of_sums(SOURCE, _words_hash(padded.view("<u8").reshape(len(keys), words)))


def value_causes(templates: NDArray[np.integer]) -> Causes:
    """The causes of unusual parameter values in lines of `templates` [m]: uint64 [m]."""
    return _causes_of_sums(VALUE, _splitmix64(templates.astype(np.uint64) ^ _hash_salt(1)))


def cause_in_words(kind: int, *, template: str = "", rule: str = "", source: str = "", session: str = "") -> str:
    """A cause of this kind in words. A shape has no name; it is described by the alert's `session` if that has a
    key."""
    words = {
        RULE: f"rule {rule} on {template}",
        NEW: f"new template: {template}",
        SOURCE: f"behaviour of {source}",
        VALUE: f"unusual parameter values in {template}",
    }
    return clipped_text(words.get(kind, f"sessions like that of {session}" if session else "sessions like this one"))


def clipped_text(text: str, limit: int = WHAT_BYTES) -> str:
    """`text` cut to at most `limit` bytes of UTF-8, without NUL, since fixed-width columns drop it at the end."""
    encoded = text.replace("\0", "\\x00").encode("utf-8", "backslashreplace")
    return encoded[:limit].decode("utf-8", "ignore")


def cause_as_text(cause: int) -> str:
    """A cause as text for records and the API: many readers of JSON lose bits of 64-bit numbers."""
    return f"{cause:016x}"


def cause_template(kind: int, about: int) -> int | None:
    """The template that a cause depends on, `about` being what its alert is about; for a shape the one of its line, one
    of several."""
    return about if about >= 0 and kind != SOURCE else None


def cause_fields(cause: int, kind: int, about: int, shapes: Sequence[int]) -> dict[str, Any]:
    """A cause as records and the API have it; `shapes` are those of the sessions with a new template."""
    return {
        "cause": cause_as_text(cause),
        "cause_kind": KINDS[kind],
        "cause_template": cause_template(kind, about),
        **({"cause_shapes": [cause_as_text(shape) for shape in shapes]} if kind == NEW else {}),
    }


def cause_from_text(text: str) -> int:
    """The inverse of `cause_as_text`. Raises ValueError."""
    if not _SHOWN.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is not a cause")
    return int(text, 16)


_SHOWN = re.compile("[0-9a-f]{16}")


def _text_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).digest(), "little")


def _words_hash(words: Causes) -> Causes:
    """The sum of the hashes of the words in each row of `words` [m, w], without words of zero: uint64 [m]."""
    total = np.zeros(len(words), dtype=np.uint64)
    for place in range(words.shape[1]):
        word = words[:, place]
        total += np.where(word == 0, np.uint64(0), _splitmix64(word ^ _hash_salt(place + 4)))
    return total


def _causes_of_sums(kind: int, sums: Causes) -> Causes:
    """The causes of this kind from sums of hashes of their words; never 0, which is no cause."""
    causes = _splitmix64(sums ^ _hash_salt(100 + kind))
    causes[causes == 0] = 1
    return causes


def _splitmix64(values: Causes) -> Causes:
    """splitmix64's finaliser (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014)."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    finished: Causes = mixed ^ (mixed >> np.uint64(31))
    return finished


def _hash_salt(number: int) -> np.uint64:
    return np.uint64(number * 0x9E3779B97F4A7C15 % (1 << 64))


# 0, 1, 2, then one level a doubling; level n ends at 2**(n - 1).
_LEVELS = np.array([0] + [1 + (count - 1).bit_length() for count in range(1, 256)], dtype=np.uint8)
