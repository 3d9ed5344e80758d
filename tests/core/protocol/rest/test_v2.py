"""The V2 routes, byte for byte."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kserve import (
    InferOutput,
    InferRequest,
    InferResponse,
    Model,
    Signature,
    TensorModel,
    TensorSpec,
)
from kserve.errors import InvalidInput
from kserve.model import PredictOptions
from kserve.protocol.dataplane import server_version
from kserve.signature import Tensors
from kserve.testing import Response, request, serving

ONE = {"name": "x", "shape": [1], "datatype": "FP32", "data": [6.8]}
ARRAY = np.array([[1, 2]], np.float32)
ARRAY_OUTPUT = {"name": "y", "shape": ARRAY.shape, "datatype": "FP32", "data": ARRAY}


class Echo(Model):
    """Answers with the inputs as outputs, and with the parameters of the request."""

    def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": "x", "datatype": "FP32", "shape": [-1]}]

    async def get_output_types(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [{"name": "y", "datatype": "FP32", "shape": [-1]}]

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        outputs = [
            InferOutput(f"{tensor.name}_out", tensor.shape, tensor.datatype, tensor.data)
            for tensor in payload.inputs
        ]
        return InferResponse(payload.id, self.name, outputs, parameters=payload.parameters)


class Fixed(Model):
    """Answers with whatever it was made with."""

    def __init__(self, name: str, answer: Any) -> None:
        super().__init__(name)
        self.answer = answer

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return self.answer


class Doubling(TensorModel):
    """Doubles rows of two numbers."""

    platform = "test_framework"

    def load(self) -> bool:
        self.versions = ["1"]
        self.signature = Signature(
            inputs=(TensorSpec("x", "FP64", (-1, 2)),), outputs=(TensorSpec("y", "FP64", (-1, 2)),)
        )
        return True

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        return {"y": tensors["x"] * 2}


class Stopping(Model):
    """Says on demand that it cannot answer."""

    is_healthy = True

    async def healthy(self) -> bool:
        return self.is_healthy

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return {"predictions": []}


STOPPING = Stopping("v2-stopping")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    models = [
        Echo("v2-echo"),
        Doubling("v2-doubling"),
        Fixed("v2-dict", {"model_name": "m", "id": "5", "outputs": [{**ONE, "name": "y"}]}),
        Fixed("v2-no-id", InferResponse(None, "v2-no-id", [])),
        Fixed("v2-v1-answer", {"predictions": np.array([1, 2])}),
        Fixed("v2-broken", {"outputs": [{"name": "y"}]}),
        Fixed("v2-array", {"outputs": [ARRAY_OUTPUT]}),
        Fixed("v2-faulty", InferResponse("1", "m", [InferOutput("y", [2], "FP32", [1, 2, 3])])),
        Fixed("v2/with/slashes", {"predictions": []}),
        STOPPING,
    ]
    with serving(models) as port:
        yield port


def _infer(port: int, name: str, body: Any = None, **headers: str) -> Response:
    return request(port, "POST", f"/v2/models/{name}/infer", body or {"inputs": [ONE]}, headers)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/v2/health/live", b'{"live":true}', id="live"),
        pytest.param("/v2/health/ready", b'{"ready":true}', id="ready"),
        pytest.param(
            "/v2",
            b'{"name":"kserve","version":"%b","extensions":["binary_tensor_data"]}'
            % server_version().encode(),
            id="server metadata",
        ),
        pytest.param(
            "/v2/models/v2-dict",
            b'{"name":"v2-dict","versions":null,"platform":"","inputs":[],"outputs":[]}',
            id="metadata of a Model that says nothing",
        ),
        pytest.param(
            "/v2/models/v2-echo",
            b'{"name":"v2-echo","versions":null,"platform":"",'
            b'"inputs":[{"name":"x","datatype":"FP32","shape":[-1]}],'
            b'"outputs":[{"name":"y","datatype":"FP32","shape":[-1]}]}',
            id="metadata of a Model's own",
        ),
        pytest.param(
            "/v2/models/v2-doubling",
            b'{"name":"v2-doubling","versions":["1"],"platform":"test_framework",'
            b'"inputs":[{"name":"x","datatype":"FP64","shape":[-1,2]}],'
            b'"outputs":[{"name":"y","datatype":"FP64","shape":[-1,2]}]}',
            id="metadata of a TensorModel",
        ),
        pytest.param(
            "/v2/models/v2-echo/ready", b'{"name":"v2-echo","ready":true}', id="model ready"
        ),
        pytest.param(
            "/v2/models/v2%2Fwith/slashes/ready",
            b'{"name":"v2/with/slashes","ready":true}',
            id="name with slashes",
        ),
    ],
)
def test_answers_for_the_server_and_its_models(port: int, path: str, body: bytes) -> None:
    response = request(port, "GET", path)

    assert (response.status, response.headers["content-type"], response.body) == (
        200,
        "application/json",
        body,
    )


def test_lists_the_models(port: int) -> None:
    response = request(port, "GET", "/v2/models")

    assert response.status == 200
    assert sorted(response.json().pop("models")) == [
        "v2-array",
        *("v2-broken", "v2-dict", "v2-doubling", "v2-echo", "v2-faulty", "v2-no-id"),
        *("v2-stopping", "v2-v1-answer", "v2/with/slashes"),
    ]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "/ready"), ("POST", "/infer")],
    ids=["metadata", "ready", "infer"],
)
def test_an_unknown_model_is_named(port: int, method: str, path: str) -> None:
    response = request(port, method, f"/v2/models/InvalidModel{path}", {})

    assert (response.status, response.body) == (
        404,
        b'{"error":"Model with name InvalidModel does not exist."}',
    )


def test_a_model_that_says_it_is_not_healthy_makes_the_server_not_ready(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STOPPING, "is_healthy", False)

    answers = [
        request(port, "GET", "/v2/health/ready"),
        request(port, "GET", "/v2/models/v2-stopping/ready"),
        request(port, "GET", "/v1/models/v2-stopping"),
        _infer(port, "v2-stopping"),
        request(port, "GET", "/v2/health/live"),
    ]

    reason = "Model with name v2-stopping is not ready."
    assert [(answer.status, answer.json()) for answer in answers] == [
        (503, {"error": f"Server is not ready. {reason}"}),
        (503, {"error": reason}),
        (503, {"error": reason}),
        (503, {"error": reason}),
        (200, {"live": True}),
    ]


@pytest.mark.parametrize(
    ("name", "body", "answer"),
    [
        pytest.param(
            "v2-echo",
            {"id": "123", "inputs": [ONE]},
            b'{"model_name":"v2-echo","model_version":null,"id":"123","parameters":null,'
            b'"outputs":[{"name":"x_out","shape":[1],"datatype":"FP32","parameters":null,'
            b'"data":[6.800000190734863]}]}',
            id="InferResponse",
        ),
        pytest.param(
            "v2-echo",
            {
                "id": "123",
                "inputs": [ONE],
                "parameters": {"s": "a", "b": True, "i": 1, "f": 0.5},
            },
            b'{"model_name":"v2-echo","model_version":null,"id":"123",'
            b'"parameters":{"s":"a","b":true,"i":1,"f":0.5},'
            b'"outputs":[{"name":"x_out","shape":[1],"datatype":"FP32","parameters":null,'
            b'"data":[6.800000190734863]}]}',
            id="parameters",
        ),
        pytest.param(
            "v2-dict",
            None,
            b'{"model_name":"m","model_version":null,"id":"5","parameters":null,'
            b'"outputs":[{"name":"y","shape":[1],"datatype":"FP32","parameters":null,'
            b'"data":[6.800000190734863]}]}',
            id="dict",
        ),
        pytest.param(
            "v2-doubling",
            {"id": "1", "inputs": [{**ONE, "shape": [1, 2], "data": [1, 2]}]},
            b'{"model_name":"v2-doubling","model_version":null,"id":"1","parameters":null,'
            b'"outputs":[{"name":"y","shape":[1,2],"datatype":"FP64","parameters":null,'
            b'"data":[2.0,4.0]}]}',
            id="TensorModel",
        ),
        pytest.param("v2-v1-answer", None, b'{"predictions":[1,2]}', id="a V1 answer"),
    ],
)
def test_an_answer_has_the_members_in_the_originals_order(
    port: int, name: str, body: Any, answer: bytes
) -> None:
    response = _infer(port, name, body)

    assert (response.status, response.headers["content-type"], response.body) == (
        200,
        "application/json",
        answer,
    )


@pytest.mark.parametrize("name", ["v2-no-id", "v2-doubling"])
def test_an_answer_without_an_id_gets_that_of_the_http_request(port: int, name: str) -> None:
    body = {"inputs": [{**ONE, "shape": [1, 2], "data": [1, 2]}]}

    response = _infer(port, name, body, **{"x-request-id": "id-1"})

    assert response.json()["id"] == "id-1"


def test_an_answer_without_an_id_gets_that_of_the_request(port: int) -> None:
    response = _infer(port, "v2-no-id", {"id": "7", "inputs": [ONE]}, **{"x-request-id": "id-1"})

    assert (response.json()["id"], response.headers["x-request-id"]) == ("7", "id-1")


@pytest.mark.parametrize(
    "content_type",
    [
        *(None, "application/json; charset=utf-8", "application/x-www-form-urlencoded"),
        *("application/octet-stream", "image/png"),
    ],
)
def test_any_content_type_is_read_as_json(port: int, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}

    assert _infer(port, "v2-echo", **headers).status == 200


@pytest.mark.parametrize(
    ("name", "body", "error"),
    [
        pytest.param(
            "v2-echo",
            b"{",
            "Unrecognized request format: unexpected end of data: line 1 column 2 (char 1)",
            id="no JSON",
        ),
        pytest.param(
            "v2-echo", {}, "expected 'inputs', a list of at least one input", id="no inputs"
        ),
        pytest.param(
            "v2-echo",
            {"inputs": [{**ONE, "shape": [2]}]},
            "input 'x': shape [2] holds 2 values, got 1",
            id="shape",
        ),
        pytest.param(
            "v2-echo",
            {"inputs": [{**ONE, "datatype": "FP16"}]},
            "input 'x': Receiving FP16 data via JSON is not supported, use the binary data format",
            id="FP16",
        ),
        pytest.param(
            "v2-doubling",
            {"inputs": [{**ONE, "shape": [1, 3], "data": [1, 2, 3]}]},
            "input 'x': expected shape [-1, 2], got [1, 3]",
            id="signature",
        ),
    ],
)
def test_a_wrong_request_is_a_400_that_says_why(
    port: int, name: str, body: Any, error: str
) -> None:
    response = request(port, "POST", f"/v2/models/{name}/infer", body)

    assert (response.status, response.json()) == (400, {"error": error})


def test_a_result_that_is_no_response_is_the_models_mistake(port: int) -> None:
    response = _infer(port, "v2-broken")

    assert (response.status, response.json()) == (
        500,
        {
            "error": "the model's result is no inference response: "
            "'shape' field is missing in outputs[0]"
        },
    )


def test_a_dict_with_arrays_lacks_nothing_but_outputs(port: int) -> None:
    body = {"id": "7", "inputs": [ONE]}

    response = _infer(port, "v2-array", body)

    assert (response.status, response.body) == (
        200,
        b'{"model_name":"v2-array","model_version":null,"id":"7","parameters":null,"outputs":'
        b'[{"name":"y","shape":[1,2],"datatype":"FP32","parameters":null,"data":[1.0,2.0]}]}',
    )


def test_an_output_that_disagrees_with_its_shape_is_the_models_mistake(port: int) -> None:
    response = _infer(port, "v2-faulty")

    assert (response.status, response.json()) == (
        500,
        {"error": "output 'y': expected as many elements as shape [2] holds, got 3"},
    )


def test_an_error_that_a_model_raises_has_its_status() -> None:
    class Refusing(Model):
        def predict(
            self, payload: InferRequest, headers: Any = None, response_headers: Any = None
        ) -> Any:
            raise InvalidInput(f"no {payload.inputs[0].name}")

    with serving(Refusing("refusing")) as port:
        response = _infer(port, "refusing")

    assert (response.status, response.json()) == (400, {"error": "no x"})


class Constant(TensorModel):
    """Answers with 7, or with what a request gives in its place."""

    def load(self) -> bool:
        seven = TensorSpec("seven", "INT64", ())
        self.signature = Signature(
            outputs=(TensorSpec("y", "INT64", ()),), optional_inputs=(seven,), may_be_empty=True
        )
        self.ready = True
        return self.ready

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        return {"y": tensors.get("seven", np.array(7))}


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        pytest.param(b'{"inputs":[]}', {}, [7], id="JSON"),
        pytest.param(b'{"inputs":[]}', {"Inference-Header-Content-Length": "13"}, [7], id="binary"),
        pytest.param(
            b'{"inputs":[{"name":"seven","shape":[],"datatype":"INT64","data":[8]}]}',
            {},
            [8],
            id="optional input",
        ),
    ],
)
def test_a_model_that_needs_no_inputs_is_asked_without_any(
    body: bytes, headers: dict[str, str], expected: list[int]
) -> None:
    with serving([Constant("m")]) as port:
        answer = request(port, "POST", "/v2/models/m/infer", body, headers)

    assert (answer.status, answer.json()["outputs"][0]["data"]) == (200, expected)
