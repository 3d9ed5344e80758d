"""The health service of gRPC: what Kubernetes' gRPC probes and load balancers ask.

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kserve.errors import ModelNotFound, ServerNotLive
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc.grpc_predict_v2_pb2 import DESCRIPTOR

Response = health_pb2.HealthCheckResponse

# "the server" and what it serves.
_SERVER: Final = ("", DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name)

# What a liveness probe asks for: a probe of the server itself would have a pod restarted that loads
# or drains. It is no name of a model that KServe makes, which are in lower case.
LIVENESS: Final = "LIVENESS"

# A model's readiness is an attribute that its code may set at any time: nothing tells of a change.
_POLL_S: Final = 1.0


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Answers for the server, under the empty name and its service's, and for each model.

    Under `LIVENESS` it says whether the process is alive, as `/v2/health/live` does.

    Args:
        data_plane: Knows what is ready.
        draining: Set once nothing is to be called ready any more.
        stopping: Set once the server takes no more: watches then end.
    """

    def __init__(
        self, data_plane: DataPlane, draining: asyncio.Event, stopping: asyncio.Event
    ) -> None:
        self._dataplane = data_plane
        self._draining = draining
        self._stopping = stopping

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Response:
        """Give the state of a name; NOT_FOUND for an unknown one."""
        status = await self._status(request.service)
        if status == Response.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service!r}")
        return Response(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[Response]:
        """Give the state of a name, and again each time that it has changed."""
        last = None
        while True:
            is_last = self._stopping.is_set()
            status = await self._status(request.service)
            if status != last:
                yield Response(status=status)
            if is_last:
                return
            last = status
            change = self._stopping if self._draining.is_set() else self._draining
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(change.wait(), _POLL_S)

    async def _status(self, service: str) -> Any:
        try:
            is_serving = await self._is_serving(service)
        except ModelNotFound:
            return Response.SERVICE_UNKNOWN
        except ServerNotLive:
            return Response.NOT_SERVING
        return Response.SERVING if is_serving else Response.NOT_SERVING

    async def _is_serving(self, service: str) -> bool:
        if service in _SERVER:
            return await self._dataplane.ready()
        if service == LIVENESS:
            await self._dataplane.live()
            return True
        return await self._dataplane.model_ready(service)
