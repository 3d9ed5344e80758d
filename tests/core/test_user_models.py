"""Models as users write them, over real sockets."""

import functools
import gc
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from kserve import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    Model,
    PredictorConfig,
)
from kserve.errors import InferenceError, InvalidInput, ModelNotReady, NoModelReady
from kserve.model import BaseKServeModel, InferenceModel, PredictOptions, TensorModel
from kserve.signature import Signature, Tensors, TensorSpec
from kserve.testing import Response, request, serving
from kserve.utils.utils import get_predict_input, get_predict_response

_JOIN_S = 10
# The event loop of `kserve.testing.serving` runs on a thread of this name.
LOOP = "serving"

V1 = {"instances": [[1, 2]]}
V2 = {"id": "7", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]}]}


@pytest.fixture(autouse=True)
def asyncio_complains(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test that leaves a task destroyed or an exception that nobody retrieved."""
    yield
    complaints = [record for record in caplog.records if record.name == "asyncio"]
    assert [record.message for record in complaints if record.levelno >= logging.ERROR] == []


def serve(models: Any, **settings: Any) -> Any:
    return serving(models, configure_logging=False, **settings)


def predict(port: int, payload: Any = V1, name: str = "m", **headers: str) -> Response:
    return request(port, "POST", f"/v1/models/{name}:predict", payload, headers)


def infer(port: int, payload: Any = V2, name: str = "m") -> Response:
    return request(port, "POST", f"/v2/models/{name}/infer", payload)


def answer(response: Response) -> tuple[int, Any]:
    return response.status, response.json()


def here() -> str:
    return threading.current_thread().name


def model_with(return_response_headers: bool = False, /, **attributes: Any) -> Model:
    model = Model("m", return_response_headers)
    for name, attribute in attributes.items():
        setattr(model, name, attribute)
    return model


def one(payload: Any) -> Any:
    return {"predictions": [here(), payload["instances"]]}


def with_headers(payload: Any, headers: dict[str, str]) -> Any:
    return {"predictions": [here(), headers["x-a"]]}


def with_optional_headers(payload: Any, headers: dict[str, str] | None = None) -> Any:
    assert headers is not None
    return with_headers(payload, headers)


def keyword_only(payload: Any, *, headers: dict[str, str]) -> Any:
    return with_headers(payload, headers)


def any_number(*args: Any) -> Any:
    return with_headers(args[0], args[1])


async def async_one(payload: Any) -> Any:
    return one(payload)


async def async_with_headers(payload: Any, headers: dict[str, str]) -> Any:
    return with_headers(payload, headers)


class PlainObject:
    def __call__(self, payload: Any) -> Any:
        return one(payload)


class AsyncObject:
    async def __call__(self, payload: Any) -> Any:
        return one(payload)


def scaled(factor: int, payload: Any, headers: dict[str, str]) -> Any:
    return {"predictions": [here(), factor]}


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        pytest.param(one, ["m-0", [[1, 2]]], id="payload alone"),
        pytest.param(with_headers, ["m-0", "b"], id="headers"),
        pytest.param(with_optional_headers, ["m-0", "b"], id="optional headers"),
        pytest.param(keyword_only, ["m-0", "b"], id="keyword only"),
        pytest.param(any_number, ["m-0", "b"], id="*args"),
        pytest.param(async_one, [LOOP, [[1, 2]]], id="async"),
        pytest.param(async_with_headers, [LOOP, "b"], id="async with headers"),
        pytest.param(PlainObject(), ["m-0", [[1, 2]]], id="callable object"),
        pytest.param(AsyncObject(), [LOOP, [[1, 2]]], id="async callable object"),
        pytest.param(functools.partial(scaled, 3), ["m-0", 3], id="partial"),
        pytest.param(functools.partial(async_one), [LOOP, [[1, 2]]], id="partial of async"),
        pytest.param(decorated(with_headers), ["m-0", "b"], id="decorated"),
        pytest.param(decorated(async_with_headers), [LOOP, "b"], id="decorated async"),
    ],
)
def test_every_form_of_predict_answers_on_its_thread(
    handler: Callable[..., Any], expected: list[Any]
) -> None:
    with serve(model_with(predict=handler)) as port:
        response = predict(port, **{"X-A": "b"})

    assert answer(response) == (200, {"predictions": expected})


def generate(payload: Any) -> Iterator[str]:
    for number in range(3):
        yield f"{here()} {number}\n"


async def generate_async(payload: Any) -> AsyncIterator[str]:
    for number in range(3):
        yield f"{here()} {number}\n"


@pytest.mark.parametrize(
    ("handler", "thread"),
    [
        pytest.param(generate, "m-0", id="generator"),
        pytest.param(generate_async, LOOP, id="async generator"),
        pytest.param(decorated(generate_async), LOOP, id="decorated async generator"),
    ],
)
def test_predict_may_stream(handler: Callable[..., Any], thread: str) -> None:
    with serve(model_with(predict=handler)) as port:
        response = predict(port)

    assert (response.status, response.body.decode()) == (
        200,
        f"{thread} 0\n{thread} 1\n{thread} 2\n",
    )


class Everything(Model):
    """Writes down where each of its plain and async parts runs."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ran: dict[str, str] = {}

    def load(self) -> None:  # type: ignore[override]
        self.ran["load"] = here()

    def start(self) -> None:
        self.ran["start"] = here()

    def stop(self) -> None:
        self.ran["stop"] = here()

    def healthy(self) -> bool:  # type: ignore[override]
        self.ran["healthy"] = here()
        return True

    def get_input_types(self) -> list[dict[str, Any]]:
        self.ran["get_input_types"] = here()
        return []

    def preprocess(self, payload: Any) -> Any:  # type: ignore[override]
        self.ran["preprocess"] = here()
        return payload

    def validate(self, payload: Any) -> None:
        self.ran["validate"] = here()

    def predict(self, payload: Any) -> Any:  # type: ignore[override]
        self.ran["predict"] = here()
        return payload

    def explain(self, payload: Any) -> Any:  # type: ignore[override]
        self.ran["explain"] = here()
        return payload

    def postprocess(self, result: Any) -> Any:  # type: ignore[override]
        self.ran["postprocess"] = here()
        return result


def test_nothing_of_plain_user_code_runs_on_the_loop() -> None:
    model = Everything("m")

    with serve(model) as port:
        statuses = [
            predict(port).status,
            request(port, "POST", "/v1/models/m:explain", V1).status,
            request(port, "GET", "/v2/models/m").status,
            request(port, "GET", "/v2/health/ready").status,
        ]

    assert statuses == [200] * 4
    assert sorted(model.ran) == [
        "explain",
        "get_input_types",
        "healthy",
        "load",
        "postprocess",
        "predict",
        "preprocess",
        "start",
        "stop",
        "validate",
    ]
    assert {name for name, thread in model.ran.items() if thread in (LOOP, "MainThread")} == set()
    handlers = ("preprocess", "validate", "predict", "explain", "postprocess")
    assert {model.ran[name] for name in handlers} == {"m-0"}


class Blocking(Model):
    """Blocks in `predict` until released; gives the thread."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.entered, self.release = threading.Semaphore(0), threading.Event()

    def predict(self, payload: Any) -> Any:  # type: ignore[override]
        self.entered.release()
        self.release.wait(_JOIN_S)
        return {"predictions": [here()]}


def test_probes_and_other_models_answer_while_one_model_predicts() -> None:
    busy, order = Blocking("busy"), []

    def ask_busy(port: int) -> Response:
        response = predict(port, name="busy")
        order.append("busy")
        return response

    with serve([busy, model_with(predict=one)]) as port, ThreadPoolExecutor() as pool:
        blocked = pool.submit(ask_busy, port)
        assert busy.entered.acquire(timeout=_JOIN_S)
        statuses = [
            request(port, "GET", path).status
            for path in (
                "/",
                "/v2/health/live",
                "/v2/health/ready",
                "/v1/models/busy",
                "/v2/models/busy/ready",
                "/v2/models/busy",
                "/metrics",
            )
        ]
        other = predict(port)
        order.append("others")
        busy.release.set()
        answered = answer(blocked.result(_JOIN_S))

    assert statuses == [200] * 7
    assert answer(other) == (200, {"predictions": ["m-0", [[1, 2]]]})
    assert answered == (200, {"predictions": ["busy-0"]})
    assert order == ["others", "busy"]


@pytest.mark.parametrize("n_allowed", [1, 2])
def test_a_model_predicts_as_often_at_a_time_as_is_allowed(n_allowed: int) -> None:
    model = Blocking("m")
    models = {"m": model, "alias": model}

    with serve(models, max_concurrent_predicts=n_allowed) as port, ThreadPoolExecutor() as pool:
        first = pool.submit(predict, port, V1, "m")
        assert model.entered.acquire(timeout=_JOIN_S)
        others = [pool.submit(predict, port, V1, name) for name in ("alias", "m", "alias")]
        for _ in range(n_allowed - 1):
            assert model.entered.acquire(timeout=_JOIN_S)
        model.release.set()
        responses = [asked.result(_JOIN_S) for asked in (first, *others)]

    assert [response.status for response in responses] == [200] * 4
    # Each of these threads runs one call at a time.
    threads = {response.json()["predictions"][0] for response in responses}
    assert threads <= {f"m-{number}" for number in range(n_allowed)}


class Numpy(Model):
    def preprocess(self, payload: Any, headers: Any = None) -> Any:
        return {"instances": np.array(payload["instances"])}

    def predict(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
        return {"predictions": payload["instances"] * 2}


def test_preprocess_may_return_numpy_instances() -> None:
    with serve(Numpy("m")) as port:
        assert answer(predict(port)) == (200, {"predictions": [[2, 4]]})


class Validated(Model):
    """As in KServe's documents: raises, or returns nothing."""

    def validate(self, payload: Any) -> None:
        if "instances" not in payload:
            raise InvalidInput("instances are missing")
        rows = get_predict_input(payload)
        if rows.shape[1] != 2:  # type: ignore[union-attr]
            raise InvalidInput("expected two features")

    def predict(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
        return get_predict_response(payload, np.ones(1), self.name)


WIDE_V2 = {
    "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP64", "data": [1, 2, 3]}],
}


def test_validate_may_return_nothing_or_raise_on_both_protocols() -> None:
    with serve(Validated("m")) as port:
        responses = [
            predict(port),
            predict(port, {"instances": [[1, 2, 3]]}),
            predict(port, {"other": 1}),
            infer(port),
            infer(port, WIDE_V2),
        ]

    assert [answer(response) for response in responses] == [
        (200, {"predictions": [1.0]}),
        (400, {"error": "expected two features"}),
        (400, {"error": "instances are missing"}),
        (
            200,
            {
                "model_name": "m",
                "model_version": None,
                "id": "7",
                "parameters": None,
                "outputs": [
                    {
                        "name": "output-0",
                        "shape": [1],
                        "datatype": "FP64",
                        "parameters": None,
                        "data": [1.0],
                    }
                ],
            },
        ),
        (400, {"error": "expected two features"}),
    ]


class Asynchronous(Model):
    async def load(self) -> bool:  # type: ignore[override]
        self.loaded_on = here()
        self.ready = True
        return self.ready

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": [self.loaded_on, here()]}


def test_load_and_predict_may_be_async() -> None:
    with serve([Asynchronous("m")]) as port:
        assert answer(predict(port)) == (200, {"predictions": [LOOP, LOOP]})


class Forgetful(Model):
    def load(self) -> None:  # type: ignore[override]
        self.factor = 3

    def predict(self, request: Any) -> Any:  # type: ignore[override]
        return {"predictions": [self.factor]}


def test_a_model_that_nobody_loaded_is_loaded_though_it_forgets_ready() -> None:
    with serve([Forgetful("m")]) as port:
        assert answer(predict(port)) == (200, {"predictions": [3]})


class Unready(Model):
    def load(self) -> None:  # type: ignore[override]
        self.ready = False


def test_a_model_whose_load_says_no_is_not_served() -> None:
    with pytest.raises(NoModelReady) as caught, serve([Unready("m")]):
        pass

    assert str(caught.value) == (
        "Models with name m are not ready. model m: load() left it not ready"
    )


def test_a_model_that_cannot_be_loaded_leaves_the_others() -> None:
    with serve([Unready("bad"), model_with(predict=one)]) as port:
        responses = [predict(port), predict(port, name="bad"), request(port, "GET", "/v1/models")]

    assert [answer(response) for response in responses] == [
        (200, {"predictions": ["m-0", [[1, 2]]]}),
        (503, {"error": "Model with name bad is not ready. model bad: load() left it not ready"}),
        (200, {"models": ["bad", "m"]}),
    ]


class Doubled(Model):
    factor = 2

    def predict(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
        return {"predictions": [self.name, self.factor]}


class Tripled(Doubled):
    factor = 3


FIRST, SECOND = Doubled("first"), Tripled("second")


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        pytest.param([FIRST, SECOND], {"first": ["first", 2], "second": ["second", 3]}, id="list"),
        pytest.param({"a": FIRST, "b": SECOND}, {"a": ["first", 2], "b": ["second", 3]}, id="dict"),
        pytest.param({"a": FIRST, "b": FIRST}, {"a": ["first", 2], "b": ["first", 2]}, id="alias"),
        pytest.param(FIRST, {"first": ["first", 2]}, id="one model"),
    ],
)
def test_models_are_served_under_their_names(models: Any, expected: dict[str, Any]) -> None:
    with serve(models) as port:
        listed = request(port, "GET", "/v1/models").json()
        answers = {name: predict(port, name=name).json()["predictions"] for name in expected}

    assert sorted(listed["models"]) == sorted(expected)
    assert answers == expected


class Raising(Model):
    def predict(self, payload: Any) -> Any:  # type: ignore[override]
        raise ERRORS[payload["instances"][0]]


ERRORS: dict[str, BaseException] = {
    "InvalidInput": InvalidInput("expected a word"),
    "ModelNotReady": ModelNotReady("m", "It warms up."),
    "InferenceError": InferenceError("out of luck"),
    "InferenceError with status": InferenceError("out of luck", status="7"),
    "NotImplementedError": NotImplementedError("not this one"),
    "ValueError": ValueError("a secret"),
    "SystemExit": SystemExit(3),
    "StopIteration": StopIteration(),
}
INTERNAL = (500, {"error": "Internal server error"})


def test_an_exception_has_the_same_status_from_plain_and_async_predict() -> None:
    async def asynchronous(payload: Any) -> Any:
        raise ERRORS[payload["instances"][0]]

    expected = {
        "InvalidInput": (400, {"error": "expected a word"}),
        "ModelNotReady": (503, {"error": "Model with name m is not ready. It warms up."}),
        "InferenceError": (500, {"error": "out of luck"}),
        "InferenceError with status": (500, {"error": "[7] out of luck"}),
        "NotImplementedError": (501, {"error": "not this one"}),
        "ValueError": INTERNAL,
        "SystemExit": INTERNAL,
        "StopIteration": INTERNAL,
    }
    with serve({"plain": Raising("plain"), "async": model_with(predict=asynchronous)}) as port:
        answers = {
            name: {error: answer(predict(port, {"instances": [error]}, name)) for error in ERRORS}
            for name in ("plain", "async")
        }
        alive = request(port, "GET", "/").status

    assert answers == {"plain": expected, "async": expected}
    assert alive == 200


class Decorating(Model):
    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        if response_headers is not None:
            response_headers["X-First"] = headers["x-a"]
        return payload

    async def postprocess(
        self, result: Any, headers: Any = None, response_headers: Any = None
    ) -> Any:
        if response_headers is not None:
            response_headers["x-second"] = response_headers["X-First"] + "!"
        return {"predictions": result["instances"]}


@pytest.mark.parametrize(
    ("is_asked", "expected"),
    [
        pytest.param(True, {"x-first": "b", "x-second": "b!"}, id="asked for"),
        pytest.param(False, {}, id="not asked for"),
    ],
)
def test_response_headers_are_sent_if_the_model_asks_for_them(
    is_asked: bool, expected: dict[str, str]
) -> None:
    with serve(Decorating("m", return_response_headers=is_asked)) as port:
        response = predict(port, **{"x-a": "b"})

    assert answer(response) == (200, {"predictions": [[1, 2]]})
    assert {name: response.headers[name] for name in response.headers if name[:2] == "x-"} == {
        **expected,
        "x-request-id": response.headers["x-request-id"],
    }


class Marking(Model):
    """As KServe's custom model sample: state travels in the headers."""

    def preprocess(self, payload: Any, headers: dict[str, str]) -> Any:  # type: ignore[override]
        headers["request-type"] = "v2" if isinstance(payload, InferRequest) else "v1"
        return payload

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": [headers["request-type"]]}


def test_a_mutable_headers_dict_is_shared_by_the_handlers_of_one_request() -> None:
    with serve(Marking("m")) as port:
        answers = [answer(predict(port)), answer(infer(port))]

    assert answers == [(200, {"predictions": ["v1"]}), (200, {"predictions": ["v2"]})]


class Explaining(Doubled):
    def explain(self, payload: Any, headers: Any = None) -> Any:
        return {"explanations": {"rows": payload["instances"], "weights": np.ones(2, np.float32)}}


def test_explain_may_return_a_dict_and_echoes_no_request_header() -> None:
    with serve(Explaining("m")) as port:
        response = request(port, "POST", "/v1/models/m:explain", V1, {"authorization": "secret"})

    assert answer(response) == (
        200,
        {"explanations": {"rows": [[1, 2]], "weights": [1.0, 1.0]}},
    )
    assert sorted(response.headers) == ["content-length", "content-type", "date", "x-request-id"]


def test_an_explainer_that_does_not_explain_says_so() -> None:
    with serve(Doubled("m")) as port:
        response = request(port, "POST", "/v1/models/m:explain", V1)

    assert answer(response) == (501, {"error": "model m does not implement explain"})


X = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
Y = [{"name": "y", "datatype": "INT64", "shape": [-1]}]


class PlainTypes(Doubled):
    def get_input_types(self) -> list[dict[str, Any]]:
        return X

    def get_output_types(self) -> list[dict[str, Any]]:
        return Y


class AsyncTypes(Doubled):
    async def get_input_types(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return X

    async def get_output_types(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return Y


@pytest.mark.parametrize("model", [PlainTypes("m"), AsyncTypes("m")], ids=["plain", "async"])
def test_types_feed_the_metadata(model: Model) -> None:
    with serve(model) as port:
        response = request(port, "GET", "/v2/models/m")

    assert answer(response) == (
        200,
        {"name": "m", "versions": None, "platform": "", "inputs": X, "outputs": Y},
    )


class PlainHealth(Doubled):
    is_healthy = True

    def healthy(self) -> bool:  # type: ignore[override]
        return self.is_healthy


class AsyncHealth(PlainHealth):
    async def healthy(self) -> bool:  # type: ignore[override]
        return self.is_healthy


class RaisingHealth(PlainHealth):
    def healthy(self) -> bool:  # type: ignore[override]
        if not self.is_healthy:
            raise ConnectionError("the backend is gone")
        return True


@pytest.mark.parametrize(
    "model",
    [PlainHealth("m"), AsyncHealth("m"), RaisingHealth("m")],
    ids=["plain", "async", "raises"],
)
def test_healthy_decides_about_readiness_and_requests(model: PlainHealth) -> None:
    paths = ["/v1/models/m", "/v2/models/m/ready", "/v2/health/ready", "/v2/health/live"]

    with serve(model) as port:
        healthy = [predict(port).status, *(request(port, "GET", path).status for path in paths)]
        model.is_healthy = False
        ill = [predict(port).status, *(request(port, "GET", path).status for path in paths)]

    assert healthy == [200, 200, 200, 200, 200]
    assert ill == [503, 503, 503, 503, 200]


class Engine(Doubled):
    """Its engine runs until it is stopped."""

    def __init__(self, name: str, engine: Any = False) -> None:
        super().__init__(name)
        self.calls: list[str] = []
        if engine is not None:
            self.engine = engine

    async def start_engine(self) -> None:
        self.calls.append(f"start on {here()}")

    def stop_engine(self) -> None:
        self.calls.append("stop")


class EngineProperty(Engine):
    @property
    def engine(self) -> Any:
        return {"an": "object"}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param(Engine("m", False), [], id="False"),
        pytest.param(Engine("m", True), [f"start on {LOOP}", "stop"], id="True"),
        pytest.param(Engine("m", object()), [f"start on {LOOP}", "stop"], id="object"),
        pytest.param(EngineProperty("m", None), [f"start on {LOOP}", "stop"], id="property"),
    ],
)
def test_an_engine_is_started_and_stopped(model: Engine, expected: list[str]) -> None:
    with serve(model) as port:
        # The engine was started before a request that came after it can be answered.
        assert answer(predict(port)) == (200, {"predictions": ["m", 2]})

    assert model.calls == expected


class Called(InferenceModel):
    async def __call__(self, body: Any, headers: Any = None, verb: Any = None) -> Any:
        return {"predictions": [verb.name, here()]}, {"x-set": headers["x-a"]}


class PlainCalled(InferenceModel):
    def __call__(self, body: Any, headers: Any = None) -> Any:  # type: ignore[override]
        return {"predictions": ["PREDICT", here()]}, {"x-set": headers["x-a"]}


@pytest.mark.parametrize(
    ("model", "thread"), [(Called("m"), LOOP), (PlainCalled("m"), "m-0")], ids=["async", "plain"]
)
def test_a_class_may_define_call_itself(model: InferenceModel, thread: str) -> None:
    with serve(model) as port:
        response = predict(port, **{"x-a": "b"})

    assert answer(response) == (200, {"predictions": ["PREDICT", thread]})
    assert response.headers["x-set"] == "b"


class Sums(TensorModel):
    def load(self) -> bool:
        self.signature = Signature((TensorSpec("x", "FP64", (-1, 2)),))
        self.ready = True
        return True

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        return {"sum": tensors["x"].sum(axis=1)}


class Pairs(Sums):
    def preprocess(self, payload: Any, headers: Any = None) -> Any:
        if isinstance(payload, InferRequest):
            return payload
        return {"instances": [[value, value] for value in payload["instances"]]}


def test_a_server_may_be_extended_by_overriding_a_handler() -> None:
    with serve([Sums("sums"), Pairs("pairs")]) as port:
        answers = [
            predict(port, {"instances": [[1, 2]]}, "sums").json(),
            predict(port, {"instances": [1, 2]}, "pairs").json(),
            infer(port, name="sums").json()["outputs"],
            infer(port, name="pairs").json()["outputs"],
        ]

    output = {"name": "sum", "shape": [1], "datatype": "FP64", "parameters": None, "data": [3.0]}
    assert answers == [{"predictions": [3.0]}, {"predictions": [2.0, 4.0]}, [output], [output]]


class Inferring(Model):
    """Answers V2 as KServe's documents do, by hand."""

    def predict(self, payload: InferRequest, headers: Any = None) -> Any:  # type: ignore[override]
        array = payload.inputs[0].as_numpy()
        output = InferOutput("y", list(array.shape), "FP32")
        output.set_data_from_numpy(array.astype(np.float32) * 2, binary_data=False)
        return InferResponse(None, self.name, [output])


def test_a_v2_request_is_an_infer_request_and_the_answer_an_infer_response() -> None:
    with serve(Inferring("m")) as port:
        response = request(
            port, "POST", "/v2/models/m/infer", V2, {"x-request-id": "not the id of the body"}
        )

    assert answer(response) == (
        200,
        {
            "model_name": "m",
            "model_version": None,
            "id": "7",
            "parameters": None,
            "outputs": [
                {
                    "name": "y",
                    "shape": [1, 2],
                    "datatype": "FP32",
                    "parameters": None,
                    "data": [2.0, 4.0],
                }
            ],
        },
    )


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
def test_handlers_see_the_predictor_of_the_server(is_async: bool) -> None:
    config = PredictorConfig("predictor:80", "v2")

    class Transformer(Model):
        def host(self, payload: Any) -> Any:
            assert self.predictor_config is not None
            return {"predictions": [self.predictor_config.predictor_base_url]}

        async def async_host(self, payload: Any) -> Any:
            return self.host(payload)

    model = Transformer("m")
    model.predict = model.async_host if is_async else model.host  # type: ignore[assignment, method-assign]
    with serve(model, predictor=config) as port:
        assert answer(predict(port)) == (200, {"predictions": ["http://predictor:80"]})


def test_a_model_may_lose_and_regain_its_readiness() -> None:
    model = Doubled("m")
    with serve(model) as port:
        statuses = [predict(port).status]
        model.ready = False
        statuses.append(predict(port).status)
        model.ready = True
        statuses.append(predict(port).status)

    assert statuses == [200, 503, 200]


def test_a_model_that_answers_no_requests_is_no_error_of_the_client() -> None:
    with serve(BaseKServeModel("m")) as port:
        assert answer(predict(port)) == INTERNAL


def test_requests_do_not_share_what_they_carry() -> None:
    def predict_one(payload: Any, headers: dict[str, str]) -> Any:
        headers.setdefault("seen", str(payload["instances"][0]))
        payload["instances"].append(headers["seen"])
        return {"predictions": payload["instances"]}

    with serve(model_with(predict=predict_one)) as port, ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda n: predict(port, {"instances": [n]}), range(32)))

    assert [answer(response) for response in responses] == [
        (200, {"predictions": [number, str(number)]}) for number in range(32)
    ]


def test_an_input_is_found_by_name_in_a_v2_request() -> None:
    def predict_one(payload: InferRequest) -> Any:
        tensor = payload.get_input_by_name("x")
        assert isinstance(tensor, InferInput)
        return {"predictions": tensor.data}

    with serve(model_with(predict=predict_one)) as port:
        assert answer(infer(port)) == (200, {"predictions": [1.0, 2.0]})


def test_a_server_that_stops_leaves_no_thread_of_its_own() -> None:
    before = set(threading.enumerate())

    with serve(model_with(predict=one)) as port:
        predict(port)

    left = set(threading.enumerate()) - before
    # A server and its application refer to one another.
    gc.collect()
    for thread in left:
        thread.join(_JOIN_S)
    assert [thread.name for thread in left if thread.is_alive()] == []


# Models that say `batching = True`.


class Batched(Model):
    """Answers each row with the number of rows that it came with, on this thread."""

    batching = True

    def __init__(self, return_response_headers: bool = False) -> None:
        super().__init__("m", return_response_headers)
        self.payloads: list[Any] = []

    def answer(self, payload: Any) -> Any:
        self.payloads.append(payload)
        rows = payload["instances"]
        if any(np.any(np.equal(row, -1)) for row in rows if not isinstance(row, dict)):
            raise InvalidInput("-1 does not suit the model")
        return {"predictions": [[here(), len(rows), row] for row in rows]}

    def predict(self, payload: Any, headers: dict[str, str]) -> Any:  # type: ignore[override]
        assert headers == {}
        return self.answer(payload)


class AsyncBatched(Batched):
    async def predict(self, payload: Any) -> Any:  # type: ignore[override]
        return self.answer(payload)


class ListBatched(Batched):
    def predict(self, payload: Any) -> Any:  # type: ignore[override]
        return self.answer(payload)["predictions"]


class ArrayBatched(Batched):
    def preprocess(self, payload: Any) -> Any:  # type: ignore[override]
        return {"instances": np.array(payload["instances"], np.float64)}

    def predict(self, payload: Any) -> Any:  # type: ignore[override]
        self.payloads.append(payload)
        rows = payload["instances"]
        return {"predictions": [[here(), len(rows), row] for row in rows.tolist()]}


def batches_of(n_rows: int) -> dict[str, Any]:
    """Give settings under which a batch waits until it has so many rows."""
    return {"max_batch_size": n_rows, "max_batch_delay_ms": 3_600_000}


def together(port: int, *payloads: Any, send: Callable[..., Response] = predict) -> list[Response]:
    with ThreadPoolExecutor(len(payloads)) as pool:
        return list(pool.map(lambda payload: send(port, payload), payloads))


@pytest.mark.parametrize(
    ("model", "rows", "place"),
    [
        pytest.param(Batched(), ([1, 2], [3, 4]), "m-0", id="plain"),
        pytest.param(AsyncBatched(), ([1, 2], [3, 4]), LOOP, id="async"),
        pytest.param(Batched(), ({"a": 1}, {"a": 2}), "m-0", id="rows as objects"),
        pytest.param(ArrayBatched(), ([1.0, 2.0], [3.0, 4.0]), "m-0", id="arrays"),
    ],
)
def test_payloads_that_wait_are_one_call_of_predict(model: Batched, rows: Any, place: str) -> None:
    with serve(model, **batches_of(3)) as port:
        answers = together(port, {"instances": [rows[0]]}, {"instances": [rows[1], rows[0]]})

    assert [answer(response) for response in answers] == [
        (200, {"predictions": [[place, 3, rows[0]]]}),
        (200, {"predictions": [[place, 3, rows[1]], [place, 3, rows[0]]]}),
    ]
    assert len(model.payloads) == 1


def test_a_list_of_results_is_given_as_a_list() -> None:
    with serve(ListBatched(), **batches_of(2)) as port:
        answers = together(port, {"instances": [1]}, {"instances": [2]})

    assert [response.json() for response in answers] == [[["m-0", 2, 1]], [["m-0", 2, 2]]]


def test_payloads_of_other_columns_are_calls_of_their_own() -> None:
    model = Batched()

    with serve(model, max_batch_size=2, max_batch_delay_ms=1) as port:
        answers = together(port, {"instances": [{"a": 1}]}, {"instances": [{"b": 1}]})

    assert [response.json()["predictions"][0][1] for response in answers] == [1, 1]
    assert len(model.payloads) == 2


def test_only_the_payload_at_fault_fails() -> None:
    model = Batched()

    with serve(model, **batches_of(4)) as port:
        answers = together(port, *({"instances": [row]} for row in (1, 2, -1, 3)))

    assert [response.status for response in answers] == [200, 200, 400, 200]
    assert answers[2].json() == {"error": "-1 does not suit the model"}
    assert [response.json()["predictions"][0][2] for response in answers if response.status == 200]
    assert len(model.payloads[0]["instances"]) == 4


class HeadersBatched(Batched):
    def preprocess(self, payload: Any, headers: dict[str, str]) -> Any:  # type: ignore[override]
        return {"instances": [*payload["instances"], headers["x-a"]][-1:]}

    def predict(  # type: ignore[override]
        self, payload: Any, headers: dict[str, str], response_headers: dict[str, str]
    ) -> Any:
        assert headers == {}
        response_headers["x-batch"] = str(len(payload["instances"]))
        return {"predictions": payload["instances"]}

    def postprocess(  # type: ignore[override]
        self, result: Any, headers: dict[str, str], response_headers: dict[str, str]
    ) -> Any:
        response_headers["x-own"] = headers["x-a"]
        return result


def test_headers_are_those_of_each_request_and_predict_gets_none() -> None:
    def send(port: int, value: str) -> Response:
        return predict(port, {"instances": [0]}, **{"x-a": value})

    with serve(HeadersBatched(return_response_headers=True), **batches_of(2)) as port:
        answers = together(port, "first", "second", send=send)

    assert [response.json() for response in answers] == [
        {"predictions": ["first"]},
        {"predictions": ["second"]},
    ]
    assert [(r.headers["x-batch"], r.headers["x-own"]) for r in answers] == [
        ("2", "first"),
        ("2", "second"),
    ]


class TensorBatched(Batched):
    def predict(self, payload: InferRequest) -> Any:  # type: ignore[override]
        self.payloads.append(payload)
        (tensor,) = payload.inputs
        array = tensor.as_numpy()
        counts = np.full(len(array), len(array), np.int64)
        return InferResponse(
            None,
            "m",
            [
                InferOutput.from_array("sum", [len(array)], "FP64", array.sum(axis=1)),
                InferOutput.from_array("n", [len(array)], "INT64", counts),
            ],
        )


class AsyncTensorBatched(TensorBatched):
    async def predict(self, payload: InferRequest) -> Any:  # type: ignore[override]
        return TensorBatched.predict(self, payload)


@pytest.mark.parametrize("model", [TensorBatched(), AsyncTensorBatched()], ids=["plain", "async"])
def test_requests_that_wait_are_one_call_of_predict(model: Batched) -> None:
    def body(request_id: str, data: list[list[float]]) -> Any:
        shape = [len(data), len(data[0])]
        tensor = {"name": "x", "shape": shape, "datatype": "FP64", "data": data}
        return {"id": request_id, "inputs": [tensor]}

    with serve(model, **batches_of(3)) as port:
        answers = together(port, body("a", [[1, 2]]), body("b", [[3, 4], [5, 6]]), send=infer)

    def response_to(request_id: str, sums: list[float]) -> Any:
        outputs: list[tuple[str, str, list[Any]]] = [
            ("sum", "FP64", sums),
            ("n", "INT64", [3] * len(sums)),
        ]
        return {
            "model_name": "m",
            "model_version": None,
            "id": request_id,
            "parameters": None,
            "outputs": [
                {
                    "name": name,
                    "shape": [len(data)],
                    "datatype": datatype,
                    "parameters": None,
                    "data": data,
                }
                for name, datatype, data in outputs
            ],
        }

    assert [response.json() for response in answers] == [
        response_to("a", [3]),
        response_to("b", [7, 11]),
    ]
    assert len(model.payloads) == 1


def test_a_model_that_gives_too_few_rows_fails_those_of_the_batch() -> None:
    class TooFew(Batched):
        def predict(self, payload: Any) -> Any:  # type: ignore[override]
            self.payloads.append(payload)
            return {"predictions": [0]}

    model = TooFew()
    with serve(model, **batches_of(2)) as port:
        answers = together(port, {"instances": [1]}, {"instances": [2]})

    expected = {"error": "expected 2 predictions, one for each row, got 1"}
    assert [answer(response) for response in answers] == [(500, expected)] * 2
    assert len(model.payloads) == 1
