"""V1 JSON: what rows and columns become, what is refused, and what answers look like."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve.errors import InferenceError, InvalidInput
from kserve.protocol.codec import v1_json
from kserve.protocol.infer_type import InferOutput, InferRequest, InferResponse
from kserve.signature import TensorSpec

PROPERTY = settings(derandomize=True, max_examples=100, deadline=None)

A_FP32 = TensorSpec("a", "FP32", (-1, 2))
A_GUESS = TensorSpec("a", "FP32", (-1, 2), exact=False)
COLUMNS = (TensorSpec("a", "FP64", (-1,)), TensorSpec("b", "BYTES", (-1,)))
FLOATS = (TensorSpec("a", "FP64", (-1,)), TensorSpec("b", "FP64", (-1,)))


@dataclass
class Tensor:
    """A tensor in a form that pytest compares and shows."""

    name: str
    datatype: str
    shape: list[int]
    values: list[Any]


def tensors(request: InferRequest) -> list[Tensor]:
    return [
        Tensor(each.name, each.datatype, list(each.shape), each.as_numpy().ravel().tolist())
        for each in request.inputs
    ]


@pytest.mark.parametrize(
    ("body", "specs", "expected"),
    [
        pytest.param(
            b'{"instances":[[1,2],[3,4]]}',
            (),
            [Tensor("input-0", "INT64", [2, 2], [1, 2, 3, 4])],
            id="rows without a signature",
        ),
        pytest.param(
            b'{"inputs":[[1,2],[3,4.5]]}',
            (),
            [Tensor("input-0", "FP64", [2, 2], [1.0, 2.0, 3.0, 4.5])],
            id="rows under inputs, one float",
        ),
        pytest.param(
            b'{"instances":[[1,2],[3,4]]}',
            (A_FP32,),
            [Tensor("a", "FP32", [2, 2], [1.0, 2.0, 3.0, 4.0])],
            id="the datatype of the only input",
        ),
        pytest.param(
            b'{"instances":[[1,2]]}',
            (A_GUESS,),
            [Tensor("a", "INT64", [1, 2], [1, 2])],
            id="a guessed datatype is not enforced",
        ),
        pytest.param(
            b'{"instances":[1,2,3]}',
            (),
            [Tensor("input-0", "INT64", [3], [1, 2, 3])],
            id="scalar rows",
        ),
        pytest.param(
            b'{"instances":[true,false]}',
            (),
            [Tensor("input-0", "BOOL", [2], [True, False])],
            id="booleans",
        ),
        pytest.param(
            b'{"instances":[18446744073709551615,0]}',
            (),
            [Tensor("input-0", "UINT64", [2], [18446744073709551615, 0])],
            id="integers beyond INT64",
        ),
        pytest.param(
            b'{"instances":[18446744073709551615,-1]}',
            (),
            [Tensor("input-0", "FP64", [2], [18446744073709551615.0, -1.0])],
            id="integers that no datatype holds",
        ),
        pytest.param(
            b'{"instances":["x","[y,"]}',
            (),
            [Tensor("input-0", "BYTES", [2], ["x", "[y,"])],
            id="strings",
        ),
        pytest.param(
            b'{"instances":["x",null]}',
            (),
            [Tensor("input-0", "BYTES", [2], ["x", None])],
            id="a missing string",
        ),
        pytest.param(
            b'{"instances":[{"a":1,"b":"x"},{"b":"y","a":2.5}]}',
            COLUMNS,
            [Tensor("a", "FP64", [2], [1.0, 2.5]), Tensor("b", "BYTES", [2], ["x", "y"])],
            id="rows as objects",
        ),
        pytest.param(
            b'{"instances":[{"a":[1,2]},{"a":[3,4]}]}',
            (),
            [Tensor("a", "INT64", [2, 2], [1, 2, 3, 4])],
            id="rows as objects of lists",
        ),
        pytest.param(
            b'{"instances":[{"z":[1,2]}]}',
            (A_FP32,),
            [Tensor("z", "FP32", [1, 2], [1.0, 2.0])],
            id="the only column of the only input",
        ),
        pytest.param(
            b'{"inputs":{"a":[1],"b":["x"]},"signature_name":"s"}',
            COLUMNS,
            [Tensor("a", "FP64", [1], [1.0]), Tensor("b", "BYTES", [1], ["x"])],
            id="columns",
        ),
        pytest.param(
            b'{"instances":[[1,"x"],[2.5,null]]}',
            COLUMNS,
            [Tensor("a", "FP64", [2], [1.0, 2.5]), Tensor("b", "BYTES", [2], ["x", None])],
            id="mixed rows by position",
        ),
        pytest.param(
            b'{"instances":[],"inputs":[5]}',
            (),
            [Tensor("input-0", "INT64", [1], [5])],
            id="inputs wins",
        ),
        pytest.param(
            b'{"instances":[]}', (A_FP32,), [Tensor("a", "FP32", [0, 2], [])], id="no rows"
        ),
        pytest.param(
            b'{"instances":[]}', (), [Tensor("input-0", "FP64", [0], [])], id="no rows, no names"
        ),
        pytest.param(
            b'{"instances":[[],[]]}',
            (),
            [Tensor("input-0", "FP64", [2, 0], [])],
            id="rows of nothing",
        ),
        pytest.param(
            b'{"instances":[[9007199254740993,1.0]]}',
            (TensorSpec("a", "INT64", (-1, 2)),),
            [Tensor("a", "INT64", [1, 2], [9007199254740993, 1])],
            id="an integer above 2**53 beside 1.0",
        ),
    ],
)
def test_reads_rows_and_columns(
    body: bytes, specs: tuple[TensorSpec, ...], expected: list[Tensor]
) -> None:
    request = v1_json.decode_tensors(body, "m", specs)

    assert tensors(request) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(
            b'{"instances":[[1,2],[3,4]]}',
            [Tensor("input-0", "FP64", [2, 2], [1.0, 2.0, 3.0, 4.0])],
            id="numbers stay together",
        ),
        pytest.param(
            b'{"instances":[{"a":1,"b":2}]}',
            [Tensor("a", "FP64", [1], [1.0]), Tensor("b", "FP64", [1], [2.0])],
            id="objects are columns",
        ),
    ],
)
def test_keeps_rows_of_a_uniform_table_together(body: bytes, expected: list[Tensor]) -> None:
    request = v1_json.decode_tensors(body, "m", FLOATS, is_table=True)

    assert tensors(request) == expected


@pytest.mark.parametrize("n_rows", [2, 1000], ids=["small", "block"])
def test_splits_rows_of_numbers_by_position(n_rows: int) -> None:
    body = b'{"instances":[%b]}' % b",".join([b"[1.000000,2]"] * n_rows)

    request = v1_json.decode_tensors(body, "m", FLOATS)

    assert tensors(request) == [
        Tensor("a", "FP64", [n_rows], [1.0] * n_rows),
        Tensor("b", "FP64", [n_rows], [2.0] * n_rows),
    ]


@pytest.mark.parametrize("n_rows", [2, 1000], ids=["small", "block"])
def test_names_the_column_and_row_that_is_out_of_range(n_rows: int) -> None:
    body = b'{"instances":[%b[1,1e300]]}' % (b"[1.000000,2]," * n_rows)
    specs = (TensorSpec("a", "FP64", (-1,)), TensorSpec("b", "FP32", (-1,)))

    with pytest.raises(InvalidInput) as caught:
        v1_json.decode_tensors(body, "m", specs)

    assert caught.value.reason == f"input 'b': the value at [{n_rows}] is 1e+300, which is no FP32"


def test_keeps_a_large_uniform_table_together() -> None:
    body = b'{"instances":[%b]}' % b",".join([b"[1.000000,2]"] * 1000)

    request = v1_json.decode_tensors(body, "m", FLOATS, is_table=True)

    assert tensors(request) == [Tensor("input-0", "FP64", [1000, 2], [1.0, 2.0] * 1000)]


def test_makes_null_a_missing_number() -> None:
    request = v1_json.decode_tensors(b'{"instances":[[1,null]]}', "m", (A_FP32,))

    array = request.inputs[0].as_numpy()
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [[1, np.nan]])


def test_passes_the_parameters_on() -> None:
    body = b'{"instances":[1],"parameters":{"method":"transform","n":1,"x":true}}'

    request = v1_json.decode_tensors(body, "m", ())

    assert request.model_name == "m"
    assert request.parameters == {"method": "transform", "n": 1, "x": True}


@pytest.mark.parametrize(
    ("body", "specs", "reason"),
    [
        pytest.param(b'{"rows":[1]}', (), 'Expected "instances" or "inputs"', id="neither key"),
        pytest.param(b"[1]", (), 'Expected "instances" or "inputs"', id="no object"),
        pytest.param(b"null", (), 'Expected "instances" or "inputs"', id="null"),
        pytest.param(
            b'{"instances":{"a":[1]}}', (), 'Expected "instances" to be a list', id="an object"
        ),
        pytest.param(
            b'{"inputs":1}', (), 'Expected "inputs" to be a list or an object', id="a number"
        ),
        pytest.param(
            b'{"inputs":{"a":1}}', (), "input 'a': expected a list of values", id="scalar column"
        ),
        pytest.param(
            b'{"instances":[1],"parameters":[]}', (), "expected 'parameters'", id="parameters"
        ),
        pytest.param(
            b'{"instances":[1],"parameters":{"p":[]}}', (), "parameter 'p'", id="parameter"
        ),
        pytest.param(
            b'{"instances":[[1,2],[3]]}',
            (),
            "input 'input-0': row 1 has 1 value, row 0 has 2 values",
            id="ragged",
        ),
        pytest.param(
            b'{"instances":[[[1,2],[3]]]}',
            (),
            "list [0, 1] has 1 value, list [0, 0] has 2 values",
            id="ragged inside",
        ),
        pytest.param(
            b'{"instances":[[1],2]}', (), "row 1 is no list, row 0 has 1 value", id="a bare row"
        ),
        pytest.param(
            b'{"instances":[1,[2]]}', (), "the value at [1] is a list", id="a row of another depth"
        ),
        pytest.param(
            b'{"instances":[[1,"2"]]}',
            (A_FP32,),
            "input 'a': the value at [0, 1] is a string, expected FP32",
            id="a string among numbers",
        ),
        pytest.param(
            b'{"instances":["x",2]}', (), "[1] is a number, expected BYTES", id="number in strings"
        ),
        pytest.param(
            b'{"instances":[[1,true]]}',
            (A_FP32,),
            "the value at [0, 1] is a boolean, expected FP32",
            id="a boolean among numbers",
        ),
        pytest.param(
            b'{"instances":[[[{"a":1}]]]}',
            (),
            "[0, 0, 0] is an object, expected FP64",
            id="an object",
        ),
        pytest.param(
            b'{"instances":[[1,1e300]]}',
            (A_FP32,),
            "the value at [0, 1] is 1e+300, which is no FP32",
            id="out of range",
        ),
        pytest.param(
            b'{"instances":[{"a":1,"b":2},{"a":1}]}', (), "row 1 misses 'b'", id="a missing key"
        ),
        pytest.param(
            b'{"instances":[{"a":1},{%s}]}' % b",".join(b'"x%d":1' % i for i in range(12)),
            (),
            "row 1 misses 'a' and has an unknown 'x0', 'x1', 'x2', 'x3', 'x4', 'x5', 'x6', 'x7', "
            "'x8', 'x9' and 2 more",
            id="many unknown keys",
        ),
        pytest.param(
            b'{"instances":[{"a":1},{"a":1,"b":2}]}',
            (),
            "row 1 has an unknown 'b'",
            id="an unknown key",
        ),
        pytest.param(
            b'{"instances":[{"a":1},{"b":1}]}',
            (),
            "row 1 misses 'a' and has an unknown 'b'",
            id="another key",
        ),
        pytest.param(
            b'{"instances":[{"a":1},[1]]}', (), "row 1 is no object", id="a list among objects"
        ),
        pytest.param(
            b'{"instances":[[1,"x"],[2]]}',
            COLUMNS,
            "row 1: expected 2 values (a, b), got 1",
            id="a short row",
        ),
        pytest.param(
            b'{"instances":[1]}',
            COLUMNS,
            "row 0: expected 2 values (a, b), got no list",
            id="a bare value for two inputs",
        ),
        pytest.param(
            b'{"instances":' + b"[" * 40 + b"]" * 40 + b"}", (), "deeper than 32", id="deep lists"
        ),
    ],
)
def test_names_what_is_wrong_with_rows(
    body: bytes, specs: tuple[TensorSpec, ...], reason: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        v1_json.decode_tensors(body, "m", specs)

    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"", "zero-length", id="empty"),
        pytest.param(b'\xef\xbb\xbf{"a":1}', "byte order mark", id="BOM"),
        pytest.param(b'{"a":"\xff"}', "UTF-8", id="invalid UTF-8"),
        pytest.param(b'{"a":NaN}', "send null", id="NaN"),
        pytest.param(b'{"a":[1,-Infinity]}', "send null", id="infinity"),
        pytest.param(b"[" * 100_000, "depth", id="deep nesting"),
        pytest.param(b'{"a":1e400}', "infinity", id="overflow"),
        pytest.param(b'{"a":1', "unexpected end", id="cut short"),
    ],
)
def test_refuses_what_is_no_json(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput, match="^Unrecognized request format: ") as caught:
        v1_json.decode(body)

    assert reason in caught.value.reason


def test_gives_a_users_model_the_plain_value() -> None:
    assert v1_json.decode(b'{"instances":[[1,2.5,null]],"x":{}}') == {
        "instances": [[1, 2.5, None]],
        "x": {},
    }


@given(body=st.binary(max_size=60))
@PROPERTY
def test_any_bytes_give_a_value_or_invalid_input(body: bytes) -> None:
    for decode in (v1_json.decode, lambda each: v1_json.decode_tensors(each, "m", ())):
        try:
            decode(body)
        except InvalidInput as error:
            assert error.reason


VALID_BODIES = (
    b'{"instances":[[1,2.5],[3,null]],"parameters":{"a":1}}',
    b'{"instances":[{"a":1,"b":"x"},{"a":2,"b":null}]}',
    b'{"inputs":{"a":[[1],[2]],"b":[true,false]}}',
)


@given(
    body=st.sampled_from(VALID_BODIES),
    edits=st.lists(
        st.tuples(
            st.integers(0, 60), st.integers(0, 3), st.sampled_from(b'[]{},:"-.019ent \\\xff')
        ),
        min_size=1,
        max_size=4,
    ),
    specs=st.sampled_from(((), (A_FP32,), COLUMNS, FLOATS)),
    is_table=st.booleans(),
)
@PROPERTY
def test_a_damaged_body_gives_a_request_or_invalid_input(
    body: bytes,
    edits: list[tuple[int, int, int]],
    specs: tuple[TensorSpec, ...],
    is_table: bool,
) -> None:
    for position, n_removed, byte in edits:
        body = body[:position] + bytes([byte]) + body[position + n_removed :]

    try:
        request = v1_json.decode_tensors(body, "m", specs, is_table=is_table)
    except InvalidInput:
        return

    assert all(each.as_numpy().shape == tuple(each.shape) for each in request.inputs)


@pytest.mark.parametrize(
    ("outputs", "expected", "n_nulled"),
    [
        pytest.param(
            {"y": np.array([[1, 2]])}, b'{"predictions":[[1,2]]}', 0, id="rows of one output"
        ),
        pytest.param(
            {"y": np.array([6.8], np.float32)},
            b'{"predictions":[6.800000190734863]}',
            0,
            id="FP32 is widened",
        ),
        pytest.param({"y": np.array([1.5], np.float16)}, b'{"predictions":[1.5]}', 0, id="FP16"),
        pytest.param(
            {"y": np.array([np.nan, np.inf, 1.0])},
            b'{"predictions":[null,null,1.0]}',
            2,
            id="NaN and infinity",
        ),
        pytest.param(
            {"y": np.array(["é", b"x"], dtype=object)},
            '{"predictions":["é","x"]}'.encode(),
            0,
            id="text",
        ),
        pytest.param(
            {"y": np.array([1, 2]), "p": np.array([[0.5, np.nan], [1, 0]], np.float32)},
            b'{"predictions":[{"y":1,"p":[0.5,null]},{"y":2,"p":[1.0,0.0]}]}',
            1,
            id="several outputs",
        ),
        pytest.param({"y": np.zeros((0, 3))}, b'{"predictions":[]}', 0, id="no rows"),
        pytest.param({}, b'{"predictions":[]}', 0, id="no outputs"),
        pytest.param(
            {"y": np.arange(6).reshape(2, 3).T},
            b'{"predictions":[[0,3],[1,4],[2,5]]}',
            0,
            id="a transposed array",
        ),
        pytest.param({"y": np.array(5)}, b'{"predictions":5}', 0, id="no axes"),
    ],
)
def test_writes_predictions(outputs: dict[str, Any], expected: bytes, n_nulled: int) -> None:
    datatypes = {"i": "INT64", "O": "BYTES"}
    response = InferResponse(
        "1",
        "m",
        [
            InferOutput(
                name,
                list(array.shape),
                datatypes.get(array.dtype.kind, f"FP{array.dtype.itemsize * 8}"),
                array,
            )
            for name, array in outputs.items()
        ],
    )

    assert v1_json.encode_response(response) == (expected, n_nulled)


@pytest.mark.parametrize(
    ("outputs", "predictions"),
    [
        pytest.param(
            [InferOutput("y", [2], "INT64", [1, 2]), InferOutput("z", [1], "INT64", [1])],
            {"y": [1, 2], "z": [1]},
            id="different lengths",
        ),
        pytest.param(
            [InferOutput("y", [1, 2], "INT64", [1, 2]), InferOutput("n", [], "INT64", [7])],
            {"y": [[1, 2]], "n": 7},
            id="one without axes",
        ),
        pytest.param(
            [InferOutput("m", [], "INT64", [6]), InferOutput("n", [], "INT64", [7])],
            {"m": 6, "n": 7},
            id="none with axes",
        ),
    ],
)
def test_outputs_that_are_no_rows_are_one_object(
    outputs: list[InferOutput], predictions: dict[str, Any]
) -> None:
    answer = v1_json.encode_response(InferResponse("1", "m", outputs)).body

    assert v1_json.decode(answer) == {"predictions": predictions}


def test_an_output_that_is_no_json_is_the_models_fault() -> None:
    response = InferResponse("1", "m", [InferOutput("y", [1], "BYTES", np.array([object()], "O"))])

    with pytest.raises(InferenceError, match="not JSON serializable"):
        v1_json.encode_response(response)


def test_points_from_bytes_that_are_no_text_to_binary_output() -> None:
    response = InferResponse("1", "m", [InferOutput("y", [1], "BYTES", np.array([b"\xff"], "O"))])

    with pytest.raises(InvalidInput, match="binary output"):
        v1_json.encode_response(response)


@given(
    rows=st.integers(1, 4).flatmap(
        lambda n: st.lists(
            st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=n, max_size=n),
            min_size=1,
            max_size=5,
        )
    )
)
@PROPERTY
def test_predictions_sent_back_as_inputs_are_the_same_numbers(rows: list[list[float]]) -> None:
    array = np.array(rows)
    response = InferResponse("1", "m", [InferOutput("y", array.shape, "FP64", array)])

    body = v1_json.encode_response(response).body
    request = v1_json.decode_tensors(body.replace(b"predictions", b"instances"), "m", ())

    assert request.inputs[0].as_numpy().tobytes() == array.tobytes()


def test_a_column_of_booleans_is_bool_whatever_number_the_model_takes() -> None:
    specs = (TensorSpec("area", "FP64", (-1,)), TensorSpec("has_garden", "FP64", (-1,)))

    by_name = v1_json.decode_tensors(
        b'{"instances":[{"area":50,"has_garden":true},{"area":80,"has_garden":false}]}', "m", specs
    )
    by_position = v1_json.decode_tensors(
        b'{"instances":[[50,true],[80,false]]}', "m", specs, is_table=True
    )

    for request in (by_name, by_position):
        assert [(each.datatype, each.as_numpy().tolist()) for each in request.inputs] == [
            ("FP64", [50.0, 80.0]),
            ("BOOL", [True, False]),
        ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(
            b'{"inputs":{"any":[[1,2]],"scale":[3]}}',
            [Tensor("any", "FP32", [1, 2], [1.0, 2.0]), Tensor("scale", "FP32", [1], [3.0])],
            id="beside the only input",
        ),
        pytest.param(
            b'{"inputs":{"a":[[1,2]],"k":4}}',
            [Tensor("a", "FP32", [1, 2], [1.0, 2.0]), Tensor("k", "INT32", [], [4])],
            id="scalar",
        ),
    ],
)
def test_optional_inputs_are_read_in_their_datatype(body: bytes, expected: list[Tensor]) -> None:
    optional = (TensorSpec("scale", "FP32", (1,)), TensorSpec("k", "INT32", ()))

    request = v1_json.decode_tensors(body, "m", (A_FP32,), optional_inputs=optional)

    assert tensors(request) == expected


@pytest.mark.parametrize("value", [b"4", b'"b"', b"null"])
def test_only_an_input_without_axes_may_be_no_list(value: bytes) -> None:
    with pytest.raises(InvalidInput, match="input 'a': expected a list of values"):
        v1_json.decode_tensors(b'{"inputs":{"a":%b}}' % value, "m", (A_FP32,))


def test_a_plain_value_may_be_of_an_input_whose_axes_are_unknown() -> None:
    spec = TensorSpec("x", "FP32", (-1,), is_ranked=False)

    (tensor,) = v1_json.decode_tensors(b'{"inputs": {"x": 2}}', "m", [spec]).inputs

    assert (tensor.shape, tensor.as_numpy().tolist()) == ([], 2.0)


def test_a_dialect_may_put_bytes_in_the_place_of_strings() -> None:
    value = {"instances": [b"\xff", "a", None]}

    for inputs in ([TensorSpec("x", "BYTES", (-1,))], []):
        (tensor,) = v1_json.read_tensors(value, "m", inputs).inputs

        assert tensor.datatype == "BYTES"
        assert tensor.as_numpy().tolist() == [b"\xff", "a", None]


def test_bytes_are_no_numbers() -> None:
    value = {"instances": [1, b"\xff"]}

    with pytest.raises(InvalidInput) as caught:
        v1_json.read_tensors(value, "m", [TensorSpec("x", "FP32", (-1,))])

    assert str(caught.value) == "input 'x': the value at [1] is binary data, expected FP32"
