"""The allocator of the C library, glibc's, set for requests that hold megabytes for a moment."""

import ctypes
import os
from typing import Final

# Freed memory of more than these bytes at the end of the heap goes back to the system. glibc's own
# bound follows the largest block, so that a server of 64 requests of 800 kB gave back and got again
# 560 pages for each of them: it answered 715 requests a second by gRPC, and 1,315 so.
_TRIM_BYTES: Final = 64 << 20

# Blocks from here on are the system's at once, both ways: one body of 100 MB leaves nothing behind.
_MMAP_BYTES: Final = 8 << 20

# The heap grows by this much: fewer calls, and untouched memory costs nothing.
_TOP_PAD_BYTES: Final = 16 << 20

# One heap for all threads. Python lets one of them run at a time, and what one thread has freed
# another can have: with several, a server under mixed load kept 120 to 190 MiB more.
_ARENAS: Final = 1

# The parameters of mallopt(3), by the variable with which the user sets them.
_SETTINGS: Final = {
    "MALLOC_TRIM_THRESHOLD_": (-1, _TRIM_BYTES),
    "MALLOC_TOP_PAD_": (-2, _TOP_PAD_BYTES),
    "MALLOC_MMAP_THRESHOLD_": (-3, _MMAP_BYTES),
    "MALLOC_ARENA_MAX": (-8, _ARENAS),
}


def keep_freed_memory() -> None:
    """Let the allocator keep what requests free for those that come, up to 64 MiB.

    For a process that serves, before it starts threads. What the user has set by the environment
    (`MALLOC_ARENA_MAX` and its like, or `GLIBC_TUNABLES`) stays; another C library or allocator is
    left as it is.
    """
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    try:
        library = ctypes.CDLL(None)
        # Others have a function of this name that takes other parameters, or ignores them.
        library.gnu_get_libc_version  # noqa: B018 - it is there or not
        mallopt = library.mallopt
    except (AttributeError, OSError):
        return
    for variable, (parameter, value) in _SETTINGS.items():
        if variable not in os.environ:
            mallopt(parameter, value)
