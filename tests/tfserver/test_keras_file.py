"""Keras' own files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tests.tfserver.models import F32

from kserve.errors import ModelLoadError
from kserve.signature import TensorSpec
from tfserver.keras_file import load_keras_file

pytestmark = [
    # Of numpy, about Keras' own code.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
]

keras = tf.keras
layers = keras.layers


def sequential() -> Any:
    return keras.Sequential(
        [layers.Input((4,)), layers.Dense(3, "relu"), layers.Dense(2, name="out")]
    )


def functional() -> Any:
    """Two inputs of different kinds, two outputs, and layers that differ in training."""
    image = layers.Input((8, 8, 1), name="image")
    words = layers.Input((None,), dtype="int32", name="words")
    seen = layers.Flatten()(layers.Conv2D(2, 3)(image))
    read = layers.GlobalAveragePooling1D()(layers.Embedding(10, 3)(words))
    both = layers.BatchNormalization()(layers.Dropout(0.5)(layers.concatenate([seen, read])))
    outputs = [layers.Dense(2, name="kind")(both), layers.Dense(1, name="score")(both)]
    return keras.Model([image, words], outputs)


def by_name() -> Any:
    a, b = layers.Input((2,), name="a"), layers.Input((2,), name="b")
    total = layers.Add()([a, b])
    return keras.Model({"b": b, "a": a}, {"total": total, "difference": layers.Subtract()([a, b])})


def load(model: Any, path: Path, allow_lambda: bool = False) -> Any:
    model.save(path)
    return load_keras_file(path, allow_lambda=allow_lambda)


@pytest.fixture(params=["model.keras", "model.h5"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_a_sequential_model_answers_as_in_process(path: Path) -> None:
    model = sequential()
    function = load(model, path)

    (x,), (y,) = function.signature.inputs, function.signature.outputs
    assert (x.datatype, x.shape, y.name, y.shape) == ("FP32", (-1, 4), "out", (-1, 2))
    for n_rows in (1, 3):
        rows = np.random.default_rng(0).standard_normal((n_rows, 4)).astype(F32)
        expected = model(rows, training=False).numpy()
        np.testing.assert_allclose(function.run({x.name: rows})["out"], expected, atol=1e-6)


def test_inputs_and_outputs_have_the_names_of_their_layers(path: Path) -> None:
    model = functional()
    function = load(model, path)
    image = np.random.default_rng(1).random((2, 8, 8, 1), F32)
    words = np.array([[1, 2, 3], [4, 5, 6]], np.int32)

    answer = function.run({"image": image, "words": words})

    assert function.signature.inputs == (
        TensorSpec("image", "FP32", (-1, 8, 8, 1)),
        TensorSpec("words", "INT32", (-1, -1)),
    )
    expected = model([image, words], training=False)
    for name, values in zip(("kind", "score"), expected, strict=True):
        np.testing.assert_allclose(answer[name], values.numpy(), atol=1e-6)
    assert not function.changes_state


def test_inputs_and_outputs_by_name_keep_their_names(tmp_path: Path) -> None:
    function = load(by_name(), tmp_path / "model.keras")

    answer = function.run({"a": np.array([[5, 6]], F32), "b": np.array([[1, 2]], F32)})

    assert {name: array.tolist() for name, array in answer.items()} == {
        "difference": [[4.0, 4.0]],
        "total": [[6.0, 8.0]],
    }


def test_python_code_is_loaded_only_if_it_is_trusted(tmp_path: Path) -> None:
    model = keras.Sequential([layers.Input((2,)), layers.Lambda(lambda x: x * 2, name="double")])
    path = tmp_path / "model.keras"

    with pytest.raises(ModelLoadError) as caught:
        load(model, path)

    assert str(caught.value) == (
        "model.keras: it has layers that are Python code, which can be any: start with"
        " --allow_lambda if you trust the source"
    )
    function = load_keras_file(path, allow_lambda=True)
    (name,) = (spec.name for spec in function.signature.inputs)
    assert function.run({name: np.ones((1, 2), F32)})["double"].tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2], "^model.keras: cannot be loaded: "),
        (lambda data: b"", "^model.keras: cannot be loaded: "),
        (lambda data: b"\x80\x04pickle", "^model.keras: cannot be loaded: "),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Any, reason: str) -> None:
    path = tmp_path / "model.keras"
    sequential().save(path)
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(ModelLoadError, match=reason) as caught:
        load_keras_file(path, allow_lambda=False)

    assert "\n" not in str(caught.value)


def test_classes_that_are_not_there_are_named(tmp_path: Path) -> None:
    class Own(layers.Layer):  # type: ignore[misc, name-defined]
        def call(self, x: Any) -> Any:
            return x

    with pytest.raises(ModelLoadError, match="^model.keras: cannot be loaded: .*Own"):
        load(keras.Sequential([layers.Input((2,)), Own()]), tmp_path / "model.keras")
