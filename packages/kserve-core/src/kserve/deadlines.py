"""Requests that take too long are cancelled: one timer for all of them, none for each."""

import asyncio
from types import TracebackType
from typing import Any

from kserve.errors import DeadlineExceeded


class Deadlines:
    """Bounds how long each of many requests may take; for one event loop at a time.

    All have the same time, so they expire in the order in which they came, and the timer is that of
    the oldest: a request costs 0.6 us, where a timer of its own costs 3.

    Args:
        timeout_s: The time of a request in seconds; 0 is no limit.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._limits: dict[_Limit, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def limit(self) -> "_Limit":
        """Give a context manager around the work for one request.

        It cancels the work when the time is over, and raises `DeadlineExceeded` then.
        """
        return _Limit(self)

    def begin(self, limit: "_Limit", loop: asyncio.AbstractEventLoop) -> None:
        """Begin the time of a request; the context manager calls it."""
        if loop is not self._loop:
            # The timer of a loop that has ended never comes.
            self._loop, self._timer = loop, None
            self._limits.clear()
        limit.expires_at = loop.time() + self.timeout_s
        self._limits[limit] = None
        if self._timer is None:
            self._timer = loop.call_at(limit.expires_at, self._expire, loop)

    def end(self, limit: "_Limit") -> None:
        """End the time of a request; the context manager calls it."""
        self._limits.pop(limit, None)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for limit in list(self._limits):
            if limit.expires_at > now:
                self._timer = loop.call_at(limit.expires_at, self._expire, loop)
                return
            del self._limits[limit]
            limit.expire()


class _Limit:
    """The time of one request."""

    __slots__ = ("_deadlines", "_has_expired", "_n_cancelled", "_task", "expires_at")

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._task: asyncio.Task[Any] | None = None
        self._has_expired = False
        self._n_cancelled = 0
        self.expires_at = 0.0

    def __enter__(self) -> None:
        if not self._deadlines.timeout_s:
            return
        task = self._task = asyncio.current_task()
        assert task is not None
        self._n_cancelled = task.cancelling()
        self._deadlines.begin(self, task.get_loop())

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._task is None:
            return
        if not self._has_expired:
            self._deadlines.end(self)
        # Somebody else may have cancelled it, too: then it is cancelled.
        elif self._task.uncancel() <= self._n_cancelled and exc_type is asyncio.CancelledError:
            raise DeadlineExceeded(
                f"no answer within {self._deadlines.timeout_s:g} s (--request_timeout_s)"
            ) from None

    def expire(self) -> None:
        """Cancel the work."""
        assert self._task is not None
        self._has_expired = True
        self._task.cancel()
