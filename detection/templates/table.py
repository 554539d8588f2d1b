"""The template miner: gives each line the id of its template, the event of the program of which it is an instance.

    >>> table = TemplateTable()
    >>> table.assign("text", [b"worker 7 started", b"worker 12 started", b"worker 12 exited with 1"])
    array([1, 1, 2], dtype=int32)
    >>> table.text(1), table.text(2)
    ('worker <*> started', 'worker <*> exited with <*>')

The method is Drain (He, Zhu, Zheng, Lyu: "Drain: an online log parsing approach with fixed depth tree", ICWS 2017)
over masked tokens (`masks`), with three changes. The tree also branches on the last word, because messages often
end with the outcome. Learned wildcards do not count as equal, so a template cannot erode: three quarters of its words
are those of the line that made it. And requests use the tree alone: one level a path segment, one template a leaf.

A node has a bounded number of children; later keys take the child `<*>`, or `<*>.php` for a file. A leaf has a bounded
number of templates; later lines that are like none of them take the leaf's *rest*, a template of wildcards. So a flood
of random lines soon creates no more templates.

Ids count up from 1 in the order of creation and are never reused. Id 0, `<other>`, is given when all ids are used up.
When the table is full, an eighth of it is evicted: the least recently used of the less frequent half. Counts and last
uses are exact as of that line, so the state does not depend on how lines were cut into batches. Memos make it fast.
They are not part of the state and cannot change a result: an entry holds the version of the leaf that it was found in,
and every change of a leaf increments its version.

`pinned` templates are not evicted: the operator's answers hold for their ids, and a template that is created again gets
a new id. At most half of the table is pinned, the first ones named; the less frequent half is that of the others.

State, one row a template, ascending by id, row 0 being `<other>` (k rows):

    id        int32 [k]
    family    uint8 [k]   index in `detection.templates.tree.FAMILIES`
    wild      uint8 [k]   bit i: its path through the tree takes the child `<*>` at level i
    rest      bool  [k]   whether it is the rest of its leaf
    count     int64 [k]   lines assigned to it
    used      int64 [k]   ordinal (from 1) of the last line assigned to it, 0 for none
    tokens    uint8 [b]   tokens separated by spaces, templates by newlines
    capacity, created, evicted, lines   int
"""

import operator
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from detection.columns.state_columns import State, Value
from detection.templates.masks import WILD, message_tokens, request_tokens, skeletons_of_contents
from detection.templates.tree import ACCESS, FAMILIES, TEXT, Node, child_key, leaf_path_keys

OTHER = 0
MAX_ID = 2**31 - 1

_D = TypeVar("_D", bound=np.generic)

_SIMILARITY_THRESHOLD = 0.75  # Drain's: the share of equal tokens from which a line belongs to a template
_LEAF_TEMPLATES = 32  # without the rest

_MEMO_BYTES = 1 << 20
_MEMO_ENTRY_BYTES = 200  # about what an entry takes besides its key and tokens


class _Template:
    __slots__ = ("family", "rest", "tokens", "wild")

    def __init__(self, family: int, tokens: list[bytes], wild: int, rest: bool) -> None:
        self.family = family
        self.tokens = tokens
        self.wild = wild
        self.rest = rest


class _MemoEntry:
    """An entry of a memo: at `version` of `leaf`, `tokens` are an instance of the template in `row`."""

    __slots__ = ("leaf", "row", "tokens", "version")

    def __init__(self, tokens: list[bytes], leaf: Node, row: int) -> None:
        self.tokens = tokens
        self.leaf = leaf
        self.version = leaf.version
        self.row = row


class _Memo:
    """A cache of two generations with at most `_MEMO_BYTES` of keys each; an entry that is used becomes young."""

    def __init__(self) -> None:
        self.young: dict[bytes, _MemoEntry] = {}
        self._old: dict[bytes, _MemoEntry] = {}
        self._bytes = 0

    def recall(self, key: bytes) -> _MemoEntry | None:
        """The entry of a key that is not in `young`; None if it is not in the old generation either."""
        known = self._old.get(key)
        if known is not None:
            self.put(key, known)
        return known

    def put(self, key: bytes, known: _MemoEntry) -> None:
        self._bytes += len(key) + _MEMO_ENTRY_BYTES
        if self._bytes > _MEMO_BYTES:
            self._old, self.young = self.young, {}
            self._bytes = len(key) + _MEMO_ENTRY_BYTES
        self.young[key] = known


class TemplateTable:
    """At most `capacity` templates besides `<other>`. Raises ValueError for a capacity below 1.

    capacity, created, evicted   part of the state; the last two count templates since the state began
    pinned                       int32 [p], set by the caller and not part of the state: ids of templates to keep, each
                                 once, the most important first; ids of evicted templates have no effect
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
        self._build_tree()

    def __len__(self) -> int:
        """The number of live templates, without `<other>`."""
        return len(self._templates) - 1

    def __contains__(self, template_id: int) -> bool:
        """Whether a line can have this id: `<other>` and the live templates."""
        return self._row_of_template(template_id) is not None

    def assign(self, family: str, contents: Sequence[bytes]) -> NDArray[np.int32]:
        """Learn `contents` in order, and return the template id of each: int32 [n].

        The family "access" takes `METHOD path STATUS` (the path without its query), "text" takes messages. Contents may
        be any bytes. Raises ValueError for another family.
        """
        kind = _family_index(family)
        counted: list[NDArray[np.int32]] = []
        rows: list[int] = []
        memo = self._memos[kind]
        for key in _memo_keys(kind, contents):
            known = memo.young.get(key) or memo.recall(key)
            if known is None or known.version != known.leaf.version:
                tokens = _tokens_of_memo_key(kind, key) if known is None else known.tokens
                leaf, row = self._find_template(kind, tokens)
                if row < 0 and self._is_full():
                    # Eviction moves rows: count the lines so far under their present rows.
                    counted.append(self._count_lines(rows))
                    rows = []
                    self._evict_templates()
                    memo = self._memos[kind]
                    leaf, row = self._find_template(
                        kind, tokens
                    )  # the tree is another one: they may have a template there
                known = self._learn_tokens(kind, tokens, leaf, row)
                memo.put(key, known)
            rows.append(known.row)
        counted.append(self._count_lines(rows))
        return np.concatenate(counted)

    def match(self, family: str, contents: Sequence[bytes]) -> NDArray[np.int32]:
        """The id that `assign` would give to each of `contents` alone, without learning: int32 [n].

        -1 stands for a new template (its id would be `created` + 1), and also where `assign` would first evict, whether
        or not it would then find a template. Raises ValueError as `assign` does.
        """
        kind = _family_index(family)
        memo = self._memos[kind]
        rows: list[int] = []
        for key in _memo_keys(kind, contents):
            known = memo.young.get(key)
            if known is None or known.version != known.leaf.version:
                _, row = self._find_template(kind, _tokens_of_memo_key(kind, key) if known is None else known.tokens)
            else:
                row = known.row
            rows.append(row)
        found = np.array(rows, np.intp)
        new = -1 if self.created < MAX_ID else OTHER
        return np.where(found < 0, np.int32(new), self._id[found])

    def text(self, template_id: int) -> str:
        """The template as printable text with `<*>` for values; `<other>` for id 0, `<evicted>` for an evicted one.

        Raises KeyError for an id that was never given.
        """
        if not 0 <= template_id <= self.created:
            raise KeyError(f"no template has had the id {template_id}")
        if template_id == OTHER:
            return "<other>"
        row = self._row_of_template(template_id)
        if row is None:
            return "<evicted>"
        template = self._templates[row]
        if template.family == ACCESS:
            status, method, *segments = template.tokens
            return _printable_template_text(b" ".join((method, b"/".join(segments), status)))
        return _printable_template_text(b" ".join(template.tokens))

    def export(self) -> State:
        """A copy of the state as columns (see the module)."""
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
        """The inverse of `export`: the table continues exactly as the exported one would.

        Raises KeyError, TypeError or ValueError if `export` cannot have returned `columns`.
        """
        table = cls(_count_from_columns(columns, "capacity"))
        table.created = _count_from_columns(columns, "created")
        table.evicted = _count_from_columns(columns, "evicted")
        table._lines = _count_from_columns(columns, "lines")
        lines = _template_column(columns, "tokens", np.uint8).tobytes().split(b"\n")
        k = len(lines)
        family, wild = _template_column(columns, "family", np.uint8, k), _template_column(columns, "wild", np.uint8, k)
        rest = _template_column(columns, "rest", np.bool_, k)
        if k > table.capacity + 1 or family.max() > TEXT:
            raise ValueError(f"{k - 1} templates of families to {family.max()} in a table of {table.capacity}")
        table._id[:k] = _template_column(columns, "id", np.int32, k)
        table._count[:k] = _template_column(columns, "count", np.int64, k)
        table._used[:k] = _template_column(columns, "used", np.int64, k)
        table._templates = [
            # A request may have empty tokens, a message may have no token at all.
            _Template(kind, line.split(b" ") if kind == ACCESS else line.split(), bits, is_rest)
            for line, kind, bits, is_rest in zip(lines, family.tolist(), wild.tolist(), rest.tolist(), strict=True)
        ]
        table._build_tree()
        return table

    def _row_of_template(self, template_id: int) -> int | None:
        live = self._id[: len(self._templates)]
        row = int(np.searchsorted(live, template_id))
        return row if row < len(live) and live[row] == template_id else None

    def _find_template(self, kind: int, tokens: list[bytes]) -> tuple[Node | None, int]:
        """The leaf for `tokens`, None if there is none yet, and the template's row, -1 if it would be a new one."""
        node = self._roots[kind]
        for key, fan in leaf_path_keys(kind, tokens):
            child = node.children.get(key) or node.children.get(child_key(kind, node, key, fan))
            if child is None:
                return None, -1
            node = child
        if kind == ACCESS:
            return node, node.rows[0] if node.rows else -1
        return node, self._most_similar(node, tokens)

    def _most_similar(self, leaf: Node, tokens: list[bytes]) -> int:
        """The row of the most similar template by Drain's measure, the share of equal tokens; -1 for none.

        Of equally similar ones the more general is taken, then the older.
        """
        equal = [sum(map(operator.eq, others, tokens)) for others in leaf.tokens]
        most = max(equal, default=-1)
        if most >= _SIMILARITY_THRESHOLD * len(tokens):
            nearest = [i for i, n in enumerate(equal) if n == most]
            return leaf.rows[max(nearest, key=lambda i: leaf.tokens[i].count(WILD))]
        return leaf.rest if len(leaf.rows) >= _LEAF_TEMPLATES else -1

    def _is_full(self) -> bool:
        return len(self) == self.capacity and self.created < MAX_ID

    def _learn_tokens(self, kind: int, tokens: list[bytes], leaf: Node | None, row: int) -> _MemoEntry:
        """Learn one line of `tokens` for which `_find_template` returned `leaf` and `row`."""
        if leaf is None or row < 0:
            return self._create_template(kind, tokens)
        template = self._templates[row]
        if kind == TEXT and row != leaf.rest and template.tokens != tokens:
            merged = [a if a == b else WILD for a, b in zip(template.tokens, tokens, strict=True)]
            if merged != template.tokens:
                template.tokens[:] = merged
                # It remains the first choice for these tokens: no less similar, and more general than before.
                leaf.version += 1
        return _MemoEntry(tokens, leaf, row)

    def _create_template(self, kind: int, tokens: list[bytes]) -> _MemoEntry:
        if self.created == MAX_ID:
            known = _MemoEntry(tokens, Node(), OTHER)
            known.version = -1  # never current: a template may still become general enough for this line
            return known
        leaf, wild, path = self._make_leaf(kind, tokens)
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
        self._add_template_to_leaf(leaf, row)
        leaf.version += 1
        return _MemoEntry(tokens, leaf, row)

    def _make_leaf(self, kind: int, tokens: list[bytes]) -> tuple[Node, int, list[bytes]]:
        """The leaf for `tokens`, created if missing; the bits of the levels that have no room; the keys of its path."""
        node, wild, path = self._roots[kind], 0, []
        for level, (key, fan) in enumerate(leaf_path_keys(kind, tokens)):
            taken = child_key(kind, node, key, fan)
            wild |= (taken != key) << level
            path.append(taken)
            node = node.children.setdefault(taken, Node())
        return node, wild if kind == TEXT else 0, path

    def _add_template_to_leaf(self, leaf: Node, row: int) -> None:
        if self._templates[row].rest:
            leaf.rest = row
        else:
            leaf.rows.append(row)
            leaf.tokens.append(self._templates[row].tokens)

    def _build_tree(self) -> None:
        """Build the tree from the templates and empty the memos: after a load and after an eviction."""
        self._roots = [Node() for _ in FAMILIES]
        self._memos = [_Memo() for _ in FAMILIES]
        for row, template in enumerate(self._templates[1:], 1):
            node = self._roots[template.family]
            for level, (key, _) in enumerate(leaf_path_keys(template.family, template.tokens)):
                node = node.children.setdefault(WILD if template.wild >> level & 1 else key, Node())
            self._add_template_to_leaf(node, row)

    def _count_lines(self, rows: list[int]) -> NDArray[np.int32]:
        """Count the last lines, which were assigned to `rows` in this order; returns their ids."""
        at = np.array(rows, np.intp)
        self._count += np.bincount(at, minlength=len(self._count))
        # Where a row occurs twice, the last assignment holds.
        self._used[at] = np.arange(self._lines + 1, self._lines + 1 + len(at))
        self._lines += len(at)
        return self._id[at]

    def _evict_templates(self) -> None:
        n = len(self)
        evictable = self._evictable_rows()
        by_count = evictable[np.lexsort((self._used[evictable], self._count[evictable]))]
        rare = by_count[: len(evictable) - len(evictable) // 2]
        oldest = rare[np.argsort(self._used[rare])][: max(1, self.capacity // 8)]
        keep = np.ones(n + 1, np.bool_)
        keep[oldest] = False
        k = n + 1 - len(oldest)
        for column in (self._id, self._count, self._used):
            column[:k] = column[: n + 1][keep]
            column[k:] = 0
        self._templates = [template for template, stays in zip(self._templates, keep, strict=True) if stays]
        self.evicted += len(oldest)
        self._build_tree()

    def _evictable_rows(self) -> NDArray[np.intp]:
        """The rows that may be evicted: at least half of the table."""
        live = self._id[: len(self._templates)]
        at = np.searchsorted(live[:-1], self.pinned)
        pinned = at[live[at] == self.pinned][: self.capacity // 2]
        evictable = np.ones(len(live), np.bool_)
        evictable[OTHER] = evictable[pinned] = False
        return np.flatnonzero(evictable)


def _family_index(family: str) -> int:
    if family not in FAMILIES:
        raise ValueError(f"no template family {family!r}; there are {', '.join(FAMILIES)}")
    return FAMILIES.index(family)


def _memo_keys(kind: int, contents: Sequence[bytes]) -> Sequence[bytes]:
    """The key of each content in a memo; its tokens depend on nothing else."""
    return contents if kind == ACCESS else skeletons_of_contents(contents)


def _tokens_of_memo_key(kind: int, key: bytes) -> list[bytes]:
    return request_tokens(key) if kind == ACCESS else message_tokens(key)


def _printable_template_text(text: bytes) -> str:
    """`text` with everything escaped that cannot be printed."""
    decoded = text.decode("utf-8", "backslashreplace")
    if decoded.isprintable():
        return decoded
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in decoded)


def _count_from_columns(columns: Mapping[str, Value], name: str) -> int:
    value = columns[name]
    if not isinstance(value, int) or value < 0:
        raise TypeError(f"{name} of a template table is a count, not {value!r}")
    return value


def _template_column(columns: Mapping[str, Value], name: str, dtype: type[_D], rows: int | None = None) -> NDArray[_D]:
    value: object = columns[name]
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != 1:
        raise TypeError(f"{name} of a template table is a column of {dtype.__name__}")
    if rows is not None and len(value) != rows:
        raise ValueError(f"{name} of a template table has {len(value)} rows, the tokens have {rows}")
    return value
