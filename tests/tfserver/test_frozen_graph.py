"""Frozen graphs: their inputs and outputs, given or found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tests.tfserver.models import F32, save_frozen

from kserve.errors import ModelLoadError
from kserve.signature import TensorSpec
from tfserver.frozen_graph import load_frozen_graph

v1 = tf.compat.v1


def placeholder(name: str, dtype: Any = tf.float32, shape: Any = (None, 2)) -> Any:
    return v1.placeholder(dtype, shape, name=name)


def product() -> None:
    tf.multiply(placeholder("x"), tf.constant([2.0, 3.0]), name="y")


def two_ends() -> None:
    x, scale = placeholder("x"), placeholder("scale", shape=())
    placeholder("unused")
    tf.multiply(x, scale, name="scaled")
    tf.identity(tf.nn.top_k(x, name="top").indices, name="index")
    tf.no_op("nothing")


def from_a_variable() -> None:
    tf.identity(placeholder("x") * v1.get_variable("w", [], use_resource=True), name="y")


def lone_constant() -> None:
    tf.constant(1.0, name="c")


def complex_end() -> None:
    tf.complex(placeholder("x"), placeholder("z"), name="y")


def load(
    tmp_path: Path, build: Any, inputs: Sequence[str] = (), outputs: Sequence[str] = ()
) -> Any:
    return load_frozen_graph(save_frozen(tmp_path / "graph.pb", build), inputs, outputs)


def test_inputs_and_the_output_are_found(tmp_path: Path) -> None:
    function = load(tmp_path, product)

    assert function.signature.inputs == (TensorSpec("x", "FP32", (-1, 2)),)
    assert function.signature.outputs == (TensorSpec("y", "FP32", (-1, 2)),)
    assert function.run({"x": np.ones((2, 2), F32)})["y"].tolist() == [[2.0, 3.0]] * 2
    assert function.definition.inputs["x"].dtype == 1
    assert not function.changes_state


def test_inputs_and_outputs_are_those_that_are_named(tmp_path: Path) -> None:
    function = load(tmp_path, two_ends, outputs=["index", "scaled:0", "top:1"])
    x = np.array([[1, 2]], F32)

    answer = function.run({"x": x, "scale": np.array(2, F32)})

    assert [spec.name for spec in function.signature.inputs] == ["x", "scale"]
    expected = {"index": [[1]], "scaled": [[2.0, 4.0]], "top:1": [[1]]}
    assert {name: array.tolist() for name, array in answer.items()} == expected


def test_only_the_placeholders_that_the_outputs_need_are_fed(tmp_path: Path) -> None:
    function = load(tmp_path, two_ends, outputs=["index"])

    assert [spec.name for spec in function.signature.inputs] == ["x"]


def test_an_input_may_be_any_tensor(tmp_path: Path) -> None:
    def deep() -> None:
        hidden = tf.add(placeholder("x"), 1.0, name="hidden")
        tf.multiply(hidden, 2.0, name="y")

    function = load(tmp_path, deep, inputs=["hidden"])

    assert function.run({"hidden": np.ones((1, 2), F32)})["y"].tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize(
    ("build", "inputs", "outputs", "reason"),
    [
        pytest.param(
            two_ends,
            [],
            [],
            "graph.pb: several nodes may be the output: scaled, index; name those that are meant"
            " with --outputs",
            id="several ends",
        ),
        pytest.param(
            lone_constant,
            [],
            [],
            "graph.pb: no output found; name those that are meant with --outputs",
            id="no end",
        ),
        pytest.param(
            product, [], ["z"], "graph.pb: --outputs z: it has no such tensor", id="output missing"
        ),
        pytest.param(
            product, [], ["y:1"], "graph.pb: --outputs y:1: it has no such tensor", id="no such one"
        ),
        pytest.param(
            product, ["z"], [], "graph.pb: --inputs z: it has no such tensor", id="input missing"
        ),
        pytest.param(
            from_a_variable,
            [],
            [],
            "graph.pb: expected a frozen graph, found variables: w; freeze it, or serve a"
            " SavedModel",
            id="variables",
        ),
        pytest.param(
            complex_end,
            [],
            [],
            "graph.pb: the protocol cannot carry any output: 'y' is a tensor of complex64",
            id="datatype",
        ),
        pytest.param(
            lambda: None,
            [],
            [],
            "graph.pb: expected a frozen graph, found no nodes in it",
            id="empty",
        ),
    ],
)
def test_what_cannot_be_served_is_said(
    tmp_path: Path, build: Any, inputs: list[str], outputs: list[str], reason: str
) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load(tmp_path, build, inputs, outputs)

    assert str(caught.value) == reason


def test_outputs_that_need_more_than_the_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ModelLoadError, match="^graph.pb: the outputs need more than the inputs 'x'"
    ):
        load(tmp_path, two_ends, inputs=["x"], outputs=["scaled"])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2], "^graph.pb: is damaged, or no frozen graph: "),
        (lambda data: b"\x80\x04pickle", "^graph.pb: is damaged, or no frozen graph: "),
        (lambda data: data.replace(b"\x03Mul", b"\x03Mol"), "^graph.pb: cannot be loaded: .*Mol"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Any, reason: str) -> None:
    path = save_frozen(tmp_path / "graph.pb", product)
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(ModelLoadError, match=reason):
        load_frozen_graph(path, (), ())
