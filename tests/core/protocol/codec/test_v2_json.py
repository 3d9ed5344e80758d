"""V2 JSON against literal bodies and against tritonclient's own encoder."""

from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.utils import np_to_triton_dtype

from kserve.errors import InferenceError, InvalidInput
from kserve.protocol.codec import v2_json
from kserve.protocol.infer_type import InferOutput, InferResponse, RequestedOutput

PROPERTY = settings(derandomize=True, max_examples=100, deadline=None)

NUMBERS = [
    "bool", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "float32", "float64",
]  # fmt: skip


def request_of(entry: bytes, before: bytes = b"") -> bytes:
    return b"{%b%b}" % (before, b'"inputs":[%b]' % entry)


def test_reads_a_whole_request() -> None:
    body = (
        b'{"id":"7","parameters":{"s":"x","b":true,"i":1,"f":1.5},'
        b'"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","parameters":{"p":1},'
        b'"data":[[1,2],[3,4.5]]},'
        b'{"name":"s","shape":[2],"datatype":"bytes","data":["a","[b,"]}],'
        b'"outputs":[{"name":"y","parameters":{"binary_data":false}},{"name":"z"}]}'
    )

    request = v2_json.decode(body, "m")

    x, s = request.inputs
    assert (request.id, request.model_name) == ("7", "m")
    assert request.parameters == {"s": "x", "b": True, "i": 1, "f": 1.5}
    assert request.request_outputs == [
        RequestedOutput("y", {"binary_data": False}),
        RequestedOutput("z"),
    ]
    assert (x.name, x.shape, x.datatype, x.parameters) == ("x", [2, 2], "FP32", {"p": 1})
    assert x.as_numpy().dtype == np.float32
    assert x.as_numpy().tolist() == [[1.0, 2.0], [3.0, 4.5]]
    assert x.data == [[1.0, 2.0], [3.0, 4.5]]
    assert (s.name, s.shape, s.datatype, s.parameters) == ("s", [2], "BYTES", None)
    assert s.as_numpy().tolist() == ["a", "[b,"]


def test_a_request_needs_inputs_alone() -> None:
    body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":[1]}]}'

    request = v2_json.decode(body, "m")

    assert (request.id, request.parameters, request.request_outputs) == (None, None, None)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "expected"),
    [
        pytest.param("INT64", [2, 2], "[1,2,3,4]", [[1, 2], [3, 4]], id="flat"),
        pytest.param("INT64", [2, 1, 2], "[[1,2],[3,4]]", [[[1, 2]], [[3, 4]]], id="partly nested"),
        pytest.param("INT64", [2], "[[1,2]]", [1, 2], id="an extra axis of 1"),
        pytest.param("INT64", [], "[5]", 5, id="no axes"),
        pytest.param("INT64", [0, 4], "[]", [], id="empty"),
        pytest.param("INT64", [2, 0], "[[],[]]", [[], []], id="nested empty"),
        pytest.param("INT64", [2], "[1.0,-2e2]", [1, -200], id="whole floats are integers"),
        pytest.param(
            "INT64", [2], "[9007199254740993,1.0]", [9007199254740993, 1], id="above 2**53"
        ),
        pytest.param(
            "UINT64", [2], "[18446744073709551615,0]", [18446744073709551615, 0], id="UINT64"
        ),
        pytest.param("INT64", [1], "[-9223372036854775808]", [-(2**63)], id="lowest INT64"),
        pytest.param("BOOL", [4], "[true,0,1,false]", [True, False, True, False], id="booleans"),
        pytest.param("FP64", [2], "[18446744073709551616,1]", [2.0**64, 1.0], id="huge integer"),
        pytest.param("FP32", [1], "[3.4028234663852886e38]", [3.4028234663852886e38], id="largest"),
    ],
)
def test_reads_data_by_datatype_and_shape(
    datatype: str, shape: list[int], data: str, expected: Any
) -> None:
    body = f'{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}]}}'

    request = v2_json.decode(body.encode(), "m")

    array = request.inputs[0].as_numpy()
    assert array.shape == tuple(shape)
    assert array.tolist() == expected


def test_reads_null_as_nan() -> None:
    body = request_of(b'{"name":"x","shape":[2],"datatype":"FP64","data":[null,-0.0]}')

    array = v2_json.decode(body, "m").inputs[0].as_numpy()

    assert array.tobytes() == np.array([np.nan, -0.0]).tobytes()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"[]", "expected an inference request, a JSON object", id="no object"),
        pytest.param(b"{}", "expected 'inputs'", id="no inputs"),
        pytest.param(b'{"inputs":{}}', "expected 'inputs'", id="inputs are an object"),
        pytest.param(b'{"inputs":[]}', "expected 'inputs'", id="no input"),
        pytest.param(b'{"inputs":[1]}', "inputs[0]: expected an object", id="input is a number"),
        pytest.param(
            request_of(b'{"shape":[1],"datatype":"INT8","data":[1]}'),
            "inputs[0]: expected 'name', a string, it is missing",
            id="no name",
        ),
        pytest.param(
            request_of(b'{"name":5,"shape":[1],"datatype":"INT8","data":[1]}'),
            "inputs[0]: expected 'name', a string, got 5",
            id="name is a number",
        ),
        pytest.param(
            request_of(b'{"name":"x","datatype":"INT8","data":[1]}'),
            "input 'x': expected 'shape', a list of whole numbers, it is missing",
            id="no shape",
        ),
        pytest.param(
            request_of(b'{"name":"x","shape":1,"datatype":"INT8","data":[1]}'),
            "input 'x': expected 'shape', a list of whole numbers, got 1",
            id="shape is a number",
        ),
        pytest.param(
            request_of(b'{"name":"x","shape":[1.0],"datatype":"INT8","data":[1]}'),
            "expected 'shape', a list of whole numbers, got [1.0]",
            id="float in shape",
        ),
        pytest.param(
            request_of(b'{"name":"x","shape":[true],"datatype":"INT8","data":[1]}'),
            "expected 'shape', a list of whole numbers, got [True]",
            id="boolean in shape",
        ),
        pytest.param(
            request_of(b'{"name":"x","shape":[-1],"datatype":"INT8","data":[1]}'),
            "input 'x': shape [-1] has a negative axis",
            id="negative axis",
        ),
        pytest.param(
            request_of(b'{"name":"x","shape":[%b1],"datatype":"INT8","data":[1]}' % (b"1," * 32)),
            "input 'x': shape has 33 axes, expected at most 32",
            id="too many axes",
        ),
        pytest.param(
            request_of(
                b'{"name":"x","shape":[0,4611686018427387904,9],"datatype":"INT8","data":[]}'
            ),
            "is too large",
            id="axes that numpy refuses",
        ),
        pytest.param(
            request_of(b'{"name":"x","shape":[1],"data":[1]}'),
            "input 'x': expected 'datatype', a string, it is missing",
            id="no datatype",
        ),
        pytest.param(
            request_of(b'{"name":"x","shape":[1],"datatype":"FP8","data":[1]}'),
            "input 'x': unknown datatype 'FP8', expected one of BOOL, INT8, INT16, INT32, INT64, "
            "UINT8, UINT16, UINT32, UINT64, FP16, FP32, FP64, BYTES",
            id="unknown datatype",
        ),
        pytest.param(
            request_of(b'{"name":"x","shape":[1],"datatype":"INT8"}'),
            "input 'x': 'data' is missing",
            id="no data",
        ),
        pytest.param(
            request_of(b'{"name":"x","shape":[1],"datatype":"INT8","data":null}'),
            "input 'x': expected 'data' to be a list",
            id="data is null",
        ),
        pytest.param(
            request_of(b'{"name":"x","shape":[2,4],"datatype":"INT8","data":[1,2,3,4,5,6,7]}'),
            "input 'x': shape [2, 4] holds 8 values, got 7",
            id="too few values",
        ),
        pytest.param(
            request_of(b'{"name":"x","shape":[2,3],"datatype":"INT8","data":[[1,2],[3,4],[5,6]]}'),
            "input 'x': shape [2, 3] disagrees with data nested as [3, 2]",
            id="nested otherwise",
        ),
        pytest.param(
            request_of(b'{"name":"x","shape":[2,2],"datatype":"INT8","data":[[1,2],[3]]}'),
            "input 'x': row 1 has 1 value, row 0 has 2 values",
            id="ragged",
        ),
        pytest.param(
            request_of(
                b'{"name":"x","shape":[1],"datatype":"INT8","data":[1]},'
                b'{"name":"x","shape":[1],"datatype":"INT8","data":[1]}'
            ),
            "input 'x' comes twice",
            id="duplicate name",
        ),
        pytest.param(
            request_of(b'{"name":"x","shape":[1],"datatype":"FP16","data":[1]}'),
            "FP16 data via JSON is not supported",
            id="FP16",
        ),
        pytest.param(
            request_of(
                b'{"name":"x","shape":[1],"datatype":"INT8","parameters":{"binary_data_size":1}}'
            ),
            "Inference-Header-Content-Length",
            id="binary data in JSON",
        ),
        pytest.param(
            request_of(b'{"name":"x","shape":[1],"datatype":"INT8","data":[1],"parameters":[]}'),
            "input 'x': expected 'parameters' to be an object",
            id="parameters of an input",
        ),
        pytest.param(
            request_of(b"{}", b'"parameters":5,').replace(
                b"{}", b'{"name":"x","shape":[1],"datatype":"INT8","data":[1]}'
            ),
            "the request: expected 'parameters' to be an object",
            id="parameters of the request",
        ),
        pytest.param(
            b'{"id":5,"inputs":[]}', "expected 'id' to be a string, got 5", id="id is a number"
        ),
        pytest.param(
            b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":[1]}],"outputs":{}}',
            "expected 'outputs' to be a list",
            id="outputs are an object",
        ),
        pytest.param(
            b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":[1]}],"outputs":["y"]}',
            "outputs[0]: expected an object",
            id="output is a string",
        ),
        pytest.param(
            b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":[1]}],'
            b'"outputs":[{"name":"y"},{"name":"y"}]}',
            "output 'y' comes twice",
            id="duplicate output",
        ),
        pytest.param(b'{"inputs":[NaN]}', "send null", id="NaN"),
        pytest.param(b"\xef\xbb\xbf{}", "byte order mark", id="BOM"),
    ],
)
def test_names_the_input_and_the_field_that_is_wrong(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        v2_json.decode(body, "m")

    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("datatype", "data", "reason"),
    [
        pytest.param("INT8", "[1,300]", "[1] is 300, which is no INT8", id="INT8"),
        pytest.param("UINT8", "[1,-1]", "[1] is -1, which is no UINT8", id="UINT8"),
        pytest.param("UINT64", "[1,-1]", "[1] is -1, which is no UINT64", id="UINT64"),
        pytest.param("INT64", "[1,9223372036854775808]", "[1] is 9223372036854775808", id="INT64"),
        pytest.param("INT32", "[1.5,1]", "[0] is 1.5, which is no INT32", id="a fraction"),
        pytest.param("INT64", "[1,1e300]", "[1] is 1e+300", id="a huge float"),
        pytest.param("FP32", "[1,-1e300]", "[1] is -1e+300, which is no FP32", id="FP32"),
        pytest.param("FP32", '[1,"2"]', "[1] is a string, expected FP32", id="a string"),
        pytest.param("FP32", "[1,true]", "[1] is a boolean, expected FP32", id="a boolean"),
        pytest.param("INT8", "[1,false]", "[1] is a boolean, expected INT8", id="false"),
        pytest.param("INT8", "[1,null]", "[1] is null, expected INT8", id="null in integers"),
        pytest.param("BYTES", '["a",null]', "[1] is null, expected BYTES", id="null in BYTES"),
        pytest.param("BYTES", '["a",1]', "[1] is a number, expected BYTES", id="number in BYTES"),
        pytest.param("BOOL", "[1,2]", "[1] is 2, which is no BOOL", id="2 in BOOL"),
        pytest.param("BOOL", '[1,"true"]', "[1] is a string, expected BOOL", id="string in BOOL"),
        pytest.param("FP32", "[1,{}]", "[1] is an object, expected FP32", id="an object"),
        pytest.param("FP32", "[1,[2]]", "[1] is a list, expected FP32", id="a list"),
    ],
)
def test_names_the_value_that_does_not_fit_the_datatype(
    datatype: str, data: str, reason: str
) -> None:
    body = f'{{"inputs":[{{"name":"x","shape":[2],"datatype":"{datatype}","data":{data}}}]}}'

    with pytest.raises(InvalidInput) as caught:
        v2_json.decode(body.encode(), "m")

    assert caught.value.reason.startswith("input 'x': the value at ")
    assert reason in caught.value.reason


@given(
    array=st.sampled_from(NUMBERS).flatmap(
        lambda dtype: arrays.arrays(
            dtype,
            arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9),
            elements=(
                {"allow_nan": False, "allow_infinity": False} if dtype.startswith("f") else None
            ),
        )
    )
)
@PROPERTY
def test_reads_what_tritonclient_writes(array: np.ndarray[Any, Any]) -> None:
    tensor = triton.InferInput("x", list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array, binary_data=False)
    body, json_length = triton.InferenceServerClient.generate_request_body([tensor])

    decoded = v2_json.decode(body, "m").inputs[0].as_numpy()

    assert json_length is None
    assert (decoded.dtype, decoded.shape) == (array.dtype, array.shape)
    assert decoded.tobytes() == array.tobytes()


@given(
    array=st.sampled_from(NUMBERS).flatmap(
        lambda dtype: arrays.arrays(
            dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9)
        )
    )
)
@PROPERTY
def test_tritonclient_reads_what_is_written(array: np.ndarray[Any, Any]) -> None:
    datatype = np_to_triton_dtype(array.dtype)
    response = InferResponse("1", "m", [InferOutput("y", array.shape, datatype, array)])

    encoded = v2_json.encode(response)

    is_lost = ~np.isfinite(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
    assert encoded.n_nulled == is_lost.sum()
    body = encoded.body.replace(b"null", b"NaN").replace(b"NaN", b"null", 2)
    result = triton.InferenceServerClient.parse_response_body(
        body.replace(b'"parameters":NaN', b'"parameters":null')
    )
    expected = np.where(is_lost, np.nan, array) if is_lost.any() else array
    np.testing.assert_array_equal(result.as_numpy("y"), expected)


def test_strings_travel_both_ways_through_tritonclient() -> None:
    array = np.array([["é", "", '"[,\\'], ["\x01", "\U0001f600", "null"]], dtype=object)
    tensor = triton.InferInput("x", [2, 3], "BYTES")
    tensor.set_data_from_numpy(array, binary_data=False)
    body, _ = triton.InferenceServerClient.generate_request_body([tensor])

    decoded = v2_json.decode(body, "m").inputs[0].as_numpy()
    encoded = v2_json.encode(InferResponse("1", "m", [InferOutput("y", [2, 3], "BYTES", decoded)]))

    assert decoded.tolist() == array.tolist()
    result = triton.InferenceServerClient.parse_response_body(encoded.body)
    assert result.as_numpy("y").tolist() == array.tolist()


@given(body=st.binary(max_size=60))
@PROPERTY
def test_any_bytes_give_a_request_or_invalid_input(body: bytes) -> None:
    try:
        v2_json.decode(body, "m")
    except InvalidInput as error:
        assert error.reason


@given(
    edits=st.lists(
        st.tuples(
            st.integers(0, 160), st.integers(0, 3), st.sampled_from(b'[]{},:"-.019ent \\\xff')
        ),
        min_size=1,
        max_size=4,
    )
)
@PROPERTY
def test_a_damaged_body_gives_a_request_or_invalid_input(edits: list[tuple[int, int, int]]) -> None:
    body = (
        b'{"id":"1","parameters":{"a":1},"outputs":[{"name":"y"}],"inputs":['
        b'{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2.5],[3,null]]},'
        b'{"name":"s","shape":[1],"datatype":"BYTES","data":["a"]}]}'
    )
    for position, n_removed, byte in edits:
        body = body[:position] + bytes([byte]) + body[position + n_removed :]

    try:
        request = v2_json.decode(body, "m")
    except InvalidInput:
        return

    assert all(each.as_numpy().shape == tuple(each.shape) for each in request.inputs)


def test_writes_a_response_byte_for_byte() -> None:
    response = InferResponse(
        "123",
        "M",
        [
            InferOutput("fp32_output", [2, 2], "FP32", np.array([[6.8, 1], [np.nan, 2]], "f4")),
            InferOutput("label", [1], "BYTES", np.array([b"a"], "O"), {"p": 1}),
        ],
    )

    assert v2_json.encode(response) == (
        b'{"model_name":"M","model_version":null,"id":"123","parameters":null,"outputs":['
        b'{"name":"fp32_output","shape":[2,2],"datatype":"FP32","parameters":null,'
        b'"data":[6.800000190734863,1.0,null,2.0]},'
        b'{"name":"label","shape":[1],"datatype":"BYTES","parameters":{"p":1},"data":["a"]}]}',
        1,
    )


def test_writes_version_parameters_and_only_requested_outputs() -> None:
    response = InferResponse(
        "1",
        "M",
        [InferOutput("a", [1], "INT8", [1]), InferOutput("b", [1], "BOOL", [True])],
        model_version="2",
        parameters={"s": "x", "f": 1.5},
        requested_outputs=[RequestedOutput("b")],
    )

    assert v2_json.encode(response).body == (
        b'{"model_name":"M","model_version":"2","id":"1","parameters":{"s":"x","f":1.5},'
        b'"outputs":[{"name":"b","shape":[1],"datatype":"BOOL","parameters":null,"data":[true]}]}'
    )


def test_leaves_the_size_of_a_binary_form_out_of_json() -> None:
    output = InferOutput("a", [1], "INT8", parameters={"p": 1})
    output.set_data_from_numpy(np.array([5], np.int8))

    body = v2_json.encode(InferResponse("1", "M", [output])).body

    assert body.endswith(b'"datatype":"INT8","parameters":{"p":1},"data":[5]}]}')


@pytest.mark.parametrize(
    ("output", "requested", "reason"),
    [
        pytest.param(
            InferOutput("y", [1], "FP16", np.array([1], np.float16)),
            None,
            "FP16 data via JSON is not supported",
            id="FP16",
        ),
        pytest.param(
            InferOutput("y", [1], "BYTES", np.array([b"\xff"], "O")),
            None,
            "ask for binary output",
            id="bytes that are no text",
        ),
        pytest.param(
            InferOutput("y", [1], "INT8", [1]),
            [RequestedOutput("z")],
            "Unexpected inference output 'z'",
            id="unknown output",
        ),
    ],
)
def test_refuses_outputs_that_json_cannot_carry(
    output: InferOutput, requested: list[RequestedOutput] | None, reason: str
) -> None:
    response = InferResponse("1", "M", [output], requested_outputs=requested)

    with pytest.raises(InvalidInput) as caught:
        v2_json.encode(response)

    assert reason in caught.value.reason


def test_a_parameter_that_is_no_json_is_the_models_fault() -> None:
    response = InferResponse("1", "M", [], parameters={"p": object()})

    with pytest.raises(InferenceError, match="cannot be written as JSON"):
        v2_json.encode(response)
