"""Templates: which event of the program a line is an instance of, as a small number that lasts for ever.

Drain (He, Zhu, Zheng, Lyu: "Drain: an online log parsing approach with fixed depth tree", ICWS 2017) over
masked tokens (`detection.templates.masks`), with three changes. The tree also branches on the last word, because
that is where messages say how it ended. Learned wildcards do not count as agreement, so a template cannot
erode: three quarters of its words are those of the line that made it. And requests take the tree alone:
one level a path segment, a template a leaf.

A node has a bounded number of children; what comes later takes the child `<*>`, or `<*>.php` for a file.
A leaf has a bounded number of templates; what comes later and is like none of them takes the leaf's
*rest*, a template of wildcards. So a flood of random lines soon finds only templates that are there.

Ids count up from 1 in the order of learning and are never used again. Id 0, `<other>`, is for the day when
there are no more ids. When the table is full, an eighth of it goes: the least recently used of those that
are not among the more frequent half. Counts and last uses are exact as of that line, so the state does not
depend on how lines were cut into batches. Memos make it fast; they are never part of the state and cannot
change a result: an entry holds the version of the leaf it was found in, and every change of a leaf is a
new version.

`pinned` templates stay: what the operator said of them holds for their ids, and learned again they would have
others. They fill at most half of the table, the first named before the last, and the half that is more frequent
is that of the others.

State, a row a template, ascending by id, row 0 being `<other>` (k = rows):

    id        int32 [k]
    family    uint8 [k]   index in `detection.templates.tree.FAMILIES`
    wild      uint8 [k]   bit i: the i-th level of the tree was left through the child `<*>`
    rest      bool  [k]   this template is the rest of its leaf
    count     int64 [k]   lines assigned
    used      int64 [k]   ordinal (from 1) of the last line assigned, 0 for never
    tokens    uint8 [b]   the tokens, separated by a space within and by a newline between templates
    capacity, created, evicted, lines   int
"""

import operator
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from detection.columns.state import State, Value
from detection.templates.masks import WILD, message_tokens, request_tokens, skeletons
from detection.templates.tree import ACCESS, FAMILIES, TEXT, Node, branch, levels

OTHER = 0
MAX_ID = 2**31 - 1

_D = TypeVar("_D", bound=np.generic)

_SIMILAR = 0.75
_LEAF_TEMPLATES = 32

_MEMO_BYTES = 1 << 20
_MEMO_ENTRY_BYTES = 200  # about what an entry weighs beside its key and tokens


class _Template:
    __slots__ = ("family", "rest", "tokens", "wild")

    def __init__(self, family: int, tokens: list[bytes], wild: int, rest: bool) -> None:
        self.family = family
        self.tokens = tokens
        self.wild = wild
        self.rest = rest


class _Known:
    """A memo's entry: as of `version`, `leaf` takes `tokens` to be an instance of the template in `row`."""

    __slots__ = ("leaf", "row", "tokens", "version")

    def __init__(self, tokens: list[bytes], leaf: Node, row: int) -> None:
        self.tokens = tokens
        self.leaf = leaf
        self.version = leaf.version
        self.row = row


class _Memo:
    """Two generations of at most `_MEMO_BYTES` of keys each; what is asked for becomes young."""

    def __init__(self) -> None:
        self.young: dict[bytes, _Known] = {}
        self._old: dict[bytes, _Known] = {}
        self._bytes = 0

    def recall(self, key: bytes) -> _Known | None:
        """For keys that are not in `young`."""
        known = self._old.get(key)
        if known is not None:
            self.put(key, known)
        return known

    def put(self, key: bytes, known: _Known) -> None:
        self._bytes += len(key) + _MEMO_ENTRY_BYTES
        if self._bytes > _MEMO_BYTES:
            self._old, self.young = self.young, {}
            self._bytes = len(key) + _MEMO_ENTRY_BYTES
        self.young[key] = known


class TemplateTable:
    """At most `capacity` templates besides `<other>`; raises ValueError for a capacity below 1.

    `created` and `evicted` count templates since the beginning and are part of the state. `pinned` int32 [p], ids, the
    most important first and each once, is the caller's to say and no part of it; those that are gone count for nothing.
    """

    def __init__(self, capacity: int = 8192) -> None:
        if capacity < 1:
            raise ValueError(f"a template table needs a capacity of at least 1, not {capacity}")
        self.capacity = capacity
        self.created = 0
        self.evicted = 0
        self.pinned = np.zeros(0, np.int32)
        self._lines = 0
        self._templates = [_Template(TEXT, [], 0, False)]
        self._id = np.zeros(capacity + 1, np.int32)
        self._count = np.zeros(capacity + 1, np.int64)
        self._used = np.zeros(capacity + 1, np.int64)
        self._plant()

    def __len__(self) -> int:
        """Live templates; `<other>` is not counted."""
        return len(self._templates) - 1

    def __contains__(self, template_id: int) -> bool:
        """Whether a line can be of it: `<other>` and the live templates."""
        return self._row(template_id) is not None

    def assign(self, family: str, contents: Sequence[bytes]) -> NDArray[np.int32]:
        """Learn `contents` in order; the template id of each.

        `family` "access" takes `METHOD path STATUS` (the path without its query), "text" takes messages.
        Contents may be any bytes. Raises ValueError for another family.
        """
        kind = _family_index(family)
        settled: list[NDArray[np.int32]] = []
        rows: list[int] = []
        memo = self._memos[kind]
        for key in _keys(kind, contents):
            known = memo.young.get(key) or memo.recall(key)
            if known is None or known.version != known.leaf.version:
                tokens = _tokens(kind, key) if known is None else known.tokens
                leaf, row = self._find(kind, tokens)
                if row < 0 and self._is_full():
                    # Rows are about to move: the lines so far count under their present ones.
                    settled.append(self._settle(rows))
                    rows = []
                    self._evict()
                    memo = self._memos[kind]
                    leaf, row = self._find(kind, tokens)  # the tree is another one: they may have a template there
                known = self._learn(kind, tokens, leaf, row)
                memo.put(key, known)
            rows.append(known.row)
        settled.append(self._settle(rows))
        return np.concatenate(settled)

    def match(self, family: str, contents: Sequence[bytes]) -> NDArray[np.int32]:
        """The ids that `assign` would give to each of `contents` alone, -1 for a new one (it would get
        `created` + 1); learns nothing.

        -1 also where `assign` would first make room, whatever it then finds.
        """
        kind = _family_index(family)
        memo = self._memos[kind]
        rows: list[int] = []
        for key in _keys(kind, contents):
            known = memo.young.get(key)
            if known is None or known.version != known.leaf.version:
                _, row = self._find(kind, _tokens(kind, key) if known is None else known.tokens)
            else:
                row = known.row
            rows.append(row)
        found = np.array(rows, np.intp)
        new = -1 if self.created < MAX_ID else OTHER
        return np.where(found < 0, np.int32(new), self._id[found])

    def text(self, template_id: int) -> str:
        """The template as printable text, with `<*>` for values.

        `<other>` for id 0, `<evicted>` for a template that is gone. Raises KeyError for an id never given.
        """
        if not 0 <= template_id <= self.created:
            raise KeyError(f"no template has had the id {template_id}")
        if template_id == OTHER:
            return "<other>"
        row = self._row(template_id)
        if row is None:
            return "<evicted>"
        template = self._templates[row]
        if template.family == ACCESS:
            status, method, *segments = template.tokens
            return _printable(b" ".join((method, b"/".join(segments), status)))
        return _printable(b" ".join(template.tokens))

    def export(self) -> State:
        """The state as columns of its own (see the module), which later calls do not change."""
        k = len(self._templates)
        tokens = b"\n".join([b" ".join(template.tokens) for template in self._templates])
        return {
            "id": self._id[:k].copy(),
            "family": np.array([template.family for template in self._templates], np.uint8),
            "wild": np.array([template.wild for template in self._templates], np.uint8),
            "rest": np.array([template.rest for template in self._templates], np.bool_),
            "count": self._count[:k].copy(),
            "used": self._used[:k].copy(),
            "tokens": np.frombuffer(tokens, np.uint8).copy(),
            "capacity": self.capacity,
            "created": self.created,
            "evicted": self.evicted,
            "lines": self._lines,
        }

    @classmethod
    def load(cls, columns: Mapping[str, Value]) -> "TemplateTable":
        """The table that `export` was asked of; it goes on exactly as that one would.

        Raises KeyError, TypeError or ValueError when `columns` is not what `export` gave.
        """
        table = cls(_integer(columns, "capacity"))
        table.created = _integer(columns, "created")
        table.evicted = _integer(columns, "evicted")
        table._lines = _integer(columns, "lines")
        lines = _column(columns, "tokens", np.uint8).tobytes().split(b"\n")
        k = len(lines)
        family, wild = _column(columns, "family", np.uint8, k), _column(columns, "wild", np.uint8, k)
        rest = _column(columns, "rest", np.bool_, k)
        if k > table.capacity + 1 or family.max() > TEXT:
            raise ValueError(f"{k - 1} templates of families to {family.max()} in a table of {table.capacity}")
        table._id[:k] = _column(columns, "id", np.int32, k)
        table._count[:k] = _column(columns, "count", np.int64, k)
        table._used[:k] = _column(columns, "used", np.int64, k)
        table._templates = [
            # A request may have empty tokens, a message may have no token at all.
            _Template(kind, line.split(b" ") if kind == ACCESS else line.split(), bits, is_rest)
            for line, kind, bits, is_rest in zip(lines, family.tolist(), wild.tolist(), rest.tolist(), strict=True)
        ]
        table._plant()
        return table

    def _row(self, template_id: int) -> int | None:
        live = self._id[: len(self._templates)]
        row = int(np.searchsorted(live, template_id))
        return row if row < len(live) and live[row] == template_id else None

    def _find(self, kind: int, tokens: list[bytes]) -> tuple[Node | None, int]:
        """The leaf for `tokens`, None where there is none yet, and the row in it, -1 for a new template."""
        node = self._roots[kind]
        for key, fan in levels(kind, tokens):
            child = node.children.get(key) or node.children.get(branch(kind, node, key, fan))
            if child is None:
                return None, -1
            node = child
        if kind == ACCESS:
            return node, node.rows[0] if node.rows else -1
        return node, self._most_similar(node, tokens)

    def _most_similar(self, leaf: Node, tokens: list[bytes]) -> int:
        """Drain's similarity: the share of equal tokens; of equals the more general, then the older."""
        equal = [sum(map(operator.eq, others, tokens)) for others in leaf.tokens]
        most = max(equal, default=-1)
        if most >= _SIMILAR * len(tokens):
            nearest = [i for i, n in enumerate(equal) if n == most]
            return leaf.rows[max(nearest, key=lambda i: leaf.tokens[i].count(WILD))]
        return leaf.rest if len(leaf.rows) >= _LEAF_TEMPLATES else -1

    def _is_full(self) -> bool:
        return len(self) == self.capacity and self.created < MAX_ID

    def _learn(self, kind: int, tokens: list[bytes], leaf: Node | None, row: int) -> _Known:
        """What `_find` said of `tokens` takes effect."""
        if leaf is None or row < 0:
            return self._create(kind, tokens)
        template = self._templates[row]
        if kind == TEXT and row != leaf.rest and template.tokens != tokens:
            merged = [a if a == b else WILD for a, b in zip(template.tokens, tokens, strict=True)]
            if merged != template.tokens:
                template.tokens[:] = merged
                # For these tokens it stays the first choice: no less similar, and more general than it was.
                leaf.version += 1
        return _Known(tokens, leaf, row)

    def _create(self, kind: int, tokens: list[bytes]) -> _Known:
        if self.created == MAX_ID:
            known = _Known(tokens, Node(), OTHER)
            known.version = -1  # never current: a template may yet become general enough for this line
            return known
        leaf, wild, path = self._grow(kind, tokens)
        rest = kind == TEXT and len(leaf.rows) >= _LEAF_TEMPLATES
        template = _Template(kind, list(tokens), wild, rest)
        if kind == ACCESS:
            template.tokens = path
        elif rest:
            template.tokens = [WILD] * len(tokens)
            for i, key in zip((0, 1, -1), path[1:], strict=False):
                template.tokens[i] = key
        row = len(self._templates)
        self._templates.append(template)
        self.created += 1
        self._id[row] = self.created
        self._hang(leaf, row)
        leaf.version += 1
        return _Known(tokens, leaf, row)

    def _grow(self, kind: int, tokens: list[bytes]) -> tuple[Node, int, list[bytes]]:
        """The leaf for `tokens`, made where it is missing; the bits of the levels without room; the keys."""
        node, wild, path = self._roots[kind], 0, []
        for level, (key, fan) in enumerate(levels(kind, tokens)):
            taken = branch(kind, node, key, fan)
            wild |= (taken != key) << level
            path.append(taken)
            node = node.children.setdefault(taken, Node())
        return node, wild if kind == TEXT else 0, path

    def _hang(self, leaf: Node, row: int) -> None:
        if self._templates[row].rest:
            leaf.rest = row
        else:
            leaf.rows.append(row)
            leaf.tokens.append(self._templates[row].tokens)

    def _plant(self) -> None:
        """Build the tree from the templates, with cold memos: after a load and after an eviction."""
        self._roots = [Node() for _ in FAMILIES]
        self._memos = [_Memo() for _ in FAMILIES]
        for row, template in enumerate(self._templates[1:], 1):
            node = self._roots[template.family]
            for level, (key, _) in enumerate(levels(template.family, template.tokens)):
                node = node.children.setdefault(WILD if template.wild >> level & 1 else key, Node())
            self._hang(node, row)

    def _settle(self, rows: list[int]) -> NDArray[np.int32]:
        """Count the lines assigned to `rows`, the latest ones, in order; their ids."""
        at = np.array(rows, np.intp)
        self._count += np.bincount(at, minlength=len(self._count))
        # Of equal rows the last assignment stays.
        self._used[at] = np.arange(self._lines + 1, self._lines + 1 + len(at))
        self._lines += len(at)
        return self._id[at]

    def _evict(self) -> None:
        n = len(self)
        loose = self._loose()
        by_count = loose[np.lexsort((self._used[loose], self._count[loose]))]
        rare = by_count[: len(loose) - len(loose) // 2]
        oldest = rare[np.argsort(self._used[rare])][: max(1, self.capacity // 8)]
        keep = np.ones(n + 1, np.bool_)
        keep[oldest] = False
        k = n + 1 - len(oldest)
        for column in (self._id, self._count, self._used):
            column[:k] = column[: n + 1][keep]
            column[k:] = 0
        self._templates = [template for template, stays in zip(self._templates, keep, strict=True) if stays]
        self.evicted += len(oldest)
        self._plant()

    def _loose(self) -> NDArray[np.intp]:
        """The rows that may be evicted: at least half of them."""
        live = self._id[: len(self._templates)]
        at = np.searchsorted(live[:-1], self.pinned)
        pinned = at[live[at] == self.pinned][: self.capacity // 2]
        loose = np.ones(len(live), np.bool_)
        loose[OTHER] = loose[pinned] = False
        return np.flatnonzero(loose)


def _family_index(family: str) -> int:
    if family not in FAMILIES:
        raise ValueError(f"no template family {family!r}; there are {', '.join(FAMILIES)}")
    return FAMILIES.index(family)


def _keys(kind: int, contents: Sequence[bytes]) -> Sequence[bytes]:
    """What the tokens of each content are a function of, and memos remember by."""
    return contents if kind == ACCESS else skeletons(contents)


def _tokens(kind: int, key: bytes) -> list[bytes]:
    return request_tokens(key) if kind == ACCESS else message_tokens(key)


def _printable(text: bytes) -> str:
    decoded = text.decode("utf-8", "backslashreplace")
    if decoded.isprintable():
        return decoded
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in decoded)


def _integer(columns: Mapping[str, Value], name: str) -> int:
    value = columns[name]
    if not isinstance(value, int) or value < 0:
        raise TypeError(f"{name} of a template table is a count, not {value!r}")
    return value


def _column(columns: Mapping[str, Value], name: str, dtype: type[_D], rows: int | None = None) -> NDArray[_D]:
    value: object = columns[name]
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != 1:
        raise TypeError(f"{name} of a template table is a column of {dtype.__name__}")
    if rows is not None and len(value) != rows:
        raise ValueError(f"{name} of a template table has {len(value)} rows, the tokens have {rows}")
    return value
