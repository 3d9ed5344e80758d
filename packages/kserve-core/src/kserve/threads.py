"""How many threads the libraries under a model start.

OpenMP and the BLAS libraries start a thread for each CPU of the machine, whatever part of it a
container may use, and read their limits once, when they are loaded. So this imports nothing that
loads one.
"""

import os
from collections.abc import MutableMapping
from typing import Final

from kserve.cpu import cpu_count

# Every OpenMP runtime reads it, and OpenBLAS, MKL, BLIS and numexpr where theirs is not set.
_OPENMP: Final = "OMP_NUM_THREADS"

# Said for themselves too: builds differ in whether they follow the one above.
_BLAS: Final = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def limit_threads(env: MutableMapping[str, str] | None = None) -> None:
    """Let libraries that are loaded from now on start as many threads as there are CPUs for us.

    What is set already stays; a BLAS library whose own number is not set gets that of OpenMP. The
    framework servers call this first of all. A script of one's own may, before its other imports:
    it changes the environment of the process.

    Args:
        env: The environment; that of this process if None.
    """
    env = os.environ if env is None else env
    # Of "4,2", a number for each level of nesting, the first is that of the outermost.
    n_threads = env.get(_OPENMP, "").partition(",")[0].strip() or str(cpu_count())
    for name in (_OPENMP, *_BLAS):
        if not env.get(name, "").strip():
            env[name] = n_threads
