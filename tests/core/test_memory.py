"""Memory that has been freed goes back to the system."""

import ctypes
from pathlib import Path

import pytest

from kserve import memory


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc only")
def test_trim_returns_what_lies_between_blocks_in_use() -> None:
    # Each too small for a mapping of its own; the last one keeps the heap from shrinking by itself.
    blocks = [bytes(64 << 10) for _ in range(1000)]
    last = bytes(64 << 10)
    del blocks
    before = resident_bytes()

    memory.trim()

    assert before - resident_bytes() > 32 << 20
    assert len(last) == 64 << 10


def test_trim_does_nothing_where_the_c_library_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._malloc_trim.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())

    memory.trim()

    monkeypatch.undo()
    memory._malloc_trim.cache_clear()
