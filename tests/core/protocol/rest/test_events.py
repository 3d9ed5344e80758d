"""CloudEvents over REST; events are made and read by the `cloudevents` package."""

import re
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import numpy as np
import orjson
import pytest
from cloudevents.core.bindings.http import (
    HTTPMessage,
    from_binary,
    from_structured,
    to_binary,
    to_structured,
)
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from kserve import InferRequest, Model
from kserve.config import CloudEventConfig
from kserve.model import PredictOptions, TensorModel
from kserve.protocol.codec import cloudevents as codec
from kserve.signature import Signature, Tensors, TensorSpec
from kserve.testing import Response, request, serving

ATTRIBUTES = {
    "specversion": "1.0",
    "id": "36077800-0c23-4f38-a0b4-01f4369f670a",
    "source": "https://example.com/event-producer",
    "type": "com.example.sampletype1",
    "datacontenttype": "application/json",
}
# As KServe's SDK sends it: the type of the data is an attribute.
BINARY = {
    "ce-specversion": "1.0",
    "ce-id": ATTRIBUTES["id"],
    "ce-source": ATTRIBUTES["source"],
    "ce-type": ATTRIBUTES["type"],
    "ce-content-type": "application/json",
    "content-type": "application/json",
}
# A record of Avro: the string "Alyssa", the long 1
AVRO = b"\x0cAlyssa\x02"
V2_REQUEST = {
    "id": "9",
    "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]}],
}


class Mirror(Model):
    """Gives instances back, or tells what else came."""

    def predict(self, payload: Any, headers: Any = None) -> Any:  # type: ignore[override]
        if isinstance(payload, InferRequest):
            return {"outputs": [{**t.to_dict(), "parameters": None} for t in payload.inputs]}
        if isinstance(payload, bytes):
            return {"predictions": [payload.hex(), headers["ce-content-type"]]}
        return {"predictions": payload["instances"]}

    def explain(self, payload: Any, headers: Any = None) -> Any:
        return {"predictions": payload["instances"]}


class Echo(TensorModel):
    """Gives its tensor back."""

    def load(self) -> bool:
        self.signature = Signature(inputs=(TensorSpec("x", "FP64", (-1, 2)),))
        self.ready = True
        return self.ready

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        return tensors


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving([Mirror("TestModel"), Echo("tensors")]) as port:
        yield port


@pytest.fixture(scope="module")
def merging_port() -> Iterator[int]:
    config = CloudEventConfig(type="t", source="s", merge=True)
    with serving([Mirror("TestModel")], cloudevents=config) as port:
        yield port


@pytest.mark.parametrize("model", ["TestModel", "tensors"])
@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_v1_answers_an_event_with_an_event(port: int, mode: str, model: str) -> None:
    response = _send(port, f"/v1/models/{model}:predict", mode, {"instances": [[1, 2]]})

    event = _read(response, mode)
    assert response.status == 200
    assert event.get_data() == {"predictions": [[1, 2]]}
    assert event.get_source() == f"io.kserve.inference.{model}"
    assert event.get_type() == "io.kserve.inference.response"
    assert event.get_specversion() == "1.0"
    assert event.get_id() != ATTRIBUTES["id"]
    assert event.get_time() is not None


@pytest.mark.parametrize("model", ["TestModel", "tensors"])
@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_v2_answers_an_event_with_an_event(port: int, mode: str, model: str) -> None:
    response = _send(port, f"/v2/models/{model}/infer", mode, V2_REQUEST)

    event = _read(response, mode)
    assert response.status == 200
    assert event.get_data() == {
        "model_name": model,
        "model_version": None,
        "id": "9",
        "parameters": None,
        "outputs": [
            {
                "name": "x",
                "shape": [1, 2],
                "datatype": "FP64",
                "parameters": None,
                "data": [1.0, 2.0],
            }
        ],
    }
    assert event.get_source() == f"io.kserve.inference.{model}"


def test_a_binary_answer_has_the_bytes_and_headers_of_kserve(port: int) -> None:
    response = request(
        port, "POST", "/v1/models/TestModel:predict", b'{"instances":[[1,2]]}', BINARY
    )

    assert response.body == b'{"predictions": [[1, 2]]}'
    assert response.headers["content-type"] == "application/json"
    assert {name for name in response.headers if name.startswith("ce-")} == {
        *("ce-id", "ce-source", "ce-type", "ce-time", "ce-specversion")
    }


def test_a_structured_answer_has_the_keys_and_type_of_kserve(port: int) -> None:
    response = _send(port, "/v1/models/TestModel:predict", "structured", {"instances": [[1, 2]]})

    assert response.headers["content-type"] == "application/cloudevents+json"
    assert set(response.json()) == {"id", "source", "specversion", "time", "type", "data"}


def test_explain_answers_an_event_with_an_event(port: int) -> None:
    response = _send(port, "/v1/models/TestModel:explain", "binary", {"instances": [3]})

    assert _read(response, "binary").get_data() == {"predictions": [3]}


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        pytest.param({"ce-content-type": "application/avro"}, "application/avro", id="avro"),
        pytest.param(
            {"ce-content-type": "application/x-protobuf", "content-type": "application/json"},
            "application/x-protobuf",
            id="attribute before header",
        ),
    ],
)
def test_other_data_reaches_the_model_as_bytes(
    port: int, headers: dict[str, str], told: str
) -> None:
    response = request(port, "POST", "/v1/models/TestModel:predict", AVRO, {**BINARY, **headers})

    assert (response.status, response.json()) == (200, {"predictions": [AVRO.hex(), told]})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"{", "unexpected end of data: line 1 column 2 (char 1)", id="cut"),
        pytest.param(
            b"0\x80\x06",
            "'utf-8' codec can't decode byte 0x80 in position 1: invalid start byte",
            id="not UTF-8",
        ),
    ],
)
@pytest.mark.parametrize(
    "path",
    ["/v1/models/TestModel:predict", "/v1/models/tensors:predict", "/v2/models/tensors/infer"],
)
def test_refuses_a_binary_event_whose_data_is_no_json(
    port: int, path: str, body: bytes, reason: str
) -> None:
    response = request(port, "POST", path, body, BINARY)

    assert (response.status, response.json()) == (
        400,
        {"error": f"Failed to decode or parse binary json cloudevent: {reason}"},
    )
    assert "ce-id" not in response.headers


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_an_answer_takes_over_the_attributes_of_the_request(merging_port: int, mode: str) -> None:
    extension = {"customextension": "custom-value", "subject": "a b"}

    response = _send(
        merging_port, "/v1/models/TestModel:predict", mode, {"instances": [1]}, extension
    )

    event = _read(response, mode)
    assert event.get_data() == {"predictions": [1]}
    assert event.get_attributes() | {"id": "", "time": "", "datacontenttype": ""} == {
        "specversion": "1.0",
        "id": "",
        "source": "s",
        "type": "t",
        "time": "",
        "datacontenttype": "",
        **extension,
    }
    assert event.get_id() != ATTRIBUTES["id"]


@pytest.mark.parametrize("model", ["TestModel", "tensors"])
def test_an_event_that_no_header_announces_is_read_and_not_answered_with_one(
    port: int, model: str
) -> None:
    event = {**ATTRIBUTES, "time": "2021-01-28T21:04:43Z", "data": {"instances": [[1, 2]]}}

    response = request(port, "POST", f"/v1/models/{model}:predict", event)

    assert (response.status, response.json()) == (200, {"predictions": [[1, 2]]})
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_binary_tensors_travel_in_events(port: int, mode: str) -> None:
    head = orjson.dumps(
        {
            "parameters": {"binary_data_output": True},
            "inputs": [
                {
                    "name": "x",
                    "shape": [1, 2],
                    "datatype": "FP64",
                    "parameters": {"binary_data_size": 16},
                }
            ],
        }
    )
    body = head + np.array([1, 2], "<f8").tobytes()
    attributes = {**ATTRIBUTES, "datacontenttype": "application/octet-stream"}
    message = _message(mode, CloudEvent(attributes, body))

    response = request(
        port,
        "POST",
        "/v2/models/tensors/infer",
        message.body,
        {**message.headers, "Inference-Header-Content-Length": str(len(head))},
    )

    data = _read(response, mode).get_data()
    json_length = int(response.headers["inference-header-content-length"])
    assert isinstance(data, bytes)
    assert orjson.loads(data[:json_length])["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert np.frombuffer(data[json_length:], "<f8").tolist() == [1.0, 2.0]


def test_a_model_may_answer_with_bytes_of_its_own_type() -> None:
    class Image(Model):
        def predict(  # type: ignore[override]
            self, payload: Any, headers: Any = None, response_headers: Any = None
        ) -> bytes:
            response_headers["Content-Type"] = "image/png"
            return b"\x89PNG"

    with serving([Image("m", return_response_headers=True)]) as port:
        answers = [
            _read(_send(port, "/v1/models/m:predict", mode, {"instances": []}), mode)
            for mode in ("binary", "structured")
        ]

    assert [(a.get_datacontenttype(), a.get_data()) for a in answers] == [
        ("image/png", b"\x89PNG")
    ] * 2


def test_a_model_may_answer_with_text_of_no_type() -> None:
    class Text(Model):
        def predict(self, payload: Any, headers: Any = None) -> str:  # type: ignore[override]
            return '{"a":1}'

    with serving(Text("m")) as port:
        responses = [
            _send(port, "/v1/models/m:predict", mode, {"instances": []})
            for mode in ("binary", "structured")
        ]

    assert responses[0].headers["content-type"] == "application/json"
    assert responses[0].body == b'{"a":1}'
    assert responses[1].json()["data"] == '{"a":1}'


def test_attributes_that_a_model_copies_from_its_predictor_are_not_sent() -> None:
    class Copies(Model):
        def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            response_headers.update({"ce-id": "not this one", "ce-x": "nor this"})
            return {"predictions": []}

    with serving(Copies("m", return_response_headers=True)) as port:
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/v1/models/m:predict", b"{}", BINARY)
        response = connection.getresponse()
        response.read()
        connection.close()

    (sent_id,) = response.headers.get_all("ce-id", [])
    assert sent_id != "not this one"
    assert response.headers.get_all("ce-x") is None


def test_a_long_answer_is_compressed_around_its_event(port: int) -> None:
    body = {"instances": [[1, 2]] * 1_000}
    message = _message("structured", CloudEvent(ATTRIBUTES, body))

    response = request(
        port,
        "POST",
        "/v1/models/TestModel:predict",
        message.body,
        {**message.headers, "Accept-Encoding": "gzip"},
    )

    assert response.headers["content-encoding"] == "gzip"
    assert response.headers["content-type"] == "application/cloudevents+json"


def test_a_malformed_event_is_refused(port: int) -> None:
    response = request(
        port,
        "POST",
        "/v1/models/TestModel:predict",
        {"specversion": "1.0", "id": "1"},
        {"content-type": "application/cloudevents+json; charset=utf-8"},
    )

    assert (response.status, response.json()) == (
        400,
        {"error": "Cloud Event Exceptions: missing source, type"},
    )


def test_answers_that_are_no_events_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "read", None)

    with serving([Mirror("m")]) as port:
        headers = {"ce-specversion": "1.0", "ce-id": "1"}
        response = request(port, "POST", "/v1/models/m:predict", {"instances": [1]}, headers)

    assert (response.status, response.body) == (200, b'{"predictions":[1]}')


def _message(mode: str, event: CloudEvent) -> HTTPMessage:
    return (to_binary if mode == "binary" else to_structured)(event, JSONFormat())


def _send(
    port: int, path: str, mode: str, data: Any, extensions: dict[str, Any] | None = None
) -> Response:
    message = _message(mode, CloudEvent({**ATTRIBUTES, **(extensions or {})}, data))
    return request(port, "POST", path, message.body, message.headers)


def _read(response: Response, mode: str) -> CloudEvent:
    # The peer reads names with and without capitals, and takes no header that repeats.
    names = re.compile("ce-|content-type")
    headers = {name: value for name, value in response.headers.items() if names.match(name)}
    message = HTTPMessage(headers, response.body)
    read = from_binary if mode == "binary" else from_structured
    event = read(message, JSONFormat(), CloudEvent)
    assert isinstance(event, CloudEvent)
    return event
