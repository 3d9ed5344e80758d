"""What the signals do that stop a server, from the first line of its start to its end."""

import contextlib
import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

# SIGTERM is Kubernetes', SIGINT a terminal's, SIGQUIT that of images with such a STOPSIGNAL.
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

# As a shell reports a process that a signal has ended.
_ENDED_BY_SIGNAL: Final = 128

_STDERR: Final = 2

Handler = Callable[[int, FrameType | None], None]


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let a signal end the process with exit code 0: nothing is in flight that it could lose.

    The kernel drops a signal to process 1 that has no handler, so that a container would not end.
    Without effect on other threads than the main one, as Python has signals there alone.
    """
    with _handled_by(_end):
        yield


@contextlib.contextmanager
def stopped_by_signals(stop: Callable[[signal.Signals], None], limit_s: float) -> Iterator[None]:
    """Call a function for the first signal; the second one ends the process.

    Its exit code is then 128 and the number of the signal, as in a shell. Where the main thread
    is stuck in code that is not of Python, no signal is seen.

    Args:
        stop: Called amid whatever the main thread does, so it may only pass the signal on.
        limit_s: Seconds from the first signal until the process is ended with exit code 1, and
            with the traceback of every thread on stderr, if `cancel_limit` is not called before.
    """
    has_stopped = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal has_stopped
        if has_stopped:
            os._exit(_ENDED_BY_SIGNAL + number)
        has_stopped = True
        # Its thread needs neither the event loop nor the interpreter, both of which may be stuck.
        faulthandler.dump_traceback_later(limit_s, exit=True, file=_STDERR)
        stop(signal.Signals(number))

    with _handled_by(handle):
        yield


def cancel_limit() -> None:
    """Let the process take its time again after a signal."""
    faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def _handled_by(handler: Handler) -> Iterator[None]:
    is_main = threading.current_thread() is threading.main_thread()
    before = {sig: signal.signal(sig, handler) for sig in (_SIGNALS if is_main else ())}
    try:
        yield
    finally:
        for sig, previous in before.items():
            # None is a handler that is not of Python.
            signal.signal(sig, previous or signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(0)
