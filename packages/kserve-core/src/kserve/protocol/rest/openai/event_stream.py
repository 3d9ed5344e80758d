"""A streamed answer as server-sent events, from the first chunk to `[DONE]`."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from kserve.protocol.rest.openai import sse
from kserve.protocol.rest.openai.encoding import encode_chunk


class EventStream:
    """The events of one answer; for the event loop.

    A model that fails amid its answer ends it with an event that holds the error: the status has
    been sent, and a connection that is cut says nothing. Before the first event it raises.

    Args:
        chunks: Objects, each of which becomes an event, or texts that are events already.
        on_failure: Takes note of an exception, and gives the JSON of the error for the client.
    """

    __slots__ = ("_chunks", "_has_begun", "_has_ended", "_is_done", "_on_failure")

    def __init__(
        self, chunks: AsyncIterator[Any], on_failure: Callable[[Exception], bytes]
    ) -> None:
        self._chunks = chunks
        self._on_failure = on_failure
        # The model has sent the last event itself.
        self._is_done = False
        self._has_begun = self._has_ended = False

    def __aiter__(self) -> "EventStream":
        """Give itself."""
        return self

    async def __anext__(self) -> bytes:
        """Give the next event, or several."""
        if self._has_ended:
            raise StopAsyncIteration
        try:
            event = self._encode(await anext(self._chunks))
        except StopAsyncIteration:
            self._has_ended = True
            if self._is_done:
                raise
            return sse.DONE_EVENT
        except Exception as exc:
            if not self._has_begun:
                raise
            self._has_ended = True
            return sse.event(self._on_failure(exc)) + sse.DONE_EVENT
        self._has_begun = True
        return event

    async def aclose(self) -> None:
        """Close where the chunks come from."""
        close = getattr(self._chunks, "aclose", None)
        if close is not None:
            await close()

    def _encode(self, chunk: Any) -> bytes:
        if isinstance(chunk, str):
            chunk = chunk.encode()
        if isinstance(chunk, bytes):
            # The last line, as a text may have the same words in it.
            last = chunk.rstrip().rpartition(b"\n")[2]
            self._is_done = self._is_done or last == sse.DONE_EVENT.rstrip()
            return chunk
        return sse.event(encode_chunk(chunk))
