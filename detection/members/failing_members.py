"""Members that raise: the error names the member, so that the others can continue without it.

A member may fail for reasons that have nothing to do with the lines or the model: a library that cannot run on this
machine, a lack of memory. Every call of a member is made inside `blamed_on`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LONGEST_REASON = 300  # characters: it is journaled and displayed


class MemberError(Exception):
    """The member called `member` raised `__cause__`."""

    def __init__(self, member: str) -> None:
        super().__init__(f"{member} failed")
        self.member = member

    @property
    def reason(self) -> str:
        """What the member raised, in one line."""
        return exception_in_a_line(self.__cause__ or self)


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A member that failed and does not judge from frame `seq` on."""

    member: str
    seq: int
    reason: str


@contextmanager
def blamed_on(member: str) -> Iterator[None]:
    """An exception inside this context becomes a `MemberError` that names `member`, unless it is one already."""
    try:
        yield
    except MemberError:
        raise
    except Exception as exc:
        raise MemberError(member) from exc


def exception_in_a_line(exc: BaseException) -> str:
    """The type and message of `exc` in one line of at most LONGEST_REASON characters."""
    said = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {said}"[:LONGEST_REASON] if said else type(exc).__name__
