"""Two servers that are replaced in turn, behind a proxy that asks them whether they are ready.

The proxy is one of the simplest kind: it looks at intervals, sends what comes to the servers that
were ready when it last looked, in turn, and never sends anything twice. The load is open-loop: it
does not wait for answers, so that a server that stands still is not spared.
"""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc
from kserve.testing import ServerProcess

_SERVER: Final = str(Path(__file__).with_name("echo_server.py"))
_BODY: Final = b'{"instances":[1]}'
_ANSWER: Final = b'{"predictions":[1]}'
_PREDICT: Final = b"POST /v1/models/echo:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n"
_READY: Final = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
_WAIT_S: Final = 40.0
_RATE_PER_S: Final = 40

Send = Callable[["Backend"], Awaitable[str]]


class Backend:
    """A server, and what the proxy knows and keeps of it.

    Attributes:
        process: The server.
        is_ready: Whether it was when the proxy last asked, by wire.
        idle: Kept connections on which no request is.
    """

    def __init__(self, process: ServerProcess) -> None:
        self.process = process
        self.is_ready = {"rest": False, "grpc": False}
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.channel = self.new_channel()

    def new_channel(self) -> grpc.aio.Channel:
        """Give a channel with connections of its own."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.process.grpc_port}", options)

    async def poll(self) -> None:
        """Ask both wires, over connections of their own."""
        self.is_ready = {"rest": await self._is_ready(), "grpc": await self._is_healthy()}

    async def close(self) -> None:
        """Let all connections go."""
        await self.channel.close()
        for _, writer in self.idle:
            await _close(writer)

    async def _is_ready(self) -> bool:
        try:
            async with asyncio.timeout(_WAIT_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.process.port)
                writer.write(_READY)
                head = await reader.read(12)
                await _close(writer)
        except OSError:
            return False
        return head == b"HTTP/1.1 200"

    async def _is_healthy(self) -> bool:
        async with self.new_channel() as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            try:
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_WAIT_S)
            except grpc.aio.AioRpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _fresh_rest(backend: Backend) -> str:
    """Send a request over a new connection; gives what went wrong, or the empty string."""
    reader, writer = await asyncio.open_connection("127.0.0.1", backend.process.port)
    try:
        outcome, _ = await _ask(reader, writer)
    finally:
        await _close(writer)
    return outcome


async def _kept_rest(backend: Backend) -> str:
    """Send a request over a kept connection, or a new one where the server has closed those."""
    connection = await _kept_connection(backend)
    may_keep = False
    try:
        outcome, may_keep = await _ask(*connection)
    finally:
        if may_keep:
            backend.idle.append(connection)
        else:
            await _close(connection[1])
    return outcome


async def _kept_connection(backend: Backend) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while backend.idle:
        reader, writer = backend.idle.pop()
        if not reader.at_eof():
            return reader, writer
        await _close(writer)
    return await asyncio.open_connection("127.0.0.1", backend.process.port)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, bool]:
    writer.write(_PREDICT + b"\r\n" + _BODY)
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    body = await reader.readexactly(int(fields[b"content-length"]))
    outcome = "" if body == _ANSWER else f"{head!r} {body!r}"
    return outcome, fields.get(b"connection") != b"close"


async def _fresh_grpc(backend: Backend) -> str:
    async with backend.new_channel() as channel:
        return await _call(channel)


async def _kept_grpc(backend: Backend) -> str:
    return await _call(backend.channel)


async def _call(channel: grpc.aio.Channel) -> str:
    request = pb.ModelInferRequest(model_name="echo")
    tensor = request.inputs.add(name="x", datatype="INT64", shape=[1])
    tensor.contents.int64_contents.append(1)
    stub: Any = pb_grpc.GRPCInferenceServiceStub(channel)
    answer = await stub.ModelInfer(request, timeout=_WAIT_S)
    return "" if answer.model_name == "echo" else str(answer)


_SENDS: Final[dict[tuple[str, str], Send]] = {
    ("rest", "fresh"): _fresh_rest,
    ("rest", "kept"): _kept_rest,
    ("grpc", "fresh"): _fresh_grpc,
    ("grpc", "kept"): _kept_grpc,
}


class Rollout:
    """Servers, the proxy before them, and the load.

    Args:
        args: The flags of the servers.
        poll_s: Seconds between two looks of the proxy.

    Attributes:
        n_answered: How many requests were answered well, by wire and kind of connection.
        failures: What was said of those that were not.
        exit_codes: Those of the servers that were replaced.
    """

    def __init__(self, args: Iterable[str], poll_s: float) -> None:
        self._args = tuple(args)
        self._poll_s = poll_s
        self._backends: list[Backend] = []
        self._turns: Counter[str] = Counter()
        self._may_poll = asyncio.Event()
        self._may_poll.set()
        self._has_sent = asyncio.Event()
        self.n_answered: Counter[tuple[str, str]] = Counter()
        self.failures: list[str] = []
        self.exit_codes: list[int] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start two servers, the proxy and the load; end them all."""
        try:
            await asyncio.gather(self._add(), self._add())
            background = [asyncio.create_task(self._poll_at_intervals())]
            background += [asyncio.create_task(self._load(kind)) for kind in _SENDS]
            try:
                await self.answered(1)
                yield
            finally:
                for task in background:
                    task.cancel()
                await asyncio.gather(*background, return_exceptions=True)
        finally:
            await asyncio.gather(*(self._end(backend) for backend in list(self._backends)))

    async def replace(self) -> None:
        """End the server that is the longest there, after another one is there."""
        await self._add()
        old = self._backends[0]
        # A second signal would end it at once: `ServerProcess.stop` is for what has ended.
        old.process.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(old.process.process.wait, _WAIT_S)
        await self._end(old)
        # The load goes on with what is left.
        await self.answered(1)

    async def end_unseen(self, n_requests: int) -> None:
        """End a server right after the proxy has looked, and let it look no more.

        Args:
            n_requests: How many requests are sent over each wire after the end of the server.
        """
        self._may_poll.clear()
        await asyncio.gather(*(backend.poll() for backend in self._backends))
        process = self._backends[0].process.process
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, _WAIT_S)
        turns = Counter(self._turns)
        wires = ("rest", "grpc")
        await self._until(lambda: all(self._turns[w] >= turns[w] + n_requests for w in wires))

    async def answered(self, n_requests: int) -> None:
        """Wait until so many more requests of every kind have been answered well."""
        before = Counter(self.n_answered)
        await self._until(
            lambda: all(self.n_answered[kind] >= before[kind] + n_requests for kind in _SENDS)
        )

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(_WAIT_S):
            while not condition():
                self._has_sent.clear()
                await self._has_sent.wait()

    async def _add(self) -> None:
        process = ServerProcess(_SERVER, *self._args)
        await asyncio.to_thread(process.__enter__)
        backend = Backend(process)
        await backend.poll()
        self._backends.append(backend)

    async def _end(self, backend: Backend) -> None:
        self.exit_codes.append(await asyncio.to_thread(backend.process.stop, signal.SIGINT))
        self._backends.remove(backend)
        await backend.close()

    async def _poll_at_intervals(self) -> None:
        while await self._may_poll.wait():
            await asyncio.gather(*(backend.poll() for backend in self._backends))
            await asyncio.sleep(self._poll_s)

    async def _load(self, kind: tuple[str, str]) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._send(kind))
                await asyncio.sleep(1 / _RATE_PER_S)

    async def _send(self, kind: tuple[str, str]) -> None:
        wire, _ = kind
        ready = [backend for backend in self._backends if backend.is_ready[wire]]
        self._turns[wire] += 1
        try:
            backend = ready[self._turns[wire] % len(ready)]
            outcome = await _SENDS[kind](backend)
        except (OSError, EOFError, ZeroDivisionError, grpc.aio.AioRpcError) as exc:
            outcome = repr(exc)
        if outcome:
            self.failures.append(f"{kind}: {outcome}")
        else:
            self.n_answered[kind] += 1
        self._has_sent.set()
