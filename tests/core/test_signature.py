"""The check of a request against what a model takes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kserve.errors import InvalidInput
from kserve.protocol.codec.dtypes import NUMPY_DTYPES, from_np_dtype
from kserve.protocol.infer_type import InferInput, InferRequest
from kserve.signature import Signature, TensorSpec

MATRIX = Signature(inputs=(TensorSpec("x", "FP64", (-1, 4)),))
SCALARS = Signature(inputs=(TensorSpec("x", "FP64", (-1,)),))
PAIR = Signature(inputs=(TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "BYTES", (-1,))))
TABLE = Signature(
    inputs=(TensorSpec("age", "FP64", (-1,)), TensorSpec("fare", "FP64", (-1,))), is_table=True
)
MIXED_TABLE = Signature(
    inputs=(TensorSpec("age", "FP64", (-1,)), TensorSpec("city", "BYTES", (-1,))), is_table=True
)
GUESSED_TABLE = Signature(
    inputs=(
        TensorSpec("age", "FP64", (-1,), exact=False),
        TensorSpec("city", "BYTES", (-1,), exact=False),
    ),
    is_table=True,
)
PARTLY_GUESSED_TABLE = Signature(
    inputs=(TensorSpec("age", "BYTES", (-1,), exact=False), TensorSpec("fare", "FP32", (-1,))),
    is_table=True,
)
WIDE = Signature(inputs=tuple(TensorSpec(f"x{i}", "FP64", (-1,)) for i in range(12)))
TEN = ", ".join(f"'x{i}'" for i in range(10))
FIXED = Signature(inputs=(TensorSpec("a", "FP64", (-1,)), TensorSpec("b", "FP64", (3,))))
ONE_COLUMN = Signature(inputs=(TensorSpec("age", "FP64", (-1,)),), is_table=True)


def request_of(**tensors: NDArray[Any]) -> InferRequest:
    return InferRequest(
        "m",
        [
            InferInput.from_array(name, list(array.shape), from_np_dtype(array.dtype) or "", array)
            for name, array in tensors.items()
        ],
    )


def text(*values: str) -> NDArray[Any]:
    return np.array(values, np.object_)


@pytest.mark.parametrize(
    ("signature", "given", "expected"),
    [
        pytest.param(
            Signature(), {"any": np.ones((2, 3))}, {"any": np.ones((2, 3))}, id="nothing known"
        ),
        pytest.param(MATRIX, {"x": np.ones((2, 4))}, {"x": np.ones((2, 4))}, id="as it is"),
        pytest.param(MATRIX, {"q": np.ones((2, 4))}, {"x": np.ones((2, 4))}, id="any name for one"),
        pytest.param(
            MATRIX, {"x": np.ones((2, 4), np.int64)}, {"x": np.ones((2, 4))}, id="integers to FP64"
        ),
        pytest.param(
            FIXED,
            {"a": np.ones(2), "b": np.ones(3)},
            {"a": np.ones(2), "b": np.ones(3)},
            id="an input that has no rows",
        ),
        pytest.param(MATRIX, {"x": np.ones((0, 4))}, {"x": np.ones((0, 4))}, id="no rows"),
        pytest.param(SCALARS, {"x": np.ones((3, 1))}, {"x": np.ones(3)}, id="a column is scalars"),
        pytest.param(
            PAIR,
            {"b": text("u"), "a": np.ones((1, 2))},
            {"a": np.ones((1, 2), np.float32), "b": text("u")},
            id="in the order of the signature",
        ),
        pytest.param(
            TABLE,
            {"age": np.array([[1.0], [2.0]]), "fare": np.array([3, 4])},
            {"age": np.array([1.0, 2.0]), "fare": np.array([3.0, 4.0])},
            id="columns",
        ),
        pytest.param(
            TABLE,
            {"any": np.ones((3, 2), np.int8)},
            {"input-0": np.ones((3, 2))},
            id="a whole table",
        ),
        pytest.param(
            GUESSED_TABLE,
            {"any": np.ones((3, 2), np.int8)},
            {"input-0": np.ones((3, 2), np.int8)},
            id="a table of guesses is not converted",
        ),
        pytest.param(
            PARTLY_GUESSED_TABLE,
            {"any": np.ones((3, 2))},
            {"input-0": np.ones((3, 2), np.float32)},
            id="the column that is known converts a table",
        ),
        pytest.param(
            GUESSED_TABLE,
            {"age": text("old"), "city": np.ones(1)},
            {"age": text("old"), "city": np.ones(1)},
            id="guessed columns pass as they came",
        ),
        pytest.param(
            ONE_COLUMN, {"any": np.ones((3, 1))}, {"age": np.ones(3)}, id="a table of one column"
        ),
    ],
)
def test_gives_tensors_as_the_signature_says(
    signature: Signature, given: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]
) -> None:
    tensors = signature.check(request_of(**given))

    assert list(tensors) == list(expected)
    for name, array in expected.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array)


@pytest.mark.parametrize(
    ("signature", "given", "reason"),
    [
        pytest.param(
            MATRIX,
            {"x": np.ones((1, 3))},
            "input 'x': expected shape [-1, 4], got [1, 3]",
            id="three features for four",
        ),
        pytest.param(
            MATRIX, {"q": np.ones(4)}, "input 'q': expected shape [-1, 4], got [4]", id="one axis"
        ),
        pytest.param(
            SCALARS,
            {"x": np.ones((3, 2))},
            "input 'x': expected shape [-1], got [3, 2]",
            id="two columns for scalars",
        ),
        pytest.param(
            MATRIX,
            {"x": np.ones((1, 4)), "y": np.ones(1)},
            "expected one input, 'x', got 2: 'x', 'y'",
            id="two inputs for one",
        ),
        pytest.param(MATRIX, {}, "expected one input, 'x', got none", id="no input"),
        pytest.param(
            PAIR,
            {"a": np.ones((1, 2)), "c": np.ones(1)},
            "expected inputs 'a', 'b': missing 'b', unknown 'c'",
            id="missing and unknown",
        ),
        pytest.param(
            PAIR,
            {"a": np.ones((1, 2))},
            "expected inputs 'a', 'b': missing 'b'",
            id="missing",
        ),
        pytest.param(
            PAIR,
            {"a": np.ones((1, 2)), "b": text("u"), "c": np.ones(1)},
            "expected inputs 'a', 'b': unknown 'c'",
            id="unknown",
        ),
        pytest.param(
            PAIR,
            {"a": text("u", "v").reshape(1, 2), "b": text("u")},
            "input 'a': expected datatype FP32, got BYTES",
            id="text for numbers",
        ),
        pytest.param(
            PAIR,
            {"a": np.ones((1, 2)), "b": np.ones(1, np.int8)},
            "input 'b': expected datatype BYTES, got INT8",
            id="numbers for text",
        ),
        pytest.param(
            TABLE,
            {"age": np.ones(2), "fare": np.ones(3)},
            "the inputs differ in their number of rows: 'age' 2, 'fare' 3",
            id="columns of different length",
        ),
        pytest.param(
            TABLE,
            {"any": np.ones((3, 5))},
            "input 'any': expected shape [-1, 2], got [3, 5]",
            id="a table of too many columns",
        ),
        pytest.param(
            TABLE,
            {"age": np.ones((3, 1))},
            "input 'age': expected shape [-1, 2], got [3, 1]",
            id="one column of two",
        ),
        pytest.param(
            PAIR,
            {"a": np.ones((2, 2)), "b": text("u")},
            "the inputs differ in their number of rows: 'a' 2, 'b' 1",
            id="different numbers of rows",
        ),
        pytest.param(
            TABLE,
            {"any": np.ones(2)},
            "input 'any': expected shape [-1, 2], got [2]",
            id="a table without its axis of rows",
        ),
        pytest.param(
            TABLE,
            {"any": np.ones((1, 2, 1))},
            "input 'any': expected shape [-1, 2], got [1, 2, 1]",
            id="a table of three axes",
        ),
        pytest.param(
            TABLE,
            {"age": np.ones(2)},
            "expected inputs 'age', 'fare': missing 'fare'",
            id="one column alone",
        ),
        pytest.param(
            WIDE,
            {"a": np.ones(1), "b": np.ones(1)},
            f"expected inputs {TEN} and 2 more: missing {TEN} and 2 more, unknown 'a', 'b'",
            id="many names",
        ),
        pytest.param(
            MIXED_TABLE,
            {"any": np.ones((3, 2))},
            "input 'any': the columns have different datatypes, send one tensor for each: "
            "'age', 'city'",
            id="one tensor for columns of different datatypes",
        ),
        pytest.param(
            ONE_COLUMN,
            {"any": np.ones((3, 2))},
            "input 'any': expected shape [-1, 1], got [3, 2]",
            id="two columns for a table of one",
        ),
    ],
)
def test_refuses_what_the_model_does_not_take(
    signature: Signature, given: dict[str, NDArray[Any]], reason: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        signature.check(request_of(**given))

    assert str(caught.value) == reason


_FLOATS = {"FP16", "FP32", "FP64"}
_WIDER_INTEGERS = {
    "BOOL": {"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"},
    "INT8": {"INT16", "INT32", "INT64"},
    "INT16": {"INT32", "INT64"},
    "INT32": {"INT64"},
    "INT64": set(),
    "UINT8": {"INT16", "INT32", "INT64", "UINT16", "UINT32", "UINT64"},
    "UINT16": {"INT32", "INT64", "UINT32", "UINT64"},
    "UINT32": {"INT64", "UINT64"},
    "UINT64": set(),
    "FP16": set(),
    "FP32": set(),
    "FP64": set(),
}


def accepts(source: str, target: str) -> bool:
    if "BYTES" in (source, target):
        return source == target
    return source == target or target in _FLOATS or target in _WIDER_INTEGERS[source]


@settings(derandomize=True, max_examples=100, deadline=None)
@given(data=st.data(), source=st.sampled_from(list(NUMPY_DTYPES)))
def test_converts_by_datatype_and_never_by_value(data: st.DataObject, source: str) -> None:
    dtype = NUMPY_DTYPES[source]
    # Whatever the values are, those at the limits and those that would fit too.
    special: list[Any] = ["a"] if source == "BYTES" else [0, 1]
    if dtype.kind in "iu":
        special += [np.iinfo(dtype).min, np.iinfo(dtype).max]
    elif dtype.kind == "f":
        special += [0.5, np.finfo(dtype).max, np.inf, np.nan]
    values = np.array(data.draw(st.lists(st.sampled_from(special), min_size=1, max_size=4)), dtype)
    request = request_of(x=values)

    for target, target_dtype in NUMPY_DTYPES.items():
        signature = Signature(inputs=(TensorSpec("x", target, (-1,)),))
        if accepts(source, target):
            converted = signature.check(request)["x"]
            assert converted.dtype == target_dtype
            with np.errstate(over="ignore"):
                np.testing.assert_array_equal(converted, values.astype(target_dtype))
        else:
            with pytest.raises(InvalidInput) as caught:
                signature.check(request)
            assert str(caught.value) == f"input 'x': expected datatype {target}, got {source}"


def test_a_number_beyond_the_range_of_a_float_becomes_infinite_without_a_warning() -> None:
    signature = Signature(inputs=(TensorSpec("x", "FP32", (-1,)),))

    tensors = signature.check(request_of(x=np.array([1e300, -1e300])))

    np.testing.assert_array_equal(tensors["x"], np.array([np.inf, -np.inf], np.float32))


OUTPUTS = Signature(
    outputs=(TensorSpec("label", "INT64", (-1,)),),
    optional_outputs=(TensorSpec("probabilities", "FP64", (-1, 3)),),
)


@pytest.mark.parametrize(
    ("signature", "names"),
    [
        pytest.param(OUTPUTS, (), id="none"),
        pytest.param(OUTPUTS, ("label",), id="a default one"),
        pytest.param(OUTPUTS, ("probabilities", "label"), id="an optional one"),
        pytest.param(Signature(), ("anything",), id="nothing known"),
    ],
)
def test_gives_requested_outputs_back(signature: Signature, names: tuple[str, ...]) -> None:
    assert signature.check_outputs(list(names)) == names


def test_refuses_an_output_that_the_model_does_not_have() -> None:
    with pytest.raises(InvalidInput) as caught:
        OUTPUTS.check_outputs(["label", "logits"])

    assert str(caught.value) == (
        "Unexpected inference output 'logits': the model has 'label', 'probabilities'"
    )


def test_describes_a_tensor_as_metadata() -> None:
    assert TensorSpec("x", "FP64", (-1, 4), exact=False).metadata() == {
        "name": "x",
        "datatype": "FP64",
        "shape": [-1, 4],
    }


SCALED = Signature(
    inputs=(TensorSpec("x", "FP64", (-1, 2)),),
    optional_inputs=(TensorSpec("scale", "FP32", (1,)), TensorSpec("shift", "FP64", ())),
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({"any": np.ones((3, 2))}, {"x": np.ones((3, 2))}, id="none"),
        pytest.param(
            {"scale": np.array([2.5]), "any": np.ones((3, 2))},
            {"x": np.ones((3, 2)), "scale": np.array([2.5], np.float32)},
            id="one, converted",
        ),
        pytest.param(
            {"x": np.ones((3, 2)), "shift": np.array(1), "scale": np.ones(1, np.float32)},
            {"x": np.ones((3, 2)), "scale": np.ones(1, np.float32), "shift": np.array(1.0)},
            id="all, in the order of the signature",
        ),
    ],
)
def test_optional_inputs_may_be_given_by_name(
    given: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]
) -> None:
    tensors = SCALED.check(request_of(**given))

    assert list(tensors) == list(expected)
    for name, array in expected.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array)


def test_a_large_optional_input_is_converted_when_the_model_is_called() -> None:
    wide = Signature(optional_inputs=(TensorSpec("w", "FP32", (-1,)),))

    conformed = wide.conform(request_of(w=np.ones(10_000)))

    assert conformed["w"].dtype == np.float64
    assert wide.convert(conformed)["w"].dtype == np.float32


@pytest.mark.parametrize(
    ("signature", "given", "reason"),
    [
        pytest.param(
            SCALED, {"scale": np.ones(1)}, "expected one input, 'x', got none", id="alone"
        ),
        pytest.param(
            SCALED,
            {"x": np.ones((1, 2)), "scale": np.ones(2)},
            "input 'scale': expected shape [1], got [2]",
            id="shape",
        ),
        pytest.param(
            Signature(optional_inputs=SCALED.optional_inputs),
            {"x": np.ones(1)},
            "expected no inputs and perhaps 'scale', 'shift': unknown 'x'",
            id="none but optional ones",
        ),
        pytest.param(
            Signature(inputs=FIXED.inputs, optional_inputs=SCALED.optional_inputs[:1]),
            {"a": np.ones(1), "scale": np.ones(1)},
            "expected inputs 'a', 'b' and perhaps 'scale': missing 'b'",
            id="several inputs",
        ),
    ],
)
def test_refuses_what_is_no_optional_input(
    signature: Signature, given: dict[str, NDArray[Any]], reason: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        signature.check(request_of(**given))

    assert caught.value.reason == reason


def test_axes_of_any_length_may_have_nothing_to_do_with_one_another() -> None:
    inputs = (TensorSpec("data", "FP64", (-1, 2)), TensorSpec("indices", "INT64", (-1,)))
    given = request_of(data=np.ones((3, 2)), indices=np.zeros(5, np.int64))

    tensors = Signature(inputs, has_rows=False).check(given)

    assert {name: array.shape for name, array in tensors.items()} == {
        "data": (3, 2),
        "indices": (5,),
    }
    with pytest.raises(InvalidInput, match="the inputs differ in their number of rows"):
        Signature(inputs).check(given)


@pytest.mark.parametrize("shape", [(), (3,), (3, 1), (2, 0, 4)])
def test_a_tensor_of_unknown_axes_takes_any_shape(shape: tuple[int, ...]) -> None:
    unknown = Signature(inputs=(TensorSpec("x", "FP32", (-1,), is_ranked=False),))

    tensors = unknown.check(request_of(any=np.ones(shape)))

    assert tensors["x"].shape == shape
    assert tensors["x"].dtype == np.float32
