"""Streams of events, byte for byte."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from kserve.errors import InferenceError
from kserve.protocol.rest.openai.event_stream import EventStream
from kserve.protocol.rest.openai.types import Completion, UsageInfo

pytestmark = pytest.mark.anyio

DONE = b"data: [DONE]\n\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Chunks:
    """Gives chunks, and raises those that are exceptions."""

    def __init__(self, *chunks: Any) -> None:
        self.chunks = list(chunks)
        self.is_closed = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if not self.chunks:
            raise StopAsyncIteration
        chunk = self.chunks.pop(0)
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    async def aclose(self) -> None:
        self.is_closed = True


def describe(exc: Exception) -> bytes:
    return b'{"error":"%b"}' % str(exc).encode()


async def events(*chunks: Any) -> list[bytes]:
    return [event async for event in EventStream(Chunks(*chunks), describe)]


async def test_each_object_is_an_event_and_the_last_one_says_that_it_is() -> None:
    assert await events(UsageInfo.of(1), {"a": 1}) == [
        b'data: {"prompt_tokens":1,"total_tokens":1}\n\n',
        b'data: {"a":1}\n\n',
        DONE,
    ]
    assert await events() == [DONE]


async def test_texts_are_events_already() -> None:
    completion = Completion(id="i", created=1, model="m", choices=[]).model_dump_json()

    assert await events(f"data: {completion}\n\n", "data: [DONE]\n\n") == [
        b'data: {"id":"i","object":"text_completion","created":1,"model":"m","choices":[]}\n\n',
        DONE,
    ]
    assert await events(b"data: 1\n\n") == [b"data: 1\n\n", DONE]
    assert await events("data: 1\n\ndata: [DONE]\n\n") == [b"data: 1\n\ndata: [DONE]\n\n"]
    # A model may write about it.
    assert await events(b'data: "data: [DONE]"\n\n') == [b'data: "data: [DONE]"\n\n', DONE]


async def test_a_failure_is_the_last_event_but_one() -> None:
    assert await events({"a": 1}, ValueError("bad"), {"b": 1}) == [
        b'data: {"a":1}\n\n',
        b'data: {"error":"bad"}\n\n' + DONE,
    ]


async def test_a_chunk_that_cannot_be_written_is_a_failure() -> None:
    first, event = await events({"a": 1}, {"a": object()})

    assert first == b'data: {"a":1}\n\n'
    assert event.startswith(b'data: {"error":"the model\'s answer cannot be written')
    assert event.endswith(DONE)


async def test_a_failure_before_the_first_event_is_raised() -> None:
    with pytest.raises(InferenceError, match="cannot be written"):
        await events({"a": object()}, {"b": 1})


async def test_closes_where_the_chunks_come_from() -> None:
    chunks = Chunks({"a": 1})
    stream = EventStream(chunks, describe)

    await stream.aclose()

    assert chunks.is_closed
