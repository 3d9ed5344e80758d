"""A registered model, bound once: what it takes, where it runs, what it counts."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, Final

from kserve.admission import Admission
from kserve.executor import ModelThreads, awaited, is_async_callable, run_user_code
from kserve.logging import logger
from kserve.metrics import ModelMetrics
from kserve.model import BaseKServeModel, InferenceModel, InferenceVerb, Model, TensorModel
from kserve.model_resources import ModelResources
from kserve.payload_batch import PayloadBatches
from kserve.pipeline import HandlerPipeline, is_default_handler, payload_caller, streamable
from kserve.protocol.infer_type import InferRequest, InferResponse
from kserve.signature import Signature
from kserve.tensor_batch import TensorBatches

# payload, lower-case request headers, verb -> response, response headers
Run = Callable[[Any, dict[str, str], str], Awaitable[tuple[Any, dict[str, str]]]]

# Probes give up sooner: Kubernetes' after 1 s unless told otherwise.
_HEALTH_TIMEOUT_S: Final = 5.0

_VERBS: Final = {verb.name.lower(): verb for verb in InferenceVerb}

_HANDLERS = ("preprocess", "validate", "predict", "postprocess", "explain", "__call__")


@dataclass(slots=True, weakref_slot=True)
class Endpoint:
    """A model under the name that it is served by.

    Attributes:
        name: The name in the route; an alias differs from the model's own.
        model: The model.
        takes_tensors: It is a `TensorModel`: V1 payloads are decoded to an `InferRequest` too.
        run: Answers one payload; a verb is `predict` or `explain`.
        metrics: Bound to `name`.
        has_own_healthy: The model overrides `healthy`, so `ready` alone does not tell requests.
        resources: Its threads and its queue; the same under every name of the model.
        admission: How many of its requests are in flight; that of the resources.
        handlers: What answers requests that are no inference, by what it answers; bound by the
            routes that they come over.
    """

    name: str
    model: BaseKServeModel
    takes_tensors: bool
    run: Run
    metrics: ModelMetrics
    has_own_healthy: bool
    resources: ModelResources
    admission: Admission
    handlers: dict[str, Run] = field(default_factory=dict)

    @property
    def signature(self) -> Signature:
        """What a `TensorModel` takes and gives; empty for any other model."""
        return self.model.signature if isinstance(self.model, TensorModel) else Signature()

    def enter(self) -> None:
        """Count a request in; `leave` counts it out.

        Raises:
            TooManyRequests: As many requests of the model as it takes are in flight.
        """
        self.admission.enter()
        self.metrics.in_flight.inc()

    def leave(self) -> None:
        """Count a request out that was counted in."""
        self.metrics.in_flight.dec()
        self.admission.leave()


def bind(model: BaseKServeModel, name: str, resources: ModelResources) -> Endpoint:
    """Look up once which form each handler has, and give the endpoint.

    Args:
        model: The model.
        name: The name to serve it under.
        resources: Its threads and its queue.

    Raises:
        ValueError: The model cannot answer requests at all, or it wants batches and streams.
    """
    if not isinstance(model, InferenceModel) and not model.serves_openai:
        raise ValueError(f"Model of type {type(model).__name__} does not support inference")
    metrics = ModelMetrics(name)
    takes_tensors = isinstance(model, TensorModel) and not _overrides(model, TensorModel)
    if not isinstance(model, InferenceModel):
        run = _refusing_run(model)
    elif takes_tensors:
        run = _tensor_run(model, resources, metrics)  # type: ignore[arg-type]  # narrowed above
    elif isinstance(model, Model) and type(model).__call__ is Model.__call__:
        run = _pipeline(model, resources, metrics).run
    else:
        run = _call_run(model, resources.threads)
    if model.version is not None and not takes_tensors:
        run = _versioned_run(run, model.version)
    has_own_healthy = model.is_gated_by_health and not is_default_handler(model.healthy)
    return Endpoint(
        name, model, takes_tensors, run, metrics, has_own_healthy, resources, resources.admission
    )


async def is_healthy(model: BaseKServeModel) -> bool:
    """Ask a model whether it can answer; a plain `healthy` of user code runs on a thread.

    One that raises, or takes longer than 5 s, cannot answer. A model is asked once at a time, so
    one that hangs holds one thread however many probes wait for it.
    """
    if is_default_handler(model.healthy):
        return bool(model.ready)
    check: asyncio.Task[bool] | None = vars(model).get("_health_check")
    if check is None or check.done() or check.get_loop() is not asyncio.get_running_loop():
        check = asyncio.create_task(_check_health(model))
        vars(model)["_health_check"] = check
    try:
        return await asyncio.wait_for(asyncio.shield(check), _HEALTH_TIMEOUT_S)
    except TimeoutError:
        logger.warning("Model %s: healthy() takes longer than %g s", model.name, _HEALTH_TIMEOUT_S)
        return False


async def _check_health(model: BaseKServeModel) -> bool:
    try:
        return bool(await run_user_code(model.healthy))
    except Exception:
        logger.warning("Model %s: healthy() failed", model.name, exc_info=True)
        return False


def _overrides(model: BaseKServeModel, contract: type) -> bool:
    return any(
        getattr(type(model), name) is not getattr(contract, name) or name in vars(model)
        for name in _HANDLERS
    )


def _pipeline(model: Model, resources: ModelResources, metrics: ModelMetrics) -> HandlerPipeline:
    if not _wants_batches(model):
        return HandlerPipeline(model, resources.threads, metrics)
    if inspect.isgeneratorfunction(model.predict) or inspect.isasyncgenfunction(model.predict):
        raise ValueError(f"model {model.name}: a predict that streams cannot have batching = True")
    batches = PayloadBatches(payload_caller(model))
    batcher = resources.batcher(
        batches.run, batches.run_async if is_async_callable(model.predict) else None
    )

    async def predict(payload: Any) -> tuple[Any, dict[str, str]]:
        call = batches.prepare(payload)
        answer: tuple[Any, dict[str, str]] = await batcher.submit(call, call.key, call.n_rows)
        return answer

    return HandlerPipeline(model, resources.threads, metrics, predict)


def _wants_batches(model: Model) -> bool:
    """Say whether the user's class, not ours below it, says `batching = True`."""
    if "batching" in vars(model):
        return bool(model.batching)
    owner = next(base for base in type(model).__mro__ if "batching" in vars(base))
    return owner is not TensorModel and bool(model.batching)


def _tensor_run(model: TensorModel, resources: ModelResources, metrics: ModelMetrics) -> Run:
    observers = metrics.observe
    batches = TensorBatches(model)
    check, respond = batches.check, model.respond
    submit = resources.batcher(batches.run, may_run_on_loop=True).submit

    async def run(
        request: InferRequest, headers: dict[str, str], verb: str
    ) -> tuple[Any, dict[str, str]]:
        started = perf_counter()
        call = check(request, _VERBS[verb])
        outputs = await submit(call, call.key, call.n_rows, call.size, call.kind)
        observers[verb](perf_counter() - started)
        return respond(request, outputs), {}

    return run


def _refusing_run(model: BaseKServeModel) -> Run:
    """Answer what a model of OpenAI's routes alone is asked over other ones."""

    async def run(payload: Any, headers: dict[str, str], verb: str) -> tuple[Any, dict[str, str]]:
        raise NotImplementedError(f"model {model.name} does not implement {verb}")

    return run


def _versioned_run(run: Run, version: str) -> Run:
    """Name the version in the responses of a user's model that leave it out."""

    async def versioned_run(
        payload: Any, headers: dict[str, str], verb: str
    ) -> tuple[Any, dict[str, str]]:
        result, response_headers = await run(payload, headers, verb)
        if isinstance(result, InferResponse) and result.model_version is None:
            # The model may keep the object and give it again.
            result = copy(result)
            result.model_version = version
        return result, response_headers

    return versioned_run


def _call_run(model: InferenceModel, threads: ModelThreads) -> Run:
    """Answer by calling the model, whose class defines `__call__` itself."""
    is_async = is_async_callable(model)
    parameters = inspect.signature(model).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    takes_headers = takes_any or "headers" in parameters
    takes_verb = takes_any or "verb" in parameters

    async def run(payload: Any, headers: dict[str, str], verb: str) -> tuple[Any, dict[str, str]]:
        if verb != "predict" and not takes_verb:
            raise NotImplementedError(f"model {model.name} does not implement {verb}")
        keywords: dict[str, Any] = {"headers": headers} if takes_headers else {}
        if takes_verb:
            keywords["verb"] = InferenceVerb[verb.upper()]
        call = partial(model, payload, **keywords)
        result = await awaited(call() if is_async else await threads.run(call))
        if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
            result, response_headers = result
        else:
            response_headers = {}
        return streamable(result, threads), response_headers

    return run
