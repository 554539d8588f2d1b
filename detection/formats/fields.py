"""`Fields`: the columns that every format yields, whatever the lines look like."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Fields:
    """Columns over n lines, in line order.

    kind      the format they were read as, one of `kinds.KINDS`
    family    "access" (contents are b"METHOD path STATUS") or "text"
    times     float64 [n], seconds since the epoch UTC; nan if the line has no time
    keys      the session key that the format suggests, b"" if none
    contents  the text to be templated: without time, pid and thread number, with program, component and level in
              front. A request inside a text format (JSON, containers) has the contents of an access line
    targets   the text that rules match: the request target with its query, otherwise the message
    agents    the user agent, b"" if none
    errors    bool [n]: for a request, status 400 or above; otherwise level "error" or above

    No element contains a newline, so a caller may join a column with newlines and split it again.
    """

    kind: str
    family: str
    times: NDArray[np.float64]
    keys: list[bytes]
    contents: list[bytes]
    targets: list[bytes]
    agents: list[bytes]
    errors: NDArray[np.bool_]

    def only(self, rows: NDArray[np.int64]) -> "Fields":
        """The same columns, restricted to `rows`."""
        keys, contents, targets, agents = (
            [column[row] for row in rows.tolist()] for column in (self.keys, self.contents, self.targets, self.agents)
        )
        times, errors = self.times[rows], self.errors[rows]
        return Fields(self.kind, self.family, times, keys, contents, targets, agents, errors)


def on_one_line(text: bytes) -> bytes:
    """`text` with every newline replaced by a space; unescaping can produce newlines."""
    return text.replace(b"\n", b" ") if b"\n" in text else text


def gathered_fields(
    kind: str,
    parts: Sequence[tuple[list[int], Callable[[list[bytes]], Fields]]],
    texts: Sequence[bytes],
) -> Fields:
    """The columns of `texts`. Each part is its rows and the function that parses them; every row is in one part."""
    n = len(texts)
    times, errors = np.full(n, np.nan), np.zeros(n, dtype=np.bool_)
    keys, contents, targets, agents = [b""] * n, [b""] * n, [b""] * n, [b""] * n
    for rows, read in parts:
        if not rows:
            continue
        part = read([texts[row] for row in rows])
        times[rows], errors[rows] = part.times, part.errors
        for at, row in enumerate(rows):
            keys[row], contents[row] = part.keys[at], part.contents[at]
            targets[row], agents[row] = part.targets[at], part.agents[at]
    return Fields(kind, "text", times, keys, contents, targets, agents, errors)
