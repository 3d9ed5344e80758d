"""A streamed answer as server-sent events."""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from kserve.protocol.compression import RawHeaders
from kserve.protocol.rest.openai import sse

# Proxies that gather a response before they pass it on would hold up its events.
EVENT_HEADERS: Final[RawHeaders] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventStream:
    """The events of one answer; for the event loop.

    A model that fails amid its answer ends it with an event that holds the error: the status has
    been sent, and a connection that is cut says nothing. Before the first event it raises. What an
    event is, and what the last one, a subclass says.

    Args:
        chunks: What becomes events.
        on_failure: Takes note of an exception, and gives the JSON of the error for the client.
    """

    __slots__ = ("_chunks", "_has_begun", "_has_ended", "_on_failure")

    def __init__(
        self, chunks: AsyncIterator[Any], on_failure: Callable[[Exception], bytes]
    ) -> None:
        self._chunks = chunks
        self._on_failure = on_failure
        self._has_begun = self._has_ended = False

    def __aiter__(self) -> "EventStream":
        """Give itself."""
        return self

    async def __anext__(self) -> bytes:
        """Give the next event, or several."""
        if self._has_ended:
            raise StopAsyncIteration
        try:
            event = self.encode(await anext(self._chunks))
        except StopAsyncIteration:
            self._has_ended = True
            last = self.end()
            if not last:
                raise
            return last
        except Exception as exc:
            if not self._has_begun:
                raise
            self._has_ended = True
            return sse.event(self._on_failure(exc)) + self.end_of_failure()
        self._has_begun = True
        return event

    async def aclose(self) -> None:
        """Close where the chunks come from."""
        close = getattr(self._chunks, "aclose", None)
        if close is not None:
            await close()

    def encode(self, chunk: Any) -> bytes:
        """Give the event of a chunk.

        Raises:
            Exception: It is none.
        """
        raise NotImplementedError

    def end(self) -> bytes:
        """Give what comes after the last chunk; nothing where there is nothing."""
        return b""

    def end_of_failure(self) -> bytes:
        """Give what comes after an error."""
        return b""
