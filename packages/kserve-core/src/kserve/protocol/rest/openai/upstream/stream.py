"""A streamed answer on its way through a proxy: read and passed on event by event."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

import httpx2

from kserve.protocol.rest.openai import sse
from kserve.protocol.rest.openai.errors import OpenAIError
from kserve.protocol.rest.openai.upstream.documents import RawDocument, read
from kserve.protocol.rest.openai.upstream.errors import gateway_error, transport_error
from kserve.protocol.rest.openai.upstream.events import EventReader

_DONE: Final = sse.DONE.encode()

# The end of a response comes with its last event, or the connection is not worth waiting for.
_DRAIN_S: Final = 0.5


class Passed(NamedTuple):
    """What is passed on of some events.

    Attributes:
        items: Chunks, or texts that are events.
        failure: What ends the stream after them; None where nothing does.
    """

    items: list[Any]
    failure: Exception | None = None


# events -> what is passed on of them
PassOn = Callable[[Sequence[RawDocument]], Awaitable[Passed]]


class UpstreamStream:
    """The chunks of a streamed answer; for the event loop.

    What comes in one piece is passed on in one turn, so that a proxy that is behind catches up.

    Args:
        response: The response, of which the head has been read; closed at the end.
        pass_on: Makes of some events what is passed on.
        end: What is passed on for the event that ends it, if anything.
        note: Takes note of a connection that failed.
    """

    __slots__ = (
        "_chunks",
        "_end",
        "_failure",
        "_has_ended",
        "_is_delimited",
        "_items",
        "_note",
        "_pass_on",
        "_reader",
        "_response",
    )

    def __init__(
        self,
        response: httpx2.Response,
        pass_on: PassOn,
        end: Any,
        note: Callable[[httpx2.HTTPError], object],
    ) -> None:
        self._response = response
        self._pass_on = pass_on
        self._end = end
        self._note = note
        # Without either, an answer that was cut looks like one that has ended.
        self._is_delimited = not {"transfer-encoding", "content-length"}.isdisjoint(
            response.headers
        )
        self._chunks = response.aiter_bytes()
        self._reader = EventReader()
        self._items: deque[Any] = deque()
        self._failure: Exception | None = None
        self._has_ended = False

    def __aiter__(self) -> "UpstreamStream":
        """Give itself."""
        return self

    async def __anext__(self) -> Any:
        """Give the next chunk.

        Raises:
            OpenAIError: The server failed, or the connection to it.
            Exception: Whatever a hook raises.
        """
        try:
            while not self._items:
                if self._failure is not None:
                    raise self._failure
                if self._has_ended:
                    await self._drain()
                    raise StopAsyncIteration
                await self._read()
            return self._items.popleft()
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Let the connection go; one whose answer has not ended is closed: the server sees it."""
        self._has_ended = True
        self._items.clear()
        # A generator that has not begun has nothing to close, so the response is closed as well.
        close = getattr(self._chunks, "aclose", None)
        if close is not None:
            await close()
        await self._response.aclose()

    async def _read(self) -> None:
        documents: list[RawDocument] = []
        is_done = False
        try:
            for event in await self._events():
                if event == _DONE:
                    is_done = self._has_ended = True
                    break
                documents.append(read(event))
        except OpenAIError as exc:
            self._failure = exc
        if documents:
            passed = await self._pass_on(documents)
            self._items.extend(passed.items)
            self._failure = passed.failure or self._failure
        if is_done and self._failure is None and self._end is not None:
            self._items.append(self._end)

    async def _events(self) -> list[bytes]:
        """Give the events of the next piece.

        Raises:
            OpenAIError: The connection failed, or the events are none.
        """
        try:
            return self._reader.feed(await anext(self._chunks))
        except StopAsyncIteration:
            self._has_ended = True
        except httpx2.HTTPError as exc:
            self._note(exc)
            raise transport_error(exc) from exc
        except ValueError as exc:
            raise gateway_error(502, f"the upstream server sends {exc}") from exc
        events = self._reader.finish()
        if not self._is_delimited and _DONE not in events:
            self._failure = gateway_error(502, "the upstream server broke off its answer")
        return events

    async def _drain(self) -> None:
        """Read to the end of the response, so that the connection can be used again."""
        with contextlib.suppress(TimeoutError, httpx2.HTTPError):
            async with asyncio.timeout(_DRAIN_S):
                async for _ in self._chunks:
                    pass
