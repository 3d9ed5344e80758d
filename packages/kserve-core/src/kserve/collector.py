"""What the garbage collector looks at: not what stays for as long as the server runs."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from kserve.memory import trim

# So many more objects than there were make a look for young garbage. Python's 700 are the requests
# of half a turn of the event loop, which are no garbage: to look at them took 5 % of a small
# request's instructions.
_THRESHOLD: Final = 20_000
# Of 3.11; 2,000 from 3.12 on.
_PYTHONS_THRESHOLDS: Final = (700, 2000)

# Models are freed side by side: what one freezes another may be about to look through.
_lock: Final = threading.Lock()


@contextmanager
def frozen() -> Iterator[None]:
    """Keep what is there now out of every collection, until the end of the block.

    Libraries and models are more than 100,000 objects that stay, and a full collection stops every
    thread while it looks at all of them: 40 to 60 ms, three times in 8 s of load, against 0.5 ms
    (an SVC on iris, scikit-learn 1.9, Python 3.11).
    """
    thresholds = gc.get_threshold()
    with _lock:
        _collect_and_freeze()
        # Who has set another one knows why.
        if thresholds[0] in _PYTHONS_THRESHOLDS:
            gc.set_threshold(_THRESHOLD, *thresholds[1:])
    try:
        yield
    finally:
        with _lock:
            gc.unfreeze()
            gc.set_threshold(*thresholds)


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


def _collect_and_freeze() -> None:
    # What is garbage now, a model that refers to itself for one, would not be found any more.
    gc.collect()
    gc.freeze()
