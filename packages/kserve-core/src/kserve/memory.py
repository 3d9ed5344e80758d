"""What the collector looks at, and memory that has been freed and that the process still has."""

import ctypes
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

# Models are freed side by side: what one freezes another may be about to look through.
_lock: Final = threading.Lock()


@contextmanager
def frozen() -> Iterator[None]:
    """Keep what is there now out of every collection, until the end of the block.

    Libraries and models are hundreds of thousands of objects that stay, and a full collection stops
    every thread while it looks at all of them: 40 to 60 ms, three times in 8 s of load, against
    0.5 ms (an SVC on iris, scikit-learn 1.9, Python 3.11).
    """
    with _lock:
        _collect_and_freeze()
    try:
        yield
    finally:
        with _lock:
            gc.unfreeze()


def freeze_more() -> None:
    """Keep what is there now out of the collections too, if something is kept out already."""
    with _lock:
        if gc.get_freeze_count():
            _collect_and_freeze()


def release() -> None:
    """Find the garbage in what was kept out of the collections, and give its memory back."""
    with _lock:
        if gc.get_freeze_count():
            gc.unfreeze()
            _collect_and_freeze()
        else:
            gc.collect()
    trim()


def trim() -> None:
    """Give freed memory back to the system, where the C library can: glibc, in about 1 ms.

    It keeps what lies between blocks in use, which after a large message is most of its size.
    """
    _malloc_trim()(0)


def _collect_and_freeze() -> None:
    # What is garbage now, a model that refers to itself for one, would not be found any more.
    gc.collect()
    gc.freeze()


@cache
def _malloc_trim() -> Callable[[int], int]:
    try:
        function: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return lambda pad: 0
    return function
