"""The handlers of a user's model, bound once at registration and run for each request.

Consecutive plain handlers run in one visit to the model's thread; async ones on the event loop.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final, TypeVar

from kserve.executor import ModelThreads, awaited, is_async_callable
from kserve.logging import logger
from kserve.metrics import ModelMetrics

F = TypeVar("F", bound=Callable[..., Any])

_STEPS: Final = {
    "predict": ("preprocess", "validate", "predict", "postprocess"),
    "explain": ("preprocess", "validate", "explain", "postprocess"),
}
_END: Final = object()

# payload -> result, response headers
Predict = Callable[[Any], Awaitable[tuple[Any, dict[str, str]]]]


def default_handler(function: F) -> F:
    """Mark a handler that changes nothing, so that a model that keeps it skips the call."""
    # Itself, not True: `functools.wraps` copies attributes to wrappers, which do change something.
    function.default_handler = function  # type: ignore[attr-defined]
    return function


def is_default_handler(handler: Callable[..., Any]) -> bool:
    """Say whether a model's handler is one that `default_handler` has marked."""
    function = getattr(handler, "__func__", handler)
    return getattr(function, "default_handler", None) is function


@dataclass(slots=True)
class _Call:
    """One request on its way through the handlers."""

    value: Any
    headers: dict[str, str]
    response_headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Step:
    """One handler: how to call it, and where its seconds go."""

    name: str
    invoke: Callable[[_Call], Any]
    is_async: bool
    # The default validate is ours and cheap: it runs wherever the step before it ran.
    is_default: bool
    observe: Callable[[float], None]

    def run(self, call: _Call) -> Any:
        started = perf_counter()
        try:
            return self.invoke(call)
        finally:
            self.observe(perf_counter() - started)

    async def run_async(self, call: _Call) -> Any:
        started = perf_counter()
        try:
            return await awaited(self.invoke(call))
        finally:
            self.observe(perf_counter() - started)

    def settle(self, call: _Call, result: Any) -> None:
        # A validate that returns nothing has checked the payload and keeps it.
        if result is not None or self.name != "validate":
            call.value = result


class HandlerPipeline:
    """The handlers of one model, ready to run.

    Args:
        model: The model; its handlers may be plain, async, or generators, of any arity up to that
            of KServe's SDK.
        threads: Where plain handlers run; one thread of its own if None.
        metrics: Where durations go; the model's own if None.
        predict: Called in place of the model's `predict`.
    """

    def __init__(
        self,
        model: Any,
        threads: ModelThreads | None = None,
        metrics: ModelMetrics | None = None,
        predict: Predict | None = None,
    ) -> None:
        self._threads = threads or ModelThreads(model.name)
        observe = (metrics or ModelMetrics(model.name)).observe
        self._plans = {
            verb: [
                _bind(model, name, observe.get(name, _ignore))
                for name in names
                if name == "validate" or not is_default_handler(getattr(model, name))
            ]
            for verb, names in _STEPS.items()
        }
        if predict is not None:
            step = _Step("predict", _in_place(predict), True, False, observe["predict"])
            self._plans["predict"] = [
                step if bound.name == "predict" else bound for bound in self._plans["predict"]
            ]

    async def run(
        self, payload: Any, headers: dict[str, str], verb: str
    ) -> tuple[Any, dict[str, str]]:
        """Run the handlers of a verb on one payload.

        Args:
            payload: A dict of lists, an `InferRequest`, or the raw body.
            headers: Lower-case names; the same dict is given to every handler.
            verb: `predict` or `explain`.

        Returns:
            The response, an async iterator of chunks if the model streams, and its headers.

        Raises:
            Exception: Whatever a handler raises.
        """
        call = _Call(payload, headers)
        steps = self._plans[verb]
        index = 0
        while index < len(steps):
            step = steps[index]
            if step.is_async or step.is_default:
                step.settle(call, await step.run_async(call))
                index += 1
            else:
                index, result = await self._threads.run(_run_plain, steps, index, call)
                steps[index - 1].settle(call, await awaited(result))
        return streamable(call.value, self._threads), call.response_headers


def payload_caller(model: Any) -> Callable[[Any, dict[str, str]], Any]:
    """Give a function of a payload and a dict for response headers that calls a model's `predict`.

    It is called for no request of its own, so the request headers are empty.
    """
    invoke = _bind(model, "predict", _ignore).invoke
    return lambda payload, response_headers: invoke(_Call(payload, {}, response_headers))


def _in_place(predict: Predict) -> Callable[[_Call], Any]:
    async def invoke(call: _Call) -> Any:
        result, response_headers = await predict(call.value)
        call.response_headers.update(response_headers)
        return result

    return invoke


def streamable(result: Any, threads: ModelThreads) -> Any:
    """Give an async iterator for a plain one, drawn on the model's threads; else the result."""
    return _iterate(result, threads) if isinstance(result, Iterator) else result


def _run_plain(steps: list[_Step], index: int, call: _Call) -> tuple[int, Any]:
    """Run plain handlers from `index` on.

    Returns:
        The index after the last one that ran, and its result, which may be something to await.
    """
    while True:
        step = steps[index]
        result = step.run(call)
        index += 1
        if index == len(steps) or steps[index].is_async or hasattr(result, "__await__"):
            return index, result
        step.settle(call, result)


async def _iterate(iterator: Iterator[Any], threads: ModelThreads) -> AsyncIterator[Any]:
    """Draw every chunk of a plain iterator on the model's threads."""
    try:
        while (chunk := await threads.run(next, iterator, _END)) is not _END:
            yield chunk
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            # Not awaited: the thread may still be in a `next` that never returns.
            threads.submit(close).add_done_callback(_log_failed_close)


def _log_failed_close(closing: asyncio.Future[Any]) -> None:
    if not closing.cancelled() and (error := closing.exception()) is not None:
        logger.error("The generator of a response could not be closed", exc_info=error)


def _bind(model: Any, name: str, observe: Callable[[float], None]) -> _Step:
    handler = getattr(model, name)
    invoke = _adapt(handler, name, bool(getattr(model, "required_response_headers", False)))
    return _Step(name, invoke, is_async_callable(handler), is_default_handler(handler), observe)


def _ignore(seconds: float) -> None:
    """Observe a handler that has no histogram."""


def _adapt(
    handler: Callable[..., Any], name: str, wants_response_headers: bool
) -> Callable[[_Call], Any]:
    """Give a function of the call that passes a handler as many arguments as it takes."""
    if name == "validate":
        return lambda call: handler(call.value)
    n_positional, keywords = _arguments(
        _parameters(handler), wants_response_headers and name != "preprocess"
    )
    if keywords:
        return lambda call: handler(
            *(call.value, call.headers, call.response_headers)[:n_positional],
            **{key: getattr(call, key) for key in keywords},
        )
    if n_positional == 3:
        return lambda call: handler(call.value, call.headers, call.response_headers)
    if n_positional == 2:
        return lambda call: handler(call.value, call.headers)
    return lambda call: handler(call.value)


_POSITIONAL: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)


def _parameters(handler: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(handler).parameters
    except ValueError:
        # Functions of compiled modules need not tell; the payload alone is the best guess.
        return {}


def _arguments(
    parameters: Mapping[str, inspect.Parameter], wants_response_headers: bool
) -> tuple[int, list[str]]:
    """Choose what a handler is given of payload, headers and response headers.

    Returns:
        How many of them by position, and the names of others by keyword.
    """
    kinds = {parameter.kind for parameter in parameters.values()}
    positional = [parameter for parameter in parameters.values() if parameter.kind in _POSITIONAL]
    n_required = sum(parameter.default is inspect.Parameter.empty for parameter in positional)
    n_taken = 3 if inspect.Parameter.VAR_POSITIONAL in kinds else len(positional)
    if n_required >= 3 or (wants_response_headers and n_taken >= 3):
        return 3, []
    n_positional = min(max(n_taken, 1), 2)
    by_name = {
        name
        for name, parameter in parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    if inspect.Parameter.VAR_KEYWORD in kinds:
        by_name |= {"headers", "response_headers"} if wants_response_headers else {"headers"}
        by_name -= {parameter.name for parameter in positional}
    names = ("headers", "response_headers")[n_positional - 1 :]
    return n_positional, [name for name in names if name in by_name]
