"""V1 in the words of TensorFlow Serving, from and to literal bytes."""

import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.protobuf import meta_graph_pb2

from kserve.errors import InvalidInput
from kserve.protocol.infer_type import InferOutput, InferRequest, InferResponse
from kserve.signature import Signature, TensorSpec
from tfserver import serving_json
from tfserver.serving_json import ServingRequest, decode, encode

F32 = np.float32

ROWS = Signature((TensorSpec("x", "FP32", (-1, 2)),))
TEXT = Signature((TensorSpec("s", "BYTES", (-1,)),))
SEVERAL = Signature(
    (
        TensorSpec("tag", "BYTES", (-1,)),
        TensorSpec("signal", "INT32", (-1, 3)),
        TensorSpec("scale", "FP32", ()),
    )
)
UNKNOWN = Signature((TensorSpec("u", "FP32", (-1,), is_ranked=False),))
HALF = Signature((TensorSpec("h", "FP16", (-1,)),))
NAMED = {"rows": ROWS, "text": TEXT, "several": SEVERAL, "unknown": UNKNOWN, "half": HALF}


def signature_of(parameters: Any) -> Signature:
    return NAMED[(parameters or {}).get("signature_name", "rows")]


def read(body: bytes) -> ServingRequest:
    return decode(body, "m", signature_of)


def tensors(request: InferRequest) -> dict[str, Any]:
    return {
        each.name: (each.datatype, list(each.shape), each.as_numpy().tolist())
        for each in request.inputs
    }


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(
            b'{"instances": [[1, 2.5], [3, 4]]}',
            {"x": ("FP32", [2, 2], [[1.0, 2.5], [3.0, 4.0]])},
            id="rows",
        ),
        pytest.param(
            b'{"instances": [{"x": [1, 2]}, {"x": [3, 4]}]}',
            {"x": ("FP32", [2, 2], [[1.0, 2.0], [3.0, 4.0]])},
            id="rows as objects",
        ),
        pytest.param(
            b'{"instances": [], "signature_name": "rows"}', {"x": ("FP32", [0, 2], [])}, id="none"
        ),
        pytest.param(
            b'{"signature_name": "text", "instances": ["a", {"b64": "/w=="}, {"b64": ""}]}',
            {"s": ("BYTES", [3], ["a", b"\xff", b""])},
            id="base64 in rows",
        ),
        pytest.param(
            b'{"signature_name": "text", "instances": [{"s": {"b64": "YQ=="}}, {"s": "b"}]}',
            {"s": ("BYTES", [2], [b"a", "b"])},
            id="base64 in objects",
        ),
        pytest.param(
            b'{"signature_name": "text", "instances": [[{"b64": "YQ=="}], [{"b64": "Yg=="}]]}',
            {"s": ("BYTES", [2, 1], [[b"a"], [b"b"]])},
            id="lists of base64",
        ),
        pytest.param(
            b'{"signature_name": "text", "instances": [{"b64": "YWI"}, {"b64": "Y W\\nI="}]}',
            {"s": ("BYTES", [2], [b"ab", b"ab"])},
            id="base64 without padding, with spaces",
        ),
        pytest.param(
            b'{"signature_name": "several", "instances": [{"tag": "a", "signal": [1, 2, 3], '
            b'"scale": 1}, {"tag": "b", "signal": [4, 5, 6], "scale": 2}]}',
            {
                "tag": ("BYTES", [2], ["a", "b"]),
                "signal": ("INT32", [2, 3], [[1, 2, 3], [4, 5, 6]]),
                "scale": ("FP32", [2], [1.0, 2.0]),
            },
            id="rows of several inputs",
        ),
        pytest.param(
            b'{"signature_name": "half", "instances": [0.5]}',
            {"h": ("FP16", [1], [0.5])},
            id="FP16",
        ),
    ],
)
def test_reads_rows(body: bytes, expected: dict[str, Any]) -> None:
    request = read(body)

    assert (tensors(request), request.is_columnar) == (expected, False)
    assert request.model_name == "m"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b'{"inputs": [[1, 2]]}', {"x": ("FP32", [1, 2], [[1.0, 2.0]])}, id="a list"),
        pytest.param(
            b'{"inputs": {"x": [[1, null]]}}',
            {"x": ("FP32", [1, 2], [[1.0, math.nan]])},
            id="by name",
        ),
        pytest.param(
            b'{"inputs": 2.5, "signature_name": "unknown"}', {"u": ("FP32", [], 2.5)}, id="a number"
        ),
        pytest.param(
            b'{"inputs": {"u": 2.5}, "signature_name": "unknown"}',
            {"u": ("FP32", [], 2.5)},
            id="a number by name",
        ),
        pytest.param(
            b'{"inputs": {"s": [{"b64": "AA=="}]}, "signature_name": "text"}',
            {"s": ("BYTES", [1], [b"\x00"])},
            id="base64",
        ),
        pytest.param(
            b'{"inputs": {"tag": ["a", "b"], "signal": [[1, 2, 3]], "scale": 3}, '
            b'"signature_name": "several"}',
            {
                "tag": ("BYTES", [2], ["a", "b"]),
                "signal": ("INT32", [1, 3], [[1, 2, 3]]),
                "scale": ("FP32", [], 3.0),
            },
            id="of different lengths",
        ),
        pytest.param(
            b'{"inputs": [{"x": [1, 2]}, {"x": [3, 4]}]}',
            {"x": ("FP32", [2, 2], [[1.0, 2.0], [3.0, 4.0]])},
            id="rows as objects",
        ),
    ],
)
def test_reads_columns(body: bytes, expected: dict[str, Any]) -> None:
    request = read(body)

    np.testing.assert_equal(tensors(request), expected)
    assert request.is_columnar


def test_a_base64_object_may_be_the_whole_input() -> None:
    scalar = Signature((TensorSpec("s", "BYTES", ()),))

    request = decode(b'{"inputs": {"b64": "aGk="}}', "m", lambda parameters: scalar)

    assert tensors(request) == {"s": ("BYTES", [], b"hi")}


def test_a_large_table_is_read_as_a_small_one() -> None:
    rows = [[i / 7, -i] for i in range(2000)]

    request = read(orjson.dumps({"instances": rows}))

    assert tensors(request)["x"][2] == np.array(rows, F32).tolist()


def test_what_is_wrong_with_a_large_table_is_named_too() -> None:
    rows = [[i / 7, -i] for i in range(2000)]

    with pytest.raises(
        InvalidInput, match=r"^input 'x': the value at \[1999, 1\] is 1e\+300, which"
    ):
        read(orjson.dumps({"instances": [*rows[:-1], [0, 1e300]]}))


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        (b'"signature_name": "rows"', {"signature_name": "rows"}),
        (b'"signature_name": ""', None),
        (b'"parameters": {"a": 1}, "signature_name": "rows"', {"a": 1, "signature_name": "rows"}),
        (b'"parameters": {"signature_name": "rows"}', {"signature_name": "rows"}),
    ],
)
def test_the_signature_is_a_parameter(member: bytes, expected: Any) -> None:
    assert read(b'{"instances": [[1, 2]], %b}' % member).parameters == expected


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[]", 'Expected either "instances" or "inputs" in a JSON object'),
        (b"{}", 'Expected either "instances" or "inputs" in a JSON object'),
        (
            b'{"instances": [], "inputs": []}',
            'Expected either "instances" or "inputs" in a JSON object, got both',
        ),
        (b'{"instances": 1}', 'Expected "instances" to be a list'),
        (b'{"instances": [1], "signature_name": 1}', "expected 'signature_name' to be a string"),
        (b'{"instances": [[1, 2], [3]]}', "input 'x': row 1 has 1 value, row 0 has 2 values"),
        (
            b'{"instances": [{"x": [1, 2]}, {"y": [1, 2]}]}',
            "row 1 misses 'x' and has an unknown 'y': every row must have the keys of row 0",
        ),
        (
            b'{"instances": [{"b64": "YWI!"}], "signature_name": "text"}',
            "expected base64 in {\"b64\": ...}, got 'YWI!': Only base64 data is allowed",
        ),
        (
            b'{"instances": [[{"b64": "YQ=="}, 1]]}',
            "input 'x': the value at [0, 0] is binary data, expected FP32",
        ),
        (
            b'{"inputs": {"s": [1]}, "signature_name": "text"}',
            "input 's': the value at [0] is a number, expected BYTES",
        ),
        (b'{"inputs": {"x": 1}}', "input 'x': expected a list of values"),
    ],
)
def test_says_what_is_wrong_with_a_body(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(body)

    assert str(caught.value) == reason


@given(
    st.binary(max_size=40) | st.from_regex(rb'\{"(instances|inputs)": [\[\{"b64:, 1\]\}]{,20}\}')
)
def test_any_bytes_give_a_request_or_invalid_input(body: bytes) -> None:
    try:
        read(body)
    except InvalidInput:
        pass


def output(name: str, array: Any, datatype: str) -> InferOutput:
    array = np.asarray(array)
    return InferOutput.from_array(name, list(array.shape), datatype, array.reshape(-1))


def written(*outputs: InferOutput, is_columnar: bool = False) -> tuple[bytes, int]:
    request = ServingRequest("m", [])
    request.is_columnar = is_columnar
    return tuple(encode(request, InferResponse("1", "m", list(outputs))))  # type: ignore[return-value]


SCORES = output("scores", np.array([[0.2, 1.0], [1e-7, 16777216]], F32), "FP32")
LABELS = output("labels", np.array([3, -4]), "INT64")
NAMES = output("names", np.array([b"a", "é".encode()], np.object_), "BYTES")
RAW = output("raw_bytes", np.array([b"\xff", b""], np.object_), "BYTES")
COUNT = output("count", np.array(0.2, F32), "FP32")


@pytest.mark.parametrize(
    ("outputs", "rows", "columns"),
    [
        pytest.param([SCORES], "[[0.2,1.0],[1e-7,16777216.0]]", None, id="FP32"),
        pytest.param(
            [output("y", np.array([0.5, 65504], np.float16), "FP16")],
            "[0.5,65504.0]",
            None,
            id="FP16",
        ),
        pytest.param([output("y", np.array([0.1]), "FP64")], "[0.1]", None, id="FP64"),
        pytest.param([LABELS], "[3,-4]", None, id="integers"),
        pytest.param([NAMES], '["a","é"]', None, id="texts"),
        pytest.param([RAW], '[{"b64":"/w=="},{"b64":""}]', None, id="binary"),
        pytest.param([COUNT], "0.2", None, id="a number"),
        pytest.param([output("s", np.array(b"x", np.object_), "BYTES")], '"x"', None, id="a text"),
        pytest.param(
            [output("b_bytes", np.array(b"x", np.object_), "BYTES")],
            '{"b64":"eA=="}',
            None,
            id="a binary",
        ),
        pytest.param(
            [SCORES, LABELS, RAW],
            '[{"scores":[0.2,1.0],"labels":3,"raw_bytes":{"b64":"/w=="}},'
            '{"scores":[1e-7,16777216.0],"labels":-4,"raw_bytes":{"b64":""}}]',
            '{"scores":[[0.2,1.0],[1e-7,16777216.0]],"labels":[3,-4],'
            '"raw_bytes":[{"b64":"/w=="},{"b64":""}]}',
            id="several",
        ),
        pytest.param(
            [output("a", np.array([0.2, 0.3], F32), "FP32"), LABELS],
            '[{"a":0.2,"labels":3},{"a":0.3,"labels":-4}]',
            '{"a":[0.2,0.3],"labels":[3,-4]}',
            id="numbers in rows",
        ),
        pytest.param(
            [LABELS, COUNT],
            '{"labels":[3,-4],"count":0.2}',
            '{"labels":[3,-4],"count":0.2}',
            id="no rows",
        ),
        pytest.param(
            [LABELS, output("y", np.array([0.2], F32), "FP32")],
            '{"labels":[3,-4],"y":[0.2]}',
            '{"labels":[3,-4],"y":[0.2]}',
            id="different lengths",
        ),
    ],
)
def test_writes_rows_and_columns(
    outputs: list[InferOutput], rows: str, columns: str | None
) -> None:
    assert written(*outputs) == (f'{{"predictions":{rows}}}'.encode(), 0)
    expected = f'{{"outputs":{columns or rows}}}'.encode()
    assert written(*outputs, is_columnar=True) == (expected, 0)


def test_what_is_no_json_number_is_null_and_counted() -> None:
    array = np.array([np.nan, 1, -np.inf])

    for dtype, datatype in ((F32, "FP32"), (np.float64, "FP64"), (np.float16, "FP16")):
        y = output("y", array.astype(dtype), datatype)
        assert written(y) == (b'{"predictions":[null,1.0,null]}', 2)
        both = b'{"predictions":[{"y":null,"z":null},{"y":1.0,"z":1.0},{"y":null,"z":null}]}'
        assert written(y, output("z", array.astype(dtype), datatype)) == (both, 4)


def test_points_from_bytes_that_are_no_text_to_base64() -> None:
    with pytest.raises(
        InvalidInput, match="^output 'y' holds bytes that are not UTF-8: V1 carries"
    ):
        written(output("y", np.array([b"\xff"], np.object_), "BYTES"))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_fp32_is_written_so_that_it_reads_as_the_same_number(values: list[float]) -> None:
    array = np.array(values, F32)

    body, _ = written(output("y", array, "FP32"))

    read_back = np.array(orjson.loads(body)["predictions"]).astype(F32)
    np.testing.assert_array_equal(read_back, array)


def test_metadata_is_in_the_form_of_the_proto() -> None:
    definition = meta_graph_pb2.SignatureDef(method_name="tensorflow/serving/predict")
    x = definition.inputs["x"]
    x.name, x.dtype = "serving_default_x:0", 1
    x.tensor_shape.dim.add(size=-1)
    definition.outputs["y"].name = "Identity:0"
    definition.outputs["y"].tensor_shape.unknown_rank = True

    unknown = {"dim": [], "unknown_rank": True}
    shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert serving_json.metadata({"serving_default": definition}) == {
        "signature_def": {
            "signature_def": {
                "serving_default": {
                    "inputs": {
                        "x": {
                            "name": "serving_default_x:0",
                            "dtype": "DT_FLOAT",
                            "tensor_shape": shape,
                        }
                    },
                    "outputs": {
                        "y": {"name": "Identity:0", "dtype": "DT_INVALID", "tensor_shape": unknown}
                    },
                    "method_name": "tensorflow/serving/predict",
                    "defaults": {},
                }
            }
        }
    }
