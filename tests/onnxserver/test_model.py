"""The model: its flags, what it finds, its metadata and its answers."""

import argparse
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.onnxserver.graphs import (
    FLOAT,
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

from kserve.cpu import cpu_count
from kserve.errors import ModelLoadError, ModelMissingError
from kserve.logging import logger
from kserve.protocol.infer_type import InferInput, InferRequest, RequestedOutput
from onnxserver import ONNXModel, SessionSettings

F32 = np.float32
X = np.arange(8, dtype=F32).reshape(2, 4) - 3


def loaded(directory: Path, name: str = "m") -> ONNXModel:
    model = ONNXModel(name, str(directory))
    assert model.load()
    return model


def request(*wanted: str, **inputs: Any) -> InferRequest:
    tensors = []
    for name, array in inputs.items():
        tensor = InferInput(name, list(array.shape), "FP32")
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    outputs = [RequestedOutput(name, {"binary_data": True}) for name in wanted]
    return InferRequest("m", tensors, request_outputs=outputs or None)


def test_the_flags_are_those_of_the_session(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    ONNXModel.add_arguments(parser)

    model = ONNXModel.from_args("m", str(tmp_path), parser.parse_args(["--intra_op_threads", "4"]))

    assert (model.name, model.model_dir) == ("m", str(tmp_path))
    assert model._settings == SessionSettings(["CPUExecutionProvider"], intra_op_threads=4)


def test_finds_the_only_file_whatever_its_name(tmp_path: Path) -> None:
    save(tmp_path, unary(), "net.onnx")
    (tmp_path / "weights.bin").touch()

    assert loaded(tmp_path).ready


def test_finds_model_onnx_beside_others(tmp_path: Path) -> None:
    save(tmp_path, unary(), "encoder.onnx")
    save(tmp_path, unary("Neg"))

    answer = loaded(tmp_path).infer(request(x=X))

    assert answer.outputs[0].as_numpy().ravel().tolist() == (-X).ravel().tolist()


@pytest.mark.parametrize(
    ("names", "error", "reason"),
    [
        pytest.param([], ModelMissingError, "no model file", id="none"),
        pytest.param(
            ["a.onnx", "b.onnx"],
            ModelLoadError,
            r"More than one model file is detected, expected exactly one of \*.onnx, or one named "
            r"model.onnx; found a.onnx, b.onnx",
            id="two",
        ),
    ],
)
def test_a_directory_without_one_model_is_refused(
    tmp_path: Path, names: list[str], error: type[Exception], reason: str
) -> None:
    for name in names:
        save(tmp_path, unary(), name)

    with pytest.raises(error, match=reason):
        loaded(tmp_path)


def test_rows_that_run_together_take_one_call_at_a_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.INFO, logger.name):
        model = loaded(save(tmp_path, unary()))

    assert model.signature.has_rows
    assert model.max_concurrent_predicts is None
    assert caplog.messages == [
        "Model m: requests run together: in a trial of two rows, none depended on the other"
    ]


def test_what_runs_alone_runs_on_every_cpu(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.INFO, logger.name):
        model = loaded(save(tmp_path, unary(shape=(2, 4))))

    assert not model.signature.has_rows
    assert model.max_concurrent_predicts == cpu_count()
    assert caplog.messages == [
        "Model m: requests run each alone: axis 0 of 'x' is not of any length"
    ]


def test_other_threads_run_during_a_call(tmp_path: Path) -> None:
    steps = node("Loop", ["n", "", "x"], ["y"], body=_doubling())
    inputs = [tensor("n", 7, []), tensor("x", FLOAT, [1])]
    model = loaded(save(tmp_path, graph([steps], inputs, [tensor("y", FLOAT, [1])])))
    has_begun, may_end = threading.Event(), threading.Event()
    n_seen = 0

    def count() -> None:
        nonlocal n_seen
        has_begun.set()
        while not may_end.is_set():
            n_seen += 1

    thread = threading.Thread(target=count)
    thread.start()
    has_begun.wait()
    before = n_seen
    model.infer(_loop_request(300_000))
    during = n_seen - before
    may_end.set()
    thread.join()

    assert during > 1000


def _doubling() -> Any:
    from onnx import TensorProto, helper

    return helper.make_graph(
        [node("Identity", ["c"], ["go"]), node("Neg", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            tensor("v", FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("go", TensorProto.BOOL, []), tensor("w", FLOAT, [1])],
    )


def _loop_request(n: int) -> InferRequest:
    return InferRequest(
        "m", [InferInput("n", [], "INT64", [n]), InferInput("x", [1], "FP32", [1.0])]
    )


def test_metadata_is_of_the_session(tmp_path: Path) -> None:
    inputs = [tensor("x"), optional("maybe", FLOAT, [2]), tensor("scale", FLOAT, [1])]
    nodes = [
        node("Mul", ["x", "scale"], ["y"]),
        node("OptionalHasElement", ["maybe"], ["has"]),
        node("SplitToSequence", ["x"], ["parts"]),
    ]
    outputs = [tensor("y"), sequence("parts"), tensor("has", 9, [])]
    directory = save(tmp_path, graph(nodes, inputs, outputs, {"scale": np.array([2], F32)}))

    model = loaded(directory)

    assert model.platform == "onnxruntime_onnx"
    assert model.get_input_types() == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "maybe", "datatype": "FP32", "shape": [2]},
    ]
    assert model.get_output_types() == [
        {"name": "y", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "parts", "datatype": "FP32", "shape": [-1]},
        {"name": "has", "datatype": "BOOL", "shape": []},
    ]


def test_a_model_that_is_not_loaded_has_no_metadata(tmp_path: Path) -> None:
    model = ONNXModel("m", str(tmp_path))

    assert (model.get_input_types(), model.get_output_types()) == ([], [])


def test_answers_a_v1_payload_with_labels_and_columns(tmp_path: Path) -> None:
    directory = save(tmp_path, classifier(["a", "b"]))
    labels, maps = own_session(directory / "model.onnx").run(None, {"x": X})

    answer = loaded(directory).predict({"instances": X.tolist()})

    assert answer == {
        "predictions": [
            {"label": label, "probability-a": row["a"], "probability-b": row["b"]}
            for label, row in zip(labels.tolist(), maps, strict=True)
        ]
    }


def test_the_name_of_a_sequence_stands_for_its_tensors(tmp_path: Path) -> None:
    nodes = [node("SplitToSequence", ["x"], ["parts"], axis=0), node("Relu", ["x"], ["y"])]
    model = loaded(save(tmp_path, graph(nodes, [tensor("x")], [sequence("parts"), tensor("y")])))

    given = request("parts", x=X)
    response = model.infer(given)

    sent = [(output.name, as_binary) for output, as_binary in response.outputs_to_send()]
    assert sent == [("parts-0", True), ("parts-1", True)]
    assert [each.name for each in given.request_outputs or []] == ["parts"]


def test_the_optimised_graph_is_named_after_the_model_and_its_version(tmp_path: Path) -> None:
    directory = save(tmp_path / "m", unary())
    settings = SessionSettings(optimized_model_path=str(tmp_path))
    model = ONNXModel("relu", str(directory), settings=settings)
    model.version = "3"

    model.load()

    assert (tmp_path / "relu-3.onnx").is_file()
