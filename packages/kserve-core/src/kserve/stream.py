"""A response that streams: begun in the time of its request, and in flight until its end."""

from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any

# Whether the response to the request at hand may stream: over V2 it may as ModelStreamInfer alone.
# For models that can do either.
may_stream_var: ContextVar[bool] = ContextVar("kserve_may_stream", default=False)


class Stream:
    """The chunks of one response, of which the first has been drawn; for the event loop.

    Args:
        drawn: The first chunk; empty if there is none.
        chunks: Gives the others.
        on_end: Called once: after the last chunk, when the stream is closed, or when it is dropped.
    """

    __slots__ = ("_chunks", "_drawn", "_on_end")

    def __init__(
        self, drawn: list[Any], chunks: AsyncIterator[Any], on_end: Callable[[], object]
    ) -> None:
        self._drawn = drawn
        self._chunks = chunks
        self._on_end: Callable[[], object] | None = on_end

    def __aiter__(self) -> "Stream":
        """Give itself."""
        return self

    async def __anext__(self) -> Any:
        """Give the next chunk."""
        if self._drawn:
            return self._drawn.pop()
        try:
            return await anext(self._chunks)
        except BaseException:
            self._end()
            raise

    async def aclose(self) -> None:
        """Close where the chunks come from."""
        close = getattr(self._chunks, "aclose", None)
        try:
            if close is not None:
                await close()
        finally:
            self._end()

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()


async def begun(chunks: AsyncIterable[Any], on_end: Callable[[], object]) -> Stream:
    """Draw the first chunk of a response, and give all of them.

    Args:
        chunks: The response.
        on_end: As for `Stream`; not called if this raises.

    Raises:
        Exception: Whatever drawing the chunk raises.
    """
    iterator = aiter(chunks)
    try:
        drawn = [await anext(iterator)]
    except StopAsyncIteration:
        drawn = []
    return Stream(drawn, iterator, on_end)
