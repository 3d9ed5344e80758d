"""Requests and responses as messages, against messages written by hand and by protobuf."""

import struct
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as np_st

from kserve.errors import InferenceError, InvalidInput
from kserve.protocol.codec.dtypes import NUMPY_DTYPES
from kserve.protocol.grpc import codec
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.infer_type import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    RequestedOutput,
)

CODEC_SETTINGS = settings(derandomize=True, max_examples=100, deadline=None)

TYPED = [
    pytest.param("BOOL", "bool_contents", [True, False], id="BOOL"),
    pytest.param("INT8", "int_contents", [-128, 127], id="INT8"),
    pytest.param("INT16", "int_contents", [-(1 << 15), 1], id="INT16"),
    pytest.param("INT32", "int_contents", [-(1 << 31), (1 << 31) - 1], id="INT32"),
    pytest.param("INT64", "int64_contents", [-(1 << 63), (1 << 63) - 1], id="INT64"),
    pytest.param("UINT8", "uint_contents", [0, 255], id="UINT8"),
    pytest.param("UINT16", "uint_contents", [0, 65535], id="UINT16"),
    pytest.param("UINT32", "uint_contents", [0, (1 << 32) - 1], id="UINT32"),
    pytest.param("UINT64", "uint64_contents", [0, (1 << 64) - 1], id="UINT64"),
    pytest.param("FP32", "fp32_contents", [0.5, float("inf")], id="FP32"),
    pytest.param("FP64", "fp64_contents", [0.1, -1e300], id="FP64"),
    pytest.param("BYTES", "bytes_contents", [b"a\0b", b"\xff"], id="BYTES"),
]


def infer_request(*inputs: dict[str, Any], **fields: Any) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(model_name="m", inputs=inputs, **fields)


def tensor(datatype: str, shape: list[int], **fields: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": shape, **fields}


def output(datatype: str, values: Any) -> InferOutput:
    array = np.array(values, NUMPY_DTYPES[datatype])
    return InferOutput.from_array("y", list(array.shape), datatype, array)


@pytest.mark.parametrize(("datatype", "field", "values"), TYPED)
def test_reads_typed_contents(datatype: str, field: str, values: list[Any]) -> None:
    message = infer_request(tensor(datatype, [2, 1], contents={field: values}))

    request = InferRequest.from_grpc(message)

    array = request.inputs[0].as_numpy()
    assert (array.dtype, array.shape) == (NUMPY_DTYPES[datatype], (2, 1))
    assert array.ravel().tolist() == values
    assert (request.from_grpc, request.use_binary_outputs) == (True, False)


@pytest.mark.parametrize(("datatype", "field", "values"), TYPED)
def test_writes_typed_contents(datatype: str, field: str, values: list[Any]) -> None:
    response = InferResponse("7", "m", [output(datatype, values)])

    message = response.to_grpc()

    assert message == pb.ModelInferResponse(
        model_name="m",
        id="7",
        outputs=[
            {"name": "y", "datatype": datatype, "shape": [2], "contents": {field: values}},
        ],
    )
    # Equal messages need not be equal bytes: what was put together by hand has to be as protobuf's.
    assert pb.ModelInferResponse.FromString(message.SerializeToString()) == message


def test_reads_raw_contents_without_a_copy() -> None:
    raw = np.arange(4, dtype="<f4").tobytes()
    message = infer_request(tensor("FP32", [2, 2]))

    request = codec.decode_request(message, [raw])

    array = request.inputs[0].as_numpy()
    assert array.tolist() == [[0, 1], [2, 3]]
    assert array.__array_interface__["data"][0] == np.frombuffer(raw).__array_interface__["data"][0]
    assert request.use_binary_outputs


def test_reads_raw_bytes_and_fp16() -> None:
    elements = b"".join(struct.pack("<I", len(e)) + e for e in (b"a\0b", b"\xff", b""))
    message = infer_request(
        tensor("BYTES", [3]),
        {"name": "h", "datatype": "fp16", "shape": [1]},
        raw_input_contents=[elements, np.float16(1.5).tobytes()],
    )

    first, second = InferRequest.from_grpc(message).inputs

    assert first.as_numpy().tolist() == [b"a\0b", b"\xff", b""]
    assert (second.datatype, second.as_numpy().tolist()) == ("FP16", [1.5])


def test_reads_what_a_request_says_beside_its_tensors() -> None:
    message = infer_request(
        tensor(
            "FP32", [1], contents={"fp32_contents": [1]}, parameters={"unit": {"string_param": "m"}}
        ),
        id="7",
        model_version="2",
        parameters={
            "flag": {"bool_param": False},
            "n": {"int64_param": -1},
            "big": {"uint64_param": (1 << 64) - 1},
            "rate": {"double_param": 0.1},
            "text": {"string_param": "é"},
            "nothing": {},
        },
        outputs=[{"name": "y", "parameters": {"classification": {"int64_param": 3}}}],
    )

    request = InferRequest.from_grpc(message)

    assert (request.id, request.model_name, request.model_version) == ("7", "m", "2")
    assert request.parameters == {
        "flag": False,
        "n": -1,
        "big": (1 << 64) - 1,
        "rate": 0.1,
        "text": "é",
    }
    assert request.inputs[0].parameters == {"unit": "m"}
    assert request.request_outputs == [RequestedOutput("y", {"classification": 3})]


def test_what_a_request_does_not_say_is_none() -> None:
    request = InferRequest.from_grpc(infer_request())

    assert (request.id, request.model_version, request.request_outputs) == (None, None, None)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(
            infer_request(tensor("FP32", [3], contents={"fp32_contents": [1, 2]})),
            "input 'x': expected 3 elements in fp32_contents, got 2",
            id="fewer elements than the shape",
        ),
        pytest.param(
            infer_request(tensor("FP32", [1])),
            "input 'x': expected 1 elements in fp32_contents, got 0",
            id="no contents",
        ),
        pytest.param(
            infer_request(tensor("INT64", [1], contents={"int_contents": [1]})),
            "input 'x': expected INT64 data in int64_contents, got int_contents",
            id="another field",
        ),
        pytest.param(
            infer_request(tensor("INT8", [1], contents={"int_contents": [128]})),
            "input 'x': a value is not a whole number in the range of INT8",
            id="out of range",
        ),
        pytest.param(
            infer_request(tensor("FP16", [1], contents={"fp32_contents": [1]})),
            "input 'x': FP16 data travels in raw form only, got typed contents",
            id="typed FP16",
        ),
        pytest.param(
            infer_request(tensor("FLOAT", [1])),
            "input 'x': unknown datatype 'FLOAT', expected " + ", ".join(NUMPY_DTYPES),
            id="unknown datatype",
        ),
        pytest.param(
            infer_request(tensor("FP32", [-1, 2])),
            "input 'x': expected 'shape' as whole numbers from 0, got [-1, 2]",
            id="negative axis",
        ),
        pytest.param(
            infer_request(tensor("FP32", [0]), tensor("FP64", [0])),
            "input 'x': expected each name once, got it twice",
            id="name twice",
        ),
        pytest.param(
            infer_request(
                tensor("FP32", [1], contents={"fp32_contents": [1]}), raw_input_contents=[b"1234"]
            ),
            "input 'x': expected contents or raw_input_contents, got both",
            id="both forms",
        ),
        pytest.param(
            infer_request(tensor("FP32", [1]), raw_input_contents=[b"1234", b"5678"]),
            "expected 1 tensors in raw_input_contents, got 2",
            id="more raw tensors",
        ),
        pytest.param(
            infer_request(tensor("FP32", [2]), raw_input_contents=[b"1234"]),
            "input 'x': expected 8 bytes of binary data for FP32 of shape [2], got 4",
            id="raw data too short",
        ),
        pytest.param(
            infer_request(tensor("BYTES", [1]), raw_input_contents=[b"\x05\0\0\0abc"]),
            "input 'x': BYTES data is truncated: element 0 has a length of 5 bytes, got 3 bytes",
            id="truncated BYTES",
        ),
    ],
)
def test_refuses_a_wrong_request(message: pb.ModelInferRequest, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        InferRequest.from_grpc(message)

    assert str(caught.value) == reason


@pytest.mark.parametrize("n_elements", [0, 1, 127, 128, 20000])
def test_packed_contents_of_any_length_are_read_and_written(n_elements: int) -> None:
    array = np.arange(n_elements, dtype=np.float32)
    message = infer_request(tensor("FP32", [n_elements], contents={"fp32_contents": array}))

    read = InferRequest.from_grpc(message).inputs[0].as_numpy()
    written = InferResponse("", "m", [output("FP32", array)]).to_grpc().outputs[0].contents

    assert read.tolist() == array.tolist()
    assert written == message.inputs[0].contents


def test_fields_of_later_versions_do_not_disturb_typed_contents() -> None:
    contents = pb.InferTensorContents(fp64_contents=[1, 2])
    # Field 100, length-delimited, 16 bytes.
    contents.MergeFromString(b"\xa2\x06\x10" + bytes(16))
    message = infer_request(tensor("FP64", [2], contents=contents))

    assert InferRequest.from_grpc(message).inputs[0].as_numpy().tolist() == [1, 2]


def test_a_raw_request_is_answered_raw() -> None:
    request = codec.decode_request(infer_request(tensor("INT16", [1])), [b"\1\0"])
    outputs = [output("INT16", [1, -1]), InferOutput("t", [1], "BYTES", ["é"])]
    response = InferResponse(
        "7", "m", outputs, use_binary_outputs=request.use_binary_outputs, model_version="2"
    )

    message = response.to_grpc()

    assert message == pb.ModelInferResponse(
        model_name="m",
        model_version="2",
        id="7",
        outputs=[
            {
                "name": "y",
                "datatype": "INT16",
                "shape": [2],
                "parameters": {"binary_data_size": {"int64_param": 4}},
            },
            {
                "name": "t",
                "datatype": "BYTES",
                "shape": [1],
                "parameters": {"binary_data_size": {"int64_param": 6}},
            },
        ],
        raw_output_contents=[b"\1\0\xff\xff", b"\2\0\0\0\xc3\xa9"],
    )


def test_one_fp16_output_makes_all_of_them_raw() -> None:
    fp32 = InferOutput("f", [1], "FP32", [1.0])

    message = InferResponse("", "m", [fp32, output("FP16", [1.5])]).to_grpc()

    assert list(message.raw_output_contents) == [
        np.float32(1).tobytes(),
        np.float16(1.5).tobytes(),
    ]


def test_big_endian_and_strided_arrays_go_in_the_order_of_the_wire() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    response = InferResponse("", "m", [InferOutput("y", [3, 2], "INT32", array)])

    raw = codec.encode_response(response, as_raw=True)[1]
    typed = response.to_grpc().outputs[0].contents.int_contents

    assert [bytes(part) for part in raw] == [np.array([0, 3, 1, 4, 2, 5], "<i4").tobytes()]
    assert list(typed) == [0, 3, 1, 4, 2, 5]


def test_only_requested_outputs_go_in_their_order() -> None:
    outputs = [InferOutput(name, [0], "FP32", []) for name in ("a", "b", "c")]
    wanted = [RequestedOutput("c"), RequestedOutput("a")]

    message = InferResponse("", "m", outputs, requested_outputs=wanted).to_grpc()

    assert [output.name for output in message.outputs] == ["c", "a"]


def test_a_requested_output_that_is_not_there_is_the_clients_mistake() -> None:
    response = InferResponse("", "m", [], requested_outputs=[RequestedOutput("z")])

    with pytest.raises(InvalidInput, match="Unexpected inference output 'z'"):
        response.to_grpc()


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        pytest.param([1], "bool, int, float and str, got list", id="list"),
        pytest.param({}, "bool, int, float and str, got dict", id="dict"),
        pytest.param(None, "bool, int, float and str, got NoneType", id="None"),
        pytest.param(1 << 64, "integers of 64 bits, got 18446744073709551616", id="huge integer"),
    ],
)
def test_a_parameter_that_cannot_travel_is_the_models_mistake(value: Any, kind: str) -> None:
    of_response = InferResponse("", "m", [], parameters={"p": value})
    of_output = InferResponse("", "m", [InferOutput("y", [0], "FP32", [], {"p": value})])

    for response in (of_response, of_output):
        with pytest.raises(InferenceError) as caught:
            response.to_grpc()

        assert str(caught.value) == (
            f"the response cannot be sent: parameter 'p': gRPC carries {kind}"
        )


def test_a_request_goes_typed_from_lists_and_comes_back_equal() -> None:
    request = InferRequest(
        "m",
        [InferInput("x", [2], "INT64", [1, 2], {"p": 1}), InferInput("t", [1], "BYTES", [b"a"])],
        request_id="7",
        model_version="2",
        parameters={"q": 0.5},
        request_outputs=[RequestedOutput("y", {"r": True})],
    )

    message = request.to_grpc()
    read = InferRequest.from_grpc(message)

    assert list(message.inputs[0].contents.int64_contents) == [1, 2]
    assert (read.id, read.model_version, read.parameters) == ("7", "2", {"q": 0.5})
    assert (read.inputs, read.request_outputs) == (request.inputs, request.request_outputs)


def test_a_request_with_an_array_goes_raw() -> None:
    first = InferInput("x", [2], "INT16", np.array([1, 2], np.int16))
    second = InferInput("t", [1], "FP32", [1.0])

    message = InferRequest("m", [first, second]).to_grpc()

    assert list(message.raw_input_contents) == [b"\1\0\2\0", np.float32(1).tobytes()]


def test_a_response_is_read_in_both_forms() -> None:
    outputs = [output("FP32", [1, 2]), InferOutput("t", [1], "BYTES", [b"\xff"])]
    sent = InferResponse("7", "m", outputs, model_version="2", parameters={"p": "v"})

    typed = InferResponse.from_grpc(sent.to_grpc())
    raw = InferResponse.from_grpc(codec.join_raw(*codec.encode_response(sent, as_raw=True)))

    for read in (typed, raw):
        assert (read.id, read.model_name, read.model_version) == ("7", "m", "2")
        assert (read.parameters, read.from_grpc) == ({"p": "v"}, True)
        assert [o.as_numpy().tolist() for o in read.outputs] == [[1, 2], [b"\xff"]]


@st.composite
def tensors(draw: st.DrawFn) -> InferOutput:
    datatype = draw(st.sampled_from(sorted(NUMPY_DTYPES)))
    shape = draw(np_st.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    elements = st.binary(max_size=8) if datatype == "BYTES" else None
    array = draw(np_st.arrays(NUMPY_DTYPES[datatype], shape, elements=elements))
    return InferOutput.from_array("y", list(shape), datatype, array.ravel())


def bits(array: np.ndarray[Any, Any]) -> Any:
    return array.tolist() if array.dtype == np.object_ else array.tobytes()


@CODEC_SETTINGS
@given(tensors(), st.booleans())
def test_every_tensor_comes_back_bit_by_bit(tensor: InferOutput, as_raw: bool) -> None:
    sent = InferResponse("", "m", [tensor])

    message = codec.join_raw(*codec.encode_response(sent, as_raw=as_raw))
    read = InferResponse.from_grpc(pb.ModelInferResponse.FromString(message.SerializeToString()))

    array = read.outputs[0].as_numpy()
    assert array.shape == tuple(tensor.shape)
    assert bits(array) == bits(tensor.as_numpy())


@CODEC_SETTINGS
@given(
    st.builds(
        pb.InferTensorContents,
        int_contents=st.lists(st.integers(-300, 300), max_size=3),
        fp32_contents=st.lists(st.floats(width=32), max_size=3),
    ),
    st.lists(st.integers(-2, 3), max_size=3),
    st.sampled_from([*NUMPY_DTYPES, "int8", ""]),
    st.lists(st.binary(max_size=9), max_size=2),
)
def test_any_message_is_read_or_refused(
    contents: pb.InferTensorContents, shape: list[int], datatype: str, raws: list[bytes]
) -> None:
    message = infer_request(tensor(datatype, shape, contents=contents), raw_input_contents=raws)

    try:
        request = InferRequest.from_grpc(message)
    except InvalidInput:
        return
    request.inputs[0].as_numpy()


@pytest.mark.parametrize(
    "output",
    [
        pytest.param(InferOutput("o", [2], "FP32", [1, 2, 3]), id="too many values"),
        pytest.param(InferOutput("o", [1], "INT8", [300]), id="out of range"),
        pytest.param(InferOutput("o", [1], "FP32"), id="no data"),
    ],
)
def test_a_faulty_output_is_the_models_fault(output: InferOutput) -> None:
    with pytest.raises(InferenceError, match="output 'o'"):
        codec.encode_response(InferResponse("1", "m", [output]))
