"""How the C library treats memory that XLA:CPU gives back after every step."""

import ctypes
import sys

# glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets this process keep freed memory for its next step; call it before there are threads.

    glibc maps every large array anew and unmaps it when it is freed, so that the kernel clears all
    temporaries of XLA:CPU again in each step: up to a third of a small training step. Afterwards
    the process holds as much as it ever needed at once, and XLA compiles more slowly, because all
    threads share one arena (the others map large arrays whatever they are told): few steps lose by
    it, many win. Returns False, having changed nothing, where the C library is another.
    Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1))
    return all([mallopt(name, value) == 1 for name, value in settings])
