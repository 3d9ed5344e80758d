"""Small ONNX models for the tests, and ONNX Runtime's own answers to compare with."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, TypeProto, helper, numpy_helper

Shape = Sequence[int | str | None] | None

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING

# What these models are written for, so that older runtimes load them too.
OPSET, IR_VERSION = 18, 8


def tensor(name: str, elem_type: int = FLOAT, shape: Shape = ("N", 4)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, elem_type, shape)


def optional(name: str, elem_type: int, shape: Shape) -> onnx.ValueInfoProto:
    inner = helper.make_tensor_type_proto(elem_type, shape)
    return helper.make_value_info(name, helper.make_optional_type_proto(inner))


def sequence(name: str, elem_type: int = FLOAT) -> onnx.ValueInfoProto:
    inner = helper.make_tensor_type_proto(elem_type, None)
    return helper.make_value_info(name, helper.make_sequence_type_proto(inner))


def maps(name: str, key_type: int = INT64) -> onnx.ValueInfoProto:
    values = helper.make_tensor_type_proto(FLOAT, [])
    mapping = TypeProto(map_type=TypeProto.Map(key_type=key_type, value_type=values))
    return helper.make_value_info(name, helper.make_sequence_type_proto(mapping))


def node(op: str, inputs: Iterable[str], outputs: Iterable[str], **attributes: Any) -> Any:
    return helper.make_node(op, list(inputs), list(outputs), **attributes)


def zip_map(source: str, target: str, labels: Sequence[int] | Sequence[str]) -> Any:
    kind = "classlabels_strings" if isinstance(labels[0], str) else "classlabels_int64s"
    return node("ZipMap", [source], [target], domain="ai.onnx.ml", **{kind: labels})


def graph(
    nodes: Sequence[Any],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Mapping[str, NDArray[Any]] | None = None,
    *,
    opset: int = OPSET,
    ir_version: int = IR_VERSION,
    domains: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    constants = [numpy_helper.from_array(v, k) for k, v in (initializers or {}).items()]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    opsets += [helper.make_opsetid(name, number) for name, number in (domains or {}).items()]
    return helper.make_model(
        helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), constants),
        opset_imports=opsets,
        ir_version=ir_version,
        producer_name="tests",
        producer_version="1",
    )


def unary(op: str = "Relu", shape: Shape = ("N", 4), **attributes: Any) -> onnx.ModelProto:
    """Give a graph of one operator, x to y."""
    nodes = [node(op, ["x"], ["y"], **attributes)]
    return graph(nodes, [tensor("x", shape=shape)], [tensor("y", shape=shape)])


def classifier(labels: Sequence[int] | Sequence[str] = (0, 1, 2)) -> onnx.ModelProto:
    """Give a classifier as skl2onnx writes it: axes without names, probabilities as maps."""
    weights = np.random.default_rng(0).standard_normal((4, len(labels))).astype(np.float32)
    nodes = [
        node("MatMul", ["x", "w"], ["z"]),
        node("Softmax", ["z"], ["p"], axis=1),
        node("ArgMax", ["p"], ["label"], axis=1, keepdims=0),
        zip_map("p", "probability", labels),
    ]
    key_type = STRING if isinstance(labels[0], str) else INT64
    outputs = [tensor("label", INT64, [None]), maps("probability", key_type)]
    return graph(nodes, [tensor("x", shape=[None, 4])], outputs, {"w": weights})


def save(directory: Path, model: onnx.ModelProto, name: str = "model.onnx") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(model.SerializeToString())
    return directory


def own_session(model: onnx.ModelProto | Path) -> ort.InferenceSession:
    """Open a session as a user of ONNX Runtime would, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def uncovered() -> dict[str, str]:
    """Give an environment in which a server is not traced: one of a thousand models is slow."""
    return {name: text for name, text in os.environ.items() if not name.startswith("COVERAGE")}
