"""How much memory the process may have, and what it has freed and still has."""

import ctypes
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

_CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
_OWN_CGROUPS: Final = Path("/proc/self/cgroup")


def memory_limit(cgroup_root: Path = _CGROUP_ROOT, own_cgroups: Path = _OWN_CGROUPS) -> int:
    """Give the bytes that this process and those beside it in its cgroup may have, at most.

    It is the least of the limits of the cgroup, of those that it lies in, and of the machine's
    memory.

    Args:
        cgroup_root: Where cgroups, version 1 or 2, are mounted.
        own_cgroups: The file that names those of the process.
    """
    limits = [_limit(file) for file in _limit_files(cgroup_root, own_cgroups)]
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(limit for limit in limits if limit is not None)])


def _limit_files(root: Path, own_cgroups: Path) -> Iterator[Path]:
    """Give the files that may hold a limit; in a container only the last of them may be there."""
    for line in _read(own_cgroups).splitlines():
        # "hierarchy-ID:controller-list:cgroup-path". Source: cgroups(7).
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        for cgroup in (Path(path), *Path(path).parents):
            folder = str(cgroup).lstrip("/")
            if not controllers:
                yield root / folder / "memory.max"
            elif "memory" in controllers.split(","):
                yield root / "memory" / folder / "memory.limit_in_bytes"


def _limit(file: Path) -> int | None:
    # "max" is no limit; version 1 has a number beyond all memory for it.
    text = _read(file)
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def trim() -> None:
    """Give freed memory back to the system, where the C library can: glibc, in about 1 ms.

    It keeps what lies between blocks in use, which after a large message is most of its size.
    """
    _malloc_trim()(0)


@cache
def _malloc_trim() -> Callable[[int], int]:
    try:
        function: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return lambda pad: 0
    return function
