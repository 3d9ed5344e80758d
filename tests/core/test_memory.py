"""The limit on memory, by cgroups and machine; memory that was freed goes back to the system."""

import ctypes
import os
from pathlib import Path

import pytest

from kserve import memory

PHYSICAL = 1 << 40


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the machine 1 TiB."""
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 28}.get)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        pytest.param(None, {}, PHYSICAL, id="no cgroups"),
        pytest.param("0::/\n", {"memory.max": "max\n"}, PHYSICAL, id="v2 without a limit"),
        pytest.param("0::/\n", {"memory.max": "1000\n"}, 1000, id="v2 in a container"),
        pytest.param("0::/\n", {"memory.max": f"{1 << 50}\n"}, PHYSICAL, id="v2 beyond all memory"),
        pytest.param(
            "0::/pods/a\n",
            {"pods/a/memory.max": "3000\n", "pods/memory.max": "max\n"},
            3000,
            id="v2 its own",
        ),
        pytest.param(
            "0::/pods/a\n",
            {"pods/a/memory.max": "3000\n", "pods/memory.max": "2000\n"},
            2000,
            id="v2 of the one around it",
        ),
        pytest.param(
            "0::/pods/b\n", {"pods/a/memory.max": "3000\n"}, PHYSICAL, id="v2 of another one"
        ),
        pytest.param(
            "5:cpu:/\n4:memory,hugetlb:/docker/1\n0::/\n",
            {"memory/docker/1/memory.limit_in_bytes": "4000\n"},
            4000,
            id="v1",
        ),
        pytest.param(
            # The path is the host's, and not there in the container.
            "4:memory:/docker/1\n",
            {"memory/memory.limit_in_bytes": "5000\n"},
            5000,
            id="v1 in a container",
        ),
        pytest.param(
            "4:memory:/\n",
            {"memory/memory.limit_in_bytes": "9223372036854771712\n"},
            PHYSICAL,
            id="v1 without a limit",
        ),
        pytest.param(
            "4:cpu:/\n", {"memory/memory.limit_in_bytes": "5000\n"}, PHYSICAL, id="v1 of the cpu"
        ),
        pytest.param("no cgroup\n", {}, PHYSICAL, id="a line of another form"),
    ],
)
def test_the_limit_is_the_least_of_the_cgroups_and_the_machine(
    tmp_path: Path, own: str | None, files: dict[str, str], expected: int
) -> None:
    own_cgroups = tmp_path / "own"
    if own is not None:
        own_cgroups.write_text(own)
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    limit = memory.memory_limit(tmp_path / "root", own_cgroups)

    assert limit == expected


def test_the_limit_of_this_process_is_between_nothing_and_the_machines_memory() -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    assert 0 < memory.memory_limit() <= physical


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc only")
def test_trim_returns_what_lies_between_blocks_in_use() -> None:
    # Each too small for a mapping of its own; the last one keeps the heap from shrinking by itself.
    # Written to, as untouched memory is not resident.
    blocks = [b"x" * (64 << 10) for _ in range(1000)]
    last = b"x" * (64 << 10)
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
