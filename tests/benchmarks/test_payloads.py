import numpy as np
import pytest
from benchmarks import payloads

from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

ROWS = np.array([[1.5, -2.0]], dtype=np.float32)


def test_a_v1_request_holds_rows() -> None:
    assert payloads.v1_json("m", ROWS).wire == (
        b"POST /v1/models/m:predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Content-Type: application/json\r\nContent-Length: 26\r\n\r\n"
        b'{"instances":[[1.5,-2.0]]}'
    )


def test_a_v2_request_holds_a_tensor_and_the_outputs_that_are_asked_for() -> None:
    request = payloads.v2_json("m", ROWS, ["scores"])

    assert request.path == "/v2/models/m/infer"
    assert request.body == (
        b'{"inputs":[{"name":"input-0","shape":[1,2],"datatype":"FP32","data":[1.5,-2.0]}],'
        b'"outputs":[{"name":"scores"}]}'
    )


def test_a_binary_request_has_its_tensor_behind_the_json_part() -> None:
    request = payloads.v2_binary("m", ROWS)

    length = int(request.headers["Inference-Header-Content-Length"])
    assert request.body[:length] == (
        b'{"inputs":[{"name":"input-0","shape":[1,2],"datatype":"FP32",'
        b'"parameters":{"binary_data_size":8}}],"parameters":{"binary_data_output":true}}'
    )
    assert request.body[length:] == b"\x00\x00\xc0\x3f\x00\x00\x00\xc0"


def test_a_grpc_request_is_raw_or_typed() -> None:
    raw = payloads.grpc_raw("m", ROWS)
    typed = payloads.grpc_typed("m", ROWS.astype(np.float64))

    assert (raw.inputs[0].datatype, list(raw.inputs[0].shape)) == ("FP32", [1, 2])
    assert list(raw.raw_input_contents) == [b"\x00\x00\xc0\x3f\x00\x00\x00\xc0"]
    assert typed.inputs[0].datatype == "FP64"
    assert list(typed.inputs[0].contents.fp64_contents) == [1.5, -2.0]


@pytest.mark.parametrize(
    ("body", "json_length"),
    [
        pytest.param(
            b'{"outputs":[{"name":"output-0","shape":[2],"datatype":"INT64","data":[1,2]}]}',
            None,
            id="as JSON",
        ),
        pytest.param(
            b'{"outputs":[{"name":"output-0","shape":[2],"datatype":"INT64"}]}'
            b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0",
            64,
            id="in binary form",
        ),
    ],
)
def test_reads_an_output_over_rest(body: bytes, json_length: int | None) -> None:
    assert payloads.v2_output(body, json_length).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("raw", "values"),
    [
        pytest.param([b"\x01\0\0\0\0\0\0\0"], [], id="raw"),
        pytest.param([], [1], id="typed"),
    ],
)
def test_reads_an_output_over_grpc(raw: list[bytes], values: list[int]) -> None:
    output = {
        "name": "output-0",
        "datatype": "INT64",
        "shape": [1],
        "contents": {"int64_contents": values},
    }
    response = pb.ModelInferResponse(outputs=[output], raw_output_contents=raw)

    assert payloads.grpc_output(response).tolist() == [1]
