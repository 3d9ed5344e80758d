"""The allocator keeps what requests free for those that come."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's")

# Ten blocks of 2 MB are freed together, as the requests of one turn are, and taken again.
PROGRAM = """\
import resource
import sys

import numpy as np

from kserve.allocator import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [np.ones(250_000) for _ in range(10)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def page_faults(*args: str, **env: str) -> int:
    """Give how many pages the program gets from the system when it takes 200 MB in turns."""
    command = [sys.executable, "-c", PROGRAM, *args]
    output = subprocess.run(command, env={**os.environ, **env}, check=True, stdout=subprocess.PIPE)
    return int(output.stdout)


@pytest.mark.timeout(60)
def test_what_was_freed_is_there_for_the_next_ones() -> None:
    kept, returned = page_faults("keep"), page_faults()

    # 200 MB are 51,200 pages.
    assert kept < 1_000
    assert returned > 10_000


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "env",
    [
        pytest.param({"MALLOC_MMAP_THRESHOLD_": "131072"}, id="a variable of malloc"),
        pytest.param({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}, id="tunables"),
    ],
)
def test_what_the_user_has_set_stays(env: dict[str, str]) -> None:
    assert page_faults("keep", **env) > 10_000
