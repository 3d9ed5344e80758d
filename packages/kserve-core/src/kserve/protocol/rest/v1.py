"""The V1 protocol over REST: list, readiness, predict, explain."""

from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kserve.endpoint import Endpoint
from kserve.errors import InvalidInput
from kserve.model import RESULT_KEYS
from kserve.protocol.codec import cloudevents, v1_json, v2_json
from kserve.protocol.codec.cloudevents import CloudEvent
from kserve.protocol.codec.encoded_json import EncodedJson
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.infer_type import InferRequest, InferResponse
from kserve.protocol.rest import events
from kserve.protocol.rest.exchange import Exchange, encode_headers
from kserve.protocol.rest.model_path import split_version
from kserve.protocol.rest.responses import JSONResponse

# What is sent with a JSON body by clients that set no type of their own: nothing, curl's default,
# a browser's default for a string, and the type of bytes as such. Any `json` type is read as JSON
# too; other types (image/png, application/avro) reach a user's model as bytes.
_JSON_TYPES: Final = frozenset(
    {b"", b"application/x-www-form-urlencoded", b"text/plain", b"application/octet-stream"}
)


async def infer(
    dataplane: DataPlane, exchange: Exchange, model_name: str, version: str | None, verb: str
) -> None:
    """Answer `POST /v1/models/{model_name}[/versions/{version}]:predict` or `:explain`."""
    endpoint = await dataplane.find(model_name, version)
    exchange.metrics = endpoint.metrics
    if endpoint.admission.is_full:
        raise exchange.refusal(endpoint, partial(dataplane.is_current, version=version))
    body = await exchange.body()
    if cloudevents.is_event(exchange.fields):
        payload = _decode_event(endpoint, events.unwrap(exchange, body))
    else:
        payload = _decode(endpoint, body, exchange.header(b"content-type"))
    headers = {} if endpoint.takes_tensors else exchange.headers()
    result, response_headers = await exchange.work(dataplane.run, endpoint, payload, headers, verb)
    raw_headers = encode_headers(response_headers)
    if hasattr(result, "__aiter__"):
        await exchange.stream(result, raw_headers)
    elif isinstance(result, str | bytes):
        await exchange.reply(result.encode() if isinstance(result, str) else result, raw_headers)
    else:
        await exchange.reply_json(_encode(endpoint, result, verb), raw_headers)


def models(dataplane: DataPlane) -> dict[str, Any]:
    """Give the body that lists the models."""
    return {"models": dataplane.model_registry.names()}


async def readiness(dataplane: DataPlane, name: str, version: str | None) -> dict[str, Any]:
    """Give the body that says that a model, or a version of it, can answer.

    Raises:
        ModelNotFound, ModelNotReady: There is none, or it cannot.
    """
    if not await dataplane.model_ready(name, version):
        raise dataplane.unavailability(name, version)
    failure = dataplane.load_failure(name, version)
    reason = {"reason": failure} if failure else {}
    return {"name": name, "ready": True, **reason}


def routes(dataplane: DataPlane) -> list[Route]:
    """Give the routes beside the infer ones."""

    async def list_models(request: Request) -> Response:
        return JSONResponse(models(dataplane))

    async def model_ready(request: Request) -> Response:
        name, version = split_version(request.path_params["model_name"])
        return JSONResponse(await readiness(dataplane, name, version))

    return [
        Route("/v1/models", list_models),
        Route("/v1/models/{model_name:path}", model_ready),
    ]


def _decode(endpoint: Endpoint, body: bytes, content_type: bytes | None) -> Any:
    if endpoint.takes_tensors:
        return _decode_rows(endpoint, body)
    media_type = (content_type or b"").partition(b";")[0].strip().lower()
    if media_type not in _JSON_TYPES and not media_type.endswith(b"json"):
        return body
    payload = v1_json.decode(body)
    # An event that no header announces is read, as by KServe's SDK; its answer is none.
    if cloudevents.is_structured(payload):
        return payload["data"]
    return payload


def _decode_rows(endpoint: Endpoint, body: bytes) -> InferRequest:
    try:
        return _decode_tensors(endpoint, body)
    except InvalidInput:
        # As above, where nothing is to be paid for it by those that send no events.
        if b"specversion" not in body or not cloudevents.is_structured(v1_json.decode(body)):
            raise
    event = cloudevents.read({b"content-type": cloudevents.STRUCTURED_TYPE}, body)
    assert event is not None
    return _decode_tensors(endpoint, event.data)


def _decode_event(endpoint: Endpoint, event: CloudEvent) -> Any:
    payload = cloudevents.read_data(event)
    return _decode_tensors(endpoint, event.data) if endpoint.takes_tensors else payload


def _decode_tensors(endpoint: Endpoint, body: bytes) -> InferRequest:
    signature = endpoint.signature
    return v1_json.decode_tensors(
        body,
        endpoint.name,
        signature.inputs,
        optional_inputs=signature.optional_inputs,
        is_table=signature.is_table,
    )


def _encode(endpoint: Endpoint, result: Any, verb: str) -> EncodedJson:
    if not isinstance(result, InferResponse):
        return v1_json.encode(result)
    if endpoint.takes_tensors:
        return v1_json.encode_response(result, RESULT_KEYS[verb])
    # A user's model that answers a V1 request with an InferResponse means the V2 body, as in
    # KServe's SDK.
    return v2_json.encode(result)
