"""Writes the classifier of examples/sklearn-iris as an ONNX graph to model/, as converters do.

Axes without names, a label, and the probabilities as a map for each row.
"""

import sys
from pathlib import Path
from typing import Any

import joblib
from onnx import ModelProto, TensorProto, TypeProto, helper

TRAINED = Path(__file__).parents[1] / "sklearn-iris" / "model" / "model.joblib"
SPECIES = ("setosa", "versicolor", "virginica")


def convert(pipeline: Any) -> ModelProto:
    """Give the graph of a scaler and a logistic regression: x, (n, 4), to species and its odds."""
    scaler, classifier = (step for _, step in pipeline.steps)
    domain = "ai.onnx.ml"
    nodes = [
        helper.make_node(
            "Scaler",
            ["x"],
            ["scaled"],
            domain=domain,
            offset=scaler.mean_.tolist(),
            scale=(1 / scaler.scale_).tolist(),
        ),
        helper.make_node(
            "LinearClassifier",
            ["scaled"],
            ["species", "scores"],
            domain=domain,
            classlabels_strings=SPECIES,
            coefficients=classifier.coef_.ravel().tolist(),
            intercepts=classifier.intercept_.tolist(),
            post_transform="SOFTMAX",
        ),
        helper.make_node(
            "ZipMap", ["scores"], ["probability"], domain=domain, classlabels_strings=SPECIES
        ),
    ]
    number = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    odds = TypeProto(map_type=TypeProto.Map(key_type=TensorProto.STRING, value_type=number))
    graph = helper.make_graph(
        nodes,
        "iris",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])],
        [
            helper.make_tensor_value_info("species", TensorProto.STRING, [None]),
            helper.make_value_info("probability", helper.make_sequence_type_proto(odds)),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="onnx-iris")


def main(model_dir: Path) -> None:
    """Write `model.onnx`."""
    model_dir.mkdir(exist_ok=True)
    (model_dir / "model.onnx").write_bytes(convert(joblib.load(TRAINED)).SerializeToString())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "model")
