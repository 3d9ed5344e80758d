"""How many CPUs this process may use."""

import os
from pathlib import Path
from typing import Final

_CGROUP_ROOT: Final = Path("/sys/fs/cgroup")


def cpu_count(cgroup_root: Path = _CGROUP_ROOT) -> int:
    """Give the number of CPUs that the affinity mask and the cgroup quota leave, at least 1.

    A quota of a part of a CPU counts down: 2.5 CPUs are 2.

    Args:
        cgroup_root: Where cgroups, version 1 or 2, are mounted.
    """
    count = _affinity()
    quota = _quota_v2(cgroup_root) or _quota_v1(cgroup_root)
    return count if quota is None else max(1, min(count, int(quota)))


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def _quota_v2(root: Path) -> float | None:
    # "max 100000" or "150000 100000": microseconds of CPU in each period of microseconds.
    return _quota(_read(root / "cpu.max").split())


def _quota_v1(root: Path) -> float | None:
    for controller in ("cpu", "cpu,cpuacct"):
        folder = root / controller
        quota = _quota([_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")])
        if quota is not None:
            return quota
    return None


def _quota(words: list[str]) -> float | None:
    if len(words) != 2 or not all(word.isdigit() for word in words) or int(words[1]) == 0:
        return None
    return int(words[0]) / int(words[1])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
