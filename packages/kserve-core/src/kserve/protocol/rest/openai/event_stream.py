"""A streamed answer as OpenAI's events, from the first chunk to `[DONE]`."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from kserve.protocol.rest import event_stream
from kserve.protocol.rest.openai import sse
from kserve.protocol.rest.openai.encoding import encode_chunk


class EventStream(event_stream.EventStream):
    """The events of one answer.

    Args:
        chunks: Objects, each of which becomes an event, or texts that are events already.
        on_failure: As of the base class.
    """

    __slots__ = ("_is_done",)

    def __init__(
        self, chunks: AsyncIterator[Any], on_failure: Callable[[Exception], bytes]
    ) -> None:
        super().__init__(chunks, on_failure)
        # The model has sent the last event itself.
        self._is_done = False

    def encode(self, chunk: Any) -> bytes:
        """Give the event of a chunk."""
        if isinstance(chunk, str):
            chunk = chunk.encode()
        if isinstance(chunk, bytes):
            # The last line, as a text may have the same words in it.
            last = chunk.rstrip().rpartition(b"\n")[2]
            self._is_done = self._is_done or last == sse.DONE_EVENT.rstrip()
            return chunk
        return sse.event(encode_chunk(chunk))

    def end(self) -> bytes:
        """Give the last event, unless the model has sent it itself."""
        return b"" if self._is_done else sse.DONE_EVENT

    def end_of_failure(self) -> bytes:
        """Give the last event."""
        return sse.DONE_EVENT
