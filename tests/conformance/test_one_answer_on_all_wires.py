"""The same tensor comes back as it is over binary REST, JSON and gRPC, by Triton's clients."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from numpy.typing import NDArray
from tritonclient.utils import triton_to_np_dtype

if TYPE_CHECKING:
    from tests.conformance.servers import RunningServer

NUMBERS: dict[str, list[Any]] = {
    "BOOL": [True, False, True, True, False, False],
    "INT8": [-128, -1, 0, 1, 2, 127],
    "INT16": [-(2**15), -1, 0, 1, 2, 2**15 - 1],
    "INT32": [-(2**31), -1, 0, 1, 2, 2**31 - 1],
    "INT64": [-(2**63), -1, 0, 1, 2**53 + 1, 2**63 - 1],
    "UINT8": [0, 1, 2, 3, 4, 255],
    "UINT16": [0, 1, 2, 3, 4, 2**16 - 1],
    "UINT32": [0, 1, 2, 3, 4, 2**32 - 1],
    "UINT64": [0, 1, 2, 3, 2**63 + 1, 2**64 - 1],
    "FP16": [-65504, -0.0, 0.1, 1, 2, 65504],
    "FP32": [-3.4e38, -0.0, 0.1, 1, 2, 6.8],
    "FP64": [-1.7e308, -0.0, 0.1, 1, 2, 5e-324],
    "BYTES": [b"", b"a", b"a\0b", "\u00e9".encode(), b" \n", b'"'],
}
SHAPES = {"rows": [2, 3], "one axis": [6], "no rows": [0, 3], "scalar": []}

# What JSON does not carry: half precision, and text that is no UTF-8.
BINARY_ONLY = [
    ("FP16", NUMBERS["FP16"]),
    ("BYTES", [b"\xff", b"\xed\xa0\x80", b"\0", b"", b"", b""]),
]


def array_of(datatype: str, values: list[Any], shape: list[int]) -> NDArray[Any]:
    n_elements = int(np.prod(shape))
    return np.array(values[:n_elements], triton_to_np_dtype(datatype)).reshape(shape)


def over_rest(
    server: "RunningServer", datatype: str, array: NDArray[Any], *, binary: bool
) -> NDArray[Any]:
    tensor = http_client.InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    wanted = [http_client.InferRequestedOutput("x", binary_data=binary)]
    with http_client.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        result = client.infer("echo", [tensor], outputs=wanted)
        answer: NDArray[Any] = result.as_numpy("x")
    # As JSON, Triton's client gives text; what was sent is bytes.
    is_text = datatype == "BYTES" and not binary
    if is_text and answer.size:
        answer = np.vectorize(str.encode, otypes=[object])(answer)
    return answer


def over_grpc(server: "RunningServer", datatype: str, array: NDArray[Any]) -> NDArray[Any]:
    tensor = grpc_client.InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    with grpc_client.InferenceServerClient(f"127.0.0.1:{server.process.grpc_port}") as client:
        answer: NDArray[Any] = client.infer("echo", [tensor]).as_numpy("x")
    return answer


def contents(array: NDArray[Any]) -> tuple[Any, ...]:
    # By the text of the values: -0.0 differs from 0.0 in it.
    return str(array.dtype), array.shape, repr(array.tolist())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("datatype", [name for name in NUMBERS if name != "FP16"])
def test_a_tensor_is_the_same_on_every_wire(
    echo: "RunningServer", datatype: str, shape: list[int]
) -> None:
    sent = array_of(datatype, NUMBERS[datatype], shape)

    answers = [
        over_rest(echo, datatype, sent, binary=True),
        over_rest(echo, datatype, sent, binary=False),
        over_grpc(echo, datatype, sent),
    ]

    assert [contents(answer) for answer in answers] == [contents(sent)] * 3


@pytest.mark.parametrize(("datatype", "values"), BINARY_ONLY, ids=["FP16", "BYTES"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_what_json_cannot_carry_is_the_same_on_the_others(
    echo: "RunningServer", datatype: str, values: list[Any], shape: list[int]
) -> None:
    sent = array_of(datatype, values, shape)

    answers = [over_rest(echo, datatype, sent, binary=True), over_grpc(echo, datatype, sent)]

    assert [contents(answer) for answer in answers] == [contents(sent)] * 2
