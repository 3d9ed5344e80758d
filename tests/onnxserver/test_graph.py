"""A session as named tensors: what it takes and gives, and what of it is computed."""

import logging
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
    optional,
    own_session,
    save,
    sequence,
    tensor,
    unary,
)

from kserve.errors import InferenceError, InvalidInput, ModelLoadError
from kserve.logging import logger
from kserve.signature import TensorSpec
from onnxserver.graph import Graph
from onnxserver.model_file import read_model_file

F32 = np.float32


def made(directory: Path, model: onnx.ModelProto) -> Graph:
    path = save(directory, model) / "model.onnx"
    return Graph(own_session(path), read_model_file(path), "model.onnx")


def with_constants(ir_version: int = 8) -> onnx.ModelProto:
    """Give x * scale + shift, where scale is declared to be an input with a value of its own."""
    nodes = [node("Mul", ["x", "scale"], ["z"]), node("Add", ["z", "shift"], ["y"])]
    inputs = [tensor("x"), tensor("scale", FLOAT, [1])]
    constants = {"scale": np.array([2], F32), "shift": np.array([1], F32)}
    return graph(nodes, inputs, [tensor("y")], constants, ir_version=ir_version)


def has_element() -> onnx.ModelProto:
    nodes = [
        node("OptionalHasElement", ["maybe"], ["has"]),
        node("Relu", ["x"], ["y"]),
    ]
    inputs = [tensor("x", FLOAT, ["N"]), optional("maybe", FLOAT, [2])]
    return graph(nodes, inputs, [tensor("has", TensorProto.BOOL, []), tensor("y", FLOAT, ["N"])])


def test_a_signature_has_the_axes_and_datatypes_of_the_session(tmp_path: Path) -> None:
    inputs = [
        tensor("image", TensorProto.UINT8, ["batch", 3, "h", None]),
        tensor("scalar", TensorProto.DOUBLE, []),
        tensor("any", STRING, None),
    ]
    nodes = [node("Identity", [name.name], [f"{name.name}_"]) for name in inputs]
    image = tensor("image_", TensorProto.UINT8, ["batch", 3, "h", None])
    outputs = [image, tensor("any_", STRING, None)]

    signature = made(tmp_path, graph(nodes, inputs, outputs)).signature

    assert signature.inputs == (
        TensorSpec("image", "UINT8", (-1, 3, -1, -1)),
        TensorSpec("scalar", "FP64", ()),
        TensorSpec("any", "BYTES", (-1,), is_ranked=False),
    )
    assert signature.outputs == (
        TensorSpec("image_", "UINT8", (-1, 3, -1, -1)),
        TensorSpec("any_", "BYTES", (-1,), is_ranked=False),
    )
    assert not signature.has_rows
    assert not signature.may_be_empty


def test_a_constant_that_may_be_overridden_is_an_optional_input(tmp_path: Path) -> None:
    served = made(tmp_path, with_constants())
    x = np.ones((1, 4), F32)

    assert served.signature.optional_inputs == (TensorSpec("scale", "FP32", (1,)),)
    assert served.optional_inputs == ()
    assert served.run({"x": x})["y"].tolist() == [[3.0] * 4]
    assert served.run({"x": x, "scale": np.array([5], F32)})["y"].tolist() == [[6.0] * 4]


def test_a_constant_of_an_older_file_is_none(tmp_path: Path) -> None:
    assert made(tmp_path, with_constants(ir_version=3)).signature.optional_inputs == ()


def test_an_optional_input_may_be_left_out(tmp_path: Path) -> None:
    served = made(tmp_path, has_element())
    x = np.ones(1, F32)

    assert served.optional_inputs == (TensorSpec("maybe", "FP32", (2,)),)
    assert served.signature.optional_inputs == served.optional_inputs
    assert not served.run({"x": x})["has"]
    assert served.run({"x": x, "maybe": np.ones(2, F32)})["has"]


def test_a_graph_without_inputs_needs_none_and_takes_none(tmp_path: Path) -> None:
    model = graph(
        [node("Identity", ["c"], ["y"])], [], [tensor("y", FLOAT, [1])], {"c": np.ones(1, F32)}
    )
    served = made(tmp_path, model)

    assert served.signature.may_be_empty
    assert served.run({})["y"].tolist() == [1.0]
    with pytest.raises(InvalidInput, match="expected no inputs, got 'x'"):
        served.run({"x": np.ones(1, F32)})


def test_only_what_is_asked_for_is_given(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Neg", ["x"], ["b"])]
    served = made(tmp_path, graph(nodes, [tensor("x")], [tensor("a"), tensor("b")]))
    x = np.ones((1, 4), F32)

    assert list(served.run({"x": x}, ["b"])) == ["b"]
    assert list(served.run({"x": x}, ["b", "a", "b"])) == ["b", "a"]
    assert list(served.run({"x": x})) == ["a", "b"]


def test_a_classifier_gives_labels_and_a_column_for_each_class(tmp_path: Path) -> None:
    served = made(tmp_path, classifier(["setosa", "other"]))
    x = np.random.default_rng(1).standard_normal((5, 4)).astype(F32)
    labels, maps = own_session(tmp_path / "model.onnx").run(None, {"x": x})

    everything = served.run({"x": x})
    some = served.run({"x": x}, ["probability-other", "probability"])

    assert [spec.name for spec in served.signature.outputs] == list(everything)
    assert list(everything) == ["label", "probability-setosa", "probability-other"]
    np.testing.assert_array_equal(everything["label"], labels)
    columns = np.array([[row["setosa"], row["other"]] for row in maps], F32)
    np.testing.assert_array_equal(everything["probability-setosa"], columns[:, 0])
    np.testing.assert_array_equal(some["probability-other"], columns[:, 1])
    np.testing.assert_array_equal(some["probability"], columns)
    assert list(some) == ["probability-other", "probability"]


def halves() -> onnx.ModelProto:
    nodes = [
        node("SplitToSequence", ["x"], ["parts"], axis=0, keepdims=0),
        node("Relu", ["x"], ["y"]),
    ]
    return graph(nodes, [tensor("x")], [sequence("parts"), tensor("y")])


def test_a_sequence_is_an_output_for_each_tensor(tmp_path: Path) -> None:
    served = made(tmp_path, halves())
    x = np.arange(8, dtype=F32).reshape(2, 4)

    tensors = served.run({"x": x})

    assert {name: array.tolist() for name, array in tensors.items()} == {
        "parts-0": x[0].tolist(),
        "parts-1": x[1].tolist(),
        "y": x.tolist(),
    }
    assert served.members("parts", list(tensors)) == ["parts-0", "parts-1"]
    assert served.members("y", list(tensors)) == ["y"]


def test_an_empty_sequence_is_left_out_or_an_error_by_itself(tmp_path: Path) -> None:
    served = made(tmp_path, halves())
    x = np.ones((0, 4), F32)

    assert list(served.run({"x": x})) == ["y"]
    with pytest.raises(InferenceError, match="parts: no tensor is in an empty sequence"):
        served.run({"x": x}, ["parts"])


def echo(elem_type: int) -> onnx.ModelProto:
    x, y = tensor("x", elem_type, ["N"]), tensor("y", elem_type, ["N"])
    return graph([node("Identity", ["x"], ["y"])], [x], [y])


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(["a", "é", "", "x\0y"], id="str"),
        pytest.param([b"a", "é".encode(), b"", b"x\0y"], id="bytes"),
        pytest.param(["a", "é".encode(), b"", "x\0y"], id="both"),
    ],
)
def test_text_is_text_in_whatever_form_it_comes(tmp_path: Path, given: list[Any]) -> None:
    texts = made(tmp_path, echo(STRING)).run({"x": np.array(given, np.object_)})["y"]

    assert texts.tolist() == ["a", "é", "", "x\0y"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        pytest.param([b"a", b"\xff"], "input 'x': expected UTF-8 text, got ", id="no UTF-8"),
        pytest.param(["a", None], "input 'x': expected text, got null", id="null"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, given: list[Any], reason: str) -> None:
    served = made(tmp_path, echo(STRING))

    with pytest.raises(InvalidInput) as caught:
        served.run({"x": np.array(given, np.object_)})

    assert caught.value.reason.startswith(reason)


def test_arrays_that_may_not_be_written_to_are_read_where_they_lie(tmp_path: Path) -> None:
    body = np.arange(6, dtype=F32).tobytes()
    x = np.frombuffer(body, F32)

    y = made(tmp_path, unary(shape=("N",))).run({"x": x})["y"]

    assert y.tolist() == x.tolist()
    assert not np.shares_memory(x, y)
    assert not x.flags.writeable


@pytest.mark.parametrize(
    ("elem_type", "type_name"),
    [
        (TensorProto.BFLOAT16, "tensor(bfloat16)"),
        (TensorProto.FLOAT8E4M3FN, "tensor(float8e4m3fn)"),
        (TensorProto.INT4, "tensor(int4)"),
    ],
)
def test_an_input_that_cannot_be_sent_is_refused(
    tmp_path: Path, elem_type: int, type_name: str
) -> None:
    model = graph(
        [node("Cast", ["x"], ["y"], to=FLOAT)],
        [tensor("x", elem_type, ["N"])],
        [tensor("y", FLOAT, ["N"])],
        opset=21,
        ir_version=10,
    )

    with pytest.raises(ModelLoadError) as caught:
        made(tmp_path, model)

    assert str(caught.value) == (
        f"model.onnx: input 'x' is a {type_name}, which the protocol cannot carry: the graph has to"
        " take a tensor of another type"
    )


def test_a_sequence_as_an_input_is_refused(tmp_path: Path) -> None:
    model = graph([node("SequenceLength", ["s"], ["n"])], [sequence("s")], [tensor("n", INT64, [])])

    with pytest.raises(ModelLoadError, match=r"input 's' is a seq\(tensor\(float\)\), which the"):
        made(tmp_path, model)


def casting(*names: str) -> onnx.ModelProto:
    nodes = [node("Cast", ["x"], ["low"], to=TensorProto.BFLOAT16), node("Relu", ["x"], ["y"])]
    outputs = [tensor("low", TensorProto.BFLOAT16), tensor("y")]
    return graph(nodes, [tensor("x")], [each for each in outputs if each.name in names])


def test_an_output_that_cannot_be_sent_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.WARNING, logger.name):
        served = made(tmp_path, casting("low", "y"))

    assert [spec.name for spec in served.signature.outputs] == ["y"]
    assert list(served.run({"x": np.ones((1, 4), F32)})) == ["y"]
    assert caplog.messages == [
        "model.onnx: left out, as the protocol cannot carry them: 'low' is a tensor(bfloat16)"
    ]


def test_a_graph_of_no_output_that_can_be_sent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"carry any output: 'low' is a tensor\(bfloat16\)"):
        made(tmp_path, casting("low"))


def test_what_is_no_error_of_the_values_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = made(tmp_path, unary())

    class Session:
        def run(self, *args: Any) -> Any:
            raise MemoryError

    monkeypatch.setattr(served, "_session", Session())

    with pytest.raises(MemoryError):
        served.run({"x": np.ones((1, 4), F32)})
