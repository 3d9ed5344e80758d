"""A server that does what a test says, byte for byte, and a proxy in front of it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from kserve.protocol.rest.openai import OpenAIProxyModel
from kserve.testing import serving

WAIT_S = 15

CHAT = "/v1/chat/completions"
COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1,
    "model": "upstream-name",
    "choices": [{"index": 0, "text": "hello", "logprobs": None, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    "not_known_here": {"kept": [1.0, 1e-7]},
}


@dataclass
class Asked:
    """A request that the server has got, and what it answers with.

    Attributes:
        connection: The number of the connection, from 0.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    reader: asyncio.StreamReader = field(repr=False)
    writer: asyncio.StreamWriter = field(repr=False)

    def json(self) -> Any:
        return orjson.loads(self.body)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(
        self, body: Any, status: int = 200, kind: str = "application/json", **headers: str
    ) -> None:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n"
        await self.send(f"{head}{''.join(lines)}\r\n".encode() + data)

    async def begin(self, kind: str = "text/event-stream") -> None:
        """Begin an answer in chunks."""
        head = f"HTTP/1.1 200 X\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n"
        await self.send(head.encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, document: Any) -> None:
        await self.chunk(b"data: %b\n\n" % orjson.dumps(document))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def is_left(self) -> None:
        """Wait until the client closes the connection."""
        while await self.reader.read(1 << 16):
            pass

    def cut(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Asked], Awaitable[None]]


class Scripted:
    """The server.

    Attributes:
        scripts: What it does, by path; 404 without one.
        asked: The requests, in order.
        was_left: Set once a script has seen the client go, and says so.
    """

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}
        self.asked: list[Asked] = []
        self.was_left = threading.Event()
        self.may_go_on = threading.Event()
        self.n_connections = 0
        self.port = 0
        self._is_up = threading.Event()
        self._end: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked_of(self, path: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.path == path]

    async def going_on(self) -> None:
        """Wait until the test lets the script go on."""
        while not self.may_go_on.is_set():  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(0.005)

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        thread.start()
        assert self._is_up.wait(WAIT_S)
        try:
            yield
        finally:
            assert self._loop is not None and self._end is not None
            self._loop.call_soon_threadsafe(self._end.set)
            thread.join(WAIT_S)

    async def _run(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        self._is_up.set()
        await self._end.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        number = self.n_connections
        self.n_connections += 1
        try:
            while (asked := await _read(reader, writer, number)) is not None:
                self.asked.append(asked)
                script = self.scripts.get(asked.path, _not_found)
                await script(asked)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()


async def _not_found(asked: Asked) -> None:
    await asked.reply({"detail": "Not Found"}, 404)


async def _read(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
) -> Asked | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(method, path, headers, body, number, reader, writer)


@pytest.fixture
def upstream() -> Iterator[Scripted]:
    """Give a server that has no route yet but that of its health."""
    server = Scripted()

    async def health(asked: Asked) -> None:
        await asked.reply(b"", kind="text/plain")

    server.scripts["/health"] = health
    with server.running():
        yield server


@pytest.fixture
def proxied(upstream: Scripted) -> Callable[..., AbstractContextManager[int]]:
    """Give what serves a proxy of the server as `served`, and gives the port."""

    def serve(
        kind: type[OpenAIProxyModel] = OpenAIProxyModel,
        settings: dict[str, Any] | None = None,
        **options: Any,
    ) -> AbstractContextManager[int]:
        return serving(kind("served", upstream.url, **options), **(settings or {}))

    return serve
