"""What an ONNX file tells that a session does not."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tests.onnxserver.graphs import (
    FLOAT,
    INT64,
    classifier,
    graph,
    node,
    optional,
    save,
    sequence,
    tensor,
    unary,
)

from onnxserver.model_file import ModelFile, read_model_file


def read(directory: Path, model: onnx.ModelProto) -> ModelFile:
    return read_model_file(save(directory, model) / "model.onnx")


def test_tells_who_wrote_it_and_the_operators_that_it_uses(tmp_path: Path) -> None:
    model = graph(
        [node("Relu", ["x"], ["z"]), node("Foo", ["z"], ["y"], domain="com.acme")],
        [tensor("x")],
        [tensor("y")],
        domains={"com.acme": 300},
    )

    found = read(tmp_path, model)

    assert found.producer == "tests 1"
    assert found.opsets == {"": 18, "ai.onnx.ml": 3, "com.acme": 300}
    assert found.op_types == {"Relu", "Foo"}


def test_tells_a_tensor_without_a_shape_from_a_scalar(tmp_path: Path) -> None:
    names = ("scalar", "unknown", "vector", "maybe", "parts")
    inputs = [
        tensor("scalar", FLOAT, []),
        tensor("unknown", FLOAT, None),
        tensor("vector", FLOAT, [3]),
        optional("maybe", FLOAT, None),
        sequence("parts"),
    ]
    nodes = [node("Identity", [name], [f"{name}_"]) for name in names]

    found = read(tmp_path, graph(nodes, inputs, [tensor("unknown_", FLOAT, None)]))

    assert found.unranked == {"unknown", "maybe", "unknown_"}


@pytest.mark.parametrize(
    ("shape", "is_dynamic"),
    [
        pytest.param((2, 3), False, id="fixed"),
        pytest.param((), False, id="scalar"),
        pytest.param((2, "N"), True, id="a named axis"),
        pytest.param((None, 3), True, id="an axis without a name"),
        pytest.param((-1, 3), True, id="a negative axis"),
        pytest.param(None, True, id="no shape"),
    ],
)
def test_tells_whether_inputs_have_axes_of_any_length(
    tmp_path: Path, shape: tuple[int | str | None, ...] | None, is_dynamic: bool
) -> None:
    assert read(tmp_path, unary(shape=shape)).has_dynamic_inputs is is_dynamic


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param([0, 1, 2], id="integers"),
        pytest.param([-7, 2**40], id="signed, large"),
        pytest.param(["no", "é"], id="text"),
    ],
)
def test_tells_the_labels_of_a_classifier(tmp_path: Path, labels: list[int] | list[str]) -> None:
    assert read(tmp_path, classifier(labels)).class_labels == {"probability": labels}


def test_packed_integers_are_read_too(tmp_path: Path) -> None:
    model = classifier([1, -1])
    (attribute,) = model.graph.node[-1].attribute
    # Field 8 of the attribute, length-delimited: 1 and -1 as varints.
    packed = b"\x42\x0b\x01" + b"\xff" * 9 + b"\x01"
    name_and_type = b"\x0a\x12classlabels_int64s\xa0\x01\x07"
    attribute.ParseFromString(name_and_type)
    plain = model.SerializeToString()
    old = b"\x2a\x17" + name_and_type
    new = b"\x2a\x24" + name_and_type + packed
    assert plain.count(old) == 1
    path = tmp_path / "node.onnx"
    # The lengths around it would be wrong in the whole model: a graph of this node is enough.
    zip_map = model.graph.node[-1].SerializeToString().replace(old, new)
    graph_field = b"\x0a" + bytes([len(zip_map)]) + zip_map
    path.write_bytes(b"\x3a" + bytes([len(graph_field)]) + graph_field)

    assert read_model_file(path).class_labels == {"probability": [1, -1]}


def test_weights_are_passed_over(tmp_path: Path) -> None:
    weights = {"w": np.ones((512, 512), np.float32)}
    model = graph(
        [node("MatMul", ["x", "w"], ["y"])],
        [tensor("x", FLOAT, ["N", 512])],
        [tensor("y", INT64, None)],
        weights,
    )

    found = read(tmp_path, model)

    assert (found.op_types, found.unranked) == ({"MatMul"}, {"y"})


def test_a_damaged_file_tells_what_can_be_read(tmp_path: Path) -> None:
    whole = unary().SerializeToString()
    path = tmp_path / "model.onnx"

    for n_bytes in range(len(whole)):
        path.write_bytes(whole[:n_bytes])
        found = read_model_file(path)
        assert found.op_types <= {"Relu"}
    for noise in (b"\xff" * 64, b"text " * 50, bytes(100), b"\x0b" * 9):
        path.write_bytes(noise)
        assert read_model_file(path).op_types == set()


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        read_model_file(tmp_path / "model.onnx")


def test_elem_types_do_not_matter(tmp_path: Path) -> None:
    inputs = [tensor("x", TensorProto.BFLOAT16, ["N"])]
    found = read(tmp_path, graph([node("Identity", ["x"], ["y"])], inputs, [tensor("y")]))

    assert found.has_dynamic_inputs
