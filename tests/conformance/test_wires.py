"""The forms that a request may take beside plain JSON, against every server of the table."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from numpy.testing import assert_array_equal
from tritonclient.utils import triton_to_np_dtype

if TYPE_CHECKING:
    from tests.conformance.servers import RunningServer

EVENT = {
    "specversion": "1.0",
    "id": "36077800-0c23-4f38-a0b4-01f4369f670a",
    "source": "https://example.com/event-producer",
    "type": "com.example.sampletype1",
}
BINARY_EVENT = {f"ce-{name}": value for name, value in EVENT.items()}
STRUCTURED_TYPE = {"Content-Type": "application/cloudevents+json"}
HEADER = "Inference-Header-Content-Length"


def raw_deflate(body: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-15)
    return engine.compress(body) + engine.flush()


COMPRESSIONS = [
    pytest.param("gzip", gzip.compress, id="gzip"),
    pytest.param("deflate", zlib.compress, id="zlib"),
    pytest.param("deflate", raw_deflate, id="raw deflate"),
    pytest.param("identity", bytes, id="identity"),
]


@pytest.fixture
def client(server: "RunningServer") -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary_in", [True, False], ids=["binary in", "JSON in"])
@pytest.mark.parametrize("binary_out", [True, False], ids=["binary out", "JSON out"])
def test_v2_answers_the_same_in_every_form(
    server: "RunningServer",
    client: triton.InferenceServerClient,
    binary_in: bool,
    binary_out: bool,
    compression: str | None,
) -> None:
    expected = server.entry.v2_outputs[0]

    result = client.infer(
        server.entry.model_name,
        [_input(server, binary_in)],
        outputs=[triton.InferRequestedOutput(expected["name"], binary_data=binary_out)],
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )

    dtype = triton_to_np_dtype(expected["datatype"])
    array = np.array(expected["data"], dtype=dtype).reshape(expected["shape"])
    # The client leaves text as it came: bytes in binary form, `str` in JSON.
    got = result.as_numpy(expected["name"])
    if binary_out and expected["datatype"] == "BYTES":
        got = np.array([value.decode() for value in got], dtype=np.object_)
    assert_array_equal(got, array)
    assert ("data" in result.get_output(expected["name"])) is not binary_out


def test_v2_sends_all_outputs_in_binary_form_where_asked(
    server: "RunningServer", client: triton.InferenceServerClient
) -> None:
    result = client.infer(server.entry.model_name, [_input(server, True)])

    outputs = result.get_response()["outputs"]
    assert [output["name"] for output in outputs] == [o["name"] for o in server.entry.v2_outputs]
    assert all(output["parameters"]["binary_data_size"] for output in outputs)


def test_v2_reads_a_body_whose_json_part_is_all_of_it(server: "RunningServer") -> None:
    body = orjson.dumps({"id": "1", **server.entry.v2_request})

    response = server.request("POST", f"{server.entry.v2}/infer", body, {HEADER: str(len(body))})

    assert (response.status, response.json()) == (200, server.entry.v2_response("1"))


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "99999999", ""])
def test_v2_refuses_a_wrong_length_of_the_json_part(server: "RunningServer", value: str) -> None:
    body = orjson.dumps(server.entry.v2_request)

    response = server.request("POST", f"{server.entry.v2}/infer", body, {HEADER: value})

    assert response.status == 400
    assert HEADER in response.json()["error"]


def test_v2_refuses_bytes_that_belong_to_no_input(server: "RunningServer") -> None:
    body = orjson.dumps(server.entry.v2_request)
    headers = {HEADER: str(len(body))}

    response = server.request("POST", f"{server.entry.v2}/infer", body + b"abc", headers)

    assert (response.status, response.json()) == (
        400,
        {"error": "expected 0 bytes of binary data after the JSON part, got 3"},
    )


@pytest.mark.parametrize(("encoding", "compress"), COMPRESSIONS)
def test_v1_reads_compressed_bodies(
    server: "RunningServer", encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    body = compress(orjson.dumps(server.entry.v1_request))

    response = server.request(
        "POST", f"{server.entry.v1}:predict", body, {"Content-Encoding": encoding}
    )

    assert (response.status, response.json()) == (200, server.entry.v1_response)


@pytest.mark.parametrize("path", ["{v1}:predict", "{v2}/infer"])
@pytest.mark.parametrize(
    ("encoding", "status"),
    [pytest.param("br", 415, id="unknown"), pytest.param("gzip", 400, id="corrupt")],
)
def test_refuses_what_it_cannot_decompress(
    server: "RunningServer", path: str, encoding: str, status: int
) -> None:
    path = path.format(v1=server.entry.v1, v2=server.entry.v2)

    response = server.request("POST", path, b"{}", {"Content-Encoding": encoding})

    assert (response.status, list(response.json())) == (status, ["error"])


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_v1_answers_an_event_with_an_event(server: "RunningServer", mode: str) -> None:
    headers, body = _event(mode, server.entry.v1_request)

    response = server.request("POST", f"{server.entry.v1}:predict", body, headers)

    attributes, data = _answered(mode, response)
    assert response.status == 200
    assert data == server.entry.v1_response
    assert attributes | {"id": "", "time": ""} == _attributes(server)


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_v2_answers_an_event_with_an_event(server: "RunningServer", mode: str) -> None:
    headers, body = _event(mode, {"id": "1", **server.entry.v2_request})

    response = server.request("POST", f"{server.entry.v2}/infer", body, headers)

    attributes, data = _answered(mode, response)
    assert response.status == 200
    assert data == server.entry.v2_response("1")
    assert attributes | {"id": "", "time": ""} == _attributes(server)


@pytest.mark.parametrize("path", ["{v1}:predict", "{v2}/infer"])
def test_refuses_a_binary_event_whose_data_is_no_json(server: "RunningServer", path: str) -> None:
    path = path.format(v1=server.entry.v1, v2=server.entry.v2)
    headers = {**BINARY_EVENT, "Content-Type": "application/json"}

    response = server.request("POST", path, b"{", headers)

    assert (response.status, response.json()) == (
        400,
        {
            "error": "Failed to decode or parse binary json cloudevent: "
            "unexpected end of data: line 1 column 2 (char 1)"
        },
    )


def _input(server: "RunningServer", binary: bool) -> triton.InferInput:
    entry = server.entry.v2_request["inputs"][0]
    dtype = triton_to_np_dtype(entry["datatype"])
    array = np.array(entry["data"], dtype=dtype).reshape(entry["shape"])
    tensor = triton.InferInput(entry["name"], entry["shape"], entry["datatype"])
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def _event(mode: str, data: Any) -> tuple[dict[str, str], bytes]:
    if mode == "binary":
        return {**BINARY_EVENT, "Content-Type": "application/json"}, orjson.dumps(data)
    return STRUCTURED_TYPE, orjson.dumps({**EVENT, "data": data})


def _answered(mode: str, response: Any) -> tuple[dict[str, Any], Any]:
    if mode == "binary":
        attributes = {
            name.removeprefix("ce-"): value
            for name, value in response.headers.items()
            if name.startswith("ce-")
        }
        return attributes, response.json()
    event = response.json()
    return event, event.pop("data")


def _attributes(server: "RunningServer") -> dict[str, str]:
    return {
        "specversion": "1.0",
        "id": "",
        "source": f"io.kserve.inference.{server.entry.model_name}",
        "type": "io.kserve.inference.response",
        "time": "",
    }
