"""The handlers of a model's OpenAI routes, bound once and called for each request."""

import inspect
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, Final, NamedTuple

from starlette.requests import Request

from kserve.endpoint import Endpoint, Run
from kserve.executor import awaited, is_async_callable
from kserve.pipeline import streamable
from kserve.protocol.rest.openai.errors import unsupported_api
from kserve.protocol.rest.openai.types import OpenAIRequest

# The method that answers, and what it is called where a model does not have it.
METHODS: Final[Mapping[str, tuple[str, str]]] = {
    "completions": ("create_completion", "Completions"),
    "chat/completions": ("create_chat_completion", "Chat Completions"),
    "embeddings": ("create_embedding", "Embeddings"),
    "rerank": ("create_rerank", "Rerank"),
    "score": ("create_score", "Score"),
    "classify": ("create_classification", "Classification"),
    "pooling": ("create_pooling", "Pooling"),
    "tokenize": ("create_tokenize", "Tokenize"),
    "detokenize": ("create_detokenize", "Detokenize"),
}


class Call(NamedTuple):
    """What a handler is given."""

    request: OpenAIRequest
    raw_request: Request
    context: dict[str, Any]


def handler(endpoint: Endpoint, api: str) -> Run:
    """Give what answers the requests of one API, looked up once for an endpoint.

    Args:
        endpoint: The model.
        api: What is asked for.

    Raises:
        OpenAIError: A model of its kind does not do that.
    """
    run = endpoint.handlers.get(api)
    if run is None:
        run = endpoint.handlers[api] = _bind(endpoint, api)
    return run


def _bind(endpoint: Endpoint, api: str) -> Run:
    method_name, title = METHODS[api]
    method = getattr(endpoint.model, method_name, None)
    if method is None or not endpoint.model.serves_openai:
        raise unsupported_api(endpoint.name, title)
    invoke = _adapt(method)
    is_async = is_async_callable(method)
    threads, observe = endpoint.resources.threads, endpoint.metrics.observe["predict"]

    async def run(call: Call, headers: dict[str, str], verb: str) -> tuple[Any, dict[str, str]]:
        call.context["threads"] = threads
        started = perf_counter()
        try:
            result = await awaited(invoke(call) if is_async else await threads.run(invoke, call))
        finally:
            observe(perf_counter() - started)
        return streamable(result, threads), {}

    return run


def _adapt(method: Callable[..., Any]) -> Callable[[Call], Any]:
    """Give a function of the call that passes a method what it takes beside the request."""
    parameters = inspect.signature(method).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    names = [name for name in ("raw_request", "context") if takes_any or name in parameters]
    if len(names) == 2:
        return lambda call: method(call.request, raw_request=call.raw_request, context=call.context)
    return lambda call: method(call.request, **{name: getattr(call, name) for name in names})
