"""Models written by plain TensorFlow code, as their authors would."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

F32 = np.float32

Spec = tf.TensorSpec


def save(directory: Path, module: Any, signatures: Any = None) -> Path:
    """Save a module, whose `serve` is the signature unless some are given."""
    tf.saved_model.save(module, str(directory), signatures or {"serving_default": module.serve})
    return directory


def saved(directory: Path, function: Any, *specs: Any, **attributes: Any) -> Path:
    """Save one function; attributes are what it uses, which a SavedModel has to know."""
    module = tf.Module()
    for name, value in attributes.items():
        setattr(module, name, value)
    module.serve = tf.function(function, input_signature=list(specs))
    return save(directory, module)


def own(directory: Path, name: str = "serving_default", **inputs: Any) -> dict[str, Any]:
    """Give what TensorFlow itself answers."""
    loaded = tf.saved_model.load(str(directory))
    results = loaded.signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})
    return {key: value.numpy() for key, value in results.items()}


class Net(tf.Module):  # type: ignore[misc]  # it has no types
    """A layer: rows of four numbers in, rows of three and the largest of them out."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.weights = tf.Variable(rng.standard_normal((4, 3)).astype(F32))

    @tf.function(input_signature=[Spec([None, 4], tf.float32, name="x")])
    def serve(self, x: tf.Tensor) -> Mapping[str, tf.Tensor]:
        logits = tf.matmul(x, self.weights)
        return {"logits": logits, "label": tf.argmax(logits, 1)}


class Words(tf.Module):  # type: ignore[misc]  # it has no types
    """Several signatures: of texts, of two inputs, of none, of plain numbers, and with a state."""

    def __init__(self) -> None:
        super().__init__()
        self.total = tf.Variable(0, dtype=tf.int64)

    @tf.function(input_signature=[Spec([None], tf.string, name="text")])
    def upper(self, text: tf.Tensor) -> Mapping[str, tf.Tensor]:
        return {
            "upper": tf.strings.upper(text, "utf-8"),
            "first_bytes": tf.strings.substr(text, 0, 1),
        }

    @tf.function(
        input_signature=[Spec([None], tf.string, name="text"), Spec([None], tf.int32, name="n")]
    )
    def cut(self, text: tf.Tensor, n: tf.Tensor) -> Mapping[str, tf.Tensor]:
        return {"cut": tf.strings.substr(text, tf.zeros_like(n), n)}

    @tf.function(input_signature=[])
    def count(self) -> Mapping[str, tf.Tensor]:
        return {"total": self.total.read_value()}

    @tf.function(input_signature=[Spec([], tf.int64, name="n")])
    def add(self, n: tf.Tensor) -> Mapping[str, tf.Tensor]:
        return {"total": self.total.assign_add(n)}

    @tf.function(input_signature=[Spec([None, None], tf.float64, name="x")])
    def centred(self, x: tf.Tensor) -> Mapping[str, tf.Tensor]:
        return {"y": x - tf.reduce_mean(x, 0)}


def save_words(directory: Path) -> Path:
    words = Words()
    names = {"serving_default": words.upper}
    names |= {n: getattr(words, n) for n in ("cut", "count", "add", "centred")}
    return save(directory, words, names)


def save_frozen(path: Path, build: Any) -> Path:
    """Write the graph that a function builds."""
    with tf.Graph().as_default() as graph:
        build()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path
