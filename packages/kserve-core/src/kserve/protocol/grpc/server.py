"""The gRPC server: a port, the services on it, started and stopped."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Final

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from kserve.config import ServerConfig
from kserve.errors import InvalidInput, ServerNotReady, describe
from kserve.logging import logger, request_id_var
from kserve.protocol.compression import Compression
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import wire
from kserve.protocol.grpc.call import log_failure
from kserve.protocol.grpc.health import HealthServicer
from kserve.protocol.grpc.metadata import REQUEST_ID, request_id
from kserve.protocol.grpc.rpc import Calls, Head, Method, Rpc, Streaming, Unary
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.http2.connection import Connection, Limits
from kserve.protocol.inflight_bytes import InflightBytes
from kserve.protocol.listener import close_listener, listen

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"]
_UNARY_RPCS: Final = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata"),
    *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
)

# More than the requests that a model takes at a time, so that a client with one connection is told
# when there are too many; clients wait in silence beyond this.
_MIN_STREAMS: Final = 2048

# What one read takes at most where it is not known yet to whom it belongs.
_SCRATCH_BYTES: Final = 64 << 10

# What a call that was cancelled at the end gets to answer that it was.
_CANCEL_S: Final = 1.0


class GRPCServer:
    """One gRPC server.

    Args:
        data_plane: Answers the requests.
        config: The address, the limits and the times.
        inflight: What the requests of all wires have.
    """

    def __init__(
        self, data_plane: DataPlane, config: ServerConfig, inflight: InflightBytes | None = None
    ) -> None:
        self._config = config
        self._dataplane = data_plane
        self._draining = asyncio.Event()
        self._stopping = asyncio.Event()
        self._listener: socket.socket | None = None
        self._server: asyncio.Server
        self._host = _Host(config, self._methods(), inflight or InflightBytes())

    async def start(self) -> str:
        """Listen and serve; gives the address, `host:port`.

        Raises:
            StartError: The address cannot be bound.
        """
        listener = listen(self._config.host, self._config.grpc_port, " for gRPC")
        host, port = listener.getsockname()[:2]
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._make_connection, sock=listener)
        self._listener = listener
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def drain(self) -> None:
        """Tell those who watch the health of the server that it serves no more; it still does."""
        self._draining.set()

    async def stop(self, grace_period_s: float | None = None) -> None:
        """Send GOAWAY and accept no more, let calls in flight finish, close.

        Args:
            grace_period_s: Seconds that calls in flight get; None for those of the configuration.
        """
        listener, self._listener = self._listener, None
        if listener is None:
            return
        self._stopping.set()
        self._host.is_ending = True
        await close_listener(listener, self._server.close, self._make_connection)
        for connection in list(self._host.connections):
            connection.shutdown()
        if grace_period_s is None:
            grace_period_s = self._config.grace_period_s
        try:
            async with asyncio.timeout(grace_period_s):
                await self._host.all_ended()
        except TimeoutError:
            await self._host.cut()

    def _make_connection(self) -> Connection[Head]:
        return Connection(self._host)

    def _methods(self) -> dict[str, Method]:
        servicer = InferenceServicer(
            self._dataplane, log_requests=self._config.enable_latency_logging
        )
        health = HealthServicer(self._dataplane, self._draining, self._stopping)
        unary = {
            f"/{_SERVICE.full_name}/{name}": _of_messages(
                _logged(getattr(servicer, name)),
                getattr(pb, _SERVICE.methods_by_name[name].input_type.name),
            )
            for name in _UNARY_RPCS
        }
        unary[f"/{_SERVICE.full_name}/ModelInfer"] = servicer.infer_serialized
        unary[f"/{_HEALTH.full_name}/Check"] = _of_messages(
            health.Check, health_pb2.HealthCheckRequest
        )
        streaming = {
            f"/{_SERVICE.full_name}/ModelStreamInfer": self._stream_infer(servicer),
            f"/{_HEALTH.full_name}/Watch": _watch(health),
            f"/{reflection.SERVICE_NAME}/ServerReflectionInfo": _reflect(self._stopping),
        }
        return {path: Method(unary=_identified(call)) for path, call in unary.items()} | {
            path: Method(streaming=_identified_stream(call)) for path, call in streaming.items()
        }

    def _stream_infer(self, servicer: InferenceServicer) -> Streaming:
        async def answer(
            messages: AsyncIterator[bytes | memoryview], context: Rpc
        ) -> AsyncGenerator[bytes, None]:
            requests = (wire.parse_request(data) async for data in _until(self._stopping, messages))
            async for response in servicer.ModelStreamInfer(requests, context):
                yield response.SerializeToString()

        return answer


class _Host:
    """What the connections share; see `kserve.protocol.http2.connection.Host`."""

    def __init__(
        self, config: ServerConfig, methods: dict[str, Method], inflight: InflightBytes
    ) -> None:
        self.connections: set[Connection[Head]] = set()
        self.scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self.is_ending = False
        self.limits = Limits(
            max_streams=max(_MIN_STREAMS, 2 * config.max_inflight_requests),
            header_timeout_s=config.header_timeout_s,
            body_timeout_s=config.body_timeout_s,
            send_timeout_s=config.send_timeout_s,
            ping_after_s=config.grpc_keepalive_time_s,
            ping_timeout_s=config.grpc_keepalive_timeout_s,
            min_ping_interval_s=config.grpc_min_ping_interval_s,
        )
        self._calls = Calls(
            methods=methods,
            max_receive_bytes=config.grpc_max_receive_message_length or config.max_request_bytes,
            max_send_bytes=config.grpc_max_send_message_length,
            max_calls=config.grpc_max_concurrent_rpcs,
            inflight=inflight,
            compression=Compression(config.max_decompressed_bytes),
        )
        self.make_head = self._calls.make_head
        self._has_lost = asyncio.Event()

    def make_stream(self, connection: Connection[Head], stream_id: int) -> Rpc:
        return Rpc(connection, stream_id, self._calls)

    def lost(self, connection: Connection[Head]) -> None:
        self._has_lost.set()

    async def all_ended(self) -> None:
        while self.connections:
            self._has_lost.clear()
            await self._has_lost.wait()
        while self._calls.tasks:
            await asyncio.wait(set(self._calls.tasks))

    async def cut(self) -> None:
        """Cancel what is in flight, and let it answer so."""
        tasks = set(self._calls.tasks)
        if tasks:
            logger.error("%d call(s) did not finish in the grace period", len(tasks))
        for task in tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CANCEL_S):
                await self.all_ended()
        for connection in list(self.connections):
            connection.abort()


def _of_messages(method: Callable[..., Awaitable[Message]], kind: type[Message]) -> Unary:
    """Give a handler of bytes: what cannot be parsed gets a status of ours."""

    async def answer(data: bytes | memoryview, context: Rpc) -> bytes:
        return (await method(_parse(kind, data), context)).SerializeToString()

    return answer


def _parse(kind: type[Message], data: bytes | memoryview) -> Any:
    try:
        return kind.FromString(bytes(data))
    except DecodeError as exc:
        raise InvalidInput(f"expected a {kind.DESCRIPTOR.name} message: {exc}") from exc


def _logged(method: Callable[..., Awaitable[Message]]) -> Callable[..., Awaitable[Message]]:
    async def answer(request: Message, context: Rpc) -> Message:
        try:
            return await method(request, context)
        except Exception as exc:
            log_failure(exc, describe(exc)[1])
            raise

    return answer


def _watch(health: HealthServicer) -> Streaming:
    async def answer(
        messages: AsyncIterator[bytes | memoryview], context: Rpc
    ) -> AsyncGenerator[bytes, None]:
        async for data in messages:
            request = _parse(health_pb2.HealthCheckRequest, data)
            async for response in health.Watch(request, context):
                yield response.SerializeToString()
            return

    return answer


def _reflect(stopping: asyncio.Event) -> Streaming:
    names = [_SERVICE.full_name, _HEALTH.full_name, reflection.SERVICE_NAME]
    servicer: Any = reflection.ReflectionServicer(names, pool=_described())

    async def answer(
        messages: AsyncIterator[bytes | memoryview], context: Rpc
    ) -> AsyncGenerator[bytes, None]:
        async for data in _until(stopping, messages):
            request = _parse(reflection_pb2.ServerReflectionRequest, data)
            for response in servicer.ServerReflectionInfo(iter((request,)), context):
                yield response.SerializeToString()

    return answer


def _described() -> DescriptorPool:
    """Give what reflection describes: our file is in a pool of its own."""
    pool = DescriptorPool()
    for module in (pb, health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool


def _identified(method: Unary) -> Unary:
    async def answer(data: bytes | memoryview, context: Rpc) -> bytes:
        _identify(context)
        return await method(data, context)

    return answer


def _identified_stream(method: Streaming) -> Streaming:
    async def answer(
        messages: AsyncIterator[bytes | memoryview], context: Rpc
    ) -> AsyncGenerator[bytes, None]:
        _identify(context)
        async with contextlib.aclosing(method(messages, context)) as responses:
            async for response in responses:
                yield response

    return answer


def _identify(context: Rpc) -> None:
    given = request_id(context)
    request_id_var.set(given)
    context.set_trailing_metadata(((REQUEST_ID, given),))


async def _until(
    stopped: asyncio.Event, messages: AsyncIterator[bytes | memoryview]
) -> AsyncIterator[bytes | memoryview]:
    """Give the messages of a stream until the server stops: it would wait for an idle one.

    Raises:
        ServerNotReady: The server stops.
    """
    iterator = aiter(messages)
    stopping = asyncio.ensure_future(stopped.wait())
    try:
        while True:
            reading = asyncio.ensure_future(anext(iterator, None))
            try:
                await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    raise ServerNotReady("It is shutting down.")
            finally:
                # Who is cancelled here leaves none behind that takes room for a message.
                reading.cancel()
            data = reading.result()
            if data is None:
                return
            yield data
    finally:
        stopping.cancel()
