"""Limits of the process (setrlimit(2)) within which the daemon cannot run: found before anything fails halfway.

Without descriptors or address space each import, thread and file fails at a place of its own, and no message there
says why.
"""

import resource

MIN_FILES = 64  # about 30 are open at a quiet moment, with one client and a training under way
MIN_ADDRESS_SPACE = 1 << 30  # the libraries alone map 700 MiB


class LimitError(Exception):
    """One line: the limit, what it is, what it has to be, and how to raise it."""


def refuse_small_limits() -> None:
    """Raises LimitError."""
    # The soft limit on files does not count: `room_for_connections` raises it.
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if files != resource.RLIM_INFINITY and files < MIN_FILES:
        raise LimitError(
            f"only {files} files may be open, and at least {MIN_FILES} are needed: raise LimitNOFILE= in the unit, or "
            "the hard limit of ulimit -n"
        )
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY and space < MIN_ADDRESS_SPACE:
        raise LimitError(
            f"the address space is limited to {space >> 20:,} MiB, and at least {MIN_ADDRESS_SPACE >> 20:,} MiB are "
            "needed: raise LimitAS= in the unit, or ulimit -v (to limit memory there is MemoryMax=)"
        )
