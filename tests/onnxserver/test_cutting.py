"""A part of a graph: what some of its outputs need, and no more."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.onnxserver.graphs import FLOAT, classifier, graph, node, own_session, save, tensor, unary

from kserve.errors import ModelLoadError
from onnxserver import ONNXModel, SessionSettings
from onnxserver.cutting import cut

F32 = np.float32
X = np.arange(8, dtype=F32).reshape(2, 4) - 3


def parts(model: onnx.ModelProto, *outputs: str) -> dict[str, list[str]]:
    """Give the names of what is left, once the checker of the package onnx has seen it."""
    left = onnx.load_from_string(cut(model.SerializeToString(), outputs, "model.onnx"))
    onnx.checker.check_model(left, full_check=True)
    return {
        "nodes": [each.output[0] for each in left.graph.node],
        "inputs": [each.name for each in left.graph.input],
        "weights": [each.name for each in left.graph.initializer],
        "outputs": [each.name for each in left.graph.output],
    }


def heads() -> onnx.ModelProto:
    """Give a graph of a shared body and two heads, one of which also reads an input of its own."""
    nodes = [
        node("Relu", ["x"], ["body"]),
        node("Mul", ["body", "w1"], ["a"]),
        node("Mul", ["body", "w2"], ["b0"]),
        node("Add", ["b0", "bias"], ["b"]),
    ]
    weights = {"w1": np.array([2], F32), "w2": np.array([3], F32)}
    inputs = [tensor("x"), tensor("bias", FLOAT, [4])]
    return graph(nodes, inputs, [tensor("a"), tensor("b")], weights)


def test_nodes_inputs_and_weights_of_other_outputs_are_left_out() -> None:
    assert parts(heads(), "a") == {
        "nodes": ["body", "a"],
        "inputs": ["x"],
        "weights": ["w1"],
        "outputs": ["a"],
    }
    assert parts(heads(), "b") == {
        "nodes": ["body", "b0", "b"],
        "inputs": ["x", "bias"],
        "weights": ["w2"],
        "outputs": ["b"],
    }


def test_with_all_outputs_it_is_the_same_model() -> None:
    whole = heads().SerializeToString()

    assert cut(whole, ["b", "a"], "model.onnx") == whole


def branches() -> onnx.ModelProto:
    """Give a graph whose If reads values from around it, in branches inside its branches."""
    inner = helper.make_graph(
        [node("Add", ["deep", "w"], ["i"])], "inner", [], [tensor("i", FLOAT, [4])]
    )
    other = helper.make_graph(
        [node("Identity", ["w"], ["o"])], "other", [], [tensor("o", FLOAT, [4])]
    )
    then = helper.make_graph(
        [node("If", ["c"], ["t"], then_branch=inner, else_branch=other)],
        "then",
        [],
        [tensor("t", FLOAT, [4])],
    )
    nodes = [
        node("Neg", ["x"], ["deep"]),
        node("Abs", ["x"], ["spare"]),
        node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    inputs = [tensor("x", FLOAT, [4]), tensor("c", TensorProto.BOOL, [])]
    results = [tensor("y", FLOAT, [4]), tensor("spare", FLOAT, [4])]
    return graph(nodes, inputs, results, {"w": np.ones(4, F32)})


def test_what_branches_read_from_around_them_stays() -> None:
    assert parts(branches(), "y") == {
        "nodes": ["deep", "y"],
        "inputs": ["x", "c"],
        "weights": ["w"],
        "outputs": ["y"],
    }


def test_an_input_without_a_name_keeps_no_node() -> None:
    nodes = [
        node("Dropout", ["x"], ["spare", ""]),
        node("Clip", ["x", "", "most"], ["y"]),
    ]
    model = graph(nodes, [tensor("x")], [tensor("y"), tensor("spare")], {"most": np.array(1, F32)})

    assert parts(model, "y")["nodes"] == ["y"]


def test_an_output_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelLoadError) as caught:
        cut(heads().SerializeToString(), ["a", "c"], "model.onnx")

    assert str(caught.value) == ("model.onnx: --outputs: it has no output 'c', it has 'a', 'b'")


@pytest.mark.parametrize("n_bytes", [1, 40, 100])
def test_of_a_damaged_file_the_session_says_what_is_wrong(tmp_path: Path, n_bytes: int) -> None:
    (tmp_path / "model.onnx").write_bytes(unary().SerializeToString()[:n_bytes])
    model = ONNXModel("m", str(tmp_path), settings=SessionSettings(outputs=["y"]))

    with pytest.raises(ModelLoadError, match=r"^model.onnx: cannot be loaded: "):
        model.load()


def served(directory: Path, *outputs: str) -> ONNXModel:
    model = ONNXModel("m", str(directory), settings=SessionSettings(outputs=outputs))
    model.load()
    return model


def test_what_is_not_served_is_not_computed(tmp_path: Path) -> None:
    # It fails for every input: there are not so many rows.
    nodes = [node("Relu", ["x"], ["good"]), node("Gather", ["x", "far"], ["bad"])]
    outputs = [tensor("good"), tensor("bad", FLOAT, [1, 4])]
    save(tmp_path, graph(nodes, [tensor("x")], outputs, {"far": np.array([99])}))

    model = served(tmp_path, "good")

    assert model.get_output_types() == [{"name": "good", "datatype": "FP32", "shape": [-1, 4]}]
    assert model.signature.has_rows
    answer = model.predict({"instances": X.tolist()})
    assert answer == {"predictions": np.maximum(X, 0).tolist()}


def test_a_classifier_may_be_served_without_its_probabilities(tmp_path: Path) -> None:
    save(tmp_path, classifier(["a", "b"]))
    labels = own_session(tmp_path / "model.onnx").run(["label"], {"x": X})[0]

    assert served(tmp_path, "label").predict({"instances": X.tolist()}) == {
        "predictions": labels.tolist()
    }


def test_external_data_is_found_all_the_same(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["y"]), node("MatMul", ["x", "v"], ["z"])]
    weights = {name: np.full((4, 300), i + 1, F32) for i, name in enumerate("vw")}
    outputs = [tensor(name, FLOAT, ["N", 300]) for name in "yz"]
    model = graph(nodes, [tensor("x")], outputs, weights)
    onnx.save(
        model,
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )

    answer = served(tmp_path, "y").predict({"instances": [[1, 1, 1, 1]]})

    assert answer == {"predictions": [[8.0] * 300]}
