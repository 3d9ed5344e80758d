"""Memory that a model leaves behind, given back to the operating system."""

import ctypes
import gc
from contextlib import suppress


def release_memory() -> None:
    """Collect garbage, and have the allocator give free pages back where it can; blocks.

    glibc keeps what was freed for the next allocation: a server that swaps models would grow to
    the sum of their peaks.
    """
    gc.collect()
    # Other C libraries have no malloc_trim; some platforms cannot open the program itself.
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
