"""V2 bodies with tensors in binary form, byte by byte."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from kserve.errors import InferenceError, InvalidInput
from kserve.protocol.codec import v2_binary
from kserve.protocol.codec.dtypes import NUMPY_DTYPES
from kserve.protocol.infer_type import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    RequestedOutput,
)
from kserve.signature import TensorSpec

INT16_HEAD = (
    b'{"inputs":[{"name":"x","shape":[2],"datatype":"INT16","parameters":{"binary_data_size":4}}]}'
)
BYTES_HEAD = (
    b'{"inputs":[{"name":"x","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":%d}}]}'
)

# datatype, shape, the bytes by hand, the values
TENSORS = [
    pytest.param("BOOL", [3], b"\x01\x00\x01", [True, False, True], id="BOOL"),
    pytest.param("INT8", [2], b"\x80\x7f", [-128, 127], id="INT8"),
    pytest.param("INT16", [2], b"\x00\x80\xff\x7f", [-(2**15), 2**15 - 1], id="INT16"),
    pytest.param("INT32", [1], b"\x00\x00\x00\x80", [-(2**31)], id="INT32"),
    pytest.param("INT64", [1], b"\x01" + b"\x00" * 6 + b"\x80", [-(2**63) + 1], id="INT64"),
    pytest.param("UINT8", [1, 2], b"\x00\xff", [[0, 255]], id="UINT8"),
    pytest.param("UINT16", [1], b"\xff\xff", [2**16 - 1], id="UINT16"),
    pytest.param("UINT32", [1], b"\xff\xff\xff\xff", [2**32 - 1], id="UINT32"),
    pytest.param("UINT64", [1], b"\xff" * 8, [2**64 - 1], id="UINT64"),
    pytest.param("FP16", [2], b"\x00\x3c\x00\x7e", [1.0, np.nan], id="FP16"),
    pytest.param("FP32", [2], b"\x00\x00\x80\x3f\x00\x00\x80\x7f", [1.0, np.inf], id="FP32"),
    pytest.param("FP64", [1], b"\x00" * 6 + b"\xf0\xff", [-np.inf], id="FP64"),
    pytest.param(
        "BYTES", [2], b"\x02\x00\x00\x00\x00\xff\x00\x00\x00\x00", [b"\x00\xff", b""], id="BYTES"
    ),
    pytest.param("FP32", [], b"\x00\x00\x80\x3f", 1.0, id="scalar"),
    pytest.param("BYTES", [], b"\x01\x00\x00\x00a", b"a", id="BYTES scalar"),
    pytest.param("FP32", [0, 3], b"", [], id="axis of 0"),
    pytest.param("BYTES", [2, 0], b"", [], id="BYTES with an axis of 0"),
]


@pytest.mark.parametrize(("datatype", "shape", "raw", "values"), TENSORS)
def test_reads_a_tensor_of_each_datatype(
    datatype: str, shape: list[int], raw: bytes, values: Any
) -> None:
    head = orjson.dumps({"inputs": [_entry("x", shape, datatype, len(raw))]})

    request = v2_binary.decode(head + raw, len(head), "m")

    array = request.inputs[0].as_numpy()
    dtype = array.dtype
    assert_array_equal(array, np.array(values, dtype=dtype).reshape(shape))
    assert (array.shape, request.inputs[0].datatype) == (tuple(shape), datatype)


@pytest.mark.parametrize(("datatype", "shape", "raw", "values"), TENSORS)
def test_writes_a_tensor_of_each_datatype(
    datatype: str, shape: list[int], raw: bytes, values: Any
) -> None:
    dtype = np.object_ if datatype == "BYTES" else NUMPY_DTYPES[datatype]
    array = np.array(values, dtype=dtype).reshape(shape)
    output = InferOutput.from_array("y", shape, datatype, array)
    response = InferResponse("1", "m", [output], use_binary_outputs=True)

    encoded = v2_binary.encode(response, _request())

    assert encoded is not None
    head = orjson.dumps(
        {
            "id": "1",
            "model_name": "m",
            "model_version": None,
            "outputs": [_entry("y", shape, datatype, len(raw))],
        }
    )
    assert b"".join(encoded.parts) == head + raw
    assert (encoded.json_length, encoded.n_nulled) == (len(head), 0)


@pytest.mark.parametrize("json_length", [96, 97, 111])
def test_a_numeric_tensor_is_a_view_of_the_body(json_length: int) -> None:
    head = INT16_HEAD.ljust(json_length)
    padding = -len(head) % 2
    body = memoryview(bytes(padding) + head + b"\x01\x00\x02\x00")[padding:]

    request = v2_binary.decode(body, len(head), "m")

    array = request.inputs[0].as_numpy()
    assert np.shares_memory(array, np.frombuffer(body, np.uint8))
    assert (array.tolist(), array.flags.writeable) == ([1, 2], False)


def test_reads_json_and_binary_inputs_in_their_order() -> None:
    head = orjson.dumps(
        {
            "id": "7",
            "parameters": {"binary_data_output": True, "k": 3},
            "inputs": [
                _entry("a", [1], "INT8", 1),
                {"name": "b", "shape": [2], "datatype": "FP64", "data": [0.5, 1.5]},
                _entry("c", [1], "UINT8", 1),
            ],
            "outputs": [{"name": "y", "parameters": {"binary_data": False}}, {"name": "z"}],
        }
    )

    request = v2_binary.decode(head + b"\xff\xff", len(head), "m")

    assert [(t.name, t.as_numpy().tolist()) for t in request.inputs] == [
        ("a", [-1]),
        ("b", [0.5, 1.5]),
        ("c", [255]),
    ]
    assert (request.id, request.model_name, request.use_binary_outputs) == ("7", "m", True)
    assert request.request_outputs == [
        RequestedOutput("y", {"binary_data": False}),
        RequestedOutput("z"),
    ]


def test_reads_a_large_json_input_beside_a_binary_one() -> None:
    values = [[i + 0.5, i + 0.25] for i in range(2_000)]
    head = orjson.dumps(
        {
            "inputs": [
                {"name": "j", "shape": [2_000, 2], "datatype": "FP64", "data": values},
                _entry("b", [1], "INT8", 1),
            ]
        }
    )

    request = v2_binary.decode(head + b"\x05", len(head), "m")

    assert [t.as_numpy().tolist() for t in request.inputs] == [values, [5]]


@pytest.mark.parametrize(
    ("head", "tail", "message"),
    [
        pytest.param(
            INT16_HEAD,
            b"\x01\x00\x02",
            "input 'x': expected 4 bytes of binary data, got 3",
            id="too few bytes",
        ),
        pytest.param(
            INT16_HEAD,
            b"\x01\x00\x02\x00\x03",
            "expected 4 bytes of binary data after the JSON part, got 5",
            id="bytes left over",
        ),
        pytest.param(
            INT16_HEAD.replace(b"[2]", b"[3]"),
            b"\x01\x00\x02\x00",
            "input 'x': expected 6 bytes of binary data for INT16 of shape [3], got 4",
            id="size disagrees with shape",
        ),
        pytest.param(
            INT16_HEAD.replace(b"INT16", b"INT32"),
            b"\x01\x00\x02\x00",
            "input 'x': expected 8 bytes of binary data for INT32 of shape [2], got 4",
            id="size disagrees with datatype",
        ),
        pytest.param(
            INT16_HEAD.replace(b":4}", b":-4}"),
            b"",
            "input 'x': expected 'binary_data_size' to be a number of bytes, got -4",
            id="negative size",
        ),
        pytest.param(
            INT16_HEAD.replace(b":4}", b":true}"),
            b"\x01",
            "input 'x': expected 'binary_data_size' to be a number of bytes, got True",
            id="size is no number",
        ),
        pytest.param(
            INT16_HEAD.replace(b"}]}", b',"data":[1,2]}]}'),
            b"\x01\x00\x02\x00",
            "input 'x': expected 'data' or 'binary_data_size', got both",
            id="both forms",
        ),
        pytest.param(
            INT16_HEAD.replace(b',"parameters":{"binary_data_size":4}', b""),
            b"",
            "input 'x': 'data' is missing",
            id="neither form",
        ),
        pytest.param(
            INT16_HEAD.replace(b"INT16", b"BOOL").replace(b":4}", b":2}"),
            b"\x01\x02",
            "input 'x': expected BOOL bytes of 0 or 1",
            id="BOOL of 2",
        ),
        pytest.param(
            b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP16","data":[1]}]}',
            b"",
            "input 'x': Receiving FP16 data via JSON is not supported, use the binary data format",
            id="FP16 as JSON",
        ),
        pytest.param(
            BYTES_HEAD % 6,
            b"\x01\x00\x00\x00aa",
            "input 'x': BYTES data is truncated: expected a 4-byte length at byte 5, got 1 bytes",
            id="BYTES end in a length",
        ),
        pytest.param(
            BYTES_HEAD % 6,
            b"\x03\x00\x00\x00ab",
            "input 'x': BYTES data is truncated: element 0 has a length of 3 bytes, got 2 bytes",
            id="BYTES end in an element",
        ),
        pytest.param(
            BYTES_HEAD % 5,
            b"\x01\x00\x00\x00a",
            "input 'x': expected as many elements as shape [2] holds, got 1",
            id="fewer BYTES than the shape says",
        ),
        pytest.param(
            INT16_HEAD[:-1],
            b"",
            "Unrecognized request format: unexpected end of data: line 1 column 92 (char 91)",
            id="JSON part cut",
        ),
    ],
)
def test_refuses_a_body_that_disagrees_with_itself(head: bytes, tail: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        v2_binary.decode(head + tail, len(head), "m")

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "got"),
    [
        pytest.param(b"-1", "'-1'", id="negative"),
        pytest.param(b"x", "'x'", id="no number"),
        pytest.param(b"", "''", id="empty"),
        pytest.param(b"1_0", "'1_0'", id="underscore"),
        pytest.param(b"1.5", "'1.5'", id="fraction"),
        pytest.param(b"+5", "'+5'", id="sign"),
        pytest.param(b"\xb2", "'\u00b2'", id="superscript"),
        pytest.param(b"9" * 5_000, "'" + "9" * 64 + "'", id="thousands of digits"),
    ],
)
def test_refuses_a_length_that_is_no_number(value: bytes, got: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        v2_binary.read_json_length(value)

    expected = f"Inference-Header-Content-Length: expected a number of bytes, got {got}"
    assert str(caught.value) == expected


def test_reads_a_length() -> None:
    assert [v2_binary.read_json_length(v) for v in (b"0", b"007", b"345")] == [0, 7, 345]


def test_refuses_a_length_beyond_the_body() -> None:
    with pytest.raises(InvalidInput) as caught:
        v2_binary.decode(b"{}", 3, "m")

    assert str(caught.value) == (
        "Inference-Header-Content-Length: expected at most 2, the bytes of the body, got 3"
    )


@pytest.mark.parametrize(
    ("shape", "datatype", "body", "expected"),
    [
        pytest.param((-1, 2), "INT8", b"\x01\x02\x03\x04", [[1, 2], [3, 4]], id="rows"),
        pytest.param((2, -1), "INT8", b"\x01\x02\x03\x04", [[1, 2], [3, 4]], id="any columns"),
        pytest.param((2,), "INT16", b"\x01\x00\x02\x00", [1, 2], id="fixed"),
        pytest.param((-1, 2), "INT8", b"", [], id="no rows"),
        pytest.param((-1,), "BYTES", b"\x00\xff", [b"\x00\xff"], id="BYTES"),
        pytest.param((1,), "BYTES", b"", [b""], id="empty BYTES"),
    ],
)
def test_a_raw_body_is_the_only_input(
    shape: tuple[int, ...], datatype: str, body: bytes, expected: list[Any]
) -> None:
    request = v2_binary.decode_raw(body, "m", [TensorSpec("x", datatype, shape)])

    assert [(t.name, t.datatype) for t in request.inputs] == [("x", datatype)]
    assert request.inputs[0].as_numpy().tolist() == expected
    assert request.use_binary_outputs


@pytest.mark.parametrize(
    ("specs", "body", "message"),
    [
        pytest.param(
            [],
            b"",
            "Inference-Header-Content-Length: 0 says that the body is the only input, the model's "
            "metadata has 0 inputs",
            id="metadata without inputs",
        ),
        pytest.param(
            [TensorSpec("a", "FP32", (1,)), TensorSpec("b", "FP32", (1,))],
            b"",
            "Inference-Header-Content-Length: 0 says that the body is the only input, the model's "
            "metadata has 2 inputs",
            id="two inputs",
        ),
        pytest.param(
            [TensorSpec("a", "FP32", (-1, -1))],
            b"",
            "input 'a': FP32 of shape [-1, -1] does not follow from a number of bytes, send its "
            "shape in a JSON part",
            id="two axes of any length",
        ),
        pytest.param(
            [TensorSpec("a", "BYTES", (2,))],
            b"",
            "input 'a': BYTES of shape [2] does not follow from a number of bytes, send its shape "
            "in a JSON part",
            id="two BYTES",
        ),
        pytest.param(
            [TensorSpec("a", "FP32", (-1, 2))],
            b"\x00" * 12,
            "input 'a': expected a multiple of 8 bytes for FP32 of shape [-1, 2], got 12",
            id="half a row",
        ),
        pytest.param(
            [TensorSpec("a", "FP32", (2,))],
            b"\x00" * 16,
            "input 'a': expected 8 bytes of binary data for FP32 of shape [2], got 16",
            id="more than a fixed shape holds",
        ),
        pytest.param(
            [TensorSpec("a", "FP32", (0,))],
            b"\x00",
            "input 'a': expected a multiple of 0 bytes for FP32 of shape [0], got 1",
            id="more than nothing",
        ),
    ],
)
def test_refuses_a_raw_body_that_does_not_tell_the_input(
    specs: list[TensorSpec], body: bytes, message: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        v2_binary.decode_raw(body, "m", specs)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("parameters", "asked", "binary"),
    [
        pytest.param(None, None, [], id="nothing said"),
        pytest.param({"binary_data_output": True}, None, ["a", "b"], id="all"),
        pytest.param({"binary_data_output": False}, None, [], id="none"),
        pytest.param(None, {"a": True, "b": None}, ["a"], id="one"),
        pytest.param({"binary_data_output": True}, {"a": False, "b": None}, ["b"], id="not one"),
        pytest.param({"binary_data_output": False}, {"b": True}, ["b"], id="one against all"),
    ],
)
@pytest.mark.parametrize("tells_itself", [True, False], ids=["own response", "plain response"])
def test_what_is_said_of_an_output_wins_over_what_is_said_of_all(
    parameters: dict[str, Any] | None,
    asked: dict[str, bool | None] | None,
    binary: list[str],
    tells_itself: bool,
) -> None:
    requested = asked and [
        RequestedOutput(name, None if flag is None else {"binary_data": flag})
        for name, flag in asked.items()
    ]
    request = _request(parameters, requested or None)
    outputs = [InferOutput(name, [1], "INT8", [1]) for name in ("a", "b")]
    response = InferResponse("1", "m", outputs)
    if tells_itself:
        response = InferResponse(
            "1",
            "m",
            outputs,
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )

    encoded = v2_binary.encode(response, request)

    entries = orjson.loads(encoded.parts[0])["outputs"] if encoded else []
    assert [entry["name"] for entry in entries if "data" not in entry] == binary


def test_a_model_may_ask_for_binary_outputs_itself() -> None:
    response = InferResponse("1", "m", [InferOutput("y", [1], "INT8", [1])])
    response._use_binary_outputs = True

    encoded = v2_binary.encode(response, _request())

    assert encoded is not None
    assert encoded.parts[1] == b"\x01"


def test_writes_mixed_outputs_as_upstream_does() -> None:
    outputs = [
        InferOutput("a", [2], "FP32", np.array([6.8, np.nan], np.float32)),
        InferOutput("b", [1, 2], "INT16", np.array([[1, 2]], np.int16), {"k": "v"}),
    ]
    response = InferResponse(
        "1",
        "m",
        outputs,
        parameters={"p": 1},
        requested_outputs=[
            RequestedOutput("a"),
            RequestedOutput("b", {"binary_data": True}),
        ],
    )

    encoded = v2_binary.encode(response, _request())

    assert encoded is not None
    assert encoded.parts == [
        b'{"id":"1","model_name":"m","model_version":null,"outputs":['
        b'{"name":"a","shape":[2],"datatype":"FP32","data":[6.800000190734863,null]},'
        b'{"name":"b","shape":[1,2],"datatype":"INT16",'
        b'"parameters":{"k":"v","binary_data_size":4}}],"parameters":{"p":1}}',
        b"\x01\x00\x02\x00",
    ]
    assert encoded.n_nulled == 1


def test_refuses_an_fp16_output_that_is_not_asked_for_in_binary_form() -> None:
    outputs = [
        InferOutput("a", [1], "FP16", np.array([1], np.float16)),
        InferOutput("b", [1], "INT8", np.array([1], np.int8)),
    ]
    request = _request(None, [RequestedOutput("a"), RequestedOutput("b", {"binary_data": True})])

    with pytest.raises(InvalidInput, match="Sending FP16 data via JSON is not supported"):
        v2_binary.encode(InferResponse("1", "m", outputs), request)


def test_a_parameter_that_is_no_json_is_the_models_mistake() -> None:
    response = InferResponse(
        "1",
        "m",
        [InferOutput("y", [1], "INT8", [1])],
        parameters={"p": object()},
        use_binary_outputs=True,
    )

    with pytest.raises(InferenceError, match="the response cannot be written as JSON"):
        v2_binary.encode(response, _request())


def test_flags_are_booleans_or_refused() -> None:
    head = INT16_HEAD.replace(b'{"inputs"', b'{"parameters":{"binary_data_output":1},"inputs"')

    with pytest.raises(InvalidInput) as caught:
        v2_binary.decode(head + b"\x00" * 4, len(head), "m")

    assert str(caught.value) == (
        "the request: expected parameter 'binary_data_output' to be a boolean, got 1"
    )


@given(head=st.binary(max_size=200), tail=st.binary(max_size=40), cut=st.integers(-5, 5))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_any_bytes_give_a_request_or_invalid_input(head: bytes, tail: bytes, cut: int) -> None:
    body = head + tail

    _decode_or_refuse(body, max(len(head) + cut, 0))


@given(
    shape=st.lists(st.integers(-1, 5), max_size=3),
    datatype=st.sampled_from([*NUMPY_DTYPES, "fp32", "INT4", ""]),
    size=st.one_of(st.integers(-2, 40), st.booleans(), st.none()),
    tail=st.binary(max_size=40),
    json_data=st.one_of(st.none(), st.lists(st.one_of(st.integers(0, 9), st.text()), max_size=4)),
)
@settings(derandomize=True, max_examples=300, deadline=None)
def test_any_description_gives_a_request_or_invalid_input(
    shape: list[int], datatype: str, size: Any, tail: bytes, json_data: list[Any] | None
) -> None:
    entry: dict[str, Any] = {"name": "x", "shape": shape, "datatype": datatype}
    if size is not None:
        entry["parameters"] = {"binary_data_size": size}
    if json_data is not None:
        entry["data"] = json_data
    head = orjson.dumps({"inputs": [entry]})

    _decode_or_refuse(head + tail, len(head))


@given(
    elements=st.lists(st.binary(max_size=9), max_size=6),
    numbers=st.lists(st.floats(width=32), max_size=6),
)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_reads_what_an_independent_encoder_wrote(
    elements: list[bytes], numbers: list[float]
) -> None:
    texts = b"".join(struct.pack("<I", len(element)) + element for element in elements)
    floats = struct.pack(f"<{len(numbers)}f", *numbers)
    head = orjson.dumps(
        {
            "inputs": [
                _entry("t", [len(elements)], "BYTES", len(texts)),
                _entry("f", [len(numbers)], "FP32", len(floats)),
            ]
        }
    )

    request = v2_binary.decode(head + texts + floats, len(head), "m")

    assert request.inputs[0].as_numpy().tolist() == elements
    assert_array_equal(request.inputs[1].as_numpy(), np.array(numbers, np.float32))


def _decode_or_refuse(body: bytes, json_length: int) -> None:
    try:
        request = v2_binary.decode(body, json_length, "m")
    except InvalidInput:
        return
    assert all(tensor.as_numpy().shape == tuple(tensor.shape) for tensor in request.inputs)


def _entry(name: str, shape: Sequence[int], datatype: str, size: int) -> dict[str, Any]:
    return {
        "name": name,
        "shape": shape,
        "datatype": datatype,
        "parameters": {"binary_data_size": size},
    }


def _request(
    parameters: dict[str, Any] | None = None, outputs: list[RequestedOutput] | None = None
) -> InferRequest:
    tensor = InferInput("x", [1], "INT8", [1])
    return InferRequest("m", [tensor], parameters=parameters, request_outputs=outputs)
