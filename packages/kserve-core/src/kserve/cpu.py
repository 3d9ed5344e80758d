"""How many CPUs this process may use."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CGROUP_ROOT: Final = Path("/sys/fs/cgroup")

# One line for each hierarchy that the process is in: number, controllers, path from the root.
_OWN_CGROUPS: Final = Path("/proc/self/cgroup")

# Joint controllers are one directory, and have a link for each only where systemd made it.
_CONTROLLERS_V1: Final = ("cpu", "cpu,cpuacct")


def cpu_count(cgroup_root: Path = _CGROUP_ROOT, own_cgroups: Path = _OWN_CGROUPS) -> int:
    """Give the number of CPUs that the affinity mask and the cgroup quotas leave, at least 1.

    A cgroup gets no more than those around it, so the least quota of all of them counts. A quota
    of a part of a CPU counts down: 2.5 CPUs are 2, as a third thread would mostly be throttled.

    Args:
        cgroup_root: Where cgroups, version 1 or 2, are mounted.
        own_cgroups: What tells the cgroups of this process.
    """
    quotas = [*_quotas_v2(cgroup_root, own_cgroups), *_quotas_v1(cgroup_root, own_cgroups)]
    return max(1, min([_affinity(), *map(int, quotas)]))


def thread_count(n_threads: int) -> int:
    """Give a number of threads: as many as there are CPUs for us where it is -1."""
    return cpu_count() if n_threads == -1 else n_threads


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def _quotas_v2(root: Path, own_cgroups: Path) -> Iterator[float]:
    for folder in _nested(root, _own_path(own_cgroups, "")):
        # "max 100000" or "150000 100000": microseconds of CPU in each period of microseconds.
        yield from _quota(_read(folder / "cpu.max").split())


def _quotas_v1(root: Path, own_cgroups: Path) -> Iterator[float]:
    own = _own_path(own_cgroups, "cpu")
    for controller in _CONTROLLERS_V1:
        for folder in _nested(root / controller, own):
            words = [_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
            # A quota of -1 is none.
            yield from _quota(words)


def _own_path(own_cgroups: Path, controller: str) -> str:
    """Give the path of the process's cgroup; a version 2 line names no controller."""
    for line in _read(own_cgroups).splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controller in controllers.split(","):
            return path
    return "/"


def _nested(root: Path, path: str) -> Iterator[Path]:
    """Give the cgroup of a path and all around it.

    Where a container sees only its own cgroup, at the root, the path is one that is not there
    (version 1 names that of the host), or it leads out ("/../..").
    """
    names = [name for name in path.split("/") if name]
    n_names = 0 if ".." in names else len(names)
    yield from (root.joinpath(*names[:n]) for n in range(n_names, -1, -1))


def _quota(words: list[str]) -> Iterator[float]:
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]) > 0:
        yield int(words[0]) / int(words[1])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
