"""Which models have rows that requests may put together."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tests.onnxserver.graphs import (
    FLOAT,
    INT64,
    STRING,
    classifier,
    graph,
    node,
    own_session,
    save,
    sequence,
    tensor,
    unary,
)

from onnxserver.graph import Graph
from onnxserver.model_file import read_model_file
from onnxserver.rows import find_rows

F32 = np.float32
TRIAL = "in a trial of two rows, "
FIXED = "axis 0 of 'x' is not of any length"
INDEPENDENT = (True, f"{TRIAL}none depended on the other")
DEPENDENT = (False, f"{TRIAL}one depended on the other")


def find(directory: Path, model: onnx.ModelProto) -> tuple[bool, str]:
    path = save(directory, model) / "model.onnx"
    file = read_model_file(path)
    return find_rows(Graph(own_session(path), file, "model.onnx"), file)


def recurrent(name: str | None) -> onnx.ModelProto:
    """Give a net whose axis 0 is the steps of a sequence, not rows."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((1, 3, 4)).astype(F32),
        "r": rng.standard_normal((1, 3, 3)).astype(F32),
    }
    step = node("RNN", ["x", "w", "r"], ["y"], hidden_size=3)
    inputs, outputs = [tensor("x", FLOAT, [name, 1, 4])], [tensor("y", FLOAT, [name, 1, 1, 3])]
    return graph([step], inputs, outputs, weights)


def centred() -> onnx.ModelProto:
    nodes = [
        node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
        node("Sub", ["x", "mean"], ["y"]),
    ]
    return graph(nodes, [tensor("x")], [tensor("y")], {"axes": np.array([0])})


def positive_ones() -> onnx.ModelProto:
    nodes = [node("Greater", ["x", "zero"], ["c"]), node("Compress", ["x", "c"], ["y"], axis=0)]
    inputs, outputs = [tensor("x", FLOAT, [None])], [tensor("y", FLOAT, [None])]
    return graph(nodes, inputs, outputs, {"zero": np.zeros(1, F32)})


def flattened() -> onnx.ModelProto:
    """Give a graph whose batch of 1 was fixed when it was exported."""
    nodes = [node("Reshape", ["x", "shape"], ["y"])]
    return graph(nodes, [tensor("x")], [tensor("y", FLOAT, ["N", 4])], {"shape": np.array([1, 4])})


def sum_of(first: Any, second: Any, result: Any) -> onnx.ModelProto:
    inputs = [tensor("a", FLOAT, first), tensor("b", FLOAT, second)]
    return graph([node("Add", ["a", "b"], ["y"])], inputs, [tensor("y", FLOAT, result)])


def embedding() -> onnx.ModelProto:
    """Give a graph of token ids, with an axis of any length beside the rows."""
    table = np.random.default_rng(0).standard_normal((5, 2)).astype(F32)
    inputs = [tensor("ids", INT64, ["batch", "length"])]
    outputs = [tensor("y", FLOAT, ["batch", "length", 2])]
    return graph([node("Gather", ["table", "ids"], ["y"])], inputs, outputs, {"table": table})


def texts() -> onnx.ModelProto:
    upper = node("StringConcat", ["x", "x"], ["y"])
    return graph(
        [upper], [tensor("x", STRING, ["N"])], [tensor("y", STRING, ["N"])], opset=20, ir_version=9
    )


def quantized() -> onnx.ModelProto:
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    return graph(nodes, [tensor("x")], [tensor("y")])


def half() -> onnx.ModelProto:
    cast = node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)
    return graph([cast], [tensor("x")], [tensor("y", TensorProto.FLOAT16)])


def picky() -> onnx.ModelProto:
    """Give a graph that takes no index that a trial invents."""
    data = np.zeros((2, 3), F32)
    shift = [node("Add", ["i", "far"], ["k"]), node("Gather", ["data", "k"], ["y"])]
    return graph(
        shift,
        [tensor("i", INT64, ["N"])],
        [tensor("y", FLOAT, ["N", 3])],
        {"data": data, "far": np.array([90])},
    )


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param(unary(), INDEPENDENT, id="one name"),
        pytest.param(unary(shape=(None, 4)), INDEPENDENT, id="no names"),
        pytest.param(sum_of(["N", 2], ["N", 2], ["unk__7", 2]), INDEPENDENT, id="an output's own"),
        pytest.param(sum_of(["N", 2], ["N", 2], None), INDEPENDENT, id="an output of any shape"),
        pytest.param(classifier(), INDEPENDENT, id="classifier"),
        pytest.param(embedding(), INDEPENDENT, id="another axis of any length"),
        pytest.param(texts(), INDEPENDENT, id="texts"),
        pytest.param(half(), INDEPENDENT, id="FP16"),
        pytest.param(recurrent("steps"), DEPENDENT, id="steps of a sequence, named"),
        pytest.param(recurrent(None), DEPENDENT, id="steps of a sequence"),
        pytest.param(centred(), DEPENDENT, id="mean of the rows"),
        pytest.param(unary("Softmax", axis=0), DEPENDENT, id="softmax of the rows"),
        pytest.param(positive_ones(), DEPENDENT, id="rows that are left out"),
        pytest.param(
            flattened(), (False, "axis 0 of 'y' is not of any length"), id="fixed at export"
        ),
        pytest.param(
            picky(), (True, "axis 0 has one name, and no trial succeeded"), id="no trial, one name"
        ),
        pytest.param(unary(shape=(1, 4)), (False, FIXED), id="fixed"),
        pytest.param(unary(shape=()), (False, FIXED), id="scalars"),
        pytest.param(unary(shape=None), (False, FIXED), id="unknown"),
        pytest.param(
            sum_of(["N", 2], ["M", 2], ["N", 2]),
            (False, "axis 0 of the inputs has several names: M, N"),
            id="several names",
        ),
        pytest.param(
            quantized(),
            (False, "DynamicQuantizeLinear scales by all rows of a call"),
            id="dynamic quantization",
        ),
        pytest.param(
            graph([node("SplitToSequence", ["x"], ["y"])], [tensor("x")], [sequence("y")]),
            (False, "output 'y' is no tensor"),
            id="sequence",
        ),
        pytest.param(
            graph([node("Identity", ["c"], ["y"])], [], [tensor("y")], {"c": np.ones((1, 4), F32)}),
            (False, "it has no input"),
            id="no inputs",
        ),
    ],
)
def test_requests_run_together_where_no_row_depends_on_another(
    tmp_path: Path, model: onnx.ModelProto, expected: tuple[bool, str]
) -> None:
    assert find(tmp_path, model) == expected


def test_without_a_name_and_a_trial_requests_run_alone(tmp_path: Path) -> None:
    model = picky()
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "other"

    assert find(tmp_path, model) == (False, "axis 0 has no common name, and no trial succeeded")
