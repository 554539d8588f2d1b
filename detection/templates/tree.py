"""The parse tree: a path from the root, one key a level, leads a line to the leaf with the few templates it may match.

    access   status / method / one level a path segment
    text     number of words / first word / second word / last word       a word with a mask in it counts as `<*>`

A key without a child, in a node without room for another, takes the child `<*>`; in a path, while there is room for
kinds of files, `<*>.png`. The tree is not part of the state: it is rebuilt from the live templates.
"""

from detection.templates.masks import MAX_TOKENS, WILD, file_extension

FAMILIES = ("access", "text")
ACCESS, TEXT = range(len(FAMILIES))

# Children of a node, level by level; the last number holds for all deeper ones.
_WORDS = (MAX_TOKENS + 1, 100, 100, 4)  # number of words, first, second and last word
_STATUSES, _METHODS = 32, 16
_FOLDERS = (1, 32, 8, 6)  # before the first slash lies an empty segment
_FOLDERS_REFUSED = (1, 16, 1, 0)  # a client that requests what does not exist may request anything
_FILE_KINDS = 3  # children `<*>.png` beyond these


class Node:
    """A node of the tree; leaves have templates.

    rows     the rows of its templates in the table, ascending, without `rest`
    tokens   the token lists of the templates in `rows`: the same objects, not copies
    rest     the row of its template of wildcards, -1 for none
    version  changes whenever the leaf does
    """

    __slots__ = ("children", "rest", "rows", "tokens", "version")

    def __init__(self) -> None:
        self.children: dict[bytes, Node] = {}
        self.rows: list[int] = []
        self.tokens: list[list[bytes]] = []
        self.rest = -1
        self.version = 0


def leaf_path_keys(kind: int, tokens: list[bytes]) -> list[tuple[bytes, int]]:
    """The keys of `tokens` from the root to their leaf, each with the number of children that its parent may have."""
    if kind == ACCESS:
        folders = _FOLDERS if tokens[0][:1] == b"2" or tokens[0] == b"304" else _FOLDERS_REFUSED
        fans = (_STATUSES, _METHODS, *folders)
        return [(token, fans[min(level, len(fans) - 1)]) for level, token in enumerate(tokens)]
    last = tokens[-1:] if len(tokens) > 2 else []
    words = [WILD if WILD in token else token for token in tokens[:2] + last]
    return list(zip((b"%d" % len(tokens), *words), _WORDS, strict=False))


def child_key(kind: int, node: Node, key: bytes, fan: int) -> bytes:
    """The key of the child of `node` that `key` takes: its own while the node has fewer than `fan` children."""
    if key in node.children or len(node.children) < fan:
        return key
    if kind == ACCESS:
        # A script among pictures must not look like one of them, so kinds of files stay apart.
        key = WILD + file_extension(key)
        if key in node.children or len(node.children) < fan + _FILE_KINDS:
            return key
    return WILD
