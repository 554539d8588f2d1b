"""How the C library treats freed memory.

By default glibc returns every large buffer to the kernel, and the next one is faulted in again page by page:
copying the state of 50,000 sessions took 16 ms that way, and takes 8 ms without. It also keeps a heap for
each thread, but our worker threads change from call to call and never work on large buffers at the same time.
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
