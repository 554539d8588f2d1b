"""How the C library keeps memory that was freed.

glibc gives every large buffer back to the kernel and faults it in again, page by page, when the next one
is asked for: copying the state of 50,000 sessions took 16 ms that way and takes 8 ms without. And it keeps
a heap for each thread, while our worker threads change from call to call but never work on large buffers
at the same time.
"""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_KEPT_BYTES = 128 << 20
_ARENAS = 2


def keep_freed_buffers() -> bool:
    """Reuse freed buffers instead of returning them; False where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((_M_MMAP_THRESHOLD, _KEPT_BYTES), (_M_TRIM_THRESHOLD, _KEPT_BYTES), (_M_ARENA_MAX, _ARENAS))
    return all([mallopt(parameter, value) == 1 for parameter, value in wanted])
