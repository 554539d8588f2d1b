"""Members that raise: the error says which, so that the others can go on without it.

A member may fail for reasons that are neither the lines' nor the model's: a library that cannot run on this machine,
memory that is not to be had. Whatever is asked of a member is asked in `blamed_on`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LONGEST_REASON = 300  # characters: it is journaled, and shown


class MemberError(Exception):
    """`member` raised; what it raised is the cause."""

    def __init__(self, member: str) -> None:
        super().__init__(f"{member} failed")
        self.member = member

    @property
    def reason(self) -> str:
        """What the member raised, in one line."""
        return in_a_line(self.__cause__ or self)


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A member of the model in force that failed: it does not judge from frame `seq` on."""

    member: str
    seq: int
    reason: str


@contextmanager
def blamed_on(member: str) -> Iterator[None]:
    """Whatever is raised in here is a `MemberError` of `member`, unless it is one already."""
    try:
        yield
    except MemberError:
        raise
    except Exception as exc:
        raise MemberError(member) from exc


def in_a_line(exc: BaseException) -> str:
    """The kind of `exc` and what it says, in one line of bounded length."""
    said = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {said}"[:LONGEST_REASON] if said else type(exc).__name__
