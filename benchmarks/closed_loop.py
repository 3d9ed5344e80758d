"""Closed-loop load: each connection sends its next request when its answer is there.

Both clients send bytes that were made before and look at each answer only so much as shows that it
is right: on one CPU they must ask faster than the servers answer.
"""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Final, cast

import grpc
import uvloop
from grpc import aio

from benchmarks.figures import percentile
from benchmarks.http_answers import AnswerReader, UnreadableAnswer
from benchmarks.processes import usage

# status, or a gRPC code, to how often
Failures = Counter[str]
IsRight = Callable[[bytes], bool]

INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
LARGE_MESSAGES: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
_RETRY_S: Final = 0.1
# Share of a CPU; what is left is for chance, and for the kernel's own work.
_BUSY: Final = 0.85
_CALL_TIMEOUT_S: Final = 60


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked, and for how long.

    Attributes:
        request: The bytes of one request: of all of HTTP, or of the gRPC message.
        is_right: Tells from the bytes of a body, or of a message, whether an answer is right.
        n_connections: How many ask at the same time.
        warm_up_s: Seconds that are not counted.
        duration_s: Seconds that are.
        more_requests: Over HTTP, what is asked in turn with the request, whoever's turn it is.
    """

    request: bytes
    is_right: IsRight
    n_connections: int
    warm_up_s: float
    duration_s: float
    more_requests: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of a load has measured.

    Attributes:
        rate: Right answers a second.
        latencies_s: Of each right answer, sorted.
        failures: Everything else that came, by kind.
        server_cpu: Share of a CPU that the server used, 1.0 for all of one.
        client_cpu: The same of this process.
    """

    rate: float
    latencies_s: list[float]
    failures: Failures
    server_cpu: float
    client_cpu: float

    @property
    def was_disturbed(self) -> bool:
        """Whether something else used the machine: neither side had a CPU for itself.

        One of the two is always at work, unless another process has its CPU.
        """
        return max(self.server_cpu, self.client_cpu) < _BUSY

    def latency_ms(self, percent: float) -> float:
        """Give a percentile of the latencies; NaN without answers."""
        return percentile(self.latencies_s, percent) * 1e3


@dataclass(slots=True)
class _Tally:
    is_right: IsRight
    latencies_s: list[float] = field(default_factory=list)
    failures: Failures = field(default_factory=Counter)

    def add(self, status: int, body: bytes, latency_s: float) -> None:
        if status != 200:
            self.failures[str(status)] += 1
        elif self.is_right(body):
            self.latencies_s.append(latency_s)
        else:
            self.failures["wrong answer"] += 1

    def clear(self) -> None:
        self.latencies_s.clear()
        self.failures.clear()


class _Asker(asyncio.Protocol):
    """One user over HTTP, who connects again where the server closes the connection."""

    def __init__(self, port: int, requests: Iterator[bytes], tally: _Tally) -> None:
        self._port = port
        self._requests = requests
        self._tally = tally
        self._reader = AnswerReader()
        self._sent_at = 0.0
        self._transport: asyncio.Transport | None = None
        self._lost = asyncio.Event()

    async def ask_forever(self) -> None:
        """Ask until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._lost.clear()
            try:
                transport, _ = await loop.create_connection(lambda: self, "127.0.0.1", self._port)
            except OSError:
                self._tally.failures["not connected"] += 1
                await asyncio.sleep(_RETRY_S)
                continue
            try:
                await self._lost.wait()
                self._tally.failures["connection lost"] += 1
            finally:
                transport.abort()
                await self._lost.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's own is no subclass.
        self._transport = cast(asyncio.Transport, transport)
        self._reader = AnswerReader()
        self._ask(self._transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        try:
            answer = self._reader.feed(data)
        except UnreadableAnswer:
            self._tally.failures["unreadable"] += 1
            self._transport.abort()
            return
        if answer is not None:
            latency_s = time.perf_counter() - self._sent_at
            self._tally.add(answer.status, answer.body, latency_s)
            self._ask(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost.set()

    def _ask(self, transport: asyncio.Transport) -> None:
        self._sent_at = time.perf_counter()
        transport.write(next(self._requests))


def run_http(load: Load, port: int, server_pid: int) -> Result:
    """Put a load on a REST port."""
    return uvloop.run(_run_http(load, port, server_pid))


def run_grpc(load: Load, port: int, server_pid: int) -> Result:
    """Put a load on a gRPC port; each connection is a channel of its own."""
    return asyncio.run(_run_grpc(load, port, server_pid))


async def _run_http(load: Load, port: int, server_pid: int) -> Result:
    tally = _Tally(load.is_right)
    requests = cycle((load.request, *load.more_requests))
    askers = [_Asker(port, requests, tally) for _ in range(load.n_connections)]
    tasks = [asyncio.create_task(asker.ask_forever()) for asker in askers]
    try:
        return await _measure(load, tally, server_pid)
    finally:
        await _cancel(tasks)


async def _run_grpc(load: Load, port: int, server_pid: int) -> Result:
    tally = _Tally(load.is_right)
    # Channels to one address would share a connection.
    options = [("grpc.use_local_subchannel_pool", 1), *LARGE_MESSAGES]
    channels = [
        aio.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(load.n_connections)
    ]
    tasks = [asyncio.create_task(_ask_forever(channel, load, tally)) for channel in channels]
    try:
        return await _measure(load, tally, server_pid)
    finally:
        await _cancel(tasks)
        await asyncio.gather(*(channel.close() for channel in channels))


async def _ask_forever(channel: aio.Channel, load: Load, tally: _Tally) -> None:
    # The bytes go as they are.
    call = channel.unary_unary(INFER, request_serializer=bytes, response_deserializer=bytes)
    while True:
        sent_at = time.perf_counter()
        try:
            message = await call(load.request, timeout=_CALL_TIMEOUT_S)
        except grpc.RpcError as exc:
            tally.failures[exc.code().name] += 1
            # A server that refuses at once must not keep the loop from every other task.
            await asyncio.sleep(0)
        else:
            tally.add(200, message, time.perf_counter() - sent_at)


async def _cancel(tasks: Collection[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _measure(load: Load, tally: _Tally, server_pid: int) -> Result:
    await asyncio.sleep(load.warm_up_s)
    gc.collect()
    tally.clear()
    server_cpu, client_cpu = usage(server_pid).cpu_s, time.process_time()
    started = time.perf_counter()
    await asyncio.sleep(load.duration_s)
    elapsed_s = time.perf_counter() - started
    return Result(
        rate=len(tally.latencies_s) / elapsed_s,
        latencies_s=sorted(tally.latencies_s),
        failures=Counter(tally.failures),
        server_cpu=(usage(server_pid).cpu_s - server_cpu) / elapsed_s,
        client_cpu=(time.process_time() - client_cpu) / elapsed_s,
    )
