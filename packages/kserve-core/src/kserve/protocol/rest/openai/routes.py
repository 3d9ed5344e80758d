"""OpenAI's routes over one data plane, while it has a model for them."""

from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from kserve.protocol.compression import RawHeaders
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.rest.event_stream import EVENT_HEADERS
from kserve.protocol.rest.exchange import JSON_HEADERS, Exchange, encode_headers
from kserve.protocol.rest.openai import reading
from kserve.protocol.rest.openai.encoding import encode, encode_chunk
from kserve.protocol.rest.openai.event_stream import EventStream
from kserve.protocol.rest.openai.failures import error_response
from kserve.protocol.rest.openai.handlers import Call, handler
from kserve.protocol.rest.openai.types import ErrorResponse, OpenAIRequest

# What the log calls the model of a request that names none.
_UNNAMED: Final = "-"

# Cohere's second version gives no documents back.
_WITHOUT_DOCUMENTS: Final = "/v2/rerank"


async def answer(dataplane: DataPlane, exchange: Exchange, api: str, path: str) -> None:
    """Answer one request.

    Args:
        dataplane: Finds the model and runs the request.
        exchange: The request.
        api: What is asked for.
        path: Its path.

    Raises:
        Exception: Whatever is wrong with it, and whatever the model raises.
    """
    exchange.protocol, exchange.describe_failure = "openai", error_response
    if exchange.scope["method"] != "POST":
        raise HTTPException(405, headers={"Allow": "POST"})
    exchange.model_name = _UNNAMED
    body = await exchange.body()
    document = reading.read_document(body)
    name = exchange.model_name = reading.read_model(document, _only_model(dataplane))
    endpoint = await dataplane.find(name)
    exchange.metrics = endpoint.metrics
    run = handler(endpoint, api)
    if endpoint.admission.is_full:
        raise endpoint.admission.refusal()
    if path == _WITHOUT_DOCUMENTS:
        document.setdefault("return_documents", False)
    read = getattr(endpoint.model, "read_request", reading.read_request)
    request = read(api, document, name, exchange.request_id)
    context: dict[str, Any] = {
        "headers": exchange.headers(),
        "response": Response(),
        "document": document,
    }
    call = Call(request, Request(exchange.scope, exchange.replay(body)), context)
    result, _ = await exchange.work(dataplane.run, endpoint, call, {}, api, run)
    await _reply(exchange, request, result, encode_headers(context["response"].headers))


async def _reply(
    exchange: Exchange, request: OpenAIRequest, result: Any, headers: RawHeaders
) -> None:
    if hasattr(result, "__aiter__"):
        events = EventStream(result, exchange.note_failure)
        names = {name for name, _ in EVENT_HEADERS}
        others = [pair for pair in headers if pair[0] not in names]
        await exchange.stream(events, [*EVENT_HEADERS, *others])
    elif isinstance(result, ErrorResponse):
        body = encode_chunk(result)
        others = [pair for pair in headers if pair[0] != b"content-type"]
        await exchange.reply(body, [*JSON_HEADERS, *others], result.http_status)
    else:
        await exchange.reply_json(encode(result, request), headers)


def _only_model(dataplane: DataPlane) -> str | None:
    """Give the name of the one model that the routes are for, if there is only one."""
    models = dataplane.model_registry.get_models()
    names = [name for name, model in models.items() if model.serves_openai]
    return names[0] if len(names) == 1 else None
