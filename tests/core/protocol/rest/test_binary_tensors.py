"""Binary tensors over REST: a user's model, a `TensorModel`, Triton's client, and memory."""

from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from numpy.testing import assert_array_equal

from kserve import InferOutput, InferRequest, InferResponse, Model
from kserve.model import PredictOptions, TensorModel
from kserve.signature import Signature, Tensors, TensorSpec
from kserve.testing import ServerProcess, request, serving

HEADER = "Inference-Header-Content-Length"

ARRAYS = [
    pytest.param(np.array([[True, False]]), id="BOOL"),
    pytest.param(np.array([-128, 127], dtype=np.int8), id="INT8"),
    pytest.param(np.array([-(2**15), 2**15 - 1], dtype=np.int16), id="INT16"),
    pytest.param(np.array([-(2**31), 2**31 - 1], dtype=np.int32), id="INT32"),
    pytest.param(np.array([-(2**63), 2**63 - 1], dtype=np.int64), id="INT64"),
    pytest.param(np.array([0, 255], dtype=np.uint8), id="UINT8"),
    pytest.param(np.array([0, 2**16 - 1], dtype=np.uint16), id="UINT16"),
    pytest.param(np.array([0, 2**32 - 1], dtype=np.uint32), id="UINT32"),
    pytest.param(np.array([0, 2**64 - 1], dtype=np.uint64), id="UINT64"),
    pytest.param(np.array([[1.5], [np.nan]], dtype=np.float16), id="FP16"),
    pytest.param(np.array([[6.8], [-np.inf]], dtype=np.float32), id="FP32"),
    pytest.param(np.array([[np.nan, 5e-324]], dtype=np.float64), id="FP64"),
    pytest.param(np.array([["a"], ["ü"]], dtype=np.object_), id="text"),
    pytest.param(np.array([b"\x00", b"\xff\x00", b""], dtype=np.object_), id="BYTES"),
    pytest.param(np.array(5, dtype=np.int64), id="scalar"),
    pytest.param(np.array(b"a", dtype=np.object_), id="BYTES scalar"),
    pytest.param(np.zeros((0, 3), dtype=np.float32), id="axis of 0"),
    pytest.param(np.zeros((2, 0), dtype=np.object_), id="BYTES with an axis of 0"),
    pytest.param(np.arange(60_000, dtype=np.float64).reshape(3, -1), id="large"),
]


class Echo(TensorModel):
    """Gives its tensors back."""

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        return tensors


class RowSum(TensorModel):
    """Has one input of a known shape."""

    def load(self) -> bool:
        self.signature = Signature(inputs=(TensorSpec("x", "FP32", (-1, 2)),))
        self.ready = True
        return self.ready

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        return {"sum": tensors["x"].sum(axis=1)}


class UserEcho(Model):
    """A user's model: says nothing of how its outputs are to be sent."""

    def predict(self, payload: InferRequest, headers: Any = None) -> InferResponse:  # type: ignore[override]
        outputs = []
        for tensor in payload.inputs:
            array = tensor.as_numpy()
            output = InferOutput(tensor.name, list(array.shape), tensor.datatype)
            output.set_data_from_numpy(array)
            outputs.append(output)
        return InferResponse(payload.id, self.name, outputs)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving([Echo("echo"), UserEcho("user"), RowSum("sum")]) as port:
        yield port


@pytest.fixture(scope="module")
def client(port: int) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("model", ["echo", "user"])
@pytest.mark.parametrize("array", ARRAYS)
def test_tritonclient_gets_its_own_array_back(
    client: triton.InferenceServerClient, model: str, array: Any, compression: str | None
) -> None:
    result = client.infer(
        model,
        [_tensor("x", array)],
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )

    expected = array
    if array.dtype == np.object_:
        encoded = [e.encode() if isinstance(e, str) else e for e in array.reshape(-1)]
        expected = np.array(encoded, dtype=np.object_).reshape(array.shape)
    got = result.as_numpy("x")
    assert_array_equal(got.reshape(array.shape), expected)
    assert result.get_output("x")["shape"] == list(array.shape)
    assert "data" not in result.get_output("x")


@pytest.mark.parametrize(
    ("binary_in", "binary_out"),
    [
        pytest.param(True, False, id="binary in"),
        pytest.param(False, True, id="binary out"),
        pytest.param(True, True, id="both"),
        pytest.param(False, False, id="neither"),
    ],
)
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("model", ["echo", "user"])
def test_inputs_and_outputs_take_their_forms_independently(
    client: triton.InferenceServerClient,
    model: str,
    binary_in: bool,
    binary_out: bool,
    compression: str | None,
) -> None:
    array = np.arange(2_000, dtype=np.int32)
    tensor = _tensor("x", array, binary=binary_in)
    output = triton.InferRequestedOutput("x", binary_data=binary_out)

    result = client.infer(
        model,
        [tensor],
        outputs=[output],
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )

    assert_array_equal(result.as_numpy("x"), array)
    assert ("data" in result.get_output("x")) is not binary_out


def test_mixed_inputs_and_outputs(client: triton.InferenceServerClient) -> None:
    half = np.array([1.5, np.inf], dtype=np.float16)
    number = np.array([2**53 + 1], dtype=np.int64)
    inputs = [_tensor("a", half), _tensor("b", number, binary=False)]
    outputs = [
        triton.InferRequestedOutput("b", binary_data=False),
        triton.InferRequestedOutput("a", binary_data=True),
    ]

    result = client.infer("echo", inputs, outputs=outputs, request_id="7")

    assert result.get_response() == {
        "id": "7",
        "model_name": "echo",
        "model_version": None,
        "outputs": [
            {"name": "b", "shape": [1], "datatype": "INT64", "data": [2**53 + 1]},
            {
                "name": "a",
                "shape": [2],
                "datatype": "FP16",
                "parameters": {"binary_data_size": 4},
            },
        ],
    }
    assert_array_equal(result.as_numpy("a"), half)


@pytest.mark.parametrize("chunk_bytes", [None, 7, 101])
@pytest.mark.parametrize("model", ["echo", "user"])
def test_the_body_byte_by_byte(port: int, model: str, chunk_bytes: int | None) -> None:
    head = (
        b'{"id":"123","parameters":{"binary_data_output":true},"inputs":[{"name":"x","shape":[2],'
        b'"datatype":"UINT16","parameters":{"binary_data_size":4}}]}'
    )

    response = request(
        port,
        "POST",
        f"/v2/models/{model}/infer",
        head + b"\x01\x00\x02\x01",
        {HEADER: str(len(head)), "Content-Type": "application/octet-stream"},
        chunk_bytes=chunk_bytes,
    )

    expected = (
        b'{"id":"123","model_name":"%s","model_version":null,"outputs":[{"name":"x","shape":[2],'
        b'"datatype":"UINT16","parameters":{"binary_data_size":4}}]}' % model.encode()
    )
    assert (response.status, response.body) == (200, expected + b"\x01\x00\x02\x01")
    assert response.headers[HEADER.lower()] == str(len(expected))
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-length"] == str(len(expected) + 4)


class Layout(TensorModel):
    """Tells how its input lies in memory."""

    def predict_tensors(self, tensors: Tensors, options: PredictOptions) -> Tensors:
        array = tensors["x"]
        return {"owns_data, is_aligned": np.array([array.flags.owndata, array.flags.aligned])}


@pytest.mark.parametrize("chunk_bytes", [None, 1_000])
@pytest.mark.parametrize("padding", range(8))
def test_an_input_is_not_copied_wherever_the_json_part_ends(
    padding: int, chunk_bytes: int | None
) -> None:
    entry = {
        "name": "x",
        "shape": [1_000],
        "datatype": "FP64",
        "parameters": {"binary_data_size": 8_000},
    }
    head = orjson.dumps({"inputs": [entry]}) + b" " * padding

    with serving(Layout("m")) as port:
        response = request(
            port,
            "POST",
            "/v2/models/m/infer",
            head + bytes(8_000),
            {HEADER: str(len(head))},
            chunk_bytes=chunk_bytes,
        )

    assert response.json()["outputs"][0]["data"] == [False, True]


@pytest.mark.parametrize("chunk_bytes", [None, 3])
def test_a_raw_body_is_the_only_input(port: int, chunk_bytes: int | None) -> None:
    body = np.array([[1, 2], [3, 4]], dtype="<f4").tobytes()

    response = request(
        port, "POST", "/v2/models/sum/infer", body, {HEADER: "0"}, chunk_bytes=chunk_bytes
    )

    json_length = int(response.headers[HEADER.lower()])
    assert response.status == 200
    assert orjson.loads(response.body[:json_length])["outputs"] == [
        {
            "name": "sum",
            "shape": [2],
            "datatype": "FP32",
            "parameters": {"binary_data_size": 8},
        }
    ]
    assert np.frombuffer(response.body[json_length:], "<f4").tolist() == [3.0, 7.0]


@pytest.mark.parametrize(
    ("value", "body", "message"),
    [
        pytest.param("x", b"{}", f"{HEADER}: expected a number of bytes, got 'x'", id="no number"),
        pytest.param("-1", b"{}", f"{HEADER}: expected a number of bytes, got '-1'", id="negative"),
        pytest.param(
            "3",
            b"{}",
            f"{HEADER}: expected at most 2, the bytes of the body, got 3",
            id="beyond the body",
        ),
        pytest.param(
            "0",
            b"{}",
            f"{HEADER}: 0 says that the body is the only input, the model's metadata has 0 inputs",
            id="raw without a signature",
        ),
        pytest.param(
            "2", b"{}abc", "expected 'inputs', a list of at least one input", id="no request"
        ),
    ],
)
def test_refuses_a_header_that_disagrees_with_the_body(
    port: int, value: str, body: bytes, message: str
) -> None:
    response = request(port, "POST", "/v2/models/echo/infer", body, {HEADER: value})

    assert (response.status, response.json()) == (400, {"error": message})


def test_refuses_binary_data_without_the_header(port: int) -> None:
    entry = {
        "name": "x",
        "shape": [1],
        "datatype": "INT8",
        "parameters": {"binary_data_size": 1},
    }

    response = request(port, "POST", "/v2/models/echo/infer", {"inputs": [entry]})

    assert response.status == 400
    assert HEADER in response.json()["error"]


def test_a_client_that_goes_away_leaves_the_server_well(port: int) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("POST", "/v2/models/echo/infer")
    connection.putheader(HEADER, "5")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"{")
    connection.close()

    assert request(port, "GET", "/v2/health/live").status == 200


def test_headers_of_a_model_do_not_contradict_the_body() -> None:
    class Copies(Model):
        def predict(  # type: ignore[override]
            self, payload: InferRequest, headers: Any = None, response_headers: Any = None
        ) -> InferResponse:
            response_headers.update(
                {"Inference-Header-Content-Length": "1", "Content-Type": "text/plain", "x-a": "1"}
            )
            output = InferOutput("y", [1], "INT8", np.array([1], np.int8))
            return InferResponse("1", self.name, [output], use_binary_outputs=True)

    with serving(Copies("m", return_response_headers=True)) as port:
        body = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}]}
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/v2/models/m/infer", orjson.dumps(body))
        response = connection.getresponse()
        length = len(response.read()) - 1
        connection.close()

    assert response.headers.get_all(HEADER) == [str(length)]
    assert response.headers.get_all("content-type") == ["application/octet-stream"]
    assert response.headers["x-a"] == "1"


def test_the_server_names_the_extension(client: triton.InferenceServerClient) -> None:
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]


MEMORY_SCRIPT = """
import re
from kserve import ModelServer
from kserve.model import TensorModel

class Echo(TensorModel):
    def load(self):
        self.ready = True
        return True

    def predict_tensors(self, tensors, options):
        if "peak" in tensors:
            status = open("/proc/self/status").read()
            import numpy as np
            return {"peak": np.array([int(re.search(r"VmHWM:\\\\s+(\\\\d+)", status)[1]) * 1024])}
        return tensors

if __name__ == "__main__":
    ModelServer().start([Echo("echo")])
"""


@pytest.mark.timeout(90)
def test_a_large_tensor_takes_less_than_four_times_its_size(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(MEMORY_SCRIPT.replace("\\\\", "\\"))
    array = np.random.default_rng(0).random(5_000_000)
    ask = _tensor("peak", np.zeros(1, dtype=np.int64))

    with (
        ServerProcess(str(script)) as server,
        triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
    ):
        before = int(client.infer("echo", [ask]).as_numpy("peak")[0])
        results = [client.infer("echo", [_tensor("x", array)]) for _ in range(2)]
        after = int(client.infer("echo", [ask]).as_numpy("peak")[0])

    assert all(np.array_equal(result.as_numpy("x"), array) for result in results)
    assert after - before < 4 * array.nbytes


def _tensor(name: str, array: Any, *, binary: bool = True) -> triton.InferInput:
    datatype = triton.np_to_triton_dtype(array.dtype)
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor
