"""The generate extension of V2: `POST /v2/models/{name}[/versions/{version}]/generate[_stream]`.

Source: see `kserve.text_generation`.
"""

import inspect
from collections.abc import AsyncIterator, Callable
from functools import partial
from time import perf_counter
from typing import Any, Final

import orjson

from kserve.endpoint import Endpoint, Run
from kserve.errors import InferenceError, InvalidInput
from kserve.executor import awaited, is_async_callable
from kserve.listing import shortened
from kserve.pipeline import streamable
from kserve.protocol.codec.json_body import parse
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.rest.event_stream import EVENT_HEADERS, EventStream
from kserve.protocol.rest.exchange import JSON_HEADERS, Exchange
from kserve.protocol.rest.openai import sse
from kserve.text_generation import GeneratedText, GenerateRequest, TextGenerator

# What it is called among the handlers of an endpoint.
_API: Final = "generate"

_OWN_FIELDS: Final = ("text_input", "parameters", "id", "stream")


async def answer(
    dataplane: DataPlane, exchange: Exchange, name: str, version: str | None, *, streams: bool
) -> None:
    """Answer one request.

    Args:
        dataplane: Finds the model and runs the request.
        exchange: The request.
        name: The model.
        version: Its version; None for the default one.
        streams: The answer is a stream of events.

    Raises:
        InvalidInput: The body is no such request.
        NotImplementedError: The model does not write text.
        Exception: Whatever the model raises.
    """
    endpoint = await dataplane.find(name, version)
    exchange.metrics = endpoint.metrics
    run = _handler(endpoint)
    if endpoint.admission.is_full:
        raise endpoint.admission.refusal()
    request = _read(await exchange.body(), exchange.request_id, streams=streams)
    result, _ = await exchange.work(dataplane.run, endpoint, request, exchange.headers(), _API, run)
    encode = partial(_encode, endpoint, request)
    if streams:
        pieces = result if hasattr(result, "__aiter__") else _only(result)
        await exchange.stream(_Events(pieces, exchange.note_failure, encode), EVENT_HEADERS)
        return
    await exchange.reply(encode(result), JSON_HEADERS)


def _handler(endpoint: Endpoint) -> Run:
    """Give what answers, looked up once for an endpoint."""
    run = endpoint.handlers.get(_API)
    if run is None:
        run = endpoint.handlers[_API] = _bind(endpoint)
    return run


def _bind(endpoint: Endpoint) -> Run:
    model = endpoint.model
    if not isinstance(model, TextGenerator):
        raise NotImplementedError(
            f"model {shortened(endpoint.name)} does not implement generate: it writes no text"
        )
    invoke = _adapt(model.generate)
    is_async = is_async_callable(model.generate)
    threads, observe = endpoint.resources.threads, endpoint.metrics.observe["predict"]

    async def run(
        request: GenerateRequest, headers: dict[str, str], verb: str
    ) -> tuple[Any, dict[str, str]]:
        started = perf_counter()
        try:
            result = (
                invoke(request, headers)
                if is_async
                else await threads.run(invoke, request, headers)
            )
            result = streamable(await awaited(result), threads)
            # Here, so that the whole text is made in the time that a request has.
            return (result if request.stream else await _joined(result)), {}
        finally:
            observe(perf_counter() - started)

    return run


def _adapt(method: Callable[..., Any]) -> Callable[[GenerateRequest, dict[str, str]], Any]:
    """Give a function that passes a method the headers only where it takes them."""
    parameters = inspect.signature(method).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    if "headers" in parameters or inspect.Parameter.VAR_KEYWORD in kinds:
        return lambda request, headers: method(request, headers=headers)
    return lambda request, headers: method(request)


def _read(body: bytes, request_id: str, *, streams: bool) -> GenerateRequest:
    """Read a request.

    Raises:
        InvalidInput: It is none.
    """
    document = parse(body)
    if not isinstance(document, dict):
        raise InvalidInput("expected the body to be a JSON object with 'text_input'")
    text = document.get("text_input")
    if not isinstance(text, str):
        got = "none" if text is None else shortened(orjson.dumps(text).decode())
        raise InvalidInput(f"'text_input': expected a text, got {got}")
    given = {} if document.get("parameters") is None else document["parameters"]
    if not isinstance(given, dict):
        raise InvalidInput("'parameters': expected an object")
    others = {name: value for name, value in document.items() if name not in _OWN_FIELDS}
    parameters = {name: value for name, value in {**others, **given}.items() if value is not None}
    wish = parameters.pop("stream", document.get("stream"))
    if wish is True and not streams:
        raise InvalidInput("'stream': expected false, or the route generate_stream, got true")
    return GenerateRequest(
        text_input=text,
        parameters=parameters,
        id=str(document.get("id") or request_id),
        stream=streams,
    )


async def _only(result: Any) -> AsyncIterator[Any]:
    yield result


async def _joined(result: Any) -> GeneratedText:
    """Give the one text of an answer in pieces, with what the last one says of it."""
    if not hasattr(result, "__aiter__"):
        return _checked(result)
    texts: list[str] = []
    details = None
    try:
        async for piece in result:
            texts.append(_checked(piece).text_output)
            details = piece.details or details
    finally:
        close = getattr(result, "aclose", None)
        if close is not None:
            await close()
    return GeneratedText(text_output="".join(texts), details=details)


def _checked(piece: Any) -> GeneratedText:
    if not isinstance(piece, GeneratedText):
        raise InferenceError(f"expected a GeneratedText from the model, got {type(piece).__name__}")
    return piece


def _encode(
    endpoint: Endpoint, request: GenerateRequest, piece: GeneratedText, **fields: Any
) -> bytes:
    body: dict[str, Any] = {"id": request.id, "model_name": endpoint.name}
    if endpoint.model.version is not None:
        body["model_version"] = endpoint.model.version
    body["text_output"] = piece.text_output
    if piece.details is not None:
        body["details"] = dict(piece.details)
    return orjson.dumps({**body, **fields}, option=orjson.OPT_SERIALIZE_NUMPY)


class _Events(EventStream):
    """The events of a stream: each has a piece of the text, and says whether it is the last."""

    __slots__ = ("_encode", "_is_done")

    def __init__(
        self,
        chunks: AsyncIterator[Any],
        on_failure: Callable[[Exception], bytes],
        encode: Callable[..., bytes],
    ) -> None:
        super().__init__(chunks, on_failure)
        self._encode = encode
        self._is_done = False

    def encode(self, chunk: Any) -> bytes:
        """Give the event of a piece."""
        piece = _checked(chunk)
        self._is_done = piece.is_last
        return sse.event(self._encode(piece, done=piece.is_last))

    def end(self) -> bytes:
        """Give the last event, unless the model has said which one that is."""
        if self._is_done:
            return b""
        return sse.event(self._encode(GeneratedText(text_output=""), done=True))
