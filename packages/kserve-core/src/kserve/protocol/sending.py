"""The limit on answers that a client does not read: they stay in memory until it does."""

import asyncio
import contextlib
import fcntl
import sys
import termios
from asyncio import TimerHandle
from collections.abc import Callable


class SendWatch:
    """Cuts a connection whose client has stopped to read; one timer, not set anew for each answer.

    Args:
        transport: The connection.
        timeout_s: For how many seconds the client may take nothing of what is unsent.
        is_written: Whether nothing more is written before something has been sent, so that what is
            unsent can only become less.
    """

    __slots__ = ("_is_written", "_n_unsent", "_since", "_timeout_s", "_timer", "_transport")

    def __init__(
        self, transport: asyncio.Transport, timeout_s: float, is_written: Callable[[], bool]
    ) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._is_written = is_written
        self._timer: TimerHandle | None = None
        self._n_unsent = 0
        self._since = 0.0

    def begin(self) -> None:
        """Give the client its time, from now on, to take some of what is unsent."""
        loop = asyncio.get_running_loop()
        self._n_unsent = self.count_unsent()
        self._since = loop.time()
        if self._timer is None:
            self._timer = loop.call_at(self._since + self._timeout_s, self._check)

    def cancel(self) -> None:
        """End: the connection is closed, or somebody else sees to it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        if not self._transport.get_write_buffer_size():
            return
        ends_at = self._since + self._timeout_s
        if loop.time() < ends_at:
            self._timer = loop.call_at(ends_at, self._check)
        elif self._is_written() and self.count_unsent() >= self._n_unsent:
            self._transport.abort()
        else:
            self.begin()

    def count_unsent(self) -> int:
        """Give the bytes that the client has not taken, here and in the kernel.

        The kernel takes more from here only when a third of its own buffer, which may have
        megabytes, is free; a slow client would seem to have stopped.
        """
        unacknowledged = bytes(4)
        # Closed, or a system that does not tell: what is here tells less, but nothing wrong.
        with contextlib.suppress(OSError, ValueError):
            sock = self._transport.get_extra_info("socket")
            unacknowledged = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, unacknowledged)
        return self._transport.get_write_buffer_size() + int.from_bytes(
            unacknowledged, sys.byteorder
        )
