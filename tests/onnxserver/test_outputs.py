"""Outputs of a graph as named tensors."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kserve.signature import TensorSpec
from onnxserver.outputs import Output, describe_output, is_optional, tensor_spec


def described(type_name: str, shape: list[Any], labels: Any = None) -> Output | None:
    spec = tensor_spec("y", type_name, shape, is_ranked=True)
    return describe_output("y", type_name, spec, labels)


def lists(tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    return {name: (array.dtype.name, array.tolist()) for name, array in tensors.items()}


@pytest.mark.parametrize(
    ("type_name", "datatype"),
    [
        ("tensor(bool)", "BOOL"),
        ("tensor(int8)", "INT8"),
        ("tensor(int16)", "INT16"),
        ("tensor(int32)", "INT32"),
        ("tensor(int64)", "INT64"),
        ("tensor(uint8)", "UINT8"),
        ("tensor(uint16)", "UINT16"),
        ("tensor(uint32)", "UINT32"),
        ("tensor(uint64)", "UINT64"),
        ("tensor(float16)", "FP16"),
        ("tensor(float)", "FP32"),
        ("tensor(double)", "FP64"),
        ("tensor(string)", "BYTES"),
        ("optional(tensor(int8))", "INT8"),
    ],
)
def test_every_datatype_of_the_protocol_has_a_type(type_name: str, datatype: str) -> None:
    spec = tensor_spec("x", type_name, ["N", None, 3, -1], is_ranked=True)

    assert spec == TensorSpec("x", datatype, (-1, -1, 3, -1))


@pytest.mark.parametrize(
    "type_name",
    [
        *("tensor(bfloat16)", "tensor(int4)", "tensor(float8e4m3fn)", "tensor(complex64)"),
        *("sparse_tensor(float)", "seq(tensor(bfloat16))", "map(int64,tensor(bfloat16))"),
        "optional(seq(seq(tensor(float))))",
    ],
)
def test_what_the_protocol_cannot_carry_is_no_output(type_name: str) -> None:
    assert described(type_name, []) is None


def test_a_tensor_without_a_shape_may_have_any() -> None:
    spec = tensor_spec("x", "tensor(float)", [], is_ranked=False)

    assert spec == TensorSpec("x", "FP32", (-1,), is_ranked=False)


def test_a_tensor_is_passed_on_as_it_is() -> None:
    output = described("tensor(float)", ["N"])
    array = np.ones(3, np.float32)

    assert output == Output("y", (TensorSpec("y", "FP32", (-1,)),))
    assert output is not None
    assert not output.is_open
    assert output.tensors(array, ["y"])["y"] is array


ROWS = [{"no": 0.25, "yes": 0.75}, {"no": 1.0, "yes": 0.0}]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        pytest.param(
            [],
            {"y-no": ("float32", [0.25, 1.0]), "y-yes": ("float32", [0.75, 0.0])},
            id="all columns",
        ),
        pytest.param(["y-yes", "other"], {"y-yes": ("float32", [0.75, 0.0])}, id="one column"),
        pytest.param(["y"], {"y": ("float32", [[0.25, 0.75], [1.0, 0.0]])}, id="matrix"),
        pytest.param(
            ["y", "y-no"],
            {"y-no": ("float32", [0.25, 1.0]), "y": ("float32", [[0.25, 0.75], [1.0, 0.0]])},
            id="both",
        ),
    ],
)
def test_maps_are_a_column_for_each_label(wanted: list[str], expected: dict[str, Any]) -> None:
    output = described("seq(map(string,tensor(float)))", [], ["no", "yes"])

    assert output is not None
    assert [spec.metadata() for spec in output.specs] == [
        {"name": "y-no", "datatype": "FP32", "shape": [-1]},
        {"name": "y-yes", "datatype": "FP32", "shape": [-1]},
    ]
    assert output.group == TensorSpec("y", "FP32", (-1, 2))
    assert lists(output.tensors(ROWS, wanted)) == expected
    assert lists(output.tensors([], ["y"])) == {"y": ("float32", [])}


@pytest.mark.parametrize("type_name", ["seq(map(int64,tensor(float)))", "map(int64,tensor(float))"])
def test_maps_of_unknown_labels_tell_them_by_their_keys(type_name: str) -> None:
    output = described(type_name, [])
    assert output is not None

    value = {3: 0.5, -1: 1.5}

    tensors = output.tensors([value] if type_name.startswith("seq") else value, ["y"])
    assert output.is_open
    assert lists(tensors) == {"y-3": ("float32", [0.5]), "y--1": ("float32", [1.5])}
    assert output.members(list(tensors)) == ["y-3", "y--1"]


def test_a_sequence_is_an_output_for_each_tensor() -> None:
    output = described("seq(tensor(int64))", [])
    assert output is not None

    tensors = output.tensors([np.array([1, 2]), np.array(3)])

    assert output.is_open
    assert lists(tensors) == {"y-0": ("int64", [1, 2]), "y-1": ("int64", 3)}
    assert output.members(["y-0", "x", "y-1"]) == ["y-0", "y-1"]
    assert output.tensors([]) == {}


def test_an_optional_is_there_or_not() -> None:
    output = described("optional(tensor(float))", [2])
    assert output is not None

    array = np.ones(2, np.float32)

    assert is_optional("optional(tensor(float))")
    assert output.is_open
    assert output.tensors(array, ["y"]) == {"y": array}
    assert output.tensors(None, ["y"]) == {}
    assert output.members(["y"]) == ["y"]
