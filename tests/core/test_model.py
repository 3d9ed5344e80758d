"""The contracts of user code and of our servers."""

import argparse
from typing import Any

import numpy as np
import pytest

from kserve.context import get_predictor_config, set_predictor_config
from kserve.errors import InferenceError, InvalidInput
from kserve.model import (
    BaseKServeModel,
    InferenceModel,
    InferenceVerb,
    Model,
    PredictOptions,
    TensorModel,
    append_forwardable_headers,
)
from kserve.predictor_config import PredictorConfig
from kserve.protocol.codec import v2_json
from kserve.protocol.infer_type import InferInput, InferRequest, RequestedOutput
from kserve.signature import Signature, Tensors, TensorSpec

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_model_is_ready_between_load_and_stop() -> None:
    model = BaseKServeModel("m")
    seen = [model.ready, model.load(), await model.healthy()]

    model.stop()
    seen.append(model.ready)
    model.start()
    seen.append(model.ready)
    model.stop_engine()
    seen.append(model.ready)
    await model.start_engine()
    seen.append(model.ready)

    assert seen == [False, True, True, False, True, False, True]
    assert (model.name, model.engine) == ("m", False)


async def test_a_model_without_an_answer_says_so() -> None:
    with pytest.raises(NotImplementedError, match="^InferenceModel defines no __call__$"):
        await InferenceModel("m")({})


def test_an_inference_model_tells_no_types() -> None:
    model = InferenceModel("m")

    assert (model.get_input_types(), model.get_output_types()) == ([], [])


def test_a_models_attributes_are_those_of_the_sdk() -> None:
    model = Model("m", return_response_headers=True)

    assert vars(model) == {
        "name": "m",
        "ready": False,
        "required_response_headers": True,
        "explainer_host": None,
        "enable_latency_logging": False,
    }
    assert [(verb.name, verb.value) for verb in InferenceVerb] == [("EXPLAIN", 1), ("PREDICT", 2)]


class Doubling(Model):
    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        if response_headers is not None:
            response_headers["x-seen"] = headers.get("x", "none")
        return {"predictions": [2 * value for value in payload["instances"]]}

    async def explain(self, payload: Any, headers: Any = None) -> Any:
        return {"explanations": payload["instances"]}


async def test_a_model_may_be_called_directly() -> None:
    model = Doubling("m", return_response_headers=True)

    answers = [
        await model({"instances": [1]}),
        await model({"instances": [2]}, {"x": "y"}),
        await model({"instances": [3]}, verb=InferenceVerb.EXPLAIN),
    ]

    assert answers == [
        ({"predictions": [2]}, {"x-seen": "none"}),
        ({"predictions": [4]}, {"x-seen": "y"}),
        ({"explanations": [3]}, {}),
    ]


class ArrayLike:
    """Neither a list nor an array of numpy, as a data frame or a tensor."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.ones(1)


ROWS = ArrayLike()
ARRAY = np.ones((1, 2))


@pytest.mark.parametrize("protocol", ["v1", "v2", "grpc-v2"])
@pytest.mark.parametrize(
    "payload",
    [
        pytest.param({"instances": [[1]], "inputs": [1]}, id="lists"),
        pytest.param({"instances": ARRAY, "inputs": ARRAY}, id="arrays"),
        pytest.param({"instances": ROWS, "inputs": ROWS}, id="array-like"),
        pytest.param({"other": 1}, id="neither"),
        pytest.param({}, id="empty"),
        pytest.param(b"raw", id="bytes"),
        pytest.param(InferRequest("m", []), id="V2 request"),
    ],
)
def test_validate_keeps_a_payload_that_may_be_right(
    protocol: str, payload: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model("m")
    monkeypatch.setattr("kserve.model.get_predictor_config", lambda: PredictorConfig("h", protocol))

    assert model.validate(payload) is payload


@pytest.mark.parametrize(
    ("config", "key"),
    [
        pytest.param(None, "instances", id="no predictor"),
        pytest.param(PredictorConfig("host"), "instances", id="V1 predictor"),
        pytest.param(PredictorConfig("host", "v2"), "inputs", id="V2 predictor"),
    ],
)
@pytest.mark.parametrize("rows", [None, "text", {"a": 1}, 3], ids=repr)
def test_validate_refuses_rows_that_are_no_list(
    config: PredictorConfig | None, key: str, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model("m")
    monkeypatch.setattr("kserve.model.get_predictor_config", lambda: config)

    with pytest.raises(InvalidInput) as caught:
        model.validate({key: rows})

    assert str(caught.value) == f'Expected "{key}" to be a list'


async def test_the_predictor_of_the_context_is_every_models() -> None:
    config = PredictorConfig("host:8080", "v2", True, 10, 3, True)

    set_predictor_config(config)

    assert get_predictor_config() is config
    assert Model("m").predictor_config is config
    assert (config.protocol, config.use_ssl, config.timeout, config.retries) == ("v2", True, 10, 3)
    assert config.predictor_base_url == "https://host:8080"
    assert PredictorConfig("host").predictor_base_url == "http://host"


def test_forwards_three_headers_and_no_other() -> None:
    headers = {
        "x-request-id": "1",
        "x-b3-traceid": "2",
        "authorization": "3",
        "cookie": "4",
        "content-type": "text/plain",
    }

    forwarded = append_forwardable_headers(headers, {"content-type": "application/json"})

    assert forwarded == {
        "content-type": "application/json",
        "x-request-id": "1",
        "x-b3-traceid": "2",
        "authorization": "3",
    }


class Sums(TensorModel):
    """Sums rows; on request gives their means too, and what it was asked."""

    platform = "test"

    def __init__(self, name: str, model_dir: str | None = None) -> None:
        super().__init__(name, model_dir)
        self.signature = Signature(
            (TensorSpec("x", "FP64", (-1, 2)),),
            (TensorSpec("sum", "FP64", (-1,)),),
            (TensorSpec("mean", "FP64", (-1,)),),
        )
        self.asked: list[PredictOptions] = []

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        self.asked.append(options)
        return {name: getattr(tensors["x"], name)(axis=1) for name in options.outputs or ["sum"]}


def rows(*values: list[float], **fields: Any) -> InferRequest:
    return InferRequest(
        "m", [InferInput("x", [len(values), 2], "FP64", np.array(values))], **fields
    )


def test_a_tensor_model_answers_a_request() -> None:
    model = Sums("sums")

    response = model.infer(
        rows(
            [1.0, 2.0],
            request_id="7",
            parameters={"method": "fast"},
            request_outputs=[RequestedOutput("mean")],
        )
    )

    assert model.asked == [PredictOptions({"method": "fast"}, ("mean",))]
    assert v2_json.encode(response).body == (
        b'{"model_name":"sums","model_version":null,"id":"7","parameters":null,"outputs":'
        b'[{"name":"mean","shape":[1],"datatype":"FP64","parameters":null,"data":[1.5]}]}'
    )


def test_a_tensor_model_is_asked_for_nothing_in_particular_by_default() -> None:
    model = Sums("sums")

    response = model.infer(rows([1.0, 2.0], [3.0, 4.0]))

    assert model.asked == [PredictOptions({}, ())]
    assert response.to_dict() == {
        "id": None,
        "model_name": "sums",
        "model_version": None,
        "outputs": [
            {
                "name": "sum",
                "shape": [2],
                "datatype": "FP64",
                "data": [3.0, 7.0],
                "parameters": None,
            }
        ],
        "parameters": None,
        "from_grpc": False,
    }


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        pytest.param(ValueError("bad value"), InvalidInput, "bad value", id="ValueError"),
        pytest.param(TypeError("bad type"), InvalidInput, "bad type", id="TypeError"),
        pytest.param(InvalidInput("refused"), InvalidInput, "refused", id="InvalidInput"),
        pytest.param(KeyError("bug"), KeyError, "'bug'", id="a bug"),
        pytest.param(InferenceError("broken"), InferenceError, "broken", id="InferenceError"),
    ],
)
def test_what_a_tensor_model_refuses_is_the_clients_mistake(
    error: Exception, expected: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tensors: Tensors, options: PredictOptions) -> Tensors:
        raise error

    model = Sums("sums")
    monkeypatch.setattr(model, "predict_tensors", refuse)

    with pytest.raises(expected) as caught:
        model.infer(rows([1.0, 2.0]))

    assert (type(caught.value), str(caught.value)) == (expected, text)


def test_an_output_that_no_datatype_carries_is_the_models_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Sums("sums")
    monkeypatch.setattr(
        model, "predict_tensors", lambda tensors, options: {"sum": np.ones(1, np.complex128)}
    )

    with pytest.raises(InferenceError) as caught:
        model.infer(rows([1.0, 2.0]))

    assert str(caught.value) == "output 'sum' has dtype complex128, which no datatype carries"


def test_predict_answers_a_v1_payload_as_the_server_would() -> None:
    model = Sums("sums")

    answers = [
        model.predict({"instances": [[1, 2], [3, 4]]}),
        model.predict({"inputs": np.array([[0.5, 0.5]], np.float32)}),
    ]

    assert answers == [{"predictions": [3.0, 7.0]}, {"predictions": [1.0]}]


def test_predict_answers_a_v2_request_with_a_response() -> None:
    response = Sums("sums").predict(rows([1.0, 2.0]))

    assert [output.data for output in response.outputs] == [[3.0]]


def test_predict_refuses_a_payload_that_does_not_fit() -> None:
    with pytest.raises(InvalidInput) as caught:
        Sums("sums").predict({"instances": [[1, 2, 3]]})

    assert str(caught.value) == "input 'x': expected shape [-1, 2], got [1, 3]"


def test_a_tensor_models_metadata_is_its_signature() -> None:
    model = Sums("sums")

    assert model.get_input_types() == [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}]
    assert model.get_output_types() == [{"name": "sum", "datatype": "FP64", "shape": [-1]}]


def test_a_tensor_model_is_made_from_the_command_line() -> None:
    parser = argparse.ArgumentParser()
    Sums.add_arguments(parser)

    model = Sums.from_args("sums", "/mnt/models", parser.parse_args([]))

    assert (type(model), model.name, model.model_dir) == (Sums, "sums", "/mnt/models")


class Shares(Sums):
    can_explain = True

    def explain_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        return {"first": tensors["x"][:, 0], "second": tensors["x"][:, 1]}


def test_a_tensor_model_explains_what_is_asked_of_it_directly() -> None:
    model = Shares("shares")

    v1 = model.explain({"instances": [[1.0, 2.0], [3.0, 4.0]]})
    v2 = model.explain(rows([1.0, 2.0]))

    assert v1 == {"explanations": [{"first": 1.0, "second": 2.0}, {"first": 3.0, "second": 4.0}]}
    assert [(output.name, output.data) for output in v2.outputs] == [
        ("first", [1.0]),
        ("second", [2.0]),
    ]


def test_a_tensor_model_that_cannot_explain_says_so() -> None:
    with pytest.raises(NotImplementedError, match="^model sums does not implement explain$"):
        Sums("sums").explain({"instances": [[1.0, 2.0]]})


def test_a_server_without_its_own_explain_tensors_says_so() -> None:
    model = TensorModel("m")
    model.can_explain = True

    with pytest.raises(NotImplementedError, match="^TensorModel defines no explain_tensors$"):
        model.explain(rows([1.0, 2.0]))


def test_a_server_without_its_own_predict_tensors_says_so() -> None:
    with pytest.raises(NotImplementedError, match="^TensorModel defines no predict_tensors$"):
        TensorModel("m").infer(rows([1.0, 2.0]))
