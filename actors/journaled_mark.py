"""Connections that outlive the process, and the mark beside their bytes that says which of them are in the journal.

A service manager with a file descriptor store holds a second reference to each connection, so its unread bytes
and a sender that has not finished survive us. What is left to know after a kill is whether the chunk that was
under way had become durable. The mark says it; it is the socket option SO_PEEK_OFF, which the kernel keeps as
long as the socket, and lowers by every byte that is consumed:

    -1                    nothing is under way
    size | parity << 30   a chunk of `size` bytes was peeked at, and its segment carries `parity`

The order is: peek, mark, journal, consume, mark -1. Killed before the mark, or with a mark whose parity is not
the one that the journal holds last of this source, the bytes are read anew. With the same parity they are in the
journal, and the low bits are how many of them are not consumed yet. The parities of a source alternate, so a mark
never fits the segment before.

We peek at -1 only: at 0 or more the kernel moves the mark by itself as we peek, to a size with parity 0, and a
kill at that instant would pass bytes off as journaled.
"""

from socket import SOL_SOCKET, socketpair
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # numpy comes with it, which `vigilctl doctor` does without
    from detection.sessions.living_sources import LivingSource

SO_PEEK_OFF = 42  # not in Python's socket module; the same on every architecture we know but sparc and parisc
PARITY_BIT = 30


class Keeper(Protocol):
    """The service manager's store. Nothing here raises; `keep` and `forget` return within a fraction of a second."""

    def keep(self, name: str, descriptor: int) -> None:
        """Hold a reference to `descriptor` until `forget`, whatever becomes of us. Again is as good as once."""

    def forget(self, name: str) -> None: ...

    def has_room(self) -> bool | None:
        """Whether it would hold one more, after all calls so far; None when it does not answer. Blocks."""


class Marked(Protocol):
    """A socket, of the standard library or of trio."""

    def getsockopt(self, level: int, optname: int, /) -> int: ...

    def setsockopt(self, level: int, optname: int, value: int, /) -> None: ...


def set_peek_mark(connection: Marked, size: int, parity: int) -> None:
    """A chunk of `size` bytes, at most 2**30 - 1, is about to be journaled with `parity`."""
    connection.setsockopt(SOL_SOCKET, SO_PEEK_OFF, size | parity << PARITY_BIT)


def clear_peek_mark(connection: Marked) -> None:
    connection.setsockopt(SOL_SOCKET, SO_PEEK_OFF, -1)


def journaled_bytes(connection: Marked, source: "LivingSource | None") -> int:
    """How many bytes at the head of `connection` are in the journal and only wait to be consumed.

    `source` is where the journal leaves the source of that connection, None when it does not know it.
    """
    mark = connection.getsockopt(SOL_SOCKET, SO_PEEK_OFF)
    if mark < 0 or source is None or mark >> PARITY_BIT != source.parity:
        return 0
    return mark & ((1 << PARITY_BIT) - 1)


def peek_marks_work() -> bool:
    """Whether this kernel keeps a mark beside the bytes of a Unix stream socket, as described above."""
    reader, writer = socketpair()
    with reader, writer:
        try:
            writer.sendall(b"abcd")
            set_peek_mark(reader, 4, 1)
            reader.recv(3)
            lowered = reader.getsockopt(SOL_SOCKET, SO_PEEK_OFF)
            clear_peek_mark(reader)
            return lowered == 1 | 1 << PARITY_BIT and reader.getsockopt(SOL_SOCKET, SO_PEEK_OFF) == -1
        except OSError:  # the option, or -1, is unknown here
            return False
