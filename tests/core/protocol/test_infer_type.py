"""Tensors, requests and responses: what they hold, and their REST forms against tritonclient."""

import copy
import pickle
from typing import Any

import hypothesis.strategies as st
import numpy as np
import orjson
import pytest
import tritonclient.http
from hypothesis import given, settings
from hypothesis.extra import numpy as np_st
from tritonclient.http._utils import _get_inference_request

from kserve.errors import InferenceError, InvalidInput
from kserve.protocol.codec.dtypes import NUMPY_DTYPES
from kserve.protocol.infer_type import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    RequestedOutput,
    deserialize_bytes_tensor,
    serialize_byte_tensor,
)

CODEC_SETTINGS = settings(derandomize=True, max_examples=100, deadline=None)
JSON_NUMERIC = [datatype for datatype in NUMPY_DTYPES if datatype not in ("BYTES", "FP16")]
TENSORS = pytest.mark.parametrize("kind", [InferInput, InferOutput])
TensorKind = type[InferInput] | type[InferOutput]
DrawnTensor = tuple[str, np.ndarray]


def texts(*elements: Any) -> np.ndarray:
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array


def bits(array: np.ndarray) -> Any:
    return array.tolist() if array.dtype == np.object_ else array.tobytes()


@st.composite
def tensors(draw: st.DrawFn, datatypes: list[str], finite: bool = False) -> DrawnTensor:
    datatype = draw(st.sampled_from(datatypes))
    shape = draw(np_st.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    if datatype == "BYTES":
        elements = draw(np_st.arrays(np.object_, shape, elements=st.binary(max_size=8)))
        return datatype, elements
    dtype = NUMPY_DTYPES[datatype]
    limits = {"allow_nan": False, "allow_infinity": False} if finite and dtype.kind == "f" else {}
    return datatype, draw(np_st.arrays(dtype, shape, elements=limits))


def triton_body(inputs: list[tritonclient.http.InferInput]) -> tuple[bytes, int | None]:
    body, json_length = _get_inference_request(inputs, "7", None, 0, False, False, 0, None, None)
    return body, json_length


def sent(message: InferRequest | InferResponse) -> tuple[bytes, int]:
    raw, json_length = message.to_rest()
    assert isinstance(raw, bytes)
    assert json_length is not None
    return raw, json_length


def body(document: dict[str, Any], tail: bytes = b"") -> tuple[bytes, int]:
    head = orjson.dumps(document)
    return head + tail, len(head)


@TENSORS
def test_list_reads_back_as_it_was_given(kind: TensorKind) -> None:
    data = [[1, 2], [3, 4]]

    tensor = kind("x", [2, 2], "int32", data)

    assert tensor.data is data
    assert tensor.datatype == "INT32"
    assert tensor.as_numpy().tolist() == data
    assert tensor.as_numpy().dtype == np.int32


@TENSORS
def test_flat_list_takes_the_shape(kind: TensorKind) -> None:
    assert kind("x", [2, 2], "FP32", [1, 2, 3, 4]).as_numpy().tolist() == [[1, 2], [3, 4]]


@TENSORS
def test_array_is_not_copied(kind: TensorKind) -> None:
    array = np.arange(6, dtype=np.float32)

    tensor = kind("x", [2, 3], "FP32", array)

    assert tensor.data is array
    assert np.shares_memory(tensor.as_numpy(), array)
    assert tensor.as_numpy().shape == (2, 3)


@TENSORS
def test_tensor_over_an_array_reads_as_a_list(kind: TensorKind) -> None:
    array = np.array([1.5, 2.5])

    tensor = kind.from_array("x", [2, 1], "FP64", array, {"k": 1})

    assert tensor.as_numpy().base is array
    assert tensor.data == [1.5, 2.5]
    assert (tensor.name, tensor.shape, tensor.parameters) == ("x", [2, 1], {"k": 1})


@TENSORS
def test_aligned_raw_bytes_are_viewed(kind: TensorKind) -> None:
    raw = np.array([1, 2, 3], "<i8").tobytes()
    tensor = kind("x", [3], "INT64")

    tensor.set_raw_data(raw)

    assert np.shares_memory(tensor.as_numpy(), np.frombuffer(raw, np.uint8))


@TENSORS
def test_unaligned_raw_bytes_give_an_aligned_array(kind: TensorKind) -> None:
    raw = b"\x00" + np.array([1, 2, 3], "<i8").tobytes()
    tensor = kind("x", [3], "INT64")

    tensor.set_raw_data(memoryview(raw)[1:])

    assert tensor.as_numpy().flags.aligned
    assert tensor.as_numpy().tolist() == [1, 2, 3]


@TENSORS
def test_raw_bytes_read_as_a_flat_list(kind: TensorKind) -> None:
    tensor = kind("x", [2, 2], "UINT8")

    tensor.set_raw_data(b"\x01\x02\x03\x04")

    assert tensor.data == [1, 2, 3, 4]


@TENSORS
def test_change_of_the_list_in_place_counts(kind: TensorKind) -> None:
    tensor = kind("x", [2], "UINT8")
    tensor.set_raw_data(b"\x01\x02")

    tensor.data[0] = 9

    assert tensor.as_numpy().tolist() == [9, 2]


@TENSORS
def test_new_data_replaces_binary_content(kind: TensorKind) -> None:
    tensor = kind("x", [2], "UINT8")
    tensor.set_data_from_numpy(np.array([1, 2], np.uint8))

    tensor.data = [3, 4]

    assert tensor.as_numpy().tolist() == [3, 4]
    assert tensor.parameters == {}
    assert not tensor.is_binary


@TENSORS
def test_binary_strings_read_as_str_and_stay_bytes_as_an_array(kind: TensorKind) -> None:
    tensor = kind("x", [2], "BYTES")
    tensor.set_data_from_numpy(texts("é", "b\0"))
    before = tensor.as_numpy().tolist()

    data = tensor.data

    assert data == ["é", "b\0"]
    assert before == tensor.as_numpy().tolist() == ["é".encode(), b"b\0"]


@TENSORS
def test_raw_data_that_was_put_there_stays_binary_when_read_as_a_list(kind: TensorKind) -> None:
    tensor = kind("x", [1], "BYTES")
    tensor._raw_data = b"\x01\x00\x00\x00a"

    data = tensor.data

    assert data == ["a"]
    assert tensor.is_binary
    assert tensor.as_numpy().tolist() == [b"a"]


@TENSORS
def test_shape_and_parameters_can_be_set(kind: TensorKind) -> None:
    tensor = kind("x", [4], "INT8", [1, 2, 3, 4])

    tensor.shape = [2, 2]
    tensor.parameters = {"k": 1}

    assert tensor.as_numpy().tolist() == [[1, 2], [3, 4]]
    assert tensor.parameters == {"k": 1}


@TENSORS
def test_bytes_that_are_not_utf8_read_as_bytes(kind: TensorKind) -> None:
    tensor = kind("x", [2], "BYTES")

    tensor.set_raw_data(b"\x01\x00\x00\x00\xff\x01\x00\x00\x00a")

    assert tensor.data == [b"\xff", b"a"]


@TENSORS
@pytest.mark.parametrize(
    "data",
    [["a", "b"], [b"a", b"b"], [["a"], [b"b"]], np.array(["a", "b"]), texts(np.str_("a"), "b")],
    ids=["str", "bytes", "nested", "unicode array", "numpy strings"],
)
def test_as_string_gives_a_flat_list(kind: TensorKind, data: Any) -> None:
    tensor = kind("x", [2], "BYTES", data)

    strings = tensor.as_string()

    assert strings == ["a", "b"]
    assert {type(string) for string in strings} == {str}


@TENSORS
def test_as_string_refuses_what_is_no_text(kind: TensorKind) -> None:
    with pytest.raises(InvalidInput, match="expected datatype BYTES, got INT8"):
        kind("x", [1], "INT8", [1]).as_string()
    with pytest.raises(InvalidInput, match="'x': expected UTF-8 text"):
        kind("x", [1], "BYTES", [b"\xff"]).as_string()


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        pytest.param(
            InferInput("x", [2, 3], "FP32", [1, 2]),
            "input 'x': expected as many elements as shape [2, 3] holds, got 2",
            id="too few",
        ),
        pytest.param(
            InferInput("x", [-1], "FP32", [1, 2]),
            "input 'x': expected as many elements as shape [-1] holds, got 2",
            id="negative axis",
        ),
        pytest.param(
            InferInput("x", [2**70, 0], "FP32", []),
            f"input 'x': expected as many elements as shape [{2**70}, 0] holds, got 0",
            id="axis beyond 64 bits",
        ),
        pytest.param(
            InferOutput("y", [1], "FP32", ["1"]),
            "output 'y': expected FP32 data, got a value of type str",
            id="string as number",
        ),
        pytest.param(InferOutput("y", [1], "FP32"), "output 'y': 'data' is missing", id="no data"),
        pytest.param(
            InferInput("x", [1], "FP8", [1]),
            f"input 'x': unknown datatype 'FP8', expected {', '.join(NUMPY_DTYPES)}",
            id="datatype",
        ),
    ],
)
def test_data_that_disagrees_with_the_tensor_is_refused(tensor: Any, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        tensor.as_numpy()

    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("datatype", "raw", "reason"),
    [
        pytest.param(
            "INT32",
            b"\x00" * 7,
            "input 'x': expected 8 bytes of binary data for INT32 of shape [2], got 7",
            id="short",
        ),
        pytest.param(
            "BYTES",
            b"\x00" * 4,
            "input 'x': expected as many elements as shape [2] holds, got 1",
            id="too few strings",
        ),
        pytest.param(
            "BYTES",
            b"\x00",
            "input 'x': BYTES data is truncated: expected a 4-byte length at byte 0, got 1 bytes",
            id="truncated string",
        ),
    ],
)
def test_raw_bytes_that_disagree_with_the_tensor_are_refused(
    datatype: str, raw: bytes, reason: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        InferInput("x", [2], datatype).set_raw_data(raw)

    assert caught.value.reason == reason


def test_raw_data_of_a_foreign_length_is_refused_when_read() -> None:
    tensor = InferInput("x", [2], "INT32")
    tensor._raw_data = b"\x00" * 7

    with pytest.raises(InvalidInput, match="expected 4 bytes for each INT32, got 7 in all"):
        tensor.as_numpy()


@TENSORS
@pytest.mark.parametrize("datatype", NUMPY_DTYPES)
@pytest.mark.parametrize("binary_data", [True, False], ids=["binary", "json"])
def test_set_data_from_numpy_keeps_the_values(
    kind: TensorKind, datatype: str, binary_data: bool
) -> None:
    array = np.array([[0, 1], [1, 0]]).astype(NUMPY_DTYPES[datatype])
    array = array.astype(str).astype(object) if datatype == "BYTES" else array
    tensor = kind("x", [2, 2], datatype)

    tensor.set_data_from_numpy(array, binary_data)

    assert tensor.is_binary == binary_data
    assert tensor.data == array.ravel().tolist()
    assert tensor.as_numpy().astype(str).tolist() == (
        array.astype("S").astype(str).tolist()
        if datatype == "BYTES"
        else array.astype(str).tolist()
    )


def test_set_data_from_numpy_takes_a_copy() -> None:
    array = np.array([1, 2])
    tensor = InferOutput("y", [2], "INT64")
    tensor.set_data_from_numpy(array, binary_data=False)

    array[0] = 9

    assert tensor.data == [1, 2]


def test_set_data_from_numpy_keeps_the_binary_size_as_a_parameter() -> None:
    given = {"k": 1}
    tensor = InferInput("x", [3], "FP16", parameters=given)

    tensor.set_data_from_numpy(np.zeros(3, np.float16))
    binary = tensor.parameters
    tensor.set_data_from_numpy(np.zeros(3, np.float16), binary_data=False)

    assert binary == {"k": 1, "binary_data_size": 6}
    assert tensor.parameters == given == {"k": 1}


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        pytest.param([1, 2], "input 'x': expected a numpy array, got list", id="list"),
        pytest.param(
            np.zeros(2, np.int32),
            "input 'x': expected an array of datatype FP32, got INT32",
            id="datatype",
        ),
        pytest.param(
            np.zeros((1, 2), np.float32),
            "input 'x': expected an array of shape [2], got [1, 2]",
            id="shape",
        ),
    ],
)
def test_set_data_from_numpy_refuses_another_tensor(array: Any, reason: str) -> None:
    with pytest.raises(InferenceError) as caught:
        InferInput("x", [2], "FP32").set_data_from_numpy(array)

    assert caught.value.reason == reason


def test_bytes_that_are_not_utf8_cannot_be_set_as_json() -> None:
    with pytest.raises(InferenceError, match="send them as binary data"):
        InferInput("x", [1], "BYTES").set_data_from_numpy(texts(b"\xff"), binary_data=False)


@TENSORS
@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        pytest.param(([2], "INT32", [1, 2]), ([2], "INT32", np.array([1, 2])), True, id="forms"),
        pytest.param(([2], "INT32", [1, 2]), ((2,), "int32", [1, 2], {}), True, id="spellings"),
        pytest.param(([2], "INT32", [1, 2]), ([2], "INT32", [1, 3]), False, id="values"),
        pytest.param(([2], "INT32", [1, 2]), ([2, 1], "INT32", [1, 2]), False, id="shape"),
        pytest.param(([2], "INT32", [1, 2]), ([2], "INT64", [1, 2]), False, id="datatype"),
        pytest.param(([1], "INT8", [1]), ([1], "INT8", [1], {"k": 1}), False, id="parameters"),
        pytest.param(([1], "INT8"), ([1], "INT8"), True, id="no data"),
        pytest.param(([9], "INT8", [1]), ([9], "INT8", [1]), True, id="invalid data"),
        pytest.param(
            ([9], "INT8", [np.arange(2), 1]), ([9], "INT8", [np.arange(2), 1]), False, id="arrays"
        ),
        pytest.param(
            ([1], "INT8", [1], {"k": np.arange(2)}),
            ([1], "INT8", [1], {"k": np.arange(2)}),
            False,
            id="arrays as parameters",
        ),
    ],
)
def test_tensors_are_equal_by_value(
    kind: TensorKind, one: tuple[Any, ...], other: tuple[Any, ...], equal: bool
) -> None:
    assert (kind("x", *one) == kind("x", *other)) is equal


def test_input_never_equals_an_output_or_another_name() -> None:
    assert InferInput("x", [1], "INT8", [1]) != InferOutput("x", [1], "INT8", [1])
    assert InferInput("x", [1], "INT8", [1]) != InferInput("y", [1], "INT8", [1])


def test_request_over_a_memoryview_can_be_copied_and_pickled() -> None:
    raw, json_length = body(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [2],
                    "datatype": "INT16",
                    "parameters": {"binary_data_size": 4},
                }
            ]
        },
        b"\x01\x00\x02\x00",
    )
    request = InferRequest.from_bytes(raw, json_length, "m")

    assert copy.deepcopy(request) == request
    assert pickle.loads(pickle.dumps(request)) == request


def test_repr_shows_the_fields_and_leaves_the_content_alone() -> None:
    tensor = InferInput("x", [2], "UINT8")
    tensor.set_raw_data(b"\x01\x02")

    text = repr(tensor)

    assert text == (
        "InferInput(name='x', shape=[2], datatype='UINT8', "
        "data=array([1, 2], dtype=uint8), parameters=None)"
    )
    assert tensor._raw_data == b"\x01\x02"


def test_to_dict_gives_raw_content_as_a_list() -> None:
    tensor = InferInput("x", [2], "UINT8", parameters={"k": 1})
    tensor.set_raw_data(b"\x01\x02")

    assert tensor.to_dict() == {
        "name": "x",
        "shape": [2],
        "datatype": "UINT8",
        "data": [1, 2],
        "parameters": {"k": 1},
    }


def two_inputs(**arguments: Any) -> InferRequest:
    inputs = [InferInput("a", [2], "INT32", [1, 2]), InferInput("b", [2], "BYTES", ["x", b"y"])]
    return InferRequest("m", inputs, **arguments)


def test_request_finds_inputs_by_name() -> None:
    request = two_inputs()

    assert request.get_input_by_name("b") is request.inputs[1]
    assert request.get_input_by_name("c") is None


def test_request_contains_its_inputs_and_the_keys_of_a_v1_payload() -> None:
    request = two_inputs()

    assert [key in request for key in ("inputs", "instances", "a", "b", "c", 1)] == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]
    assert "instances" not in InferRequest("m", [])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param({}, False, id="rest by default"),
        pytest.param({"parameters": {"binary_data_output": True}}, True, id="rest by parameter"),
        pytest.param({"from_grpc": True, "raw_inputs": [b"\x01"]}, True, id="grpc raw"),
        pytest.param(
            {"from_grpc": True, "parameters": {"binary_data_output": True}}, False, id="grpc typed"
        ),
    ],
)
def test_request_says_whether_outputs_are_binary(arguments: dict[str, Any], expected: bool) -> None:
    request = InferRequest("m", [InferInput("x", [1], "INT8", [1])], **arguments)

    assert request.use_binary_outputs is expected


def test_raw_inputs_become_the_content_in_order() -> None:
    inputs = [InferInput("a", [1], "INT8"), InferInput("b", [1], "BYTES")]

    request = InferRequest("m", inputs, raw_inputs=[b"\x05", b"\x01\x00\x00\x00z"])

    assert [tensor.as_numpy().tolist() for tensor in request.inputs] == [[5], [b"z"]]


def test_raw_inputs_of_another_number_are_refused() -> None:
    with pytest.raises(InvalidInput, match="expected 1 tensors in binary form, got 2"):
        InferRequest("m", [InferInput("a", [1], "INT8")], raw_inputs=[b"\x05", b"\x06"])


def test_dataframe_has_a_column_per_input() -> None:
    request = two_inputs()
    request.inputs.append(InferInput("c", [2, 1], "FP32"))
    request.inputs[2].set_raw_data(np.array([0.5, 1.5], "<f4").tobytes())

    frame = request.as_dataframe()

    assert frame.to_dict(orient="list") == {"a": [1, 2], "b": ["x", "y"], "c": [0.5, 1.5]}
    assert [str(frame[name].dtype) for name in ("a", "c")] == ["int32", "float32"]


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        pytest.param(
            [1, 2],
            "input 'c': expected a column of shape [n] or [n, 1], got [1, 2]",
            id="matrix",
        ),
        pytest.param(
            [], "input 'c': expected a column of shape [n] or [n, 1], got []", id="scalar"
        ),
        pytest.param(
            [3],
            "expected inputs with equal numbers of rows, got 'a': 2, 'b': 2, 'c': 3",
            id="length",
        ),
    ],
)
def test_dataframe_needs_columns_of_one_length(shape: list[int], reason: str) -> None:
    request = two_inputs()
    request.inputs.append(InferInput("c", shape, "INT8", np.zeros(shape, np.int8)))

    with pytest.raises(InvalidInput) as caught:
        request.as_dataframe()

    assert caught.value.reason == reason


def test_request_without_binary_inputs_is_a_json_document() -> None:
    request = two_inputs(
        request_id="7", request_outputs=[RequestedOutput("y")], parameters={"p": True}
    )

    assert request.to_rest() == (
        {
            "id": "7",
            "model_name": "m",
            "inputs": [
                {"name": "a", "shape": [2], "datatype": "INT32", "data": [1, 2]},
                {"name": "b", "shape": [2], "datatype": "BYTES", "data": ["x", "y"]},
            ],
            "outputs": [{"name": "y"}],
            "parameters": {"p": True},
        },
        None,
    )


def test_request_with_mixed_inputs_is_json_then_binary() -> None:
    inputs = [
        InferInput("a", [3], "INT32", np.array([1, 2, 3], np.int32), {"s": "t"}),
        InferInput("b", [1], "BYTES", parameters={"n": 2}),
        InferInput("c", [3], "FP16"),
    ]
    inputs[1].set_data_from_numpy(texts("test"))
    inputs[2].set_data_from_numpy(np.array([1.2, 2.2, 3.2], np.float16))
    request = InferRequest(
        "m", inputs, "7", request_outputs=[RequestedOutput("y", {"binary_data": True})]
    )
    head = (
        b'{"id":"7","model_name":"m","inputs":['
        b'{"name":"a","shape":[3],"datatype":"INT32","parameters":{"s":"t"},"data":[1,2,3]},'
        b'{"name":"b","shape":[1],"datatype":"BYTES","parameters":{"n":2,"binary_data_size":8}},'
        b'{"name":"c","shape":[3],"datatype":"FP16","parameters":{"binary_data_size":6}}],'
        b'"outputs":[{"name":"y","parameters":{"binary_data":true}}]}'
    )

    raw, json_length = sent(request)

    assert (raw, json_length) == (head + b"\x04\x00\x00\x00test\xcd<f@fB", len(head))
    assert InferRequest.from_bytes(raw, json_length, "m") == request


def test_request_that_came_in_binary_form_leaves_in_binary_form_even_when_looked_at() -> None:
    inputs = [InferInput("a", [1], "FP16"), InferInput("b", [1], "BYTES")]
    inputs[0].set_data_from_numpy(np.array([1.5], np.float16))
    inputs[1].set_data_from_numpy(texts(b"z"))
    raw, json_length = sent(InferRequest("m", inputs, "7"))
    received = InferRequest.from_bytes(raw, json_length, "m")

    looked_at = [tensor.data for tensor in received.inputs]

    assert looked_at == [[1.5], ["z"]]
    assert received.to_rest() == (raw, json_length)


def test_request_without_id_gets_a_new_one() -> None:
    first, second = two_inputs().to_rest()[0], two_inputs().to_rest()[0]

    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert len(first["id"]) == 36
    assert first["id"] != second["id"]


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        pytest.param(
            InferInput("x", [1], "INT32", parameters={"binary_data_size": 12}),
            "input 'x': 'data' is missing",
            id="no data",
        ),
        pytest.param(
            InferInput("x", [1], "FP16", [1.0]),
            "input 'x': Sending FP16 data via JSON is not supported, use the binary data format",
            id="FP16",
        ),
    ],
)
def test_request_that_cannot_be_sent_is_refused(tensor: InferInput, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        InferRequest("m", [tensor]).to_rest()

    assert caught.value.reason == reason


def test_request_reads_its_json_fields() -> None:
    raw, json_length = body(
        {
            "id": "7",
            "parameters": {"p": 1.5},
            "inputs": [{"name": "x", "shape": [2], "datatype": "int8", "data": [[1], [2]]}],
            "outputs": [{"name": "y", "parameters": {"binary_data": False}}, {"name": "z"}],
        }
    )

    request = InferRequest.from_bytes(raw, json_length, "m")

    assert request == InferRequest(
        "m",
        [InferInput("x", [2], "INT8", [1, 2])],
        "7",
        parameters={"p": 1.5},
        request_outputs=[RequestedOutput("y", {"binary_data": False}), RequestedOutput("z")],
    )
    assert request.inputs[0].data == [[1], [2]]
    assert request.request_outputs is not None
    assert [output.binary_data for output in request.request_outputs] == [False, None]


X = {"name": "x", "shape": [2], "datatype": "INT8", "data": [1, 2]}
SIZED = {"name": "x", "shape": [2], "datatype": "INT8", "parameters": {"binary_data_size": 2}}


@pytest.mark.parametrize(
    ("document", "tail", "reason"),
    [
        pytest.param([], b"", "expected the body to be an object, got list", id="list"),
        pytest.param({}, b"", "'inputs' field is missing in the body", id="no inputs"),
        pytest.param(
            {"inputs": {}}, b"", "the body: expected 'inputs' to be a list, got dict", id="inputs"
        ),
        pytest.param(
            {"inputs": [1]}, b"", "expected inputs[0] to be an object, got int", id="input"
        ),
        pytest.param(
            {"inputs": [{**X, "name": None}]},
            b"",
            "'name' field is missing in inputs[0]",
            id="no name",
        ),
        pytest.param(
            {"inputs": [{**X, "shape": [True]}]},
            b"",
            "inputs[0]: expected 'shape' as whole numbers from 0, got [True]",
            id="shape",
        ),
        pytest.param(
            {"inputs": [{**X, "datatype": 1}]},
            b"",
            "inputs[0]: expected 'datatype' to be a str, got int",
            id="type of datatype",
        ),
        pytest.param(
            {"inputs": [{**X, "datatype": "FP8"}]},
            b"",
            f"input 'x': unknown datatype 'FP8', expected {', '.join(NUMPY_DTYPES)}",
            id="datatype",
        ),
        pytest.param(
            {"inputs": [{**X, "data": None}]},
            b"",
            "'data' field is missing for input 'x'",
            id="no data",
        ),
        pytest.param(
            {"inputs": [{**X, "data": "12"}]},
            b"",
            "inputs[0]: expected 'data' to be a list, got str",
            id="data",
        ),
        pytest.param(
            {"inputs": [{**X, "datatype": "FP16"}]},
            b"",
            "input 'x': Receiving FP16 data via JSON is not supported, use the binary data format",
            id="FP16 as JSON",
        ),
        pytest.param(
            {"inputs": [X, X]}, b"", "input 'x': expected each name once, got it twice", id="twice"
        ),
        pytest.param(
            {"inputs": [{**X, **SIZED}]},
            b"\x01\x02",
            "input 'x': expected 'data' or 'binary_data_size', got both",
            id="both forms",
        ),
        pytest.param(
            {"inputs": [{**SIZED, "parameters": {"binary_data_size": -2}}]},
            b"\x01\x02",
            "input 'x': expected 'binary_data_size' to be a number of bytes, got -2",
            id="negative size",
        ),
        pytest.param(
            {"inputs": [SIZED]},
            b"\x01",
            "input 'x': expected 2 bytes of binary data, got 1",
            id="short tail",
        ),
        pytest.param(
            {"inputs": [SIZED]},
            b"\x01\x02\x03",
            "expected 2 bytes of binary data, got 3",
            id="long tail",
        ),
        pytest.param(
            {"inputs": [{**SIZED, "datatype": "INT16"}]},
            b"\x01\x02",
            "input 'x': expected 4 bytes of binary data for INT16 of shape [2], got 2",
            id="size against shape",
        ),
        pytest.param(
            {"inputs": [X], "outputs": [{}]},
            b"",
            "'name' field is missing in outputs[0]",
            id="requested output",
        ),
        pytest.param(
            {"inputs": [X], "id": 1}, b"", "the body: expected 'id' to be a str, got int", id="id"
        ),
    ],
)
def test_malformed_request_names_what_is_wrong(document: Any, tail: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        InferRequest.from_bytes(*body(document, tail), "m")

    assert caught.value.reason == reason


@pytest.mark.parametrize("json_length", [-1, 3], ids=["negative", "beyond the body"])
def test_json_length_that_does_not_fit_is_refused(json_length: int) -> None:
    with pytest.raises(InvalidInput, match="expected a JSON part of 0 to 2 bytes, got a length of"):
        InferRequest.from_bytes(b"{}", json_length, "m")


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff", b"\xef\xbb\xbf{}", b"[NaN]", b"[" * 2000], ids=repr
)
def test_body_that_is_no_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidInput, match="Unrecognized request format: "):
        InferRequest.from_bytes(raw, len(raw), "m")


@CODEC_SETTINGS
@given(st.binary(max_size=80), st.integers(-2, 90))
def test_any_bytes_give_a_request_or_invalid_input(raw: bytes, json_length: int) -> None:
    try:
        request = InferRequest.from_bytes(raw, json_length, "m")
    except InvalidInput:
        return

    assert request.model_name == "m"


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | TEXT,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(TEXT, children, max_size=3),
    max_leaves=6,
)


@CODEC_SETTINGS
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.just("x") | JSON_VALUES,
            "shape": st.lists(st.integers(0, 3), max_size=3) | JSON_VALUES,
            "datatype": st.sampled_from(list(NUMPY_DTYPES)) | JSON_VALUES,
            "data": JSON_VALUES,
            "parameters": st.just({"binary_data_size": 4}) | JSON_VALUES,
        },
    ),
    st.binary(max_size=8),
)
def test_any_input_entry_gives_an_array_or_invalid_input(
    entry: dict[str, Any], tail: bytes
) -> None:
    head = orjson.dumps({"inputs": [entry]})

    try:
        array = InferRequest.from_bytes(head + tail, len(head), "m").inputs[0].as_numpy()
    except InvalidInput:
        return

    assert list(array.shape) == entry["shape"]


def two_outputs(**arguments: Any) -> InferResponse:
    outputs = [
        InferOutput("a", [1, 2], "FP32", np.array([[6.8, 1]], np.float32)),
        InferOutput("b", [1], "BYTES", [b"test"], {"k": 1}),
    ]
    return InferResponse("7", "m", outputs, **arguments)


A_JSON = {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [6.800000190734863, 1.0]}
B_JSON = {
    "name": "b",
    "shape": [1],
    "datatype": "BYTES",
    "parameters": {"k": 1},
    "data": ["test"],
}


def test_response_is_a_json_document_with_flat_data() -> None:
    assert two_outputs(parameters={"p": 1}).to_rest() == (
        {
            "id": "7",
            "model_name": "m",
            "model_version": None,
            "outputs": [A_JSON, B_JSON],
            "parameters": {"p": 1},
        },
        None,
    )


def test_binary_response_is_json_then_binary() -> None:
    head = (
        b'{"id":"7","model_name":"m","model_version":"2","outputs":['
        b'{"name":"a","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}},'
        b'{"name":"b","shape":[1],"datatype":"BYTES","parameters":{"k":1,"binary_data_size":8}}]}'
    )

    rest = two_outputs(model_version="2", use_binary_outputs=True).to_rest()

    assert rest == (head + b"\x9a\x99\xd9@\x00\x00\x80?\x04\x00\x00\x00test", len(head))


@pytest.mark.parametrize(
    ("parameters", "use_binary_outputs", "is_binary"),
    [
        pytest.param({"binary_data": True}, False, True, id="own flag on"),
        pytest.param({"binary_data": False}, True, False, id="own flag off"),
        pytest.param(None, True, True, id="flag of the request"),
        pytest.param({}, False, False, id="no flag"),
    ],
)
def test_flag_of_an_output_wins_over_that_of_the_request(
    parameters: dict[str, Any] | None, use_binary_outputs: bool, is_binary: bool
) -> None:
    response = two_outputs(
        use_binary_outputs=use_binary_outputs,
        requested_outputs=[RequestedOutput("b", parameters)],
    )

    rest, json_length = response.to_rest()

    document = orjson.loads(rest[:json_length]) if isinstance(rest, bytes) else rest
    binary = {**B_JSON, "parameters": {"k": 1, "binary_data_size": 8}}
    del binary["data"]
    assert document["outputs"] == [binary if is_binary else B_JSON]


def test_requested_outputs_come_in_the_order_of_the_request() -> None:
    rest, _ = two_outputs(requested_outputs=[RequestedOutput("b"), RequestedOutput("a")]).to_rest()

    assert isinstance(rest, dict)
    assert rest["outputs"] == [B_JSON, A_JSON]


def test_sending_a_response_leaves_it_as_it_is() -> None:
    response = two_outputs(use_binary_outputs=True)

    response.to_rest()

    assert response == two_outputs()


def test_unicode_and_datetime_outputs_are_text() -> None:
    outputs = [
        InferOutput("u", [2], "BYTES", np.array(["é", "b"])),
        InferOutput("s", [1], "BYTES", [np.str_("c")]),
        InferOutput("t", [1], "BYTES", np.array(["2020-01-02"], "M8[D]")),
    ]

    rest, _ = InferResponse("7", "m", outputs).to_rest()

    assert isinstance(rest, dict)
    assert [entry["data"] for entry in rest["outputs"]] == [["é", "b"], ["c"], ["2020-01-02"]]


def test_raw_outputs_become_json_unless_asked_for_in_binary_form() -> None:
    response = InferResponse(
        "7", "m", [InferOutput("a", [3], "INT32")], raw_outputs=[b"\x01\0\0\0\x02\0\0\0\x03\0\0\0"]
    )

    rest, _ = response.to_rest()

    assert isinstance(rest, dict)
    assert rest["outputs"] == [{"name": "a", "shape": [3], "datatype": "INT32", "data": [1, 2, 3]}]


@pytest.mark.parametrize(
    ("output", "requested", "error", "reason"),
    [
        pytest.param(
            InferOutput("y", [1], "FP16", [1.0]),
            None,
            InvalidInput,
            "output 'y': Sending FP16 data via JSON is not supported, use the binary data format",
            id="FP16",
        ),
        pytest.param(
            InferOutput("y", [1], "INT8"),
            None,
            InvalidInput,
            "output 'y': 'data' is missing",
            id="no data",
        ),
        pytest.param(
            InferOutput("y", [2], "INT8", [1]),
            None,
            InvalidInput,
            "output 'y': expected as many elements as shape [2] holds, got 1",
            id="shape",
        ),
        pytest.param(
            InferOutput("y", [1], "INT8", [1]),
            [RequestedOutput("z")],
            InvalidInput,
            "Unexpected inference output 'z' for model 'm', expected one of ['y']",
            id="unknown output",
        ),
        pytest.param(
            InferOutput("y", [1], "BYTES", [b"\xff"]),
            None,
            InferenceError,
            "output 'y': BYTES that are not UTF-8 cannot be sent as JSON, send them as binary data "
            "('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)",
            id="not UTF-8",
        ),
    ],
)
def test_response_that_cannot_be_sent_is_refused(
    output: InferOutput,
    requested: list[RequestedOutput] | None,
    error: type[InferenceError | InvalidInput],
    reason: str,
) -> None:
    with pytest.raises(error) as caught:
        InferResponse("7", "m", [output], requested_outputs=requested).to_rest()

    assert str(caught.value) == reason


def test_response_reads_a_json_document() -> None:
    document = {
        "id": "7",
        "model_name": "m",
        "model_version": None,
        "parameters": None,
        "outputs": [A_JSON, B_JSON],
    }

    response = InferResponse.from_rest(document)

    assert [output.to_dict() for output in response.outputs] == [
        {**A_JSON, "parameters": None},
        B_JSON,
    ]
    assert (response.id, response.model_name, response.model_version) == ("7", "m", None)


def test_response_reads_binary_outputs() -> None:
    raw, json_length = sent(two_outputs(model_version="2", use_binary_outputs=True))

    response = InferResponse.from_bytes(raw, json_length)

    assert (response.id, response.model_name, response.model_version) == ("7", "m", "2")
    assert response.get_output_by_name("b") is response.outputs[1]
    assert response.get_output_by_name("c") is None
    assert [output.data for output in response.outputs] == [[6.800000190734863, 1.0], ["test"]]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        pytest.param({}, "'outputs' field is missing in the body", id="no outputs"),
        pytest.param({"outputs": [{}]}, "'name' field is missing in outputs[0]", id="no name"),
        pytest.param(
            {"outputs": [{**X, "data": None}]},
            "'data' field is missing for output 'x'",
            id="no data",
        ),
        pytest.param([], "expected the body to be an object, got list", id="list"),
    ],
)
def test_malformed_response_names_what_is_wrong(document: Any, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        InferResponse.from_rest(document)

    assert caught.value.reason == reason


def test_requests_and_responses_give_dicts() -> None:
    tensor = {"name": "x", "shape": [1], "datatype": "INT8", "data": [1], "parameters": None}

    request = InferRequest("m", [InferInput("x", [1], "INT8", [1])], "7").to_dict()
    response = InferResponse("7", "m", [InferOutput("x", [1], "INT8", [1])]).to_dict()

    assert request == {
        "id": "7",
        "model_name": "m",
        "inputs": [tensor],
        "parameters": None,
        "from_grpc": False,
    }
    assert response == {
        "id": "7",
        "model_name": "m",
        "model_version": None,
        "outputs": [tensor],
        "parameters": None,
        "from_grpc": False,
    }


def test_requests_and_responses_show_their_fields() -> None:
    requested = RequestedOutput("y", {"binary_data": True})
    request = InferRequest("m", [], "7", parameters={"p": 1})
    response = InferResponse("7", "m", [], model_version="2")

    assert repr(requested) == "RequestedOutput(name='y', parameters={'binary_data': True})"
    assert repr(request) == (
        "InferRequest(id='7', model_name='m', inputs=[], parameters={'p': 1}, from_grpc=False)"
    )
    assert repr(response) == (
        "InferResponse(id='7', model_name='m', model_version='2', outputs=[], parameters=None, "
        "from_grpc=False)"
    )


@pytest.mark.parametrize(
    "value",
    [
        InferInput("x", [1], "INT8", [1]),
        RequestedOutput("x"),
        InferRequest("m", []),
        InferResponse("7", "m", []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nothing_equals_a_value_of_another_type(value: object) -> None:
    assert value != "x"


def test_byte_tensor_functions_have_the_forms_of_the_sdk() -> None:
    serialized = serialize_byte_tensor(np.array([["a"], ["b"]]))

    assert serialized.shape == ()
    assert serialized.item() == b"\x01\x00\x00\x00a\x01\x00\x00\x00b"
    assert deserialize_bytes_tensor(serialized.item()).tolist() == [b"a", b"b"]
    assert serialize_byte_tensor(texts()).shape == (0,)
    with pytest.raises(InferenceError, match="cannot serialize a tensor of int64 as BYTES"):
        serialize_byte_tensor(np.array([1]))


@CODEC_SETTINGS
@given(tensors(list(NUMPY_DTYPES)))
def test_reads_what_tritonclient_sends_in_binary_form(tensor: DrawnTensor) -> None:
    datatype, array = tensor
    theirs = tritonclient.http.InferInput("x", list(array.shape), datatype)
    theirs.set_data_from_numpy(array)

    raw, json_length = triton_body([theirs])
    ours = InferRequest.from_bytes(raw, json_length or len(raw), "m")

    received = ours.inputs[0].as_numpy()
    assert (received.dtype, received.shape) == (array.dtype, array.shape)
    assert bits(received) == bits(array)
    assert (ours.id, ours.use_binary_outputs) == ("7", True)


@CODEC_SETTINGS
@given(tensors(JSON_NUMERIC, finite=True))
def test_reads_what_tritonclient_sends_as_json(tensor: DrawnTensor) -> None:
    datatype, array = tensor
    theirs = tritonclient.http.InferInput("x", list(array.shape), datatype)
    theirs.set_data_from_numpy(array, binary_data=False)

    raw, json_length = triton_body([theirs])
    ours = InferRequest.from_bytes(raw, json_length or len(raw), "m")

    np.testing.assert_array_equal(ours.inputs[0].as_numpy(), array, strict=True)


@CODEC_SETTINGS
@given(tensors(list(NUMPY_DTYPES)))
def test_tritonclient_reads_binary_responses(tensor: DrawnTensor) -> None:
    datatype, array = tensor
    output = InferOutput("y", list(array.shape), datatype, array)

    rest, json_length = InferResponse("7", "m", [output], use_binary_outputs=True).to_rest()
    theirs = tritonclient.http.InferResult.from_response_body(rest, header_length=json_length)

    received = theirs.as_numpy("y")
    assert (received.dtype, received.shape) == (array.dtype, array.shape)
    assert bits(received) == bits(array)


@CODEC_SETTINGS
@given(tensors(JSON_NUMERIC, finite=True))
def test_tritonclient_reads_json_responses(tensor: DrawnTensor) -> None:
    datatype, array = tensor
    output = InferOutput("y", list(array.shape), datatype, array)

    rest, _ = InferResponse("7", "m", [output]).to_rest()
    theirs = tritonclient.http.InferResult.from_response_body(orjson.dumps(rest))

    np.testing.assert_array_equal(theirs.as_numpy("y"), array, strict=True)


@CODEC_SETTINGS
@given(st.lists(TEXT, max_size=8))
def test_strings_reach_tritonclient_as_json_and_in_binary_form(strings: list[str]) -> None:
    output = InferOutput("y", [len(strings)], "BYTES", strings)

    rest, _ = InferResponse("7", "m", [output]).to_rest()
    binary, json_length = InferResponse("7", "m", [output], use_binary_outputs=True).to_rest()

    from_json = tritonclient.http.InferResult.from_response_body(orjson.dumps(rest))
    from_binary = tritonclient.http.InferResult.from_response_body(
        binary, header_length=json_length
    )
    assert from_json.as_numpy("y").tolist() == strings
    assert from_binary.as_numpy("y").tolist() == [string.encode() for string in strings]
