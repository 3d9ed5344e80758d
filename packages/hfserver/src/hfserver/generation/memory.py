"""How much memory is left."""

import os
from pathlib import Path

import torch

from kserve.memory import memory_limit


def memory_left(device: torch.device) -> int:
    """Give the bytes that are free, of the device's memory or of what this process may have."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return memory_limit() - _resident_bytes()


def _resident_bytes() -> int:
    # In pages: size, resident, ... Source: proc_pid_statm(5).
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
