"""What every format yields: the same columns, whatever the lines looked like."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Fields:
    """Columns over n lines, in line order.

    kind      the format they were read as, one of `kinds.KINDS`
    family    "access" (contents are b"METHOD path STATUS") or "text"
    times     float64 [n], seconds since the epoch UTC; nan where the line carries none
    keys      the session key the format suggests, b"" where there is none
    contents  what is templated: without time, pid and thread number; program, component and level in front.
              A request inside a text format (JSON, containers) has the contents of an access line
    targets   what rules look at: the request target with its query, else the message
    agents    the user agent, b"" where there is none
    errors    bool [n]: status 400 and above, else level "error" and above

    No element holds a newline, so a caller may join a column with newlines and split it again.
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
        """These rows of it."""
        keys, contents, targets, agents = (
            [column[row] for row in rows.tolist()] for column in (self.keys, self.contents, self.targets, self.agents)
        )
        times, errors = self.times[rows], self.errors[rows]
        return Fields(self.kind, self.family, times, keys, contents, targets, agents, errors)


def one_line(text: bytes) -> bytes:
    """`text` with every newline turned into a space: unescaped text may hold some."""
    return text.replace(b"\n", b" ") if b"\n" in text else text


def gathered(
    kind: str,
    parts: Sequence[tuple[list[int], Callable[[list[bytes]], Fields]]],
    texts: Sequence[bytes],
) -> Fields:
    """The columns of `texts`, where each part reads the rows it names. The parts name every row once."""
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
