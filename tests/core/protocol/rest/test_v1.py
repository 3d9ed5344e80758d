"""The V1 routes, byte for byte."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from kserve import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    Model,
    Signature,
    TensorModel,
    TensorSpec,
)
from kserve.errors import InvalidInput
from kserve.model import InferenceVerb, PredictOptions
from kserve.protocol.codec import v1_json
from kserve.protocol.codec.encoded_json import EncodedJson
from kserve.signature import Tensors
from kserve.testing import Response, request, serving

JSON = "application/json"


class Echo(Model):
    """Answers with its instances; explains with them too."""

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        if isinstance(payload, bytes):
            return {"raw": payload.decode("latin-1")}
        return {"predictions": payload["instances"]}

    def explain(self, payload: Any, headers: Any = None) -> Any:
        return {"explanations": payload["instances"], "seen": headers["x-own"]}


class Fixed(Model):
    """Answers with whatever it was made with."""

    def __init__(self, name: str, answer: Any) -> None:
        super().__init__(name)
        self.answer = answer

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return self.answer


class Loading(Model):
    """Never becomes ready."""

    def load(self) -> bool:
        return False


class Doubling(TensorModel):
    """Doubles rows of two numbers."""

    def load(self) -> bool:
        self.signature = Signature(
            inputs=(TensorSpec("x", "FP64", (-1, 2)),), outputs=(TensorSpec("y", "FP64", (-1, 2)),)
        )
        return True

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        return {"y": tensors["x"] * 2}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    output = InferOutput("y", [2], "FP32", np.array([6.8, 1], np.float32))
    models = [
        Echo("v1-echo"),
        Fixed("v1-times", {"predictions": [datetime(2024, 1, 2, 3, 4, 5)]}),
        Fixed("v1-text", "plain"),
        Fixed("v1-bytes", b"\x00\xff"),
        Fixed("v1-none", None),
        Fixed("v1-response", InferResponse("5", "v1-response", [output])),
        Fixed("v1-unwritable", {"predictions": object()}),
        Loading("v1-loading"),
        Doubling("v1-doubling"),
        Fixed("v1/with/slashes", {"predictions": ["slashes"]}),
    ]
    with serving(models) as port:
        yield port


def _predict(port: int, name: str, body: Any = b"{}", **headers: str) -> Response:
    return request(port, "POST", f"/v1/models/{name}:predict", body, headers)


def test_lists_the_models_that_cannot_answer_too(port: int) -> None:
    response = request(port, "GET", "/v1/models")

    assert (response.status, response.headers["content-type"]) == (200, JSON)
    assert set(response.json()) == {"models"}
    assert sorted(response.json()["models"]) == [
        *("v1-bytes", "v1-doubling", "v1-echo", "v1-loading", "v1-none", "v1-response"),
        *("v1-text", "v1-times", "v1-unwritable", "v1/with/slashes"),
    ]


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        pytest.param("v1-echo", 200, b'{"name":"v1-echo","ready":true}', id="ready"),
        pytest.param(
            "v1-loading",
            503,
            b'{"error":"Model with name v1-loading is not ready. '
            b'model v1-loading: load() left it not ready"}',
            id="not ready",
        ),
        pytest.param(
            "InvalidModel",
            404,
            b'{"error":"Model with name InvalidModel does not exist."}',
            id="unknown",
        ),
        pytest.param(
            "v1%2Fwith/slashes", 200, b'{"name":"v1/with/slashes","ready":true}', id="slashes"
        ),
    ],
)
def test_says_whether_a_model_is_ready(port: int, path: str, status: int, body: bytes) -> None:
    response = request(port, "GET", f"/v1/models/{path}")

    assert (response.status, response.body) == (status, body)


@pytest.mark.parametrize("verb", ["predict", "explain"])
@pytest.mark.parametrize(
    ("name", "status", "body"),
    [
        pytest.param(
            "InvalidModel",
            404,
            b'{"error":"Model with name InvalidModel does not exist."}',
            id="unknown",
        ),
        pytest.param(
            "v1-loading",
            503,
            b'{"error":"Model with name v1-loading is not ready. '
            b'model v1-loading: load() left it not ready"}',
            id="not ready",
        ),
    ],
)
def test_a_model_that_cannot_answer_is_named(
    port: int, name: str, verb: str, status: int, body: bytes
) -> None:
    response = request(port, "POST", f"/v1/models/{name}:{verb}", {"instances": [[1, 2]]})

    assert (response.status, response.headers["content-type"], response.body) == (
        status,
        JSON,
        body,
    )


@pytest.mark.parametrize(
    ("name", "body"),
    [
        pytest.param("v1-echo", b'{"predictions":[[1,2]]}', id="lists"),
        pytest.param("v1-times", b'{"predictions":["2024-01-02T03:04:05"]}', id="datetimes"),
        pytest.param("v1-none", b"null", id="nothing"),
        pytest.param(
            "v1-response",
            b'{"model_name":"v1-response","model_version":null,"id":"5","parameters":null,'
            b'"outputs":[{"name":"y","shape":[2],"datatype":"FP32","parameters":null,'
            b'"data":[6.800000190734863,1.0]}]}',
            id="InferResponse",
        ),
        pytest.param("v1-doubling", b'{"predictions":[[2.0,4.0]]}', id="TensorModel"),
        pytest.param("v1/with/slashes", b'{"predictions":["slashes"]}', id="name with slashes"),
    ],
)
def test_an_answer_is_json(port: int, name: str, body: bytes) -> None:
    response = _predict(port, name, {"instances": [[1, 2]]})

    assert (response.status, response.headers["content-type"], response.body) == (200, JSON, body)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        pytest.param("v1-text", b"plain", id="text"),
        pytest.param("v1-bytes", b"\x00\xff", id="bytes"),
    ],
)
def test_text_and_bytes_go_out_as_they_are(port: int, name: str, body: bytes) -> None:
    response = _predict(port, name)

    assert (response.status, response.headers.get("content-type"), response.body) == (
        200,
        None,
        body,
    )


def test_an_explanation_echoes_no_request_header(port: int) -> None:
    response = request(
        port,
        "POST",
        "/v1/models/v1-echo:explain",
        {"instances": [[1, 2]]},
        {"X-Own": "a", "Authorization": "Bearer secret", "Cookie": "a=b"},
    )

    assert response.body == b'{"explanations":[[1,2]],"seen":"a"}'
    assert sorted(response.headers) == ["content-length", "content-type", "date", "x-request-id"]


@pytest.mark.parametrize("name", ["v1-times", "v1-doubling"])
def test_a_model_without_an_explanation_says_so(port: int, name: str) -> None:
    response = request(port, "POST", f"/v1/models/{name}:explain", {"instances": [[1, 2]]})

    assert (response.status, response.json()) == (
        501,
        {"error": f"model {name} does not implement explain"},
    )


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        *("application/json", "application/json; charset=utf-8", "Application/JSON"),
        *("application/x-www-form-urlencoded", "text/plain;charset=UTF-8"),
        *("application/octet-stream", "application/ld+json", "application/cloudevents+json"),
        *(" application/json ; x=1", "text/json", ""),
    ],
)
def test_a_body_is_read_as_json_under_any_usual_content_type(
    port: int, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}

    response = _predict(port, "v1-echo", {"instances": [[1, 2]]}, **headers)

    assert (response.status, response.body) == (200, b'{"predictions":[[1,2]]}')


@pytest.mark.parametrize("content_type", ["image/png", "application/avro", "text/html"])
def test_a_body_of_another_type_reaches_the_model_as_bytes(port: int, content_type: str) -> None:
    response = _predict(port, "v1-echo", b"\xff{", **{"content-type": content_type})

    assert response.json() == {"raw": "\xff{"}


def test_a_tensor_model_reads_json_under_any_content_type(port: int) -> None:
    response = _predict(
        port, "v1-doubling", {"instances": [[1, 2]]}, **{"content-type": "image/png"}
    )

    assert (response.status, response.body) == (200, b'{"predictions":[[2.0,4.0]]}')


@pytest.mark.parametrize("name", ["v1-echo", "v1-doubling"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut short"),
        pytest.param(b'{"instances": [NaN]}', id="NaN"),
        pytest.param(b'{"instances": ["\xff"]}', id="invalid UTF-8"),
        pytest.param(b'\xef\xbb\xbf{"instances": [[1, 2]]}', id="a BOM"),
        pytest.param(b"[" * 100_000, id="deep nesting"),
    ],
)
def test_a_body_that_is_no_json_is_the_clients_mistake(port: int, name: str, body: bytes) -> None:
    response = _predict(port, name, body)

    assert response.status == 400
    assert list(response.json()) == ["error"]
    assert response.json()["error"].startswith("Unrecognized request format: ")


@pytest.mark.parametrize(
    ("name", "body", "error"),
    [
        pytest.param("v1-echo", {"instances": 5}, 'Expected "instances" to be a list', id="Model"),
        pytest.param(
            "v1-doubling",
            {"instances": [[1, 2, 3]]},
            "input 'x': expected shape [-1, 2], got [1, 3]",
            id="TensorModel",
        ),
        pytest.param(
            "v1-doubling",
            {"rows": [[1, 2]]},
            'Expected "instances" or "inputs" in a JSON object',
            id="TensorModel without rows",
        ),
    ],
)
def test_a_body_that_does_not_fit_says_what_was_expected(
    port: int, name: str, body: Any, error: str
) -> None:
    response = _predict(port, name, body)

    assert (response.status, response.json()) == (400, {"error": error})


def test_a_result_that_json_cannot_express_is_the_models_mistake(port: int) -> None:
    response = _predict(port, "v1-unwritable")

    assert (response.status, response.json()) == (
        500,
        {
            "error": "the model's result cannot be written as JSON: "
            "Type is not JSON serializable: object"
        },
    )


class Validating(Model):
    """The documented way to check a payload: raise, or return nothing."""

    def validate(self, payload: Any) -> Any:
        if "instances" not in payload:
            raise InvalidInput("instances are required")
        if isinstance(payload, InferRequest) and payload.inputs[0].name != "x":
            raise InvalidInput("x is required")

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        if isinstance(payload, InferRequest):
            return {"predictions": payload.inputs[0].data}
        return {"predictions": payload["instances"]}


@pytest.mark.parametrize(
    ("path", "body", "status", "answer"),
    [
        pytest.param(
            "/v1/models/validating:predict",
            {"instances": [1]},
            200,
            {"predictions": [1]},
            id="V1 kept",
        ),
        pytest.param(
            "/v1/models/validating:predict",
            {},
            400,
            {"error": "instances are required"},
            id="V1 refused",
        ),
        pytest.param(
            "/v2/models/validating/infer",
            {"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [1]}]},
            200,
            {"predictions": [1]},
            id="V2 kept",
        ),
        pytest.param(
            "/v2/models/validating/infer",
            {"inputs": [{"name": "y", "shape": [1], "datatype": "INT64", "data": [1]}]},
            400,
            {"error": "x is required"},
            id="V2 refused",
        ),
    ],
)
def test_a_validate_that_returns_nothing_keeps_the_payload(
    path: str, body: Any, status: int, answer: Any
) -> None:
    with serving(Validating("validating")) as port:
        response = request(port, "POST", path, body)

    assert (response.status, response.json()) == (status, answer)


class Dialect(Doubling):
    """Reads and writes V1 in words of its own."""

    def decode_v1(self, body: bytes, model_name: str) -> InferRequest:
        words = dict(pair.split("=") for pair in body.decode().split("&"))
        array = np.array([[float(words["a"]), float(words["b"])]])
        tensor = InferInput.from_array("x", [1, 2], "FP64", array)
        return InferRequest(model_name, [tensor], parameters={"echo": words["echo"]})

    def encode_v1(
        self, request: InferRequest, response: InferResponse, verb: InferenceVerb
    ) -> EncodedJson:
        assert request.parameters is not None
        key = f"{request.model_name} {verb.name} {request.parameters['echo']}"
        return v1_json.encode({key: response.outputs[0].as_numpy()})


def test_a_server_may_read_and_write_v1_in_a_dialect_of_its_own() -> None:
    with serving(Dialect("dialect")) as port:
        answer = request(port, "POST", "/v1/models/dialect:predict", b"a=1&b=2.5&echo=yes")

    assert (answer.status, answer.body) == (200, b'{"dialect PREDICT yes":[[2.0,5.0]]}')
