"""The events of one request, for who has submitted it."""

import asyncio
from collections.abc import Callable

from hfserver.generation.interface import Event, TokenEvent


class EventStream:
    """What an engine says of a request; for the event loop that submitted it.

    A generator would not do: one that nobody has begun to read runs no code when it is closed or
    dropped, and its request would go on.

    Args:
        queue: Where the engine puts the events, or the error that ends them.
        n_growing: Sequences of the request.
        cancel: Cancels it; called from any thread, once, and only before the end has been read.
    """

    __slots__ = ("_cancel", "_is_over", "_n_growing", "_queue")

    def __init__(
        self,
        queue: asyncio.Queue[Event | BaseException],
        n_growing: int,
        cancel: Callable[[], object],
    ) -> None:
        self._queue = queue
        self._n_growing = n_growing
        self._cancel = cancel
        self._is_over = False

    def __aiter__(self) -> "EventStream":
        """Give itself."""
        return self

    async def __anext__(self) -> Event:
        """Give the next event; cancelling the task that waits for it cancels the request."""
        if self._is_over:
            raise StopAsyncIteration
        try:
            item = await self._queue.get()
        except BaseException:
            self._close()
            raise
        if isinstance(item, BaseException):
            self._is_over = True
            raise item
        if isinstance(item, TokenEvent) and item.finish_reason is not None:
            self._n_growing -= 1
            self._is_over = self._n_growing == 0
        return item

    async def aclose(self) -> None:
        """Cancel the request, unless its end has been read."""
        self._close()

    def __del__(self) -> None:
        """Cancel the request where nobody has closed it."""
        self._close()

    def _close(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._cancel()
