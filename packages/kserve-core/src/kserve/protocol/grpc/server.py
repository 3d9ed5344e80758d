"""The gRPC server: a port, the services on it, started and stopped."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from kserve.config import ServerConfig
from kserve.errors import InvalidInput, ServerNotReady, StartError, describe
from kserve.logging import request_id_var
from kserve.memory import trim
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import wire
from kserve.protocol.grpc.call import details, log_failure
from kserve.protocol.grpc.health import HealthServicer
from kserve.protocol.grpc.metadata import REQUEST_ID, request_id
from kserve.protocol.grpc.servicer import InferenceServicer

# From and to the bytes of messages, so that what cannot be parsed gets a status of ours.
Unary = Callable[[bytes, Any], Awaitable[bytes]]

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
# Receiving this many bytes takes longer than the millisecond that it takes to give them back.
_TRIM_BYTES: Final = 8 << 20
_UNARY_RPCS: Final = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata"),
    *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
)


class GRPCServer:
    """One gRPC server.

    Args:
        data_plane: Answers the requests.
        config: The address, the limits and the times.
    """

    def __init__(self, data_plane: DataPlane, config: ServerConfig) -> None:
        self._config = config
        self._dataplane = data_plane
        self._server: grpc.aio.Server | None = None
        self._draining = asyncio.Event()

    async def start(self) -> str:
        """Listen and serve; gives the address, `host:port`.

        Raises:
            StartError: The address cannot be bound.
        """
        server = grpc.aio.server(
            options=_options(self._config),
            maximum_concurrent_rpcs=self._config.grpc_max_concurrent_rpcs,
        )
        self._add_services(server)
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        address = f"{host}:{self._config.grpc_port}"
        try:
            port = server.add_insecure_port(address)
        except RuntimeError as exc:
            raise StartError(f"cannot listen on {address} for gRPC: is the port in use?") from exc
        await server.start()
        self._server = server
        return f"{host}:{port}"

    async def stop(self) -> None:
        """Accept no more, let calls in flight finish, close."""
        if self._server is not None:
            self._draining.set()
            await self._server.stop(self._config.grace_period_s)

    def _add_services(self, server: grpc.aio.Server) -> None:
        servicer = InferenceServicer(
            self._dataplane, log_requests=self._config.enable_latency_logging
        )
        handlers = {name: _unary(_of_messages(servicer, name)) for name in _UNARY_RPCS}
        handlers["ModelInfer"] = _unary(_trimming(servicer.infer_serialized))
        handlers["ModelStreamInfer"] = self._stream(servicer)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers),)
        )
        health = HealthServicer(self._dataplane, self._draining)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        names = [
            _SERVICE.full_name,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            reflection.SERVICE_NAME,
        ]
        reflection.enable_server_reflection(names, server, pool=_described())

    def _stream(self, servicer: InferenceServicer) -> Any:
        async def answer(
            requests: AsyncIterable[pb.ModelInferRequest], context: Any
        ) -> AsyncIterator[pb.ModelStreamInferResponse]:
            _begin(context)
            try:
                taken = _until(self._draining, requests)
                async for response in servicer.ModelStreamInfer(taken, context):
                    yield response
            except Exception as exc:
                await _fail(exc, context)

        return grpc.stream_stream_rpc_method_handler(
            answer,
            request_deserializer=wire.parse_request,
            response_serializer=pb.ModelStreamInferResponse.SerializeToString,
        )


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    """Give the channel arguments.

    Source: https://grpc.github.io/grpc/core/group__grpc__arg__keys.html
    """
    max_receive_bytes = config.grpc_max_receive_message_length or config.max_request_bytes
    return [
        # Otherwise a second server takes the same port without an error, and half of the calls.
        ("grpc.so_reuseport", 0),
        ("grpc.max_send_message_length", config.grpc_max_send_message_length),
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.keepalive_time_ms", config.grpc_keepalive_time_s * 1000),
        ("grpc.keepalive_timeout_ms", config.grpc_keepalive_timeout_s * 1000),
        # Both for our pings and for those of clients: an idle connection is one to keep, too.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", config.grpc_min_ping_interval_s * 1000),
    ]


def _described() -> DescriptorPool:
    """Give what reflection describes: our file is in a pool of its own."""
    pool = DescriptorPool()
    for module in (pb, health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool


def _of_messages(servicer: InferenceServicer, name: str) -> Unary:
    method = getattr(servicer, name)
    request_class = getattr(pb, _SERVICE.methods_by_name[name].input_type.name)

    async def answer(data: bytes, context: Any) -> bytes:
        try:
            request = request_class.FromString(data)
        except DecodeError as exc:
            raise InvalidInput(f"expected a {request_class.__name__} message: {exc}") from exc
        serialized: bytes = (await method(request, context)).SerializeToString()
        return serialized

    async def logged(data: bytes, context: Any) -> bytes:
        try:
            return await answer(data, context)
        except Exception as exc:
            log_failure(exc, describe(exc)[1])
            raise

    return logged


def _trimming(method: Unary) -> Unary:
    async def answer(data: bytes, context: Any) -> bytes:
        if len(data) >= _TRIM_BYTES:
            # gRPC has put the pieces that it had received together, and freed them.
            trim()
        return await method(data, context)

    return answer


def _unary(method: Unary) -> Any:
    async def answer(data: bytes, context: Any) -> bytes:
        _begin(context)
        try:
            return await method(data, context)
        except Exception as exc:
            await _fail(exc, context)

    return grpc.unary_unary_rpc_method_handler(answer)


def _begin(context: Any) -> None:
    given = request_id(context)
    request_id_var.set(given)
    context.set_trailing_metadata(((REQUEST_ID, given),))


async def _fail(exc: Exception, context: Any) -> NoReturn:
    """End an RPC with the status of an exception."""
    _, status, text = describe(exc)
    await context.abort(grpc.StatusCode[status], details(text))
    raise AssertionError("abort raises")


async def _until(
    draining: asyncio.Event, requests: AsyncIterable[pb.ModelInferRequest]
) -> AsyncIterator[pb.ModelInferRequest]:
    """Give the requests of a stream until the server stops: it would wait for an idle one.

    Raises:
        ServerNotReady: The server stops.
    """
    iterator = aiter(requests)
    stopping = asyncio.ensure_future(draining.wait())
    try:
        while True:
            reading = asyncio.ensure_future(anext(iterator, None))
            await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                reading.cancel()
                raise ServerNotReady("It is shutting down.")
            request = reading.result()
            if request is None:
                return
            yield request
    finally:
        stopping.cancel()
