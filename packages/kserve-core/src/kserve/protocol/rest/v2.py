"""The Open Inference Protocol (V2) over REST: metadata, health, readiness, infer.

Source: Open Inference Protocol v2,
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from copy import copy
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kserve.constants.constants import INFERENCE_CONTENT_LENGTH_HEADER
from kserve.endpoint import Endpoint
from kserve.errors import InferenceError, InvalidInput, ServerNotReady
from kserve.protocol.codec import cloudevents, v1_json, v2_binary, v2_json
from kserve.protocol.codec.encoded_json import EncodedJson
from kserve.protocol.codec.v2_binary import EncodedBinary
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.infer_type import InferRequest, InferResponse
from kserve.protocol.rest import events
from kserve.protocol.rest.exchange import Exchange, encode_headers
from kserve.protocol.rest.model_path import split_version
from kserve.protocol.rest.responses import JSONResponse
from kserve.protocol.tensor import RawData

_JSON_LENGTH: Final = INFERENCE_CONTENT_LENGTH_HEADER.encode()


async def infer(
    dataplane: DataPlane, exchange: Exchange, model_name: str, version: str | None
) -> None:
    """Answer `POST /v2/models/{model_name}[/versions/{version}]/infer`."""
    endpoint = await dataplane.find(model_name, version)
    exchange.metrics = endpoint.metrics
    if endpoint.admission.is_full:
        raise exchange.refusal(endpoint, partial(dataplane.is_current, version=version))
    if _JSON_LENGTH in exchange.fields or cloudevents.is_event(exchange.fields):
        request = await _read(exchange, endpoint)
    else:
        request = v2_json.decode(
            await exchange.body(),
            endpoint.name,
            may_be_empty=endpoint.signature.may_be_empty,
        )
    request.model_version = version
    headers = {} if endpoint.takes_tensors else exchange.headers()
    result, response_headers = await exchange.work(
        dataplane.run, endpoint, request, headers, "predict"
    )
    raw_headers = encode_headers(response_headers)
    if hasattr(result, "__aiter__"):
        await exchange.stream(result, raw_headers)
        return
    if endpoint.takes_tensors:
        # Nobody else has it.
        result.id = result.id or exchange.request_id
    encoded = _encode(result, request, exchange.request_id)
    if isinstance(encoded, EncodedJson):
        await exchange.reply_json(encoded, raw_headers)
    else:
        await exchange.reply_binary(encoded, raw_headers)


def routes(dataplane: DataPlane) -> list[Route]:
    """Give the routes beside the infer one."""

    async def server_metadata(request: Request) -> Response:
        return JSONResponse(dataplane.metadata())

    async def live(request: Request) -> Response:
        await dataplane.live()
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
        failure = dataplane.load_failure(name, version)
        reason = {"reason": failure} if failure else {}
        return JSONResponse({"name": name, "ready": True, **reason})

    return [
        Route("/v2", server_metadata),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2/models", list_models),
        Route("/v2/models/{model_name:path}/ready", model_ready),
        Route("/v2/models/{model_name:path}", model_metadata),
    ]


async def _read(exchange: Exchange, endpoint: Endpoint) -> InferRequest:
    """Read a request that has binary tensors, or comes in an event, or both."""
    may_be_empty = endpoint.signature.may_be_empty
    header = exchange.header(_JSON_LENGTH)
    json_length = None if header is None else v2_binary.read_json_length(header)
    body: RawData = await exchange.binary_body(json_length or 0)
    if cloudevents.is_event(exchange.fields):
        event = events.unwrap(exchange, bytes(body))
        body = event.data
        if json_length is None:
            cloudevents.read_data(event)
    if json_length is None:
        return v2_json.decode(bytes(body), endpoint.name, may_be_empty=may_be_empty)
    if json_length == 0:
        return v2_binary.decode_raw(body, endpoint.name, endpoint.signature.inputs)
    return v2_binary.decode(body, json_length, endpoint.name, may_be_empty=may_be_empty)


def _encode(result: Any, request: InferRequest, request_id: str) -> EncodedJson | EncodedBinary:
    if isinstance(result, dict) and "outputs" in result:
        result = _read_result(result)
    if not isinstance(result, InferResponse):
        return v1_json.encode(result)
    if result.id is None or result.model_name is None:
        # The model may keep the object and give it again.
        result = copy(result)
        result.id = result.id or request.id or request_id
        result.model_name = result.model_name or request.model_name
    return v2_binary.encode(result, request) or v2_json.encode(result)


def _read_result(result: dict[str, Any]) -> InferResponse:
    try:
        return InferResponse.from_rest(result)
    except InvalidInput as exc:
        # The model's mistake, not the client's.
        raise InferenceError(f"the model's result is no inference response: {exc}") from exc
