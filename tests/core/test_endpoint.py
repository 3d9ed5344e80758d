"""A registered model, bound once."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from kserve.config import ServerConfig
from kserve.endpoint import Endpoint, bind, is_healthy
from kserve.executor import run_in_new_thread
from kserve.model import (
    BaseKServeModel,
    InferenceModel,
    InferenceVerb,
    Model,
    PredictOptions,
    TensorModel,
)
from kserve.model_resources import ModelResources
from kserve.protocol.infer_type import InferInput, InferRequest
from kserve.signature import Signature, Tensors, TensorSpec

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def here() -> str:
    return threading.current_thread().name


def bound(model: BaseKServeModel, name: str = "served") -> Endpoint:
    return bind(model, name, ModelResources(model, name, ServerConfig()))


class Sums(TensorModel):
    def __init__(self) -> None:
        super().__init__("sums")
        self.signature = Signature((TensorSpec("x", "FP64", (-1, 2)),))
        self.ran_on = ""

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        self.ran_on = here()
        return {"sum": tensors["x"].sum(axis=1)}


REQUEST = InferRequest("m", [InferInput("x", [1, 2], "FP64", np.array([[1.0, 2.0]]))])


async def test_a_tensor_model_answers_on_its_thread() -> None:
    model = Sums()
    endpoint = bound(model, "tensors")

    response, headers = await endpoint.run(REQUEST, {}, "predict")

    assert (endpoint.name, endpoint.model, endpoint.takes_tensors) == ("tensors", model, True)
    assert endpoint.signature is model.signature
    assert [output.data for output in response.outputs] == [[3.0]]
    assert (headers, model.ran_on) == ({}, "tensors-0")
    assert REGISTRY.get_sample_value("request_predict_seconds_count", {"model_name": "tensors"})


class Shares(Sums):
    can_explain = True

    def explain_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        return {"first": tensors["x"][:, 0], "second": tensors["x"][:, 1]}


async def test_a_tensor_model_explains_beside_its_predictions() -> None:
    endpoint = bound(Shares(), "shares")

    answers = await asyncio.gather(
        endpoint.run(REQUEST, {}, "explain"),
        endpoint.run(REQUEST, {}, "predict"),
        endpoint.run(REQUEST, {}, "explain"),
    )

    given = [{output.name: output.data for output in response.outputs} for response, _ in answers]
    assert given == [
        {"first": [1.0], "second": [2.0]},
        {"sum": [3.0]},
        {"first": [1.0], "second": [2.0]},
    ]
    labels = {"model_name": "shares"}
    assert REGISTRY.get_sample_value("request_explain_seconds_count", labels) == 2


async def test_a_tensor_model_explains_nothing_unless_it_says_that_it_can() -> None:
    with pytest.raises(NotImplementedError, match="^model sums does not implement explain$"):
        await bound(Sums()).run(REQUEST, {}, "explain")


class WithPreprocess(Sums):
    def preprocess(self, payload: Any) -> Any:  # type: ignore[override]
        return {"instances": [[value, value] for value in payload["instances"]]}


class WithExplain(Sums):
    def explain(self, payload: Any) -> Any:  # type: ignore[override]
        return {"explanations": payload["instances"]}


class WithCall(Sums):
    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await super().__call__(*args, **kwargs)


def with_own_attribute() -> Sums:
    model = Sums()
    setattr(model, "postprocess", lambda result: result)  # noqa: B010 - mypy wants a method
    return model


@pytest.mark.parametrize(
    ("model", "verb", "payload", "expected"),
    [
        pytest.param(
            WithPreprocess(),
            "predict",
            {"instances": [1, 2]},
            {"predictions": [2.0, 4.0]},
            id="preprocess",
        ),
        pytest.param(
            WithExplain(), "explain", {"instances": [5]}, {"explanations": [5]}, id="explain"
        ),
        pytest.param(
            WithCall(), "predict", {"instances": [[1, 2]]}, {"predictions": [3.0]}, id="__call__"
        ),
        pytest.param(
            with_own_attribute(),
            "predict",
            {"instances": [[1, 2]]},
            {"predictions": [3.0]},
            id="attribute of the instance",
        ),
    ],
)
async def test_a_tensor_model_with_a_handler_of_its_own_is_served_as_a_model(
    model: Sums, verb: str, payload: Any, expected: Any
) -> None:
    endpoint = bound(model)

    response = await endpoint.run(payload, {}, verb)

    assert endpoint.takes_tensors is False
    assert response == (expected, {})


def test_a_model_of_the_user_has_no_signature() -> None:
    endpoint = bound(Model("m"))

    assert (endpoint.takes_tensors, endpoint.signature) == (False, Signature())


def test_a_model_that_answers_nothing_cannot_be_bound() -> None:
    with pytest.raises(ValueError, match="^Model of type BaseKServeModel does not support infer"):
        bound(BaseKServeModel("m"))


class Called(InferenceModel):
    """Defines how it is called itself."""

    def __init__(self, result: Any = None) -> None:
        super().__init__("called")
        self.result = result


class AsyncCalled(Called):
    async def __call__(self, body: Any, headers: Any = None, verb: Any = None) -> Any:
        return [body, headers, verb, here()], {"x-set": "1"}


class PlainCalled(Called):
    def __call__(self, body: Any, headers: Any = None, verb: Any = None) -> Any:
        return [body, headers, verb, here()]


class HandleCalled(Called):
    """As a handle of a remote actor: a plain call that gives something to await."""

    def __call__(self, body: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        ran_on = here()

        async def remote() -> Any:
            return [body, kwargs["headers"], kwargs["verb"], ran_on]

        return remote()


class BodyCalled(Called):
    async def __call__(self, body: Any) -> Any:  # type: ignore[override]
        return [body]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param(
            AsyncCalled(),
            (["p", {"a": "b"}, InferenceVerb.PREDICT, "MainThread"], {"x-set": "1"}),
            id="async with response headers",
        ),
        pytest.param(
            PlainCalled(), (["p", {"a": "b"}, InferenceVerb.PREDICT, "called-0"], {}), id="plain"
        ),
        pytest.param(
            HandleCalled(),
            (["p", {"a": "b"}, InferenceVerb.PREDICT, "called-0"], {}),
            id="plain that gives a coroutine",
        ),
        pytest.param(BodyCalled(), (["p"], {}), id="body alone"),
    ],
)
async def test_a_class_that_defines_call_is_called(
    model: Called, expected: tuple[Any, dict[str, str]]
) -> None:
    assert here() == "MainThread"

    assert await bound(model, "called").run("p", {"a": "b"}, "predict") == expected


async def test_a_class_that_defines_call_is_told_to_explain() -> None:
    (_, _, verb, _), _ = await bound(AsyncCalled()).run("p", {}, "explain")

    assert verb is InferenceVerb.EXPLAIN


async def test_a_call_that_takes_no_verb_explains_nothing() -> None:
    with pytest.raises(NotImplementedError, match="^model called does not implement explain$"):
        await bound(BodyCalled()).run("p", {}, "explain")


class PlainStream(Called):
    def __call__(self, body: Any) -> Iterator[str]:  # type: ignore[override]
        yield here()


class AsyncStream(Called):
    async def __call__(self, body: Any) -> AsyncIterator[str]:  # type: ignore[override]
        yield here()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param(PlainStream(), "called-0", id="generator"),
        pytest.param(AsyncStream(), "MainThread", id="async generator"),
    ],
)
async def test_a_class_that_defines_call_may_stream(model: Called, expected: str) -> None:
    chunks, _ = await bound(model, "called").run("p", {}, "predict")

    assert [chunk async for chunk in chunks] == [expected]


class PlainHealth(Model):
    healthy_on = ""

    def healthy(self) -> bool:  # type: ignore[override]
        self.healthy_on = here()
        return True


class AsyncHealth(PlainHealth):
    async def healthy(self) -> bool:  # type: ignore[override]
        self.healthy_on = here()
        return True


class CoroutineHealth(PlainHealth):
    def healthy(self) -> Any:
        self.healthy_on = here()
        return Model.healthy(self)


class FailingHealth(Model):
    def healthy(self) -> bool:  # type: ignore[override]
        raise ConnectionError("the backend is gone")


@pytest.mark.parametrize(
    ("model", "healthy", "is_on_loop"),
    [
        pytest.param(PlainHealth("m"), True, False, id="plain"),
        pytest.param(AsyncHealth("m"), True, True, id="async"),
        pytest.param(CoroutineHealth("m"), False, False, id="plain that gives a coroutine"),
    ],
)
async def test_asks_healthy_off_the_loop_unless_it_is_async(
    model: PlainHealth, healthy: bool, is_on_loop: bool
) -> None:
    assert bound(model).has_own_healthy is True
    assert await is_healthy(model) is healthy
    assert (model.healthy_on == here()) is is_on_loop


async def test_a_model_is_as_healthy_as_ready_by_default() -> None:
    model = Model("m")
    before = await is_healthy(model)
    model.ready = True

    assert (before, await is_healthy(model)) == (False, True)
    assert bound(model).has_own_healthy is False


async def test_a_model_whose_healthy_raises_cannot_answer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("kserve"), "propagate", True)

    assert await is_healthy(FailingHealth("m")) is False

    assert [record.message for record in caplog.records] == ["Model m: healthy() failed"]


class HangingHealth(Model):
    """Its `healthy` waits until it is told to go on."""

    def __init__(self) -> None:
        super().__init__("hanging")
        self.was_asked, self.go_on = threading.Event(), threading.Event()
        self.n_asked = 0

    def healthy(self) -> bool:  # type: ignore[override]
        self.n_asked += 1
        self.was_asked.set()
        return self.go_on.wait(10)


async def test_a_hanging_healthy_is_not_ready_and_holds_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kserve.endpoint._HEALTH_TIMEOUT_S", 0.01)
    model = HangingHealth()

    answers = [await is_healthy(model)]
    assert await run_in_new_thread(model.was_asked.wait, 10)
    answers += [await is_healthy(model) for _ in range(2)]
    model.go_on.set()
    monkeypatch.setattr("kserve.endpoint._HEALTH_TIMEOUT_S", 10)

    assert (answers, model.n_asked) == ([False, False, False], 1)
    assert await is_healthy(model) is True


async def test_a_model_is_asked_again_once_it_has_answered() -> None:
    model = HangingHealth()
    model.go_on.set()

    answers = [await is_healthy(model) for _ in range(3)]

    assert (answers, model.n_asked) == ([True, True, True], 3)


# Which models are batched.


class Plain(Model):
    def predict(self, payload: Any) -> Any:  # type: ignore[override]
        return payload


class SaysSo(Plain):
    batching = True


class SaysNo(SaysSo):
    batching = False


class PreprocessThatSaysSo(WithPreprocess):
    batching = True


def with_attribute() -> Model:
    model = Plain("m")
    model.batching = True
    return model


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param(Plain("m"), False, id="model of the user"),
        pytest.param(SaysSo("m"), True, id="that says so"),
        pytest.param(SaysNo("m"), False, id="that takes it back"),
        pytest.param(with_attribute(), True, id="that says so of one object"),
        pytest.param(Sums(), True, id="tensor model"),
        pytest.param(WithPreprocess(), False, id="tensor model with a handler of its own"),
        pytest.param(PreprocessThatSaysSo(), True, id="that says so itself"),
        pytest.param(AsyncCalled(), False, id="that is called"),
    ],
)
def test_a_model_is_batched_if_it_is_one_of_tensors_or_says_so(
    model: BaseKServeModel, expected: bool
) -> None:
    assert (bound(model).resources._batcher is not None) is expected


async def test_a_tensor_model_with_a_preprocess_that_says_so_gets_the_rows_of_several() -> None:
    endpoint = bound(PreprocessThatSaysSo())

    answers = await asyncio.gather(
        endpoint.run({"instances": [1]}, {}, "predict"),
        endpoint.run({"instances": [2, 3]}, {}, "predict"),
    )

    assert [*answers] == [({"predictions": [2.0]}, {}), ({"predictions": [4.0, 6.0]}, {})]


class StreamsBatches(SaysSo):
    def predict(self, payload: Any) -> Iterator[Any]:  # type: ignore[override]
        yield payload


class AsyncStreamsBatches(SaysSo):
    async def predict(self, payload: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        yield payload


@pytest.mark.parametrize("model", [StreamsBatches("m"), AsyncStreamsBatches("m")])
def test_a_model_that_streams_cannot_be_batched(model: Model) -> None:
    with pytest.raises(ValueError, match="^model m: a predict that streams cannot have batching"):
        bound(model)


async def test_two_names_of_a_model_share_its_queue() -> None:
    model = Sums()
    resources = ModelResources(model, "shared-queue", ServerConfig())
    endpoints = [bind(model, name, resources) for name in ("sums", "alias")]

    answers = await asyncio.gather(
        *(endpoint.run(REQUEST, {}, "predict") for endpoint in endpoints)
    )

    assert [response.outputs[0].data for response, _ in answers] == [[3.0], [3.0]]
    assert (
        REGISTRY.get_sample_value("kserve_queue_seconds_count", {"model_name": "shared-queue"}) == 2
    )


class OpenAIAlone(BaseKServeModel):
    """Answers nothing but OpenAI's routes."""

    serves_openai = True


async def test_a_model_of_openai_s_routes_alone_infers_nothing() -> None:
    endpoint = bound(OpenAIAlone("m"))

    assert (endpoint.takes_tensors, endpoint.handlers) == (False, {})
    for verb in ("predict", "explain"):
        with pytest.raises(NotImplementedError, match=f"model m does not implement {verb}"):
            await endpoint.run({}, {}, verb)
