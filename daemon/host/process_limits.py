"""Limits of the process (setrlimit(2)) within which the daemon cannot run: found before anything fails halfway.

Without descriptors or address space each import, thread and file fails at a place of its own, and no message there
says why.
"""

import resource
from dataclasses import dataclass

MIN_FILES = 128  # about 30 are open at a quiet moment, with one client and a training under way
MIN_ADDRESS_SPACE = 1 << 30  # the libraries alone map 700 MiB
# Descriptors that are kept for files, the trainer's pipes and whatever libraries open; half of all if that is less.
OWN_FILES = 128


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections may be open: for log lines, and on each admin socket with a place and without one."""

    log: int
    admin: int
    admin_waiting: int


class LimitError(Exception):
    """One line: the limit, what it is, what it has to be, and how to raise it."""


def refuse_small_limits() -> None:
    """Raises LimitError."""
    # The soft limit on files does not count: `share_descriptors` raises it.
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


def share_descriptors(most: ConnectionLimits, admin_sockets: int) -> ConnectionLimits:
    """How many connections may be open, at most `most`, so that the rest of the process finds descriptors, too.

    Raises this process's soft limit on open files as far as `most` needs and the hard limit allows. Where there are too
    few, a third of what is to spare is for the admin sockets.
    """
    from actors.connection_places import PLACES_TO_ONE_AT_THE_DOOR  # trio comes with it, and the limits come first

    wanted_by_admin = admin_sockets * (most.admin + most.admin_waiting)
    enough = OWN_FILES + most.log + most.log // PLACES_TO_ONE_AT_THE_DOOR + wanted_by_admin
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < enough:
        soft = enough if hard == resource.RLIM_INFINITY else min(hard, enough)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= enough:
        return most
    spare = soft - min(OWN_FILES, soft // 2)
    admin = min(wanted_by_admin, spare // 3)
    log = (spare - admin) * PLACES_TO_ONE_AT_THE_DOOR // (PLACES_TO_ONE_AT_THE_DOOR + 1)
    each = admin // max(admin_sockets, 1)
    served = each * most.admin // (most.admin + most.admin_waiting)
    return ConnectionLimits(min(most.log, log), max(served, 2), max(each - served, 2))
