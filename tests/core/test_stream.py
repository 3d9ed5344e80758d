"""Responses that stream."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from kserve.config import ServerConfig
from kserve.errors import DeadlineExceeded, TooManyRequests
from kserve.model import Model
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.stream import Stream, begun

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Ends:
    """Counts the ends of streams."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self) -> None:
        self.n += 1


class Chunks:
    """Gives numbers, and then raises if it is to."""

    def __init__(self, n_chunks: int, error: Exception | None = None) -> None:
        self.given: list[int] = []
        self.is_closed = False
        self._n_chunks = n_chunks
        self._error = error

    def __aiter__(self) -> "Chunks":
        return self

    async def __anext__(self) -> int:
        if len(self.given) < self._n_chunks:
            self.given.append(len(self.given))
            return self.given[-1]
        raise self._error or StopAsyncIteration

    async def aclose(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("n_chunks", [0, 1, 3])
async def test_all_chunks_come_in_order_and_the_end_is_told_once(n_chunks: int) -> None:
    ends = Ends()

    stream = await begun(Chunks(n_chunks), ends)
    n_before = ends.n
    chunks = [chunk async for chunk in stream]
    await stream.aclose()

    assert (chunks, n_before, ends.n) == (list(range(n_chunks)), 0, 1)


async def test_one_chunk_is_drawn_before_anybody_asks() -> None:
    chunks = Chunks(3)

    await begun(chunks, Ends())

    assert chunks.given == [0]


async def test_a_chunk_that_cannot_be_drawn_is_the_end() -> None:
    ends = Ends()
    stream = await begun(Chunks(1, ValueError("broken")), ends)

    first = await anext(stream)
    with pytest.raises(ValueError, match="broken"):
        await anext(stream)

    assert (first, ends.n) == (0, 1)


async def test_a_first_chunk_that_cannot_be_drawn_begins_nothing() -> None:
    ends = Ends()

    with pytest.raises(ValueError, match="broken"):
        await begun(Chunks(0, ValueError("broken")), ends)

    assert ends.n == 0


async def _close(stream: Stream) -> None:
    await stream.aclose()


async def _drop(stream: Stream) -> None:
    """Do nothing with it."""


@pytest.mark.parametrize(("leave", "is_closed"), [(_close, True), (_drop, False)])
async def test_a_stream_that_is_left_has_ended(
    leave: Callable[[Stream], Any], is_closed: bool
) -> None:
    ends, chunks = Ends(), Chunks(3)

    await leave(await begun(chunks, ends))

    assert (ends.n, chunks.is_closed) == (1, is_closed)


class Streaming(Model):
    """Streams chunks that are made elsewhere."""

    def __init__(self, make: Callable[[], AsyncIterator[int]]) -> None:
        super().__init__("streaming")
        self.ready = True
        self._make = make

    async def predict(self, payload: Any, headers: Any = None) -> AsyncIterator[int]:  # type: ignore[override]  # as a user writes it
        return self._make()


def serving(make: Callable[[], AsyncIterator[int]], **settings: Any) -> DataPlane:
    repository = ModelRepository()
    repository.update(Streaming(make))
    return DataPlane(repository, config=ServerConfig(**settings))


async def test_a_stream_is_in_flight_until_its_end() -> None:
    dataplane = serving(lambda: Chunks(2), max_inflight_requests=1)

    stream, _ = await dataplane.infer("streaming", {})
    with pytest.raises(TooManyRequests):
        await dataplane.infer("streaming", {})
    chunks = [chunk async for chunk in stream]
    next_stream, _ = await dataplane.infer("streaming", {})

    assert (chunks, await anext(next_stream)) == ([0, 1], 0)


async def test_the_first_chunk_has_the_time_of_the_request() -> None:
    ended = []

    async def late() -> AsyncIterator[int]:
        try:
            await asyncio.Event().wait()
            yield 1
        finally:
            ended.append("late")

    dataplane = serving(late, request_timeout_s=0.01, max_inflight_requests=1)

    for _ in range(2):
        with pytest.raises(DeadlineExceeded):
            await dataplane.infer("streaming", {})

    assert ended == ["late", "late"]
