"""The Open Inference Protocol (V2) over REST: metadata, health, readiness, infer.

Source: Open Inference Protocol v2,
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from copy import copy
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kserve.errors import InferenceError, InvalidInput, ServerNotReady
from kserve.protocol.codec import v1_json, v2_json
from kserve.protocol.codec.encoded_json import EncodedJson
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.infer_type import InferRequest, InferResponse
from kserve.protocol.rest.exchange import Exchange, encode_headers
from kserve.protocol.rest.model_path import split_version
from kserve.protocol.rest.responses import JSONResponse


async def infer(
    dataplane: DataPlane, exchange: Exchange, model_name: str, version: str | None
) -> None:
    """Answer `POST /v2/models/{model_name}[/versions/{version}]/infer`."""
    endpoint = await dataplane.find(model_name, version)
    exchange.metrics = endpoint.metrics
    request = _decode(exchange, await exchange.body(), endpoint.name)
    request.model_version = version
    headers = {} if endpoint.takes_tensors else exchange.headers()
    result, response_headers = await dataplane.run(endpoint, request, headers, "predict")
    raw_headers = encode_headers(response_headers)
    if hasattr(result, "__aiter__"):
        await exchange.stream(result, raw_headers)
        return
    await exchange.reply_json(_encode(result, request.id or exchange.request_id), raw_headers)


def routes(dataplane: DataPlane) -> list[Route]:
    """Give the routes beside the infer one."""

    async def server_metadata(request: Request) -> Response:
        return JSONResponse(dataplane.metadata())

    async def live(request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(request: Request) -> Response:
        reason = await dataplane.not_ready_reason()
        if reason:
            raise ServerNotReady(reason)
        return JSONResponse({"ready": True})

    async def list_models(request: Request) -> Response:
        return JSONResponse({"models": dataplane.model_registry.names()})

    async def model_metadata(request: Request) -> Response:
        name, version = split_version(request.path_params["model_name"])
        return JSONResponse(await dataplane.model_metadata(name, version))

    async def model_ready(request: Request) -> Response:
        name, version = split_version(request.path_params["model_name"])
        if not await dataplane.model_ready(name, version):
            raise dataplane.unavailability(name, version)
        return JSONResponse({"name": name, "ready": True})

    return [
        Route("/v2", server_metadata),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2/models", list_models),
        Route("/v2/models/{model_name:path}/ready", model_ready),
        Route("/v2/models/{model_name:path}", model_metadata),
    ]


def _decode(exchange: Exchange, body: bytes, model_name: str) -> InferRequest:
    if exchange.header(b"inference-header-content-length") is not None:
        raise InvalidInput(
            "binary tensor data (Inference-Header-Content-Length) is not supported, send JSON"
        )
    return v2_json.decode(body, model_name)


def _encode(result: Any, request_id: str) -> EncodedJson:
    if isinstance(result, dict) and "outputs" in result:
        result = _read_result(result)
    if not isinstance(result, InferResponse):
        return v1_json.encode(result)
    if result.id is None:
        # The model may keep the object and give it again.
        result = copy(result)
        result.id = request_id
    return v2_json.encode(result)


def _read_result(result: dict[str, Any]) -> InferResponse:
    try:
        return InferResponse.from_rest(result)
    except InvalidInput as exc:
        # The model's mistake, not the client's.
        raise InferenceError(f"the model's result is no inference response: {exc}") from exc
