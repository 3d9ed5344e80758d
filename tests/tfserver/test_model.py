"""The model: which artifact it loads, what it says of it, and its answers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tests.tfserver.models import F32, Net, Spec, own, save, save_frozen, save_words, saved

from kserve.artifact import find_artifact
from kserve.cpu import cpu_count
from kserve.errors import ModelLoadError, ModelMissingError
from kserve.model import PredictOptions
from kserve.protocol.codec.dtypes import NUMPY_DTYPES
from kserve.protocol.infer_type import InferInput, InferRequest
from kserve.signature import TensorSpec
from tfserver import Settings, TensorFlowModel

X = np.array([[1, -2, 0.5, 4], [0, 1, -1, 2]], F32)


def loaded(directory: Path, **settings: Any) -> TensorFlowModel:
    one_thread = Settings(intra_op_threads=1, inter_op_threads=1)
    model = TensorFlowModel("m", str(directory), settings=replace(one_thread, **settings))
    assert model.load()
    return model


def test_a_saved_model_is_its_whole_directory(tmp_path: Path) -> None:
    directory = save(tmp_path, Net())
    # What Keras and newer versions of TensorFlow put beside it.
    (directory / "keras_metadata.pb").write_bytes(b"")
    assert (directory / "fingerprint.pb").exists()

    model = loaded(directory)

    expected = own(directory, x=X)
    answer = model.predict({"inputs": X.tolist()})["outputs"]
    np.testing.assert_array_equal(np.array(answer["logits"], F32), expected["logits"])
    assert answer["label"] == expected["label"].tolist()
    assert model.signature.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert (model.signature.has_rows, model.max_concurrent_predicts) == (True, None)


def test_a_frozen_graph_has_the_signature_of_the_settings(tmp_path: Path) -> None:
    def build() -> None:
        tf.multiply(tf.compat.v1.placeholder(tf.float32, [None], "x"), 2.0, name="y")

    save_frozen(tmp_path / "graph.pb", build)

    assert loaded(tmp_path).predict({"instances": [1.5]}) == {"predictions": [3.0]}
    model = loaded(tmp_path, signature_name="double", inputs=["x:0"], outputs=["y:0"])
    assert list(model.signatures) == ["double"]
    answer = model.predict({"instances": [1.5], "signature_name": "double"})
    assert answer == {"predictions": [3.0]}


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
@pytest.mark.parametrize("name", ["model.keras", "model.H5"])
def test_a_file_of_keras_is_loaded(tmp_path: Path, name: str) -> None:
    layers = tf.keras.layers
    model = tf.keras.Sequential([layers.Input((4,)), layers.Dense(2, name="out")])
    model.save(tmp_path / name.lower())
    (tmp_path / name.lower()).rename(tmp_path / name)

    answer = loaded(tmp_path).predict({"instances": X.tolist()})

    np.testing.assert_allclose(answer["predictions"], model(X).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("names", "error", "reason"),
    [
        ([], ModelMissingError, "no model file, expected exactly one of saved_model.pb, *.pb"),
        (["a.pb", "b.keras"], ModelLoadError, "More than one model file is detected"),
    ],
)
def test_exactly_one_artifact_is_expected(
    tmp_path: Path, names: list[str], error: type[Exception], reason: str
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")

    with pytest.raises(error) as caught:
        loaded(tmp_path)

    assert reason in str(caught.value)


def test_the_artifact_of_a_saved_model_is_its_file(tmp_path: Path) -> None:
    model = TensorFlowModel
    save(tmp_path, Net())

    found = find_artifact(tmp_path, model.artifact_suffixes, model.preferred_artifact)

    assert found == tmp_path / "saved_model.pb"


def test_the_default_signature_is_that_of_the_settings(tmp_path: Path) -> None:
    model = loaded(save_words(tmp_path), signature_name="centred")

    answer = model.predict({"instances": [[1, 2], [3, 6]]})

    assert answer == {"predictions": [[-1.0, -2.0], [1.0, 2.0]]}
    assert [spec.name for spec in model.signature.inputs] == ["x"]
    # No rows: as many at a time as there are CPUs.
    assert model.max_concurrent_predicts == cpu_count()


def test_every_signature_is_called_by_its_name(tmp_path: Path) -> None:
    model = loaded(save_words(tmp_path))

    answers = [
        model.predict({"instances": ["é"]}),
        model.predict({"signature_name": "cut", "inputs": {"text": ["abc"], "n": [2]}}),
        model.predict({"signature_name": "add", "inputs": 40}),
        model.predict({"signature_name": "add", "inputs": {"n": 2}}),
        model.predict({"signature_name": "count", "inputs": {}}),
    ]

    assert answers == [
        {"predictions": [{"first_bytes": {"b64": "ww=="}, "upper": "É"}]},
        {"outputs": ["ab"]},
        {"outputs": 40},
        {"outputs": 42},
        {"outputs": 42},
    ]
    kinds = {model.cost_kind(PredictOptions({"signature_name": name})) for name in ("cut", "add")}
    assert kinds == {"cut", "add"}
    assert model.cost_kind(PredictOptions()) == "serving_default"


def test_a_v2_request_may_name_a_signature_and_need_no_inputs(tmp_path: Path) -> None:
    model = loaded(save_words(tmp_path))
    request = InferRequest("m", [], parameters={"signature_name": "count"})

    (output,) = model.infer(request).outputs

    assert (output.name, output.datatype, output.shape, output.data) == ("total", "INT64", [], [0])


def test_requested_outputs_come_alone_and_in_their_order(tmp_path: Path) -> None:
    model = loaded(save(tmp_path, Net()))

    answer = model.predict_tensors({"x": X}, PredictOptions(outputs=("logits",)))

    assert list(answer) == ["logits"]


def test_calls_that_change_a_state_come_one_after_the_other(tmp_path: Path) -> None:
    model = loaded(save_words(tmp_path), signature_name="add")

    assert (model.is_stateful, model.max_concurrent_predicts) == (True, None)
    assert model.predict({"signature_name": "count", "inputs": {}}) == {"outputs": 0}


def test_a_model_without_a_version_is_the_first(tmp_path: Path) -> None:
    model = loaded(save(tmp_path, Net()))
    numbered = TensorFlowModel("m", str(tmp_path))
    numbered.version = "7"
    numbered.load()

    assert (model.versions, numbered.versions) == (("1",), None)


def test_its_metadata_has_the_definitions_of_all_signatures(tmp_path: Path) -> None:
    metadata = loaded(save_words(tmp_path)).serving_metadata()

    assert metadata is not None
    definitions = metadata["signature_def"]["signature_def"]
    assert set(definitions) == {"serving_default", "cut", "count", "add", "centred"}
    assert definitions["add"]["inputs"]["n"]["dtype"] == "DT_INT64"


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
def test_no_call_traces_python_code_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorflow.python.eager.polymorphic_function import tracing_compilation

    traced = []
    trace: Callable[..., Any] = tracing_compilation.trace_function

    def counting(*args: Any, **kwargs: Any) -> Any:
        traced.append(args)
        return trace(*args, **kwargs)

    layers = tf.keras.layers
    sequence = tf.keras.Sequential([layers.Input((None, 2)), layers.Dense(2)])
    (tmp_path / "keras").mkdir()
    sequence.save(tmp_path / "keras" / "model.keras")
    spec = Spec([None, None, 2], tf.float32, name="x")
    saved(tmp_path / "saved", lambda x: {"y": x * 2.0}, spec)

    def build() -> None:
        tf.multiply(tf.compat.v1.placeholder(tf.float32, [None, None, 2], "x"), 2.0, name="y")

    save_frozen(tmp_path / "frozen" / "graph.pb", build)
    monkeypatch.setattr(tracing_compilation, "trace_function", counting)
    tf.function(lambda x: x)(tf.constant(1.0))
    assert traced, "nothing counts traces in this version of TensorFlow"
    models = [loaded(tmp_path / name) for name in ("keras", "saved", "frozen")]
    n_traced = len(traced)

    for model in models:
        (name,) = (each.name for each in model.signature.inputs)
        for shape in ((1, 1, 2), (2, 5, 2), (7, 1, 2), (0, 3, 2)):
            for dtype in ("FP32", "FP64", "INT64"):
                array = np.ones(shape, NUMPY_DTYPES[dtype])
                tensor = InferInput.from_array(name, list(shape), dtype, array)
                model.infer(InferRequest("m", [tensor]))

    assert len(traced) == n_traced
